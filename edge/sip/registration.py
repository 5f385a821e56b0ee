"""REGISTER from arrival to answer: checks, plan, storage, answer (RFC 3261 §10.3, RFC 5626 §6), sans-IO.

A binding counts once storage has it: the plan is stored first, then applied, then answered. REGISTERs for one AOR are
taken in order; one that comes while another is being stored waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.events import Event
from edge.outbound.flows import FlowTable
from edge.sip import headers as h
from edge.sip.access import THIRD_PARTY, Access, Pending
from edge.sip.addresses import Addresses
from edge.sip.answering import Explained
from edge.sip.grammar import split_list, unfold
from edge.sip.granting import REQUIRE, SUPPORTED, Grants
from edge.sip.granting import RegistrationPolicy as RegistrationPolicy
from edge.sip.gruu import Gruus
from edge.sip.keep import promise
from edge.sip.location import Binding, Location, describe_change, renew, with_epoch
from edge.sip.message import Message
from edge.sip.reading import has_flag
from edge.sip.refresh import Refresh, Refreshes
from edge.sip.registrar import Hop, Plan, Registrar
from edge.sip.uri import UriCache

KNOWN_OPTIONS = frozenset((b"path", b"outbound", b"gruu"))
_UNSUPPORTED_PATH = b"Unsupported: path"

Answer = Callable[..., None]
Stored = Callable[[Exception | None], None]
Later = Callable[[Connection, Plan, Callable[[RemoteError | None], None]], bool]  # False: there is no room for it


class Keeper(Protocol):
    """Keeps bindings over a restart: `None` in its place means that nothing is kept."""

    def save(self, put: list[Binding], removed: list[Binding], done: Stored | None) -> None:
        """Store changes; `done` once they are safe, or could not be made so."""


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
        policy: RegistrationPolicy,
        gruus: Gruus,
        grants: Grants,
        clock: Callable[[], float],
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
        self.trusted_edge = trusted_edge
        self._policy = policy
        self._gruus = gruus
        self._grants = grants
        self.date_line = grants.date_line
        self._min_expires = b"Min-Expires: %d" % policy.min_expires
        self._clock = clock
        self._publish = publish
        self._random = random
        self._tag_for = tag_for
        self.welcome: Callable[[Binding, float], None] | None = None  # told of each binding once it is answered for
        self._busy: dict[bytes, deque[Callable[[], None]]] = {}
        self._options: dict[bytes, frozenset[bytes]] = {}
        self._aors: dict[bytes, bytes] = {}
        self.refreshes = Refreshes()
        self.hook: Callable[[Connection, Message, Plan], None] | None = None  # a policy's: raises to refuse
        self.later: Later | None = None  # a policy's that takes its time
        self._most = policy.bindings
        location.on_expired = self._expired
        location.on_lost = lambda binding: self._gone(binding, "connection_lost")

    def retry_line(self) -> bytes:
        """Write a randomised Retry-After, 5 to 36 seconds, so that a herd does not come back at once."""
        return b"Retry-After: %d" % (5 + self._random(1)[0] % 32)

    def handle(self, connection: Connection, message: Message, answer: Answer, now: float) -> None:
        """Take a REGISTER for one of our domains; `answer` is called once, perhaps later."""
        if message.first[h.REQUIRE]:
            unknown = [t for t in h.parse_tokens(message.values(h.REQUIRE)) if t.lower() not in KNOWN_OPTIONS]
            if unknown:
                answer(connection, message, 420, (b"Unsupported: " + b", ".join(unknown),), now)
                return
        aor = self._aors.get(message.texts[h.TO])
        served = True
        if aor is None:
            aor, served = self._read_aor(message)
        outcome = self._access.check_registration(connection, message, aor, now)
        if outcome is None:
            self._proceed(connection, message, aor, served, answer, now)
        elif outcome is THIRD_PARTY:
            self._proceed_for_other(connection, message, aor, served, answer)
        elif isinstance(outcome, Pending):
            self._ask(connection, message, aor, served, answer, outcome)
        else:
            answer(connection, message, outcome[0], outcome[1], now)

    def _ask(
        self, connection: Connection, message: Message, aor: bytes, served: bool, answer: Answer, pending: Pending
    ) -> None:
        """Check again once the user store has answered, and go on."""

        def again(now: float) -> None:
            outcome = self._access.check_request(connection, message, aor, False, now)
            try:
                if outcome is None:
                    self._proceed(connection, message, aor, served, answer, now)
                elif outcome is THIRD_PARTY:
                    self._proceed_for_other(connection, message, aor, served, answer)
                elif isinstance(outcome, Pending) and outcome.verdict is None:
                    self._ask(connection, message, aor, served, answer, outcome)  # for a policy, now
                elif isinstance(outcome, Pending):
                    answer(connection, message, 503, (), now)
                else:
                    answer(connection, message, outcome[0], outcome[1], now)
            except RemoteError as error:
                self._refuse(connection, message, answer, error, now)

        def refused(status: int) -> None:
            answer(connection, message, status, (), self._clock())

        self._access.ask(pending, message.key, again, refused)

    def _proceed_for_other(
        self, connection: Connection, message: Message, aor: bytes, served: bool, answer: Answer
    ) -> None:
        """Register somebody else, who must exist (RFC 3261 §10.3 step 5)."""

        def known(exists: bool | None) -> None:
            now = self._clock()
            if not exists:
                answer(connection, message, 500 if exists is None else 404, (), now)
                return
            try:
                self._proceed(connection, message, aor, served, answer, now, other=True)
            except RemoteError as error:
                self._refuse(connection, message, answer, error, now)

        self._access.know(aor, message.key, known)

    def _read_aor(self, message: Message) -> tuple[bytes, bool]:
        """Return the AOR of the To header and whether it can be one of ours; 400 for another scheme (RFC 3261 §10.3).

        That it is not ours is said only to those who could register it if it were: step 5 comes after 3 and 4.
        """
        text = message.texts[h.TO]
        try:
            to = self._uris.parse(message.address(h.TO).uri)
        except RemoteError:
            raise RemoteError(400, "to", "To must be a sip or sips URI") from None
        if not self._addresses.serves(to) or to.user is None:
            domain = self._addresses.aor(self._uris.parse(message.uri)).rpartition(b"@")[2]
            return to.aor().rpartition(b"@")[0] + b"@" + domain, False
        aor = self._addresses.aor(to)
        if len(text) <= 256:
            if len(self._aors) >= 1024:
                self._aors.clear()
            self._aors[text] = aor
        return aor, True

    def _in_turn(self, aor: bytes, key: bytes, work: Callable[[], None]) -> None:
        """Do it now, or after what is being stored for this AOR; repeats are absorbed until it is answered."""
        waiting = self._busy.get(aor)
        if waiting is not None and len(waiting) >= 16:
            raise Explained(500, "registrations_waiting", self.retry_line())  # no 503: that is about all of us
        self._access.waiting.add(key)
        if waiting is None:
            work()
        else:
            waiting.append(work)

    def _proceed(
        self,
        connection: Connection,
        message: Message,
        aor: bytes,
        served: bool,
        answer: Answer,
        now: float,
        *,
        other: bool = False,
    ) -> None:
        """The sender may change this AOR: read the contacts, change the bindings, answer.

        `other` says that somebody registers for another one: then nothing is tied to the way it came (RFC 5626 §4.2.3).
        """
        if not served:
            raise RemoteError(404, "aor")
        if self.later is None:
            self._carry_out(connection, message, aor, answer, now, other=other)
        else:
            self._decide_later(connection, message, aor, answer, now, other=other)

    def _decide_later(
        self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float, *, other: bool
    ) -> None:
        """Show a policy what is planned, and plan anew once it has agreed: others may have registered meanwhile."""
        plan, _ = self._plan(connection, message, aor, self.options(message, h.SUPPORTED), other, now)
        waiting = self._access.waiting

        def decided(error: RemoteError | None) -> None:
            waiting.discard(message.key)
            try:
                if error is not None:
                    raise error
                self._carry_out(connection, message, aor, answer, self._clock(), other=other)
            except RemoteError as problem:
                self._refuse(connection, message, answer, problem, self._clock())

        assert self.later is not None
        if not self.later(connection, plan, decided):
            raise RemoteError(503, "policy_queue")
        waiting.add(message.key)

    def _carry_out(
        self, connection: Connection, message: Message, aor: bytes, answer: Answer, now: float, *, other: bool
    ) -> None:
        if self._keeper is not None:
            self._in_turn(aor, message.key, lambda: self._store(connection, message, aor, answer, other))
            return
        supported = self.options(message, h.SUPPORTED)
        try:
            plan, hop = self._plan(connection, message, aor, supported, other, now)
        except RemoteError as error:
            self._refuse(connection, message, answer, error, now)
            return
        self._apply(plan, hop, now)
        self._promise_keep(message, plan, hop, now)
        lines = self._headers(plan, hop, supported, now)
        self._remember(connection, message, plan, lines, b"gruu" in supported)
        answer(connection, message, 200, lines, now)
        self._welcome(plan, now)

    def _welcome(self, plan: Plan, now: float) -> None:
        if self.welcome is not None:
            for new, old, _ in plan.put:
                self.welcome(new if old is None else old, now)

    def _plan(
        self, connection: Connection, message: Message, aor: bytes, supported: frozenset[bytes], other: bool, now: float
    ) -> tuple[Plan, Hop]:
        """Decide what changes and which contacts are tied to the flow; raises what `Registrar.plan` does."""
        hop = Hop(None, (), False) if other else self._hop(connection, message, supported)
        plan = self._registrar.plan(message, aor, hop, b"outbound" in supported, now)
        if hop.connection is not None:
            for binding, _, _ in plan.put:
                if not self._uses_flow(binding, hop.connection):
                    binding.flow = b""
        if self._policy.outbound_required and any(not binding.reg_id for binding, _, _ in plan.put):
            raise RemoteError(421, "outbound_required")
        self._gruus.settle(plan, self._location.bindings(aor))
        if self._location.count >= self._most and any(old is None for _, old, _ in plan.put):
            raise Explained(503, "bindings", self.retry_line())
        if self.hook is not None:
            self.hook(connection, message, plan)
        return plan, hop

    def _remember(
        self, connection: Connection, message: Message, plan: Plan, lines: Sequence[bytes], gruu: bool
    ) -> None:
        """Remember a registration that has just been refreshed: its next refresh will look the same.

        One direct contact, alone for its AOR, with no GRUU: there is a new one every time.
        """
        bindings = self._location.bindings(plan.aor)
        self.refreshes.forget(connection)
        if gruu or message.repeats or len(bindings) != 1 or len(plan.put) != 1 or plan.put[0][1] is None or plan.remove:
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
            extra = (SUPPORTED,)
        elif error.status == 421:
            extra = (REQUIRE,)
        elif error.status == 420:
            extra = (_UNSUPPORTED_PATH,)
        elif isinstance(error, Explained):
            extra = (error.line,)
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

    def _hop(self, connection: Connection, message: Message, supported: frozenset[bytes]) -> Hop:
        """Judge from the Via rows how the request came (RFC 5626 §6, RFC 3327 §5.3)."""
        if not message.repeats or len(message.indexes(h.VIA)) == 1:
            if b"," not in message.texts[h.VIA]:
                hop = Hop(connection, (), True)
                hop.flow = self._flows.token_of(connection)
                return hop
        return self._relayed_hop(connection, message, supported)

    def _relayed_hop(self, connection: Connection, message: Message, supported: frozenset[bytes]) -> Hop:
        path: tuple[bytes, ...] = ()
        if message.first[h.PATH] and self.trusted_edge(connection.remote[0]):
            path = tuple(item for value in message.values(h.PATH) for item in split_list(unfold(value)))
            if len(path) > 10 or sum(map(len, path)) > 2048:
                raise RemoteError(400, "path", "too many Path values")
            if self._policy.strict_path and b"path" not in supported:
                raise RemoteError(420, "path_unsupported")
        outbound = self._has_ob(path)
        hop = Hop(None, path, outbound)
        hop.lacks_outbound = not outbound and not self._policy.lenient
        return hop

    def _has_ob(self, path: tuple[bytes, ...]) -> bool:
        """Whether the first edge keeps flows: it wrote the last Path value, for each proxy puts its own in front."""
        found = [b"ob" in self._uris.parse(h.parse_name_addr(value).uri).parameters for value in path]
        position = self._policy.ob_position
        return any(found if position == "any" else found[:1] if position == "first" else found[-1:])

    def _store(self, connection: Connection, message: Message, aor: bytes, answer: Answer, other: bool) -> None:
        """Plan, store, then apply and answer: all of it or nothing (RFC 3261 §10.3 step 7)."""
        assert self._keeper is not None
        now = self._clock()
        supported = self.options(message, h.SUPPORTED)
        waiting = self._access.waiting
        try:
            plan, hop = self._plan(connection, message, aor, supported, other, now)
        except RemoteError as error:
            waiting.discard(message.key)
            self._refuse(connection, message, answer, error, now)
            return
        if not plan.put and not plan.remove:
            waiting.discard(message.key)
            answer(connection, message, 200, self._headers(plan, hop, supported, now), now)
            return
        self._busy[aor] = deque()

        def stored(error: Exception | None) -> None:
            now = self._clock()
            waiting.discard(message.key)
            if error is None:
                self._apply(plan, hop, now)
                self._promise_keep(message, plan, hop, now)
                answer(connection, message, 200, self._headers(plan, hop, supported, now), now)
                self._welcome(plan, now)
            else:
                answer(connection, message, 500, (), now)
            self._next(aor)

        removed = plan.remove + [old for binding, old, _ in plan.put if old is not None and old.key != binding.key]
        put = [binding for binding, _, _ in plan.put]
        self._keeper.save(put + [with_epoch(*pair) for pair in plan.epochs], removed, stored)

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
            if self._location.remove(binding):
                self._release(binding)
                self._tell(binding, "removed", 0)
        for binding, epoch in plan.epochs:
            binding.epoch = epoch
        connection = hop.connection
        for new, old, granted in plan.put:
            self._put(new, old, granted, connection if new.flow else None, now)
        if plan.outbound and connection is not None and not connection.closed:
            self._flows.set_flow_timer(connection, self._policy.flow_timer, now)

    def _promise_keep(self, message: Message, plan: Plan, hop: Hop, now: float) -> None:
        """Tell a client that asks how often to send keep-alives, and watch for them (RFC 6223 §4.4)."""
        if hop.connection is None or not plan.put or b"keep" not in message.via.parameters.lower():
            return
        if has_flag(message.via.parameters, b"keep") and not hop.connection.closed:
            promise(message, self._policy.flow_timer)
            self._flows.set_flow_timer(hop.connection, self._policy.flow_timer, now)

    def _put(self, new: Binding, old: Binding | None, granted: int, flow: Connection | None, now: float) -> None:
        """Enter one binding, new or renewed; `flow`, the connection it is tied to, takes it along if it has ended."""
        added = old is None or old not in self._location.bindings(new.aor)
        if old is not None and old.connection is not flow and not old.reg_id:
            self._release(old)
        binding = new if old is None else renew(old, new)
        if flow is not None and flow.closed:
            self._location.remove(binding)
            self._unkeep(binding)
            return
        self._location.put(binding, flow)
        if flow is not None:
            self._flows.register(flow, binding.aor, binding.instance, binding.reg_id, granted, now)
        if added:
            self._tell(binding, "added", granted)

    def _release(self, binding: Binding) -> None:
        """Tell the flow table that a binding is not registered over its flow any more."""
        connection = binding.connection
        if connection is None:
            return
        key = binding.instance, binding.reg_id
        for other in self._location.bindings(binding.aor):
            if other is not binding and other.connection is connection and (other.instance, other.reg_id) == key:
                return
        self._flows.unregister(connection, binding.aor, *key)

    def _uses_flow(self, binding: Binding, connection: Connection) -> bool:
        """Whether requests for this contact go over the flow it came on, and not by its address."""
        if binding.path:
            return False
        if connection.transport is not Transport.UDP or binding.reg_id or self._policy.force == "all":
            return True
        uri = self._uris.parse(binding.contact)
        return uri.host.strip(b"[]").decode("ascii") == connection.remote[0] and (
            (uri.port or 5060) == connection.remote[1]
        )

    def _headers(self, plan: Plan, hop: Hop, supported: frozenset[bytes], now: float) -> Sequence[bytes]:
        return self._grants.lines(self._location.bindings(plan.aor), hop, supported, plan.outbound, now)

    def forget(self, binding: Binding, change: str) -> None:
        """Remove a binding because its flow failed; one that was refreshed meanwhile is another object's affair."""
        if self._location.remove(binding):
            self._gone(binding, change)

    def _expired(self, binding: Binding) -> None:
        self._release(binding)
        self._gone(binding, "expired")

    def _gone(self, binding: Binding, change: str) -> None:
        self._unkeep(binding)
        self._tell(binding, change, 0)

    def _unkeep(self, binding: Binding) -> None:
        """Take a binding out of storage, unless what is being stored for its AOR just now brings it back."""
        keeper = self._keeper
        if keeper is None:
            return

        def remove() -> None:
            if all(other.key != binding.key for other in self._location.bindings(binding.aor)):
                keeper.save([], [binding], None)

        waiting = self._busy.get(binding.aor)
        if waiting is None:
            remove()
        else:
            waiting.append(remove)

    def _tell(self, binding: Binding, change: str, expires: int) -> None:
        self._publish(describe_change(binding, change, expires))
