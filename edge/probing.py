"""What `edge check` looks for outside of the configuration: where accounting writes to, and what hooks start.

Nothing is created, changed or started, but for the modules of functions, which are loaded as the server would.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edge.accounting.opening import journal_path
from edge.config import Accounting
from edge.errors import ConfigError
from edge.hooks.building import build_hooks
from edge.settings import Hook
from edge.storage.base import StorageError, UnusableUrlError
from edge.storage.schema import probe


def probe_accounting(settings: Accounting, source: str) -> str:
    """Return a line for people about where records go. A database server that is away is said, and is no error.

    Raises:
        ConfigError: records could never be written there.
    """
    if not settings.url:
        return "none"
    try:
        if settings.url.startswith("file:"):
            return _probe_file(journal_path(settings.url))
        return probe(settings.url)
    except StorageError as error:
        if isinstance(error, UnusableUrlError) or settings.url.startswith("sqlite"):
            raise ConfigError(source, "accounting.url", str(error)) from error
        return f"does not answer, records would wait: {error}"


def _probe_file(path: Path) -> str:
    """Look whether the file, or its folder, can be written."""
    folder = path.absolute().parent
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UnusableUrlError(f"{path} cannot be written")
    if not os.access(folder, os.W_OK | os.X_OK):  # rotation makes files, too
        raise UnusableUrlError(f"{folder} is not there, or cannot be written")
    return f"{path} ({'there' if path.exists() else 'made at the first start'})"


def probe_hooks(hooks: tuple[Hook, ...], source: str) -> str:
    """Return how many hooks there are.

    Raises:
        ConfigError: a program is not there or may not be executed, or a function cannot be loaded.
    """
    for index, hook in enumerate(hooks):
        if hook.exec and shutil.which(hook.exec[0]) is None:
            reason = "may not be executed" if Path(hook.exec[0]).exists() else "is not there"
            raise ConfigError(source, f"hooks[{index}].exec[0]", f"{hook.exec[0]} {reason}")
    build_hooks(hooks, source)
    return str(len(hooks)) if hooks else "none"
