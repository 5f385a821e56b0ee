"""MSRP messages put together from what became of their chunks. Sans-IO; lives in the writer's thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from edge.accounting.records import Entry, Values

OPEN_LIMIT = 10_000  # messages that have not ended

_MESSAGE_ID = re.compile(rb"(?:^|\r\n)Message-ID:[ \t]*([^\r]*)", re.IGNORECASE)


class _Message:
    __slots__ = ("chunks", "octets", "session", "started", "user")

    def __init__(self, session: str, user: str, started: float) -> None:
        self.session = session
        self.user = user
        self.started = started
        self.chunks = 0
        self.octets = 0


class Messages:
    """Takes chunks, gives messages: `delivered` (the next hop took every chunk), `refused`, or `unconfirmed`.

    A chunk is (session, user, outbound, headers after the paths, octets, whether it was the last, code, time); code 0
    is one that nobody answered for. A message whose last chunk does not come is given up, as `incomplete`, when there
    are too many of them or the session ends.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, bool, bytes], _Message] = {}

    def put_together(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Pass everything on but chunks, in whose place their messages come."""
        for kind, values in entries:
            if kind == "chunk":
                yield from self._take(values)
                continue
            if kind == "session":
                yield from self._give_up(str(values[0]))
            yield kind, values

    def _take(self, values: Values) -> Iterator[Entry]:
        session, user, outbound, headers, octets, last, code, now = values
        assert isinstance(headers, bytes)
        assert isinstance(octets, int)
        assert isinstance(now, float)
        found = _MESSAGE_ID.search(headers)
        key = str(session), bool(outbound), found[1].strip() if found else b""
        message = self._open.get(key)
        if message is None:
            if len(self._open) >= OPEN_LIMIT:
                yield self._end(next(iter(self._open)), 0, "incomplete", now)
            message = self._open[key] = _Message(str(session), str(user), now)
        message.chunks += 1
        message.octets += octets
        if code not in (0, 200):
            yield self._end(key, code, "refused", now)
        elif last:
            yield self._end(key, code, "delivered" if code else "unconfirmed", now)

    def _give_up(self, session: str) -> Iterator[Entry]:
        for key in [key for key in self._open if key[0] == session]:
            yield self._end(key, 0, "incomplete", None)

    def _end(self, key: tuple[str, bool, bytes], code: object, reason: str, now: float | None) -> Entry:
        message = self._open.pop(key)
        direction = "out" if key[1] else "in"
        return "message", (
            message.session, message.user, direction, key[2], message.started, now, message.chunks, message.octets,
            code, reason,
        )  # fmt: skip
