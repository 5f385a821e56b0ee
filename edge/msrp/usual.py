"""The frames of every day, read by one expression (sans-IO): a SEND with the usual headers, a 200 without surprises."""

from __future__ import annotations

import re

from edge.msrp.frame import TRANSACTION_ID
from edge.msrp.framing import END_LINE, find_line

_END = len(END_LINE)

# The headers of the SEND stand in the order most clients write them.
USUAL = re.compile(
    rb"MSRP (" + TRANSACTION_ID + rb") (?:SEND\r\n"
    rb"(To-Path: .+\r\nFrom-Path: .+\r\n)"
    rb"(Message-ID: [!-~]{1,256}\r\n"
    rb"(?:Success-Report: (?:yes|no)\r\n)?"
    rb"(?:Failure-Report: (yes|no|partial)\r\n)?"
    rb"Byte-Range: ([1-9][0-9]{0,17})-([0-9]{1,18}|\*)/([0-9]{1,18}|\*)\r\n"
    rb"(?:Failure-Report: (yes|no|partial)\r\n)?"
    rb"Content-Type: [ -~]{1,256}\r\n)\r\n"
    rb"|200(?: [^\x00-\x1f\x7f]*)?\r\n(To-Path: .+\r\n)From-Path: .+\r\n-------\1\$\r\n)"
).match
FLAGS = {b"$\r\n": True, b"+\r\n": False, b"#\r\n": False}


def expect_end(data: bytes, body_at: int, start: bytes, end: bytes) -> int:
    """Find where the body stops, the first end-line of any id, looking first where Byte-Range says."""
    if end.isdigit():
        expected = body_at + int(end) - int(start) + 1
        if expected >= len(data):
            return -1
        # Backwards is two times faster, and no end-line before the expected one makes that the first.
        if data.startswith(END_LINE, expected) and data.rfind(END_LINE, body_at, max(expected + _END - 1, body_at)) < 0:
            return expected
    return find_line(data, body_at)


def is_plausible(start: bytes, end: bytes, total: bytes) -> bool:
    """Tell whether the numbers of a Byte-Range go together (RFC 4975 §7.1.1)."""
    first = int(start)
    if end == b"*":
        return total == b"*" or first - 1 <= int(total)
    last = int(end)
    return last >= first - 1 and (total == b"*" or last <= int(total))


def measure_cut(match: re.Match[bytes], data: bytes, position: int, limit: int) -> int:
    """Say how many octets a SEND at `position` will have whose end is not there yet; 0 if not known, or over `limit`.

    The limit is for its body.
    """
    start, end = match[5], match[6]
    if end == b"*" or find_line(data, match.end()) >= 0:
        return 0
    length = int(end) - int(start) + 1
    whole = match.end() - position + length + _END + len(match[1]) + 3
    return whole if length <= limit and whole > len(data) - position else 0
