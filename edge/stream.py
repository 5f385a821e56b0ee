"""TCP, TLS, WS and WSS connections: a `Connection` that is the asyncio protocol of its transport."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from edge.certificates import peer_names
from edge.connections import Address, Connection, ConnectionTable, Handler, Listener, Transport, WireCodec

HIGH_WATER = 65536
LOW_WATER = 16384
_HALF_CLOSED_S = 32.0  # 64*T1: as long as an answer may still be due
LINGER_S = 2.0  # after our last octet: as long as a peer may go on sending before it has read that
_CLOSE_CODES = {"shutdown": 1001, "protocol_error": 1002}  # of a WebSocket (RFC 6455 §7.4.1)


class StreamConnection(Connection):
    """One TCP, TLS, WS or WSS connection; also the asyncio protocol of its transport.

    A connection we dial exists, and takes `send`, before the handshake is done. One we close takes no more from then
    on, but its socket is read on for a moment: a reset, which is the answer to octets nobody reads, may overtake our
    last words.
    """

    __slots__ = (
        "_end", "_held", "_out", "_pauses", "_rest", "_transport", "_turn_due", "codec", "half_closed", "queue_limit",
        "verify_peer",
    )  # fmt: skip

    def __init__(
        self,
        table: ConnectionTable,
        transport: Transport,
        remote: Address,
        local: Address,
        listener: Listener | None,
        handler: Handler,
    ) -> None:
        super().__init__(table, transport, remote, local, listener, handler)
        self.codec: WireCodec | None = None
        self.half_closed = False
        self.queue_limit = table.send_queue  # 0 = none: the feeder is held instead
        # asked for connections we dial with TLS, before a single octet leaves
        self.verify_peer: Callable[[ssl.SSLObject], bool] | None = None
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] | None = None
        self._held: set[Connection] | None = None
        self._pauses = 0
        self._rest = b""  # of a read that takes more than one turn of the loop
        self._turn_due = False
        self._end = ""  # why we ended it ourselves; with "!" in front when that was a failure

    def as_protocol(self) -> asyncio.Protocol:
        """Return this connection to whoever makes its transport; it has the calls without the base class."""
        return cast("asyncio.Protocol", self)

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter the table; for one we dialled the peer has to be the right one first."""
        transport = self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        if self.closed:  # given up while it was coming up
            transport.abort()
            return
        if self.outgoing:
            self.remote = transport.get_extra_info("peername", self.remote)[:2]
            self.local = transport.get_extra_info("sockname")[:2]
        if self.transport.secure and not self._identify(transport.get_extra_info("ssl_object")):
            self.fail("tls")
            return
        accept = self.table.accept_hook
        if accept is not None and not self.outgoing and not accept(self):
            self.table.refuse(self.source, "policy")
            self.fail("policy")
            return
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        if self._pauses:
            transport.pause_reading()
            self.table.loop.call_soon(self._pause_again)
        self.table.add(self)
        if self._out:
            self.table.mark_dirty(self)
        if self.outgoing:
            self.handler.handle_writable(self, self.table.now())

    def _pause_again(self) -> None:
        """Pause once more: uvloop begins to read after `connection_made`, whatever that has said."""
        if self._pauses and not self.closed and self._transport is not None:
            self._transport.pause_reading()

    def _identify(self, session: ssl.SSLObject) -> bool:
        """Note whom a verified certificate names; False when that is not whom we dialled."""
        self.identities = peer_names(session.getpeercert() or {})
        return self.verify_peer is None or self.verify_peer(session)

    def data_received(self, data: bytes) -> None:
        """Hand octets to the handler; those that come after our end are thrown away."""
        now = self.last_received = self.table.now()
        self.octets_in += len(data)
        if self.closed:
            return
        if len(data) > self.turn_octets or self._rest or self._turn_due:
            self._take_turns(data)
            return
        self._deliver(data, now)

    def _deliver(self, data: bytes, now: float) -> None:
        """Let the handler read; what it sends meanwhile leaves together."""
        self.table.begin_read()
        try:
            self.handler.receive_data(self, data, now)
        finally:
            self.table.end_read(len(data))

    def _take_turns(self, data: bytes) -> None:
        """Hand over a large read piece by piece, one in each turn of the loop, and read no more meanwhile.

        uvloop would read on as long as there is something, 32 times 256 KB in a row: seconds for everybody else.
        """
        if self._rest or self._turn_due:
            self._rest += data
            return
        self._rest = data
        self.pause_reading()
        self._take_turn()

    def _take_turn(self) -> None:
        """Hand over what one turn allows; whoever holds this connection holds the rest too."""
        self._turn_due = False
        if not self._rest:
            self.resume_reading()
        elif self._pauses == 1 or self.closed:
            self._hand_over(self.turn_octets)
            self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self.table.loop.call_soon(self._take_turn)

    def _hand_over(self, octets: int) -> None:
        """Hand over so many of the octets that wait, or all if there are less than twice as many."""
        rest = self._rest
        piece, self._rest = (rest, b"") if len(rest) < 2 * octets else (rest[:octets], rest[octets:])
        if self.closed:
            self._rest = b""
            return
        self._deliver(piece, self.table.now())

    def eof_received(self) -> bool:
        """The peer has finished sending; True keeps the way back open for answers that are owed."""
        if self._rest:  # TLS tells of the end together with the last octets
            self._hand_over(len(self._rest))
        if self.closed:
            return False
        keep = self.handler.receive_eof(self, self.table.now()) and self.uses > 0 and not self.transport.secure
        if keep:
            self.half_closed = True
            self.table.end(self, "eof", failed=False)
            self.table.wheel.start(self, self.table.now() + _HALF_CLOSED_S)
        else:
            self._end = self._end or "eof"
            self.flush()
        return keep

    def pause_writing(self) -> None:
        """The transport holds more than its high-water mark."""
        self.writable = False
        self.unsent_seen = 0
        self.stalled_at = self.table.now()

    def resume_writing(self) -> None:
        """The transport has drained: let everybody go on who was held for it."""
        self.writable = True
        held, self._held = self._held, None
        for feeder in held or ():
            feeder.resume_reading()
        if not self.closed:
            self.handler.handle_writable(self, self.table.now())

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed: name the end, unless it was told already."""
        reason, failed = _ending(self._end, exc)
        self.table.wheel.stop(self)
        held, self._held = self._held, None
        for feeder in held or ():
            feeder.resume_reading()
        self.table.end(self, reason, failed)
        self._transport = None

    # -- what the protocols call

    def send(self, data: bytes) -> None:
        """Queue one message, framed by the codec where there is one."""
        if self.closed and not self.half_closed:
            return
        if self.codec is not None:
            data = self.codec.encode_message(data)
        self.write(data)

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send many octets in a few parts now, not copied together where the transport takes them so."""
        transport = self._transport
        direct = self.codec is None and not self.transport.secure and not self.queue_limit
        if not direct or transport is None or self.closed:
            self.send(b"".join(parts))
            self.flush()
            return
        self.flush()
        self.table.mark_dirty(self)  # to be looked at when it takes nothing
        self.octets_out += sum(map(len, parts))
        transport.writelines(parts)

    def write(self, data: bytes) -> None:
        """Queue wire bytes as they are, past the WebSocket framing."""
        out = self._out
        if out is None:
            self._out = [data]
            self.table.mark_dirty(self)
        else:
            out.append(data)

    def flush(self) -> None:
        """Hand what was queued in this turn to the transport, in one write."""
        out, transport = self._out, self._transport
        if not out or transport is None:
            return
        self._out = None
        data = out[0] if len(out) == 1 else b"".join(out)
        self.octets_out += len(data)
        transport.write(data)
        if not self.writable and self.queue_limit and transport.get_write_buffer_size() > self.queue_limit:
            self.fail("send_queue")

    def unsent(self) -> int:
        """Octets queued here and in the transport."""
        queued = sum(map(len, self._out)) if self._out else 0
        return queued + (self._transport.get_write_buffer_size() if self._transport else 0)

    def hold(self, feeder: Connection) -> None:
        """Stop reading `feeder` until the transport has drained."""
        if self.writable or feeder is self:
            return
        if self._held is None:
            self._held = set()
        if feeder not in self._held:
            self._held.add(feeder)
            feeder.pause_reading()

    def pause_reading(self) -> None:
        """Stop reading; calls are counted."""
        self._pauses += 1
        if self._pauses == 1 and not self.closed and self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take one `pause_reading` back."""
        self._pauses -= 1
        if self._pauses == 0 and not self.closed and self._transport is not None:
            self._transport.resume_reading()
        elif self._rest:
            self._schedule_turn()

    @property
    def reading_paused(self) -> bool:
        """Whether somebody stopped the reading of this connection."""
        return self._pauses > 0

    def close(self, reason: str) -> None:
        """End in order: what is queued still leaves, nothing new is taken."""
        if self.closed and not self.half_closed:
            return
        self._end = self._end or reason
        if self.codec is not None and not self.closed:
            self.write(self.codec.encode_close(_CLOSE_CODES.get(reason, 1000)))
        self.flush()
        self.table.end(self, reason, failed=False)
        if self._transport is not None:
            self._close_transport(self._transport)

    def _close_transport(self, transport: asyncio.Transport) -> None:
        """TLS says goodbye and waits for the peer's; plain TCP gets a FIN, and its end with the peer's."""
        if self.transport.secure or self.half_closed or transport.is_closing():
            self.half_closed = False
            transport.close()
            return
        transport.write_eof()
        if self._pauses:
            transport.resume_reading()
        self.stalled_at = self.table.now()
        self.table.wheel.start(self, self.stalled_at + LINGER_S)

    def give_up(self, now: float) -> None:
        """End a half-closed or lingering connection, unless it still has something to send and its peer takes it."""
        if self.half_closed:
            self.close("eof")
        elif self._transport is not None:
            waiting = self._transport.get_write_buffer_size() > 0
            if waiting and now - self.stalled_at < self.table.stall_timeout:
                self.table.wheel.start(self, now + LINGER_S)
            else:
                self._transport.abort()

    def fail(self, reason: str) -> None:
        """End at once; what is queued is lost."""
        if not self.closed:
            self._end = "!" + reason
            self.table.end(self, reason, failed=True)
        if self._transport is not None:
            self._transport.abort()

    def release_use(self) -> None:
        """One use less; the last one closes a connection whose peer has finished sending."""
        self.uses -= 1
        if self.half_closed and self.uses <= 0:
            self.close("eof")

    def dial_failed(self, reason: str) -> None:
        """The connection we were opening did not come up."""
        self._out = None
        self.table.end(self, reason, failed=True)

    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS session, None without TLS or after the end."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None


def _ending(own: str, exc: Exception | None) -> tuple[str, bool]:
    """Name the end of a connection: (reason, whether it is a failure)."""
    if own:
        return own.lstrip("!"), own.startswith("!")
    if exc is None:
        return "eof", False
    if isinstance(exc, ssl.SSLError):
        return "tls", True
    if isinstance(exc, ConnectionError):
        return "reset", True
    return ("timed_out" if isinstance(exc, TimeoutError) else "io_error"), True
