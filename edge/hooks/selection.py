"""Which events somebody wants: by name, exact or by beginning, and by what stands in their fields. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge.events import Event, PolicyEvent, event_fields, event_name, events_named

Wanted = str | int | float | bool


class Selection:
    """The events whose name is one of `names` ("flow.failed", "flow.*", "*") and whose fields are as `where` says.

    A field is compared with one value or with several, of which one must be equal; an event without that field is not
    selected. Values are compared by type and value: 1 is not true. Of a policy's events the details are fields as well.
    """

    __slots__ = ("_own", "_where", "kinds")

    def __init__(self, names: Iterable[str], where: Mapping[str, Wanted | tuple[Wanted, ...]] | None = None) -> None:
        names = tuple(names)
        self.kinds: frozenset[type[Event]] = frozenset(kind for name in names for kind in events_named(name))
        self._own = tuple(name for name in names if PolicyEvent in events_named(name))
        self._where = [(name, value if isinstance(value, tuple) else (value,)) for name, value in (where or {}).items()]

    def matches(self, event: Event) -> bool:
        """Tell whether an event is one of those."""
        if type(event) not in self.kinds or (isinstance(event, PolicyEvent) and not self._names(event)):
            return False
        return all(any(_is_equal(_value(event, name), value) for value in values) for name, values in self._where)

    def _names(self, event: PolicyEvent) -> bool:
        """Tell whether one of the names is that of a policy's event, whose class says nothing yet."""
        full = event_name(event)
        return any(full.startswith(name[:-1]) if name.endswith("*") else full == name for name in self._own)


def _value(event: Event, name: str) -> object:
    if isinstance(event, PolicyEvent) and name in event.details:
        return event.details[name]
    return getattr(event, name, None)


def _is_equal(found: object, wanted: Wanted) -> bool:
    return found == wanted and isinstance(found, bool) is isinstance(wanted, bool)


class Occurrence:
    """An event that happened: `at` in seconds since 1970, `id` unlike that of any other occurrence."""

    __slots__ = ("_encoded", "at", "event", "id")

    def __init__(self, event: Event, at: float, identifier: str) -> None:
        self.event = event
        self.at = at
        self.id = identifier
        self._encoded = b""

    @property
    def name(self) -> str:
        """The event's name."""
        return event_name(self.event)

    def describe(self) -> dict[str, Any]:
        """Return what hooks are told: name, time, id, and the event's own fields."""
        moment = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"event": self.name, "time": moment, "id": self.id, **event_fields(self.event)}

    def encode(self) -> bytes:
        """Return that as one line of JSON, made once however many hooks want it."""
        if not self._encoded:
            self._encoded = msgspec.json.encode(self.describe())
        return self._encoded
