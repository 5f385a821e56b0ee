"""Every MSRP frame of a capture, judged by tshark and by the reader of `tests.ua`, which must see the same in it.

tshark's dissector takes every segment for a frame, so streams are put together, cut at the end-lines, and written to a
second file with one frame in each packet; what came in WebSocket messages is taken out of them first. Heads and
end-lines stand in that file as they were on the wire. Of bodies

- one too large for a packet loses its middle: both ends of it stay, `KEPT` octets each;
- one that is not text is blanked, because tshark tries to make sense of it;
- seven hyphens are blanked, because tshark takes any line that begins with them for the end-line, whatever its id.

What tshark does not look at is checked here: that the octets of a SEND are those its Byte-Range names, that the ids of
requests are used once on a connection, and that each response is the only one to a request that went the other way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.interop.capture import Capture, Stream, complaints, decode_as, read_streams, tshark, write_segments
from tests.ua.msrp_frame import Frame, end_line, read_all

KEPT = 16384

_FIELDS = {
    "messageid": "Message-ID",
    "byte.range": "Byte-Range",
    "success.report": "Success-Report",
    "failure.report": "Failure-Report",
    "status": "Status",
    "content.type": "Content-Type",
    "use.path": "Use-Path",
    "to.path": "To-Path",
    "from.path": "From-Path",
}


@dataclass(frozen=True, slots=True)
class WireFrame:
    """One MSRP frame as it was on the wire, the direction it went, and how the reader of `tests.ua` reads it."""

    stream: Stream
    raw: bytes
    read: Frame

    @property
    def what(self) -> str:
        """The method, or the status code."""
        return self.read.method or str(self.read.status)

    @property
    def for_tshark(self) -> bytes:
        """The frame with a body that tshark can take."""
        end = end_line(self.read)
        body = self.raw[len(self.read.head) : len(self.raw) - len(end)]
        if len(body) > 2 * KEPT:
            body = body[:KEPT] + body[-KEPT:]
        if not (self.read.get("Content-Type") or "").startswith("text/"):
            body = b"x" * len(body)
        return self.read.head + body.replace(b"-------", b"xxxxxxx") + end


def judge(capture: Capture, directory: Path, vanished: Collection[int] = ()) -> list[WireFrame]:
    """End the capture, fail the test if a frame of it is wrong, and return all of them, stream by stream.

    `vanished` are the ports of clients who left in the middle of a frame; nobody else may.
    """
    streams = read_streams(capture.stop())
    capture.path.unlink()
    frames = [frame for stream, data in streams.items() for frame in cut(stream, data, stream[0] in vanished)]
    assert frames, "no MSRP was captured"
    for frame in frames:
        check_range(frame)
    check_ids(frames)
    check_with_tshark(frames, directory / "frames.pcap")
    return frames


def sends(frames: list[WireFrame]) -> list[int]:
    """The sizes of the SENDs among these."""
    return [len(frame.raw) for frame in frames if frame.what == "SEND"]


# ------------------------------------------------------------------------------------------ cutting


def cut(stream: Stream, data: bytes, unfinished: bool = False) -> Iterator[WireFrame]:
    """The frames of a stream; `unfinished` is one that must end in the middle of a frame."""
    if data.startswith((b"GET ", b"HTTP/1.1 101 ")):
        for message in unwrapped(data):
            (frame,) = cut_frames(stream, message)  # RFC 7977 §5.1
            yield frame
    else:
        yield from cut_frames(stream, data, unfinished)


def cut_frames(stream: Stream, data: bytes, unfinished: bool = False) -> Iterator[WireFrame]:
    """Cut at the end-lines (RFC 4975 §7.1); fails the test where something else stands between two frames."""
    position = 0
    while position < len(data):
        start = re.compile(rb"MSRP ([A-Za-z0-9][A-Za-z0-9.\-+%=]{3,31}) ").match(data, position)
        assert start is not None, f"no start line at octet {position} of {stream}: {data[position : position + 80]!r}"
        end = re.compile(rb"\r\n-------" + re.escape(start[1]) + rb"[$#+]\r\n").search(data, start.end())
        if end is None and unfinished:
            return
        assert end is not None, f"no end-line for {start[1]!r} of {stream}"
        raw = data[position : end.end()]
        yield WireFrame(stream, raw, *read_all(raw))
        position = end.end()
    assert not unfinished, f"{stream} ends with a whole frame"


def unwrapped(data: bytes) -> Iterator[bytes]:
    """The messages of a stream that is a WebSocket, without extensions (RFC 6455 §5.2)."""
    position = data.index(b"\r\n\r\n") + 4
    message = b""
    while position < len(data):
        first, second = data[position : position + 2]
        assert first & 0x70 == 0, "reserved bits"
        size, position = second & 127, position + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, position = int.from_bytes(data[position : position + width], "big"), position + width
        key, position = (data[position : position + 4], position + 4) if second & 128 else (b"", position)
        payload, position = data[position : position + size], position + size
        assert position <= len(data), "the stream ends in a WebSocket frame"
        if first & 8:  # close, ping, pong
            continue
        message += unmasked(payload, key) if key else payload
        if first & 128:
            yield message
            message = b""
    assert not message, "the stream ends in a WebSocket message"


def unmasked(payload: bytes, key: bytes) -> bytes:
    """Undo the masking of a client (RFC 6455 §5.3)."""
    mask = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(payload), "big")


# ------------------------------------------------------------------------------------------ judging


def check_range(frame: WireFrame) -> None:
    """Fail the test if a SEND has other octets than its Byte-Range says (RFC 4975 §7.1.1), or ends elsewhere."""
    if frame.what != "SEND":
        return
    start, end, total = frame.read.byte_range
    last = start - 1 + frame.read.body_octets
    told = frame.read.head, frame.read.body_octets, frame.read.flag
    assert end in (None, last), told
    assert total is None or last <= total, told
    assert total in (None, last) or frame.read.flag != "$", told


def check_ids(frames: list[WireFrame]) -> None:
    """Fail the test if an id is used twice for requests of a connection, or a response is nobody's."""
    requests = Counter((frame.stream, frame.read.transaction_id) for frame in frames if frame.read.method)
    responses = Counter((frame.stream[::-1], frame.read.transaction_id) for frame in frames if frame.read.status)
    assert [key for key, count in requests.items() if count > 1] == []
    assert [key for key, count in responses.items() if count > 1 or key not in requests] == []


def check_with_tshark(frames: list[WireFrame], path: Path) -> None:
    """Let tshark dissect each frame; fail the test if it complains or sees something else than our reader.

    `path` is the file written for it, and gone afterwards.
    """
    write_segments(path, ((frame.stream, frame.for_tshark) for frame in frames))
    options = decode_as("msrp", *{port for frame in frames for port in frame.stream})
    assert complaints(path, "msrp", options) == []
    names = ("transaction.id", "method", "status.code", "end.line", "cnt.flg", *_FIELDS, "data")
    rows = tshark(path, *options, "-Y", "msrp", "-T", "fields", *(f"-emsrp.{name}" for name in names))
    assert len(rows) == len(frames)
    for (*seen, data), frame in zip(rows, frames, strict=True):
        assert seen == _as_read(frame.read), frame.read.head
        assert bool(data) == frame.read.has_body, frame.read.head
    path.unlink()


def _as_read(frame: Frame) -> list[str]:
    """What tshark should see in a frame."""
    identifier, status = frame.transaction_id, str(frame.status or "")
    # It names the transaction where it found it: in the start line and in the end-line.
    start = [f"{identifier},{identifier}", frame.method, status, f"-------{identifier}{frame.flag}", frame.flag]
    return start + [frame.get(header) or "" for header in _FIELDS.values()]
