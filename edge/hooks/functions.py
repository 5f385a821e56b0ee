"""Python functions as hooks: found by `module:function`, called outside of the event loop's own work.

A plain function runs in a thread, an `async` one on the loop. A plain one cannot be stopped: if it does not come back,
it is counted as timed out, and its hook waits for it before it calls it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from edge.hooks.actions import DONE, Outcome, Result
from edge.hooks.selection import Occurrence

Function = Callable[[dict[str, Any]], Awaitable[None] | None]


class UnusableFunctionError(Exception):
    """There is no such module or function; the text says why."""


def load_function(where: str, folder: Path) -> Function:
    """Find `module:function`, its module read anew; modules in `folder` come first.

    Raises:
        UnusableFunctionError: the module cannot be imported, or has no such function.
    """
    name, _, attribute = where.partition(":")
    try:
        module = _import(name, folder)
        function = getattr(module, attribute)
    except Exception as error:
        raise UnusableFunctionError(f"{type(error).__name__}: {error}") from error
    if not callable(function):
        raise UnusableFunctionError(f"{where} is not a function")
    return function  # type: ignore[no-any-return]


def _import(name: str, folder: Path) -> ModuleType:
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder.resolve()))
    try:
        known = sys.modules.get(name)
        return importlib.import_module(name) if known is None else importlib.reload(known)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder.resolve()))


class Call:
    """Calls a function with each event as a dictionary (`Occurrence.describe`)."""

    def __init__(self, function: Function, timeout_s: float) -> None:
        self._function = function
        self._timeout_s = timeout_s
        self._stuck: set[asyncio.Future[None]] = set()

    async def run(self, occurrence: Occurrence) -> Outcome:
        """Call it; whatever it raises is a failure."""
        try:
            if inspect.iscoroutinefunction(self._function):
                async with asyncio.timeout(self._timeout_s):
                    await self._function(occurrence.describe())
                return DONE
            return await self._run_plain(occurrence)
        except TimeoutError:
            return Outcome(Result.TIMED_OUT, f"cancelled after {self._timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - the operator's function may raise anything
            return Outcome(Result.FAILED, f"{type(error).__name__}: {error}")

    async def _run_plain(self, occurrence: Occurrence) -> Outcome:
        if self._stuck:
            await asyncio.wait(self._stuck)
        future = _start_thread(self._function, occurrence.describe())
        done, _ = await asyncio.wait([future], timeout=self._timeout_s)
        if not done:
            self._stuck.add(future)
            future.add_done_callback(self._forget)
            return Outcome(Result.TIMED_OUT, f"does not come back after {self._timeout_s:g} s")
        future.result()
        return DONE

    def _forget(self, future: asyncio.Future[None]) -> None:
        self._stuck.discard(future)
        if not future.cancelled():
            future.exception()

    async def close(self) -> None:
        """Nothing is kept; a function that does not come back ends with the process."""


def _start_thread(function: Function, argument: dict[str, Any]) -> asyncio.Future[None]:
    """Call a function in a thread which nobody waits for at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def work() -> None:
        problem: Exception | None = None
        try:
            function(argument)
        except Exception as error:  # noqa: BLE001 - handed over
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, problem)

    Thread(target=work, name="hook", daemon=True).start()
    return future
