"""The short way: frames of every day over paths that are known already keep the rules of the long one."""

from __future__ import annotations

import random

import pytest

from edge.connections import Transport
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import FAR, MINA, NORA, PABLO, XM, XN, Bench, Recorder, answer, send

OTHER = "msrps://198.51.100.7:1/o;tcp"


class Warm:
    """Nora and a far party who have written to each other before; so has another one, over a session of his own."""

    def __init__(self, **settings: object) -> None:
        self.bench = Bench(**settings)  # type: ignore[arg-type]
        self.nora, self.far, self.other = (self.bench.connect() for _ in range(3))
        self.bench.open(self.nora, XN, NORA)
        self.bench.open(self.nora, XM, NORA)
        for number in range(2):
            for who, frame in (
                (self.far, send(f"{XN} {NORA}", FAR, tid=f"warm000{number}")),
                (self.nora, send(f"{XN} {FAR}", NORA, tid=f"warm000{number}")),
                (self.other, send(f"{XM} {NORA}", OTHER, tid=f"warm000{number}")),
            ):
                before = self.short
                who.receive(frame)
                assert self.short == before + number  # the first one went the long way, the second one the short way
                for one in (self.nora, self.far, self.other):
                    for sent in parse_frames(one.take()):
                        if sent.method == "SEND":
                            one.receive(reply(sent))
        assert not self.nora.handler.outbox.pending  # type: ignore[attr-defined]

    @property
    def short(self) -> int:
        return self.bench.relay.stats.sends

    def heard(self) -> list[Parsed]:
        return parse_frames(self.nora.take())

    def answers(self) -> list[str]:
        return [frame.method[:3] for frame in parse_frames(self.far.take())]


def reply(frame: Parsed) -> bytes:
    """Answer 200."""
    paths = f"To-Path: {frame['From-Path'].split()[0]}\r\nFrom-Path: {frame['To-Path'].split()[0]}\r\n"
    return f"MSRP {frame.identifier} 200 OK\r\n{paths}-------{frame.identifier}$\r\n".encode()


def reports(recorder: Recorder) -> list[tuple[str, str]]:
    frames = parse_frames(recorder.take())
    return [(frame["Byte-Range"], frame["Status"]) for frame in frames if frame.method == "REPORT"]


@pytest.mark.requirement("MSRP-CHK-11", "MSRP-CHK-07")
@pytest.mark.parametrize("end", ["*", "10000"])
def test_a_chunk_over_the_limit_is_cut(end: str) -> None:
    warm = Warm(max_chunk_size=4096)
    body = random.Random(1).randbytes(10_000)
    warm.far.receive(send(f"{XN} {NORA}", FAR, body, byte_range=f"1-{end}/10000"))
    frames = warm.heard()
    assert [len(frame.body or b"") for frame in frames] == [4096, 4096, 1808]
    assert b"".join(frame.body or b"" for frame in frames) == body


@pytest.mark.requirement("MSRP-WS-06")
@pytest.mark.parametrize("end", ["*", "5000"])
def test_a_websocket_gets_its_pieces(end: str) -> None:
    warm = Warm()
    mina = warm.bench.connect(Transport.WSS)
    uri = XM.replace("p0Lr", "p1Lr")
    warm.bench.open(mina, uri, MINA, user="mina")
    sender = warm.bench.connect()
    for number in range(2):
        sender.receive(send(f"{uri} {MINA}", PABLO, tid=f"warm000{number}"))
    mina.messages()
    sender.receive(send(f"{uri} {MINA}", PABLO, bytes(5000), byte_range=f"1-{end}/5000"))
    pieces = [parse_frames(message) for message in mina.messages()]
    assert [[frame["Byte-Range"] for frame in frames] for frames in pieces] == [
        ["1-2048/5000"], ["2049-4096/5000"], ["4097-5000/5000"],
    ]  # fmt: skip


@pytest.mark.requirement("MSRP-FRM-15", "MSRP-FRM-19", "MSRP-RESP-02")
@pytest.mark.parametrize("value", ["5-3/9", "1-9/8", "0-5/6", "*-*/*", "1-2", "1-9223372036854775808/*", "type"])
def test_what_is_malformed_is_no_less_so(value: str) -> None:
    warm = Warm()
    if value == "type":
        warm.far.receive(send(f"{XN} {NORA}", FAR, content_type=None))
    else:
        warm.far.receive(send(f"{XN} {NORA}", FAR, byte_range=value))
    assert warm.answers() == ["400"]
    assert warm.heard() == []


@pytest.mark.requirement("MSRP-CHK-05", "MSRP-CHK-12")
def test_a_long_range_has_an_open_end() -> None:
    warm = Warm()
    for size, end in ((2048, "2048"), (2049, "*")):
        warm.far.receive(send(f"{XN} {NORA}", FAR, bytes(size)))
        assert [frame["Byte-Range"] for frame in warm.heard()] == [f"1-{end}/{size}"]


@pytest.mark.requirement("MSRP-CHK-10", "MSRP-FLOW-04", "MSRP-CHK-11")
@pytest.mark.parametrize("who", ["answer", "message"])
def test_an_answer_and_a_small_message_cut_what_is_open(who: str) -> None:
    warm = Warm()
    body = random.Random(2).randbytes(20_000)
    wire = send(f"{XN} {NORA}", FAR, body, mid="big")
    warm.far.receive(wire[:9000])
    if who == "answer":
        warm.nora.receive(send(f"{XN} {FAR}", NORA, tid="hers0001"))
    else:
        warm.other.receive(send(f"{XM} {NORA}", OTHER, tid="his00001", mid="small"))
    warm.far.receive(wire[9000:])
    first, between, last = warm.heard()
    assert (first.flag, last.flag) == ("+", "$")
    assert (between.method, between.get("Message-ID")) == (("200 OK", None) if who == "answer" else ("SEND", "small"))
    assert (first.body or b"") + (last.body or b"") == body


@pytest.mark.requirement("MSRP-FLOW-02", "MSRP-FLOW-06", "MSRP-FLOW-09")
def test_nothing_is_written_to_a_connection_that_takes_nothing() -> None:
    warm = Warm()
    warm.nora.writable = False
    warm.far.receive(send(f"{XN} {NORA}", FAR, b"later"))
    assert warm.nora.sent == []
    assert warm.answers() == ["200"]
    warm.nora.drain()
    assert [frame.body for frame in warm.heard()] == [b"later"]


@pytest.mark.requirement("MSRP-SEND-11")
def test_a_chunk_does_not_overtake_an_earlier_one_of_its_message() -> None:
    warm = Warm()
    body = random.Random(3).randbytes(110_000)
    warm.nora.writable = False
    first = send(f"{XN} {NORA}", FAR, body[:100_000], mid="big", flag="+", byte_range="1-100000/110000")
    warm.far.receive(first)
    warm.nora.drain()  # some leaves, the rest has to wait for another turn of the loop
    assert warm.far.pauses == 0
    assert len(b"".join(warm.nora.sent)) < 100_000
    warm.far.receive(send(f"{XN} {NORA}", FAR, body[100_000:], mid="big", byte_range="100001-110000/110000"))
    warm.bench.run_turns()
    frames = warm.heard()
    starts = [frame.range[0] for frame in frames]
    assert starts == sorted(starts)
    assert b"".join(frame.body or b"" for frame in frames) == body


@pytest.mark.requirement("MSRP-SEND-08", "MSRP-SEND-06", "MSRP-RPT-05", "MSRP-RPT-07")
@pytest.mark.parametrize("mode", ["absent", "yes", "partial", "no"])
@pytest.mark.parametrize("cause", ["silence", "lost", "refused"])
@pytest.mark.parametrize("early", [True, False])  # Failure-Report before or after Byte-Range: clients differ
def test_who_is_answered_and_told(mode: str, cause: str, early: bool) -> None:
    warm = Warm()
    lines = {} if mode == "absent" else {"extra": f"Failure-Report: {mode}"}
    if lines and early:
        lines = {"mid": f"m1\r\nFailure-Report: {mode}"}
    short = warm.short
    warm.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 700, flag="+", byte_range="301-1000/*", **lines))  # type: ignore[arg-type]
    assert warm.short == short + 1
    assert warm.answers() == (["200"] if mode in ("absent", "yes") else [])
    frame = warm.nora.take()
    if cause == "silence":
        warm.bench.advance(35)
    elif cause == "refused":
        warm.nora.receive(answer(frame, "413 Stop"))
    else:
        warm.nora.close("reset")
    status = {"silence": "000 408 Downstream timeout", "lost": "000 408 Next hop lost", "refused": "000 413 Stop"}[
        cause
    ]
    told = mode in ("absent", "yes") or (mode == "partial" and cause != "silence")
    assert reports(warm.far) == ([("301-1000/*", status)] if told else [])
    warm.bench.advance(100)
    assert reports(warm.far) == []


@pytest.mark.requirement("MSRP-RPT-10", "MSRP-RPT-12")
def test_neighbours_are_reported_together_up_to_the_end_of_a_message() -> None:
    warm = Warm()
    for first, flag in ((1, "+"), (3, "$"), (5, "+")):  # two chunks of a message, and one of a later of the same name
        warm.far.receive(send(f"{XN} {NORA}", FAR, flag=flag, byte_range=f"{first}-{first + 1}/*"))
    warm.far.take()
    warm.nora.close("reset")
    assert [byte_range for byte_range, _ in reports(warm.far)] == ["1-4/*", "5-6/*"]


@pytest.mark.requirement("MSRP-FRM-05", "MSRP-FRM-17")
def test_the_first_end_line_counts_not_the_one_where_the_range_says() -> None:
    warm = Warm()
    end = b"\r\n-------tid00001$\r\n"
    one = send(f"{XN} {NORA}", FAR, b"x" * 10, byte_range="1-5000/5000", mid="one")
    start = one.index(b"\r\n\r\n") + 4
    head = send(f"{XN} {NORA}", FAR, b"", tid="tid00002", mid="two", byte_range="1-*/*").partition(b"\r\n\r\n")[0]
    gap = 5000 - (len(one) - start) - len(head) - 4
    body = b"y" * gap + end + b"z"
    warm.far.receive(one + head + b"\r\n\r\n" + body + b"\r\n-------tid00002$\r\n")
    frames = warm.heard()
    assert [frame["Message-ID"] for frame in frames] == ["one", "two"]
    assert [frame.body for frame in frames] == [b"x" * 10, body]


@pytest.mark.requirement("MSRP-RESP-13")
def test_an_answer_counts_only_for_whom_it_is() -> None:
    warm = Warm()
    warm.far.receive(send(f"{XN} {NORA}", FAR))
    right = answer(warm.nora.take())
    warm.nora.receive(right.replace(XN.encode(), XM.encode()))
    warm.bench.advance(35)
    assert [status for _, status in reports(warm.far)] == ["000 408 Downstream timeout"]
