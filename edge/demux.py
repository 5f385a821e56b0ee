"""Which protocol do these first bytes speak? One port, so the bytes decide (sans-IO).

A stream is decided once and stays what it is; a datagram is decided each time.

    stream     CRLF ... ──► skipped, a double one is owed a pong
               "MSRP " ──► MSRP                          decided after five octets
               "SIP/"  ──► SIP (a response)              decided after four octets
               token URI "SIP/x.y"  ──► SIP              decided at the end of the line
               token URI "HTTP/1.x" ──► HTTP             decided at the end of the line
               anything else        ──► close            as soon as no row fits any more
    datagram   blanks ──► KEEPALIVE    STUN cookie and length ──► STUN    SIP start line ──► SIP    else junk

A PROXY header and TLS come before all that and are the listener's affair; it asks `is_tls` about the octets it
peeked at. Bytes of another protocol *later* on a connection are for the framers to refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

CRLF = b"\r\n"

_HALF_PING_S = 1.0  # a single CRLF older than this is no longer the first half of a ping
_KEEPALIVE_LIMIT = 64  # such octets before the first message
_SMALLEST_DATAGRAM = 32
_STUN_COOKIE = b"\x21\x12\xa4\x42"

_TOKEN = rb"[A-Za-z0-9\-.!%*_+`'~]"
_TOKEN_OCTETS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.!%*_+`'~")
_METHOD = re.compile(rb"[!-~]*")
_COMMON = re.compile(_TOKEN + rb"[!-~]* [^\r\n]* SIP/2\.0\r\n")
_REQUEST = re.compile(_TOKEN + rb"[!-~]* (.*[^ \t])[ \t]+((?:SIP|HTTP)/[0-9]+\.[0-9]+)[ \t]*\r?", re.IGNORECASE)
_SIP_URI = re.compile(rb"[ <]*[A-Za-z][A-Za-z0-9+.\-]*:")
_LONG_SIP = re.compile(_TOKEN + rb"[!-~]* (?:sips?|tel):", re.IGNORECASE)
_BLANKS = b"\r\n\x00 "


class Protocol(Enum):
    """What a connection carries."""

    SIP = "sip"
    MSRP = "msrp"
    HTTP = "http"


class DatagramKind(Enum):
    """What a datagram is; all but the first three are dropped without an answer, counted under their value."""

    SIP = "sip"
    STUN = "stun"
    KEEPALIVE = "keepalive"
    SHORT = "short"
    BAD_STUN = "bad_stun"
    DTLS = "dtls"
    BINARY = "binary"
    JUNK = "junk"


@dataclass(frozen=True, slots=True)
class Decision:
    """The end of sniffing. `data` are all octets from the first one of the message on.

    `protocol` is None where the connection is to be closed without an answer, for `reason`: keepalive_flood, tls, stun,
    proxy_header, http2, start_line or junk.
    """

    protocol: Protocol | None
    data: bytes
    reason: str = ""


def is_tls(first: bytes) -> bool:
    """Tell whether a stream that starts with `first` (one octet or more) begins a TLS handshake (RFC 8446 §5.1).

    Looks at up to six octets: handshake record, version 3.0 to 3.4, a length of 1 to 16384, ClientHello. What is not
    there yet counts as right.
    """
    if first[0] != 0x16:
        return False
    length = int.from_bytes(first[3:5], "big") if len(first) >= 5 else 1
    return (
        first[1:2] in (b"", b"\x03") and first[2:3] <= b"\x04" and 1 <= length <= 16384 and first[5:6] in (b"", b"\x01")
    )


class PingScanner:
    """Skip the CRLF keep-alives in front of a message and count the pings among them (RFC 5626 §4.4.1).

    Two CRLF make a ping, in one read or in several; a single one is a pong or filler. A first half older than one
    second is forgotten, and so is one that something else follows: in the same read `scan` sees that, else the caller
    says so with `forget`.
    """

    __slots__ = ("_half_at", "pings")

    def __init__(self) -> None:
        self.pings = 0  # found by the last call of `scan`
        self._half_at = -_HALF_PING_S

    def forget(self) -> None:
        """Something else came: a CRLF before it is no half of a ping behind it."""
        self._half_at = -_HALF_PING_S

    def is_whole(self, now: float) -> bool:
        """Whether no first half waits for its second."""
        return now - self._half_at >= _HALF_PING_S

    def scan(self, data: bytes, now: float, start: int = 0) -> int:
        """Return where the whole CRLFs that begin at `start` end; `pings` says how many answers are owed.

        A CR at the very end of `data` is not taken: call again with it in front when more has come.
        """
        end = start
        while data.startswith(CRLF, end):
            end += 2
        lines = (end - start) // 2
        if lines and not self.is_whole(now):
            lines += 1
        self.pings, odd = divmod(lines, 2)
        rest = data[end : end + 1]
        if rest and rest != b"\r":
            self.forget()
        elif end > start:
            self._half_at = now if odd else -_HALF_PING_S
        return end


class StreamSniffer:
    """Find the protocol of a stream from its first octets (RFC 3261 §7.1, RFC 4975 §7.1, RFC 6455 §4.2.1).

    Keeps at most one start line. `pongs` says how many CRLFs the last call owes the peer, to be sent before anything
    else, also when the call decided to close.
    """

    __slots__ = ("_buffer", "_keepalives", "_limit", "_method_done", "_pinged", "_pings", "_scanned", "pongs")

    def __init__(self, start_line: int = 4096) -> None:
        self._limit = start_line
        self._buffer = b""
        self._scanned = 0  # octets of the buffer known to hold no LF
        self._method_done = False
        self._keepalives = 0
        self._pinged = False  # the octets right before the buffer were a ping
        self._pings = PingScanner()
        self.pongs = 0

    @property
    def waiting(self) -> bool:
        """Whether half a first line is there."""
        return bool(self._buffer)

    def receive_data(self, data: bytes, now: float) -> Decision | None:
        """Take the next octets; returns the decision once a row of the table can decide, then is done."""
        self.pongs = 0
        if not self._buffer:
            if data.startswith(b"MSRP "):
                return Decision(Protocol.MSRP, data)
            line = _COMMON.match(data)
            if line is not None and line.end() <= self._limit:
                return Decision(Protocol.SIP, data)
        self._buffer += data
        if not self._scanned and not self._skip_keepalives(now):
            return self._close("keepalive_flood")
        return self._decide() if self._buffer else None

    def _skip_keepalives(self, now: float) -> bool:
        skipped = self._pings.scan(self._buffer, now)
        if not skipped:
            return True
        self._keepalives += skipped
        self._pinged = self._pings.pings > 0
        self._buffer = self._buffer[skipped:]
        if self._keepalives > _KEEPALIVE_LIMIT:
            return False
        self.pongs = self._pings.pings
        return True

    def _decide(self) -> Decision | None:
        buffer = self._buffer
        if buffer[0] not in _TOKEN_OCTETS:
            return None if buffer == b"\r" else self._close(self._name_junk(buffer[0]))
        if buffer.startswith(b"MSRP "):
            return Decision(Protocol.MSRP, buffer)
        if buffer[:4].upper() == b"SIP/":
            return Decision(Protocol.SIP, buffer)
        end = buffer.find(b"\n", self._scanned, self._limit)
        if end >= 0:
            return self._decide_line(end)
        if not self._check_method():
            return self._close("junk")
        self._scanned = len(buffer)
        return self._decide_long() if len(buffer) >= self._limit else None

    def _name_junk(self, first: int) -> str:
        if first == 0x16:
            return "tls"
        if first == 0 and self._pinged:
            return "proxy_header"
        return "stun" if first <= 3 else "junk"

    def _check_method(self) -> bool:
        """Refuse early what can become no start line: only visible characters stand before its first blank."""
        if not self._method_done:
            run = _METHOD.match(self._buffer, self._scanned)
            stop = run.end() if run is not None else 0
            self._method_done = stop < len(self._buffer)
            return not self._method_done or self._buffer[stop] == 0x20
        return True

    def _decide_line(self, end: int) -> Decision:
        match = _REQUEST.fullmatch(self._buffer, 0, end)
        if match is None:
            return self._close("junk")
        version = match[2]
        if version in (b"HTTP/1.1", b"HTTP/1.0"):
            return Decision(Protocol.HTTP, self._buffer)
        if version.upper() == b"SIP/2.0" or (version[:3].upper() == b"SIP" and _SIP_URI.match(match[1])):
            return Decision(Protocol.SIP, self._buffer)
        return self._close("http2" if version == b"HTTP/2.0" else "junk")

    def _decide_long(self) -> Decision:
        """No end of line within the limit: what is SIP so far gets its 414 from the SIP framer."""
        if _LONG_SIP.match(self._buffer):
            return Decision(Protocol.SIP, self._buffer)
        return self._close("start_line")

    def _close(self, reason: str) -> Decision:
        return Decision(None, self._buffer, reason)


def classify_datagram(data: bytes) -> DatagramKind:
    """Say what one datagram is (RFC 8489 §5, RFC 7983 §7, RFC 3261 §7.1).

    CRLFs in front of a SIP start line are allowed; who reads the message removes them.
    """
    if len(data) >= _SMALLEST_DATAGRAM and (_COMMON.match(data) or data.startswith(b"SIP/2.0 ")):
        return DatagramKind.SIP
    if not data.strip(_BLANKS):
        return DatagramKind.KEEPALIVE
    first = data[0]
    if first < 0x40 and _is_stun(data):
        return DatagramKind.STUN
    if first <= 0x03:
        return DatagramKind.BAD_STUN
    if 0x14 <= first <= 0x19 and data[1:3] in (b"\xfe\xff", b"\xfe\xfd"):
        return DatagramKind.DTLS
    if first >= 0x80:
        return DatagramKind.BINARY
    if len(data) < _SMALLEST_DATAGRAM:
        return DatagramKind.SHORT
    return DatagramKind.SIP if _is_sip(data.lstrip(CRLF)) else DatagramKind.JUNK


def _is_stun(data: bytes) -> bool:
    length = len(data) - 20
    return length >= 0 and not length % 4 and data[4:8] == _STUN_COOKIE and int.from_bytes(data[2:4], "big") == length


def _is_sip(data: bytes) -> bool:
    if data[:4].upper() == b"SIP/":
        return True
    match = _REQUEST.fullmatch(data, 0, max(data.find(b"\n"), 0))
    return match is not None and match[2][:3].upper() == b"SIP"
