"""How long one full receiver may hold up a connection that carries several users (RFC 4976 §1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.timers import Timed

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler


class LinkGrace(Timed):
    """How long a connection of many users may be held up by one full receiver."""

    __slots__ = ("_handler",)

    def __init__(self, handler: MsrpHandler) -> None:
        self._handler = handler
        self._slot = None

    def begin(self, now: float) -> None:
        """The connection is not read from now on."""
        self._handler.relay.wheel.start(self, now + self._handler.relay.settings.link_grace)

    def end(self) -> None:
        """It is read again."""
        self._handler.relay.wheel.stop(self)

    def handle_timer(self, now: float) -> None:
        """There was no room in time."""
        self._handler.refuse_stuck()
