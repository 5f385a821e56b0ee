"""Messages put together from chunks (RFC 4975 §5.1, §7.3.1)."""

import hashlib
from typing import TYPE_CHECKING

from tests.ua.msrp_frame import Frame

if TYPE_CHECKING:
    from tests.ua.link import Link


class HashSink:
    """Takes a message's octets in order, remembers only their number and SHA-256."""

    def __init__(self) -> None:
        self.octets = 0
        self._hash = hashlib.sha256()

    def write(self, offset: int, data: bytes) -> None:
        """Take octets; raises ValueError if they do not follow the last ones."""
        if offset != self.octets:
            raise ValueError(f"octets at {offset}, expected at {self.octets}: a hash needs them in order")
        self.octets += len(data)
        self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of what came so far."""
        return self._hash.hexdigest()


class Received:
    """A message as it comes in. `data` has its octets unless a sink took them.

    Attributes:
        chunks: the frames it came in, in order. from_path: of the newest chunk.
        octets: length as far as known: the end of the farthest octet.
        overlap: octets that came more than once.
        complete: all octets from 1 to the end of the chunk flagged `$` are there. aborted: a chunk ended with `#`.
    """

    def __init__(self, frame: Frame, sink: HashSink | None = None) -> None:
        self.message_id = frame["Message-ID"]
        self.content_type = frame.get("Content-Type") or ""
        self.link: Link | None = frame.link
        self.from_path = frame.from_path
        self.chunks: list[Frame] = []
        self.data = bytearray()
        self.sink = sink
        self.total: int | None = None
        self.octets = 0
        self.overlap = 0
        self.complete = False
        self.aborted = False
        self._end: int | None = None
        self._position = 0
        self._spans: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        state = "complete" if self.complete else "aborted" if self.aborted else "open"
        return f"<Received {self.message_id} {state} {self.octets} octets in {len(self.chunks)} chunks>"

    @property
    def wants_success_report(self) -> bool:
        """Whether the sender asked for a REPORT on success."""
        return (self.chunks[-1].get("Success-Report") or "no").lower() == "yes"

    @property
    def sha256(self) -> str:
        """The SHA-256 of the octets, in hex."""
        return self.sink.hexdigest() if self.sink is not None else hashlib.sha256(self.data).hexdigest()

    def begin_chunk(self, frame: Frame) -> None:
        """Take the head of a chunk."""
        start, _, total = frame.byte_range
        self.chunks.append(frame)
        self.link, self.from_path = frame.link, frame.from_path
        self.total = self.total if total is None else total
        self._position = start - 1

    def write(self, data: bytes, frame: Frame) -> None:
        """Take body octets of the chunk begun last."""
        if self.sink is not None:
            self.sink.write(self._position, data)
        else:
            missing = self._position - len(self.data)
            if missing > 0:
                self.data += bytes(missing)
            self.data[self._position : self._position + len(data)] = data
        self._cover(self._position, self._position + len(data))
        self._position += len(data)
        self.octets = max(self.octets, self._position)

    def end_chunk(self, frame: Frame) -> None:
        """Take the end-line of a chunk."""
        if frame.flag == "#":
            self.aborted = True
        elif frame.flag == "$":
            self._end = self._position
        covered = self._spans in ([(0, self._end)], []) and (bool(self._spans) or self._end == 0)
        self.complete = not self.aborted and self._end is not None and covered

    def _cover(self, start: int, end: int) -> None:
        """Merge a span of octets into those we have."""
        apart = [(left, right) for left, right in self._spans if right < start or left > end]
        touching = [span for span in self._spans if span not in apart]
        self.overlap += sum(max(0, min(right, end) - max(left, start)) for left, right in touching)
        merged = min([start, *(left for left, _ in touching)]), max([end, *(right for _, right in touching)])
        self._spans = sorted([*apart, merged])
