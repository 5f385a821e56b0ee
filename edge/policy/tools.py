"""What the objects that hooks are given have in common: counters, tags of connections, looking things up."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edge.events import ConnectionClosed, ConnectionFailed, EventBus, PolicyEvent
from edge.msrp.relay import Relay
from edge.sip.core import SipCore
from edge.sip.uri import UriCache

MOST_LABELS = 64
OTHER = "_other"
_LABEL = re.compile(r"[a-z0-9_.-]{1,64}")


class Tools:
    """What one server lends to its policy."""

    __slots__ = ("_publish", "core", "counts", "errors", "next_hop", "relay", "tags", "uris")

    def __init__(self, core: SipCore, relay: Relay, bus: EventBus, next_hop: bytes = b"") -> None:
        self.core = core
        self.next_hop = next_hop
        self.uris = UriCache()
        self.relay = relay
        self.counts: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self._publish = bus.publish
        bus.subscribe(ConnectionClosed, self._forget)
        bus.subscribe(ConnectionFailed, self._forget)

    def _forget(self, event: ConnectionClosed | ConnectionFailed) -> None:
        self.tags.pop(event.connection, None)

    def count(self, label: str) -> None:
        """Count under a label; the labels after the first 64 are counted together."""
        if label not in self.counts and len(self.counts) >= MOST_LABELS:
            label = OTHER
        self.counts[label] = self.counts.get(label, 0) + 1

    def publish(self, label: str, details: Mapping[str, object]) -> None:
        """Report an event of the policy's own; ValueError for a label or details that cannot be."""
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} cannot be the name of an event")
        self._publish(PolicyEvent(label, {name: _plain(name, value) for name, value in details.items()}))


def _plain(name: str, value: object) -> object:
    """Return a value that JSON can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{name} of an event is neither text nor a number")
