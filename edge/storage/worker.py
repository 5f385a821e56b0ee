"""A thread with a mailbox, which tells the event loop what became of each piece of work."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

from edge.storage.health import Health, logger
from edge.storage.mailbox import Courier, Mailbox
from edge.storage.schema import ANSWER_WITHIN_S, Database

T = TypeVar("T")

QUEUE_LIMIT = 20_000


class Worker(ABC, Generic[T]):
    """Takes work in batches from its mailbox until it is closed; a subclass says what to do with a batch."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, limit: int, gather_s: float) -> None:
        self.health = Health(name, self._tell)
        self.on_change: Callable[[], None] = lambda: None
        self._mailbox: Mailbox[T] = Mailbox(limit)
        self._courier = Courier(loop)
        self._gather_s = gather_s
        self._thread = Thread(target=self._run, name=f"storage-{name}", daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        """Have `on_change` called on the loop: `health` has changed."""
        self._courier.deliver([(lambda _: self.on_change(), None)])

    def close(self) -> None:
        """Finish what waits, then end the thread; blocks."""
        self._mailbox.close()
        self._thread.join(2 * ANSWER_WITHIN_S)
        if self._thread.is_alive():
            logger.error("storage close abandoned", part=self._thread.name, waiting=len(self._mailbox))

    def _run(self) -> None:
        while True:
            batch = self._mailbox.take(self._pause_s(), self._gather_s)
            if batch:
                self._handle(batch)
            elif self._mailbox.closed:
                return self._finish()
            self._keep_house()

    @abstractmethod
    def _handle(self, batch: list[T]) -> None:
        """Do the work; every error ends here."""

    @abstractmethod
    def _pause_s(self) -> float:
        """Seconds until `_keep_house` has something to do."""

    @abstractmethod
    def _keep_house(self) -> None:
        """Do what is due without being asked."""

    def _finish(self) -> None:
        """Do what is left when the mailbox is closed and empty."""


class DatabaseThread(Worker[T]):
    """A worker that has a database of its own."""

    def __init__(
        self, name: str, database: Database, loop: asyncio.AbstractEventLoop, limit: int, gather_s: float
    ) -> None:
        self._database = database
        super().__init__(name, loop, limit, gather_s)
