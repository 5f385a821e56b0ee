"""Transactions that wait for an answer, and the REPORTs that follow when there is none or a bad one (RFC 4976 §6.4).

`Outstanding` holds the open transactions of one connection. There is no timer for each: once a second the end of what
was written is marked, and a mark that has left our buffers grows older while we read the connection. What lies before
a mark of 30 seconds was not answered in time.

    written ──────────────────────────────────────────────────────► queued
             mark 0: 30 s old     mark 1: 29 s old ...   │ not out yet
             its transactions                            └ queued - connection.unsent()
             have failed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.msrp.frame import Head, StartLine, build_report, encode_byte_range
from edge.timers import Timed

if TYPE_CHECKING:
    from edge.msrp.chunker import Outbox
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.outstream import OutStream
    from edge.msrp.relay import Relay
    from edge.msrp.route import Route

PENDING_LIMIT = 8192
REPORTS_PER_SECOND = 100
_TICK_S = 1.0

# A chunk that was sent: where its end-line ends in the stream, its route, its headers after the paths, number of its
# first octet (0: as its Byte-Range says), octets (-1: no body at all), whether it ended `$`, and the stream it is a
# piece of.
Sent = tuple[int, "Route", bytes, int, int, bool, "OutStream | None"]


class Forwarded:
    """A request other than SEND and REPORT that was passed on: who is to get the answer (RFC 4976 §6.4.3)."""

    __slots__ = ("answer_to", "credentials", "method", "own_uris", "position", "requester", "transaction_id")

    def __init__(self, requester: MsrpHandler, head: Head, own_uris: list[bytes]) -> None:
        self.requester = requester
        self.transaction_id = head.start.transaction_id
        self.method = head.start.method
        self.credentials = head.first(b"authorization") is not None
        self.own_uris = own_uris
        self.answer_to = b" ".join(head.from_path)
        self.position = 0


class Outstanding(Timed):
    """The open transactions of one outgoing connection, oldest first."""

    __slots__ = ("_left", "_marks", "_outbox", "_pause_began", "_skew", "pending", "ticking")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._marks: deque[tuple[int, float]] = deque()  # position, clock when it had left
        self._left = 0  # how many marks have left our buffers
        self._skew = 0.0  # seconds during which we did not read
        self._pause_began: float | None = None
        self.pending: dict[bytes, Sent | Forwarded] = {}
        self.ticking = False
        self._slot = None

    @property
    def full(self) -> bool:
        """Whether the peer owes so many answers that it must give some first."""
        return len(self.pending) >= PENDING_LIMIT

    def add(self, identifier: bytes, entry: Sent | Forwarded, now: float) -> None:
        """Expect an answer."""
        self.pending[identifier] = entry
        if not self.ticking:
            self.start_ticking(now)

    def start_ticking(self, now: float) -> None:
        """Begin to look at the clock; it stops by itself when nothing is open."""
        self.ticking = True
        self._outbox.relay.wheel.start(self, now + _TICK_S)

    def pause(self, now: float) -> None:
        """The connection is not read from now on: its answers may sit in the socket."""
        self._pause_began = now

    def resume(self, now: float) -> None:
        """The connection is read again."""
        if self._pause_began is not None:
            self._skew += now - self._pause_began
            self._pause_began = None

    def clear(self) -> list[Sent | Forwarded]:
        """Forget everything and return it, oldest first."""
        entries = list(self.pending.values())
        self.pending.clear()
        self._marks.clear()
        self._left = 0
        self._outbox.relay.wheel.stop(self)
        self.ticking = False
        return entries

    def handle_timer(self, now: float) -> None:
        """Move the marks on and fail what is too old."""
        self._outbox.poll(now)
        if not self.pending and not (self._outbox.connecting and self._outbox.feeders):
            self._marks.clear()
            self._left = 0
            self.ticking = False
            return
        self.start_ticking(now)
        clock = (now if self._pause_began is None else self._pause_began) - self._skew
        queued = self._outbox.queued
        if not self._marks or self._marks[-1][0] < queued:
            self._marks.append((queued, 0.0))
        out = queued - self._outbox.connection.unsent()
        while self._left < len(self._marks) and self._marks[self._left][0] <= out:
            self._marks[self._left] = (self._marks[self._left][0], clock)
            self._left += 1
        while self._left and clock - self._marks[0][1] >= self._outbox.relay.settings.report_timeout:
            self._left -= 1
            self._expire(self._marks.popleft()[0], now)

    def _expire(self, position: int, now: float) -> None:
        expired = []
        for identifier, entry in self.pending.items():
            if (entry.position if isinstance(entry, Forwarded) else entry[0]) > position:
                break
            expired.append(identifier)
        entries = [self.pending.pop(identifier) for identifier in expired]
        self._outbox.relay.reporter.handle_silence(entries, now)


class Reporter:
    """Tell senders what became of their chunks, once for each (RFC 4976 §6.4.1, §6.4.3)."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def handle_refusal(self, entry: Sent, code: int, comment: bytes, now: float) -> None:
        """The next hop answered something else than 200."""
        route, stream = entry[1], entry[6]
        message_id = _read(entry).message_id
        if message_id:
            route.session.refuse(route.outbound, message_id)
        self._relay.stats.count_refusal(code)
        if stream is not None and stream is route.outbox.open and entry[3] == stream.piece_start:
            # refused before its end: so much of it has left
            entry = (entry[0], route, entry[2], entry[3], stream.piece, entry[5], stream)
        rest = route.outbox.rest_of(route, message_id) if message_id else []
        self._signal([entry], code, comment, now, rest)
        for other in rest:
            route.outbox.abort(other)

    def handle_silence(self, entries: list[Sent | Forwarded], now: float) -> None:
        """The next hop did not answer in time. With `partial` that is no failure (RFC 4975 §7.1.2)."""
        chunks = []
        for entry in entries:
            if isinstance(entry, Forwarded):
                self._fail_forwarded(entry, b"Downstream timeout")
            else:
                failed = _read(entry).failure_report == b"yes"
                if failed:
                    chunks.append(entry)
                if self._relay.account is not None:
                    self._relay.account.settle(entry, 408 if failed else 0, now)
        self._signal(chunks, 408, b"Downstream timeout", now)

    def handle_loss(self, entries: list[Sent | Forwarded], code: int, comment: bytes, now: float) -> None:
        """The connection to the next hop is gone, or did not come up."""
        for entry in entries:
            if isinstance(entry, Forwarded):
                self._fail_forwarded(entry, comment)
            elif self._relay.account is not None:
                self._relay.account.settle(entry, code, now)
        self._signal([entry for entry in entries if not isinstance(entry, Forwarded)], code, comment, now)

    def _fail_forwarded(self, entry: Forwarded, comment: bytes) -> None:
        """Only AUTH is told (408); other requesters have a timer of their own."""
        if entry.method == b"AUTH":
            entry.requester.answer_forwarded(entry, 408, comment)
        else:
            entry.requester.connection.release_use()

    def _signal(
        self, entries: list[Sent], code: int, comment: bytes, now: float, rest: Sequence[OutStream] = ()
    ) -> None:
        """Give each failed chunk its one signal: a response while its sender still sends it, else a REPORT.

        `rest` are the streams of which nothing more is written.
        """
        failures: list[_Failure] = []
        for entry in entries:
            stream = entry[6]
            if stream is not None and not stream.flag and not stream.failed:
                stream.route.source.fail_chunk(stream, code, comment)
            if stream is None or not stream.failed:
                _join(failures, _Failure.of(entry))
        for stream in rest:
            if not stream.flag and not stream.failed:
                stream.route.source.fail_chunk(stream, 413, b"Stop")
            self._settle_rest(stream, code, now)
            if failure := _Failure.of_rest(stream):
                _join(failures, failure)
        for failure in failures:
            self._report(failure, code, comment, now)

    def report_rest(self, stream: OutStream, code: int, comment: bytes, now: float) -> None:
        """Octets of a chunk that we took over (200) and could not write."""
        self._settle_rest(stream, code, now)
        if failure := _Failure.of_rest(stream):
            self._report(failure, code, comment, now)

    def _settle_rest(self, stream: OutStream, code: int, now: float) -> None:
        if stream.size and self._relay.account is not None:
            entry = (0, stream.route, stream.head.rest, stream.position, stream.size, stream.flag == b"$", stream)
            self._relay.account.settle(entry, code, now)

    def _report(self, failure: _Failure, code: int, comment: bytes, now: float) -> None:
        source = self._relay.reachable(failure.route.source)
        head = failure.head
        if not head.message_id:
            self._relay.stats.refuse("report_without_message_id")
        elif source is None:
            self._relay.stats.refuse("report_undeliverable")
        elif not source.may_report(now):
            self._relay.stats.refuse("report_rate")
        else:
            total = head.range.total if head.range else (failure.end if failure.final else None)
            identifier = self._relay.identifiers.draw(source.outbox.pending)
            value = encode_byte_range(failure.start, failure.end, total)
            status = b"%d %b" % (code, comment) if comment else b"%d" % code
            source.outbox.send_frame(
                build_report(identifier, failure.route.report_paths, head.message_id, value, status)
            )
            self._relay.stats.reports_made += 1


class _Failure:
    """Octets of one message that did not arrive; `final` says that the message ended with them."""

    __slots__ = ("end", "final", "head", "route", "start")

    def __init__(self, route: Route, head: Head, start: int, end: int, final: bool) -> None:
        self.route = route
        self.head = head
        self.start = start
        self.end = end
        self.final = final

    @classmethod
    def of(cls, entry: Sent) -> _Failure:
        """The octets really sent count, not what the sender wrote."""
        head = _read(entry)
        start = entry[3] or (head.range.start if head.range else 1)
        return cls(entry[1], head, start, start + max(entry[4], 0) - 1, entry[5])

    @classmethod
    def of_rest(cls, stream: OutStream) -> _Failure | None:
        """What of a chunk was taken over and not written; None where there is nothing, or nobody to tell."""
        if not stream.size or stream.failed or stream.head.failure_report == b"no":
            return None
        end = stream.position + stream.size - 1
        return cls(stream.route, stream.head, stream.position, end, stream.flag == b"$")

    def extend(self, other: _Failure) -> bool:
        """Take neighbouring octets of the same message in, if that is what `other` is."""
        if other.route is not self.route or other.start != self.end + 1 or self.final:
            return False
        if other.head.message_id != self.head.message_id or (other.head.range is None) != (self.head.range is None):
            return False
        self.end, self.final = other.end, other.final
        return True


def _join(failures: list[_Failure], failure: _Failure) -> None:
    if not failures or not failures[-1].extend(failure):
        failures.append(failure)


def _read(entry: Sent) -> Head:
    """Read the headers a chunk was sent with; done only now, because nearly all chunks are answered 200."""
    return Head(StartLine(b"", b"SEND", 0, b""), entry[1].paths + entry[2], entry[4] >= 0)
