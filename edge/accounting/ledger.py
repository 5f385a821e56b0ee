"""The loop's end of accounting: entries gathered in a list, which goes to the writer once in an interval.

What happens costs the loop an append. A crash loses what has been gathered since the last interval began. When the
writer cannot write, entries wait, up to a limit; those beyond it are lost and counted, and nobody is held up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from edge.accounting.records import FIELDS, Entry, Values
from edge.accounting.writer import AccountWriter, log
from edge.events import RegistrationChanged
from edge.log import RateLimited

WARN_EVERY_S = 10.0
NOTHING_WRITTEN = dict.fromkeys(FIELDS, 0), dict.fromkeys(("queue", "refused", "stop"), 0)


class Ledger:
    """Takes entries of the kinds wanted; `lost` counts those there was no room for."""

    def __init__(
        self,
        writer: AccountWriter,
        loop: asyncio.AbstractEventLoop,
        kinds: Collection[str],
        *,
        interval_s: float = 1.0,
        limit: int = 100_000,
    ) -> None:
        self.lost = 0
        self.kinds = frozenset(kinds)
        self._writer = writer
        self._loop = loop
        self._accepted = self.kinds | ({"chunk"} if "message" in self.kinds else set())
        self._interval_s = interval_s
        self._limit = limit
        self._handed = 0
        self._batch: list[Entry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._warnings = RateLimited(WARN_EVERY_S)

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._batch) + self._handed - self._writer.settled

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write worked."""
        return self._writer.health.healthy

    def on_change(self, listener: Callable[[bool, str], None]) -> None:
        """Have `listener(healthy, reason)` called on the loop whenever `healthy` changes."""
        health = self._writer.health
        self._writer.on_change = lambda: listener(health.healthy, "" if health.healthy else health.last_error)

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the records written, by kind, and those lost, by reason."""
        lost = {"queue": self.lost, "refused": self._writer.refused, "stop": self._writer.abandoned}
        return {**NOTHING_WRITTEN[0], **self._writer.written}, lost

    def write(self, kind: str, values: Values) -> None:
        """Take an entry; see `edge.accounting.records` for what is in it."""
        if kind not in self._accepted:
            return
        if self.waiting >= self._limit:
            self.lost += 1
            held_back = self._warnings.allow("queue", time.monotonic())
            if held_back is not None:
                log.error("accounting records lost", reason=self._writer.health.last_error, held_back=held_back)
            return
        self._batch.append((kind, values))
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval_s, self.flush)

    def write_registration(self, event: RegistrationChanged) -> None:
        """Take a change of a binding from the bus."""
        values = (
            event.aor,
            event.contact,
            event.change,
            event.expires_s,
            event.connection,
            event.instance,
            event.reg_id,
        )
        self.write("registration", (self._loop.time(), *values))

    def flush(self) -> None:
        """Hand over what was gathered; with nothing gathered, have the file looked at."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        batch, self._batch = self._batch, []
        if self._writer.offer(batch):
            self._handed += len(batch)
        else:
            self.lost += len(batch)

    def close(self) -> None:
        """Write what waits, and end; blocks."""
        self.flush()
        self._writer.close()
