"""What the relay says about chunks that did not arrive: once, and to nobody else (RFC 4976 §6.4)."""

from __future__ import annotations

import pytest

from edge.msrp.frame import clean_comment
from edge.msrp.handler import MsrpHandler
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import FAR, NORA, PABLO, XN, Bench, Recorder, answer, send

MODES = ["yes", "absent", "partial", "no"]


class Pair:
    """Nora sends to Pablo, whom the relay dials."""

    def __init__(self, *, lifetime: float = 600, **options: object) -> None:
        self.bench = Bench(**options)  # type: ignore[arg-type]
        self.nora = self.bench.connect()
        self.bench.open(self.nora, XN, NORA, lifetime=lifetime)

    def send(self, body: bytes = b"hi", mode: str = "absent", **fields: object) -> None:
        extra = "" if mode == "absent" else f"Failure-Report: {mode}"
        self.nora.receive(send(f"{XN} {PABLO}", NORA, body, extra=extra, **fields))  # type: ignore[arg-type]

    @property
    def pablo(self) -> Recorder:
        return self.bench.dialled[-1].connection

    def frames(self) -> list[Parsed]:
        return parse_frames(self.nora.take())


def reports(frames: list[Parsed]) -> list[tuple[str, str]]:
    return [(frame["Byte-Range"], frame["Status"]) for frame in frames if frame.method == "REPORT"]


@pytest.mark.requirement("MSRP-SEND-08", "MSRP-RPT-04", "MSRP-RPT-05", "MSRP-RPT-06", "MSRP-RPT-07")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("cause", "status"),
    [
        ("error", "000 415 What"), ("silence", "000 408 Downstream timeout"), ("lost", "000 408 Next hop lost"),
        ("refused", "000 408 Next hop unreachable"), ("not_found", "000 408 Next hop unreachable"),
        ("tls", "000 408 Next hop unreachable"), ("timed_out", "000 408 Next hop unreachable"),
        ("stalled", "000 408 Next hop lost"),
    ],
)  # fmt: skip
def test_every_failure_of_an_answered_chunk_is_reported_once(mode: str, cause: str, status: str) -> None:
    pair = Pair()
    pair.send(mode=mode)
    answers = [frame.method for frame in pair.frames()]
    assert answers == (["200 OK"] if mode in ("yes", "absent") else [])
    if cause == "error":
        pair.pablo.receive(answer(pair.pablo.take(), "415 What"))
    elif cause == "silence":
        pair.bench.advance(40)
    elif cause in ("lost", "stalled"):
        pair.pablo.drain()
        pair.pablo.close(cause)
    else:
        pair.pablo.close(cause)
    silent = mode == "no" or (mode == "partial" and cause == "silence")
    assert reports(pair.frames()) == ([] if silent else [("1-2/2", status)])
    pair.bench.advance(100)
    assert pair.frames() == []


@pytest.mark.requirement("MSRP-RPT-08")
def test_the_form_of_a_report() -> None:
    pair = Pair()
    pair.send(mid="the.id")
    pair.nora.take()
    pair.pablo.close("reset")
    (report,) = pair.frames()
    assert [name for name, _ in report.headers] == ["To-Path", "From-Path", "Message-ID", "Byte-Range", "Status"]
    assert (report["To-Path"], report["From-Path"], report["Message-ID"]) == (NORA, XN, "the.id")
    assert (report.body, report.flag) == (None, "$")


@pytest.mark.requirement("MSRP-RPT-09")
@pytest.mark.parametrize(("said", "told"), [("x" * 5000, "x" * 64), ("na\u00efve", "na\u00efve"), ("", "")])
def test_comments_of_a_peer_are_cut(said: str, told: str) -> None:
    pair = Pair()
    pair.send()
    pair.nora.take()
    reply = answer(pair.pablo.take(), f"599 {said}".strip())
    pair.pablo.receive(reply[:1000])
    pair.pablo.receive(reply[1000:])
    assert reports(pair.frames()) == [("1-2/2", f"000 599 {told}".strip())]


@pytest.mark.requirement("MSRP-RPT-09")
def test_controls_of_a_comment_do_not_pass() -> None:
    assert clean_comment(b"a\x00b\x1fc\x7f") == b"abc"


@pytest.mark.requirement("MSRP-RPT-10")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"byte_range": "1-2/2"}, "1-2/2"), ({"byte_range": "11-12/40", "flag": "+"}, "11-12/40"),
        ({"byte_range": "1-*/*"}, "1-2/*"), ({"byte_range": None}, "1-2/2"), ({"byte_range": None, "flag": "+"}, "1-2/*"),
        ({"body": None, "byte_range": None}, "1-0/0"),
    ],
)  # fmt: skip
def test_ranges_of_reports(fields: dict[str, object], expected: str) -> None:
    pair = Pair()
    pair.send(**fields)  # type: ignore[arg-type]
    pair.nora.take()
    pair.pablo.close("reset")
    assert [byte_range for byte_range, _ in reports(pair.frames())] == [expected]


@pytest.mark.requirement("MSRP-RPT-10", "MSRP-RPT-12")
def test_a_failed_piece_is_reported_by_its_own_range() -> None:
    pair = Pair(max_chunk_size=2048)
    pair.send(b"x" * 5000, byte_range="1-*/5000")
    pair.nora.take()
    pieces = [b"MSRP " + piece for piece in pair.pablo.take().split(b"MSRP ")[1:]]
    assert len(pieces) == 3
    pair.pablo.receive(answer(pieces[0]) + answer(pieces[1]) + answer(pieces[2], "413 Stop"))
    assert reports(pair.frames()) == [("4097-5000/5000", "000 413 Stop")]


@pytest.mark.requirement("MSRP-RPT-12", "MSRP-RPT-06")
def test_unconfirmed_chunks_are_covered_without_overlap() -> None:
    pair = Pair()
    for number in range(5):
        pair.send(
            b"x" * 100, tid=f"tid{number:05}", byte_range=f"{number * 100 + 1}-{number * 100 + 100}/500",
            flag="$" if number == 4 else "+",
        )  # fmt: skip
    pair.nora.take()
    sent = [b"MSRP " + piece for piece in pair.pablo.take().split(b"MSRP ")[1:]]
    pair.pablo.receive(answer(sent[1]))
    pair.pablo.close("reset")
    assert [byte_range for byte_range, _ in reports(pair.frames())] == ["1-100/500", "201-500/500"]


@pytest.mark.requirement("MSRP-RPT-12")
def test_without_message_id_nothing_can_be_reported() -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA, None, mid=""))
    pair.nora.take()
    pair.pablo.close("reset")
    assert pair.nora.take() == b""
    assert pair.bench.relay.stats.refused["report_without_message_id"] == 1


@pytest.mark.requirement("MSRP-RPT-02", "MSRP-RPT-01")
def test_a_report_that_cannot_be_delivered_is_silence() -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA, None, method="REPORT", extra="Status: 000 200"))
    assert not pair.bench.dialled
    pair.send()
    pair.nora.take()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA, None, method="REPORT", extra="Status: 000 200"))
    assert parse_frames(pair.pablo.take())[-1].method == "REPORT"
    pair.bench.advance(40)
    pair.nora.take()
    pair.pablo.close("reset")
    pair.nora.receive(send(f"{XN} {PABLO}", NORA, None, method="REPORT", extra="Status: 000 200"))
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-RPT-03", "MSRP-RPT-01")
def test_success_reports_need_no_memory() -> None:
    bench = Bench()
    nora, far = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA, lifetime=3600)
    far.receive(
        send(
            f"{XN} {NORA}", FAR, None, method="REPORT", mid="late", byte_range="77-99/100", extra="Status: 123 777 odd"
        )
    )
    (report,) = parse_frames(nora.take())
    assert (report["Status"], report["Byte-Range"], report["Message-ID"]) == ("123 777 odd", "77-99/100", "late")
    handler = nora.handler
    assert isinstance(handler, MsrpHandler)
    assert (handler.outbox.pending, far.uses) == ({}, 0)


@pytest.mark.requirement("MSRP-RPT-11", "MSRP-SEC-03")
def test_a_report_goes_back_where_the_send_came_from_and_nowhere_else() -> None:
    bench = Bench()
    nora, far = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    far.receive(send(f"{XN} {NORA}", f"{FAR} msrps://victim.example:1/v;tcp"))
    sent = nora.take()
    far.take()
    far.close("eof")
    nora.receive(answer(sent, "413 Stop"))
    assert not bench.dialled


@pytest.mark.requirement("MSRP-RPT-11")
def test_a_report_finds_another_connection_of_the_same_relay() -> None:
    bench = Bench()
    nora, link = bench.connect(), bench.connect(identities=("gate.fjord.example",))
    bench.open(nora, XN, NORA)
    link.receive(send(f"{XN} {NORA}", "msrps://gate.fjord.example:2855/g;tcp"))
    sent = nora.take()
    link.close("eof")
    again = bench.connect(identities=("gate.fjord.example",))
    nora.receive(answer(sent, "413 Stop"))
    assert reports(parse_frames(again.take())) == [("1-2/2", "000 413 Stop")]


@pytest.mark.requirement("MSRP-SEND-14", "MSRP-RESP-06")
def test_nothing_more_of_a_refused_message_goes_on() -> None:
    pair = Pair()
    pair.send(b"x" * 100, byte_range="1-100/300", flag="+", tid="tid00001")
    pair.nora.take()
    pair.pablo.receive(answer(pair.pablo.take(), "413 Stop"))
    assert reports(pair.frames()) == [("1-100/300", "000 413 Stop")]
    pair.send(b"x" * 100, byte_range="101-200/300", flag="+", tid="tid00002")
    pair.send(b"other", mid="m2", tid="tid00003")
    pair.send(b"x" * 100, byte_range="201-300/300", tid="tid00004")
    assert [(frame.identifier, frame.method[:3]) for frame in pair.frames()] == [
        ("tid00002", "413"), ("tid00003", "200"), ("tid00004", "413"),
    ]  # fmt: skip
    assert [frame["Message-ID"] for frame in parse_frames(pair.pablo.take())] == ["m2"]


@pytest.mark.requirement("MSRP-SEND-14", "MSRP-RPT-06", "MSRP-SEND-09")
def test_a_refusal_while_the_chunk_arrives_is_its_answer() -> None:
    pair = Pair()
    wire = send(f"{XN} {PABLO}", NORA, b"x" * 50_000, byte_range="1-*/50000")
    pair.nora.receive(wire[:10_000])
    pair.pablo.receive(answer(pair.pablo.take(), "413 Stop"))
    assert [(frame.identifier, frame.method) for frame in pair.frames()] == [("tid00001", "413 Stop")]
    pair.nora.receive(wire[10_000:])
    assert pair.frames() == []
    assert pair.pablo.take().endswith(b"#\r\n")
    pair.bench.advance(60)
    assert pair.frames() == []


@pytest.mark.requirement("MSRP-SEND-14", "MSRP-RPT-06", "MSRP-RPT-12")
@pytest.mark.parametrize("mode", ["yes", "absent", "partial"])
def test_what_waits_of_a_refused_message_is_dropped_and_reported_with_it(mode: str) -> None:
    pair = Pair()
    extra = "" if mode == "absent" else f"Failure-Report: {mode}"

    def chunk(first: int, last: int, tid: str, mid: str = "big") -> bytes:
        body, byte_range = bytes(last - first + 1), f"{first}-{last}/90000"
        return send(f"{XN} {PABLO}", NORA, body, tid=tid, mid=mid, flag="+", byte_range=byte_range, extra=extra)

    first = chunk(1, 50_000, "tid00001")
    pair.nora.receive(first[:30_000])
    pair.pablo.drain()
    opened = pair.pablo.take()
    pair.pablo.writable = False
    pair.nora.handler.receive_data(pair.nora, first[30_000:], 0.0)
    pair.nora.handler.receive_data(pair.nora, chunk(50_001, 60_000, "tid00002"), 0.0)
    pair.nora.handler.receive_data(pair.nora, chunk(1, 90_000, "tid00003", "other"), 0.0)
    running = chunk(60_001, 90_000, "tid00004")
    pair.nora.handler.receive_data(pair.nora, running[:20_000], 0.0)
    pair.pablo.receive(answer(opened + b"\r\n", "413 Stop"))
    pair.nora.handler.receive_data(pair.nora, running[20_000:], 0.0)
    frames = pair.frames()
    answers = [(frame.identifier, frame.method[:3]) for frame in frames if frame.method != "REPORT"]
    oks = [(f"tid0000{number}", "200") for number in (1, 2, 3)] if mode in ("yes", "absent") else []
    assert answers == [*oks, ("tid00004", "413")]
    assert reports(frames) == [("1-60000/90000", "000 413 Stop")]
    pair.pablo.drain()
    pair.bench.run_turns()
    end, *others = (opened + pair.pablo.take()).split(b"\r\nMSRP ")
    assert end.split(b"\r\n-------")[1][16:] == b"#"
    assert all(b"Message-ID: other" in frame for frame in others)


@pytest.mark.requirement("MSRP-RESP-12")
@pytest.mark.parametrize("code", ["500", "404", "299", "999"])
def test_any_code_but_200_is_a_failure(code: str) -> None:
    pair = Pair()
    pair.send()
    pair.nora.take()
    pair.pablo.receive(answer(pair.pablo.take(), code))
    assert reports(pair.frames()) == [("1-2/2", f"000 {code}")]


@pytest.mark.requirement("MSRP-RPT-07", "MSRP-RPT-12")
def test_octets_that_were_answered_and_still_wait_are_reported_too() -> None:
    bench = Bench()
    nora, far = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    nora.writable = False
    far.receive(send(f"{XN} {NORA}", FAR, b"x" * 150_000))
    assert parse_frames(far.take())[0].method == "200 OK"
    nora.writable = True
    nora.handler.handle_writable(nora, bench.clock.now)
    assert nora.take()
    nora.close("reset")
    assert reports(parse_frames(far.take())) == [
        ("1-65536/150000", "000 408 Next hop lost"), ("65537-150000/150000", "000 408 Next hop lost"),
    ]  # fmt: skip


# -- time


@pytest.mark.requirement("MSRP-TMR-01")
def test_the_time_runs_from_the_moment_the_end_line_left() -> None:
    pair = Pair()
    pair.send()
    pair.nora.take()
    frame = pair.pablo.take()
    pair.pablo.backlog = len(frame)
    pair.bench.advance(45)
    assert pair.frames() == []
    pair.pablo.backlog = 0
    pair.bench.advance(28)
    assert pair.frames() == []
    pair.bench.advance(5)
    assert len(pair.frames()) == 1


@pytest.mark.requirement("MSRP-TMR-02")
def test_any_answer_stops_the_time() -> None:
    pair = Pair()
    pair.send()
    pair.nora.take()
    pair.pablo.receive(answer(pair.pablo.take()))
    pair.bench.advance(60)
    assert pair.frames() == []
    assert not pair.pablo.handler.outbox.pending  # type: ignore[attr-defined]


@pytest.mark.requirement("MSRP-TMR-02")
@pytest.mark.parametrize(("after", "reported"), [(29, True), (33, False)])
def test_partial_is_remembered_for_thirty_seconds(after: float, reported: bool) -> None:
    pair = Pair()
    pair.send(mode="partial")
    frame = pair.pablo.take()
    pair.bench.advance(after)
    pair.pablo.receive(answer(frame, "413 Stop"))
    assert bool(pair.frames()) is reported


@pytest.mark.requirement("MSRP-FLOW-07")
@pytest.mark.parametrize("answered", [True, False])
def test_the_time_stands_still_while_the_next_hop_is_not_read(answered: bool) -> None:
    pair = Pair()
    pair.send()
    pair.nora.take()
    frame = pair.pablo.take()
    pair.nora.writable = False
    pair.pablo.receive(send(f"{XN} {NORA}", PABLO, b"x" * 5000, tid="back0001"))
    assert pair.pablo.pauses == 1
    pair.bench.advance(60)
    pair.nora.drain()
    assert pair.pablo.pauses == 0
    pair.bench.advance(25)  # of its thirty seconds only these have passed
    assert reports(pair.frames()) == []
    if answered:
        pair.pablo.receive(answer(frame))
    pair.bench.advance(60)
    assert reports(pair.frames()) == ([] if answered else [("1-2/2", "000 408 Downstream timeout")])


@pytest.mark.requirement("MSRP-TMR-01", "MSRP-TMR-04")
def test_each_chunk_has_its_own_thirty_seconds() -> None:
    pair = Pair()
    for number in range(20):
        pair.send(tid=f"tid{number:05}", mid=f"m{number}")
        pair.bench.advance(1)
    pair.nora.take()
    seen = []
    for _ in range(40):
        pair.bench.advance(1)
        seen.append(len(pair.frames()))
    assert sum(seen) == 20
    assert sum(seen[:9]) == 0
    assert max(seen) <= 2


@pytest.mark.requirement("MSRP-TMR-04")
def test_a_thousand_open_transactions_cost_no_timers() -> None:
    bench = Bench()
    nora, far = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    far.receive(send(f"{XN} {NORA}", FAR))
    nora.receive(answer(nora.take()))
    before = bench.wheel.count
    for number in range(1000):
        far.receive(send(f"{XN} {NORA}", FAR, tid=f"tid{number:05}"))
    assert bench.wheel.count == before


def test_unanswered_chunks_hold_their_sender_at_a_bound() -> None:
    pair = Pair()
    number = 0
    while not pair.nora.pauses:
        number += 1
        assert number < 20_000
        pair.nora.receive(send(f"{XN} {PABLO}", NORA, tid=f"tid{number:06}"))
    assert len(pair.pablo.handler.outbox.pending) <= 8192  # type: ignore[attr-defined]
    frames = [b"MSRP " + frame for frame in pair.pablo.take().split(b"MSRP ")[1:]]
    pair.pablo.receive(b"".join(map(answer, frames)))
    assert pair.nora.pauses == 0


@pytest.mark.requirement("MSRP-RESP-05", "MSRP-CHK-15", "MSRP-SEND-08")
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_before_the_answer_is_a_response(mode: str) -> None:
    pair = Pair()
    extra = "" if mode == "absent" else f"Failure-Report: {mode}"
    wire = send(f"{XN} {PABLO}", NORA, b"x" * 9000, extra=extra)
    pair.nora.receive(wire[:5000])
    pair.pablo.drain()
    pair.pablo.close("reset")
    expected = [] if mode == "no" else [("408 Next hop lost", "tid00001")]
    assert [(frame.method, frame.identifier) for frame in pair.frames()] == expected
    pair.nora.receive(wire[5000:])
    assert pair.frames() == []


# -- a session that expires with chunks under way


@pytest.mark.requirement("MSRP-RPT-04", "MSRP-RPT-06", "MSRP-RPT-07")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_confirmed_when_the_session_of_its_sender_expires_is_reported_once(mode: str) -> None:
    pair = Pair(lifetime=10)
    pair.send(mode=mode)
    pair.pablo.drain()
    assert len(parse_frames(pair.pablo.take())) == 1
    pair.nora.take()
    pair.bench.advance(9)
    assert pair.frames() == []
    pair.bench.advance(2)
    assert pair.pablo.end == "unused"
    assert reports(pair.frames()) == ([] if mode == "no" else [("1-2/2", "000 408 Next hop lost")])
    pair.bench.advance(100)
    assert pair.frames() == []


@pytest.mark.requirement("MSRP-RPT-04", "MSRP-RPT-06", "MSRP-RPT-07")
@pytest.mark.parametrize("mode", MODES)
def test_what_the_owner_of_an_expired_session_never_confirms_is_reported_in_time(mode: str) -> None:
    bench = Bench()
    nora, far = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA, lifetime=10)
    far.receive(send(f"{XN} {NORA}", FAR, extra="" if mode == "absent" else f"Failure-Report: {mode}"))
    far.take()
    bench.advance(11)
    assert far.take() == b""  # its connection lives, so it may still answer
    bench.advance(30)
    silent = mode in ("partial", "no")
    assert reports(parse_frames(far.take())) == ([] if silent else [("1-2/2", "000 408 Downstream timeout")])
    bench.advance(100)
    assert far.take() == b""


@pytest.mark.requirement("MSRP-RPT-04", "MSRP-RPT-07")
@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_that_is_still_coming_when_its_session_expires_is_answered_instead(mode: str) -> None:
    pair = Pair(lifetime=10)
    extra = "" if mode == "absent" else f"Failure-Report: {mode}"
    wire = send(f"{XN} {PABLO}", NORA, b"x" * 9000, extra=extra)
    pair.nora.receive(wire[:5000])
    pair.pablo.drain()
    pair.bench.advance(11)
    pair.nora.receive(wire[5000:])
    assert [frame.method for frame in pair.frames()] == ([] if mode == "no" else ["408 Next hop lost"])
    pair.bench.advance(100)
    assert pair.frames() == []
