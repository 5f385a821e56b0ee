"""Answer CRLF pings between the SIP messages of a stream (RFC 5626 §4.4.1, §5.4; sans-IO).

The framer calls `skip` where a message may begin, and nowhere else: the blank line behind the headers and the octets of
a body are no keep-alives. What `skip` passes over are pings (two CRLF), pongs and filler (one CRLF). UDP has no CRLF
keep-alives, on WebSocket a ping is a message of its own (`edge.websocket`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.demux import CRLF, PingScanner

if TYPE_CHECKING:
    from edge.connections import Connection
    from edge.rates import SourceRate

_MOST_PONGS = 64  # for one read; nobody with an honest clock has more pings in flight


class StreamKeepalive(PingScanner):
    """The keep-alive side of one SIP stream. `scan` only counts, `skip` also answers."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        super().__init__()
        self._owed = False

    def skip(
        self, connection: Connection, data: bytes, now: float, start: int = 0, courtesies: SourceRate | None = None
    ) -> int:
        """Return where the keep-alives that begin at `start` end, and answer the pings among them.

        A pong is queued as a message is, so it never lands inside one. While the peer reads nothing, all its pings get
        one pong together, when there is room again (`handle_writable`). A source that pings more than `courtesies`
        admits gets no more of them in this while.
        """
        end = self.scan(data, now, start)
        if self.pings:
            self._answer(connection, courtesies)
        return end

    def take_ping(self, connection: Connection, now: float, courtesies: SourceRate | None) -> bool:
        """Answer a read that was one ping and nothing else; False when half a ping came before it: `skip` it then."""
        if not self.is_whole(now):
            return False
        self.pings = 1
        self._answer(connection, courtesies)
        return True

    def _answer(self, connection: Connection, courtesies: SourceRate | None) -> None:
        if courtesies is not None and not courtesies.admits(connection.source, self.pings):
            return
        if connection.writable:
            connection.send(CRLF if self.pings == 1 else CRLF * min(self.pings, _MOST_PONGS))
        else:
            self._owed = True

    def handle_writable(self, connection: Connection) -> None:
        """The send queue has drained: send the pong that waited for it."""
        if self._owed:
            self._owed = False
            connection.send(CRLF)
