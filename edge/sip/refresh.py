"""Registrations that come again unchanged (RFC 3261 §10.2.4), sans-IO.

A phone refreshes its binding with the request it sent before: other branch, other CSeq, perhaps other credentials. Such a
request is recognised by comparing what its headers say, instead of reading them all once more. Whatever is not
the very same goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.connections import Connection
from edge.outbound.flows import Registration
from edge.sip import headers as h
from edge.sip.location import Binding
from edge.sip.message import Message

_REMEMBERED = 4096
_CRLF = b"\r\n"


class Refresh:
    """One registration as it was granted last: its request's header values, and the parts of its answer."""

    __slots__ = ("_granted", "_identity", "_lines", "_registration", "_texts", "_uri", "binding")

    def __init__(
        self,
        binding: Binding,
        registration: Registration,
        message: Message,
        granted: int,
        tag: bytes,
        lines: Sequence[bytes],
    ) -> None:
        self.binding = binding
        self._registration = registration
        self._granted = granted
        self._uri = message.uri
        self._texts = _comparable(message)
        first, rows = message.first, message.lines
        to = rows[first[h.TO]] if message.to_tag else rows[first[h.TO]] + b";tag=" + tag
        self._identity = _CRLF.join((rows[first[h.FROM]], to, rows[first[h.CALL_ID]]))
        self._lines = _CRLF.join(lines)

    def repeats(self, connection: Connection, message: Message) -> bool:
        """Whether `message` asks for the same again, later, over the same flow. Fills its `cseq` if so."""
        if (
            message.repeats
            or self.binding.connection is not connection
            or message.uri != self._uri
            or _comparable(message) != self._texts
        ):
            return False
        number, _, method = message.texts[h.CSEQ].strip(b" \t").partition(b" ")
        if method != b"REGISTER" or not number.isdigit() or len(number) > 9:
            return False
        message.cseq = int(number)
        return message.cseq > self.binding.cseq

    def renew(self, cseq: int, now: float) -> None:
        """Renew the binding; its timers find out by themselves."""
        binding = self.binding
        binding.cseq = cseq
        binding.refreshed_at = now
        binding.expires_at = self._registration.expires_at = now + self._granted

    def write_ok(self, message: Message, date: bytes) -> bytes:
        """Write the 200."""
        return self.write(b"SIP/2.0 200 OK", message, (self._lines, date))

    def write(self, start_line: bytes, message: Message, extra: Sequence[bytes]) -> bytes:
        """Write an answer with the header lines `extra`."""
        first, rows = message.first, message.lines
        return b"%b\r\n%b\r\n%b\r\n%b\r\n%b\r\nContent-Length: 0\r\n\r\n" % (
            start_line,
            rows[first[h.VIA]],
            self._identity,
            rows[first[h.CSEQ]],
            _CRLF.join(extra),
        )


class Refreshes:
    """What is remembered of registrations, by connection; bounded, emptied when full."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Refresh] = {}

    def find(self, connection: Connection, message: Message) -> Refresh | None:
        """Return the registration that `message` refreshes, None when it is to be read as any other."""
        known = self._known.get(connection.id)
        return known if known is not None and known.repeats(connection, message) else None

    def remember(self, connection: Connection, refresh: Refresh) -> None:
        """Remember a registration."""
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[connection.id] = refresh

    def forget(self, connection: Connection) -> None:
        """Forget what was remembered of a connection."""
        self._known.pop(connection.id, None)


def _comparable(message: Message) -> list[bytes]:
    """Return the values of all headers we know but those that differ each time."""
    texts = message.texts.copy()
    texts[h.VIA] = texts[h.CSEQ] = texts[h.AUTHORIZATION] = b""
    return texts
