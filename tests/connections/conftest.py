"""A connection table on the running loop, with waits short enough to be waited for, and a handler that keeps everything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from edge.config import Limits
from edge.connections import Connection, ConnectionTable, Transport
from edge.events import Event, EventBus
from edge.stream import StreamConnection


@dataclass
class Recorder:
    """A `Handler` that writes down what it is told. `keep_half_open` is its answer to the end of a stream."""

    data: bytearray = field(default_factory=bytearray)
    calls: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    keep_half_open: bool = False
    on_data: Callable[[Connection, bytes], None] | None = None

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        self.calls.append("data")
        self.data += data
        if self.on_data is not None:
            self.on_data(connection, data)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        self.calls.append("eof")
        return self.keep_half_open

    def handle_writable(self, connection: Connection, now: float) -> None:
        self.calls.append("writable")

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        self.calls.append("lost")
        self.lost.append(reason)


class Wire:
    """The far end of a connection: a socket whose calls wait."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self, size: int = 65536) -> bytes:
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def read_to_end(self) -> bytes:
        """Everything until the end of the stream, or a reset."""
        collected = bytearray()
        while True:
            try:
                data = await self.read()
            except ConnectionError:
                return bytes(collected)
            if not data:
                return bytes(collected)
            collected += data


def limits(**changes: object) -> Limits:
    """The default limits but for these; a constructor checks no ranges."""
    return Limits(**changes)  # type: ignore[arg-type]


@dataclass
class World:
    """A table with its bus; `open` makes connections in it."""

    table: ConnectionTable
    events: list[Event]
    wires: list[Wire] = field(default_factory=list)

    async def open(self, handler: Recorder, transport: Transport = Transport.TCP) -> tuple[StreamConnection, Wire]:
        """A connection over a socket pair: ours, and the far end."""
        near, far = socket.socketpair()
        near.setblocking(False)
        for sock in (near, far):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 16384)
        wire = Wire(far)
        self.wires.append(wire)
        remote = ("192.0.2.1", 40000 + len(self.wires))
        assert self.table.admit(remote[0]) == ""
        connection = StreamConnection(self.table, transport, remote, ("127.0.0.1", 5060), None, handler)
        await self.table.loop.connect_accepted_socket(lambda: connection, near)
        return connection, wire

    def names(self) -> list[str]:
        """The names of the events published so far."""
        return [event.name for event in self.events]

    async def close(self) -> None:
        """End everything and stop the clock."""
        for connection in list(self.table.connections.values()):
            connection.fail("test")
        for wire in self.wires:
            wire.socket.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.table.stop()


def make_world(**changes: object) -> World:
    """A table on the running loop."""
    bus, events = EventBus(), []
    bus.subscribe(Event, events.append)
    table = ConnectionTable(asyncio.get_running_loop(), limits(**changes), bus, boot=0x12345678, udp_idle=1.0)
    return World(table, events)


MakeWorld = Callable[..., World]


@pytest.fixture
async def world() -> Iterator[MakeWorld]:
    """`world(idle_timeout=1)` makes a table with those limits; it is closed at the end."""
    worlds: list[World] = []

    def make(**changes: object) -> World:
        worlds.append(make_world(**changes))
        return worlds[-1]

    yield make  # type: ignore[misc]
    for one in worlds:
        await one.close()
