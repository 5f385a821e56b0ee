"""The map between flow tokens and connections, and the life of a flow (RFC 5626 §5, sans-IO).

    token ──unseal──► serial number ──► connection, or its heir, or gone (430)
    connection ──seal, once──► token

A flow is a connection seen by those who register over it. Connections nobody registered over have a token when they
need one, and no `Flow`.

               registered            T + grace silent          2T + grace silent, or connection ended
    connection ──────────► UP ─────────────────► SUSPECT ─────────────────► DEAD
                 FlowUp     ▲      FlowSuspect      │           FlowFailed      │
                            └───────────────────────┴── any octet ──────────────┘   FlowRecovered; streams only

The clock runs only where a Flow-Timer T was told to the client. A stream that comes back from DEAD is up again, so its
next end is told again: a flow has failed as often as it was up. A registration that ends leaves its flow alone, and a
flow that ends leaves its registrations in memory until they expire: when the same AOR, instance and reg-id comes back
over another connection, that one is the heir, and gets what is addressed to the old token (outbound.md OB-FAIL-14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, IntEnum
from math import inf
from typing import Any

from edge.connections import Connection, Transport, format_address
from edge.events import Event, FlowFailed, FlowRecovered, FlowReplaced, FlowSuspect, FlowUp
from edge.outbound.token import FlowId, TokenFault, TokenKeys, pack_address
from edge.timers import Timed, TimerWheel

_POLL_S = 2.0  # how soon after its first octet a silent flow is told to have recovered
_REMEMBERED = 2048
_SMALL_REG_IDS = 8
_MAX_ELDERS = 16  # old tokens that still lead to one flow, for clients that reconnect all the time

Key = tuple[bytes, bytes, int]


class FlowState(IntEnum):
    """How far a flow is to be trusted; lower is better. UP and SUSPECT count as active."""

    UP = 0
    SUSPECT = 1
    DEAD = 2


class FlowFault(Enum):
    """Why a token leads nowhere: GONE is answered 430, FORGED 403; NOT_A_TOKEN is an ordinary user part."""

    GONE = "gone"
    FORGED = "forged"
    NOT_A_TOKEN = "not_a_token"


class Registration:
    """One binding granted over a flow: (AOR, instance or b"", reg-id or 0) until `expires_at`."""

    __slots__ = ("expires_at", "flow", "key")

    def __init__(self, flow: Flow, key: Key, expires_at: float) -> None:
        self.flow = flow
        self.key = key
        self.expires_at = expires_at

    def describe(self, now: float) -> dict[str, Any]:
        """Return the registration as events and the admin interface show it."""
        aor, instance, reg_id = self.key
        return {
            "aor": aor.decode("utf-8", "replace"),
            "instance": instance.decode("utf-8", "replace"),
            "reg_id": reg_id,
            "expires_s": max(0, round(self.expires_at - now)),
        }


class Flow(Timed):
    """A connection with registrations, or one that was told a Flow-Timer. `connection` is None after its end."""

    __slots__ = ("announced", "connection", "elders", "flow_timer", "registrations", "serial", "state", "table")

    def __init__(self, table: FlowTable, connection: Connection) -> None:
        self.table = table
        self.connection: Connection | None = connection
        self.serial = connection.id
        self.state = FlowState.UP
        self.flow_timer = 0.0  # seconds told to the client; 0 = none, no clock
        self.announced = False  # FlowUp was published
        self.registrations: tuple[Registration, ...] = ()
        self.elders: tuple[int, ...] = ()  # serial numbers whose tokens lead here
        self._slot = None

    def handle_timer(self, now: float) -> None:
        """Let registrations expire, look at the clock, and set the next timer."""
        self.table.handle_flow_timer(self, now)

    def describe(self, now: float) -> tuple[dict[str, Any], ...]:
        """Return the registrations as events show them."""
        return tuple(registration.describe(now) for registration in self.registrations)


class FlowTable:
    """All flows. `publish` takes the events; `connections` is the live map of the connection table.

    Args:
        grace: seconds above a Flow-Timer before silence counts (RFC 5626 §5.4).
        udp_timeout: seconds a UDP flow without registration and Flow-Timer lives after its last datagram.
        revive: makes a UDP connection from (listener number, remote address) of a token of an earlier process; None
            answers such tokens as gone.
    """

    def __init__(
        self,
        connections: Mapping[int, Connection],
        wheel: TimerWheel,
        publish: Callable[[Event], None],
        keys: TokenKeys,
        *,
        boot: int,
        worker: int = 0,
        node: int = 0,
        grace: float = 10.0,
        udp_timeout: float = 180.0,
        revive: Callable[[int, tuple[str, int]], Connection | None] | None = None,
    ) -> None:
        self.grace = grace
        self.udp_timeout = udp_timeout
        self.forged = 0  # tokens refused since the start
        self.gone = 0
        self._connections = connections
        self._wheel = wheel
        self._publish = publish
        self._keys = keys
        self._origin = (worker, node, boot)
        self._revive = revive
        self._flows: dict[int, Flow] = {}
        self._index: dict[Key, Registration] = {}  # those with instance and reg-id, also of flows that have ended
        self._ended: dict[int, Flow] = {}  # by serial number, while a registration could still come back from them
        self._heirs: dict[int, int] = {}
        self._revived: set[int] = set()
        self._made: dict[bytes, int] = {}  # some of our own tokens, so that routing by them needs no cipher

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        """All flows whose connections are in the table."""
        return iter(self._flows.values())

    # -- tokens

    def replace_keys(self, keys: TokenKeys) -> None:
        """Seal and unseal with other keys from now on; flows whose key was retired get another token when asked."""
        self._keys = keys
        for connection in self._connections.values():
            if connection.token is not None and isinstance(keys.unseal(connection.token), TokenFault):
                connection.token = None

    def token_of(self, connection: Connection) -> bytes:
        """Return the token of a connection: always the same while it lives (RFC 5626 §5.1)."""
        token = connection.token
        if token is None:
            token = connection.token = self._keys.seal(self._identify(connection))
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            self._made[token] = connection.id
        return token

    def _identify(self, connection: Connection) -> FlowId:
        worker, node, boot = self._origin
        if connection.transport is not Transport.UDP:
            return FlowId(connection.transport, worker, node, boot, connection.id)
        listener = connection.listener.index if connection.listener is not None else 0
        address, port = connection.remote
        return FlowId(Transport.UDP, worker, node, boot, connection.id, listener, pack_address(address), port)

    def resolve(self, token: bytes, now: float) -> Connection | FlowFault:
        """Find the connection a token stands for (RFC 5626 §5.3): an active one, or why there is none.

        `token` is the user part of a URI of ours, as it came.
        """
        serial = self._made.get(token)
        if serial is not None and serial not in self._heirs:  # one we made a moment ago: no need to open it
            known = self._connections.get(serial)
            if known is not None and known.token == token and self.state_of(known, now) is not FlowState.DEAD:
                return known
        identity = self._keys.unseal(token)
        if isinstance(identity, TokenFault):
            return self._refuse(identity)
        if (identity.worker, identity.node, identity.boot) == self._origin:
            connection = self._find(identity, now)
        else:
            connection = self._find_revived(identity)
        if connection is None:
            self.gone += 1
            return FlowFault.GONE
        return connection

    def _refuse(self, fault: TokenFault) -> FlowFault:
        if fault is TokenFault.NOT_A_TOKEN:
            return FlowFault.NOT_A_TOKEN
        if fault is TokenFault.FORGED:
            self.forged += 1
            return FlowFault.FORGED
        self.gone += 1
        return FlowFault.GONE

    def _find(self, identity: FlowId, now: float) -> Connection | None:
        connection = self._connections.get(identity.serial)
        if connection is not None and connection.transport is not identity.transport:
            connection = None
        heir = self._heirs.get(identity.serial)
        if heir is not None:
            flow = self._flows.get(identity.serial)
            if flow is None or not flow.registrations or self.state_of(connection, now) is FlowState.DEAD:
                successor = self._connections.get(heir)
                if self.state_of(successor, now) is not FlowState.DEAD:
                    return successor
        return connection if self.state_of(connection, now) is not FlowState.DEAD else None

    def _find_revived(self, identity: FlowId) -> Connection | None:
        """A UDP address outlives the process: try it, once, until something comes from there.

        One that a restored binding is on counts as alive: others of the same phone come back over it as well.
        """
        if self._revive is None or identity.transport is not Transport.UDP or identity.boot == self._origin[2]:
            return None
        connection = self._revive(identity.listener, identity.remote)
        if connection is None or connection.registered or connection.last_received > connection.opened_at:
            return connection
        if connection.id in self._revived:
            return None
        self._revived.add(connection.id)
        return connection

    # -- state

    def state_of(self, connection: Connection | None, now: float) -> FlowState:
        """Say how far a connection is to be trusted now; None and a closed one are DEAD."""
        if connection is None or connection.closed:
            return FlowState.DEAD
        flow = self._flows.get(connection.id)
        if flow is not None and flow.flow_timer:
            return self._check_clock(flow, connection, now)
        if connection.transport is not Transport.UDP or connection.registered:
            return FlowState.UP
        if connection.id in self._revived and connection.last_received <= connection.opened_at:
            return FlowState.SUSPECT
        return FlowState.UP if now - connection.last_received <= self.udp_timeout else FlowState.DEAD

    def set_flow_timer(self, connection: Connection, seconds: float, now: float) -> None:
        """The client was told a Flow-Timer or `keep` value (RFC 5626 §5.4, RFC 6223): watch for its silence."""
        flow = self._flow(connection)
        if flow.flow_timer == seconds and flow.state is FlowState.UP:
            return
        flow.flow_timer = seconds
        self._check_clock(flow, connection, now)
        self._schedule(flow, now)

    def _check_clock(self, flow: Flow, connection: Connection, now: float) -> FlowState:
        limit, silent = flow.flow_timer, now - connection.last_received
        if not limit or silent < limit + self.grace:
            state = FlowState.UP
        else:
            state = FlowState.DEAD if silent >= 2 * limit + self.grace else FlowState.SUSPECT
        if state is not flow.state:
            self._change_state(flow, connection, state, now)
        return state

    def _change_state(self, flow: Flow, connection: Connection, state: FlowState, now: float) -> None:
        before, flow.state = flow.state, state
        if state is FlowState.DEAD:
            self._report_failure(flow, connection, "silent", now)
            if connection.transport is Transport.UDP:
                connection.fail("silent")  # there is nothing to keep; who speaks again is a new flow
        elif flow.announced:
            where, registrations = _describe(connection), flow.describe(now)
            if state < before:
                after = "failed" if before is FlowState.DEAD else "suspect"
                self._publish(FlowRecovered(*where, registrations, after))
            if state is FlowState.SUSPECT:
                self._publish(FlowSuspect(*where, now - connection.last_received, registrations))

    def handle_flow_timer(self, flow: Flow, now: float) -> None:
        """The earliest deadline of `flow` has come: a registration, or the clock."""
        for registration in flow.registrations:
            if registration.expires_at <= now:
                self._end_registration(registration)
        if flow.connection is not None:
            self._check_clock(flow, flow.connection, now)
        self._schedule(flow, now)

    def _schedule(self, flow: Flow, now: float) -> None:
        deadline = min((registration.expires_at for registration in flow.registrations), default=inf)
        if flow.connection is not None and flow.flow_timer:
            if flow.state is FlowState.UP:
                due = flow.connection.last_received + flow.flow_timer + self.grace
            else:
                due = now + _POLL_S
            deadline = min(deadline, due)
        if deadline < inf:
            self._wheel.start(flow, deadline)
        else:
            self._wheel.stop(flow)

    # -- registrations

    def register(
        self, connection: Connection, aor: bytes, instance: bytes, reg_id: int, expires_s: float, now: float
    ) -> Registration:
        """A binding was granted over `connection`: the first one makes it a flow, one known elsewhere moves here.

        A refresh never shortens what it returns; who holds it may extend `expires_at`. `instance` b"" and `reg_id` 0
        stand for a contact without. Nothing is counted twice on a refresh.
        """
        flow = self._flow(connection)
        key = (aor, instance, reg_id)
        registration = _find(flow, key)
        until = now + expires_s
        if registration is not None:
            registration.expires_at = max(until, registration.expires_at)  # the timer fires early and finds out
            return registration
        registration = self._add_registration(flow, connection, key, now)
        registration.expires_at = until
        if not flow.announced:
            flow.announced, flow.state = True, FlowState.UP  # whatever its clock said before, that was told to nobody
            self._publish(FlowUp(*_describe(connection), flow.describe(now)))
        self._schedule(flow, now)
        return registration

    def unregister(self, connection: Connection, aor: bytes, instance: bytes, reg_id: int) -> None:
        """A binding was removed; its flow stays (OB-FAIL-10). One that is not known is left alone."""
        flow = self._flows.get(connection.id)
        registration = _find(flow, (aor, instance, reg_id)) if flow is not None else None
        if registration is not None:
            self._end_registration(registration)

    def unregister_all(self, aor: bytes) -> None:
        """All bindings of an AOR were removed at once (`Contact: *`), whatever flows they were on; a rare request."""
        gone = [one for flow in self._flows.values() for one in flow.registrations if one.key[0] == aor]
        gone += [one for one in self._index.values() if one.key[0] == aor and one.flow.connection is None]
        for registration in gone:
            self._end_registration(registration)

    def knows(self, connection: Connection) -> bool:
        """Whether a connection is a flow already."""
        return connection.id in self._flows

    def devices_of(self, token: bytes) -> list[tuple[bytes, bytes]]:
        """Return (AOR, instance) of those registered over the flow of a token when it failed (OB-SGL-05)."""
        identity = self._keys.unseal(token)
        if isinstance(identity, TokenFault) or (identity.worker, identity.node, identity.boot) != self._origin:
            return []
        serial = self._heirs.get(identity.serial, identity.serial)
        flow = self._flows.get(serial) or self._ended.get(serial)
        keys = [registration.key for registration in flow.registrations] if flow is not None else []
        return [(aor, instance) for aor, instance, reg_id in keys if reg_id]

    def stream_beside(self, connection: Connection, now: float) -> Connection | None:
        """Return a live stream of an instance that is registered over the UDP flow `connection`, None without one.

        Reg-ids are small numbers (RFC 5626 §4.2.1): beyond the first eight nobody looks.
        """
        flow = self._flows.get(connection.id)
        for registration in flow.registrations if flow is not None else ():
            aor, instance, own = registration.key
            for reg_id in range(1, _SMALL_REG_IDS + 1) if own else ():
                other = self._index.get((aor, instance, reg_id))
                found = other.flow.connection if other is not None else None
                if (
                    found is not None
                    and found.transport is not Transport.UDP
                    and self.state_of(found, now) < FlowState.DEAD
                ):
                    return found
        return None

    def _flow(self, connection: Connection) -> Flow:
        flow = self._flows.get(connection.id)
        if flow is None:
            flow = self._flows[connection.id] = Flow(self, connection)
        return flow

    def _add_registration(self, flow: Flow, connection: Connection, key: Key, now: float) -> Registration:
        registration = Registration(flow, key, 0.0)
        if key[1] and key[2]:
            known = self._index.get(key)
            if known is not None:
                self._inherit(known, flow, connection, now)
            self._index[key] = registration
        flow.registrations += (registration,)
        connection.registered += 1
        return registration

    def _inherit(self, known: Registration, flow: Flow, connection: Connection, now: float) -> None:
        """The registration `known` of another flow came back over `flow`, which is now the heir of that flow."""
        old = known.flow
        self._take_off(known)
        known_as = dict.fromkeys((*flow.elders, *old.elders, old.serial))
        elders = [serial for serial in known_as if serial != flow.serial]
        for serial in elders:
            self._heirs[serial] = flow.serial
        self._heirs.pop(flow.serial, None)  # who comes back to a flow it had left
        self._drop_heirs(flow, elders[:-_MAX_ELDERS])
        old.elders, flow.elders = (), tuple(elders[-_MAX_ELDERS:])
        if old.announced:
            moved = (known.describe(now),)
            self._publish(FlowReplaced(self._name(old.serial), *_describe(connection), registrations=moved))

    def _end_registration(self, registration: Registration) -> None:
        if self._index.get(registration.key) is registration:
            del self._index[registration.key]
        self._take_off(registration)
        flow = registration.flow
        if flow.connection is None and not flow.registrations:
            self._forget(flow)

    def _take_off(self, registration: Registration) -> None:
        flow = registration.flow
        flow.registrations = tuple(other for other in flow.registrations if other is not registration)
        if flow.connection is not None:
            flow.connection.registered -= 1
        elif not flow.registrations:
            self._ended.pop(flow.serial, None)

    def _name(self, serial: int) -> str:
        worker, _, boot = self._origin
        return f"{worker}-{boot:08x}-{serial}"

    # -- the end

    def handle_connection_lost(self, connection: Connection, reason: str, now: float) -> None:
        """A connection ended, for whatever reason: its flow has failed (RFC 5626 §7)."""
        self._revived.discard(connection.id)
        flow = self._flows.pop(connection.id, None)
        if flow is None:
            return
        if flow.state is not FlowState.DEAD:
            flow.state = FlowState.DEAD
            self._report_failure(flow, connection, reason, now)
        flow.connection = None
        connection.registered -= len(flow.registrations)
        for registration in flow.registrations:
            if self._index.get(registration.key) is not registration:
                self._take_off(registration)
        if flow.registrations:
            self._ended[flow.serial] = flow
            self._schedule(flow, now)
        else:
            self._forget(flow)

    def _report_failure(self, flow: Flow, connection: Connection, reason: str, now: float) -> None:
        if flow.announced:
            age, silent = now - connection.opened_at, now - connection.last_received
            registrations = flow.describe(now)
            self._publish(
                FlowFailed(*_describe(connection), reason, age, silent, registrations, max(connection.uses, 0))
            )

    def _forget(self, flow: Flow) -> None:
        """Nobody can come back to `flow` any more: old tokens that lead to it are dropped."""
        self._wheel.stop(flow)
        self._drop_heirs(flow, flow.elders)
        flow.elders = ()

    def _drop_heirs(self, flow: Flow, serials: Iterable[int]) -> None:
        for serial in serials:
            if self._heirs.get(serial) == flow.serial:
                del self._heirs[serial]


def _find(flow: Flow, key: Key) -> Registration | None:
    return next((registration for registration in flow.registrations if registration.key == key), None)


def _describe(connection: Connection) -> tuple[str, str, str, str]:
    return (
        connection.name,
        connection.transport.name.lower(),
        format_address(connection.remote),
        format_address(connection.local),
    )
