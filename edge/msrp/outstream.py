"""One incoming SEND chunk on its way out: its octets, its headers, and how far it has come (RFC 4975 §7.1.1)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edge.msrp.frame import Head, encode_byte_range
from edge.msrp.framing import END_LINE

if TYPE_CHECKING:
    from edge.msrp.route import Route

MIN_PIECE = 2048  # below it chunks must not be interrupted (RFC 4975 §7.1.1)


class OutStream:
    """One incoming SEND chunk on its way out.

    `position` is the number of the next octet that leaves, `flag` empty until the chunk's end-line came, `piece` the
    octets written of the piece that is open. `failed` says that its sender was told, so that nobody tells it again;
    `shortened` that fewer octets leave than its head names.
    """

    __slots__ = (
        "_parts", "_range_after", "_range_before", "begun", "failed", "flag", "has_body", "head", "lane", "last",
        "piece", "piece_start", "plain", "position", "queued", "route", "shortened", "size", "total", "transaction_id",
    )  # fmt: skip

    def __init__(self, route: Route, head: Head) -> None:
        self.route = route
        self.head = head
        self.has_body = head.has_body
        self.position = head.range.start if head.range else 1
        self.total = head.range.total if head.range else None
        self._range_before, self._range_after = _split_range(head)
        self._parts: deque[memoryview] = deque()
        # What keeps the octets of one message in order: the sender's connection and the Message-ID.
        self.lane = (route.source.connection.id, head.message_id)
        self.size = 0
        self.flag = b""
        self.plain = True  # nothing like an end-line has been seen in the body
        self.piece = 0
        self.piece_start = 0
        self.transaction_id = b""  # of the piece that is open
        self.last = b""  # the last octets of the open piece, where an end-line may have begun
        self.begun = False
        self.queued = False
        self.failed = False
        self.shortened = False

    def add(self, body: memoryview, plain: bool) -> None:
        """Take octets over; call `settle` before their buffer may go."""
        self._parts.append(body)
        self.plain = self.plain and plain
        self.size += len(body)
        self.route.source.buffered += len(body)

    def settle(self) -> None:
        """Keep the octets that wait, not the reads they came in."""
        if self._parts:
            self._parts = deque([memoryview(b"".join(self._parts))])

    def take(self, limit: int) -> memoryview:
        """Give the next octets away: at most `limit`, all from one `add`, never none while there are some."""
        part = self._parts.popleft()
        if len(part) > limit:
            self._parts.appendleft(part[limit:])
            part = part[:limit]
        self._count(-len(part))
        return part

    def take_all(self, count: int) -> list[memoryview]:
        """Give exactly `count` octets away, of which there are enough."""
        parts = []
        while count:
            part = self.take(count)
            count -= len(part)
            parts.append(part)
        return parts

    def put_back(self, part: memoryview) -> None:
        """Undo a part of `take`."""
        self._parts.appendleft(part)
        self._count(len(part))

    def drop(self, keep: int = 0) -> None:
        """Forget what waits, but for the first `keep` octets."""
        position, kept = self.position, self.take_all(min(keep, self.size))
        self.shortened = self.shortened or self.size > 0
        self.route.source.buffered -= self.size
        self._parts.clear()
        self.size = 0
        for part in kept:
            self.add(part, True)
        self.position = position

    def _count(self, change: int) -> None:
        self.size += change
        self.position -= change
        self.route.source.buffered += change

    def heads(self, end: int | None) -> bytes:
        """Write the headers after the paths for a piece from `position` to `end`, None if that is not known."""
        if not self.has_body:
            return self.head.rest
        return self._range_before + encode_byte_range(self.position, end, self.total) + self._range_after

    def whole_heads(self, websocket: bool) -> bytes:
        """Write them for the rest of the chunk: a number ends the range up to 2048 octets (RFC 4975 §7.1.1)."""
        if self.size > MIN_PIECE:
            return self.heads(None)
        if self.begun or self.shortened or (websocket and self.head.range is not None and self.head.range.end is None):
            return self.heads(self.position + self.size - 1)
        return self.head.rest if self.head.range else self.heads(None)

    def find_lookalike(self, part: bytes) -> int:
        """Find where the open piece must end because its own end-line stands in the body; -1 if nowhere.

        The answer lies inside the look-alike, which is what breaks it.
        """
        needle = END_LINE + self.transaction_id
        width = len(needle) - 1
        joint = self.last + part[:width]
        if needle in joint:
            return 0 if self.last else 1
        found = part.find(needle)
        if found >= 0:
            return found + 1
        self.last = (joint if len(part) < width else part)[-width:]
        return -1


def _split_range(head: Head) -> tuple[bytes, bytes]:
    """Split the header lines around the value of Byte-Range; without one, make room in front of the MIME headers."""
    lines = head.rest.split(b"\r\n")
    for number, line in enumerate(lines):
        if line[:11].lower() == b"byte-range:":
            before, after = lines[:number], lines[number + 1 :]
            break
    else:
        number = next((n for n, line in enumerate(lines) if line[:8].lower() == b"content-"), len(lines) - 1)
        before, after = lines[:number], lines[number:]
    return b"".join(line + b"\r\n" for line in before) + b"Byte-Range: ", b"\r\n" + b"\r\n".join(after)
