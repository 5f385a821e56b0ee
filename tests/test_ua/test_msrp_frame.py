"""The MSRP frame reader against worked examples and hostile splits (RFC 4975 §9)."""

import re
from pathlib import Path

import pytest

from tests.ua.msrp_frame import Frame, FrameError, FrameReader, build, end_line, parse_byte_range, read_all

EXAMPLES = Path(__file__).parent / "vectors" / "msrp_examples.txt"


def pattern(start: int, end: int) -> bytes:
    """Return octets `start` to `end` of the letter pattern, counted from 1."""
    return bytes(97 + (position - 1) % 26 for position in range(start, end + 1))


def worked_examples() -> dict[str, tuple[int, bytes]]:
    """Return id -> (octets of the frame as stated, the frame)."""
    found = {}
    for block in EXAMPLES.read_text(encoding="utf-8").split("\n=== ")[1:]:
        title, _, text = block.removesuffix("\n").partition("\n")
        name, octets = title.split()
        wire = text.replace("\n", "\r\n").encode() + b"\r\n"
        wire = re.sub(rb"\{P (\d+)\.\.(\d+)\}", lambda m: pattern(int(m[1]), int(m[2])), wire)
        found[name] = (int(octets), wire)
    return found


WORKED = worked_examples()


class Recorder:
    """Notes what a reader tells, body pieces joined."""

    def __init__(self) -> None:
        self.frames: list[tuple[bytes, bytes, str]] = []
        self.reader = FrameReader(self.head, self.body, self.end)
        self._body = bytearray()

    def head(self, frame: Frame) -> None:
        self._body.clear()

    def body(self, frame: Frame, data: bytes) -> None:
        assert data
        self._body += data

    def end(self, frame: Frame) -> None:
        self.frames.append((frame.head, bytes(self._body), frame.flag))


def feed(pieces: list[bytes]) -> list[tuple[bytes, bytes, str]]:
    recorder = Recorder()
    for piece in pieces:
        recorder.reader.feed(piece)
    assert recorder.reader.idle
    return recorder.frames


def octets(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("name", WORKED)
def test_worked_example_whole_by_octet_and_glued(name: str) -> None:
    stated, wire = WORKED[name]
    assert len(wire) == stated
    whole = feed([wire])
    assert len(whole) == 1
    assert feed(octets(wire)) == whole
    assert feed([wire + wire]) == whole * 2
    if len(wire) < 20000:
        assert read_all(wire)[0].raw == wire


@pytest.mark.parametrize("name", [name for name, (size, _) in WORKED.items() if size < 600])
def test_worked_example_in_all_two_piece_splits(name: str) -> None:
    wire = WORKED[name][1]
    whole = feed([wire])
    assert all(feed([wire[:cut], wire[cut:]]) == whole for cut in range(1, len(wire)))


LOOK_ALIKES = [b"\r\n-------abcd+$\r\n", b"\r\n-------abcdX\r\n", b"\r\n-------abcd$x", b"x-------abcd$\r\n", b"\r\n------abcd$\r\n",
               b"\r\n\r\n-------abcd$\n", b"\r\r\n-------abc", bytes(range(256)) * 4]  # fmt: skip


@pytest.mark.parametrize("body", [*LOOK_ALIKES, b"".join(LOOK_ALIKES), b"", b"\r\n", b"\r\n-------abcd"])
def test_look_alikes_of_the_end_line_stay_body(body: bytes) -> None:
    frame = build(
        "SEND", ["msrp://h:1/a;tcp"], ["msrp://h:2/b;tcp"], transaction_id="abcd", content_type="a/b", flag="+"
    )
    wire = frame.head + body + end_line(frame)
    assert feed([wire]) == feed(octets(wire)) == [(frame.head, body, "+")]


def test_bodiless_and_empty_are_told_apart() -> None:
    bodiless, empty = (read_all(WORKED[name][1])[0] for name in ("E20.1", "E20.2"))
    assert (bodiless.has_body, bodiless.byte_range, bodiless.get("Content-Type")) == (False, (1, None, None), None)
    assert (empty.has_body, empty.byte_range, empty.body) == (True, (1, 0, 0), b"")


def test_body_leaves_while_it_comes() -> None:
    recorder = Recorder()
    head, _, rest = WORKED["E6.1"][1].partition(b"\r\n\r\n")
    recorder.reader.feed(head + b"\r\n\r\n" + rest[:10])
    assert bytes(recorder._body) == rest[:10]


PATHS = b"To-Path: msrp://h:1/a;tcp\r\nFrom-Path: msrp://h:2/b;tcp\r\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"msrp abcd SEND\r\n" + PATHS + b"-------abcd$\r\n",
        b"MSRP abc SEND\r\n" + PATHS + b"-------abc$\r\n",
        b"MSRP abcd 20\r\n" + PATHS + b"-------abcd$\r\n",
        b"MSRP abcd send\r\n" + PATHS + b"-------abcd$\r\n",
        b"MSRP abcd SEND\n" + PATHS + b"-------abcd$\r\n",
        b"MSRP abcd SEND\r\nFrom-Path: msrp://h:2/b;tcp\r\nTo-Path: msrp://h:1/a;tcp\r\n-------abcd$\r\n",
        b"MSRP abcd SEND\r\nTo-Path: \r\nFrom-Path: x\r\n-------abcd$\r\n",
        b"MSRP abcd SEND\r\n" + PATHS + b" folded\r\n-------abcd$\r\n",
        b"MSRP abcd SEND\r\n" + PATHS + b"\r\nbody\r\n-------abcd$\r\n",
        b"MSRP abcd SEND\r\n" + PATHS + b"Content-Type: a/b\r\n-------abcd$\r\n",
        b"MSRP abcd 200 OK\r\n" + PATHS + b"-------abcd+\r\n",
        b"MSRP abcd SEND\r\n" + PATHS + b"-------abcd$\r\n\r\n",
        b"MSRP abcd SEND\r\n" + PATHS,
    ],
)
def test_malformed_frames_raise(wire: bytes) -> None:
    with pytest.raises(FrameError):
        read_all(wire)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1-2/2", (1, 2, 2)), ("1-*/*", (1, None, None)), ("2049-*/5000", (2049, None, 5000)), ("1-0/0", (1, 0, 0))],
)
def test_byte_range(value: str, expected: tuple[int, int | None, int | None]) -> None:
    assert parse_byte_range(value) == expected


@pytest.mark.parametrize("value", ["*-*/*", "1-2", "+1-2/2", "1-2/2 ", ""])
def test_bad_byte_range(value: str) -> None:
    with pytest.raises(FrameError):
        parse_byte_range(value)
