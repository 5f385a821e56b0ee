"""One stream connection: gathered writes, backpressure, ends of every kind."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import tempfile
from pathlib import Path

import pytest

from edge.connections import TURN_OCTETS, Transport
from edge.dialer import Dialer
from edge.events import ConnectionClosed, ConnectionFailed, ConnectionOpened
from edge.stream import LINGER_S, StreamConnection
from tests.connections.conftest import MakeWorld, Recorder
from tests.ua.certs import Authority
from tests.ua.hostile import HostileClient
from tests.ua.wait import eventually, scaled


class Codec:
    """Frames are visible, so that one knows how often it was asked."""

    def encode_message(self, data: bytes) -> bytes:
        return b"<" + data + b">"

    def encode_close(self, code: int) -> bytes:
        return b"!%d" % code


# ------------------------------------------------------------------------------------------ out


async def test_everything_of_one_turn_leaves_in_one_write(world: MakeWorld) -> None:
    connection, wire = await world().open(Recorder())
    assert connection._transport is not None
    writes: list[bytes] = []
    inner = connection._transport

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        def write(self, data: bytes) -> None:
            writes.append(data)
            inner.write(data)

    connection._transport = Counting()  # type: ignore[assignment]
    for number in range(50):
        connection.send(b"%02d" % number)
    assert connection.unsent() == 100
    assert await wire.read() == b"".join(b"%02d" % number for number in range(50))
    connection.send(b"next turn")
    assert await wire.read() == b"next turn"
    assert len(writes) == 2
    assert connection.octets_out == 109
    assert connection.unsent() == 0


async def test_what_is_read_goes_to_the_handler_of_the_moment(world: MakeWorld) -> None:
    first, second = Recorder(), Recorder()
    connection, wire = await world().open(first)
    first.on_data = lambda connection, data: setattr(connection, "handler", second)
    await wire.send(b"one")
    await eventually(lambda: first.data)
    await wire.send(b"two")
    await eventually(lambda: second.data)
    assert (bytes(first.data), bytes(second.data), connection.octets_in) == (b"one", b"two", 6)


async def next_turn() -> None:
    await asyncio.sleep(0)


def pieces_of(recorder: Recorder) -> list[int]:
    """How many octets the handler was given, call by call, from now on."""
    sizes: list[int] = []
    recorder.on_data = lambda connection, data: sizes.append(len(data))
    return sizes


@pytest.mark.requirement("SIP-DOS-02")
async def test_a_large_read_is_handed_over_in_turns_and_others_have_theirs(world: MakeWorld) -> None:
    ours = world()
    loud, quiet = Recorder(), Recorder()
    connection, wire = await ours.open(loud)
    other, _ = await ours.open(quiet)
    sizes = pieces_of(loud)
    data = bytes(range(256)) * (6 * TURN_OCTETS // 256 - 1)
    connection.data_received(data)
    assert (sizes, connection.reading_paused) == ([TURN_OCTETS], True)
    other.data_received(b"small")
    assert bytes(quiet.data) == b"small"
    for turn in range(2, 6):
        await next_turn()
        assert len(sizes) == turn
    assert sizes == [TURN_OCTETS] * 4 + [len(data) - 4 * TURN_OCTETS]  # the last one is less than two turns' worth
    assert connection.reading_paused  # until others have had a turn
    await next_turn()
    assert (bytes(loud.data), connection.reading_paused, connection.octets_in) == (data, False, len(data))
    await wire.send(b"and more")
    await eventually(lambda: bytes(loud.data) == data + b"and more")


@pytest.mark.requirement("SIP-DOS-02")
async def test_what_waits_for_its_turn_is_held_with_the_connection_and_ends_with_it(world: MakeWorld) -> None:
    ours, handler = world(), Recorder()
    connection, _ = await ours.open(handler)
    sizes = pieces_of(handler)
    connection.data_received(bytes(4 * TURN_OCTETS))
    connection.pause_reading()  # by somebody who cannot take more
    for _ in range(5):
        await next_turn()
    assert len(sizes) == 1
    connection.resume_reading()
    await next_turn()
    assert len(sizes) == 2
    connection.close("operator")
    for _ in range(5):
        await next_turn()
    assert len(sizes) == 2


async def test_what_waits_for_its_turn_comes_before_the_end_of_the_stream(world: MakeWorld) -> None:
    ours, handler = world(), Recorder()
    connection, _ = await ours.open(handler)
    connection.data_received(bytes(3 * TURN_OCTETS))
    connection.eof_received()
    assert (len(handler.data), handler.calls) == (3 * TURN_OCTETS, ["data", "data", "eof"])
    await next_turn()
    assert handler.calls[:3] == ["data", "data", "eof"]


async def test_a_codec_frames_messages_and_not_raw_writes(world: MakeWorld) -> None:
    connection, wire = await world().open(Recorder())
    connection.codec = Codec()
    connection.send(b"a")
    connection.write(b"raw")
    connection.close("shutdown")
    assert await wire.read_to_end() == b"<a>raw!1001"


# ------------------------------------------------------------------------------------------ backpressure


async def test_a_full_queue_holds_the_feeder_until_it_drains(world: MakeWorld) -> None:
    here = world()
    receiver, sender = Recorder(), Recorder()
    target, slow = await here.open(receiver)
    target.queue_limit = 0
    feeder, source = await here.open(sender)
    sender.on_data = lambda connection, data: (target.send(data), target.flush(), target.hold(connection))
    piece, sent = b"x" * 8192, 0
    try:
        async with asyncio.timeout(scaled(0.5)):
            while True:
                await source.send(piece)
                sent += len(piece)
    except TimeoutError:
        pass
    assert feeder.reading_paused
    assert not target.writable
    assert target.unsent() < 400_000  # the high-water mark and one read, not all that the sender has
    assert sent < 1_000_000
    taken = 0
    while feeder.reading_paused:
        taken += len(await slow.read())
    assert "writable" in receiver.calls
    assert target.writable
    while taken < len(sender.data):
        taken += len(await slow.read())
    await source.send(b"and on")
    await eventually(lambda: bytes(sender.data).endswith(b"and on"))


async def test_pauses_are_counted(world: MakeWorld) -> None:
    connection, wire = await world().open(recorder := Recorder())
    connection.pause_reading()
    connection.pause_reading()
    connection.resume_reading()
    await wire.send(b"later")
    assert connection.reading_paused
    connection.send(b"turn")
    assert await wire.read() == b"turn"
    assert recorder.data == b""
    connection.resume_reading()
    await eventually(lambda: recorder.data == b"later")


async def test_nobody_holds_itself_and_a_lost_receiver_lets_go(world: MakeWorld) -> None:
    here = world()
    target, _ = await here.open(Recorder())
    target.queue_limit = 0
    feeder, _ = await here.open(Recorder())
    target.send(b"x" * 1_000_000)
    target.flush()
    assert not target.writable
    target.hold(target)
    assert not target.reading_paused
    target.hold(feeder)
    target.hold(feeder)
    assert feeder.reading_paused
    target.fail("test")
    await eventually(lambda: not feeder.reading_paused)


async def test_the_queue_of_one_who_does_not_read_is_bounded(world: MakeWorld) -> None:
    here = world(send_queue=100_000)
    connection, _ = await here.open(recorder := Recorder())
    for _ in range(1000):
        connection.send(b"x" * 1000)
        connection.flush()
        if connection.closed:
            break
    assert recorder.lost == ["send_queue"]
    assert connection.octets_out < 400_000
    assert here.table.failed_by_reason == {"send_queue": 1}


async def test_a_receiver_who_takes_nothing_has_failed_and_one_who_takes_little_has_not(world: MakeWorld) -> None:
    here = world(stall_timeout=1.0)
    stuck, _ = await here.open(lost := Recorder())
    slow, wire = await here.open(Recorder())
    for connection in (stuck, slow):
        connection.queue_limit = 0
        connection.send(b"x" * 2_000_000)
    while not stuck.closed:
        await wire.read(20_000)
        await asyncio.sleep(0.05)
    assert lost.lost == ["stalled"]
    assert not slow.closed


# ------------------------------------------------------------------------------------------ ends


async def test_an_orderly_close_sends_what_is_queued_and_tells_everybody_once(world: MakeWorld) -> None:
    here = world()
    connection, wire = await here.open(recorder := Recorder())
    connection.send(b"last words")
    connection.close("done")
    connection.close("again")
    connection.send(b"too late")
    assert await wire.read_to_end() == b"last words"
    assert recorder.lost == ["done"]
    assert here.table.connections == {}
    opened, closed = here.events
    assert isinstance(opened, ConnectionOpened)
    assert isinstance(closed, ConnectionClosed)
    assert (closed.reason, closed.connection) == ("done", connection.name)
    assert here.table.closed_by_reason == {"done": 1}


async def test_a_large_queue_leaves_before_the_end(world: MakeWorld) -> None:
    connection, wire = await world(stall_timeout=5).open(Recorder())
    connection.queue_limit = 0
    connection.send(b"x" * 3_000_000)
    connection.close("done")
    total = 0
    while data := await wire.read():
        total += len(data)
    assert total == 3_000_000


async def test_a_peer_who_goes_on_sending_reads_the_last_words_and_no_reset(world: MakeWorld) -> None:
    connection, wire = await world().open(recorder := Recorder())
    await wire.send(b"request")
    await eventually(lambda: recorder.data)
    connection.send(b"refused")
    connection.close("framing")
    for _ in range(50):
        await wire.send(b"more" * 1000)
    assert recorder.data == b"request"
    assert await wire.read() == b"refused"
    assert await wire.read() == b""


async def test_a_peer_who_never_ends_is_cut_off(world: MakeWorld) -> None:
    connection, wire = await world().open(Recorder())
    connection.close("framing")
    assert await wire.read() == b""
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(scaled(LINGER_S + 5)):
            while True:
                await wire.send(b"more")
                await asyncio.sleep(0.05)
    assert connection._transport is None


async def test_reading_that_was_paused_does_not_keep_a_closed_connection(world: MakeWorld) -> None:
    connection, wire = await world().open(Recorder())
    connection.pause_reading()
    connection.close("done")
    await wire.send(b"unread")
    wire.socket.shutdown(socket.SHUT_WR)
    await eventually(lambda: connection._transport is None)
    connection.resume_reading()
    assert await wire.read_to_end() == b""


async def test_the_end_of_the_peer_is_an_orderly_one(world: MakeWorld) -> None:
    here = world()
    _connection, wire = await here.open(recorder := Recorder())
    recorder.on_data = lambda connection, data: connection.send(b"answer")
    await wire.send(b"request")
    wire.socket.shutdown(socket.SHUT_WR)
    assert await wire.read_to_end() == b"answer"
    await eventually(lambda: recorder.lost == ["eof"])
    assert recorder.calls == ["data", "eof", "lost"]
    assert here.table.closed_by_reason == {"eof": 1}


async def test_a_half_closed_connection_takes_the_answers_that_are_owed(world: MakeWorld) -> None:
    here = world()
    connection, wire = await here.open(recorder := Recorder(keep_half_open=True))
    connection.uses = 2
    wire.socket.shutdown(socket.SHUT_WR)
    await eventually(lambda: connection.half_closed)
    assert recorder.lost == ["eof"]  # out of the table: nothing new goes this way
    assert here.table.connections == {}
    connection.send(b"one ")
    connection.release_use()
    connection.send(b"two")
    connection.release_use()
    assert await wire.read_to_end() == b"one two"
    await eventually(lambda: connection._transport is None)


async def test_a_reset_is_a_failure(world: MakeWorld) -> None:
    here = world()
    server = await here.table.loop.create_server(
        lambda: StreamConnection(here.table, Transport.TCP, ("192.0.2.1", 1), ("127.0.0.1", 2), None, recorder),  # type: ignore[arg-type]
        "127.0.0.1",
        0,
    )
    recorder = Recorder()
    async with HostileClient(server.sockets[0].getsockname()[:2]) as client:
        await client.send(b"x")
        await eventually(lambda: recorder.data)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually(lambda: recorder.lost == ["reset"])
    server.close()
    assert isinstance(here.events[-1], ConnectionFailed)
    assert here.table.failed_by_reason == {"reset": 1}


async def test_a_failure_of_ours_is_told_at_once_and_nothing_more_leaves(world: MakeWorld) -> None:
    here = world()
    connection, wire = await here.open(recorder := Recorder())
    connection.send(b"never")
    connection.fail("stalled")
    assert recorder.lost == ["stalled"]
    assert await wire.read_to_end() == b""
    assert here.names() == ["connection.opened", "connection.failed"]


# ------------------------------------------------------------------------------------------ dialling


async def test_a_dialled_connection_takes_messages_before_it_is_up(world: MakeWorld) -> None:
    here = world()
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    dialer = Dialer(here.table, lambda: None)  # type: ignore[arg-type,return-value]
    recorder = Recorder()
    connection = dialer.connect(Transport.TCP, "127.0.0.1", server.sockets[0].getsockname()[1], recorder)
    connection.send(b"early")
    await eventually(lambda: recorder.calls == ["writable"])
    connection.send(b" late")
    connection.close("done")
    await eventually(lambda: received == b"early late")
    server.close()
    assert here.table.opened[1] == 1
    await dialer.close()


@pytest.mark.parametrize(
    ("host", "allowed", "reason"),
    [
        ("127.0.0.1", True, "refused"),
        ("localhost", False, "refused_target"),
        ("no-such-host.invalid", True, "not_found"),
        ("two..dots.example", True, "not_found"),
        ("x" * 64 + ".example", True, "not_found"),
        ("255.255.255.255", True, "unreachable"),
    ],
)
async def test_a_connection_that_does_not_come_up_says_why(
    world: MakeWorld, host: str, allowed: bool, reason: str
) -> None:
    here = world()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dialer = Dialer(here.table, lambda: None)  # type: ignore[arg-type,return-value]
    recorder = Recorder()
    connection = dialer.connect(Transport.TCP, host, port, recorder, check_address=lambda address: allowed)  # type: ignore[arg-type]
    connection.send(b"for nobody")
    await eventually(lambda: recorder.lost)
    assert recorder.lost == [reason]
    assert here.table.failed_by_reason == {reason: 1}
    assert here.table.connections == {}
    await dialer.close()


async def test_a_name_that_no_certificate_can_have_is_a_failure_of_tls(world: MakeWorld, tmp_path: Path) -> None:
    here = world()
    authority = Authority(tmp_path)
    with socket.socket() as peer:
        peer.bind(("127.0.0.1", 0))
        peer.listen()
        dialer = Dialer(here.table, authority.client_context)
        recorder = Recorder()
        dialer.connect(Transport.TLS, "127.0.0.1", peer.getsockname()[1], recorder, server_name="two..dots")
        await eventually(lambda: recorder.lost == ["tls"])
        await dialer.close()
    assert here.table.connections == {}


async def test_a_peer_who_never_answers_a_handshake_is_given_up(world: MakeWorld) -> None:
    here = world()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as silent:
        authority = Authority(Path(folder))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dialer = Dialer(here.table, authority.client_context, timeout_s=0.3)
        recorder = Recorder()
        dialer.connect(Transport.TLS, "127.0.0.1", silent.getsockname()[1], recorder)
        await eventually(lambda: recorder.lost == ["timed_out"])
        await dialer.close()
    assert here.table.connections == {}


async def test_a_connection_given_up_while_it_comes_up_never_enters_the_table(world: MakeWorld, tmp_path: Path) -> None:
    here = world()
    authority = Authority(tmp_path)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    listening.setblocking(False)
    dialer = Dialer(here.table, authority.client_context)
    recorder = Recorder()
    connection = dialer.connect(Transport.TLS, "localhost", listening.getsockname()[1], recorder)
    await eventually(lambda: select.select([listening], [], [], 0)[0])  # connected, and the ClientHello is on its way
    connection.close("unused")
    assert recorder.lost == ["unused"]
    # Only now does the peer do its part of the handshake.
    context = authority.server_context(authority.issue("peer", dns=["localhost"]))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), sock=listening, ssl=context)
    await eventually(lambda: not dialer._tasks, what="the end of the attempt")
    server.close()
    await dialer.close()
    assert here.table.connections == {}
    assert here.table.live == [0] * 5
    assert recorder.calls == ["lost"]
