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
from functools import partial
from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.outbound.flows import FlowState, FlowTable
from edge.sip import headers as h
from edge.sip.access import Access, Pending
from edge.sip.addresses import Addresses
from edge.sip.again import Again
from edge.sip.answering import Answerer, IntervalTooSmall, ReplyFlows, check_proxy_require
from edge.sip.answers import build_trying, options_headers
from edge.sip.branch import BranchHook, Group, Opener, Reached, Target, cancel_key
from edge.sip.calls import CallTable
from edge.sip.edging import Edging, Passage
from edge.sip.forward import MAX_BREADTH, Draft, Routes, loop_mark, read_routes
from edge.sip.latecomers import Latecomers, Waiter
from edge.sip.location import Location
from edge.sip.message import Message, MessageLimits, check_request, check_response
from edge.sip.proxy import ProxyContext
from edge.sip.reading import Journey, has_flag, server_key
from edge.sip.recording import Recorder
from edge.sip.registration import Registration
from edge.sip.repair import repair_uri
from edge.sip.sessiontimer import REFRESHES, SessionTimers
from edge.sip.stamping import Stamper
from edge.sip.targets import Found, TargetFinder
from edge.sip.transaction import ClientTransaction, State, Transactions
from edge.sip.uri import SipUri, UriCache


class Reach(ReplyFlows, Protocol):
    """Finds connections for URIs and sends datagrams: the world outside."""

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None: ...

    def reach_existing(self, uri: SipUri, reached: Reached) -> None: ...

    def avoid(self, connection: Connection, seconds: float) -> None: ...

    def note_alias(self, connection: Connection, port: int) -> None: ...


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
        flows: FlowTable,
        reach: Reach,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        uris: UriCache,
        soon: Callable[[Callable[[], None]], object],
        answers: Answerer,
        max_transactions: int = 100000,
        max_branches: int = 12,
        recurse: bool = False,
        timers: SessionTimers | None = None,
        flow_timer: int = 120,
        edging: Edging | None = None,
        calls: CallTable | None = None,
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
        self.max_branches = max_branches
        self.stamper = Stamper(addresses, flows, random(6).hex().encode("ascii"))
        behind_edges = None if edging else registration.trusted_edge
        self._recorder = Recorder(self.stamper, flows, targets.force, behind_edges, uris)
        self.draining = False
        self.calls = calls
        self.request_hook: Callable[[Connection, Message, float], bool] | None = None  # a policy's; True: it has it
        self.response_hook: Callable[[ClientTransaction, Message, float], bool] | None = None  # True: go on
        self.branch_hook: BranchHook | None = None
        self._reach = reach
        self._soon = soon
        self._uris = uris
        self._vias = h.ViaCache()
        self._max_transactions = max_transactions
        self._recurse = recurse
        self._timers = timers
        self._flow_timer = flow_timer
        self._edging = edging
        self.latecomers: Latecomers | None = None  # None: no request waits for a device
        self._answers = answers
        self.stats = answers.stats
        self.answer = answers.answer
        self.count_answer = answers.count
        self.tag_for = answers.tag_for
        self._lost: set[int] = set()
        self._again = Again(registration, access, location, transactions, self.stats, limits.header_line)

    # -- in

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        """Take one whole message from a connection; False when it was malformed."""
        if message.status:
            return self._receive_response(message, now)
        try:
            check_request(message, self.limits, self._vias.parse)
        except RemoteError as error:
            self._answers.refuse_unchecked(connection, message, error)
            return False
        connection.first_message = True
        self.stats.count_request(message.method)
        self._answers.note_source(connection, message)
        try:
            self._receive_request(connection, message, now)
        except RemoteError as error:
            self._answers.refuse(connection, message, error, now)
        return True

    def receive_refresh(self, connection: Connection, data: bytes, now: float) -> bool:
        """Take a REGISTER that is the one before once more; False when it has to be read like any other."""
        return not self.draining and self._again.receive(connection, data, now)

    def _receive_response(self, message: Message, now: float) -> bool:
        try:
            check_response(message, self._vias.parse)
        except RemoteError as error:
            self.stats.reject(error.label)
            return False
        via = message.via
        branch = via.branch if message.method != b"CANCEL" else cancel_key(via.branch)
        client = self.transactions.clients.get(branch)
        if (
            client is None
            or client.invite is not (message.method == b"INVITE")
            or not (client.invite or client.request.startswith(message.method + b" "))
            or not self.addresses.wrote(via.host, via.port)
        ):
            self.stats.stray_responses += 1
        elif self.response_hook is None or self.response_hook(client, message, now):
            client.receive_response(message, now)
        return True

    def _receive_request(self, connection: Connection, message: Message, now: float) -> None:
        method = message.method
        if method == b"ACK":
            self._receive_ack(connection, message, now)
            return
        key = message.key = server_key(message, method)
        if method == b"CANCEL":
            self._receive_cancel(connection, message, key, now)
            return
        transactions = self.transactions
        server = transactions.servers.get(key)
        if server is not None:
            server.receive_retransmission()
            return
        if key in self.access.waiting:  # for storage, with nothing to answer yet
            transactions.retransmissions_absorbed += 1
            return
        if transactions.finals and connection.transport is Transport.UDP:
            final = transactions.finals.get(key)
            if final is not None:
                transactions.retransmissions_absorbed += 1
                connection.send(final)
                return
        if self.request_hook is not None and self.request_hook(connection, message, now):
            return
        self._handle_new(connection, message, key, now)

    def proceed(self, connection: Connection, message: Message, now: float) -> None:
        """Go on with a request that a policy has held for a while."""
        try:
            self._handle_new(connection, message, message.key, now)
        except RemoteError as error:
            self._answers.refuse(connection, message, error, now)

    # -- refusing and answering

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        """Answer a request whose end cannot be found, where its Via can be read."""
        if message is None or message.status:
            self.stats.reject(error.label)
            return
        try:
            check_request(message, self.limits, self._vias.parse)
        except RemoteError as other:
            error = error if error.status else other
        self._answers.refuse_unchecked(connection, message, error)

    # -- ACK, CANCEL

    def _receive_ack(self, connection: Connection, message: Message, now: float) -> None:
        server = self.transactions.servers.get(server_key(message, b"INVITE"))
        if server is not None and server.receive_ack(now):
            return
        if server is None and message.to_tag == self.tag_for(message):
            self.stats.reject("ack_absorbed")  # for an answer of ours that left no state, such as a 407
            return
        uri = self._uris.parse(message.uri)
        if uri.parameters:
            repair_uri(connection, message, uri, self.addresses, self._uris)
        routes = read_routes(message, self.addresses.own, self._uris)
        target = self.targets.for_ack(connection, message, routes, now)
        if target is None or self._max_forwards(message) == 0:
            self.stats.reject("stray_ack")
            return
        draft = Draft(message, routes)
        branch = self.stamper.stateless_branch(message)

        def reached(ways: list[Opener], _status: int) -> None:
            if ways:
                self._forward_stateless(draft, branch, target, ways[0]())

        if target.connection is not None:
            self._forward_stateless(draft, branch, target, target.connection)
        else:
            self.reach(target, 600, reached)

    def _forward_stateless(self, draft: Draft, branch: bytes, target: Target, connection: Connection) -> None:
        via = self.stamper.via_line(connection, branch)
        connection.send(draft.build(target.uri, via, record_routes=[], routes=target.routes, strict=target.strict))

    def _receive_cancel(self, connection: Connection, message: Message, key: bytes, now: float) -> None:
        invite = self.transactions.servers.get(server_key(message, b"INVITE"))
        if connection.transport is Transport.UDP and key in self.transactions.finals:
            connection.send(self.transactions.finals[key])
            return
        if invite is None:
            raise RemoteError(481, "cancel_unmatched")
        self.answer(connection, message, 200, (), now)
        context = invite.user
        if isinstance(context, ProxyContext) and invite.state is State.PROCEEDING:
            context.cancel([message.lines[i] for i in message.indexes(h.REASON)], now)

    # -- new requests

    def _handle_new(self, connection: Connection, message: Message, key: bytes, now: float) -> None:
        uri = self._uris.parse(message.uri)
        if uri.headers:
            raise RemoteError(400, "uri_headers", "no headers in a Request-URI")
        if uri.parameters:
            uri = repair_uri(connection, message, uri, self.addresses, self._uris)
        if connection.identities and b"alias" in message.via.parameters.lower():
            self._note_alias(connection, message.via)
        ours = self.addresses.serves(uri)
        if self._max_forwards(message) == 0 and not (message.method == b"OPTIONS" and ours and uri.user is None):
            raise RemoteError(483, "max_forwards")
        routes = read_routes(message, self.addresses.own, self._uris)
        if message.repeats or b"," in message.texts[h.VIA]:
            self._check_loop(message, loop_mark(message.uri, routes))
        if message.first[h.PROXY_REQUIRE]:
            check_proxy_require(message)
        if message.method == b"REGISTER" and ours:
            self._register(connection, message, Journey(uri, routes, key), now)
            return
        if ours and uri.user is None and not routes.values and not routes.popped:
            self._answer_for_ourselves(connection, message, now)
        elif self.access.required(message, routes):
            self._authenticate(connection, message, Journey(uri, routes, key), now)
        else:
            self._route(connection, message, Journey(uri, routes, key), now)

    def _note_alias(self, connection: Connection, via: h.Via) -> None:
        """A peer known by its certificate lets us use its connection for what goes to it (RFC 5923 §8.2)."""
        if connection.transport is Transport.TLS and not connection.outgoing and has_flag(via.parameters, b"alias"):
            self._reach.note_alias(connection, via.port or 5061)

    @staticmethod
    def _max_forwards(message: Message) -> int:
        if not message.first[h.MAX_FORWARDS]:
            return 70
        text = message.texts[h.MAX_FORWARDS]
        return 70 if text == b" 70" else h.parse_max_forwards(text.strip())

    def _check_loop(self, message: Message, mark: bytes) -> None:
        try:
            self.stamper.check_loop(message, mark)
        except RemoteError:
            self.stats.loops += 1
            raise

    def _register(self, connection: Connection, message: Message, journey: Journey, now: float) -> None:
        if self.draining or (self._edging is not None and self._edging.is_full(connection)):
            self._ask_to_retry(connection, message, now)
        elif self._edging is not None or (message.directions is not None and message.directions.leads):
            self._route(connection, message, journey, now)
        else:
            self.registration.handle(connection, message, self.answer, now)

    def _ask_to_retry(self, connection: Connection, message: Message, now: float) -> None:
        self.answer(connection, message, 503, (self.retry_line(),), now)

    def retry_line(self) -> bytes:
        """Write a Retry-After that differs from client to client."""
        return self.registration.retry_line()

    def _answer_for_ourselves(self, connection: Connection, message: Message, now: float) -> None:
        if message.method == b"OPTIONS":
            self.answer(connection, message, 200, options_headers(), now)
        elif message.to_tag is not None:
            self.answer(connection, message, 481, (), now)
        else:
            self.answer(connection, message, 404, (), now)

    def _authenticate(self, connection: Connection, message: Message, journey: Journey, now: float) -> None:
        outcome = self.access.check_request(connection, message, self.access.sender(message), True, now)
        if outcome is None:
            self._route(connection, message, journey, now)
        elif isinstance(outcome, Pending):
            self._ask(connection, message, journey, outcome)
        elif isinstance(outcome, tuple):
            self.answer(connection, message, outcome[0], outcome[1], now)

    def _ask(self, connection: Connection, message: Message, journey: Journey, pending: Pending) -> None:
        """Go on with a request once the user store knows its sender."""

        def again(now: float) -> None:
            try:
                outcome = self.access.check_request(connection, message, self.access.sender(message), True, now)
                if outcome is None:
                    self._route(connection, message, journey, now)
                elif isinstance(outcome, Pending) and outcome.verdict is None:
                    self._ask(connection, message, journey, outcome)  # for a policy, now
                elif isinstance(outcome, Pending):
                    raise RemoteError(503, "user_store")
                elif isinstance(outcome, tuple):
                    self.answer(connection, message, outcome[0], outcome[1], now)
            except RemoteError as error:
                self._answers.refuse(connection, message, error, now)

        def refused(status: int) -> None:
            self.answer(connection, message, status, (), self.clock())

        self.access.ask(pending, journey.key, again, refused)

    def _route(self, connection: Connection, message: Message, journey: Journey, now: float) -> None:
        """Find targets and send the request on; the server transaction opens here."""
        transactions = self.transactions
        if len(transactions.servers) >= self._max_transactions:
            self.stats.reject("transactions")
            self._ask_to_retry(connection, message, now)
            return
        routes = journey.routes
        breadth = MAX_BREADTH
        if message.first[h.MAX_BREADTH]:
            breadth = min(MAX_BREADTH, h.parse_delta(message.value(h.MAX_BREADTH) or b"", MAX_BREADTH))
            if not breadth:
                raise RemoteError(440, "max_breadth")
        passage = None
        if self._edging is not None and message.method == b"REGISTER":
            passage = self._edging.plan(connection, message, routes, now)
            found = Found([[passage.target]])
        else:
            found = self.targets.find(connection, message, journey.uri, routes, now)
        if not found.groups:
            self._answer_absent(connection, message, found, now)
            return
        invite = message.method == b"INVITE"
        session = 0
        if self._timers is not None and message.method in REFRESHES:
            if self._timers.refuses(message):
                raise IntervalTooSmall(self._timers.refusal)
            session = self._timers.ask(message)
        server = transactions.add_server(journey.key, invite, self._answers.reply_connection(connection, message))
        if invite:
            server.respond(100, build_trying(message), now)
        else:
            server.start_trying_timer(message, now)
        if self._edging is None:
            context = ProxyContext(self, server, message, Draft(message, routes), connection)
        else:
            context = self._edging.new_context(self, server, message, Draft(message, routes), connection, passage)
        context.mark = loop_mark(message.uri, routes)
        context.breadth = breadth
        context.session = session
        if b"keep" in message.via.parameters.lower():
            context.keep = -1
        self._mark(context, connection, routes, found, passage)
        if self.calls is not None:
            context.call = self.calls.see_request(connection, message, now)
        context.start(found.groups, now)

    def _mark(
        self, context: ProxyContext, connection: Connection, routes: Routes, found: Found, passage: Passage | None
    ) -> None:
        """Note whether a request is recorded, with which token, and whether its sender learns how to keep alive."""
        message = context.message
        directions = message.directions
        if self.stamper.records(message) or (directions is not None and directions.record):
            context.record = True
            if context.keep and has_flag(message.via.parameters, b"keep"):
                context.keep = self._flow_timer
            if self._edging is None or found.groups[0][0].token is None:  # else from the core to a client
                context.source_token = self._recorder.source_token(connection, message, routes)
        elif passage is not None and context.keep and has_flag(message.via.parameters, b"keep"):
            context.keep = self._flow_timer

    def _answer_absent(self, connection: Connection, message: Message, found: Found, now: float) -> None:
        """Answer for somebody who cannot be reached, once for each request and without a transaction (RFC 3261 §8.2.7).

        Anybody may ask for anybody, from a source address of their choice: what is not there to be repeated cannot be
        made to flood it.
        """
        if found.unknown_user is None:
            self._refuse_call(connection, message, found.status, found.extra)
        else:
            self.targets.decide_absent(found.unknown_user, partial(self._refuse_call, connection, message))

    def _refuse_call(self, connection: Connection, message: Message, status: int, extra: Sequence[bytes] = ()) -> None:
        now = self.clock()
        if self.calls is not None:
            self.calls.refuse(connection, message, status, now)
        self.answer(connection, message, status, extra, now)

    # -- what contexts ask for

    def reach(self, target: Target, size: int, reached: Reached) -> None:
        """Find ways to a target that is no flow."""
        assert target.locate is not None
        if target.existing:
            self._reach.reach_existing(target.locate, reached)
        else:
            self._reach.reach(target.locate, size, reached)

    def record_routes(self, context: ProxyContext, target: Target, connection: Connection) -> list[bytes]:
        """Return the Record-Route values for a branch of a request that gets them, top first."""
        secure = target.sips or context.message.uri[:5].lower() == b"sips:"
        return self._recorder.values(context.source, context.source_token, target, connection, secure)

    def flow_failed(self, target: Target, now: float) -> None:
        """A flow could not be used: its binding goes, if it is still the one that was tried (OB-TGT-05)."""
        binding = target.binding
        if binding is not None and binding.refreshed_at == target.refreshed_at and binding.cseq == target.cseq:
            self.registration.forget(binding, "flow_failed")

    def is_active(self, connection: Connection, now: float) -> bool:
        """Whether a flow is to be trusted with a request now (RFC 5626 §5.3.1)."""
        return self.flows.state_of(connection, now) is not FlowState.DEAD

    def avoid(self, connection: Connection, seconds: float) -> None:
        """An address asked to be left alone for a while."""
        self._reach.avoid(connection, seconds)

    def await_flow(
        self, context: ProxyContext, target: Target, breadth: int, now: float, until: float
    ) -> Waiter | None:
        """Have a request wait for a device that may come back (OB-TGT-12)."""
        return self.latecomers.wait(context, target, breadth, now, until) if self.latecomers is not None else None

    def end_waiting(self, waiter: Waiter) -> None:
        """A request waits no more."""
        waiter.latecomers.forget(waiter)

    def redirected(self, context: ProxyContext, message: Message) -> list[Group] | None:
        """Return where a 3xx leads, if we follow those at all."""
        return self.targets.redirected(context, message, self.clock()) if self._recurse else None

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """A connection is gone: its flow has failed, its bindings go, what had no answer on it yet fails."""
        self.flows.handle_connection_lost(connection, reason, now)
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
