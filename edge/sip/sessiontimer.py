"""Asking for session timers as a proxy (RFC 4028 §8), sans-IO. Off unless `sip.session_expires` is set.

    request    without Session-Expires      ours is written in, never below Min-SE
               longer than ours             lowered to ours, never below Min-SE; `refresher` stays as it is
               shorter than our minimum     422 for a caller who knows timers, else both are raised to our minimum
    2xx        without Session-Expires      added for a caller who knows timers: he is to refresh

Only INVITE and UPDATE carry these headers. We keep no state for a session and never end one.
"""

from __future__ import annotations

from edge.sip import headers as h
from edge.sip.grammar import unfold
from edge.sip.message import Message

REFRESHES = frozenset((b"INVITE", b"UPDATE"))
SHORTEST_S = 90  # what Min-SE means where there is none (RFC 4028 §5)
_MIN_SE = b"min-se"


class SessionTimers:
    """`interval` is what to ask for and `minimum` what we accept, both in seconds."""

    __slots__ = ("interval", "minimum", "refusal")

    def __init__(self, interval: int, minimum: int) -> None:
        self.interval = interval
        self.minimum = minimum
        self.refusal = b"Min-SE: %d" % minimum

    def refuses(self, message: Message) -> bool:
        """Whether a request is to be answered 422: too short, from somebody who can choose another interval (§8.1)."""
        return 0 <= _read_interval(message) < self.minimum and _knows_timers(message)

    def ask(self, message: Message) -> int:
        """Insert, lower or raise Session-Expires in a request that `refuses` let pass.

        Returns:
            Seconds to write into a 2xx that has no Session-Expires; 0 where nothing is to be written.
        """
        interval = _read_interval(message)
        if interval < -1:
            return 0
        lowest = max(_read_minimum(message), SHORTEST_S)
        asked = max(self.interval, lowest)
        if interval < 0:
            message.lines.append(b"Session-Expires: %d" % asked)
        elif interval < self.minimum:
            asked = max(self.minimum, lowest)
            _set_minimum(message, asked)
            _set_interval(message, asked)
        elif interval > asked:
            _set_interval(message, asked)
        else:
            asked = interval
        return asked if _knows_timers(message) else 0

    @staticmethod
    def complete(message: Message, asked: int) -> None:
        """Let the caller refresh a session whose callee knows no timers (§8.2): changes a 2xx without one."""
        if message.first[h.SESSION_EXPIRES]:
            return
        message.lines.append(b"Session-Expires: %d;refresher=uac" % asked)
        if not h.has_option(message.values(h.REQUIRE), b"timer"):
            message.lines.append(b"Require: timer")


def _knows_timers(message: Message) -> bool:
    return h.has_option(message.values(h.SUPPORTED), b"timer")


def _read_interval(message: Message) -> int:
    """Return the seconds of Session-Expires, -1 without one, -2 where it cannot be read or there are two."""
    rows = message.values(h.SESSION_EXPIRES)
    if not rows:
        return -1
    return -2 if len(rows) > 1 else h.parse_delta(rows[0].partition(b";")[0].strip(b" \t"), -2)


def _minimum_row(message: Message) -> int:
    """Return the index of the Min-SE row, 0 without one."""
    for index in range(1, len(message.lines)):
        if message.lines[index].partition(b":")[0].strip(b" \t").lower() == _MIN_SE:
            return index
    return 0


def _read_minimum(message: Message) -> int:
    index = _minimum_row(message)
    return h.parse_delta(message.value_at(index).partition(b";")[0].strip(b" \t"), 0) if index else 0


def _set_minimum(message: Message, seconds: int) -> None:
    index = _minimum_row(message)
    if index:
        message.lines[index] = b"Min-SE: %d" % seconds
    else:
        message.lines.append(b"Min-SE: %d" % seconds)


def _set_interval(message: Message, seconds: int) -> None:
    _, semicolon, parameters = unfold(message.texts[h.SESSION_EXPIRES]).partition(b";")
    message.lines[message.first[h.SESSION_EXPIRES]] = b"Session-Expires: %d%b%b" % (seconds, semicolon, parameters)
