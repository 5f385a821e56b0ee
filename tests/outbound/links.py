"""Real connections in a real table whose event loop stands still: time moves when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from edge.connections import Connection, ConnectionTable, Transport
from edge.events import Event, EventBus
from edge.outbound.flows import FlowTable
from edge.outbound.token import TokenKeys
from edge.stream import StreamConnection
from edge.timers import TimerWheel
from tests.ua.clock import FakeClock

KEY = bytes(range(0x20, 0x40))
BOOT = 0x6710A3C0


class StillLoop:
    """The three things a connection table asks of its event loop."""

    def __init__(self, clock: FakeClock) -> None:
        self.time = clock

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """Nothing is flushed: a test looks at what is queued."""

    def call_later(self, delay: float, callback: Callable[..., Any]) -> None:
        """The table's own deadlines are not under test."""


@dataclass
class TableLimits:
    connections: int = 100000
    connections_per_source: int = 100000
    first_message_timeout: float = 20
    idle_timeout: float = 3605
    stall_timeout: float = 60
    send_queue: int = 262144
    udp_flows: int = 100000


@dataclass
class Interface:
    index: int
    address: tuple[str, int] = ("192.0.2.11", 5060)
    advertised: tuple[str, int] = ("e1.calm.example", 5060)


class DatagramConnection(Connection):
    """A UDP flow without a socket."""

    def send(self, data: bytes) -> None: ...

    def close(self, reason: str) -> None:
        self.table.end(self, reason, failed=False)

    def fail(self, reason: str) -> None:
        self.table.end(self, reason, failed=True)


class Links:
    """A flow table over a connection table, and what a SIP handler would tell it."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        bus = EventBus()
        bus.subscribe(Event, self._keep)
        loop = cast("asyncio.AbstractEventLoop", StillLoop(self.clock))
        self.table = ConnectionTable(loop, TableLimits(), bus, boot=BOOT, worker=3)
        self.wheel = TimerWheel(self.clock.now, tick_s=0.5)
        self.flows = FlowTable(
            self.table.connections,
            self.wheel,
            self.events.append,
            options.pop("keys", TokenKeys([KEY])),
            boot=BOOT,
            worker=3,
            node=11,
            **options,
        )

    def _keep(self, event: Event) -> None:
        """What the connection table tells is not what these tests look at."""

    def open(
        self, transport: Transport = Transport.TCP, remote: tuple[str, int] = ("203.0.113.77", 40112)
    ) -> Connection:
        kind = DatagramConnection if transport is Transport.UDP else StreamConnection
        connection = kind(self.table, transport, remote, ("192.0.2.11", 5060), Interface(1), self)
        self.table.admit(connection.source)
        self.table.add(connection)
        return connection

    def advance(self, seconds: float) -> float:
        """Let time pass in steps of half a second, as the wheel is driven."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.wheel.advance(self.clock.advance(min(0.5, end - self.clock.now)))
        return self.clock.now

    def speak(self, connection: Connection) -> None:
        """The peer sends something."""
        connection.last_received = self.clock.now

    def lose(self, connection: Connection, reason: str = "reset", *, failed: bool = True) -> None:
        self.table.end(connection, reason, failed)

    def register(
        self, connection: Connection, aor: bytes = b"sip:tove@calm.example", reg_id: int = 1, expires: float = 600
    ) -> None:
        self.flows.register(connection, aor, b"urn:uuid:6f1c2a58", reg_id, expires, self.clock.now)

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    # -- Handler

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None: ...

    def receive_eof(self, connection: Connection, now: float) -> bool:
        return False

    def handle_writable(self, connection: Connection, now: float) -> None: ...

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        self.flows.handle_connection_lost(connection, reason, now)
