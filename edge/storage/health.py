"""Whether a database answers, and when to ask again after it did not."""

import logging
import time
from collections.abc import Callable

from edge.log import FieldAdapter

logger = FieldAdapter(logging.getLogger("edge.storage"))

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0


class Health:
    """The state of one thread's database connection, with the pause before the next attempt.

    Written by that thread alone; the loop only reads. `changed` is called in that thread when `healthy` changes.
    """

    def __init__(self, name: str, changed: Callable[[], None] = lambda: None) -> None:
        self.healthy = True
        self._changed = changed
        self.last_error = ""
        self._name = name
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = 0.0

    @property
    def retry_in(self) -> float:
        """Seconds until the next attempt may be made; 0 when it may be made now."""
        return 0.0 if self.healthy else max(0.0, self._retry_at - time.monotonic())

    def give_up_waiting(self) -> None:
        """Let the next attempt be made now, because it is the last one."""
        self._retry_at = 0.0

    def failed(self, reason: str) -> None:
        """Note a failure; each one in a row doubles the pause."""
        was_healthy = self.healthy
        if was_healthy:
            logger.error("storage down", part=self._name, reason=reason)
            self._pause_s = FIRST_PAUSE_S
        self.healthy = False
        self.last_error = reason
        self._retry_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if was_healthy:
            self._changed()

    def succeeded(self) -> None:
        """Note that the database answers."""
        if not self.healthy:
            self.healthy = True
            logger.info("storage up", part=self._name)
            self._changed()
