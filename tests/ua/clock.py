"""A clock that only moves when told, for state machines that take `now` as an argument."""


class FakeClock:
    """A monotonic clock in seconds; starts well away from zero so that a forgotten offset shows."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move forward and return the new time. Raises ValueError for a negative step: the clock is monotonic."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self.now += seconds
        return self.now
