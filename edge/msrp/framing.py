"""Cutting a byte stream into MSRP frames (RFC 4975 §7.1, §7.3).

`FrameReader` reads any frame there can be; a frame that is whole goes to its sink in one call, a SEND that is not is
streamed: its head as soon as the head is whole, then body octets as they come.

    idle ── whole frame ──────────────────────────────► sink.handle_frame                     idle
      │ ─── SEND, more than HOLD_LIMIT octets of body ► sink.begin_send, handle_body ──► streaming
      │ ─── part of anything else ────────────────────► kept in `rest`                        idle
      └──── nothing that can be framed ───────────────► sink.handle_broken                  broken
    streaming ── octets ──► handle_body ── end-line ──► end_send                              idle

A small frame waits until it is whole, so that it can leave with an exact range; `promote` gives up that wait.
"""

from __future__ import annotations

from typing import Protocol

from edge.errors import RemoteError
from edge.msrp.frame import (
    HEAD_LIMIT,
    LINE_LIMIT,
    OTHER_BODY_LIMIT,
    START_LINE_LIMIT,
    Head,
    StartLine,
    parse_start_line,
    salvage_start_line,
)

END_LINE = b"\r\n-------"
FLAGS = {b"$\r\n": b"$", b"+\r\n": b"+", b"#\r\n": b"#"}
END_ROOM = len(END_LINE) + 32 + 3  # the longest end-line
# A SEND is streamed when so much body is there that a first piece of 2048 octets can leave, one octet kept back.
HOLD_LIMIT = 2048 + 1 + END_ROOM
STRAY_LIMIT = 64
_WINDOW = 8192
_PREFIX = b"MSRP "


# Where the reader is in the stream; plain numbers, because every read asks.
IDLE = 0
STREAMING = 1
BROKEN = 2
HELD = 3  # somebody decides about the frame that came last


class Frame:
    """One whole frame; its body is `data[body_at:stop]`, `plain` when no end-line of another id stands in it."""

    __slots__ = ("body_at", "data", "flag", "head", "plain", "stop")

    def __init__(self, head: Head, data: bytes, body_at: int, stop: int) -> None:
        self.head = head
        self.data = data
        self.body_at = body_at
        self.stop = stop
        self.flag = b"$"
        self.plain = True


class FrameSink(Protocol):
    """What is told about frames. `handle_broken` is the last call: nothing after it can be framed.

    `body` is only good during the call; `plain` says that no end-line of whatever id stands or begins in it.
    """

    def handle_frame(self, frame: Frame, now: float) -> None:
        """Take a whole frame."""
        ...

    def begin_send(self, head: Head, now: float) -> None:
        """Take the head of a SEND whose body follows."""
        ...

    def handle_body(self, body: memoryview, plain: bool, now: float) -> None:
        """Take body octets."""
        ...

    def end_send(self, flag: bytes, now: float) -> None:
        """Take the end of the SEND that was begun."""
        ...

    def handle_broken(self, label: str, head: Head | None, now: float) -> None:
        """Nothing more can be framed; `head` is what could be read of the frame that broke the stream."""
        ...


class FrameReader:
    """Read frames from one stream.

    `rest` is what was read and is no whole frame yet, at most a head and a small body; it belongs in front of the next
    read. `whole` is set by who put a frame there himself: the octets that it will have.
    """

    __slots__ = ("_held_in", "_needle", "_sink", "_stray", "rest", "state", "whole")

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._needle = b""
        self._stray = 0
        self.rest = b""
        self.whole = 0
        self.state = IDLE
        self._held_in = IDLE

    @property
    def idle(self) -> bool:
        """Whether all that came were whole frames."""
        return not self.rest and (self.state == IDLE or (self.state == HELD and self._held_in == IDLE))

    def hold(self) -> None:
        """Keep what comes from now on in `rest`; for use by a sink, about the frame it was just told of."""
        self._held_in = self.state
        self.state = HELD

    def release(self) -> None:
        """Take `hold` back; what is in `rest` is to be fed again."""
        if self.state == HELD:
            self.state = self._held_in

    def receive(self, data: bytes, now: float) -> None:
        """Read what came; for use without the short cut for frames of every day."""
        if self.rest:
            data, self.rest = self.rest + data, b""
        position = 0
        while position < len(data):
            position = self.feed(data, position, now)

    def feed(self, data: bytes, position: int, now: float) -> int:
        """Read one frame, or the part of one that is there; return where to go on in `data`."""
        if self.state == IDLE:
            return self._read_frame(data, position, now, HOLD_LIMIT)
        if self.state == STREAMING:
            return self._read_body(data, position, now)
        if self.state == HELD:
            self.rest = data[position:]
        return len(data)

    def promote(self, now: float) -> None:
        """Stream the SEND that waits in `rest` to become whole, if its head is complete."""
        if self.state == IDLE and self.rest:
            data, self.rest, self.whole = self.rest, b"", 0
            self._read_frame(data, 0, now, 0)

    # -- heads

    def _read_frame(self, data: bytes, position: int, now: float, hold: int) -> int:
        if data[position] in b"\r\n":
            return self._skip_stray(data, position, now)
        end = data.find(b"\r\n", position, position + START_LINE_LIMIT + 2)
        if end < 0:
            limit = LINE_LIMIT if _is_response(data, position) else START_LINE_LIMIT  # comments may be long
            end = data.find(b"\r\n", position, position + limit + 2)
            if end < 0:
                return self._await_start_line(data, position, limit, now)
        if data.find(b"\n", position, end) >= 0:  # the same end as when it comes in two reads
            return self._break("start_line", None, data, now)
        try:
            start = parse_start_line(data[position:end])
        except RemoteError as error:
            if not error.status:
                return self._break("start_line", None, data, now)
            start = salvage_start_line(data[position:end])
        self._stray = 0
        return self._read_head(start, data, position, end, now=now, hold=hold)

    def _skip_stray(self, data: bytes, position: int, now: float) -> int:
        size = len(data)
        while position < size and data[position] in b"\r\n":
            position += 1
            self._stray += 1
        if self._stray > STRAY_LIMIT:
            return self._break("stray", None, data, now)
        return position

    def _await_start_line(self, data: bytes, position: int, limit: int, now: float) -> int:
        part = data[position : position + limit + 2]
        known = _PREFIX.startswith(part[:5]) if len(part) < 5 else part.startswith(_PREFIX)
        if not known or len(part) > limit or b"\n" in part:
            return self._break("start_line", None, data, now)
        return self._wait(data, position)

    def _read_head(self, start: StartLine, data: bytes, position: int, end: int, *, now: float, hold: int) -> int:
        blank = data.find(b"\r\n\r\n", end, end + HEAD_LIMIT + 4)
        line = data.find(END_LINE, end, blank if blank >= 0 else end + HEAD_LIMIT + 4)
        if line >= 0:
            return self._read_bodiless(start, data, position, end, line=line, now=now)
        if blank < 0:
            return self._await_head(start, data, position, end, now=now)
        body_at = blank + 4
        stop, after, flag, plain = find_end(data, body_at, END_LINE + start.transaction_id)
        if not flag and not self._may_stream(start, data, body_at, hold):
            if start.method == b"SEND" or len(data) - body_at <= OTHER_BODY_LIMIT + END_ROOM:
                return self._wait(data, position)
        head = Head(start, data[end + 2 : blank + 2], True)
        if start.method != b"SEND" and (not flag or stop - body_at > OTHER_BODY_LIMIT):
            return self._break("body_limit", head, data, now)
        if not flag:
            return self._begin(head, data, body_at, stop, plain=plain, now=now)
        frame = Frame(head, data, body_at, stop)
        frame.flag, frame.plain = flag, plain
        self._sink.handle_frame(frame, now)
        return after

    @staticmethod
    def _may_stream(start: StartLine, data: bytes, body_at: int, hold: int) -> bool:
        return start.method == b"SEND" and len(data) - body_at >= hold

    def _begin(self, head: Head, data: bytes, body_at: int, stop: int, *, plain: bool, now: float) -> int:
        self.state = STREAMING
        self._needle = END_LINE + head.start.transaction_id
        self._sink.begin_send(head, now)
        if self.state == STREAMING:
            self._keep_tail(data, body_at, stop, plain=plain, now=now)
        elif self.state == HELD:
            self.rest = data[body_at:]
        return len(data)

    def _read_bodiless(self, start: StartLine, data: bytes, position: int, end: int, *, line: int, now: float) -> int:
        after = line + len(END_LINE) + len(start.transaction_id)
        flag = FLAGS.get(data[after : after + 3])
        right = data.startswith(start.transaction_id, line + len(END_LINE))
        head_size = line + 2 - end - 2
        if flag is None or not right:
            if len(data) < after + 3 and (END_LINE + start.transaction_id).startswith(data[line:after]):
                return self._wait(data, position)
            return self._break("end_line", Head(start, data[end + 2 : line + 2], False), data, now)
        frame = Frame(Head(start, data[end + 2 : end + 2 + head_size], False), data, line, line)
        frame.flag = flag
        self._sink.handle_frame(frame, now)
        return after + 3

    def _await_head(self, start: StartLine, data: bytes, position: int, end: int, *, now: float) -> int:
        if len(data) - end > HEAD_LIMIT or _has_long_line(data, end):
            block = data[end + 2 : end + 2 + HEAD_LIMIT]
            return self._break("limit", Head(start, block[: block.rfind(b"\r\n") + 2], True), data, now)
        return self._wait(data, position)

    # -- bodies

    def _read_body(self, data: bytes, position: int, now: float) -> int:
        stop, after, flag, plain = find_end(data, position, self._needle)
        if not flag:
            self._keep_tail(data, position, stop, plain=plain, now=now)
            return len(data)
        if stop > position:
            self._sink.handle_body(memoryview(data)[position:stop], plain, now)
        if self.state == STREAMING:
            self.state = IDLE
            self._sink.end_send(flag, now)
        return after

    def _keep_tail(self, data: bytes, position: int, stop: int, *, plain: bool, now: float) -> None:
        if stop < len(data):
            self.rest = data[stop:]
        if stop > position:
            self._sink.handle_body(memoryview(data)[position:stop], plain, now)

    # -- ends

    def _wait(self, data: bytes, position: int) -> int:
        self.rest = data[position:]
        return len(data)

    def stop(self) -> None:
        """Read nothing any more."""
        self.state = BROKEN
        self.rest = b""
        self.whole = 0

    def _break(self, label: str, head: Head | None, data: bytes, now: float) -> int:
        self.stop()
        self._sink.handle_broken(label, head, now)
        return len(data)


def _is_response(data: bytes, position: int) -> bool:
    """Tell whether a status code stands where a request has its method."""
    words = data[position : position + START_LINE_LIMIT].split(b" ", 3)
    return len(words) == 4 and words[2].isdigit()


def _has_long_line(data: bytes, end: int) -> bool:
    return any(len(line) > LINE_LIMIT for line in data[end : end + HEAD_LIMIT].split(b"\r\n"))


def find_end(data: bytes, position: int, needle: bytes) -> tuple[int, int, bytes, bool]:
    """Find the end-line of a body (RFC 4975 §7.1); `needle` is its CRLF, hyphens and transaction id.

    Returns (where the body stops, where the next frame starts, flag, whether no other end-line stands before). Without
    an end-line the flag is empty and the body stops where one may have begun.
    """
    size = len(data)
    first = stop = find_line(data, position)
    if stop < 0:
        tail = data.rfind(b"\r", max(position, size - len(END_LINE) + 1))
        return (tail if tail >= 0 and END_LINE.startswith(data[tail:]) else size), 0, b"", True
    while stop >= 0:
        after = stop + len(needle)
        trailer = data[after : after + 3]
        flag = FLAGS.get(trailer) if data.startswith(needle, stop) else None
        if flag is not None:
            return stop, after + 3, flag, stop == first
        if after + 3 > size and _may_become(data[stop:], needle):
            return stop, 0, b"", stop == first
        stop = data.find(END_LINE, stop + 1)
    tail = data.rfind(b"\r", max(position, size - len(END_LINE) + 1))
    return (tail if tail >= 0 and END_LINE.startswith(data[tail:]) else size), 0, b"", False


def find_line(data: bytes, position: int) -> int:
    """Find the first end-line of whatever id from `position` on; -1 if there is none.

    Searching backwards is three times faster here, so look into one window after the other that way first.
    """
    last = data.rfind(END_LINE, position)
    while position <= last:
        stop = position + _WINDOW
        if data.rfind(END_LINE, position, stop) >= 0:
            return data.find(END_LINE, position, stop)
        position = stop - len(END_LINE) + 1
    return -1


def _may_become(part: bytes, needle: bytes) -> bool:
    """Tell whether more octets could make `part` an end-line."""
    return any((needle + flag).startswith(part) for flag in FLAGS)
