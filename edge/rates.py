"""How much one source may ask for in a while: counted in fixed windows, an integer for each source (sans-IO).

`SourceRate` says whether another one is within bounds. `SourceBlocks` shuts a source out for a time once it is not.
What was counted is forgotten at the end of each window by one timer, which only runs while something is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address

from edge.timers import Timed, TimerWheel

_MOST_SOURCES = 65536  # in one window, or blocked; with forged addresses there may be any number


class SourceRate(Timed):
    """Admit up to `limit` things of one source in each window of `window_s` seconds; `trusted` sources any number.

    `source` is an IP address as text; the /64 of an IPv6 address counts as one source.
    """

    __slots__ = ("_clock", "_counts", "_limit", "_trusted", "_wheel", "_window_s")

    def __init__(
        self,
        wheel: TimerWheel,
        clock: Callable[[], float],
        limit: int,
        window_s: float,
        trusted: Callable[[str], bool],
    ) -> None:
        self._slot = None
        self._wheel = wheel
        self._clock = clock
        self._limit = limit
        self._window_s = window_s
        self._trusted = trusted
        self._counts: dict[str, int] = {}

    def admits(self, source: str, count: int = 1) -> bool:
        """Count `count` things of a source; False once there are too many in this window."""
        key = source_key(source) if ":" in source else source
        counts = self._counts
        if not counts:
            self._wheel.start(self, self._clock() + self._window_s)
        elif len(counts) >= _MOST_SOURCES and key not in counts:
            counts.clear()
        seen = counts[key] = counts.get(key, 0) + count
        return seen <= self._limit or self._trusted(source)

    def handle_timer(self, now: float) -> None:
        """The window is over."""
        self._counts.clear()


class SourceBlocks(Timed):
    """Block a source for `block_s` seconds when `rate` does not admit it.

    `began(source)` is told once for each block, `dropped("message_rate")` each time something is dropped.
    """

    __slots__ = ("_began", "_block_s", "_clock", "_dropped", "_rate", "_until", "_wheel")

    def __init__(
        self,
        wheel: TimerWheel,
        clock: Callable[[], float],
        rate: SourceRate,
        block_s: float,
        began: Callable[[str], None],
        dropped: Callable[[str], None],
    ) -> None:
        self._slot = None
        self._wheel = wheel
        self._clock = clock
        self._rate = rate
        self._block_s = block_s
        self._began = began
        self._dropped = dropped
        self._until: dict[str, float] = {}

    def blocks(self, source: str) -> bool:
        """Whether nothing is taken from a source now; one look-up of an empty dictionary while nobody is blocked."""
        return bool(self._until) and (source_key(source) if ":" in source else source) in self._until

    def drop(self) -> None:
        """Count what was not taken."""
        self._dropped("message_rate")

    def count(self, source: str) -> None:
        """Count one message."""
        if self._rate.admits(source):
            return
        if len(self._until) >= _MOST_SOURCES:
            self._until.clear()
        key = source_key(source) if ":" in source else source
        if key not in self._until:
            self._until[key] = self._clock() + self._block_s
            self._look_again()
            self._began(source)

    def _look_again(self) -> None:
        if self._until:
            self._wheel.start(self, min(self._until.values()))

    def handle_timer(self, now: float) -> None:
        """Let go of those whose time is over."""
        self._until = {key: until for key, until in self._until.items() if until > now}
        self._look_again()


def source_key(source: str) -> str:
    """Fold an IPv6 address to its /64, which one subscriber has all of; a mapped IPv4 address to that."""
    address = IPv6Address(source.partition("%")[0])
    return str(address.ipv4_mapped) if address.ipv4_mapped else address.packed[:8].hex()
