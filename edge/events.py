"""What happened, as typed events, and the bus that carries them.

Events are for what happens once for a connection, a flow, a session or a failure, never once for a message. Whoever
reports one calls `EventBus.publish`; metrics, the log and the operator's hooks subscribe.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

log = logging.getLogger("edge.events")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. `name` is what hooks and subscribers select by."""

    name: ClassVar[str] = "event"


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """A stream connection is ready for traffic (after TLS) or a UDP flow was seen first."""

    name: ClassVar[str] = "connection.opened"
    connection: str
    transport: str
    remote: str
    local: str


@dataclass(frozen=True, slots=True)
class ConnectionFailed(Event):
    """A connection ended other than in order. `reason` is one of a fixed set of short words."""

    name: ClassVar[str] = "connection.failed"
    connection: str
    transport: str
    remote: str
    local: str
    reason: str
    age_s: float


@dataclass(frozen=True, slots=True)
class ConnectionClosed(Event):
    """A connection ended in order: the peer's FIN, or our own decision, named by `reason`."""

    name: ClassVar[str] = "connection.closed"
    connection: str
    transport: str
    remote: str
    local: str
    reason: str
    age_s: float


@dataclass(frozen=True, slots=True)
class ConnectionRefused(Event):
    """A connection or datagram was not taken: a limit, or first bytes that are no protocol of ours."""

    name: ClassVar[str] = "connection.refused"
    remote: str
    reason: str


@dataclass(frozen=True, slots=True)
class FlowUp(Event):
    """A flow carries a registration for the first time."""

    name: ClassVar[str] = "flow.up"
    flow: str
    transport: str
    remote: str
    local: str
    registrations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class FlowFailed(Event):
    """A flow that was up is gone: one for each time it was, since `FlowUp` or `FlowRecovered` after "failed"."""

    name: ClassVar[str] = "flow.failed"
    flow: str
    transport: str
    remote: str
    local: str
    reason: str
    age_s: float
    silent_s: float
    registrations: tuple[dict[str, Any], ...] = ()
    pending: int = 0


@dataclass(frozen=True, slots=True)
class FlowSuspect(Event):
    """A flow that promised keep-alives has been silent for too long; it still is used."""

    name: ClassVar[str] = "flow.suspect"
    flow: str
    transport: str
    remote: str
    local: str
    silent_s: float
    registrations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class FlowRecovered(Event):
    """A flow that was suspect, or had failed for its silence alone, spoke again; `after` says which of the two.

    After "failed" it is up again, and fails again.
    """

    name: ClassVar[str] = "flow.recovered"
    flow: str
    transport: str
    remote: str
    local: str
    registrations: tuple[dict[str, Any], ...] = ()
    after: str = "suspect"


@dataclass(frozen=True, slots=True)
class FlowReplaced(Event):
    """A registration moved to another flow, which becomes the heir: it gets what is addressed to `flow`.

    The addresses are those of the heir.
    """

    name: ClassVar[str] = "flow.replaced"
    flow: str
    heir: str
    transport: str
    remote: str
    local: str
    registrations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrationChanged(Event):
    """Bindings of an address of record changed: added, removed, expired, connection_lost or flow_failed.

    `connection` is the flow of the binding while it has one, `instance` and `reg_id` are empty and 0 without outbound.
    """

    name: ClassVar[str] = "registration.changed"
    aor: str
    contact: str
    change: str
    expires_s: int
    connection: str = ""
    instance: str = ""
    reg_id: int = 0


@dataclass(frozen=True, slots=True)
class AuthenticationFailed(Event):
    """Credentials were refused. `protocol` is sip or msrp; `source` is the address seen by the socket."""

    name: ClassVar[str] = "auth.failed"
    protocol: str
    source: str
    user: str
    reason: str


@dataclass(frozen=True, slots=True)
class AuthenticationFlood(Event):
    """A source failed to log in so often that its credentials are refused unseen for `blocked_s` seconds."""

    name: ClassVar[str] = "auth.flood"
    protocol: str
    source: str
    user: str
    reason: str
    blocked_s: float


@dataclass(frozen=True, slots=True)
class UserLocked(Event):
    """A user was guessed so often that for `blocked_s` seconds only sources that lately logged in as them may."""

    name: ClassVar[str] = "auth.locked"
    protocol: str
    source: str
    user: str
    reason: str
    blocked_s: float


@dataclass(frozen=True, slots=True)
class SessionOpened(Event):
    """An MSRP session URI was issued. `session` is a short hash, never the session-id itself."""

    name: ClassVar[str] = "session.opened"
    session: str
    user: str
    connection: str


@dataclass(frozen=True, slots=True)
class SessionClosed(Event):
    """An MSRP session URI is no longer valid: expired, connection lost, or closed by the operator."""

    name: ClassVar[str] = "session.closed"
    session: str
    user: str
    connection: str
    reason: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StorageChanged(Event):
    """Storage became unusable or usable again."""

    name: ClassVar[str] = "storage.changed"
    healthy: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AccountingChanged(Event):
    """Accounting records could not be written any more, or can be again."""

    name: ClassVar[str] = "accounting.changed"
    healthy: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PolicyEvent(Event):
    """Something an operator's policy reports: `policy.` and its label are the name, `details` what it wants to say."""

    name: ClassVar[str] = "policy."
    label: str
    details: dict[str, Any] = field(default_factory=dict)


EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}


def events_named(pattern: str) -> list[type[Event]]:
    """Find the events of a name, or of all names that begin with what stands before a `*` at the end."""
    if pattern.endswith("*"):
        return [kind for name, kind in EVENTS.items() if name.startswith(pattern[:-1])]
    if pattern.startswith(PolicyEvent.name) and len(pattern) > len(PolicyEvent.name):
        return [PolicyEvent]
    return [EVENTS[pattern]] if pattern in EVENTS else []


def event_name(event: Event) -> str:
    """Return the name of an event; that of a policy's has its label in it."""
    return event.name + event.label if isinstance(event, PolicyEvent) else event.name


def event_fields(event: Event) -> dict[str, Any]:
    """Return what an event says, by the names of its fields."""
    return {item.name: getattr(event, item.name) for item in fields(event)}


E = TypeVar("E", bound=Event)
Subscriber = Callable[[Any], None]


@dataclass(slots=True)
class EventBus:
    """Deliver each event to the subscribers of its class and of `Event`.

    A subscriber that raises is logged and does not stop the others.
    """

    _subscribers: dict[type[Event], list[Subscriber]] = field(default_factory=lambda: defaultdict(list))

    def subscribe(self, kind: type[E], subscriber: Callable[[E], None]) -> None:
        """Call `subscriber` with every event of exactly class `kind`; `Event` means all."""
        self._subscribers[kind].append(subscriber)

    def publish(self, event: Event) -> None:
        """Hand `event` to its subscribers, in the order they subscribed."""
        for kind in (type(event), Event):
            for subscriber in self._subscribers.get(kind, ()):
                try:
                    subscriber(event)
                except Exception:
                    log.exception("a subscriber failed on %s", event.name)
