"""How work reaches a storage thread, and how its results come back to the event loop.

    loop ──offer()──► Mailbox ──take()──► thread ──Courier.deliver()──► loop

The loop never waits: a mailbox that is full says so.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition
from typing import Any, Generic, TypeVar

T = TypeVar("T")

QUIET_S = 0.002


class Mailbox(Generic[T]):
    """A bounded queue from one or more threads to one thread, emptied in batches."""

    def __init__(self, limit: int) -> None:
        self._items: deque[T] = deque()
        self._limit = limit
        self._ready = Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken in."""
        return self._closed

    def offer(self, item: T) -> bool:
        """Put an item in; False when the box is full or closed."""
        with self._ready:
            if self._closed or len(self._items) >= self._limit:
                return False
            self._items.append(item)
            self._ready.notify()
        return True

    def take(self, wait_s: float, gather_s: float = 0.0) -> list[T]:
        """Wait for a first item, gather what follows it closely, return everything; empty after `wait_s` or `close`.

        Gathering ends after `gather_s`, or as soon as nothing new came for two milliseconds: a lone item is not held
        up for company that does not come.
        """
        with self._ready:
            self._ready.wait_for(lambda: self._items or self._closed, wait_s)
        self._gather(time.monotonic() + gather_s)
        with self._ready:
            items = list(self._items)
            self._items.clear()
        return items

    def close(self) -> None:
        """Take nothing more in and wake the thread; what is inside can still be taken out."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def _gather(self, deadline: float) -> None:
        seen = 0
        while seen < len(self._items) < self._limit and not self._closed and time.monotonic() < deadline:
            seen = len(self._items)
            time.sleep(QUIET_S)


class Courier:
    """Carries results from a thread to the callbacks waiting on the event loop, a batch at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def deliver(self, results: list[tuple[Callable[[Any], None], Any]]) -> None:
        """Have every callback called with its result on the loop; a loop that has ended needs none."""
        if results:
            with suppress(RuntimeError):  # the loop was closed before its storage
                self._loop.call_soon_threadsafe(self._spread, results)

    def _spread(self, results: list[tuple[Callable[[Any], None], Any]]) -> None:
        for done, result in results:  # each on its own, so that one that raises does not cost the others their answer
            self._loop.call_soon(done, result)
