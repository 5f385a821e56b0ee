"""What the objects that hooks are given have in common: counters, tags of connections, looking things up."""

from __future__ import annotations

from edge.events import ConnectionClosed, ConnectionFailed, EventBus
from edge.msrp.relay import Relay
from edge.sip.core import SipCore

MOST_LABELS = 64
OTHER = "_other"


class Tools:
    """What one server lends to its policy."""

    __slots__ = ("core", "counts", "errors", "relay", "tags")

    def __init__(self, core: SipCore, relay: Relay, bus: EventBus) -> None:
        self.core = core
        self.relay = relay
        self.counts: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.tags: dict[str, dict[str, str]] = {}
        bus.subscribe(ConnectionClosed, self._forget)
        bus.subscribe(ConnectionFailed, self._forget)

    def _forget(self, event: ConnectionClosed | ConnectionFailed) -> None:
        self.tags.pop(event.connection, None)

    def count(self, label: str) -> None:
        """Count under a label; the labels after the first 64 are counted together."""
        if label not in self.counts and len(self.counts) >= MOST_LABELS:
            label = OTHER
        self.counts[label] = self.counts.get(label, 0) + 1
