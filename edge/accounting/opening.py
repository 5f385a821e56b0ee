"""Accounting as the settings describe it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from edge.accounting.journal import Journal
from edge.accounting.ledger import Ledger
from edge.accounting.table import AccountTable
from edge.accounting.writer import AccountWriter, Sink, log
from edge.config import Accounting
from edge.errors import ConfigError
from edge.storage.base import UnusableUrlError


def open_ledger(settings: Accounting, source: str, loop: asyncio.AbstractEventLoop) -> Ledger | None:
    """Open the file or name the database, and start the thread; None where there is no accounting.

    A database that does not answer is no error: records wait for it.

    Raises:
        ConfigError: the file cannot be opened, or the URL cannot be used.
    """
    if not settings.url:
        return None
    try:
        sink = _open_sink(settings)
    except (OSError, UnusableUrlError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(source, "accounting.url", reason) from error
    writer = AccountWriter(sink, loop, f"{int(time.time() * 1000):x}")
    return Ledger(writer, loop, settings.records, interval_s=settings.interval, limit=settings.queue)


def _open_sink(settings: Accounting) -> Sink:
    if not settings.url.startswith("file:"):
        return AccountTable(settings.url)
    return Journal(journal_path(settings.url), log, rotate_size=settings.rotate_size, keep=settings.keep)


def journal_path(url: str) -> Path:
    """Return the file that a `file:` URL names."""
    return Path(url.removeprefix("file:").removeprefix("//"))
