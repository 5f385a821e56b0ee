"""MSRP over WebSocket as the relay sees it: each message is one frame (RFC 7977)."""

from __future__ import annotations

import random

import pytest

from edge.connections import Transport
from edge.msrp.handler import MsrpHandler
from tests.msrp.parser import parse_frames
from tests.msrp.recorder import MINA, NORA, PABLO, XM, XN, Bench, Recorder, send


def mina_and_nora(**options: object) -> tuple[Bench, Recorder, Recorder]:
    bench = Bench(**options)  # type: ignore[arg-type]
    nora, mina = bench.connect(), bench.connect(Transport.WSS)
    bench.open(nora, XN, NORA)
    bench.open(mina, XM, MINA, user="mina")
    return bench, nora, mina


@pytest.mark.requirement("MSRP-WS-04")
@pytest.mark.parametrize("damage", ["two", "half", "stray", "none"])
def test_one_message_is_exactly_one_frame(damage: str) -> None:
    _, nora, mina = mina_and_nora()
    frame = send(f"{XM} {XN} {NORA}", MINA)
    mina.receive({"two": frame + frame, "half": frame[:-20], "stray": frame + b"x", "none": frame}[damage])
    assert mina.closed is (damage != "none")
    if damage == "none":
        assert len(parse_frames(nora.take())) == 1


@pytest.mark.requirement("MSRP-WS-04", "MSRP-WS-06")
@pytest.mark.parametrize(("piece", "sizes"), [(2048, [2048, 2048, 904]), (4096, [4096, 904]), (65536, [5000])])
def test_each_piece_is_complete_before_its_message(piece: int, sizes: list[int]) -> None:
    _, nora, mina = mina_and_nora(websocket_piece=piece)
    wire = send(f"{XN} {XM} {MINA}", NORA, bytes(5000))
    for at in range(0, len(wire), 700):
        nora.receive(wire[at : at + 700])
    messages = [parse_frames(message) for message in mina.messages()]
    assert all(len(frames) == 1 for frames in messages)
    assert [len(frames[0].body or b"") for frames in messages] == sizes
    ends = [frames[0].range[1] for frames in messages]
    assert all((end == "*") == (size > 2048) for end, size in zip(ends, sizes, strict=True))
    assert [frames[0].flag for frames in messages] == ["+"] * (len(sizes) - 1) + ["$"]


@pytest.mark.requirement("MSRP-WS-06")
def test_an_endless_chunk_needs_no_more_than_a_piece() -> None:
    _, nora, mina = mina_and_nora()
    wire = send(f"{XN} {XM} {MINA}", NORA, bytes(3_000_000), byte_range="1-*/*")
    for at in range(0, len(wire), 60_000):
        nora.receive(wire[at : at + 60_000])
        assert nora.handler.buffered <= 4096  # type: ignore[attr-defined]
    assert len(mina.messages()) == 1465


@pytest.mark.requirement("MSRP-WS-09")
def test_without_authentication_only_auth_works() -> None:
    bench = Bench()
    nora, stranger = bench.connect(), bench.connect(Transport.WSS)
    bench.open(nora, XN, NORA)
    stranger.receive(send(f"{XN} {NORA}", MINA))
    assert parse_frames(stranger.take())[0].method[:3] == "403"
    assert nora.take() == b""
    stranger.receive(send("msrps://edge.loom.example:443;ws", MINA, None, mid="", method="AUTH"))
    assert parse_frames(stranger.take())[0].method[:3] == "401"


@pytest.mark.requirement("MSRP-WS-12", "MSRP-BIND-03")
def test_the_end_of_the_websocket_is_the_end_of_its_sessions() -> None:
    bench, nora, mina = mina_and_nora()
    mina.close("eof")
    assert len(bench.relay.table) == 1
    nora.receive(send(f"{XN} {XM} {MINA}", NORA))
    assert parse_frames(nora.take())[0].method[:3] == "481"


@pytest.mark.requirement("MSRP-SEND-10")
def test_a_bodiless_send_keeps_alive() -> None:
    _, _, mina = mina_and_nora()
    mina.receive(send(XM, MINA, None))
    assert parse_frames(mina.take())[0].method == "200 OK"


@pytest.mark.requirement("MSRP-WS-07")
def test_odd_paths_of_browsers_are_normal() -> None:
    bench, _, mina = mina_and_nora()
    mina.receive(send(f"{XM} {PABLO}", MINA))
    assert parse_frames(mina.take())[0]["To-Path"] == MINA
    assert parse_frames(bench.dialled[0].connection.take())[0]["From-Path"] == f"{XM} {MINA}"


def test_gathered_answers_are_single_messages() -> None:
    _, nora, mina = mina_and_nora()
    for number in range(3):
        nora.receive(
            send(f"{XN} {XM} {MINA}", NORA, tid=f"a{number}000001")
            + send(f"{XN} {XM} {MINA}", NORA, tid=f"b{number}000001")
        )
    assert [len(parse_frames(message)) for message in mina.messages()] == [1] * 6


def in_parts(wire: Recorder, frame: bytes, size: int) -> None:
    """Hand a WebSocket message over while it comes, `size` octets at a time."""
    handler = wire.handler
    assert isinstance(handler, MsrpHandler)
    for at in range(0, len(frame), size):
        if not wire.closed:
            handler.receive_part(wire, frame[at : at + size], at + size >= len(frame), wire.clock.now)


@pytest.mark.requirement("MSRP-WS-05")
@pytest.mark.parametrize("size", [1, 7, 1000, 60_000])
@pytest.mark.parametrize("octets", [0, 5, 5000, 300_000])
def test_rfc6455_5_4_a_message_in_parts_is_relayed_while_it_comes(size: int, octets: int) -> None:
    if octets // size > 6000:
        octets = 3000
    bench, nora, mina = mina_and_nora()
    body = random.Random(1).randbytes(octets)
    frame = send(f"{XM} {XN} {NORA}", MINA, body)
    half = frame[: len(frame) // 2 // size * size or size]
    handler = mina.handler
    assert isinstance(handler, MsrpHandler)
    for at in range(0, len(half), size):
        handler.receive_part(mina, half[at : at + size], at + size >= len(frame), bench.clock.now)
    if octets == 300_000:
        assert len(nora.take()) > len(half) - 2 * size - 600
        return
    for at in range(len(half), len(frame), size):
        handler.receive_part(mina, frame[at : at + size], at + size >= len(frame), bench.clock.now)
    frames = parse_frames(nora.take())
    assert b"".join(part.body or b"" for part in frames) == body
    assert len(mina.messages()) == 1
    in_parts(mina, frame.replace(b"tid00001", b"tid00002"), size)
    assert len(mina.messages()) == 1
    assert not mina.closed


@pytest.mark.requirement("MSRP-WS-04", "MSRP-WS-05")
@pytest.mark.parametrize("size", [1, 50, 3000])
@pytest.mark.parametrize("damage", ["two", "half", "stray"])
def test_parts_make_exactly_one_frame(damage: str, size: int) -> None:
    _, _, mina = mina_and_nora()
    frame = send(f"{XM} {XN} {NORA}", MINA, bytes(3000))
    in_parts(mina, {"two": frame + frame, "half": frame[:-20], "stray": frame + b"x"}[damage], size)
    assert mina.closed
    assert mina.end == "protocol_error"


@pytest.mark.requirement("MSRP-SEC-06")
def test_a_slow_head_in_parts_is_closed() -> None:
    bench, _, mina = mina_and_nora()
    handler = mina.handler
    assert isinstance(handler, MsrpHandler)
    handler.receive_part(mina, b"MSRP tid00001 SEND\r\n", False, bench.clock.now)
    for _ in range(40):
        bench.advance(1)
        if not mina.closed:
            mina.last_received = bench.clock.now
            handler.receive_part(mina, b"T", False, bench.clock.now)
    assert mina.end == "slow_head"


def test_a_message_that_ends_its_connection_leaves_no_clock_running() -> None:
    bench, nora, mina = mina_and_nora()
    for wire in (mina, bench.connect(Transport.WSS)):
        handler = wire.handler
        assert isinstance(handler, MsrpHandler)
        handler.receive_part(wire, b"MSRP no", False, bench.clock.now)
        handler.receive_part(wire, b" start line of any kind\r\n", False, bench.clock.now)
        assert wire.closed
        assert handler._slot is None
    assert not nora.closed


def test_a_client_that_reads_no_answers_is_not_read() -> None:
    _, _, mina = mina_and_nora()
    mina.writable, mina.backlog = False, 300_000
    mina.receive(send(f"{XM} {XN} {NORA}", MINA))
    assert mina.pauses == 1
    mina.drain()
    assert mina.pauses == 0
