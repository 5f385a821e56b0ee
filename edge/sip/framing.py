"""Where one SIP message ends and the next begins, on streams and in WebSocket messages (RFC 3261 §18.3), sans-IO.

    between messages   CRLF skipped, CRLF CRLF answered with CRLF (RFC 5626 §4.4.1)
    head               up to the empty line, found without looking at an octet twice
    body               Content-Length octets; without one the end is not known and the connection ends

A message that breaks a rule inside known bounds is answered and the connection goes on. When the bounds are lost, one
answer leaves, what follows is thrown away and the connection is closed.
"""

from __future__ import annotations

from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.outbound.keepalive import StreamKeepalive
from edge.rates import SourceBlocks, SourceRate
from edge.sip.message import Message, MessageLimits, frame_datagram, read_content_length, split_head
from edge.timers import Timed, TimerWheel

_EMPTY_LINE = b"\r\n\r\n"
_REGISTER = b"REGISTER "
_BAD_IN_A_ROW = 20
_BOUNDS_LOST = frozenset(("control", "header_block", "header_line", "header_lines", "vias"))


class Receiver(Protocol):
    """Who takes whole messages: the core."""

    limits: MessageLimits

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        """Take a message; False when it was malformed."""
        ...

    def receive_refresh(self, connection: Connection, data: bytes, now: float) -> bool:
        """Take a REGISTER that was seen before, but for what varies; False when it is to be read."""
        ...

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        """Answer, where possible, something whose end cannot be found."""
        ...

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """A connection is gone."""
        ...


class SipStream(Timed):
    """The handler of one SIP connection: cuts its octets into messages."""

    __slots__ = (
        "_bad", "_buffer", "_connection", "_keepalive", "_message", "_need", "_searched", "_shared", "_started",
    )  # fmt: skip

    def __init__(self, shared: SipFraming) -> None:
        self._slot = None
        self._shared = shared
        self._buffer = b""
        self._searched = 0  # octets of the buffer in which the end of the head is not
        self._message: Message | None = None  # whose body is still coming
        self._need = 0
        self._keepalive: StreamKeepalive | None = None
        self._bad = 0
        self._connection: Connection | None = None
        self._started = 0.0  # when the first octet came of the message that is not whole yet; 0 = there is none

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Take what was read: octets of a stream, or one whole WebSocket message."""
        blocks = self._shared.blocks
        if blocks is not None and blocks.blocks(connection.source):
            connection.close("message_rate")
            return
        if connection.transport >= Transport.WS:
            self._receive_whole(connection, data, now)
            return
        if self._buffer:
            data = self._buffer + data
        elif self._message is None and self._take_usual(connection, data, now):
            return
        position = 0
        end = len(data)
        while position < end:
            start = position
            position = self._take(connection, data, position, now)
            if position < 0 or connection.closed:
                return
            if position == start or self._message is not None:
                break
        self._keep(connection, data[position:], now)

    def _take(self, connection: Connection, data: bytes, position: int, now: float) -> int:
        """Take one message or some blank lines; returns how far it came, -1 when the connection is over."""
        message = self._message
        if message is None:
            if data[position] in b"\r\n":
                return self._skip_lines(connection, data, position, now)
            end = data.find(_EMPTY_LINE, max(position, self._searched - 3))
            if end < 0:
                return position if self._check_open_head(connection, data, position) else -1
            self._searched = 0
            try:
                message = self._read_head(data[position:end])
            except RemoteError as error:
                self._end(connection, None, error)
                return -1
            position = end + 4
            try:
                self._need = self._read_length(message)
            except RemoteError as error:
                self._end(connection, message, error)
                return -1
        if len(data) - position < self._need:
            self._message = message
            return position
        self._message = None
        stop = position + self._need
        message.body = data[position:stop]
        self._deliver(connection, message, now)
        return stop

    def _read_head(self, head: bytes) -> Message:
        limits = self._shared.receiver.limits
        message = split_head(head, limits)
        if len(head) > limits.header_block:
            message.error = RemoteError(513, "header_block", "the headers are too long")
        return message

    def _read_length(self, message: Message) -> int:
        """Return Content-Length; raises when the end of the message is lost or the body will not be read."""
        if message.error is not None and message.error.label in _BOUNDS_LOST:
            raise message.error
        length = read_content_length(message)
        if length is None:
            raise RemoteError(400, "no_content_length", "Content-Length is needed on a stream")
        if length > self._shared.receiver.limits.body:
            raise RemoteError(413, "body", "the body is too long")
        return length

    def _check_open_head(self, connection: Connection, data: bytes, position: int) -> bool:
        """Bound a head that has not ended yet; False when that is enough of it."""
        limits = self._shared.receiver.limits
        waiting = len(data) - position
        self._searched = waiting
        if waiting <= limits.start_line:
            return True
        line_end = data.find(b"\r\n", position, position + limits.start_line + 2)
        if line_end < 0:
            self._end(connection, None, RemoteError(0, "start_line"))
            return False
        if waiting <= limits.header_block:
            return True
        try:
            message = split_head(data[position : data.rfind(b"\r\n", position)], limits)
        except RemoteError as error:
            self._end(connection, None, error)
            return False
        self._end(connection, message, RemoteError(513, "header_block", "the headers are too long"))
        return False

    def _take_usual(self, connection: Connection, data: bytes, now: float) -> bool:
        """Take a read that is all a ping, or a REGISTER that was seen before; False when it is to be cut."""
        if data == _EMPTY_LINE:
            return self._take_ping(connection, now)
        if data[:9] != _REGISTER or not self._shared.receiver.receive_refresh(connection, data, now):
            return False
        if self._shared.blocks is not None:
            self._shared.blocks.count(connection.source)
        return True

    def _take_ping(self, connection: Connection, now: float) -> bool:
        """Answer a ping that came alone between messages."""
        keepalive = self._keepalive
        if keepalive is None:
            keepalive = self._keepalive = StreamKeepalive()
        if not keepalive.take_ping(connection, now, self._shared.courtesies):
            return False
        self._shared.pings += 1
        return True

    def _skip_lines(self, connection: Connection, data: bytes, position: int, now: float) -> int:
        """Skip CRLFs between messages; pings among them are answered."""
        if self._keepalive is None:
            self._keepalive = StreamKeepalive()
        end = self._keepalive.skip(connection, data, now, position, self._shared.courtesies)
        self._shared.pings += self._keepalive.pings
        if end < len(data) and data[end] in b"\r\n" and (end + 1 < len(data) or data[end] == 0x0A):
            self._end(connection, None, RemoteError(0, "line_end"))
            return -1
        return end

    def _deliver(self, connection: Connection, message: Message, now: float) -> None:
        self._started = 0.0
        if self._keepalive is not None:
            self._keepalive.forget()
        blocks = self._shared.blocks
        if blocks is not None:
            if blocks.blocks(connection.source):
                connection.close("message_rate")
                return
            blocks.count(connection.source)
        if self._shared.receiver.receive_message(connection, message, now):
            self._bad = 0
            return
        self._bad += 1
        if self._bad > _BAD_IN_A_ROW:
            connection.close("malformed")

    def _receive_whole(self, connection: Connection, data: bytes, now: float) -> None:
        """One WebSocket message is one SIP message (RFC 7118 §5)."""
        receiver = self._shared.receiver
        try:
            message = frame_datagram(data, receiver.limits)
        except RemoteError as error:
            receiver.refuse_unframed(connection, None, error)
            return
        self._deliver(connection, message, now)

    def _end(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        self._shared.receiver.refuse_unframed(connection, message, error)
        self._buffer = b""
        self._shared.wheel.stop(self)
        connection.close("framing")

    def _keep(self, connection: Connection, rest: bytes, now: float) -> None:
        """Keep what is not whole yet, for a limited time."""
        self._buffer = rest
        if rest or self._message is not None:
            if not self._started:
                self._started = now
                self._connection = connection
                begun = self._message is not None or b"\r\n" in rest
                wait = self._shared.message_timeout if begun else self._shared.start_line_timeout
                self._shared.wheel.start(self, now + wait)
        elif self._connection is not None:
            self._started = 0.0
            self._connection = None
            self._shared.wheel.stop(self)

    def handle_timer(self, now: float) -> None:
        """A start line, or a message, took too long to arrive (SIP-DMX-07)."""
        connection, due = self._connection, self._started + self._shared.message_timeout
        if connection is None:
            return
        if due > now and (self._message is not None or b"\r\n" in self._buffer):
            self._shared.wheel.start(self, due)
        else:
            self._connection = None
            connection.close("message_timeout")

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """The peer is done sending: half a message is dropped; answers that are due may still go."""
        self._buffer = b""
        return True

    def handle_writable(self, connection: Connection, now: float) -> None:
        """A pong may have waited; messages never do, SIP queues are bounded."""
        if self._keepalive is not None:
            self._keepalive.handle_writable(connection)

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Tell the core; drop what was half read."""
        self._buffer = b""
        self._shared.wheel.stop(self)
        self._shared.receiver.handle_lost(connection, reason, now)


class SipFraming:
    """What all SIP connections share: the receiver, the clock of half messages, the bounds for each source.

    `blocks` counts messages and says whose are not taken; `courtesies` how many pings of one source are answered. None
    of them: no bound.
    """

    __slots__ = ("blocks", "courtesies", "message_timeout", "pings", "receiver", "start_line_timeout", "wheel")

    def __init__(
        self,
        receiver: Receiver,
        wheel: TimerWheel,
        message_timeout: float,
        start_line_timeout: float = 10.0,
        blocks: SourceBlocks | None = None,
        courtesies: SourceRate | None = None,
    ) -> None:
        self.receiver = receiver
        self.wheel = wheel
        self.message_timeout = message_timeout
        self.start_line_timeout = min(start_line_timeout, message_timeout)
        self.blocks = blocks
        self.courtesies = courtesies
        self.pings = 0

    def handler(self) -> SipStream:
        """Return a handler for a new connection."""
        return SipStream(self)

    def receive_datagram(self, connection: Connection, data: bytes, now: float) -> None:
        """Take one datagram that looks like SIP."""
        receiver, blocks = self.receiver, self.blocks
        if blocks is not None:
            if blocks.blocks(connection.source):
                blocks.drop()
                return
            blocks.count(connection.source)
        if data[:9] == _REGISTER and receiver.receive_refresh(connection, data, now):
            return
        try:
            message = frame_datagram(data, receiver.limits)
        except RemoteError as error:
            receiver.refuse_unframed(connection, None, error)
            return
        receiver.receive_message(connection, message, now)
