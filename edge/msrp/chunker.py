"""What leaves on one connection: chunks, cut and taken in turns (RFC 4975 §5.1, §7.1.1; RFC 4976 §6.4.1).

An incoming SEND that does not leave as one frame becomes an `OutStream`; an `Outbox` writes the streams of one
connection.

    open    a piece of this stream is on the wire without its end-line; None between frames
    lanes   messages with octets that wait, in the order of their turns; each is a queue of the streams of one message
    feeders connections that are not read because of what waits here

Any other frame goes at once: the open piece is cut (`+`), the frame written, the rest of the stream follows in a piece
with its own id and range. A piece is opened only when 2048 octets and one more are there or the end is known, so an
open one can be cut at any moment, no piece is too small, and the last one is never empty. A WebSocket takes whole
frames only: its pieces wait until they are complete (RFC 7977 §5.1).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edge.msrp.framing import END_LINE
from edge.msrp.outstream import MIN_PIECE, OutStream
from edge.msrp.report import Outstanding

if TYPE_CHECKING:
    from edge.connections import Connection
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.relay import Relay
    from edge.msrp.route import Route

TURN = 16384
PUMP_LIMIT = 65536  # octets written before others get the loop
FEEDER_HIGH = 131072
FEEDER_LOW = 65536
_NO_LIMIT = 1 << 62
_FEW = 64  # parts that may leave without being copied together, when they are
_LARGE = 65536  # octets in all
_MEAN = 4096  # octets in one, on average: for less, handing parts over costs more than copying them

Part = bytes | memoryview


class Outbox:
    """The outgoing half of one MSRP connection.

    `pending` are the transactions of ours that are open here, by id; `queued` counts the octets ever written. `limit`
    is the size at which pieces are cut. `connecting` is set while a connection that we dial is not up.
    """

    __slots__ = (
        "_gathered", "_pumping", "_recent", "closed", "closing", "connecting", "connection", "feeders", "handler",
        "lanes", "limit", "open", "outstanding", "pending", "queued", "relay", "routes", "streams", "stuck",
        "websocket",
    )  # fmt: skip

    connection: Connection

    def __init__(self, relay: Relay, handler: MsrpHandler, limit: int) -> None:
        self.relay = relay
        self.handler = handler
        self.outstanding = Outstanding(self)
        self.pending = self.outstanding.pending
        self.queued = 0
        self.open: OutStream | None = None
        self.lanes: dict[tuple[int, bytes], deque[OutStream]] = {}
        self.streams: dict[OutStream, None] = {}
        self.feeders: dict[MsrpHandler, None] = {}
        self.stuck: set[MsrpHandler] = set()  # links that were not read for too long because of this connection
        self.routes: set[Route] = set()
        self.limit = limit or _NO_LIMIT
        self.websocket = False
        self.connecting = False
        self.closed = False
        self.closing = False
        self._pumping = False
        self._recent = 0
        self._gathered: list[Part] = []

    def attach(self, connection: Connection) -> None:
        """Use this connection; separate from the constructor because a dialled one comes later."""
        self.connection = connection
        self.websocket = connection.transport.websocket
        if self.websocket:
            self.limit = self.relay.settings.websocket_piece

    def lower_limit(self, size: int) -> None:
        """Cut pieces at `size` from now on, if that is less; those of a WebSocket have a size of their own."""
        if size < self.limit and not self.websocket:
            self.limit = size
            for route in list(self.routes):
                route.withdraw()

    @property
    def blocked(self) -> bool:
        """Whether body octets have to wait: the transport is full, or the peer owes too many answers."""
        return (
            not self.connection.writable
            or self.outstanding.full
            or (self.connecting and self.connection.unsent() > PUMP_LIMIT)
        )

    # -- whole frames

    def gather(self, parts: tuple[Part, ...], size: int) -> None:
        """Write a frame, or a part of one, given in pieces, `size` octets in all.

        While a read is being handled they wait for `flush`, so that what many frames bring leaves in one piece.
        """
        self.queued += size
        if self.websocket or not self.relay.gathering:
            self._send(b"".join(parts))
            return
        if not self._gathered:
            self.relay.dirty.append(self)
        self._gathered += parts

    def flush(self) -> None:
        """Hand what was gathered to the connection, in one piece."""
        gathered = self._gathered
        if gathered:
            self._gathered = []
            if len(gathered) < _FEW and sum(map(len, gathered)) > max(_LARGE, len(gathered) * _MEAN):
                self._recent = 0
                self.connection.send_parts(gathered)
            else:
                self._send(b"".join(gathered))

    def send_frame(self, frame: bytes) -> None:
        """Write a frame that must not wait: a response, a REPORT."""
        if self.open is not None:
            self.cut()
        self.gather((frame,), len(frame))

    def _send(self, data: bytes) -> None:
        """Send; a sender may be read many times in one turn of the loop, so do not wait for its end with much."""
        self.connection.send(data)
        self._recent += len(data)
        if self._recent >= PUMP_LIMIT:
            self._recent = 0
            self.connection.flush()

    # -- streams

    def start(self, stream: OutStream) -> None:
        """Enter a stream; `feed` and `finish` follow."""
        self.streams[stream] = None

    def feed(self, stream: OutStream, body: memoryview, plain: bool, now: float) -> None:
        """Take body octets of a stream: write them if nobody else waits, else queue them and hold their sender."""
        if self.lanes or self.blocked:
            stream.add(memoryview(bytes(body)), plain)
            self._queue(stream, now)
        else:
            stream.add(body, plain)
            self._drain(stream, _NO_LIMIT)
            stream.settle()

    def finish(self, stream: OutStream, flag: bytes, now: float) -> None:
        """The chunk is complete, given up (`#`), or its sender is gone (`+`)."""
        stream.flag = flag
        if self.lanes or self.blocked:
            if flag == b"#":
                stream.drop(keep=MIN_PIECE)
            stream.settle()
            self._queue(stream, now, first=flag == b"#")
        else:
            self._drain(stream, _NO_LIMIT)

    def abort(self, stream: OutStream) -> None:
        """End a stream that must not go on: `#` for its open piece, nothing of the rest."""
        stream.drop()
        if self.open is stream:
            self._close_piece(b"#")
        self._forget(stream)

    def rest_of(self, route: Route, message_id: bytes) -> list[OutStream]:
        """Find the streams of one message, in one session and direction, that have octets here or still get some."""
        return [
            stream
            for stream in self.streams
            if stream.head.message_id == message_id
            and stream.route.session is route.session
            and stream.route.outbound == route.outbound
        ]

    def _forget(self, stream: OutStream) -> None:
        self.streams.pop(stream, None)
        lane = self.lanes.get(stream.lane)
        if lane is not None and stream in lane:
            lane.remove(stream)
            if not lane:
                del self.lanes[stream.lane]
        stream.queued = False
        if self.closing and not self.streams:
            self.relay.soon(self.close_when_sent)

    def close_when_sent(self) -> None:
        """End the connection in order, once every message that has begun here has left."""
        self.closing = True
        if not self.streams and not self.closed:
            self.handler.close("policy")

    def _queue(self, stream: OutStream, now: float, first: bool = False) -> None:
        if not stream.queued:
            stream.queued = True
            self.lanes.setdefault(stream.lane, deque()).append(stream)
        if first:
            self.lanes = {stream.lane: self.lanes.pop(stream.lane), **self.lanes}
        source = stream.route.source
        if self.blocked or source.buffered > FEEDER_HIGH:
            self.hold(source, now)
        self.pump(now)

    def hold(self, source: MsrpHandler, now: float) -> None:
        """Do not read `source` until there is room here."""
        if source not in self.feeders and source not in self.stuck and not source.lost and not self.closed:
            self.feeders[source] = None
            source.pause(self, now)
            if self.connecting and not self.outstanding.ticking:
                self.outstanding.start_ticking(now)

    def pump(self, now: float) -> None:
        """Write what waits, in turns, as long as the transport takes it."""
        budget = PUMP_LIMIT
        while self.lanes and not self.blocked:
            if budget < MIN_PIECE:
                self._pump_later()
                break
            key = next(iter(self.lanes))
            lane = self.lanes.pop(key)
            stream = lane[0]
            before = stream.size
            if self._drain(stream, budget if not self.lanes else min(TURN, budget)):
                lane.popleft()
            budget -= before - stream.size
            if lane and self._is_ready(lane[0]):
                self.lanes[key] = lane
            elif lane:
                lane[0].queued = False
        self._release_feeders(now)

    def _is_ready(self, stream: OutStream) -> bool:
        """Whether something of it could be written now."""
        if stream.flag:
            return True
        return stream.size > (1 if self.open is stream else self.limit if self.websocket else MIN_PIECE)

    def _pump_later(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.relay.soon(self._pump_again)

    def _pump_again(self) -> None:
        self._pumping = False
        if not self.closed:
            self.pump(self.relay.clock())

    def _release_feeders(self, now: float) -> None:
        if self.blocked:
            return
        self.stuck.clear()
        for source in list(self.feeders):
            if source.buffered <= FEEDER_LOW or not self.lanes:
                self.release(source, now)

    def release(self, source: MsrpHandler, now: float) -> None:
        """Read a feeder again."""
        if source in self.feeders:
            del self.feeders[source]
            self.stuck.discard(source)
            source.resume(self, now)

    # -- the connection's life

    def handle_connected(self, now: float) -> None:
        """The connection came up, or takes octets again."""
        self.connecting = False
        self.pump(now)

    def poll(self, now: float) -> None:
        """Look once more whether there is room; called each second while answers are due."""
        if self.connecting and not self.connection.unsent():
            self.connecting = False
        if self.feeders or self.lanes:
            self.pump(now)

    def lose(self, reason: str, now: float) -> None:
        """The connection is gone: tell everybody whose octets it owed, once each."""
        code, comment = _describe_loss(reason, self.connecting)
        for source in {route.source for route in self.routes}:
            source.reader.promote(now)  # a chunk that has begun here ends here
        self.closed = True
        for route in list(self.routes):
            route.withdraw()
        if self.open is not None:
            self._complete(self.open, b"+")
            self.open = None
        streams = list(self.streams)
        for stream in streams:
            if not stream.flag and not stream.failed:
                stream.route.source.fail_chunk(stream, code, comment)
        reporter = self.relay.reporter
        reporter.handle_loss(self.outstanding.clear(), code, comment, now)
        for stream in streams:
            reporter.report_rest(stream, code, comment, now)
            stream.drop()
        self.streams.clear()
        self.lanes.clear()
        for source in list(self.feeders):
            self.release(source, now)

    # -- pieces

    def _drain(self, stream: OutStream, budget: int) -> bool:
        """Write up to `budget` octets of a stream; return whether that was its end."""
        while True:
            if self.open is not stream:
                if stream.flag and stream.size <= min(self.limit, max(budget, MIN_PIECE)):
                    self._write_whole(stream)
                    return True
                if not self._open_piece(stream, budget):
                    return False
                if self.open is not stream:
                    budget -= self.limit
                    continue
            spare = stream.size if stream.flag else stream.size - 1
            written = self._write_some(stream, min(spare, self.limit - stream.piece, budget))
            budget -= written
            still_open = self._is_open(stream)
            if still_open and stream.flag and not stream.size:
                self._close_piece(stream.flag)
                self._forget(stream)
                return True
            if still_open and stream.piece >= self.limit and stream.size > (0 if stream.flag else 1):
                self.cut()
            elif still_open:
                return False

    def _is_open(self, stream: OutStream) -> bool:
        """Ask anew: what is written may have ended a piece."""
        return self.open is stream

    def _write_some(self, stream: OutStream, count: int) -> int:
        """Write body octets into the open piece; a look-alike of its end-line ends it in between (RFC 4975 §7.1)."""
        written = 0
        while written < count:
            part = stream.take(count - written)
            unsafe = -1 if stream.plain else stream.find_lookalike(bytes(part))
            if unsafe >= 0:
                stream.put_back(part[unsafe:])
                part = part[:unsafe]
            size = len(part)
            self.gather((part,), size)
            stream.piece += size
            written += size
            if unsafe >= 0:
                self.cut()
                break
        return written

    def _open_piece(self, stream: OutStream, budget: int) -> bool:
        """Begin a piece of a stream if it can be large enough; on a WebSocket write it at once."""
        if self.websocket:
            if stream.size <= self.limit or budget < MIN_PIECE:
                return False
            heads = stream.heads(stream.position + self.limit - 1 if self.limit <= MIN_PIECE else None)
            self._write_frame(stream, heads, self.limit, b"+")
            return True
        if budget < MIN_PIECE or not (stream.flag or stream.size > MIN_PIECE):
            return False
        if self.open is not None:
            self.cut()
        identifier = stream.transaction_id = self.relay.identifiers.draw(self.pending)
        head = b"MSRP %b SEND\r\n%b%b\r\n" % (identifier, stream.route.out_paths, stream.heads(None))
        self.gather((head,), len(head))
        stream.piece_start, stream.piece, stream.last, stream.begun = stream.position, 0, b"", True
        self.open = stream
        self._remember(stream, identifier, stream.position, 0, b"")  # an error may be answered before its end
        return True

    def cut(self) -> None:
        """End the piece that is open; its stream goes on in another one."""
        self._close_piece(b"+")

    def _close_piece(self, flag: bytes) -> None:
        stream = self.open
        assert stream is not None
        self.open = None
        line = b"%b%b%b\r\n" % (END_LINE, stream.transaction_id, flag)
        self.gather((line,), len(line))
        self._complete(stream, flag)
        stream.piece = 0

    def _complete(self, stream: OutStream, flag: bytes) -> None:
        """Write down how much the piece has become, unless it was answered before its end."""
        if stream.transaction_id in self.pending or stream.head.failure_report == b"no":
            self._remember(stream, stream.transaction_id, stream.piece_start, stream.piece, flag)

    def _write_whole(self, stream: OutStream) -> None:
        """Write all that is left of a stream as one frame."""
        if self.open is not None:
            self.cut()
        heads = stream.whole_heads(self.websocket) if stream.has_body else stream.head.rest
        self._write_frame(stream, heads, stream.size, stream.flag)
        self._forget(stream)

    def _write_frame(self, stream: OutStream, heads: bytes, size: int, flag: bytes) -> None:
        start, body = stream.position, stream.take_all(size)
        identifier = self.relay.identifiers.draw(self.pending)
        while not stream.plain and END_LINE + identifier in b"".join(body):
            identifier = self.relay.identifiers.draw(self.pending)
        first = b"MSRP %b SEND\r\n%b%b%b" % (
            identifier, stream.route.out_paths, heads, b"\r\n" if stream.has_body else b"",
        )  # fmt: skip
        line = END_LINE if stream.has_body else END_LINE[2:]
        last = b"%b%b%b\r\n" % (line, identifier, flag)
        self.gather((first, *body, last), len(first) + size + len(last))
        stream.begun = True
        self._remember(stream, identifier, start, size if stream.has_body else -1, flag)

    def _remember(self, stream: OutStream, identifier: bytes, start: int, length: int, flag: bytes) -> None:
        if stream.head.failure_report != b"no":
            position = self.queued if flag else _NO_LIMIT
            entry = (position, stream.route, stream.head.rest, start, length, flag == b"$", stream)
            self.outstanding.add(identifier, entry, self.relay.clock())
        elif flag and self.relay.account is not None:
            entry = (0, stream.route, stream.head.rest, start, length, flag == b"$", stream)
            self.relay.account.settle(entry, 0, self.relay.clock())


def _describe_loss(reason: str, connecting: bool) -> tuple[int, bytes]:
    if reason == "refused_target":
        return 403, b"Target not allowed"
    return 408, b"Next hop unreachable" if connecting else b"Next hop lost"
