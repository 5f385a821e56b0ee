"""The choice among the refusals of all branches (RFC 3261 §16.7 steps 6 and 7), sans-IO."""

from __future__ import annotations

from edge.sip import headers as h
from edge.sip.message import Message

_PREFERRED = (401, 407, 415, 420, 484)
_CHALLENGES = (h.WWW_AUTHENTICATE, h.PROXY_AUTHENTICATE)


class Refusals:
    """What the branches of one request ended with, as far as it may still be needed: the best, and every challenge."""

    __slots__ = ("_challenges", "message", "status")

    def __init__(self, status: int, message: Message | None) -> None:
        self.status = status
        self.message = message
        self._challenges = _read_challenges(status, message)

    def note(self, status: int, message: Message | None) -> None:
        """Take another one in; of equals the first stays. `message` is None for what no branch has said."""
        self._challenges += _read_challenges(status, message)
        if _rank(status) < _rank(self.status):
            self.status = status
            self.message = message

    def with_challenges(self, message: Message) -> Message:
        """Put every challenge of all branches into the chosen 401 or 407, in the order they came in (§16.7 step 7)."""
        drop = {index for kind in _CHALLENGES for index in message.indexes(kind)}
        message.lines = [line for index, line in enumerate(message.lines) if index not in drop] + self._challenges
        return message


def _read_challenges(status: int, message: Message | None) -> list[bytes]:
    if message is None or status not in (401, 407):
        return []
    return [message.lines[index] for index in sorted(i for kind in _CHALLENGES for i in message.indexes(kind))]


def _rank(status: int) -> tuple[int, int]:
    """Order of preference (§16.7 step 6): lower is better. Our own 480 and 487, and 503, say least."""
    if status >= 600:
        return 0, 0
    if status in _PREFERRED:
        return status // 100, 0
    return status // 100, 1 if status not in (480, 503) else 2
