"""MSRP frames as bytes: reading heads, writing frames of our own (RFC 4975 §7, §9).

    MSRP d93kswow SEND                      start line: transaction id, method or code
    To-Path: msrps://relay.example.com:2855/ab;tcp msrps://bob.example.com:2855/xy;tcp
    From-Path: msrps://alice.example.com:7777/zz;tcp
    Message-ID: 12339sdqwer                 the rest of the head, passed on untouched
    Byte-Range: 1-16/16
    Content-Type: text/plain
                                            an empty line only where there is a body
    Hi, I'm Alice!
    -------d93kswow$                        end-line: seven hyphens, transaction id, continuation flag

The frames of every day are recognised by one expression in `edge.msrp.handler`; what is here reads all others, and
finds out what is wrong with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edge.errors import RemoteError

START_LINE_LIMIT = 512
LINE_LIMIT = 8192
HEAD_LIMIT = 16384
LINES_LIMIT = 64
PATH_LIMIT = 16
MESSAGE_ID_LIMIT = 256
NUMBER_LIMIT = 2**63 - 1
OTHER_BODY_LIMIT = 10240  # bodies of requests other than SEND (RFC 4975 §7.1)
TRANSACTION_ID = rb"[A-Za-z0-9][A-Za-z0-9.\-+%=]{3,31}"

UNREADABLE = b"?"  # stands for a method that is none

COMMENTS = {
    200: b"OK",
    400: b"Bad request",
    401: b"Unauthorized",
    403: b"Forbidden",
    408: b"Downstream timeout",
    413: b"Stop",
    415: b"Unsupported Media Type",
    423: b"Interval Out-of-Bounds",
    481: b"Session does not exist",
    501: b"Unknown method",
    506: b"Session bound to another connection",
}

_START = re.compile(rb"MSRP (" + TRANSACTION_ID + rb") (?:([A-Z][A-Z_]*)|(\d{3})(?: ([^\x00-\x1f\x7f]*))?)")
_START_LIKE = re.compile(rb"MSRP (" + TRANSACTION_ID + rb") (.*)", re.DOTALL)
_BYTE_RANGE = re.compile(rb"(\d{1,19})-(?:(\d{1,19})|\*)/(?:(\d{1,19})|\*)")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~\-]*")
_ONCE = frozenset(
    (
        b"to-path", b"from-path", b"message-id", b"byte-range", b"status", b"success-report", b"failure-report",
        b"content-type", b"expires", b"use-path", b"authorization",
    )
)  # fmt: skip

Header = tuple[bytes, bytes]  # name in lower case, value without blanks around it


@dataclass(frozen=True, slots=True)
class StartLine:
    """The first line: `method` of a request, or `code` and `comment` of a response (then `method` is empty)."""

    transaction_id: bytes
    method: bytes
    code: int
    comment: bytes


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Byte-Range; octets count from 1, `end` and `total` are None where the peer wrote `*`."""

    start: int
    end: int | None
    total: int | None


class Head:
    """A start line and its headers, read completely.

    `error` is the first rule the head breaks, None when all is well; `fatal` says that the stream cannot be trusted any
    more after answering it. `to_path` and `from_path` are empty when they could not be read. `paths` are the two path
    lines and `rest` the lines after them, both with their line ends. `failure_report` is yes, no or partial.
    """

    __slots__ = (
        "error", "failure_report", "fatal", "from_path", "has_body", "headers", "paths", "range", "rest", "start",
        "success_report", "to_path",
    )  # fmt: skip

    def __init__(self, start: StartLine, block: bytes, has_body: bool) -> None:
        self.start = start
        self.has_body = has_body
        self.error: RemoteError | None = None
        self.fatal = False
        self.to_path: list[bytes] = []
        self.from_path: list[bytes] = []
        self.headers: list[Header] = []
        self.failure_report = b"yes"
        self.success_report = False
        self.range: ByteRange | None = None
        self.paths, self.rest = _split_paths(block)
        self._read(block)

    def first(self, name: bytes) -> bytes | None:
        """Value of the first header of this name (lower case), None without one."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        """Values of all headers of this name (lower case), in their order."""
        return [value for known, value in self.headers if known == name]

    @property
    def message_id(self) -> bytes:
        """Message-ID, empty without one."""
        return self.first(b"message-id") or b""

    def _read(self, block: bytes) -> None:
        lines = block.split(b"\r\n")
        lines.pop()
        self._read_lines(lines)
        if self.error is None:
            self._check_order()
        if self.error is None:
            try:
                self._check_values()
            except RemoteError as error:
                self.error = error

    def _read_lines(self, lines: list[bytes]) -> None:
        """Collect headers; goes on after a mistake, because an answer needs the paths."""
        if len(lines) > LINES_LIMIT or len(max(lines, key=len, default=b"")) > LINE_LIMIT:
            self._fail("limit", fatal=True)
        for line in lines[: 2 * LINES_LIMIT]:
            name, colon, value = line.partition(b":")
            if _CONTROL.search(line):
                self._fail("control", fatal=True)
            elif not colon or not _NAME.fullmatch(name):
                self._fail("header")
            else:
                self._add(name.lower(), value.strip(b" \t"))

    def _add(self, name: bytes, value: bytes) -> None:
        if name in _ONCE and self.first(name) is not None:
            self._fail("duplicate")
            return
        self.headers.append((name, value))
        if name in (b"to-path", b"from-path"):
            uris = value.split()
            if len(uris) > PATH_LIMIT:
                self._fail("limit", fatal=True)
            if name == b"to-path":
                self.to_path = uris
            else:
                self.from_path = uris
        elif name == b"failure-report" and value.lower() in (b"yes", b"no", b"partial"):
            self.failure_report = value.lower()

    def _fail(self, label: str, fatal: bool = False) -> None:
        self.fatal = self.fatal or fatal
        if self.error is None:
            self.error = RemoteError(400, label)

    def _check_order(self) -> None:
        if [name for name, _ in self.headers[:2]] != [b"to-path", b"from-path"]:
            self._fail("path_order")

    def _check_values(self) -> None:
        failure, success = self.first(b"failure-report"), self.first(b"success-report")
        if failure is not None and failure.lower() not in (b"yes", b"no", b"partial"):
            raise RemoteError(400, "failure_report", "Bad Failure-Report")
        if success is not None and success.lower() not in (b"yes", b"no"):
            raise RemoteError(400, "success_report", "Bad Success-Report")
        self.success_report = success is not None and success.lower() == b"yes"
        if len(self.message_id) > MESSAGE_ID_LIMIT:
            raise RemoteError(400, "message_id", "Bad Message-ID")
        if (value := self.first(b"byte-range")) is not None:
            self.range = parse_byte_range(value)


def parse_start_line(line: bytes) -> StartLine:
    """Read a start line without its CRLF (RFC 4975 §9).

    Raises:
        RemoteError: status 400 where at least the transaction id can be echoed, else 0 (label "start_line").
    """
    found = _START.fullmatch(line)
    if found is None:
        raise RemoteError(400 if _START_LIKE.fullmatch(line) else 0, "start_line")
    transaction_id, method, code, comment = found.groups()
    return StartLine(transaction_id, method or b"", int(code or 0), comment or b"")


def salvage_start_line(line: bytes) -> StartLine:
    """Take the transaction id out of a start line that `parse_start_line` refused with status 400.

    What comes back is a request with the method `UNREADABLE`, or a response with the code 0.
    """
    found = _START_LIKE.fullmatch(line)
    assert found is not None
    return StartLine(found[1], b"" if found[2][:1].isdigit() else UNREADABLE, 0, b"")


def _split_paths(block: bytes) -> tuple[bytes, bytes]:
    first = block.find(b"\r\n")
    second = block.find(b"\r\n", first + 2)
    return block[: second + 2], block[second + 2 :]


def parse_byte_range(value: bytes) -> ByteRange:
    """Read a Byte-Range value (RFC 4975 §7.1.1, syntax §9). The numbers are the sender's claim: never allocate by them.

    Raises:
        RemoteError: not `start-end/total`, or numbers that cannot be (status 400, label "byte_range").
    """
    found = _BYTE_RANGE.fullmatch(value)
    if found is None:
        raise RemoteError(400, "byte_range", "Bad Byte-Range")
    start = int(found[1])
    end = None if found[2] is None else int(found[2])
    total = None if found[3] is None else int(found[3])
    if start < 1 or max(start, end or 0, total or 0) > NUMBER_LIMIT:
        raise RemoteError(400, "byte_range", "Bad Byte-Range")
    if (end is not None and end < start - 1) or (total is not None and end is not None and end > total):
        raise RemoteError(400, "byte_range", "Bad Byte-Range")
    return ByteRange(start, end, total)


def encode_byte_range(start: int, end: int | None, total: int | None) -> bytes:
    """Write a Byte-Range value; None becomes `*`."""
    return b"%d-%b/%b" % (start, _number(end), _number(total))


def _number(value: int | None) -> bytes:
    return b"*" if value is None else b"%d" % value


def build_response(start: bytes, to_path: bytes, from_path: bytes, extra: Sequence[bytes] = ()) -> bytes:
    """Write a response (RFC 4975 §7.2).

    `start` is transaction id, code and comment ("d93kswow 200 OK"), the paths are header values, `extra` are header
    lines without line ends.
    """
    identifier = start.partition(b" ")[0]
    lines = (
        b"MSRP " + start,
        b"To-Path: " + to_path,
        b"From-Path: " + from_path,
        *extra,
        b"-------%b$\r\n" % identifier,
    )
    return b"\r\n".join(lines)


def build_report(identifier: bytes, paths: bytes, message_id: bytes, byte_range: bytes, status: bytes) -> bytes:
    """Write a REPORT (RFC 4975 §7.1.2) in the namespace 000.

    `paths` are the two path lines with their line ends, `status` is code and comment.
    """
    return b"MSRP %b REPORT\r\n%bMessage-ID: %b\r\nByte-Range: %b\r\nStatus: 000 %b\r\n-------%b$\r\n" % (
        identifier, paths, message_id, byte_range, status, identifier,
    )  # fmt: skip


def clean_comment(comment: bytes) -> bytes:
    """Make a peer's comment fit for a header of ours: at most 64 characters, no controls."""
    text = comment.decode("utf-8", "replace")
    return "".join(c for c in text if c.isprintable())[:64].encode()
