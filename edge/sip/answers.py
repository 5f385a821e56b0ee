"""Answers we author ourselves (RFC 3261 §8.2.6), sans-IO.

What identifies the request (Via rows, From, To, Call-ID, CSeq) is copied octet for octet; the start line and the
headers of our own are written with `sipmessage`, once for each kind of answer, and remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sipmessage import MediaType, Response

from edge.sip import headers as h
from edge.sip.message import Message

REASONS: dict[int, str] = {
    100: "Trying", 200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 407: "Proxy Authentication Required", 408: "Request Timeout",
    413: "Request Entity Too Large", 414: "Request-URI Too Long", 416: "Unsupported URI Scheme", 420: "Bad Extension",
    421: "Extension Required", 422: "Session Interval Too Small", 423: "Interval Too Brief", 430: "Flow Failed",
    439: "First Hop Lacks Outbound Support", 440: "Max-Breadth Exceeded", 480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist", 482: "Loop Detected", 483: "Too Many Hops", 487: "Request Terminated",
    500: "Server Internal Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Server Time-out", 505: "Version Not Supported", 513: "Message Too Large",
}  # fmt: skip

NO_CONTENT = b"Content-Length: 0"
_TAG_MASK = (1 << 64) - 1


@lru_cache(maxsize=256)
def start_line(status: int, reason: str = "") -> bytes:
    """Write a status line; the phrase is ours, never a peer's."""
    message = Response(code=status, phrase=reason or REASONS.get(status, "Error"))
    return bytes(message).partition(b"\r\n")[0]


@lru_cache(maxsize=1)
def options_headers() -> tuple[bytes, ...]:
    """Return the headers of our 200 to OPTIONS (RFC 3261 §11.2): what a proxy can say; no Allow."""
    message = Response(code=200, phrase="OK")
    message.accept = [MediaType.parse("application/sdp")]
    message.headers.set("Accept-Encoding", "identity")
    message.headers.set("Accept-Language", "en")
    message.supported = ["path", "outbound"]
    return tuple(bytes(message).strip().split(b"\r\n")[1:])


class ToTags:
    """Makes To tags for our answers: the same for a repeat of a request, unguessable otherwise (a keyed SipHash)."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __call__(self, message: Message) -> bytes:
        """Return the tag for answers to `message`, whose Via has been read."""
        return b"%016x" % (hash((self._secret, message.via.branch, message.texts[h.CALL_ID])) & _TAG_MASK)


def build_answer(
    message: Message, status: int, tag: bytes = b"", extra: Sequence[bytes] = (), reason: str = ""
) -> bytes:
    """Write a bodiless answer to `message`.

    `tag` goes to To when that has none; b"" leaves it without (100). `extra` are whole header lines. Headers that the
    request lacks are left out, so that even a broken one can be answered.
    """
    lines = [start_line(status, reason)]
    first, rows = message.first, message.lines
    if message.repeats:
        lines += [rows[i] for i in message.indexes(h.VIA)]
    else:
        lines.append(rows[first[h.VIA]])
    if first[h.FROM]:
        lines.append(rows[first[h.FROM]])
    if first[h.TO]:
        lines.append(rows[first[h.TO]] if message.to_tag or not tag else rows[first[h.TO]] + b";tag=" + tag)
    if first[h.CALL_ID]:
        lines.append(rows[first[h.CALL_ID]])
    if first[h.CSEQ]:
        lines.append(rows[first[h.CSEQ]])
    lines += extra
    lines += (NO_CONTENT, b"", b"")
    return b"\r\n".join(lines)


def build_trying(message: Message) -> bytes:
    """Write a 100 Trying: no To tag, Timestamp echoed (RFC 3261 §8.2.6.1)."""
    index = message.first[h.TIMESTAMP]
    return build_answer(message, 100, extra=(message.lines[index],) if index else ())
