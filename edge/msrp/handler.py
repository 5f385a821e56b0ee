"""One MSRP connection as the relay sees it: frames in, decisions, answers out (RFC 4976 §6).

    receive_data ─► usual SEND or 200? ─ yes ─► one look-up in `routes`, one frame out, one 200 back
                          │ no
                          └─► FrameReader ─► handle_frame, or begin_send, handle_body, end_send ─► Router, Outbox

The frames of every day are read by one expression, and forwarded by what an earlier frame with the same two path lines
found out. Whatever it does not match, or is not that easy, takes the long way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import RemoteError
from edge.msrp.chunker import Outbox
from edge.msrp.frame import COMMENTS, Head, build_response
from edge.msrp.framing import END_LINE, STREAMING, Frame, FrameReader, find_line
from edge.msrp.grace import LinkGrace
from edge.msrp.holding import keep
from edge.msrp.outstream import MIN_PIECE, OutStream
from edge.msrp.report import PENDING_LIMIT, REPORTS_PER_SECOND, Forwarded
from edge.msrp.route import Route
from edge.msrp.usual import FLAGS, USUAL, expect_end, is_plausible, measure_cut
from edge.timers import Timed

if TYPE_CHECKING:
    from edge.connections import Connection
    from edge.msrp.auth import AuthQueue
    from edge.msrp.relay import Relay
    from edge.msrp.session import Session

FAILURES_LIMIT = 5
HEAD_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 60.0
ANSWERS_LIMIT = 262144  # octets of unread answers after which their reader is not read either

_END = len(END_LINE)
_JOIN = 4096
_LARGE_READ = 65536  # the rest of a frame that its end has cut is there already, or on its way
_CUT_LIMIT = 81920  # octets of a frame that is kept to be relayed whole
_CUT_WAIT_S = 1.0
_VIEW = 1024  # bodies from this size on are not copied before they leave


class MsrpHandler(Timed):
    """The `Handler` of one MSRP connection.

    `sessions` were issued over this connection, `far_sessions` are used by it from the far side. `incoming` is the
    chunk being received; None while a chunk is received whose fate is decided. `buffered` counts its octets that wait
    elsewhere, `waiting` are the outboxes because of which it is not read.
    """

    __slots__ = (
        "_frame_read", "_grace", "_last_report", "_report_tokens", "_since", "auth", "auth_failures", "authenticated",
        "buffered", "connection", "failures", "far_sessions", "held", "incoming", "lost", "outbox", "reader", "relay",
        "routes", "sessions", "succeeded", "waiting",
    )  # fmt: skip

    connection: Connection

    def __init__(self, relay: Relay, limit: int) -> None:
        self.relay = relay
        self.reader = FrameReader(self)
        self.routes: dict[bytes, Route] = {}
        self.sessions: set[Session] = set()
        self.far_sessions: set[Session] = set()
        self.waiting: set[Outbox] = set()
        self.incoming: OutStream | None = None
        self.held: list[tuple[bytes, bool]] | None = None  # parts of WebSocket messages, while somebody decides
        self.buffered = 0
        self.auth: AuthQueue | None = None
        self.auth_failures = 0
        self.failures = 0
        self.authenticated = False
        self.succeeded = False
        self.lost = False
        self._frame_read = False  # of the WebSocket message that is being read
        self._since = 0.0  # when the first octets came of what is incomplete
        self._last_report = 0.0
        self._report_tokens = float(REPORTS_PER_SECOND)
        self._slot = None
        self.outbox = Outbox(relay, self, limit)
        self._grace = LinkGrace(self)

    def attach(self, connection: Connection) -> None:
        """Use this connection; a dialled one comes after its handler."""
        self.connection = connection
        self.outbox.attach(connection)

    # -- what the connection calls

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Read what came; on a WebSocket that is one whole message, else a part of the stream from a frame's start."""
        reader = self.reader
        if self.outbox.connecting:
            self.outbox.handle_connected(now)
        self.relay.gathering = True
        if self.outbox.websocket:
            self._receive_message(connection, data, now)
            return
        position = 0
        waited, large = bool(reader.rest), len(data) >= _LARGE_READ
        if waited:
            data, position = self._join(data, now)
        size = len(data)
        while position < size:
            if not reader.state:
                after = self._relay_usual(data, position, now)
                if after:
                    position = after
                    continue
                if large and self._keep_cut(data, position, now):
                    break
            position = reader.feed(data, position, now)
        self.relay.flush()
        rest = reader.rest
        if rest or reader.state == STREAMING:
            self._watch(waited and len(rest) >= size, now)
        if not connection.writable:
            self._hold_unread_answers(now)

    def _watch(self, since_earlier: bool, now: float) -> None:
        """Look at the clock for what is incomplete."""
        if not since_earlier:
            self._since = now
        if self._slot is None and not self.lost:
            self.relay.wheel.start(self, now + HEAD_TIMEOUT_S)

    def _join(self, data: bytes, now: float) -> tuple[bytes, int]:
        """Put what is left of the last read in front; return data and where to go on in it.

        The frame that was cut by the end of the read is nearly always a small one, or one of known size, so try not to
        copy all of a large read.
        """
        reader = self.reader
        rest, reader.rest = reader.rest, b""
        missing, reader.whole = reader.whole - len(rest), 0
        if missing <= 0:
            missing = _JOIN if len(data) > 2 * _JOIN else len(data) + 1
        if not reader.state and missing <= len(data):
            after = self._relay_usual(rest + data[:missing], 0, now)
            if after > len(rest):
                return data, after - len(rest)
        return rest + data, 0

    def _keep_cut(self, data: bytes, position: int, now: float) -> bool:
        """Keep a usual frame that the end of a large read has cut: it is cheaper to relay whole than in pieces."""
        match = USUAL(data, position)
        route = self.routes.get(match[2] or b"") if match is not None else None
        if match is None or route is None or not (self.succeeded or self.connection.outgoing):
            return False
        whole = measure_cut(match, data, position, min(route.whole_limit, _CUT_LIMIT))
        if not whole:
            return False
        self.reader.rest, self.reader.whole = data[position:], whole
        self.relay.wheel.start(self, now + _CUT_WAIT_S)
        return True

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """End of the stream; requests of the peer may still get an answer."""
        return connection.uses > 0

    def handle_writable(self, connection: Connection, now: float) -> None:
        """The connection came up, or its queue has drained."""
        self.outbox.handle_connected(now)

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """End all that lived here, before any other frame is handled (RFC 4976 §6.3)."""
        if self.lost:
            return
        if self.reader.whole:
            self.reader.promote(now)
        self.lost = True
        self.connection = connection
        self.reader.stop()
        self.relay.wheel.stop(self)
        self._grace.end()
        stream, self.incoming = self.incoming, None
        if stream is not None:  # its sender may go on in a new session: never `#` (decision D4)
            stream.failed = stream.shortened = True
            stream.route.outbox.finish(stream, b"+", now)
        self.outbox.lose(reason, now)
        for outbox in list(self.waiting):
            outbox.feeders.pop(self, None)
        self.waiting.clear()
        self.drop_routes()
        self.relay.handle_lost(self, reason, now)

    # -- the short way

    def _relay_usual(self, data: bytes, position: int, now: float) -> int:
        """Handle a frame of every day; return where the next one starts, 0 when this one has to take the long way."""
        match = USUAL(data, position)
        if match is None:
            return 0
        identifier, paths, heads, early, start, end, total, late, answered = match.groups()
        body_at = match.end()
        if answered is not None:
            return body_at if self.relay.frame_hook is None and self._confirm(identifier, answered, now) else 0
        route = self.routes.get(paths)
        if route is None or not route.valid or now >= route.expires_at or route.refused:
            return 0
        stop = expect_end(data, body_at, start, end) if len(end) > 3 else find_line(data, body_at)
        after = stop + _END + len(identifier)
        flag = data[after : after + 3]
        if stop < 0 or flag not in FLAGS or not data.startswith(identifier, stop + _END):
            return 0
        length = stop - body_at
        outbox = route.outbox
        if (
            outbox.lanes or outbox.connecting or not outbox.connection.writable
            or len(outbox.pending) >= PENDING_LIMIT
            or length > (route.star_limit if end == b"*" else route.whole_limit)
            or ((start != b"1" or end not in (total, b"*")) and not is_plausible(start, end, total))
        ):  # fmt: skip
            return 0
        if self.relay.frame_hook is not None and self.relay.frame_hook(self, None, data, position, body_at, stop, now):
            return after + 3
        if length > MIN_PIECE and end != b"*":  # a chunk that long has to be interruptible (RFC 4975 §7.1.1)
            at = match.start(6)
            heads = data[match.start(3) : at] + b"*" + data[at + len(end) : body_at - 2]
        identifiers = self.relay.identifiers
        ours = identifiers.spare.pop() if identifiers.spare else identifiers.draw(outbox.pending)
        if ours in outbox.pending:
            ours = identifiers.draw(outbox.pending)
        if outbox.open is not None:
            outbox.cut()
        body = data[body_at - 2 : stop + _END] if length < _VIEW else memoryview(data)[body_at - 2 : stop + _END]
        outbox.gather(
            (b"MSRP ", ours, b" SEND\r\n", route.out_paths, heads, body, ours, flag),
            route.out_size + len(heads) + length,
        )
        stats = self.relay.stats
        stats.sends += 1
        stats.octets += length
        mode = early or late or b"yes"
        if mode != b"no":
            outbox.pending[ours] = (outbox.queued, route, heads, 0, length, FLAGS[flag], None)
            if not outbox.outstanding.ticking:
                outbox.outstanding.start_ticking(now)
        if mode == b"yes":
            if self.outbox.open is not None:
                self.outbox.cut()
            size = route.answer_size + 2 * len(identifier)
            self.outbox.gather((b"MSRP ", identifier, route.answered, identifier, b"$\r\n"), size)
        else:
            stats.unanswered += 1
            if mode == b"no" and self.relay.account is not None:
                self.relay.account.settle((0, route, heads, 0, length, FLAGS[flag], None), 0, now)
        return after + 3

    def _confirm(self, identifier: bytes, to_path_line: bytes, now: float) -> bool:
        """Take a 200 to a SEND of ours."""
        pending = self.outbox.pending
        entry = pending.get(identifier)
        if not isinstance(entry, tuple) or entry[1].expected != to_path_line:
            return False
        del pending[identifier]
        if self.relay.account is not None:
            self.relay.account.settle(entry, 200, now)
        if self.outbox.feeders:
            self.outbox.pump(now)
        return True

    # -- the long way

    def _receive_message(self, connection: Connection, data: bytes, now: float) -> None:
        """Read one WebSocket message, which is exactly one frame (RFC 7977 §5.1)."""
        if self.held is not None:
            keep(self, data, True)
            return
        after = self._relay_usual(data, 0, now) or self.reader.feed(data, 0, now)
        self._end_part(connection, after == len(data) and self.reader.idle, now)

    def receive_part(self, connection: Connection, data: bytes, last: bool, now: float) -> None:
        """Read a part of a WebSocket message; its end is that of its one frame."""
        reader = self.reader
        if self.held is not None:
            keep(self, data, last)
            return
        self.relay.gathering = True
        fits = not (self._frame_read and data)
        if fits and data:
            waited = bool(reader.rest)
            if waited:
                data, reader.rest = reader.rest + data, b""
            after = self._relay_usual(data, 0, now) if last and not reader.state else 0
            fits = (after or reader.feed(data, 0, now)) == len(data)
            self._frame_read = reader.idle
            if not reader.idle:
                self._watch(waited, now)
        fits = fits and (not last or self._frame_read)
        self._frame_read = self._frame_read and not last
        self._end_part(connection, fits, now)

    def _end_part(self, connection: Connection, fits: bool, now: float) -> None:
        self.relay.flush()
        if not fits:
            self.relay.stats.refuse("websocket_frame")
            self.close("protocol_error")
        elif not connection.writable:
            self._hold_unread_answers(now)

    def handle_frame(self, frame: Frame, now: float) -> None:
        """Handle a whole frame."""
        hook = self.relay.frame_hook
        if hook is None or frame.head.error is not None or not hook(self, frame, frame.data, 0, 0, 0, now):
            self.relay.forwarder.handle_frame(self, frame, now)

    def begin_send(self, head: Head, now: float) -> None:
        """Decide on a SEND whose body is still coming."""
        hook = self.relay.frame_hook
        if hook is not None and head.error is None and hook(self, Frame(head, b"", 0, 0), b"", -1, 0, 0, now):
            return
        self.incoming = self.relay.forwarder.begin_send(self, head, now)
        if self.incoming is None and self.connection.closed:
            self.reader.stop()

    def handle_body(self, body: memoryview, plain: bool, now: float) -> None:
        """Pass body octets on."""
        stream = self.incoming
        if stream is not None and self.is_too_large(stream, len(body)):
            self.fail_chunk(stream, 413, b"Stop")
            stream.route.outbox.abort(stream)
        elif stream is not None:
            self.relay.stats.octets += len(body)
            stream.route.outbox.feed(stream, body, plain, now)

    def is_too_large(self, stream: OutStream, size: int) -> bool:
        """Tell whether `size` octets more are too many: for one message, or for their sender in this hour."""
        relay, route = self.relay, stream.route
        if 0 < relay.settings.max_message_size < stream.position + stream.size + size - 1:
            return True
        if not relay.octets.limit or not route.outbound or relay.octets.take(route.session.user, size, relay.clock()):
            return False
        relay.stats.refuse("octets_per_user")
        return True

    def end_send(self, flag: bytes, now: float) -> None:
        """The streamed chunk is complete."""
        stream, self.incoming = self.incoming, None
        if stream is not None:
            self.relay.forwarder.end_send(self, stream, flag, now)

    def handle_broken(self, label: str, head: Head | None, now: float) -> None:
        """The stream cannot be framed any more: answer if possible, then close."""
        self.relay.stats.refuse(label)
        if head is not None and head.to_path and head.from_path:
            self.relay.forwarder.refuse(self, head, RemoteError(400, label), now)
        self.close("protocol_error")

    def fail_chunk(self, stream: OutStream, code: int, comment: bytes) -> None:
        """Answer the chunk being received with an error; what follows of it is thrown away."""
        stream.failed = True
        if self.incoming is stream:
            self.incoming = None
        if stream.head.failure_report != b"no":
            self.respond(stream.head, code, comment)

    # -- answers

    def respond(self, head: Head, code: int, comment: bytes = b"", extra: tuple[bytes, ...] = ()) -> None:
        """Answer a request (RFC 4975 §7.2): only the previous hop for SEND, the whole way back for all others."""
        to_path = head.from_path[0] if head.start.method == b"SEND" else b" ".join(head.from_path)
        start = b"%b %d %b" % (head.start.transaction_id, code, comment or COMMENTS.get(code, b"Failed"))
        self.relay.stats.count_response(code)
        self.outbox.send_frame(build_response(start, to_path, head.to_path[0], extra))

    def answer_forwarded(self, entry: Forwarded, code: int, comment: bytes) -> None:
        """Answer a request that was passed on and will get no answer."""
        if not self.lost:
            start = b"%b %d %b" % (entry.transaction_id, code, comment)
            self.relay.stats.count_response(code)
            self.outbox.send_frame(build_response(start, entry.answer_to, entry.own_uris[0]))
            self.connection.release_use()

    def drop_routes(self) -> None:
        """Find all ways anew."""
        for route in list(self.routes.values()):
            route.withdraw()
        self.routes.clear()

    def succeed(self) -> None:
        """A request was accepted: this connection is no stranger's any more (RFC 4976 §6.1)."""
        self.succeeded = True
        self.connection.first_message = True

    def count_failure(self) -> None:
        """Count a request without success; a stranger who has too many is closed."""
        self.failures += 1
        if not self.succeeded and not self.connection.outgoing and self.failures >= FAILURES_LIMIT:
            self.relay.stats.refuse("failures")
            self.close("failures")

    def may_report(self, now: float) -> bool:
        """Take one from the allowance of REPORTs that we make for this peer."""
        self._report_tokens = min(
            float(REPORTS_PER_SECOND), self._report_tokens + (now - self._last_report) * REPORTS_PER_SECOND
        )
        self._last_report = now
        if self._report_tokens < 1:
            return False
        self._report_tokens -= 1
        return True

    def close(self, reason: str) -> None:
        """End the connection in order; answers that were gathered leave first."""
        self.outbox.flush()
        self.connection.close(reason)

    # -- who this is

    @property
    def may_send(self) -> bool:
        """A WebSocket client has to authenticate first (RFC 7977 §5.3.1)."""
        return self.authenticated or not self.connection.transport.websocket

    def is_same_peer(self, other: MsrpHandler) -> bool:
        """Tell whether both are connections of one relay, by certificate (RFC 4976 §6.3)."""
        mine = self.connection.identities
        return self is not other and bool(mine) and not set(mine).isdisjoint(other.connection.identities)

    def owns(self, session: Session) -> bool:
        """Tell whether frames of the session's owner come over this connection."""
        if session.owner is self:
            return True
        return len(session.owner_path) > 1 and self.is_same_peer(session.owner)

    @property
    def is_link(self) -> bool:
        """Whether sessions of several users pass here: another relay's connection.

        A client's own sessions say who sends here; whom it talks to has no part in that.
        """
        return len({session.user for session in self.sessions or self.far_sessions}) > 1

    def release_if_unused(self) -> None:
        """Close a connection we opened once no session needs it."""
        if self.connection.outgoing and not self.far_sessions and not self.relay.settings.share_links:
            self.close("unused")

    # -- flow control and time

    def pause(self, outbox: Outbox, now: float) -> None:
        """Do not read this connection while `outbox` is full."""
        if not self.waiting:
            self.connection.pause_reading()
            self.outbox.outstanding.pause(now)
            if self.is_link:
                self._grace.begin(now)
        self.waiting.add(outbox)

    def refuse_stuck(self) -> None:
        """A link was not read for too long: refuse what it sends to full connections, and read it again."""
        now = self.relay.clock()
        if all(route.outbox in self.waiting for route in self.routes.values()):  # nobody else is held up
            self._grace.begin(now)
            return
        stream = self.incoming
        if stream is not None and stream.route.outbox in self.waiting:
            self.fail_chunk(stream, 413, b"Stop")
            stream.route.outbox.abort(stream)
        for outbox in list(self.waiting):
            outbox.stuck.add(self)
            outbox.feeders.pop(self, None)
            self.resume(outbox, now)

    def resume(self, outbox: Outbox, now: float) -> None:
        """Take `pause` back."""
        self.waiting.discard(outbox)
        if not self.waiting and not self.lost:
            self._grace.end()
            self.outbox.outstanding.resume(now)
            self.connection.resume_reading()

    def _hold_unread_answers(self, now: float) -> None:
        if self.connection.unsent() > ANSWERS_LIMIT:
            self.outbox.hold(self, now)

    def handle_timer(self, now: float) -> None:
        """Close a connection that never succeeded, or sends a head or a body too slowly (RFC 4976 §6.1)."""
        if not self.succeeded and not self.connection.outgoing:
            if now - self.connection.opened_at >= HEAD_TIMEOUT_S:
                self.close("no_success")
                return
        if self.reader.whole:
            self.reader.promote(now)
        rest, streaming = self.reader.rest, self.reader.state == STREAMING
        if not rest and not streaming:
            return
        if not streaming and b"\r\n\r\n" not in rest:
            due, reason = self._since + HEAD_TIMEOUT_S, "slow_head"
        else:
            due, reason = self.connection.last_received + BODY_TIMEOUT_S, "slow_body"
        if now >= due and not self.waiting:
            self.close(reason)
        else:
            self.relay.wheel.start(self, max(due, now + 1))
