"""The process around a server: its event loop, its signals, its exit status.

    SIGHUP            reload: a new snapshot is checked, then swapped in
    SIGTERM, SIGINT   drain, then stop; the second one stops now

Exit status 0 after a stop, 2 when the configuration cannot be used, 1 when the database does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable

from edge.config import Settings
from edge.errors import ConfigError
from edge.memory import keep_buffers
from edge.server import Server
from edge.storage.base import StorageError

_GC_THRESHOLDS = (50_000, 20, 50)  # what a message leaves behind is freed by counting, not by the collector


def run(settings: Settings, source: str) -> int:
    """Run a server in the foreground; returns the exit status."""
    _raise_descriptor_limit()
    keep_buffers()
    gc.set_threshold(*_GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings, source))


async def _run(settings: Settings, source: str) -> int:
    loop = asyncio.get_running_loop()
    server = Server(settings, source, loop)
    try:
        await server.start()
    except ConfigError as error:
        sys.stderr.write(f"edge: {error}\n")
        return 2
    except StorageError as error:
        sys.stderr.write(f"edge: {source}: storage.url: {error}\n")
        return 1
    loop.add_signal_handler(signal.SIGTERM, server.request_stop)
    loop.add_signal_handler(signal.SIGINT, server.request_stop)
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    gc.collect()
    gc.freeze()
    sys.stdout.write("\n".join(server.describe()) + "\n")
    sys.stdout.flush()
    await server.serve()
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Choose uvloop where it runs; EDGE_LOOP=asyncio asks for the standard loop."""
    if os.environ.get("EDGE_LOOP", "uvloop") == "uvloop":
        with contextlib.suppress(ImportError):
            import uvloop  # noqa: PLC0415 - not there on every platform

            return uvloop.new_event_loop
    return asyncio.new_event_loop


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
