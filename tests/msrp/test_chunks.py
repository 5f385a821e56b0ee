"""Chunks on their way out: cut, in turns, never more than a little in memory (RFC 4975 §5.1, §7.1.1)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.connections import Transport
from edge.msrp.handler import MsrpHandler
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import FAR, MINA, NORA, PABLO, XM, XN, Bench, E, Pair, Recorder, send


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def joined(frames: list[Parsed]) -> bytes:
    """Put the pieces of one message together by their ranges; they must tile it."""
    body = b""
    for frame in frames:
        start, end, _ = frame.range
        assert frame.body is not None
        assert start == len(body) + 1
        assert end in ("*", str(start + len(frame.body) - 1))
        assert end == "*" or len(frame.body) <= 2048
        body += frame.body
    return body


@pytest.mark.requirement("MSRP-CHK-01")
def test_octets_leave_before_the_chunk_is_complete() -> None:
    pair = Pair()
    wire = send(f"{XN} {NORA}", FAR, pattern(10_000))
    pair.far.receive(wire[:5000])
    assert pair.nora.take().startswith(b"MSRP ")
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-CHK-11", "MSRP-CHK-04", "MSRP-CHK-07", "MSRP-CHK-06", "MSRP-CHK-03")
@pytest.mark.parametrize(("limit", "count"), [(0, 1), (65536, 32), (8192, 256)])
@pytest.mark.parametrize("read", [50_000, 10**9])
def test_a_large_message_is_cut_at_the_limit(limit: int, count: int, read: int) -> None:
    pair = Pair(max_chunk_size=limit)
    body = pattern(2 * 1024 * 1024)
    pair.feed(send(f"{XN} {NORA}", FAR, body, extra="X-Keep: 1"), read)
    frames = parse_frames(pair.nora.take())
    assert len(frames) == count
    assert joined(frames) == body
    assert [frame.flag for frame in frames] == ["+"] * (count - 1) + ["$"]
    assert {frame.range[2] for frame in frames} == {str(len(body))}
    assert {frame["X-Keep"] for frame in frames} == {"1"}
    assert len({frame.identifier for frame in frames}) == count
    assert pair.far.take().count(b" 200 OK") == 1


@pytest.mark.requirement("MSRP-CHK-11")
def test_the_limit_may_be_set_for_one_next_hop() -> None:
    bench = Bench(max_chunk_size=0, chunk_sizes={("pablo.harbor.example", 7788): 8192})
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(send(f"{XN} {PABLO}", NORA, pattern(20_000)))
    assert [len(frame.body or b"") for frame in parse_frames(bench.dialled[0].connection.take())] == [8192, 8192, 3616]


@pytest.mark.requirement("MSRP-CHK-11")
def test_the_limit_of_a_next_hop_holds_also_when_it_has_connected_to_us() -> None:
    bench = Bench(max_chunk_size=0, chunk_sizes={("pablo.harbor.example", 7788): 8192})
    nora, pablo, other = bench.connect(), bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    bench.open(other, XM, MINA, user="mina")
    for owner, uri, path in ((other, XM, MINA), (nora, XN, NORA)):
        pablo.receive(send(f"{uri} {path}", PABLO))
        owner.take()
        pablo.take()
        owner.receive(send(f"{uri} {PABLO}", path, pattern(20_000)))
        assert [len(frame.body or b"") for frame in parse_frames(pablo.take())] == [8192, 8192, 3616]
    assert not bench.dialled


@pytest.mark.requirement("MSRP-CHK-05", "MSRP-CHK-12")
def test_range_ends() -> None:
    pair = Pair()
    for size in (2048, 2049, 65536):
        for heads in ({}, {"extra": "X: 1"}):  # the short way and the long one
            pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(size), **heads))  # type: ignore[arg-type]
            (frame,) = parse_frames(pair.nora.take())
            assert frame["Byte-Range"] == (f"1-2048/{size}" if size == 2048 else f"1-*/{size}")
            assert frame.body == pattern(size)


@pytest.mark.requirement("MSRP-CHK-07", "MSRP-CHK-06")
@pytest.mark.parametrize("flag", ["$", "+", "#"])
@pytest.mark.parametrize(("end", "total"), [("*", "*"), ("*", "99999"), ("10000", "*")])
@pytest.mark.parametrize(("limit", "cuts"), [(4096, 2), (0, 0)])
def test_the_last_piece_has_the_flag_of_the_chunk(flag: str, end: str, total: str, limit: int, cuts: int) -> None:
    pair = Pair(max_chunk_size=limit)
    pair.feed(send(f"{XN} {NORA}", FAR, pattern(10_000), byte_range=f"1-{end}/{total}", flag=flag), 3000)
    frames = parse_frames(pair.nora.take())
    assert [frame.flag for frame in frames] == ["+"] * cuts + [flag]
    assert {frame.range[2] for frame in frames} == {total}


@pytest.mark.requirement("MSRP-CHK-04")
def test_ranges_beyond_32_bits() -> None:
    pair = Pair(max_chunk_size=4096)
    pair.feed(send(f"{XN} {NORA}", FAR, pattern(9000), byte_range="4294967297-*/*"), 2000)
    assert [frame.range[0] for frame in parse_frames(pair.nora.take())] == [4294967297, 4294971393, 4294975489]


@pytest.mark.requirement("MSRP-CHK-08")
def test_a_continuation_is_never_empty() -> None:
    pair = Pair()
    body = pattern(6000)
    wire = send(f"{XN} {NORA}", FAR, body)
    end = wire.rindex(b"\r\n-------")
    pair.far.receive(wire[:end])
    pair.nora.receive(E["E6.1"])  # its 200 cuts
    pair.far.receive(wire[end:])
    first, ok, last = parse_frames(pair.nora.take())
    assert (first.flag, ok.method, last.flag) == ("+", "200 OK", "$")
    assert len(last.body or b"") >= 1
    assert joined([first, last]) == body


@pytest.mark.requirement("MSRP-CHK-09", "MSRP-CHK-10")
def test_pieces_are_not_cut_below_2048_octets() -> None:
    pair = Pair()
    body = pattern(40_000)
    wire = send(f"{XN} {NORA}", FAR, body, byte_range="1-*/*")
    for at in range(0, len(wire), 500):
        pair.far.receive(wire[at : at + 500])
        pair.nora.receive(send(XN, NORA, None))  # a 200 to Nora wants out each time
    frames = parse_frames(pair.nora.take())
    pieces = [frame for frame in frames if frame.method == "SEND"]
    assert sum(frame.method == "200 OK" for frame in frames) == len(wire) // 500 + 1
    assert joined(pieces) == body
    assert all(len(piece.body or b"") >= 2048 for piece in pieces[:-1])
    assert len(pieces) > 10


@pytest.mark.requirement("MSRP-CHK-11", "MSRP-CHK-02", "MSRP-SEND-11")
def test_a_small_message_overtakes_a_large_one() -> None:
    pair = Pair(share_links=True)
    other = pair.bench.connect()
    pair.session.bind_far(other.handler, parse("msrps://198.51.100.7:1/o;tcp"))  # type: ignore[arg-type]
    body = pattern(100_000)
    wire = send(f"{XN} {NORA}", FAR, body, mid="big")
    pair.session.bind_far(pair.far.handler, parse(FAR))  # type: ignore[arg-type]
    pair.feed(wire[:50_000], 10_000)
    other.receive(send(f"{XN} {NORA}", "msrps://198.51.100.7:1/o;tcp", b"typing", mid="small"))
    pair.feed(wire[50_000:], 10_000)
    frames = parse_frames(pair.nora.take())
    assert [frame["Message-ID"] for frame in frames] == ["big", "small", "big"]
    assert joined([frames[0], frames[2]]) == body


@pytest.mark.requirement("MSRP-SEND-11")
def test_chunks_of_one_message_leave_one_after_the_other_also_when_others_take_turns() -> None:
    pair = Pair()
    other = pair.bench.connect()
    pair.bench.open(pair.nora, XM, NORA)
    slow(pair.nora)
    body = pattern(100_000)
    for at in range(0, len(body), 20_000):
        flag, byte_range = "$" if at == 80_000 else "+", f"{at + 1}-{at + 20_000}/100000"
        chunk = send(f"{XN} {NORA}", FAR, body[at : at + 20_000], mid="big", flag=flag, byte_range=byte_range)
        pair.far.handler.receive_data(pair.far, chunk, 0.0)  # as if one read had brought all of them
    other.receive(send(f"{XM} {NORA}", PABLO, pattern(90_000), mid="other"))
    pair.nora.drain()
    pair.bench.run_turns()
    frames = parse_frames(pair.nora.take())
    assert {frame["Message-ID"] for frame in frames[1:-1]} == {"big", "other"}
    assert joined([frame for frame in frames if frame["Message-ID"] == "big"]) == body
    assert joined([frame for frame in frames if frame["Message-ID"] == "other"]) == pattern(90_000)


def parse(uri: str):
    from edge.msrp.uri import parse_uri

    return parse_uri(uri.encode())


@pytest.mark.requirement("MSRP-CHK-14")
def test_a_sender_who_vanishes_leaves_a_whole_chunk() -> None:
    pair = Pair()
    body = pattern(9000)
    pair.far.receive(send(f"{XN} {NORA}", FAR, body)[:-2000])
    pair.far.close("reset")
    again = pair.bench.connect()
    again.receive(send(f"{XN} {NORA}", FAR, b"hello", mid="m2"))
    cut, whole = parse_frames(pair.nora.take())
    assert cut.flag == "+"
    assert body.startswith(cut.body or b"?")
    assert whole.body == b"hello"
    pair.bench.advance(1)
    assert not pair.nora.closed


@pytest.mark.requirement("MSRP-CHK-14")
def test_a_sender_who_vanishes_early_loses_nothing_either() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(9000))[:1500])
    pair.far.handler.reader.promote(0.0)  # type: ignore[attr-defined]
    pair.far.close("reset")
    (cut,) = parse_frames(pair.nora.take())
    assert cut.flag == "+"
    assert pattern(9000).startswith(cut.body or b"?")
    assert cut["Byte-Range"] == f"1-{len(cut.body or b'')}/9000"


@pytest.mark.requirement("MSRP-CHK-17")
@pytest.mark.parametrize("extra", ["", "X: 1"])  # the short way and the long one
def test_odd_orders_pass_as_they_come(extra: str) -> None:
    pair = Pair()
    for byte_range, flag in (("1-100/150", "+"), ("50-149/150", "+"), ("1-100/150", "$")):
        pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(100), byte_range=byte_range, flag=flag, extra=extra))
    assert [frame["Byte-Range"] for frame in parse_frames(pair.nora.take())] == ["1-100/150", "50-149/150", "1-100/150"]


@pytest.mark.requirement("MSRP-CHK-16")
def test_small_chunks_never_wait_to_be_joined() -> None:
    pair = Pair()
    for number in range(10):
        byte_range = f"{number * 100 + 1}-{number * 100 + 100}/1000"
        pair.far.receive(
            send(f"{XN} {NORA}", FAR, pattern(100), byte_range=byte_range, flag="$" if number == 9 else "+")
        )
        (frame,) = parse_frames(pair.nora.take())
        assert frame["Byte-Range"] == byte_range


@pytest.mark.requirement("MSRP-FRM-25")
@pytest.mark.parametrize("read", [1, 7, 4000, 10**9])
def test_our_own_end_line_in_the_body(read: int) -> None:
    ours = "aaaa1111bbbb2222"
    pair = Pair(ids=[ours, "cccc3333dddd4444"])
    body = b"x" * 3000 + f"\r\n-------{ours}$\r\n".encode() + b"y" * 3000
    wire = send(f"{XN} {NORA}", FAR, body)
    pair.far.receive(wire[:2600])
    for at in range(2600, len(wire), read):
        pair.far.receive(wire[at : at + read])
    frames = parse_frames(pair.nora.take())
    assert [frame.flag for frame in frames] == ["+", "$"]
    assert joined(frames) == body


@pytest.mark.requirement("MSRP-FRM-25")
def test_our_own_end_line_in_a_body_that_is_there() -> None:
    ours = "aaaa1111bbbb2222"
    pair = Pair(ids=["0000000000000001", ours, "cccc3333dddd4444"])
    body = f"a\r\n-------{ours}$\r\nb".encode()
    for _ in range(2):
        pair.far.receive(send(f"{XN} {NORA}", FAR, body))
    frames = parse_frames(pair.nora.take())
    assert [frame.body for frame in frames] == [body, body]
    assert ours not in [frame.identifier for frame in frames]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9000), st.sampled_from("$+"), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([2048, 4096, 65536, 0]), st.booleans(), st.data(),
)  # fmt: skip
def test_ranges_tile_whatever_happens(
    chunks: list[tuple[int, str, bool]], limit: int, websocket: bool, data: st.DataObject
) -> None:
    bench = Bench(max_chunk_size=limit)
    owner, path, uri = (bench.connect(Transport.WSS), MINA, XM) if websocket else (bench.connect(), NORA, XN)
    bench.open(owner, uri, path)
    far = bench.connect()
    wire, whole, position = b"", b"", 1
    for number, (size, flag, exact) in enumerate(chunks):
        body = bytes((position + at) % 251 for at in range(size))
        end = str(position + size - 1) if exact else "*"
        wire += send(f"{uri} {path}", FAR, body, tid=f"tid{number:05}", byte_range=f"{position}-{end}/*", flag=flag)
        whole += body
        position += size
    cuts = sorted(data.draw(st.lists(st.integers(1, len(wire)), max_size=12)))
    for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        if a == b:
            continue
        choice = data.draw(st.integers(0, 3))
        if choice == 0 and not owner.pauses:
            owner.receive(send(uri, path, None))
        elif choice == 1:
            owner.writable = False
        if not far.pauses:
            far.receive(wire[a:b])
        else:
            owner.drain()
            bench.run_turns()
            far.receive(wire[a:b])
    owner.drain()
    bench.run_turns()
    assert far.pauses == 0
    frames = [frame for frame in parse_frames(owner.take()) if frame.method == "SEND"]
    assert joined(frames) == whole
    assert [frame.flag for frame in frames if frame.flag == "$"] == ["$"] * sum(flag == "$" for _, flag, _ in chunks)
    assert far.take().count(b" 200 OK") == len(chunks)
    handler = far.handler
    assert isinstance(handler, MsrpHandler)
    assert handler.buffered == 0
    assert not owner.handler.outbox.streams  # type: ignore[attr-defined]


# -- flow control


def slow(connection: Recorder) -> None:
    connection.writable = False
    connection.backlog = 100_000


@pytest.mark.requirement("MSRP-FLOW-02", "MSRP-FLOW-01", "MSRP-FLOW-06", "MSRP-FLOW-09")
def test_a_slow_receiver_stops_its_sender_and_nothing_is_lost() -> None:
    pair = Pair()
    body = pattern(3_000_000)
    wire = send(f"{XN} {NORA}", FAR, body)
    at = 0
    while at < len(wire):
        slow(pair.nora)
        written = sum(map(len, pair.nora.sent))
        while at < len(wire) and not pair.far.pauses:
            pair.far.receive(wire[at : at + 65536])
            at += 65536
        assert sum(map(len, pair.nora.sent)) == written
        handler = pair.far.handler
        assert isinstance(handler, MsrpHandler)
        assert handler.buffered <= 262_144
        pair.nora.drain()
        pair.bench.run_turns()
        assert pair.far.pauses == 0
    assert joined(parse_frames(pair.nora.take())) == body
    assert pair.far.take().count(b" 200 OK") == 1


@pytest.mark.requirement("MSRP-FLOW-01")
def test_senders_faster_than_their_turns_are_held_at_the_same_bound() -> None:
    pair = Pair()
    senders = [pair.bench.connect() for _ in range(3)]
    body = pattern(4_000_000)
    slow(pair.nora)
    for number, sender in enumerate(senders):
        uri = XN.replace("Ub3n", f"Ub{number}n")
        pair.bench.open(pair.nora, uri, NORA)
        sender.receive(send(f"{uri} {NORA}", FAR, body, mid=f"big{number}")[:131_072])
    pair.nora.drain()
    held = 0
    for at in range(131_072, 3_900_000, 131_072):  # three reads for each turn of the loop
        for sender in senders:
            handler = sender.handler
            assert isinstance(handler, MsrpHandler)
            if not sender.pauses:
                sender.receive(body[at : at + 131_072])
            held += sender.pauses
            assert handler.buffered <= 262_144
        if pair.bench.turns:
            pair.bench.turns.pop(0)()
    assert held
    pair.bench.run_turns()
    assert [sender.pauses for sender in senders] == [0, 0, 0]


@pytest.mark.requirement("MSRP-FLOW-02")
def test_a_slow_receiver_stops_nobody_else() -> None:
    pair = Pair()
    bystander = pair.bench.connect()
    slow(pair.nora)
    pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(100_000)))
    assert (pair.far.pauses, bystander.pauses, pair.nora.pauses) == (1, 0, 0)
    assert pair.far.take().count(b" 200 OK") == 1
    pair.nora.close("stalled")
    assert pair.far.pauses == 0


@pytest.mark.requirement("MSRP-FLOW-05", "MSRP-CHK-11")
def test_ten_senders_take_turns() -> None:
    bench = Bench()
    nora = bench.connect()
    senders = []
    for number in range(10):
        uri = f"{XN[:-5]}{number};tcp"
        bench.open(nora, uri, NORA)
        sender = bench.connect()
        senders.append(sender)
        slow(nora)
        sender.receive(send(f"{uri} {NORA}", f"{FAR[:-4]}{number};tcp", pattern(60_000), mid=f"m{number}"))
    nora.drain()
    bench.run_turns()
    frames = parse_frames(nora.take())
    first = frames[:10]
    assert len({frame["Message-ID"] for frame in first}) == 10
    assert all(len(frame.body or b"") == 16384 for frame in first)
    for number in range(10):
        mine = [frame for frame in frames if frame["Message-ID"] == f"m{number}"]
        assert joined(mine) == pattern(60_000)
        assert all(len(frame.body or b"") >= 2048 for frame in mine[:-1])


@pytest.mark.requirement("MSRP-FLOW-04", "MSRP-CHK-10")
def test_answers_go_before_waiting_bodies() -> None:
    pair = Pair()
    slow(pair.nora)
    pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(50_000)))
    pair.nora.receive(send(XN, NORA, None))
    pair.nora.drain()
    frames = parse_frames(pair.nora.take())
    assert [frame.method for frame in frames] == ["200 OK", "SEND"]


@pytest.mark.requirement("MSRP-CHK-13")
def test_giving_up_goes_first_and_drops_what_waits() -> None:
    pair = Pair()
    other = pair.bench.connect()
    pair.session.bind_far(other.handler, parse("msrps://198.51.100.7:1/o;tcp"))  # type: ignore[arg-type]
    pair.session.bind_far(pair.far.handler, parse(FAR))  # type: ignore[arg-type]
    slow(pair.nora)
    other.receive(send(f"{XN} {NORA}", "msrps://198.51.100.7:1/o;tcp", pattern(50_000), mid="other"))
    pair.far.receive(send(f"{XN} {NORA}", FAR, pattern(60_000), mid="mine", flag="#"))
    pair.nora.drain()
    pair.bench.run_turns()
    frames = parse_frames(pair.nora.take())
    assert (frames[0]["Message-ID"], frames[0].flag) == ("mine", "#")
    assert len(frames[0].body or b"") <= 2048
    assert frames[0]["Byte-Range"] == f"1-{len(frames[0].body or b'')}/60000"


@pytest.mark.requirement("MSRP-FLOW-03", "MSRP-RESP-06")
def test_a_link_of_many_users_is_not_held_up_by_one() -> None:
    bench = Bench()
    nora, mina, link = bench.connect(), bench.connect(), bench.connect(identities=("gate.fjord.example",))
    mina_path = "msrps://192.0.2.18:1/mina;tcp"
    bench.open(nora, XN, NORA)
    bench.open(mina, XM, mina_path, user="mina")
    far = "msrps://gate.fjord.example:2855/{};tcp"
    link.receive(send(f"{XM} {mina_path}", far.format("m"), tid="lively01"))
    link.receive(send(f"{XN} {NORA}", far.format("n"), tid="stuck001"))
    link.take()
    slow(nora)
    wire = send(f"{XN} {NORA}", far.format("n"), pattern(500_000), tid="stuck002")
    link.receive(wire[:250_000])
    assert link.pauses == 1
    bench.advance(1.5)
    assert link.pauses == 1
    bench.advance(1.5)
    assert link.pauses == 0
    assert [(frame.identifier, frame.method[:3]) for frame in parse_frames(link.take())] == [("stuck002", "413")]
    link.receive(wire[250_000:])
    link.receive(send(f"{XM} {mina_path}", far.format("m"), tid="lively02"))
    link.receive(send(f"{XN} {NORA}", far.format("n"), tid="stuck003"))
    assert [(frame.identifier, frame.method[:3]) for frame in parse_frames(link.take())] == [
        ("lively02", "200"), ("stuck003", "413"),
    ]  # fmt: skip
    assert link.pauses == 0
    nora.drain()
    link.receive(send(f"{XN} {NORA}", far.format("n"), tid="stuck004"))
    assert parse_frames(link.take())[0].method == "200 OK"


@pytest.mark.requirement("MSRP-FLOW-02")
def test_a_client_who_talks_to_another_user_is_no_link_and_waits() -> None:
    bench = Bench()
    nora, mina = bench.connect(), bench.connect()
    mina_path = "msrps://192.0.2.18:1/mina;tcp"
    bench.open(nora, XN, NORA)
    bench.open(mina, XM, mina_path, user="mina")
    slow(mina)
    wire = send(f"{XN} {XM} {mina_path}", NORA, pattern(500_000))
    nora.receive(wire[:250_000])
    assert nora.pauses == 1
    bench.advance(10)
    assert nora.pauses == 1
    assert not nora.take()
    mina.drain()
    bench.run_turns()
    assert nora.pauses == 0
    nora.receive(wire[250_000:])
    assert [frame.method for frame in parse_frames(nora.take())] == ["200 OK"]


@pytest.mark.requirement("MSRP-FLOW-02")
def test_a_link_whose_sessions_all_wait_for_one_hop_waits_with_them() -> None:
    bench = Bench()
    nora, link = bench.connect(), bench.connect(identities=("gate.fjord.example",))
    bench.open(nora, XN, NORA)
    bench.open(nora, XM, NORA, user="mina")
    far = "msrps://gate.fjord.example:2855/{};tcp"
    link.receive(send(f"{XN} {NORA}", far.format("n")))
    link.receive(send(f"{XM} {NORA}", far.format("m")))
    link.take()
    slow(nora)
    link.receive(send(f"{XN} {NORA}", far.format("n"), pattern(500_000))[:250_000])
    bench.advance(10)
    assert link.pauses == 1
    assert not link.take()


@pytest.mark.requirement("MSRP-FLOW-06")
def test_a_peer_that_reads_no_answers_is_not_read() -> None:
    pair = Pair()
    pair.nora.receive(send(XN, NORA, None))
    pair.nora.writable = False
    pair.nora.backlog = 300_000
    pair.nora.receive(send(XN, NORA, None))
    assert pair.nora.pauses == 1
    pair.nora.drain()
    assert pair.nora.pauses == 0


def test_a_connection_that_comes_up_slowly_holds_its_feeder() -> None:
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    wire = send(f"{XN} {PABLO}", NORA, pattern(900_000))
    at = 0
    while not nora.pauses:
        nora.receive(wire[at : at + 60_000])
        at += 60_000
        bench.dialled[0].connection.backlog = at
    assert at < 200_000
    bench.dialled[0].connection.drain()
    assert nora.pauses == 0
    nora.receive(wire[at:])
    assert joined(parse_frames(bench.dialled[0].connection.take())) == pattern(900_000)


def test_a_connection_whose_coming_up_nobody_tells_is_polled() -> None:
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    wire = send(f"{XN} {PABLO}", NORA, pattern(900_000), extra="Failure-Report: no")
    nora.receive(wire[:100_000])
    pablo = bench.dialled[0].connection
    pablo.backlog = 100_000
    nora.receive(wire[100_000:200_000])
    assert nora.pauses == 1
    pablo.backlog = 0
    bench.advance(2)
    assert nora.pauses == 0


def test_routes_are_forgotten_with_those_who_used_them() -> None:
    pair = Pair()
    for number in range(50):
        far = pair.bench.connect()
        far.receive(send(f"{XN} {NORA}", f"{FAR[:-4]}{number};tcp"))
        far.close("eof")
    assert len(pair.session.routes) == 0
    assert len(pair.nora.handler.outbox.routes) == 0  # type: ignore[attr-defined]
    assert pair.session.far == []
