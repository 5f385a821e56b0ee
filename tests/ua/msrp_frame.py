"""MSRP frames on bytes: a streaming reader and a builder, written from RFC 4975 §9.

The reader is strict, because it judges what a relay sends: a frame that breaks the grammar raises. Header
lines keep their spelling; names compare without case.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from tests.ua.link import Link

MAX_HEAD = 65536
KEEP_BODY = 65536

_START = re.compile(rb"MSRP ([A-Za-z0-9][A-Za-z0-9.\-+%=]{3,31}) (?:([A-Z]+)|([0-9]{3})(?: ([^\r\n]*))?)")
_HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*):([^\r\n]*)")
_RANGE = re.compile(r"([0-9]+)-([0-9]+|\*)/([0-9]+|\*)")

Headers = Iterable[tuple[str, str]]


class FrameError(ValueError):
    """What arrived is no MSRP frame."""


@dataclass(slots=True)
class Frame:
    """One request or response. `head` runs from the start line to the last octet before the body or end-line.

    Of a long body only the first `KEEP_BODY` octets are kept in `body`; `body_octets` counts them all. `flag`
    is empty while the frame is still open.
    """

    head: bytes
    transaction_id: str
    method: str = ""
    status: int = 0
    comment: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    has_body: bool = False
    body: bytearray = field(default_factory=bytearray, repr=False)
    body_octets: int = 0
    flag: str = ""
    link: Optional["Link"] = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def to_path(self) -> list[str]:
        return self["To-Path"].split()

    @property
    def from_path(self) -> list[str]:
        return self["From-Path"].split()

    @property
    def byte_range(self) -> tuple[int, int | None, int | None]:
        """Start, end and total of Byte-Range; (1, None, None) where it is absent (§7.3.1). Raises FrameError."""
        value = self.get("Byte-Range")
        return (1, None, None) if value is None else parse_byte_range(value)

    @property
    def raw(self) -> bytes:
        """The frame exactly as on the wire; raises FrameError if the body was too long to be kept."""
        if self.body_octets != len(self.body):
            raise FrameError(f"only {len(self.body)} of {self.body_octets} body octets were kept")
        return self.head + bytes(self.body) + end_line(self)

    def add(self, data: bytes) -> None:
        """Count body octets and keep the first ones."""
        self.body_octets += len(data)
        if len(self.body) < KEEP_BODY:
            self.body += data[: KEEP_BODY - len(self.body)]


def end_line(frame: Frame) -> bytes:
    """Return the end-line of a frame, with the CRLF that separates it from a body."""
    return (b"\r\n" if frame.has_body else b"") + b"-------" + f"{frame.transaction_id}{frame.flag}\r\n".encode()


def parse_byte_range(value: str) -> tuple[int, int | None, int | None]:
    """Read `start-end/total` (§7.1.1); `*` is None. Raises FrameError."""
    match = _RANGE.fullmatch(value)
    if match is None:
        raise FrameError(f"bad Byte-Range {value!r}")
    end, total = (None if text == "*" else int(text) for text in match.group(2, 3))
    return int(match[1]), end, total


def new_transaction_id() -> str:
    """Return 64 random bits as a transaction id."""
    return secrets.token_hex(8)


def build(
    start: str,
    to_path: Iterable[str],
    from_path: Iterable[str],
    headers: Headers = (),
    *,
    transaction_id: str | None = None,
    content_type: str | None = None,
    flag: str = "",
) -> Frame:
    """Start a frame: `start` is a method, or a status with an optional comment. The body is added by the caller.

    Content-Type goes last and brings the empty line, as §9 wants it; without it the frame is bodiless.
    """
    transaction_id = transaction_id or new_transaction_id()
    lines = [("To-Path", " ".join(to_path)), ("From-Path", " ".join(from_path)), *headers]
    if content_type is not None:
        lines.append(("Content-Type", content_type))
    text = f"MSRP {transaction_id} {start}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines)
    head = (text + ("\r\n" if content_type is not None else "")).encode("utf-8", "surrogateescape")
    word, _, comment = start.partition(" ")
    status = int(word) if word.isdigit() else 0
    return Frame(
        head, transaction_id, "" if status else word, status, comment, lines, content_type is not None, flag=flag
    )


class FrameReader:
    """Cuts bytes into frames, for any split of the stream.

    Args:
        on_head: called with the frame once its head is whole.
        on_body: called with body octets as they come; never with octets of the end-line.
        on_end: called when the end-line is there and `frame.flag` set.
    """

    def __init__(
        self,
        on_head: Callable[[Frame], None],
        on_body: Callable[[Frame, bytes], None],
        on_end: Callable[[Frame], None],
    ) -> None:
        self._on_head, self._on_body, self._on_end = on_head, on_body, on_end
        self._buffer = bytearray()
        self._line = 0  # where the line being read starts
        self._frame: Frame | None = None
        self._in_body = False

    def feed(self, data: bytes) -> None:
        """Take bytes. Raises FrameError; the reader is of no use after that."""
        self._buffer += data
        while self._buffer and (self._read_body() if self._in_body else self._read_line()):
            pass

    @property
    def idle(self) -> bool:
        """Whether the bytes so far end exactly between two frames."""
        return self._frame is None and not self._buffer

    def _read_line(self) -> bool:
        end = self._buffer.find(b"\r\n", self._line)
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise FrameError(f"no end of the head in {MAX_HEAD} octets: {bytes(self._buffer[:200])!r}")
            return False
        line, after = bytes(self._buffer[self._line : end]), end + 2
        if self._frame is None:
            self._frame = _parse_start(line)
        elif not line:
            self._end_head(after)
            return True
        elif _is_end_line(line, self._frame):
            self._end_head(self._line)
            del self._buffer[: len(line) + 2]
            self._end_frame(line[-1:])
            return True
        else:
            self._frame.headers.append(_parse_header(line))
        self._line = after
        return True

    def _end_head(self, size: int) -> None:
        """Take the head off the buffer; an empty line at its end means that a body follows."""
        frame = self._frame
        assert frame is not None
        frame.head = bytes(self._buffer[:size])
        frame.has_body = self._in_body = frame.head.endswith(b"\r\n\r\n")
        del self._buffer[:size]
        _check_head(frame)
        self._on_head(frame)

    def _read_body(self) -> bool:
        frame = self._frame
        assert frame is not None
        marker = b"\r\n-------" + frame.transaction_id.encode()
        position = self._buffer.find(marker)
        if position < 0:
            self._emit(len(self._buffer) - _overlap(self._buffer, marker))
            return False
        tail = bytes(self._buffer[position + len(marker) : position + len(marker) + 3])
        if re.fullmatch(rb"[$+#]\r\n", tail):
            self._emit(position)
            del self._buffer[: len(marker) + 3]
            self._end_frame(tail[:1])
            return True
        if re.fullmatch(rb"(?:[$+#]\r?)?", tail):
            self._emit(position)
            return False
        self._emit(position + 1)
        return True

    def _emit(self, size: int) -> None:
        if size:
            assert self._frame is not None
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._frame.add(data)
            self._on_body(self._frame, data)

    def _end_frame(self, flag: bytes) -> None:
        frame, self._frame = self._frame, None
        assert frame is not None
        self._line, self._in_body = 0, False
        frame.flag = flag.decode()
        if frame.status and frame.flag != "$":
            raise FrameError(f"a response ends with {frame.flag}: {frame.head!r}")
        self._on_end(frame)


def read_all(data: bytes) -> list[Frame]:
    """Read whole frames. Raises FrameError if anything is malformed or left over."""
    frames: list[Frame] = []
    reader = FrameReader(lambda frame: None, lambda frame, piece: None, frames.append)
    reader.feed(data)
    if not reader.idle:
        raise FrameError("the data ends inside a frame")
    return frames


def _parse_start(line: bytes) -> Frame:
    match = _START.fullmatch(line)
    if match is None:
        raise FrameError(f"bad start line {line[:200]!r}")
    identifier, method, status, comment = match.groups()
    return Frame(b"", identifier.decode(), (method or b"").decode(), int(status or 0), (comment or b"").decode("utf-8"))


def _parse_header(line: bytes) -> tuple[str, str]:
    match = _HEADER.fullmatch(line)
    if match is None or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line):
        raise FrameError(f"bad header line {line[:200]!r}")
    return match[1].decode(), match[2].decode("utf-8", "surrogateescape").strip(" \t")


def _is_end_line(line: bytes, frame: Frame) -> bool:
    return line[:-1] == b"-------" + frame.transaction_id.encode() and line[-1:] in (b"$", b"+", b"#")


def _check_head(frame: Frame) -> None:
    """Check the rules on headers: the two paths first, a Content-Type exactly where there is a body (§7.1, §9)."""
    names = [name.lower() for name, _ in frame.headers]
    if names[:2] != ["to-path", "from-path"] or not frame.to_path or not frame.from_path:
        raise FrameError(f"To-Path and From-Path do not come first: {frame.head!r}")
    if frame.has_body != ("content-type" in names):
        raise FrameError(f"body and Content-Type do not go together: {frame.head!r}")
    if frame.has_body and frame.status:
        raise FrameError(f"response with a body: {frame.head!r}")


def _overlap(buffer: bytearray, marker: bytes) -> int:
    """Return how many octets at the end of the buffer could be the start of the marker."""
    for size in range(min(len(marker), len(buffer)), 0, -1):
        if buffer.endswith(marker[:size]):
            return size
    return 0
