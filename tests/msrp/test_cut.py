"""A chunk that the end of a large read has cut waits for its rest and leaves whole; never for long, never lost."""

from __future__ import annotations

import pytest

from tests.msrp.parser import parse_frames
from tests.msrp.recorder import NORA, XM, XN, send
from tests.msrp.test_chunks import FAR, Pair, joined, pattern

SIZE = 60_000
OTHER = "msrps://198.51.100.7:1/o;tcp"


def chunk(number: int, flag: str = "+", body: bytes = b"") -> bytes:
    start = number * SIZE + 1
    body = body or pattern(SIZE + number)[:SIZE]
    return send(f"{XN} {NORA}", FAR, body, mid=f"m{number}", byte_range=f"{start}-{start + SIZE - 1}/*", flag=flag)


def cut_pair() -> Pair:
    """One whole chunk and half of another one have come in one read; what has left is taken."""
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"first", mid="m0"))
    pair.far.handler.succeeded = True  # type: ignore[attr-defined]
    pair.nora.take()
    wire = chunk(0) + chunk(1)
    pair.far.receive(wire[: len(wire) - SIZE // 2])
    (whole,) = parse_frames(pair.nora.take())
    assert whole.body == pattern(SIZE)
    return pair


def rest() -> bytes:
    return chunk(1)[-(SIZE // 2) :]


@pytest.mark.parametrize("more", [0, 1])
def test_it_leaves_whole_with_the_read_that_brings_its_rest(more: int) -> None:
    pair = cut_pair()
    assert pair.nora.take() == b""
    pair.far.receive(rest() + chunk(2) * more)
    frames = parse_frames(pair.nora.take())
    assert [frame.body for frame in frames] == [pattern(SIZE + number)[:SIZE] for number in range(1, 2 + more)]
    assert [frame.flag for frame in frames] == ["+"] * (1 + more)


def test_reads_may_cut_one_after_the_other() -> None:
    pair = cut_pair()
    wire = rest() + b"".join(map(chunk, range(2, 12)))
    for at in range(0, len(wire), 100_000):
        pair.far.receive(wire[at : at + 100_000])
    frames = parse_frames(pair.nora.take())
    assert [frame.body for frame in frames] == [pattern(SIZE + number)[:SIZE] for number in range(1, 12)]


@pytest.mark.requirement("MSRP-CHK-01")
def test_it_is_passed_on_when_its_rest_comes_in_small_reads() -> None:
    pair = cut_pair()
    pair.far.receive(rest()[:1000])
    assert pair.nora.take().startswith(b"MSRP ")


@pytest.mark.requirement("MSRP-CHK-01")
def test_it_is_passed_on_when_its_rest_does_not_come() -> None:
    pair = cut_pair()
    pair.bench.advance(2)
    begun = pair.nora.take()
    assert begun.startswith(b"MSRP ")
    pair.far.receive(rest())
    frames = parse_frames(begun + pair.nora.take())
    assert b"".join(frame.body or b"" for frame in frames) == pattern(SIZE + 1)[:SIZE]


@pytest.mark.requirement("MSRP-CHK-14")
def test_it_is_not_lost_with_its_sender() -> None:
    pair = cut_pair()
    pair.far.close("reset")
    (frame,) = parse_frames(pair.nora.take())
    assert frame.flag == "+"
    assert pattern(SIZE + 1).startswith(frame.body or b"?")
    assert len(frame.body or b"") > SIZE // 3


def test_its_sender_may_give_it_up() -> None:
    pair = cut_pair()
    identifier = chunk(1).split(b" ", 2)[1]
    pair.far.receive(b"\r\n-------" + identifier + b"#\r\n" + chunk(2))
    frames = parse_frames(pair.nora.take())
    assert frames[-2].flag == "#"
    assert frames[-1].body == pattern(SIZE + 2)[:SIZE]


def test_another_frame_does_not_wait_for_it() -> None:
    """What the receiver is sent by others leaves at once: nothing of the chunk is on the wire yet."""
    pair = cut_pair()
    other = pair.bench.connect()
    pair.bench.open(pair.nora, XM, NORA, user="nora")
    other.receive(send(f"{XM} {NORA}", OTHER, b"hello", mid="other"))
    (frame,) = parse_frames(pair.nora.take())
    assert frame.body == b"hello"
    pair.far.receive(rest())
    (frame,) = parse_frames(pair.nora.take())
    assert frame.body == pattern(SIZE + 1)[:SIZE]


def test_a_receiver_that_is_lost_meanwhile_takes_it_along() -> None:
    pair = cut_pair()
    pair.nora.close("reset")
    pair.far.receive(rest() + chunk(2))
    assert any(frame.method.startswith("481") for frame in parse_frames(pair.far.take()))


@pytest.mark.parametrize("size", [90_000, 200_000])
def test_one_that_is_too_large_to_be_kept_is_streamed(size: int) -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"first", mid="m0"))
    pair.far.handler.succeeded = True  # type: ignore[attr-defined]
    pair.nora.take()
    wire = send(f"{XN} {NORA}", FAR, pattern(size), mid="m1")
    pair.far.receive(wire[:70_000])
    begun = pair.nora.take()
    assert len(begun) > 60_000
    pair.far.receive(wire[70_000:])
    assert joined(parse_frames(begun + pair.nora.take())) == pattern(size)
