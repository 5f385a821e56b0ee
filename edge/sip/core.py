"""The SIP element: what happens to each message (RFC 3261 §16, §18.2, RFC 5626 §5.3), sans-IO.

    message ─► checked ─► Via completed ─► repeat? absorbed
       response ─► client transaction ─► context ─► up
       request  ─► ACK, CANCEL to their INVITE
                ─► Max-Forwards, loop, Proxy-Require
                ─► REGISTER for us ─► registrar        OPTIONS for us ─► 200
                ─► own Route values off, token ─► flow
                ─► digest for users of ours
                ─► targets: flow of the token, next Route, bindings of the user, an allowed foreign host
                ─► context, branches

All of it is plain calls. What needs an answer from outside (user store, DNS, storage) goes on in a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.access import Access
from edge.sip.answers import NO_CONTENT, build_answer, build_trying, options_headers, to_tag_of
from edge.sip.forward import (
    MAX_BREADTH,
    NO_ROUTES,
    Draft,
    Routes,
    fix_top_via,
    is_own,
    loop_mark,
    read_routes,
)
from edge.sip.location import Location
from edge.sip.message import Message, MessageLimits, check_request, check_response
from edge.sip.proxy import Opener, ProxyContext, Reached, Target
from edge.sip.registration import Registration
from edge.sip.targets import Addresses, TargetFinder
from edge.sip.transaction import ServerTransaction, State, Transactions
from edge.sip.uri import SipUri, UriCache, parse_uri

_DIALOG_FORMING = frozenset((b"INVITE", b"SUBSCRIBE", b"REFER", b"NOTIFY"))
_REFRESHING = frozenset((b"INVITE", b"UPDATE", b"SUBSCRIBE", b"NOTIFY", b"REFER"))
_NO_RECORD = frozenset((b"MESSAGE", b"OPTIONS", b"PUBLISH", b"INFO", b"BYE", b"ACK", b"CANCEL", b"PRACK", b"REGISTER"))
_PLAIN_PORT = {Transport.UDP: b"", Transport.TCP: b";transport=tcp", Transport.TLS: b";transport=tcp"}


class Flows(Protocol):
    """The map of flow tokens to connections (`edge.outbound.flows`)."""

    def token_of(self, connection: Connection) -> bytes: ...

    def handle_connection_lost(self, connection: Connection, reason: str, now: float) -> None: ...


class Reach(Protocol):
    """Finds connections for URIs and sends datagrams: the world outside."""

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None: ...

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection: ...


@dataclass(slots=True)
class SipStats:
    """Counters, read when somebody scrapes."""

    requests: dict[str, int] = field(default_factory=dict)
    answers: list[int] = field(default_factory=lambda: [0] * 7)
    rejected: dict[str, int] = field(default_factory=dict)
    stray_responses: int = 0
    loops: int = 0

    def reject(self, label: str) -> None:
        """Count a message that was refused or dropped."""
        self.rejected[label] = self.rejected.get(label, 0) + 1


class SipCore:
    """One SIP element for all connections. See the module's picture."""

    def __init__(
        self,
        *,
        addresses: Addresses,
        limits: MessageLimits,
        transactions: Transactions,
        location: Location,
        access: Access,
        registration: Registration,
        targets: TargetFinder,
        flows: Flows,
        reach: Reach,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        uris: UriCache,
        soon: Callable[[Callable[[], None]], object],
        max_transactions: int = 100000,
    ) -> None:
        self.addresses = addresses
        self.limits = limits
        self.transactions = transactions
        self.location = location
        self.access = access
        self.registration = registration
        self.targets = targets
        self.flows = flows
        self.clock = clock
        self.stats = SipStats()
        self._reach = reach
        self._soon = soon
        self._lost: set[int] = set()
        self._uris = uris
        self._vias = h.ViaCache()
        self._max_transactions = max_transactions
        self._secret = random(32)
        self._branch_stem = b"z9hG4bK" + random(6).hex().encode("ascii")
        self._branches = 0
        self._via_heads: dict[tuple[object, ...], bytes] = {}
        self.draining = False

    # -- in

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        """Take one whole message from a connection; False when it was malformed."""
        if message.status:
            return self._receive_response(message, now)
        return self._receive_request(connection, message, now)

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        """Answer a request whose end cannot be found, where its Via can be read."""
        if message is None or message.status:
            self.stats.reject(error.label)
            return
        try:
            check_request(message, self.limits, self._vias.parse)
        except RemoteError as other:
            error = error if error.status else other
        self._refuse_unchecked(connection, message, error)

    def _receive_response(self, message: Message, now: float) -> bool:
        try:
            check_response(message, self._vias.parse)
        except RemoteError as error:
            self.stats.reject(error.label)
            return False
        branch = message.via.branch
        if message.method == b"CANCEL":
            branch += b"~CANCEL"
        client = self.transactions.clients.get(branch)
        if (
            client is None
            or not self.addresses.wrote(message.via.host, message.via.port)
            or (client.invite != (message.method == b"INVITE"))
        ):
            self.stats.stray_responses += 1
            return True
        client.receive_response(message, now)
        return True

    def _receive_request(self, connection: Connection, message: Message, now: float) -> bool:
        try:
            check_request(message, self.limits, self._vias.parse)
        except RemoteError as error:
            self._refuse_unchecked(connection, message, error)
            return False
        connection.first_message = True
        counts = self.stats.requests
        method = message.method.decode("ascii")
        if method in counts:
            counts[method] += 1
        else:
            counts[method if message.method in _DIALOG_FORMING or message.method in _NO_RECORD else "other"] = (
                counts.get(method, 0) + 1
            )
        fix_top_via(message, connection.remote[0], connection.remote[1])
        try:
            self._dispatch(connection, message, now)
        except RemoteError as error:
            self._refuse(connection, message, error, now)
        return True

    def _dispatch(self, connection: Connection, message: Message, now: float) -> None:
        method = message.method
        if method == b"ACK":
            self._receive_ack(connection, message, now)
            return
        key = server_key(message, method)
        if method == b"CANCEL":
            self._receive_cancel(connection, message, key, now)
            return
        server = self.transactions.servers.get(key)
        if server is not None:
            server.receive_retransmission()
            return
        if connection.transport is Transport.UDP:
            final = self.transactions.finals.get(key)
            if final is not None:
                self.transactions.retransmissions_absorbed += 1
                connection.send(final)
                return
        self._handle_new(connection, message, key, now)

    # -- refusing

    def _refuse_unchecked(self, connection: Connection, message: Message, error: RemoteError) -> None:
        """Answer a message that failed the first checks, where its Via could be read and it is no ACK."""
        self.stats.reject(error.label)
        if not error.status or message.method == b"ACK" or not hasattr(message, "via"):
            return
        fix_top_via(message, connection.remote[0], connection.remote[1])
        try:
            message.to_tag = h.read_tag(message.lines[message.first[h.TO]]) if message.first[h.TO] else None
        except RemoteError:
            message.to_tag = b""
        data = build_answer(message, error.status, self.tag_for(message), reason=error.detail)
        self.count_answer(error.status)
        self._reply_connection(connection, message).send(data)

    def _refuse(self, connection: Connection, message: Message, error: RemoteError, now: float) -> None:
        """Answer a refusal statelessly."""
        self.stats.reject(error.label)
        if message.method == b"ACK" or not error.status:
            return
        extra = (b"Unsupported: " + b", ".join(error.tags),) if isinstance(error, Unsupported) else ()
        self.answer(connection, message, error.status, extra, now, error.detail)

    def answer(
        self,
        connection: Connection,
        message: Message,
        status: int,
        extra: Sequence[bytes],
        now: float,
        reason: str = "",
    ) -> None:
        """Answer a request for which no transaction was opened. INVITE refusals are sent once; the ACK is dropped."""
        data = build_answer(message, status, self.tag_for(message), list(extra), reason)
        self.count_answer(status)
        if message.method != b"INVITE" and connection.transport is Transport.UDP and status != 401 and status != 407:
            self.transactions.remember_final(server_key(message, message.method), data, now)
        self._reply_connection(connection, message).send(data)

    def _reply_connection(self, connection: Connection, message: Message) -> Connection:
        """Return where answers go (RFC 3261 §18.2.2, RFC 3581 §4)."""
        via = message.via
        if connection.transport is not Transport.UDP or via.rport is not None:
            return connection
        port = via.port or 5060
        if port == connection.remote[1]:
            return connection
        return self._reach.reply_flow(connection, connection.remote[0], port)

    # -- ACK, CANCEL

    def _receive_ack(self, connection: Connection, message: Message, now: float) -> None:
        server = self.transactions.servers.get(server_key(message, b"INVITE"))
        if server is not None and server.receive_ack(now):
            return
        routes = read_routes(message, self.addresses.own, self._uris)
        hops = self._max_forwards(message)
        target = self.targets.for_ack(connection, message, routes, now)
        if target is None or hops == 0:
            self.stats.reject("stray_ack")
            return
        draft = Draft(message, routes)

        def reached(ways: list[Opener], status: int) -> None:
            if ways:
                self._forward_stateless(draft, target, ways[0]())

        if target.connection is not None:
            self._forward_stateless(draft, target, target.connection)
        else:
            self.reach(target, 600, reached)

    def _forward_stateless(self, draft: Draft, target: Target, connection: Connection) -> None:
        via = self.via_line(connection, self._new_branch(b""))
        data = draft.build(target.uri, via, record_routes=[], routes=target.routes, strict=target.strict)
        connection.send(data)

    def _receive_cancel(self, connection: Connection, message: Message, key: bytes, now: float) -> None:
        invite = self.transactions.servers.get(server_key(message, b"INVITE"))
        if key in self.transactions.finals and connection.transport is Transport.UDP:
            connection.send(self.transactions.finals[key])
            return
        if invite is None:
            self._refuse(connection, message, RemoteError(481, "cancel_unmatched"), now)
            return
        self.answer(connection, message, 200, (), now)
        context = invite.user
        if isinstance(context, ProxyContext) and invite.state is State.PROCEEDING:
            context.cancel([message.lines[i] for i in message.indexes(h.REASON)], now)

    # -- new requests

    def _handle_new(self, connection: Connection, message: Message, key: bytes, now: float) -> None:
        uri = self._request_uri(message)
        hops = self._max_forwards(message)
        own_host = self.addresses.serves(uri)
        if hops == 0 and not (message.method == b"OPTIONS" and own_host and uri.user is None):
            raise RemoteError(483, "max_forwards")
        mark = self._check_loop(message)
        _check_proxy_require(message)
        if message.method == b"REGISTER" and own_host:
            self._register(connection, message, uri, key, now)
            return
        routes = read_routes(message, self.addresses.own, self._uris)
        if not routes.values and own_host and uri.user is None and not routes.popped:
            self._answer_for_ourselves(connection, message, now)
            return
        if self.access.required(message, routes):
            self._authenticate(connection, message, uri, routes, key, mark, now)
            return
        self._route(connection, message, uri, routes, key, mark, now)

    def _request_uri(self, message: Message) -> SipUri:
        uri = self._uris.parse(message.uri)
        if uri.headers or message.uri.endswith(b"?"):
            raise RemoteError(400, "uri_headers", "no headers in a Request-URI")
        return uri

    @staticmethod
    def _max_forwards(message: Message) -> int:
        index = message.first[h.MAX_FORWARDS]
        if not index:
            return 70
        value = message.value_at(index)
        return 70 if value == b"70" else h.parse_max_forwards(value)

    def _check_loop(self, message: Message) -> bytes:
        """Return the loop mark of this request; 482 when one of our Vias carries the same (RFC 5393 §4.2)."""
        mark = loop_mark(message.uri, NO_ROUTES)
        if not message.repeats and b"," not in message.lines[message.first[h.VIA]]:
            return mark
        for value in self._our_branches(message):
            if value.rpartition(b".")[2] == mark:
                self.stats.loops += 1
                raise RemoteError(482, "loop")
        return mark

    def _our_branches(self, message: Message) -> list[bytes]:
        stem = self._branch_stem
        found = []
        for value in message.values(h.VIA):
            at = value.find(stem)
            while at >= 0:
                end = at
                while end < len(value) and value[end : end + 1] not in (b";", b",", b" "):
                    end += 1
                found.append(value[at:end])
                at = value.find(stem, end)
        return found

    def _register(self, connection: Connection, message: Message, uri: SipUri, key: bytes, now: float) -> None:
        def answer(status: int, extra: Sequence[bytes], reason: str = "") -> None:
            self.answer(connection, message, status, extra, self.clock(), reason)

        if self.draining:
            answer(503, (b"Retry-After: %d" % self.registration.retry_after(),))
            return
        self.registration.handle(connection, message, uri, answer, now)

    def _answer_for_ourselves(self, connection: Connection, message: Message, now: float) -> None:
        if message.method == b"OPTIONS":
            self.answer(connection, message, 200, options_headers(), now)
        elif message.method == b"BYE" or message.to_tag is not None:
            self.answer(connection, message, 481, (), now)
        else:
            self.answer(connection, message, 404, (), now)

    def _authenticate(
        self,
        connection: Connection,
        message: Message,
        uri: SipUri,
        routes: Routes,
        key: bytes,
        mark: bytes,
        now: float,
    ) -> None:
        def granted(now: float) -> None:
            self._route(connection, message, uri, routes, key, mark, now)

        def refused(status: int, extra: Sequence[bytes], reason: str = "") -> None:
            self.answer(connection, message, status, extra, self.clock(), reason)

        self.access.check_proxy(connection, message, now, self._guarded(connection, message, granted), refused)

    def _guarded(
        self, connection: Connection, message: Message, call: Callable[[float], None]
    ) -> Callable[[float], None]:
        def guarded(now: float) -> None:
            try:
                call(now)
            except RemoteError as error:
                self._refuse(connection, message, error, now)

        return guarded

    def _route(
        self,
        connection: Connection,
        message: Message,
        uri: SipUri,
        routes: Routes,
        key: bytes,
        mark: bytes,
        now: float,
    ) -> None:
        """Find targets and send the request on; the server transaction opens here."""
        if len(self.transactions.servers) >= self._max_transactions:
            self.stats.reject("transactions")
            self.answer(connection, message, 503, (b"Retry-After: 5",), now)
            return
        found = self.targets.find(connection, message, uri, routes, now)
        server = self.transactions.add_server(
            key, message.method == b"INVITE", self._reply_connection(connection, message)
        )
        if server.invite:
            server.respond(100, build_trying(message), now)
        else:
            server.start_trying_timer(build_trying(message), now)
        context = ProxyContext(self, server, message, Draft(message, routes), connection)
        context.mark = mark
        context.source_token = self._source_token(connection, message, routes)
        if message.first[h.MAX_BREADTH]:
            context.breadth = min(MAX_BREADTH, h.parse_delta(message.value(h.MAX_BREADTH) or b"", MAX_BREADTH))
        elif len(found.groups) > 1:
            context.breadth = MAX_BREADTH
        if found.groups:
            context.start(found.groups, now)
        elif found.unknown_user is not None:
            self.targets.decide_absent(found.unknown_user, context)
        else:
            context.answer(found.status, now)

    def _source_token(self, connection: Connection, message: Message, routes: Routes) -> bytes | None:
        """Return the token to record-route towards the sender (RFC 5626 §5.3.2), None where none is due."""
        if not self._records(message):
            return None
        if self.targets.forces(connection.transport) or routes.ob or _contact_has_ob(message):
            return self.flows.token_of(connection)
        return None

    @staticmethod
    def _records(message: Message) -> bool:
        method = message.method
        if message.to_tag is None:
            return method in _DIALOG_FORMING or method not in _NO_RECORD
        return method in _REFRESHING

    # -- what contexts ask for

    def reach(self, target: Target, size: int, reached: Reached) -> None:
        """Find connections for a target that is no flow."""
        assert target.locate is not None
        self._reach.reach(target.locate, size, reached)

    def next_branch(self, context: ProxyContext) -> bytes:
        """Return a new branch: stem, counter, loop mark."""
        return self._new_branch(context.mark)

    def _new_branch(self, mark: bytes) -> bytes:
        self._branches += 1
        return b"%b.%x.%b" % (self._branch_stem, self._branches, mark or b"0")

    def via_line(self, connection: Connection, branch: bytes) -> bytes:
        """Write our Via for a request that leaves by `connection` (RFC 3261 §18.1.1)."""
        key = (connection.listener, connection.transport, connection.local)
        head = self._via_heads.get(key)
        if head is None:
            host = self.addresses.facing(connection)
            head = b"Via: SIP/2.0/%b %b;branch=" % (connection.transport.name.encode("ascii"), host)
            if len(self._via_heads) >= 4096:
                self._via_heads.clear()
            self._via_heads[key] = head
        return head + branch

    def record_routes(self, context: ProxyContext, target: Target, connection: Connection) -> list[bytes]:
        """Return the Record-Route values for a branch, top first (RFC 3261 §16.6 step 4, RFC 5626 §5.3, RFC 5658)."""
        if not self._records(context.message):
            return []
        source = context.source
        secure = context.message.uri[:5].lower() == b"sips:"
        differs = source.transport is not connection.transport or source.listener is not connection.listener
        token = target.token
        if token is None and target.connection is not None and self.targets.forces(connection.transport):
            token = self.flows.token_of(connection)
        values: list[bytes] = []
        if token is not None or differs:
            values.append(self._route_value(connection, token, secure))
        if context.source_token is not None or differs or not values:
            values.append(self._route_value(source, context.source_token, secure))
        return values

    def _route_value(self, connection: Connection, token: bytes | None, secure: bool) -> bytes:
        scheme = b"sips:" if secure else b"sip:"
        user = token + b"@" if token else b""
        parameter = b"" if secure else _PLAIN_PORT.get(connection.transport, b";transport=ws")
        return b"<%b%b%b%b;lr>" % (scheme, user, self.addresses.facing(connection), parameter)

    def flow_failed(self, target: Target, now: float) -> None:
        """A flow could not be used: its binding goes, if it is still the one that was tried (OB-TGT-05)."""
        binding = target.binding
        if binding is not None:
            self.registration.forget(binding, "flow_failed")

    def count_answer(self, status: int) -> None:
        """Count an answer that goes out."""
        self.stats.answers[status // 100] += 1

    def tag_for(self, message: Message) -> bytes:
        """Return the To tag for our own answer."""
        return to_tag_of(message, self._secret)

    def edit_answer(self, context: ProxyContext, message: Message, data: bytes) -> bytes:
        """Change an answer on its way up; nothing to do in this role."""
        return data

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """A connection is gone: its flow has failed, its bindings go, what had no answer on it yet fails."""
        self.flows.handle_connection_lost(connection, reason, now)
        if connection.registered:
            self.location.handle_lost(connection)
        if self.transactions.clients:
            if not self._lost:
                self._soon(self._fail_waiting)
            self._lost.add(connection.id)

    def _fail_waiting(self) -> None:
        """Fail requests without any answer on connections that ended in this turn (OB-FAIL-12)."""
        lost, self._lost = self._lost, set()
        now = self.clock()
        for client in list(self.transactions.clients.values()):
            if client.connection.id in lost and client.state is State.TRYING:
                client.fail("connection_lost", now)


class Unsupported(RemoteError):
    """420 with the option tags we do not know."""

    def __init__(self, tags: list[bytes]) -> None:
        super().__init__(420, "extension")
        self.tags = tags


def _check_proxy_require(message: Message) -> None:
    """We know no extension that a proxy could be required to have (RFC 3261 §16.3 step 5)."""
    if message.first[h.PROXY_REQUIRE]:
        tags = h.parse_tokens(message.values(h.PROXY_REQUIRE))
        if tags:
            raise Unsupported(tags)


def server_key(message: Message, method: bytes) -> bytes:
    """Return the key a server transaction is found by (RFC 3261 §17.2.3)."""
    via = message.via
    branch = via.branch
    if branch[:7] == b"z9hG4bK" and len(branch) > 7:
        host, port = via.sent_by
        return b"%b|%b:%d|%b" % (branch, host, port, method)
    return _old_key(message, method)


def _old_key(message: Message, method: bytes) -> bytes:
    """Match as RFC 2543 did: by what identifies the request, and the whole top Via."""
    first, lines = message.first, message.lines
    from_tag = h.read_tag(lines[first[h.FROM]]) or b""
    return b"|".join(
        (message.uri, from_tag, message.value_at(first[h.CALL_ID]), b"%d" % message.cseq, message.via.text, method)
    )


def _contact_has_ob(message: Message) -> bool:
    """Whether the Contact URI carries `;ob` (RFC 5626 §5.3.2)."""
    value = message.value(h.CONTACT)
    if value is None or b"ob" not in value.lower():
        return False
    try:
        return b"ob" in parse_uri(h.parse_name_addr(value).uri).parameters
    except RemoteError:
        return False


__all__ = ["NO_CONTENT", "ServerTransaction", "SipCore", "SipStats", "Unsupported", "is_own", "server_key"]
