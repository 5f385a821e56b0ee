"""Connection and ConnectionTable, shared by SIP and MSRP; nothing here knows either protocol.

A `Connection` is one TCP, TLS, WS or WSS connection, or one UDP flow (the 5-tuple). Everything above names it by
`id`, calls `send`, `hold`, `close` and gets its bytes through the `Handler` it was given.

    bytes in   ── data_received ──► handler.receive_data(connection, data, now)
    bytes out  send() ─► list of this turn ─► one transport.write at the end of the turn
    full       transport.pause_writing ─► writable = False; hold(feeder) stops reading the feeder until it drains
    end        connection_lost ─► table.remove ─► handler.handle_lost, one ConnectionFailed or ConnectionClosed event
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Protocol

from mypy_extensions import mypyc_attr

from edge.bounds import Limits
from edge.events import ConnectionClosed, ConnectionFailed, ConnectionOpened, ConnectionRefused, EventBus
from edge.timers import Timed, TimerWheel

log = logging.getLogger("edge.conn")

Address = tuple[str, int]

TURN_OCTETS = 16384  # about five milliseconds of the smallest SIP messages
_SMALL_READ = 8192  # octets; what a larger read made is sent at once, while it is in the caches
_CROWD = 3  # so many reads after the first make a turn of the loop a crowded one
_LOOK_EVERY = 16  # reads
_LOOKS = 8  # so often in `idle_timeout` it is asked whether octets left, in `stall_timeout` whether any still wait


class Transport(IntEnum):
    """How a connection carries messages; the numbers are those of the flow token layout."""

    UDP = 0
    TCP = 1
    TLS = 2
    WS = 3
    WSS = 4

    @property
    def secure(self) -> bool:
        """Whether TLS is inside."""
        return self in (Transport.TLS, Transport.WSS)

    @property
    def reliable(self) -> bool:
        """Whether nothing is lost and nothing need be sent again."""
        return self is not Transport.UDP

    @property
    def websocket(self) -> bool:
        """Whether messages travel in WebSocket frames."""
        return self in (Transport.WS, Transport.WSS)


class Handler(Protocol):
    """What a protocol gives a connection to be fed by it. All calls are synchronous."""

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Octets of a stream as they were read, or one whole datagram or WebSocket message."""
        ...

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """The peer sent its last byte. True keeps our direction open while `connection.uses` is above zero."""
        ...

    def handle_writable(self, connection: Connection, now: float) -> None:
        """The send queue has drained below its low-water mark."""
        ...

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """The connection is gone and out of the table; nothing sent to it from now on leaves."""
        ...


class WireCodec(Protocol):
    """Turns one whole message into wire bytes (WebSocket framing)."""

    def encode_message(self, data: bytes) -> bytes:
        """Frame one message."""
        ...

    def encode_close(self, code: int) -> bytes:
        """Frame the goodbye; empty where one was said already."""
        ...


class Listener(Protocol):
    """What a connection knows of the listener that accepted it."""

    index: int
    address: Address
    advertised: Address


@mypyc_attr(allow_interpreted_subclasses=True)
class Connection(Timed):
    """What TCP, TLS, WS, WSS connections and UDP flows have in common."""

    __slots__ = (
        "closed", "first_message", "handler", "id", "identities", "last_received", "listener", "local", "octets_in",
        "octets_out", "opened_at", "outgoing", "registered", "remote", "sent_at", "sent_seen", "source", "stalled_at",
        "table", "token", "transport", "turn_octets", "unsent_seen", "uses", "watched", "writable",
    )  # fmt: skip

    def __init__(
        self,
        table: ConnectionTable,
        transport: Transport,
        remote: Address,
        local: Address,
        listener: Listener | None,
        handler: Handler,
    ) -> None:
        self.table = table
        self.id = table.next_id()
        self.transport = transport
        self.remote = remote  # the real client's, behind a PROXY header
        self.local = local
        self.source = remote[0]  # the key for limits per source
        self.listener = listener
        self.handler = handler
        self.opened_at = self.last_received = table.now()
        self.octets_in = self.octets_out = 0
        self.sent_seen = 0  # `octets_out` at the last look for idle connections
        self.sent_at = 0.0  # when such a look found that octets had left since the one before
        self.uses = 0  # open server transactions; counted here, owned above
        self.registered = 0  # registrations and MSRP sessions that live here; counted, not owned
        self.turn_octets = TURN_OCTETS  # a handler gets less than twice as many in one turn of the loop
        self.closed = False
        self.writable = True
        self.outgoing = False
        self.first_message = False  # a whole message has been understood
        self.identities: tuple[str, ...] = ()  # names of a verified peer certificate
        self.stalled_at = 0.0
        self.unsent_seen = 0  # at the last look for stalled receivers
        self.watched = False  # something was written since the last look, or waits
        self.token: bytes | None = None  # the name the flow map gave it
        self._slot = None

    @property
    def name(self) -> str:
        """The id as operators see it: worker, boot stamp and serial number."""
        return f"{self.table.worker}-{self.table.boot:08x}-{self.id}"

    def send(self, data: bytes) -> None:
        """Queue one whole message (or a piece of a stream); see the module's picture."""
        raise NotImplementedError

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send many octets given in a few parts, at once."""
        self.send(b"".join(parts))
        self.flush()

    def flush(self) -> None:
        """Hand what was queued in this turn to the kernel."""

    def unsent(self) -> int:
        """Octets queued here that the kernel has not taken yet."""
        return 0

    def hold(self, feeder: Connection) -> None:
        """Stop reading `feeder` until this connection's queue has drained."""

    def pause_reading(self) -> None:
        """Stop reading; calls are counted."""

    def resume_reading(self) -> None:
        """Take one `pause_reading` back."""

    def close(self, reason: str) -> None:
        """End in order: what is queued still leaves."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """End at once as a failure."""
        raise NotImplementedError

    def give_up(self, now: float) -> None:
        """The time is over that was given to the end of this connection."""

    def release_use(self) -> None:
        """One use less (`uses`); the last one closes a connection whose peer has finished sending."""
        self.uses -= 1

    def handle_timer(self, now: float) -> None:
        """The next deadline of this connection: first message, then idleness."""
        self.table.check_deadline(self, now)


def _relieve_nobody() -> int:
    return 0


class ConnectionTable:
    """All live connections and UDP flows, their limits and their deadlines.

    `trusted(source)` says which addresses are exempt from the limit per source.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        bus: EventBus,
        *,
        boot: int,
        worker: int = 0,
        trusted: Callable[[str], bool] = lambda source: False,
        udp_idle: float = 180.0,
    ) -> None:
        self.loop = loop
        self.now = loop.time
        self.bus = bus
        self.boot = boot
        self.worker = worker
        self.send_queue = limits.send_queue
        self.udp_idle = udp_idle
        self.connections: dict[int, Connection] = {}
        self.accept_hook: Callable[[Connection], bool] | None = None  # a policy's: may this stream come in?
        self.opened = [0] * len(Transport)
        self.live = [0] * len(Transport)
        self.closed_by_reason: dict[str, int] = {}
        self.failed_by_reason: dict[str, int] = {}
        self.refused_by_reason: dict[str, int] = {}
        self.datagrams: dict[str, int] = {}  # those that were no SIP, and what went wrong with some, by kind
        self.streams = 0
        self.flows = 0
        self.handshakes = 0  # of TLS, under way
        self.pending = 0  # accepted, not yet a connection: peeking, PROXY header, TLS handshake
        self.wheel = TimerWheel(self.now(), tick_s=0.5, slots=8192, wake=self._start_ticking)
        self.relieve: Callable[[], int] = _relieve_nobody  # close what nobody needs; asked when there is no room
        self._limits = limits
        self._trusted = trusted
        self._per_source: dict[str, int] = {}
        self._serial = 0
        self._dirty: list[Connection] = []
        self._reading = False
        self._reads = 0
        self._crowded = False  # there were several reads in the last turn of the loop that was looked at
        self._flush_due = False  # at the end of this turn
        self._turn_began = 0  # `_reads` when that was decided
        self._watched: set[Connection] = set()  # to be looked at for stalled receivers
        self._stall_check_at = 0.0
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def ends(self) -> int:
        """How many connections, flows and arrivals have ended so far."""
        counts = (self.closed_by_reason, self.failed_by_reason, self.refused_by_reason)
        return sum(sum(by_reason.values()) for by_reason in counts)

    @property
    def stall_timeout(self) -> float:
        """Seconds after which a receiver that takes nothing has failed."""
        return self._limits.stall_timeout

    def next_id(self) -> int:
        """A serial number that this process never gives again."""
        self._serial += 1
        return self._serial

    def reconfigure(self, limits: Limits) -> None:
        """Use other limits from now on; live connections stay."""
        self._limits = limits
        self.send_queue = limits.send_queue

    # -- coming and going

    def admit(self, source: str, *, limited: bool = True) -> str:
        """Count a new stream from `source`; returns "" or why it is refused. Pair with `dismiss`.

        A balancer's streams are not `limited`: whose they are is known, and counted, later (`move`).
        """
        if self._is_full() and not (self.relieve() and not self._is_full()):
            return "connection_limit"
        if limited and not self._has_room(source):
            return "source_limit"
        self._per_source[source] = self._per_source.get(source, 0) + 1
        return ""

    def _is_full(self) -> bool:
        return self.streams + self.pending >= self._limits.connections

    def move(self, balancer: str, source: str) -> str:
        """A stream that was counted for a balancer is one of `source`; returns "" or why it is refused."""
        if not self._has_room(source):
            return "source_limit"
        self._per_source[source] = self._per_source.get(source, 0) + 1
        self.dismiss(balancer)
        return ""

    def _has_room(self, source: str) -> bool:
        return self._per_source.get(source, 0) < self._limits.connections_per_source or self._trusted(source)

    def dismiss(self, source: str) -> None:
        """Take one `admit` back."""
        left = self._per_source.get(source, 0) - 1
        if left > 0:
            self._per_source[source] = left
        else:
            self._per_source.pop(source, None)

    def refuse(self, source: str, reason: str) -> None:
        """Count and report something that was not let in."""
        self.refused_by_reason[reason] = self.refused_by_reason.get(reason, 0) + 1
        self.bus.publish(ConnectionRefused(source, reason))

    def add(self, connection: Connection) -> None:
        """Enter a connection that is ready for traffic."""
        self.connections[connection.id] = connection
        self.opened[connection.transport] += 1
        self.live[connection.transport] += 1
        if connection.transport is Transport.UDP:
            self.flows += 1
            self.wheel.start(connection, self.now() + self.udp_idle)
        else:
            self.streams += 1
            self.wheel.start(connection, self.now() + self._limits.first_message_timeout)
            self.bus.publish(ConnectionOpened(*self._describe(connection)))

    def change_transport(self, connection: Connection, transport: Transport) -> None:
        """A connection speaks WebSocket from here on."""
        self.live[connection.transport] -= 1
        self.live[transport] += 1
        self.opened[transport] += 1
        connection.transport = transport

    def end(self, connection: Connection, reason: str, failed: bool) -> None:
        """Take a connection out, once; tells its handler and the bus."""
        if connection.closed:
            return
        connection.closed = True
        self.wheel.stop(connection)
        if connection.watched:
            connection.watched = False
            self._watched.discard(connection)
        known = self.connections.pop(connection.id, None) is not None
        if known:
            self.live[connection.transport] -= 1
        if connection.transport is Transport.UDP:
            self.flows -= known
        else:
            self.streams -= known
            if not connection.outgoing:
                self.dismiss(connection.source)
        counts = self.failed_by_reason if failed else self.closed_by_reason
        counts[reason] = counts.get(reason, 0) + 1
        now = self.now()
        connection.handler.handle_lost(connection, reason, now)
        if known and connection.transport is not Transport.UDP:
            event = ConnectionFailed if failed else ConnectionClosed
            self.bus.publish(event(*self._describe(connection), reason, now - connection.opened_at))

    @staticmethod
    def _describe(connection: Connection) -> tuple[str, str, str, str]:
        return (
            connection.name, connection.transport.name.lower(), format_address(connection.remote),
            format_address(connection.local),
        )  # fmt: skip

    def by_name(self, name: str) -> Connection | None:
        """Find a connection by the name operators see, None when it is gone."""
        worker, boot, serial = [*name.split("-"), "", "", ""][:3]
        if worker != str(self.worker) or boot != f"{self.boot:08x}" or not serial.isdigit():
            return None
        return self.connections.get(int(serial))

    # -- writing

    def mark_dirty(self, connection: Connection) -> None:
        """Flush `connection` at the end of the read that is under way, or of this turn of the loop."""
        self._dirty.append(connection)
        if not self._reading:
            self._flush_later()

    def begin_read(self) -> None:
        """A handler is about to get octets."""
        self._reading = True
        self._reads += 1

    def end_read(self, octets: int) -> None:
        """The handler has taken so many octets: flush what it sent, now or with what others send in this turn.

        Waiting for the end of the turn saves writes, and wakes peers less often, but costs a callback: it is done where
        several connections are read in a turn. Every `_LOOK_EVERY`th read finds out.
        """
        self._reading = False
        if not self._dirty:
            return
        if octets > _SMALL_READ or not (self._flush_due or self._crowded or self._reads % _LOOK_EVERY == 0):
            self.flush()
        else:
            self._flush_later()

    def _flush_later(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._turn_began = self._reads
            self.loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._flush_due = False
        self._crowded = self._reads - self._turn_began >= _CROWD
        self.flush()

    def flush(self) -> None:
        """Write out everything queued in this turn, one write for each connection."""
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            if not connection.watched and not connection.closed:
                connection.watched = True
                self._watched.add(connection)
            connection.flush()

    # -- deadlines

    def check_deadline(self, connection: Connection, now: float) -> None:
        """A connection's timer fired: close it when it is due, else look again later."""
        if connection.closed:
            connection.give_up(now)
            return
        if connection.transport is Transport.UDP:
            due, reason = connection.last_received + self.udp_idle, "idle"
        elif not connection.first_message and not connection.outgoing:
            due, reason = connection.opened_at + self._limits.first_message_timeout, "no_message"
        else:
            idle_s = self._limits.idle_timeout
            due, reason = self._last_moved(connection, now) + idle_s, "idle"
            if due > now:
                due = min(due, now + idle_s / _LOOKS)
        if due > now:
            self.wheel.start(connection, due)
        elif connection.transport is Transport.UDP and connection.registered:
            self.wheel.start(connection, now + self.udp_idle)
        else:
            connection.close(reason)

    @staticmethod
    def _last_moved(connection: Connection, now: float) -> float:
        """When octets last came or left; of those that left it is only known between which two looks."""
        if connection.octets_out != connection.sent_seen:
            connection.sent_seen, connection.sent_at = connection.octets_out, now
        return max(connection.last_received, connection.sent_at)

    def _start_ticking(self) -> None:
        if self._ticker is None:
            self._ticker = self.loop.call_later(self.wheel.tick_s, self._tick)

    def _tick(self) -> None:
        now = self.now()
        self._ticker = self.loop.call_later(self.wheel.tick_s, self._tick) if self.connections else None
        self.wheel.advance(now)
        if now >= self._stall_check_at:
            self._stall_check_at = now + self._limits.stall_timeout / _LOOKS
            self._check_stalls(now)
        if self._ticker is None and self.wheel.count:
            self._start_ticking()

    def _check_stalls(self, now: float) -> None:
        watched, self._watched = self._watched, set()
        for connection in watched:
            unsent = 0 if connection.closed else connection.unsent()
            if not unsent:
                connection.watched = False
                connection.unsent_seen = 0
                continue
            self._watched.add(connection)
            if not connection.unsent_seen or unsent < connection.unsent_seen:
                connection.unsent_seen, connection.stalled_at = unsent, now
            elif now - connection.stalled_at >= self._limits.stall_timeout:
                connection.fail("stalled")

    def close_all(self, reason: str) -> None:
        """Close every stream in order. UDP flows stay as they are: their peers notice no end of this process."""
        for connection in list(self.connections.values()):
            if connection.transport is not Transport.UDP:
                connection.close(reason)

    def stop(self) -> None:
        """Stop the clock of this table."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def streams_of(self, handler_type: type) -> Iterable[Connection]:
        """All connections whose handler is of `handler_type`."""
        return (c for c in self.connections.values() if isinstance(c.handler, handler_type))


def format_address(address: Address) -> str:
    """Write an address and port as text, IPv6 in brackets."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
