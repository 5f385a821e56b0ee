"""Which connections go when there is no room for others: the least recently used that carry nothing (RFC 4976 §6.5)."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler

IDLE_S = 30.0  # younger silence may be a client between its connection and its AUTH
_AT_A_TIME = 16
_PAUSE_S = 1.0


class Reliever:
    """Closes idle connections without a session. It looks at most once a second: a flood must not make it work."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def relieve(self, handlers: Iterable[MsrpHandler], now: float) -> int:
        """Close the longest idle of `handlers` that nobody needs, a few at a time; returns how many."""
        if now < self._next:
            return 0
        self._next = now + _PAUSE_S
        idle = nsmallest(_AT_A_TIME, [handler for handler in handlers if _is_spare(handler, now)], key=_last_used)
        for handler in idle:
            handler.close("pressure")
        return len(idle)


def _is_spare(handler: MsrpHandler, now: float) -> bool:
    """Whether nothing lives on a connection: no session, no request without answer, no octet under way."""
    connection, outbox = handler.connection, handler.outbox
    return (
        not connection.registered
        and not connection.uses
        and not (outbox.pending or outbox.streams or outbox.connecting)
        and now - connection.last_received >= IDLE_S
    )


def _last_used(handler: MsrpHandler) -> float:
    return handler.connection.last_received
