"""What the simulated ends of both protocols are as an `async with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Peer:
    """Started and stopped by the block, which raises at its end if something came that could not be read (`errors`)."""

    def __init__(self, called: str) -> None:
        self.errors: list[Exception] = []
        self._called = called

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        if kind is None and self.errors:
            raise AssertionError(f"{self._called} received what it could not read: {self.errors}")

    async def start(self) -> None:
        """Connect, or listen."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close every connection."""
        raise NotImplementedError
