"""Waits with a deadline. Every wait of a test goes through here, so that slow machines scale them all at once."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.01


def scaled(seconds: float) -> float:
    """Return `seconds` times the environment variable EDGE_TEST_TIMEOUT_SCALE (default 1)."""
    return seconds * float(os.environ.get("EDGE_TEST_TIMEOUT_SCALE", "1"))


def deadline(seconds: float = 5.0) -> asyncio.Timeout:
    """Return an asynchronous context manager that raises TimeoutError after the scaled time."""
    return asyncio.timeout(scaled(seconds))


async def within(awaitable: Awaitable[T], seconds: float = 5.0) -> T:
    """Await with a scaled deadline; raises TimeoutError."""
    async with deadline(seconds):
        return await awaitable


async def eventually(
    predicate: Callable[[], T | Awaitable[T]], seconds: float = 5.0, *, what: str = "the expected state"
) -> T:
    """Poll until `predicate` (plain or coroutine function) gives something true, and return that.

    For states that announce themselves nowhere; prefer an event or a queue where there is one.

    Raises:
        TimeoutError: not true within the scaled time; says what was waited for and the last value seen.
    """
    end = time.monotonic() + scaled(seconds)
    while True:
        outcome = predicate()
        value = await outcome if inspect.isawaitable(outcome) else outcome
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what} was not reached in {scaled(seconds):g} s; last seen: {value!r}")
        await asyncio.sleep(_POLL_S)


def eventually_blocking(predicate: Callable[[], T], seconds: float = 5.0, *, what: str = "the expected state") -> T:
    """Poll like `eventually`, for tests without an event loop (child processes, threads)."""
    end = time.monotonic() + scaled(seconds)
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what} was not reached in {scaled(seconds):g} s; last seen: {value!r}")
        time.sleep(_POLL_S)


def whole_lines(path: Path) -> list[str]:
    """Return the lines another process has finished writing; none where there is no file yet."""
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return whole.splitlines()
