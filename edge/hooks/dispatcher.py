"""Hands events to hooks, outside of the way of messages.

    bus ─► Dispatcher.receive ─► Hook.offer ─► queue ─► at most `parallel` tasks ─► Action.run
                    │                  └ full: dropped and counted
                    └─► Feed: whoever reads /api/events

The publisher of an event pays for a look-up by its class and an append. What a hook does and how long it takes is the
affair of its own tasks; they exist while there is something to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from edge.events import Event
from edge.hooks.actions import Action, Outcome, Result
from edge.hooks.selection import Occurrence, Selection
from edge.log import FieldAdapter, RateLimited

log = FieldAdapter(logging.getLogger("edge.hooks"))

WARN_EVERY_S = 10.0
DRAIN_S = 2.0  # what a stop gives hooks that wait or run
RETIRE_S = 60.0  # and what a reload gives those that it replaces
RESULTS = ("started", "done", "failed", "timed_out", "dropped", "retried")


class Hook:
    """One action with the events it is for, and a queue of at most `limit` of them.

    `counts` has a number for each of `RESULTS`.
    """

    def __init__(
        self, name: str, selection: Selection, action: Action, *, limit: int = 1000, parallel: int = 1
    ) -> None:
        self.name = name
        self.selection = selection
        self.action = action
        self.counts = dict.fromkeys(RESULTS, 0)
        self._limit = limit
        self._parallel = parallel
        self._queue: deque[Occurrence] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._warnings = RateLimited(WARN_EVERY_S)
        self._closed = False

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._queue)

    def count_retry(self) -> None:
        """Count an attempt that follows another one."""
        self.counts["retried"] += 1

    def offer(self, occurrence: Occurrence) -> None:
        """Take an event, or count its loss."""
        if self._closed or len(self._queue) >= self._limit:
            self.counts["dropped"] += 1
            self._warn("dropped", f"{len(self._queue)} events wait")
            return
        self._queue.append(occurrence)
        if len(self._tasks) < self._parallel:
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        while self._queue:
            occurrence = self._queue.popleft()
            self.counts["started"] += 1
            self._note(occurrence, await self.action.run(occurrence))

    def _note(self, occurrence: Occurrence, outcome: Outcome) -> None:
        self.counts[outcome.result.value] += 1
        if outcome.result is not Result.DONE:
            self._warn(outcome.result.value, outcome.reason, occurrence.name)

    def _warn(self, what: str, reason: str, event: str = "-") -> None:
        held_back = self._warnings.allow(what, time.monotonic())
        if held_back is not None:
            log.warning("hook failed", hook=self.name, event=event, result=what, reason=reason, held_back=held_back)

    async def close(self, within_s: float) -> None:
        """Take nothing more; finish what waits within that time, and count what is not finished as dropped."""
        self._closed = True
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.counts["dropped"] += len(self._queue)
        self._queue.clear()
        await self.action.close()


class Dispatcher:
    """All hooks, and everybody else who wants events by name and filter.

    `prefix` makes the ids of occurrences unique over restarts, `wall_clock` gives seconds since 1970.
    """

    def __init__(self, prefix: str, wall_clock: Callable[[], float] = time.time) -> None:
        self.hooks: list[Hook] = []
        self._prefix = prefix
        self._wall_clock = wall_clock
        self._number = 0
        self._listeners: list[tuple[Selection, Callable[[Occurrence], None]]] = []
        self._by_kind: dict[type[Event], list[tuple[Selection, Callable[[Occurrence], None]]]] = {}
        self._old_counts: dict[str, dict[str, int]] = {}
        self._retiring: dict[asyncio.Task[None], Hook] = {}

    def receive(self, event: Event) -> None:
        """Take an event from the bus."""
        wanted = self._by_kind.get(type(event))
        if wanted is None:
            return
        takers = [take for selection, take in wanted if selection.matches(event)]
        if takers:
            self._number += 1
            occurrence = Occurrence(event, self._wall_clock(), f"{self._prefix}-{self._number}")
            for take in takers:
                take(occurrence)

    def subscribe(self, selection: Selection, take: Callable[[Occurrence], None]) -> Callable[[], None]:
        """Have `take` called with the events selected, at once and on the loop: it must not wait. Returns the end."""
        entry = (selection, take)
        self._listeners.append(entry)
        self._index()

        def end() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)
                self._index()

        return end

    def replace(self, hooks: Iterable[Hook]) -> None:
        """Put these hooks in the place of those there are; the old ones finish what they have taken."""
        old, self.hooks = self.hooks, list(hooks)
        self._index()
        for hook in old:
            task = asyncio.get_running_loop().create_task(self._retire(hook, RETIRE_S))
            self._retiring[task] = hook
            task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        del self._retiring[task]

    async def _retire(self, hook: Hook, within_s: float) -> None:
        await hook.close(within_s)
        kept = self._old_counts.setdefault(hook.name, dict.fromkeys(RESULTS, 0))
        for result, count in hook.counts.items():
            kept[result] += count

    def _index(self) -> None:
        by_kind: dict[type[Event], list[tuple[Selection, Callable[[Occurrence], None]]]] = {}
        entries = [(hook.selection, hook.offer) for hook in self.hooks]
        for entry in [*entries, *self._listeners]:
            for kind in entry[0].kinds:
                by_kind.setdefault(kind, []).append(entry)
        self._by_kind = by_kind

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many events ended how, by hook and result, those of hooks that are gone included."""
        found = {(name, result): n for name, kept in self._old_counts.items() for result, n in kept.items()}
        for hook in self.hooks:
            for result, count in hook.counts.items():
                found[hook.name, result] = found.get((hook.name, result), 0) + count
        return found

    async def close(self, within_s: float = DRAIN_S) -> None:
        """End every hook: what waits and runs has that long."""
        self._listeners.clear()
        last, self.hooks = self.hooks, []
        self._index()
        await asyncio.gather(
            *(hook.close(within_s) for hook in self._retiring.values()),
            *(self._retire(hook, within_s) for hook in last),
        )
        if self._retiring:
            await asyncio.wait(self._retiring)
