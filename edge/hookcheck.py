"""What may stand in `[[hooks]]` and `[accounting]` beyond types and ranges; see `edge.configcheck` for the form."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from edge.events import EVENTS, Event, PolicyEvent, events_named
from edge.settings import Accounting, Hook

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SQL_URL = re.compile(r"(?:sqlite|postgresql|mysql)(?:\+[a-z0-9_]+)?://.*", re.DOTALL)


def accounting_problems(accounting: Accounting) -> Iterator[tuple[str, str]]:
    """Find what is wrong with accounting."""
    url = accounting.url
    if (url and not url.removeprefix("file:").strip("/")) or (not url.startswith("file:") and not _is_sql(url)):
        yield "accounting.url", 'expected "file:NAME", or an sqlite://, postgresql:// or mysql:// URL'
    if url and not accounting.records:
        yield "accounting.records", "empty: nothing would be written"
    for kind in sorted({kind for kind in accounting.records if accounting.records.count(kind) > 1}):
        yield "accounting.records", f'"{kind}" is given twice'


def _is_sql(url: str) -> bool:
    return not url or _SQL_URL.fullmatch(url) is not None


def hook_problems(hooks: tuple[Hook, ...]) -> Iterator[tuple[str, str]]:
    """Find what is wrong with the hooks: their events, what they start, and what they filter by."""
    for index, hook in enumerate(hooks):
        key = f"hooks[{index}]"
        if not hook.events:
            yield (
                f"{key}.events",
                f"required: names such as {', '.join(list(EVENTS)[:2])}, or a beginning with a * behind",
            )
        yield from _check_events(hook.events, key)
        yield from _check_action(hook, key)
        yield from _check_filter(hook, key)
    names = [hook.name for hook in hooks if hook.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "hooks", f'the name "{name}" is given twice'


def _check_events(patterns: tuple[str, ...], key: str) -> Iterator[tuple[str, str]]:
    for index, pattern in enumerate(patterns):
        if not events_named(pattern):
            near = difflib.get_close_matches(pattern, list(EVENTS), n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(EVENTS)}"
            yield f"{key}.events[{index}]", f'no event is called "{pattern}"; {hint}'


def _check_action(hook: Hook, key: str) -> Iterator[tuple[str, str]]:
    actions = {"exec": bool(hook.exec), "url": bool(hook.url), "call": bool(hook.call)}
    if sum(actions.values()) != 1:
        yield key, "one of exec, url and call is needed, and no two of them"
    if hook.exec and not hook.exec[0]:
        yield f"{key}.exec[0]", "the program has no name"
    if any("\0" in argument for argument in hook.exec):
        yield f"{key}.exec", "an argument holds a NUL character"
    if hook.url and not _is_http(hook.url):
        yield f"{key}.url", "expected http://HOST/... or https://HOST/..."
    if hook.call and not _FUNCTION.fullmatch(hook.call):
        yield f"{key}.call", f'expected "module:function", got "{hook.call}"'
    if hook.secret and not hook.url:
        yield f"{key}.secret", "only requests to a url are signed"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_filter(hook: Hook, key: str) -> Iterator[tuple[str, str]]:
    kinds: list[type[Event]] = [kind for pattern in hook.events for kind in events_named(pattern)]
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    for name in hook.filter:
        if kinds and name not in known and PolicyEvent not in kinds:  # what those say is the policy's own affair
            yield f"{key}.filter.{name}", f"none of these events has it; they have {', '.join(sorted(known))}"
