"""The thread that writes records, and keeps those it cannot write until it can."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from edge.accounting.messages import Messages
from edge.accounting.records import Entry, Record, build_record, count_kinds
from edge.log import FieldAdapter
from edge.storage.schema import one_line
from edge.storage.worker import Worker

log = FieldAdapter(logging.getLogger("edge.accounting"))

BATCHES = 10_000
IDLE_S = 60.0
CLOCK_STEP_S = 0.5


class Sink(Protocol):
    """Where records go."""

    def write(self, records: Sequence[Record]) -> int:
        """Write them, and return how many cannot ever be written; OSError or SQLAlchemyError: ask again later."""

    def close(self) -> None:
        """Let go of it."""


class AccountWriter(Worker[list[Entry]]):
    """Writes batches of entries to a sink.

    `settled` counts what was handed over and is done with, `written` the records written by kind, `refused` those that
    the sink will never take, `abandoned` those that could not be written before the end.
    """

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop, prefix: str) -> None:
        self.settled = 0
        self.written: dict[str, int] = {}
        self.refused = 0
        self.abandoned = 0
        self._sink = sink
        self._prefix = prefix
        self._offset_s = time.time() - time.monotonic()
        self._number = 0
        self._messages = Messages()
        self._kept: list[tuple[Entry, Record]] = []
        self._due = 0  # entries behind what is kept
        super().__init__("accounting", loop, BATCHES, gather_s=0.0)

    def offer(self, batch: list[Entry]) -> bool:
        """Hand a batch over, which may be empty (a look at the file); False when there are too many."""
        return self._mailbox.offer(batch)

    def _handle(self, batch: list[list[Entry]]) -> None:
        offset_s = time.time() - time.monotonic()  # never quite the same, but records of one call are to say the same
        if abs(offset_s - self._offset_s) > CLOCK_STEP_S:
            self._offset_s = offset_s
        for entries in batch:
            self._due += len(entries)
            for entry in self._messages.put_together(entries):
                self._number += 1
                self._kept.append((entry, build_record(entry, f"{self._prefix}-{self._number}", self._offset_s)))
        self._flush()

    def _flush(self) -> None:
        if self.health.retry_in > 0:
            return
        try:
            refused = self._sink.write([record for _, record in self._kept])
        except (OSError, SQLAlchemyError) as error:
            self.health.failed(one_line(error))
            return
        count_kinds((entry for entry, _ in self._kept), self.written)
        self.refused += refused
        if refused:
            log.warning("accounting records refused", count=refused)
        self._kept.clear()
        self.settled += self._due
        self._due = 0
        self.health.succeeded()

    def _pause_s(self) -> float:
        return IDLE_S if self.health.healthy else self.health.retry_in

    def _keep_house(self) -> None:
        if not self.health.healthy and self.health.retry_in == 0:
            self._flush()

    def _finish(self) -> None:
        if self._kept:
            self.health.give_up_waiting()
            self._flush()
        if self._kept:
            self.abandoned = len(self._kept)
            log.error("accounting records lost", count=self.abandoned, reason=self.health.last_error)
        self._sink.close()
