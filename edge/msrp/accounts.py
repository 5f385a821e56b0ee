"""What accounting is told of MSRP: sessions with their sums, and by choice what became of each chunk. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.msrp.report import Sent
    from edge.msrp.session import Session

Values = tuple[object, ...]


class Accounts:
    """Hands tuples over, in the order of `edge.accounting`; `chunks` asks for one for each chunk."""

    __slots__ = ("_chunks", "_write")

    def __init__(self, write: Callable[[str, Values], None], chunks: bool) -> None:
        self._write = write
        self._chunks = chunks

    def settle(self, entry: Sent, code: int, now: float) -> None:
        """A chunk was answered with `code`; 0: nobody was asked to, or need have."""
        route = entry[1]
        session = route.session
        size = max(entry[4], 0)
        if code in (0, 200):
            session.chunks += 1
            session.octets += size
        if self._chunks:
            values = session.name, session.user, route.outbound, entry[2], size, entry[5], code, now
            self._write("chunk", values)

    def close(self, session: Session, reason: str, now: float) -> None:
        """A session is over."""
        flow = session.owner.connection.name
        values = session.name, session.user, flow, session.opened_at, now, reason, session.chunks, session.octets
        self._write("session", values)
