"""An open WebSocket over a real socket pair: RFC 6455 §5 and §7, RFC 7118 §4.2 and §5, RFC 7977 §4.2 and §5.

The client's frames are put together here, by hand.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from edge.connections import Connection, ConnectionTable, Transport
from edge.events import ConnectionClosed, ConnectionFailed, Event, EventBus
from edge.listener import Upgrader, WebSocketPings
from edge.stream import StreamConnection
from edge.websocket import UpgradeRules, WebSocketStream, WebSocketUpgrade
from tests.outbound.links import TableLimits
from tests.ua.wait import eventually, within

MASK = bytes.fromhex("37fa213d")
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: e1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
)
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    head = bytes([(0x80 if fin else 0) | opcode])
    flag, length = 0x80 if masked else 0, len(payload)
    if length < 126:
        head += bytes([flag | length])
    elif length < 65536:
        head += bytes([flag | 126]) + length.to_bytes(2, "big")
    else:
        head += bytes([flag | 127]) + length.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes(a ^ b for a, b in zip(payload, itertools.cycle(MASK), strict=False))


class Recorder:
    """The handler inside: keeps every call, and echoes messages that begin with `echo`."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost: list[str] = []
        self.eof = 0
        self.writable = 0

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        self.messages.append(data)
        if data.startswith(b"echo"):
            connection.send(data)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        self.eof += 1
        return True

    def handle_writable(self, connection: Connection, now: float) -> None:
        self.writable += 1

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        self.lost.append(reason)


class PartRecorder(Recorder):
    """A handler inside that reads messages while they come."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[bytes, bool]] = []

    def receive_part(self, connection: Connection, data: bytes, last: bool, now: float) -> None:
        self.parts.append((data, last))


@dataclass
class Wire:
    """A connection with its WebSocket, and the client's end of the socket."""

    connection: StreamConnection
    stream: WebSocketStream
    inner: Recorder
    events: list[Event]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self, octets: int) -> bytes:
        return await within(self.reader.readexactly(octets))

    async def read_end(self) -> bytes:
        return await within(self.reader.read())

    async def received(self, count: int = 1) -> list[bytes]:
        await eventually(lambda: len(self.inner.messages) >= count)
        return self.inner.messages


@pytest.fixture
async def open_wire() -> AsyncIterator[Callable[..., object]]:
    loop = asyncio.get_running_loop()
    wires: list[Wire] = []

    async def make(rules: UpgradeRules | None = None, inner: Recorder | None = None) -> Wire:
        events: list[Event] = []
        bus = EventBus()
        bus.subscribe(Event, events.append)
        table = ConnectionTable(loop, TableLimits(), bus, boot=1)
        upgrade = WebSocketUpgrade(rules or UpgradeRules(), secure=False).receive_data(HANDSHAKE)
        assert upgrade is not None
        inner = inner or Recorder()
        stream = upgrade.open_stream(inner)
        connection = StreamConnection(table, Transport.WS, ("127.0.0.1", 1), ("127.0.0.1", 2), None, stream)
        connection.codec = stream
        table.admit(connection.source)
        ours, theirs = socket.socketpair()
        await loop.create_connection(lambda: connection, sock=ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        wires.append(Wire(connection, stream, inner, events, reader, writer))
        return wires[-1]

    yield make
    for wire in wires:
        wire.connection.fail("test_end")
        wire.writer.close()
        await eventually(lambda wire=wire: wire.connection.closed)
        wire.connection.table.stop()


@pytest.mark.requirement("MSRP-WS-03")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_text_and_binary_messages_are_handed_over_whole(open_wire, opcode: int) -> None:
    wire = await open_wire()
    message = b"MESSAGE sip:ravi@calm.example SIP/2.0\r\n\r\n" * 10
    wire.writer.write(frame(opcode, message) + frame(opcode, b"two") + frame(opcode, "Grüße".encode()))
    assert await wire.received(3) == [message, b"two", "Grüße".encode()]
    assert all(type(message) is bytes for message in wire.inner.messages)


async def test_frames_may_come_octet_by_octet(open_wire) -> None:
    wire = await open_wire()
    now = wire.connection.table.now()
    for octet in frame(TEXT, b"x" * 300) + frame(BINARY, b"\xff\xfe"):
        wire.stream.receive_data(wire.connection, bytes([octet]), now)
    assert wire.inner.messages == [b"x" * 300, b"\xff\xfe"]


async def test_rfc6455_5_4_fragments_are_joined_with_control_frames_between(open_wire) -> None:
    wire = await open_wire()
    wire.writer.write(
        frame(TEXT, b"REGISTER ", fin=False)
        + frame(PING, b"\xca\xfe\xba\xbe")
        + frame(CONT, b"sip:calm.example ", fin=False)
        + frame(PONG, b"")
        + frame(CONT, b"SIP/2.0")
        + frame(BINARY, b"next")
    )
    assert await wire.received(2) == [b"REGISTER sip:calm.example SIP/2.0", b"next"]
    assert await wire.read(6) == bytes([0x80 | PONG, 4]) + b"\xca\xfe\xba\xbe"


async def test_a_message_of_one_octet_fragments(open_wire) -> None:
    wire = await open_wire()
    payload = "Grüße vom Deck".encode()
    wire.writer.write(
        frame(TEXT, payload[:1], fin=False)
        + b"".join(frame(CONT, payload[i : i + 1], fin=False) for i in range(1, len(payload)))
        + frame(CONT, b"")
    )
    assert await wire.received() == [payload]


@pytest.mark.requirement("MSRP-WS-03")
@pytest.mark.parametrize(
    "message, head",
    [
        (b"SIP/2.0 200 OK", b"\x81\x0e"),
        ("Grüße".encode(), b"\x81\x07"),
        ("Grüße".encode()[:3], b"\x82\x03"),
        ("Grüße".encode()[3:], b"\x82\x04"),
        (b"\xff\xfe", b"\x82\x02"),
        (b"a" * 125, b"\x81\x7d"),
        (b"a" * 126, b"\x81\x7e\x00\x7e"),
        (b"a" * 641, b"\x81\x7e\x02\x81"),
        (b"\xff" * 65535, b"\x82\x7e\xff\xff"),
        (b"a" * 65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
async def test_rfc7118_4_2_what_is_sent_is_text_if_it_is_utf8_and_never_masked(open_wire, message, head) -> None:
    wire = await open_wire()
    wire.connection.send(message)
    assert await wire.read(len(head) + len(message)) == head + message


@pytest.mark.requirement("OB-KA-06")
async def test_rfc5626_4_4_1_a_ping_message_gets_one_crlf_of_its_opcode(open_wire) -> None:
    wire = await open_wire()
    wire.writer.write(bytes.fromhex("818437fa213d3af02c37"))  # outbound.md E11
    assert await wire.read(4) == bytes.fromhex("81020d0a")
    wire.writer.write(frame(BINARY, b"\r\n\r\n"))
    assert await wire.read(4) == bytes.fromhex("82020d0a")
    wire.writer.write(frame(TEXT, b"\r\n") + frame(TEXT, b"") + frame(TEXT, b"echo"))
    assert await wire.read(6) == b"\x81\x04echo"
    assert wire.inner.messages == [b"echo"]


async def test_rfc6455_5_5_1_a_close_is_answered_with_its_code_behind_what_was_asked_before(open_wire) -> None:
    wire = await open_wire()
    wire.writer.write(frame(TEXT, b"echo") + frame(CLOSE, b"\x03\xe9bye") + frame(TEXT, b"echo late"))
    assert await wire.read_end() == b"\x81\x04echo" + b"\x88\x05\x03\xe9bye"
    assert wire.inner.messages == [b"echo"]
    assert wire.inner.lost == ["websocket_close"]
    assert [type(event) for event in wire.events][1:] == [ConnectionClosed]


def close_code(octets: bytes) -> int:
    """The code of a Close frame that is all of `octets`."""
    assert octets[0] == 0x80 | CLOSE
    assert octets[1] == len(octets) - 2
    return int.from_bytes(octets[2:4], "big")


@pytest.mark.requirement("OB-WS-07")
async def test_rfc6455_5_5_2_a_ping_is_answered_with_its_payload_and_5_1_an_unmasked_frame_closes(open_wire) -> None:
    wire = await open_wire()
    wire.writer.write(frame(PING, b"\x01\x02\x03\x04"))
    assert await wire.read(6) == b"\x8a\x04\x01\x02\x03\x04"
    wire.writer.write(frame(TEXT, b"echo", masked=False))
    assert close_code(await wire.read_end()) == 1002
    assert wire.inner.messages == []
    assert wire.inner.lost == ["websocket_error"]


@pytest.mark.parametrize(
    "octets, code",
    [
        (frame(3, b"x"), 1002),
        (frame(CONT, b"x"), 1002),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (b"\xc1" + frame(TEXT, b"x")[1:], 1002),  # RSV1: compression was not agreed
        (frame(TEXT, b"abc\xff\xfe"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONT, b"\xc3"), 1007),
        (frame(CLOSE, b"\x03"), 1002),
    ],
)
async def test_rfc6455_7_1_7_a_broken_stream_is_closed_with_a_code(open_wire, octets: bytes, code: int) -> None:
    wire = await open_wire()
    wire.writer.write(octets + frame(TEXT, b"echo"))
    assert close_code(await wire.read_end()) == code
    assert wire.inner.messages == []
    assert len(wire.inner.lost) == 1


@pytest.mark.requirement("SIP-WSS-05")
@pytest.mark.parametrize(
    "octets",
    [
        frame(BINARY, b"x" * 1001),
        frame(BINARY, b"x" * 600, fin=False) + frame(CONT, b"x" * 401),
        b"\x82\xff" + (1 << 62).to_bytes(8, "big") + MASK,
    ],
)
async def test_a_message_over_the_limit_closes_with_1009(open_wire, octets: bytes) -> None:
    wire = await open_wire(UpgradeRules(max_message=1000))
    wire.writer.write(frame(BINARY, b"y" * 1000) + octets)
    assert close_code(await wire.read_end()) == 1009
    assert wire.inner.messages == [b"y" * 1000]
    assert wire.inner.lost == ["websocket_too_big"]


@pytest.mark.parametrize("reason, code", [("shutdown", 1001), ("disconnected", 1000)])
async def test_our_own_close_sends_one_close_frame(open_wire, reason: str, code: int) -> None:
    wire = await open_wire()
    wire.connection.send(b"last")
    wire.connection.close(reason)
    wire.connection.send(b"too late")
    octets = await wire.read_end()
    assert octets[:6] == b"\x81\x04last"
    assert close_code(octets[6:]) == code
    assert wire.stream.encode_close(1000) == b""
    assert wire.inner.lost == [reason]


async def test_an_end_without_close_reaches_the_handler_inside(open_wire) -> None:
    wire = await open_wire()
    wire.connection.uses = 1  # over plain TCP this would keep our direction open
    wire.writer.write_eof()
    await eventually(lambda: wire.inner.lost)
    assert (wire.inner.eof, wire.inner.lost) == (1, ["eof"])


async def test_a_drained_queue_reaches_the_handler_inside(open_wire) -> None:
    wire = await open_wire()
    wire.connection.resume_writing()
    assert wire.inner.writable == 1


@pytest.mark.requirement("MSRP-WS-11")
async def test_rfc7977_6_a_silent_client_is_pinged_and_lost_after_two_unanswered_pings(open_wire) -> None:
    wire = await open_wire()
    start = wire.connection.last_received
    assert wire.stream.handle_ping_timer(wire.connection, start + 10) == start + 30
    assert wire.stream.handle_ping_timer(wire.connection, start + 30) == start + 60
    assert await wire.read(2) == b"\x89\x00"
    wire.connection.last_received = start + 31  # a pong
    assert wire.stream.handle_ping_timer(wire.connection, start + 60) == start + 61
    assert wire.stream.handle_ping_timer(wire.connection, start + 61) == start + 91
    assert wire.stream.handle_ping_timer(wire.connection, start + 91) == start + 121
    assert await wire.read(4) == b"\x89\x00\x89\x00"
    assert not wire.connection.closed
    wire.stream.handle_ping_timer(wire.connection, start + 121)
    assert wire.inner.lost == ["ping_timeout"]
    assert [type(event) for event in wire.events][1:] == [ConnectionFailed]


async def test_nothing_of_a_connection_that_ended_waits_for_its_next_ping(open_wire) -> None:
    for end in (lambda wire: wire.connection.close("test"), ping_twice_in_vain):
        wire = await open_wire()
        rules = SimpleNamespace(
            transports={Transport.WS},
            upgrades=UpgradeRules(),
            authorize=None,
            websocket=lambda subprotocol, connection, wire=wire: wire.inner,
        )
        wheel = wire.connection.table.wheel
        before = wheel.count
        upgrader = Upgrader(SimpleNamespace(rules=rules, table=wire.connection.table), secure=False)  # type: ignore[arg-type]
        wire.connection.handler = upgrader
        upgrader.receive_data(wire.connection, HANDSHAKE, wire.connection.table.now())
        assert wheel.count == before + 1
        end(wire)
        assert wire.connection.closed
        assert not [timer for slot in wheel._slots for timer in slot if isinstance(timer, WebSocketPings)]


def ping_twice_in_vain(wire: Wire) -> None:
    """Let the time for two pings pass, and one more."""
    (pings,) = [
        timer for slot in wire.connection.table.wheel._slots for timer in slot if isinstance(timer, WebSocketPings)
    ]
    for minutes in (1, 2, 3):
        wire.connection.table.wheel.stop(pings)
        pings.handle_timer(wire.connection.last_received + 60 * minutes)


async def test_a_pong_is_a_sign_of_life_and_nothing_else(open_wire) -> None:
    wire = await open_wire()
    before = wire.connection.octets_in
    wire.writer.write(frame(PONG, b"old"))
    await eventually(lambda: wire.connection.octets_in > before)
    assert wire.inner.messages == []
    assert not wire.connection.closed


@pytest.mark.requirement("MSRP-WS-05")
async def test_rfc6455_5_4_a_part_handler_gets_what_has_come_of_a_message_of_any_size(open_wire) -> None:
    inner = PartRecorder()
    wire = await open_wire(UpgradeRules(max_message=10), inner)
    now = wire.connection.table.now()
    body = bytes(range(256)) * 4000
    whole = frame(BINARY, body, fin=False) + frame(PING, b"alive?") + frame(CONT, b"tail", fin=False) + frame(CONT, b"")
    for at in range(0, len(whole), 999):
        wire.stream.receive_data(wire.connection, whole[at : at + 999], now)
        handed = sum(len(data) for data, _ in inner.parts)
        assert min(at + 999, len(body)) - handed <= 20  # nothing but heads is kept back
    assert b"".join(data for data, _ in inner.parts) == body + b"tail"
    assert [last for _, last in inner.parts] == [False] * (len(inner.parts) - 1) + [True]
    wire.connection.flush()
    assert await wire.read(8) == b"\x8a\x06alive?"
    wire.stream.receive_data(wire.connection, frame(BINARY, b"all of it"), now)
    assert inner.messages == [b"all of it"]


async def test_rfc5626_4_4_1_a_ping_message_in_pieces_is_no_part(open_wire) -> None:
    inner = PartRecorder()
    wire = await open_wire(None, inner)
    for octet in frame(TEXT, b"\r\n", fin=False) + frame(CONT, b"\r\n"):
        wire.stream.receive_data(wire.connection, bytes([octet]), wire.connection.table.now())
    assert inner.parts == inner.messages == []
    wire.connection.flush()
    assert await wire.read(4) == bytes.fromhex("81020d0a")


@pytest.mark.parametrize(
    ("octets", "before"),
    [
        (frame(TEXT, b"Gr\xc3", fin=False) + frame(CONT, b"\xbc\xc3\x9fe, Gr", fin=False) + frame(CONT, b"\xff"), 1),
        (frame(TEXT, b"Gr\xc3\xbc\xc3\x9fe", fin=False) + frame(CONT, b"\xc3"), 1),
    ],
)
async def test_rfc6455_8_1_text_is_checked_while_it_comes(open_wire, octets: bytes, before: int) -> None:
    inner = PartRecorder()
    wire = await open_wire(None, inner)
    wire.writer.write(octets)
    assert close_code(await wire.read_end()) == 1007
    assert inner.parts
    assert b"\xff" not in b"".join(data for data, _ in inner.parts)
    assert not any(last for _, last in inner.parts)


async def test_rfc6455_5_5_3_a_client_that_does_not_read_gets_the_last_pong_only(open_wire) -> None:
    wire = await open_wire()
    wire.connection.pause_writing()
    for number in range(1000):
        wire.stream.receive_data(wire.connection, frame(PING, b"%04d" % number), wire.connection.table.now())
    assert wire.connection.unsent() == 0
    wire.connection.resume_writing()
    wire.connection.flush()
    assert await wire.read(6) == b"\x8a\x040999"
