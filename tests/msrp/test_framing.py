"""Frames out of a byte stream, however it is cut (RFC 4975 §7.1)."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import RemoteError
from edge.msrp.frame import Head, parse_byte_range, parse_start_line
from edge.msrp.framing import BROKEN, HOLD_LIMIT, Frame, FrameReader
from tests.msrp.recorder import E, send

Event = tuple[object, ...]
A, B = "msrp://a.example:1/a;tcp", "msrp://b.example:1/b;tcp"


class Sink:
    """Records what a reader says; a streamed SEND and a whole one look the same here."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pieces = 0
        self._open: tuple[Head, list[bytes]] | None = None

    def handle_frame(self, frame: Frame, now: float) -> None:
        self._add(frame.head, frame.data[frame.body_at : frame.stop], frame.flag)

    def begin_send(self, head: Head, now: float) -> None:
        self._open = head, []

    def handle_body(self, body: memoryview, plain: bool, now: float) -> None:
        assert self._open is not None
        self._open[1].append(bytes(body))
        self.pieces += 1

    def end_send(self, flag: bytes, now: float) -> None:
        assert self._open is not None
        head, pieces = self._open
        self._open = None
        self._add(head, b"".join(pieces), flag)

    def handle_broken(self, label: str, head: Head | None, now: float) -> None:
        paths = (head.to_path, head.from_path) if head is not None else None
        self.events.append(("broken", label, paths))

    def _add(self, head: Head, body: bytes, flag: bytes) -> None:
        start = head.start
        self.events.append((
            start.transaction_id, start.method, start.code, head.paths, head.rest, head.has_body, body, flag,
            head.error and head.error.label,
        ))  # fmt: skip


def read(pieces: list[bytes]) -> list[Event]:
    sink = Sink()
    reader = FrameReader(sink)
    for piece in pieces:
        reader.receive(piece, 0.0)
    return sink.events


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.requirement("MSRP-FRM-06")
@pytest.mark.parametrize("name", E)
def test_a_frame_is_the_same_whole_byte_by_byte_and_glued(name: str) -> None:
    frame, follower = E[name], E["E20.1"]
    whole = read([frame])
    assert len(whole) == 1
    assert whole[0][-1] is None
    assert read(split(frame, 1) if len(frame) < 8000 else split(frame, 977)) == whole
    assert read([frame + follower]) == whole + read([follower])
    assert read([follower + frame + follower]) == read([follower]) + whole + read([follower])


@pytest.mark.requirement("MSRP-FRM-06")
@pytest.mark.parametrize("name", ["E1.2", "E6.1", "E10.5", "E20.1", "E20.2", "E14.2"])
def test_a_frame_is_the_same_in_all_two_piece_splits(name: str) -> None:
    frame = E[name]
    whole = read([frame])
    for at in range(1, len(frame)):
        assert read([frame[:at], frame[at:]]) == whole


@pytest.mark.requirement("MSRP-FRM-01")
def test_start_lines_of_requests() -> None:
    assert parse_start_line(b"MSRP aB3dE5fG SEND").method == b"SEND"
    assert parse_start_line(b"MSRP aB3dE5fG FILE_OFFSET").method == b"FILE_OFFSET"
    for wrong, status in ((b"msrp aB3dE5fG SEND", 0), (b"MSRP aB3dE5fG send", 400), (b"MSRP aB3dE5fG SEND2", 400)):
        with pytest.raises(RemoteError) as caught:
            parse_start_line(wrong)
        assert caught.value.status == status


@pytest.mark.requirement("MSRP-FRM-02")
def test_start_lines_of_responses() -> None:
    plain, comment = parse_start_line(b"MSRP aB3dE5fG 200"), parse_start_line(b"MSRP aB3dE5fG 200 Alt i orden")
    assert (plain.code, plain.comment, plain.method) == (200, b"", b"")
    assert (comment.code, comment.comment) == (200, b"Alt i orden")
    with pytest.raises(RemoteError):
        parse_start_line(b"MSRP aB3dE5fG 20")


@pytest.mark.requirement("MSRP-FRM-03")
@pytest.mark.parametrize("identifier", ["abc", "a" * 33, "-abcd", "ab_d", "ab d", ""])
def test_a_transaction_id_that_cannot_be_echoed_ends_the_stream(identifier: str) -> None:
    events = read([send(A, B, tid=identifier)])
    assert events == [("broken", "start_line", None)]


@pytest.mark.requirement("MSRP-FRM-03")
@pytest.mark.parametrize("identifier", ["abcd", "a" * 32, "a+%=", "9.-+"])
def test_transaction_ids_within_the_grammar(identifier: str) -> None:
    assert read([send(A, B, tid=identifier)])[0][0] == identifier.encode()


@pytest.mark.requirement("MSRP-FRM-05")
@pytest.mark.parametrize(
    "lookalike",
    [
        b"\r\n-------abcd+$\r\n", b"\r\n-------abcdX\r\n", b"\r\n-------abcd$x", b"x-------abcd$\r\n", b"\n-------abcd$\r\n",
        b"\r\n------abcd$\r\n", b"\r\n-------ABCD$\r\n", b"\r\n-------zzzz$\r\n", b"\r\n-------abcd", b"\r\n-------abcd$\r",
        b"-------abcd$\r\n",
    ],
)  # fmt: skip
def test_only_the_whole_end_line_ends_a_frame(lookalike: bytes) -> None:
    for body in (lookalike, b"before" + lookalike + b"after", b"x" * 5000 + lookalike + b"y" * 5000):
        frame = send(A, B, body, tid="abcd")
        whole = read([frame])
        assert [event[6] for event in whole] == [body]
        assert read(split(frame, 1)) == whole
        assert read(split(frame, 13)) == whole


@pytest.mark.requirement("MSRP-FRM-07", "MSRP-FRM-24")
def test_bodies_are_opaque_and_streamed_in_constant_memory() -> None:
    body = bytes(range(256)) * 4 + b"\r\n-------zzzz$\r\n" + random.Random(5).randbytes(3_000_000)
    frame = send(A, B, body, byte_range="1-*/*")
    sink = Sink()
    reader = FrameReader(sink)
    for piece in split(frame, 65536):
        reader.receive(piece, 0.0)
        assert len(reader.rest) <= HOLD_LIMIT + 1000
    assert hashlib.sha256(sink.events[0][6]).digest() == hashlib.sha256(body).digest()  # type: ignore[arg-type]
    assert sink.pieces > 40


@pytest.mark.requirement("MSRP-FRM-08")
def test_bodiless_and_empty() -> None:
    bodiless, empty = read([E["E20.1"] + E["E20.2"]])
    assert (bodiless[5], empty[5]) == (False, True)
    assert bodiless[6] == empty[6] == b""


@pytest.mark.requirement("MSRP-FRM-11", "MSRP-FRM-12")
def test_names_in_any_case_and_blanks_around_values() -> None:
    block = (
        b"to-path:"
        + A.encode()
        + b"\r\nFROM-PATH:  \t"
        + B.encode()
        + b" \r\nfailure-report: NO\r\nByte-Range:1-2/2\r\n"
        b"message-id:   m1  \r\n"
    )
    head = Head(parse_start_line(b"MSRP abcd SEND"), block, False)
    assert head.error is None
    assert (head.to_path, head.from_path) == ([A.encode()], [B.encode()])
    assert (head.failure_report, head.message_id) == (b"no", b"m1")
    assert head.range is not None
    assert head.range.end == 2


def head_of(*lines: str) -> Head:
    block = "".join(line + "\r\n" for line in (f"To-Path: {A}", f"From-Path: {B}", *lines)).encode()
    return Head(parse_start_line(b"MSRP abcd SEND"), block, False)


@pytest.mark.requirement("MSRP-FRM-12")
def test_folded_lines_are_malformed() -> None:
    head = head_of("X-Long: a", " b")
    assert head.error is not None
    assert head.error.status == 400


@pytest.mark.requirement("MSRP-FRM-13")
@pytest.mark.parametrize(
    "line",
    ["Message-ID: m", "Byte-Range: 1-2/2", "Status: 000 200", "Success-Report: no", "Failure-Report: no",
     "Content-Type: a/b", "Expires: 60", "Use-Path: " + A, "To-Path: " + A, "from-path: " + A],
)  # fmt: skip
def test_headers_that_may_not_repeat(line: str) -> None:
    head = head_of(line, line.swapcase() if line.startswith("M") else line)
    assert head.error is not None
    assert (head.error.status, head.error.label) == (400, "duplicate")
    assert head.to_path == [A.encode()]


@pytest.mark.requirement("MSRP-FRM-13")
def test_headers_that_may_repeat() -> None:
    head = head_of("WWW-Authenticate: a", "X-Odd: 1", "WWW-Authenticate: b", "X-Odd: 2")
    assert head.error is None
    assert head.all(b"www-authenticate") == [b"a", b"b"]


@pytest.mark.requirement("MSRP-FRM-15")
def test_byte_ranges() -> None:
    for value, expected in (
        (b"1-2/2", (1, 2, 2)), (b"1-*/*", (1, None, None)), (b"2049-*/5000", (2049, None, 5000)), (b"1-0/0", (1, 0, 0)),
        (b"1-*/9223372036854775807", (1, None, 2**63 - 1)),
    ):  # fmt: skip
        found = parse_byte_range(value)
        assert (found.start, found.end, found.total) == expected
    for wrong in (
        b"*-*/*", b"0-5/6", b"5-3/9", b"1-9/8", b"1-2", b"+1-2/2", b"1-*/9223372036854775808", b"", b"1-2/2/2", b"1 -2/2",
    ):  # fmt: skip
        with pytest.raises(RemoteError) as caught:
            parse_byte_range(wrong)
        assert caught.value.status == 400


@pytest.mark.requirement("MSRP-FRM-21")
def test_a_broken_stream_is_not_searched_for_the_next_frame() -> None:
    events = read([E["E6.1"] + b"garbage\r\n" + E["E6.5"]])
    assert [event[0] for event in events] == [b"nxJ8u3kfd7Tng", "broken"]
    assert read([b"\r\n\r\n" + E["E6.1"]]) == read([E["E6.1"]])
    assert read([b"\r\n" * 33 + E["E6.1"]]) == [("broken", "stray", None)]
    assert read([E["E6.1"].replace(b"\r\n", b"\n")])[0][0] == "broken"


@pytest.mark.requirement("MSRP-FRM-21")
def test_control_characters_in_headers_are_fatal() -> None:
    for octet in (0, 10, 13, 27, 127):
        head = head_of(f"X: a{chr(octet)}b")
        assert head.error is not None
        assert head.fatal


@pytest.mark.requirement("MSRP-FRM-22")
def test_limits_of_a_head() -> None:
    at_limit = head_of(*(f"X-{number}: 1" for number in range(62)))
    assert at_limit.error is None
    for over in (
        head_of(*(f"X-{number}: 1" for number in range(63))),
        head_of("X: " + "a" * 8190),
        Head(
            parse_start_line(b"MSRP abcd SEND"), f"To-Path: {' '.join([A] * 17)}\r\nFrom-Path: {B}\r\n".encode(), False
        ),
    ):
        assert over.error is not None
        assert over.error.status == 400
        assert over.fatal


@pytest.mark.requirement("MSRP-FRM-22")
def test_oversize_is_found_before_the_head_is_complete() -> None:
    start = send(A, B).partition(b"Message-ID")[0]
    for flood in (start + b"X: " + b"a" * 9000, start + b"X: a\r\n" * 4000, b"MSRP abcd " + b"A" * 600):
        sink = Sink()
        reader = FrameReader(sink)
        for piece in split(flood, 100):
            reader.receive(piece, 0.0)
            assert len(reader.rest) < 17000
        assert sink.events[0][0] == "broken"
        assert reader.state == BROKEN


@pytest.mark.requirement("MSRP-FRM-22")
@pytest.mark.parametrize(("size", "broken"), [(512, False), (513, True)])
def test_a_start_line_has_at_most_512_octets(size: int, broken: bool) -> None:
    line = b"MSRP abcd " + b"A" * (size - 10)
    for pieces in ([line + b"\r\n"], [line, b"\r\n"]):
        sink = Sink()
        reader = FrameReader(sink)
        for piece in pieces:
            reader.receive(piece, 0.0)
        assert (reader.state == BROKEN) == broken


@pytest.mark.requirement("MSRP-FRM-20")
def test_bodies_of_other_requests_are_small() -> None:
    small, large = (send(A, B, b"x" * size, method="NICKNAME") for size in (10240, 10241))
    assert len(read(split(small, 1000))) == 1
    assert read([large])[0][:2] == ("broken", "body_limit")
    assert read(split(large, 1000))[0][:2] == ("broken", "body_limit")


_bodies = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"\r\n", b"-------", b"abcd", b"$", b"+", b"#", b"\r", b"\n", b"x", b"MSRP abcd SEND\r\n"]),
    max_size=30,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_bodies, st.sampled_from("$+#")), min_size=1, max_size=4), st.data())
def test_frames_survive_any_cut(bodies: list[tuple[bytes, str]], data: st.DataObject) -> None:
    frames = [
        send(A, B, body, tid="abcd", flag=flag) for body, flag in bodies
        if not any(b"-------abcd" + f in body for f in (b"$\r\n", b"+\r\n", b"#\r\n"))
        and not (b"\r\n" + body + b"\r\n-------abcd").count(b"\r\n-------abcd") > 1
    ]  # fmt: skip
    stream = b"".join(frames)
    expected = [event for frame in frames for event in read([frame])]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read([piece for piece in pieces if piece]) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6), st.sampled_from(["E6.1", "E1.3", "E7.4"]), st.data())
def test_any_octets_are_read_or_refused_within_bounds(junk: list[bytes], name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(E[name])))
    sink = Sink()
    reader = FrameReader(sink)
    for piece in (E[name][:at], *junk, E[name][at:]):
        if piece:
            reader.receive(piece, 0.0)
        assert len(reader.rest) < 30000


@pytest.mark.requirement("MSRP-FRM-21")
def test_a_bare_lf_in_a_start_line_breaks_the_stream_whole_and_cut() -> None:
    frame = b"MSRP abcd 425 Nick\nTo-Path: x\r\n-------abcd$\r\n"
    assert read([frame]) == read([frame[:20], frame[20:]]) == [("broken", "start_line", None)]
