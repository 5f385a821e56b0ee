"""A timer wheel for many short timers (sans-IO: the clock is an argument).

Transactions, MSRP responses, connections and flows each have one next deadline. They inherit `Timed`, hang in a
slot of a `TimerWheel` and are told when it passes. Starting, moving and stopping a timer are a set operation each;
nothing is allocated and no event loop timer exists for a single one of them.

    slot = ceil(deadline / tick) modulo the number of slots; one that is more than a round away is met again and left
"""

import math
from collections.abc import Callable

from mypy_extensions import mypyc_attr

_EPSILON = 1e-6  # ticks; keeps 0.15 / 0.05 from being rounded down to 2


@mypyc_attr(allow_interpreted_subclasses=True)
class Timed:
    """Something with at most one running timer. Subclasses define `handle_timer`."""

    __slots__ = ("_slot", "timer_deadline")

    _slot: "set[Timed] | None"
    timer_deadline: float

    def handle_timer(self, now: float) -> None:
        """Called once when the deadline has passed; the timer is stopped already and may be started again."""
        raise NotImplementedError


class TimerWheel:
    """Keep timers with a resolution of `tick_s` seconds.

    `wake` is called when the wheel gets its first timer, so that whoever drives it can begin to tick.
    """

    __slots__ = ("_done", "_mask", "_slots", "count", "tick_s", "wake")

    def __init__(
        self, now: float, tick_s: float = 0.05, slots: int = 1024, wake: Callable[[], None] | None = None
    ) -> None:
        if slots & (slots - 1):
            raise ValueError("the number of slots must be a power of two")
        self.tick_s = tick_s
        self._mask = slots - 1
        self._slots: list[set[Timed]] = [set() for _ in range(slots)]
        self._done = int(now / tick_s + _EPSILON)
        self.count = 0
        self.wake = wake

    def start(self, timer: Timed, deadline: float) -> None:
        """Start `timer`, or move it when it is running."""
        old = getattr(timer, "_slot", None)
        if old is not None:
            old.discard(timer)
        else:
            self.count += 1
            if self.count == 1 and self.wake is not None:
                self.wake()
        ticks = max(math.ceil(deadline / self.tick_s - _EPSILON), self._done + 1)
        slot = self._slots[ticks & self._mask]
        slot.add(timer)
        timer._slot = slot
        timer.timer_deadline = deadline

    def stop(self, timer: Timed) -> None:
        """Stop `timer`; one that is not running is left alone."""
        slot = getattr(timer, "_slot", None)
        if slot is not None:
            slot.discard(timer)
            timer._slot = None
            self.count -= 1

    def advance(self, now: float) -> None:
        """Tell every timer whose deadline is at or before `now`."""
        target = int(now / self.tick_s + _EPSILON)
        limit = now + self.tick_s * _EPSILON
        first = max(self._done + 1, target - self._mask)
        self._done = max(self._done, target)
        for tick in range(first, target + 1):
            slot = self._slots[tick & self._mask]
            if slot:
                self._fire(slot, now, limit)

    def _fire(self, slot: set[Timed], now: float, limit: float) -> None:
        for timer in [t for t in slot if t.timer_deadline <= limit]:
            if timer in slot:  # an earlier one of this round may have stopped it
                slot.discard(timer)
                timer._slot = None
                self.count -= 1
                timer.handle_timer(now)
