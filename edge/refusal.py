"""What a listener says to a protocol it does not serve: that protocol's own error, then the end of the connection."""

from __future__ import annotations

from edge.connections import Connection
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.answers import build_answer
from edge.sip.forward import fix_top_via
from edge.sip.message import MessageLimits, read_top_via, split_head

_NOT_HERE = "Not served on this port"


class _Refusal:
    """Collects the head of the first message, answers it and closes."""

    __slots__ = ("_buffer",)
    _LIMIT = 32768

    def __init__(self) -> None:
        self._buffer = b""

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Answer once there is enough to answer."""
        self._buffer += data
        answer = self.refuse(connection, self._buffer)
        if answer is None and len(self._buffer) < self._LIMIT:
            return
        if answer:
            connection.send(answer)
        connection.close("protocol")

    def refuse(self, connection: Connection, data: bytes) -> bytes | None:
        """Return the answer, b"" when there is none to give, None while more octets are needed."""
        raise NotImplementedError

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """Nobody is owed anything."""
        return False

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Nothing waits here."""

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Nothing was begun."""


class SipRefusal(_Refusal):
    """403 for SIP where only MSRP is served (RFC 3261 §21.4.4)."""

    __slots__ = ("_limits",)

    def __init__(self, limits: MessageLimits) -> None:
        super().__init__()
        self._limits = limits

    def refuse(self, connection: Connection, data: bytes) -> bytes | None:
        """Answer a request; ACK and responses get nothing."""
        head, end, _ = data.partition(b"\r\n\r\n")
        if not end:
            return None
        try:
            message = split_head(head, self._limits)
            read_top_via(message)
            if message.status or message.method == b"ACK":
                return b""
            fix_top_via(message, connection.remote)
            message.to_tag = h.read_tag(message.texts[h.TO]) if message.first[h.TO] else None
        except RemoteError:
            return b""
        return build_answer(message, 403, b"refused", reason=_NOT_HERE)


class SipDatagramRefusal(SipRefusal):
    """The same for datagrams: each is a whole message, and nothing is kept or closed."""

    __slots__ = ()

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Answer one datagram."""
        answer = self.refuse(connection, data)
        if answer:
            connection.send(answer)


class MsrpRefusal(_Refusal):
    """403 for MSRP where only SIP is served (RFC 4975 §10.3)."""

    __slots__ = ()

    def refuse(self, connection: Connection, data: bytes) -> bytes | None:
        """Answer a request with its paths turned round; responses and REPORTs get nothing."""
        lines = data.split(b"\r\n", 3)
        if len(lines) < 4:
            return None
        start, to_path, from_path = lines[:3]
        words = start.split(b" ")
        if len(words) != 3 or words[2] == b"REPORT" or words[2][:3].isdigit():
            return b""
        back, here = from_path.partition(b":")[2].split(), to_path.partition(b":")[2].split()
        if not back or not here:
            return b""
        return b"MSRP %b 403 %b\r\nTo-Path: %b\r\nFrom-Path: %b\r\n-------%b$\r\n" % (
            words[1], _NOT_HERE.encode(), back[0], here[0], words[1],
        )  # fmt: skip
