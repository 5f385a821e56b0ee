"""REGISTER from arrival to answer: checks, plan, storage, answer (RFC 3261 §10.3, RFC 5626 §6), sans-IO.

A binding counts once storage has it: the plan is stored first, then applied, then answered. REGISTERs for one AOR are
taken in order; one that comes while another is being stored waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.events import Event, RegistrationChanged
from edge.outbound.flows import FlowTable
from edge.sip import headers as h
from edge.sip.access import Access, Pending
from edge.sip.addresses import Addresses
from edge.sip.grammar import split_list
from edge.sip.location import Binding, Location
from edge.sip.message import Message
from edge.sip.refresh import Refresh, Refreshes
from edge.sip.registrar import Hop, Plan, Registrar, contact_line
from edge.sip.stamping import ROUTE_TRANSPORT
from edge.sip.uri import UriCache

KNOWN_OPTIONS = frozenset((b"path", b"outbound", b"gruu"))
_SUPPORTED = b"Supported: path, outbound"
_REQUIRE = b"Require: outbound"

Answer = Callable[..., None]
Stored = Callable[[Exception | None], None]


class Keeper(Protocol):
    """Keeps bindings over a restart: `None` in its place means that nothing is kept."""

    def save(self, put: list[Binding], removed: list[Binding], done: Stored | None) -> None: ...


class Registration:
    """Handles REGISTER for our domains."""

    def __init__(
        self,
        *,
        addresses: Addresses,
        location: Location,
        registrar: Registrar,
        access: Access,
        flows: FlowTable,
        uris: UriCache,
        keeper: Keeper | None,
        trusted_edge: Callable[[str], bool],
        force: str,
        flow_timer: int,
        min_expires: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        publish: Callable[[Event], None],
        random: Callable[[int], bytes],
        tag_for: Callable[[Message], bytes],
    ) -> None:
        self._addresses = addresses
        self._location = location
        self._registrar = registrar
        self._access = access
        self._flows = flows
        self._uris = uris
        self._keeper = keeper
        self._trusted_edge = trusted_edge
        self._force = force
        self._flow_timer_s = flow_timer
        self._require_and_timer = _REQUIRE + b"\r\nFlow-Timer: %d" % flow_timer
        self._min_expires = b"Min-Expires: %d" % min_expires
        self._clock = clock
        self._wall_clock = wall_clock
        self._publish = publish
        self._random = random
        self._tag_for = tag_for
        self._busy: dict[bytes, deque[Callable[[], None]]] = {}
        self._options: dict[bytes, frozenset[bytes]] = {}
        self._aors: dict[bytes, bytes] = {}
        self.refreshes = Refreshes()
        self._date = (0, b"")
        location.on_expired = lambda binding: self._gone(binding, "expired")
        location.on_lost = lambda binding: self._gone(binding, "connection_lost")

    def retry_after(self) -> int:
        """Return a randomised Retry-After, 5 to 36 seconds, so that a herd does not come back at once."""
        return 5 + self._random(1)[0] % 32

    def handle(self, connection: Connection, message: Message, answer: Answer, now: float) -> None:
        """Take a REGISTER for one of our domains; `answer` is called once, perhaps later."""
        if message.first[h.REQUIRE]:
            unknown = [t for t in h.parse_tokens(message.values(h.REQUIRE)) if t.lower() not in KNOWN_OPTIONS]
            if unknown:
                answer(connection, message, 420, (b"Unsupported: " + b", ".join(unknown),), now)
                return
        aor = self._aor(message)
        if self._access.enabled and not self._authenticated(connection, message, aor, answer, now, ask=True):
            return
        self._process(connection, message, aor, answer, now)

    def _authenticated(
        self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float, *, ask: bool
    ) -> bool:
        """Check the credentials; False when the request was refused, or goes on once the user store has answered."""
        outcome = self._access.check_request(connection, message, aor, False, now)
        if outcome is None:
            return True
        if not isinstance(outcome, Pending):
            answer(connection, message, outcome[0], outcome[1], now)
        elif ask:
            self._access.ask(
                outcome,
                lambda now: self._continue(connection, message, aor, answer, now),
                lambda status: answer(connection, message, status, (), self._clock()),
            )
        else:
            answer(connection, message, 503, (), now)
        return False

    def _continue(self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float) -> None:
        """The user store has answered: check again, and go on."""
        if not self._authenticated(connection, message, aor, answer, now, ask=False):
            return
        try:
            self._process(connection, message, aor, answer, now)
        except RemoteError as error:
            answer(connection, message, error.status, (), now, error.detail)

    def _aor(self, message: Message) -> bytes:
        """Return the AOR of the To header: 400 for another scheme, 404 for another domain (RFC 3261 §10.3 step 5)."""
        text = message.texts[h.TO]
        known = self._aors.get(text)
        if known is not None:
            return known
        try:
            to = self._uris.parse(message.address(h.TO).uri)
        except RemoteError:
            raise RemoteError(400, "to", "To must be a sip or sips URI") from None
        if not self._addresses.serves(to) or to.user is None:
            raise RemoteError(404, "aor")
        aor = self._addresses.aor(to)
        if len(text) <= 256:
            if len(self._aors) >= 1024:
                self._aors.clear()
            self._aors[text] = aor
        return aor

    def _in_turn(self, aor: bytes, work: Callable[[], None]) -> None:
        waiting = self._busy.get(aor)
        if waiting is None:
            work()
        elif len(waiting) < 16:
            waiting.append(work)
        else:
            raise RemoteError(503, "registrations_waiting")

    def _process(self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float) -> None:
        if self._keeper is not None:
            self._in_turn(aor, lambda: self._store(connection, message, aor, answer, self._clock()))
            return
        supported = self.options(message, h.SUPPORTED)
        try:
            hop = self._hop(connection, message)
            plan = self._registrar.plan(message, aor, hop, b"outbound" in supported, now)
        except RemoteError as error:
            self._refuse(connection, message, answer, error, now)
            return
        self._apply(plan, hop, now)
        lines = self._headers(plan, hop, supported, now)
        self._remember(connection, message, plan, lines)
        answer(connection, message, 200, lines, now)

    def _remember(self, connection: Connection, message: Message, plan: Plan, lines: Sequence[bytes]) -> None:
        """Remember a registration that has just been refreshed: its next refresh will look the same.

        One direct contact, alone for its AOR.
        """
        bindings = self._location.bindings(plan.aor)
        self.refreshes.forget(connection)
        if message.repeats or len(bindings) != 1 or len(plan.put) != 1 or plan.put[0][1] is None or plan.remove:
            return
        binding, granted = bindings[0], plan.put[0][2]
        via = message.via
        direct = connection.transport is not Transport.UDP or via.rport is not None or via.port == connection.remote[1]
        if binding.connection is not connection or message.body or not direct or b"," in message.texts[h.VIA]:
            return
        key = binding.aor, binding.instance, binding.reg_id
        registration = self._flows.register(connection, *key, granted, self._clock())
        refresh = Refresh(binding, registration, message, granted)
        if refresh.take_apart(message, self._tag_for(message), lines[:-1]):
            self.refreshes.remember(connection, refresh)

    def _refuse(self, connection: Connection, message: Message, answer: Answer, error: RemoteError, now: float) -> None:
        extra: tuple[bytes, ...] = ()
        if error.status == 423:
            extra = (self._min_expires,)
        elif error.status == 439:
            extra = (_SUPPORTED,)
        answer(connection, message, error.status, extra, now, error.detail)

    def options(self, message: Message, kind: int) -> frozenset[bytes]:
        """Return the option tags of a header, folded; remembered, because phones repeat themselves."""
        if not message.first[kind]:
            return frozenset()
        values = message.values(kind)
        key = values[0] if len(values) == 1 else b",".join(values)
        known = self._options.get(key)
        if known is None:
            known = frozenset(tag.lower() for tag in h.parse_tokens(values))
            if len(self._options) >= 1024:
                self._options.clear()
            self._options[key] = known
        return known

    def _hop(self, connection: Connection, message: Message) -> Hop:
        """Judge from the Via rows how the request came (RFC 5626 §6, RFC 3327 §5.3)."""
        if not message.repeats or len(message.indexes(h.VIA)) == 1:
            if b"," not in message.texts[h.VIA]:
                hop = Hop(connection, (), True)
                hop.flow = self._flows.token_of(connection)
                return hop
        return self._relayed_hop(connection, message)

    def _relayed_hop(self, connection: Connection, message: Message) -> Hop:
        path: tuple[bytes, ...] = ()
        if message.first[h.PATH] and self._trusted_edge(connection.remote[0]):
            path = tuple(item for value in message.values(h.PATH) for item in split_list(value))
            if len(path) > 10 or sum(map(len, path)) > 2048:
                raise RemoteError(400, "path", "too many Path values")
        outbound = bool(path) and b"ob" in self._uris.parse(h.parse_name_addr(path[-1]).uri).parameters
        hop = Hop(None, path, outbound)
        hop.lacks_outbound = not outbound
        return hop

    def _store(self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float) -> None:
        """Plan, store, then apply and answer: all of it or nothing (RFC 3261 §10.3 step 7)."""
        assert self._keeper is not None
        supported = self.options(message, h.SUPPORTED)
        try:
            hop = self._hop(connection, message)
            plan = self._registrar.plan(message, aor, hop, b"outbound" in supported, now)
        except RemoteError as error:
            self._refuse(connection, message, answer, error, now)
            return
        if not plan.put and not plan.remove:
            answer(connection, message, 200, self._headers(plan, hop, supported, now), now)
            return
        self._busy[aor] = deque()

        def stored(error: Exception | None) -> None:
            now = self._clock()
            if error is None:
                self._apply(plan, hop, now)
                answer(connection, message, 200, self._headers(plan, hop, supported, now), now)
            else:
                answer(connection, message, 500, (), now)
            self._next(aor)

        removed = plan.remove + [old for binding, old, _ in plan.put if old is not None and old.key != binding.key]
        self._keeper.save([binding for binding, _, _ in plan.put], removed, stored)

    def _next(self, aor: bytes) -> None:
        """Let the next REGISTER of this AOR run; each may start storing again."""
        waiting = self._busy.pop(aor)
        while waiting:
            waiting.popleft()()
            if aor in self._busy:
                self._busy[aor].extend(waiting)
                return

    def _apply(self, plan: Plan, hop: Hop, now: float) -> None:
        for binding in plan.remove:
            if binding.connection is not None:
                self._flows.unregister(binding.connection, binding.aor, binding.instance, binding.reg_id)
            if self._location.remove(binding):
                self._tell(binding, "removed", 0)
        connection = hop.connection
        for new, old, granted in plan.put:
            binding = new if old is None else _renew(old, new)
            if connection is not None and connection.closed:
                self._location.remove(binding)
                continue
            flow = connection if connection is not None and self._uses_flow(binding, connection) else None
            self._location.put(binding, flow)
            if old is None:
                self._tell(binding, "added", granted)
            if flow is not None:
                self._flows.register(flow, binding.aor, binding.instance, binding.reg_id, granted, now)
        if plan.outbound and connection is not None and not connection.closed:
            self._flows.set_flow_timer(connection, self._flow_timer_s, now)

    def _uses_flow(self, binding: Binding, connection: Connection) -> bool:
        """Whether requests for this contact go over the flow it came on, and not by its address."""
        if binding.path:
            return False
        if connection.transport is not Transport.UDP or binding.reg_id or self._force == "all":
            return True
        uri = self._uris.parse(binding.contact)
        return uri.host.strip(b"[]").decode("ascii") == connection.remote[0] and (
            (uri.port or 5060) == connection.remote[1]
        )

    def _headers(self, plan: Plan, hop: Hop, supported: frozenset[bytes], now: float) -> Sequence[bytes]:
        """Return the header lines of a 200 (RFC 3261 §10.3 step 8, RFC 3327 §5.3, RFC 5626 §6)."""
        lines = [contact_line(binding, now) for binding in self._location.bindings(plan.aor)]
        if b"path" in supported:
            lines += [b"Path: " + value for value in hop.path]
            if plan.outbound and hop.connection is not None:
                lines.append(self._own_path(hop.connection))
        lines.append(_SUPPORTED)
        if plan.outbound:
            lines.append(_REQUIRE if hop.connection is None else self._require_and_timer)
        lines.append(self.date_line())
        return lines

    def _own_path(self, connection: Connection) -> bytes:
        """Write the Path value of a direct client, so that it may see that we keep flows (OB-SGL-03)."""
        transport = ROUTE_TRANSPORT[connection.transport]
        token, host = self._flows.token_of(connection), self._addresses.facing(connection)
        return b"Path: <sip:%b@%b%b;lr;ob>" % (token, host, transport)

    def date_line(self) -> bytes:
        """Return the Date line of this second."""
        second = int(self._wall_clock())
        if second != self._date[0]:
            self._date = (second, b"Date: " + formatdate(second, usegmt=True).encode("ascii"))
        return self._date[1]

    def forget(self, binding: Binding, change: str) -> None:
        """Remove a binding because its flow failed; one that was refreshed meanwhile is another object's affair."""
        if self._location.remove(binding):
            self._gone(binding, change)

    def _gone(self, binding: Binding, change: str) -> None:
        if self._keeper is not None:
            self._keeper.save([], [binding], None)
        self._tell(binding, change, 0)

    def _tell(self, binding: Binding, change: str, expires: int) -> None:
        aor = binding.aor.decode("utf-8", "backslashreplace")
        contact = binding.contact.decode("utf-8", "backslashreplace")
        self._publish(RegistrationChanged(aor, contact, change, expires))


def _renew(old: Binding, new: Binding) -> Binding:
    """Carry a refresh over to the binding that is there, which keeps its place in the tables."""
    old.contact, old.parameters = new.contact, new.parameters
    old.call_id, old.cseq, old.expires_at = new.call_id, new.cseq, new.expires_at
    old.q, old.path, old.flow, old.user_agent = new.q, new.path, new.flow, new.user_agent
    old.instance, old.reg_id, old.refreshed_at = new.instance, new.reg_id, new.refreshed_at
    return old
