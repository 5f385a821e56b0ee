"""Hooks made from the settings."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from edge.config import Hook as HookSettings
from edge.errors import ConfigError
from edge.hooks.actions import Action, Program, Request
from edge.hooks.dispatcher import Hook
from edge.hooks.functions import Call, UnusableFunctionError, load_function
from edge.hooks.selection import Selection


def build_hooks(
    settings: tuple[HookSettings, ...], source: str, tls: Callable[[], ssl.SSLContext] | None = None
) -> list[Hook]:
    """Make the hooks of a configuration. `tls` gives the context for https; functions are looked for beside `source`.

    Raises:
        ConfigError: a function cannot be found; named by its key.
    """
    return [_build_hook(hook, index, source, tls) for index, hook in enumerate(settings)]


def _build_hook(settings: HookSettings, index: int, source: str, tls: Callable[[], ssl.SSLContext] | None) -> Hook:
    def again() -> None:
        hook.count_retry()

    action: Action
    if settings.exec:
        action = Program(settings.exec, settings.timeout)
    elif settings.url:
        action = Request(
            settings.url, settings.timeout, secret=settings.secret, retries=settings.retries,
            backoff_s=settings.backoff, tls=tls, again=again,
        )  # fmt: skip
    else:
        try:
            action = Call(load_function(settings.call, Path(source).parent), settings.timeout)
        except UnusableFunctionError as error:
            raise ConfigError(source, f"hooks[{index}].call", str(error)) from error
    hook = Hook(
        settings.name or f"hooks[{index}]",
        Selection(settings.events, settings.filter),
        action,
        limit=settings.queue,
        parallel=settings.parallel,
    )
    return hook
