"""Where the users are: bindings of addresses of record (RFC 3261 §10.3, RFC 5626 §6), in memory, sans-IO.

    aor ──► [Binding, …]       by AOR for look-ups
    connection id ──► [Binding, …]  so that a failed flow takes its bindings out at once (OB-FAIL-06)

A binding expires by the wheel. Writing to storage is the registrar's affair; this is what routing reads. What is
registered over a connection is counted by the flow table (`edge.outbound.flows`).
"""

from __future__ import annotations

from collections.abc import Callable

from edge.connections import Connection
from edge.events import RegistrationChanged
from edge.timers import Timed, TimerWheel

_MOST_DEPARTED = 65536


class Binding(Timed):
    """One registered contact.

    `contact` is the raw URI without brackets; `parameters` the raw header parameters to give back, without `expires`;
    `q` thousandths; `expires_at` and `refreshed_at` monotonic seconds; `instance` the canonical URN or b"";
    `reg_id` 0 where outbound does not apply; `path` raw Path values, first hop first in routing order;
    `connection` the flow of a direct client; `epoch` which temporary GRUUs of the instance are valid, 0 without one.
    """

    __slots__ = (
        "aor", "call_id", "connection", "contact", "cseq", "epoch", "expires_at", "flow", "instance", "location",
        "parameters", "path", "q", "refreshed_at", "reg_id", "user_agent",
    )  # fmt: skip

    aor: bytes
    contact: bytes
    parameters: bytes
    call_id: bytes
    cseq: int
    expires_at: float
    q: int
    instance: bytes
    reg_id: int
    path: tuple[bytes, ...]
    connection: Connection | None
    flow: bytes
    refreshed_at: float
    user_agent: bytes
    location: Location
    epoch: int

    def __init__(self) -> None:
        self._slot = None
        self.epoch = 0

    def handle_timer(self, now: float) -> None:
        """Expire, unless the binding was refreshed since the timer was started: then wait for the rest."""
        if self.expires_at > now:
            self.location.put(self, self.connection)
        else:
            self.location.expire(self)

    @property
    def key(self) -> bytes:
        """What tells it from the other bindings of its AOR: instance and reg-id, or the contact (RFC 5626 §6)."""
        return b"<%b>%d" % (self.instance, self.reg_id) if self.reg_id else self.contact

    @property
    def reachable(self) -> bool:
        """Whether a request can go there: a live flow, a Path, or an address."""
        return self.connection is None or not self.connection.closed


class Location:
    """All bindings. `on_expired` is told of each that ends by time, `on_lost` of each whose connection ended."""

    __slots__ = ("_by_aor", "_by_connection", "_departed", "_wheel", "count", "on_expired", "on_lost")

    def __init__(self, wheel: TimerWheel) -> None:
        self._wheel = wheel
        self._by_aor: dict[bytes, list[Binding]] = {}
        self._by_connection: dict[int, list[Binding]] = {}
        self._departed: dict[tuple[bytes, bytes], None] = {}  # AOR and instance, the latest last
        self.count = 0
        self.on_expired: Callable[[Binding], None] = _ignore
        self.on_lost: Callable[[Binding], None] = _ignore

    def bindings(self, aor: bytes) -> list[Binding]:
        """Return the live bindings of an AOR; the list is ours, do not change it."""
        return self._by_aor.get(aor, _NONE)

    def aors(self) -> list[bytes]:
        """Return every AOR that has a binding."""
        return list(self._by_aor)

    def put(self, binding: Binding, connection: Connection | None) -> None:
        """Enter a new binding, or the same one refreshed and perhaps moved to another flow."""
        known = self._by_aor.get(binding.aor)
        if known is None:
            known = self._by_aor[binding.aor] = []
        if binding not in known:
            known.append(binding)
            binding.location = self
            binding.connection = None
            self.count += 1
        if binding.connection is not connection:
            self._unlink(binding)
            self._link(binding, connection)
        if binding._slot is None or binding.timer_deadline > binding.expires_at:
            self._wheel.start(binding, binding.expires_at)

    def remove(self, binding: Binding) -> bool:
        """Take a binding out; False when it was gone already."""
        known = self._by_aor.get(binding.aor)
        if known is None or binding not in known:
            return False
        known.remove(binding)
        if not known:
            del self._by_aor[binding.aor]
        self.count -= 1
        self._unlink(binding)
        self._wheel.stop(binding)
        self.note_departed(binding)
        return True

    def note_departed(self, binding: Binding) -> None:
        """Remember that there was this instance, for as long as there is room: it is away, and not unknown."""
        if binding.instance:
            device = binding.aor, binding.instance
            self._departed.pop(device, None)
            self._departed[device] = None
            if len(self._departed) > _MOST_DEPARTED:
                del self._departed[next(iter(self._departed))]

    def has_departed(self, aor: bytes, instance: bytes) -> bool:
        """Whether a binding of this instance has been here and gone, as far as is remembered."""
        return (aor, instance) in self._departed

    def expire(self, binding: Binding) -> None:
        """A binding's time is up. Its connection stays (OB-FAIL-10)."""
        if self.remove(binding):
            self.on_expired(binding)

    def handle_lost(self, connection: Connection) -> None:
        """Take out every binding of a connection that is gone, whatever its AOR (RFC 5626 §7)."""
        for binding in list(self._by_connection.get(connection.id, ())):
            if self.remove(binding):
                self.on_lost(binding)

    def on_connection(self, connection: Connection) -> list[Binding]:
        """Return the bindings whose flow is this connection."""
        return list(self._by_connection.get(connection.id, ()))

    def _link(self, binding: Binding, connection: Connection | None) -> None:
        binding.connection = connection
        if connection is not None:
            self._by_connection.setdefault(connection.id, []).append(binding)

    def _unlink(self, binding: Binding) -> None:
        connection = binding.connection
        if connection is None:
            return
        held = self._by_connection.get(connection.id)
        if held is not None:
            held.remove(binding)
            if not held:
                del self._by_connection[connection.id]


_NONE: list[Binding] = []


def _ignore(binding: Binding) -> None:
    """Nobody wants to know."""


def describe_change(binding: Binding, change: str, expires: int) -> RegistrationChanged:
    """Say in an event what became of a binding; `expires` in seconds, 0 when it is gone."""
    return RegistrationChanged(
        binding.aor.decode("utf-8", "backslashreplace"),
        binding.contact.decode("utf-8", "backslashreplace"),
        change,
        expires,
        "" if binding.connection is None else binding.connection.name,
        binding.instance.decode("utf-8", "backslashreplace"),
        binding.reg_id,
    )


def renew(old: Binding, new: Binding) -> Binding:
    """Carry a refresh over to the binding that is there, which keeps its place in the tables."""
    old.contact, old.parameters = new.contact, new.parameters
    old.call_id, old.cseq, old.expires_at = new.call_id, new.cseq, new.expires_at
    old.q, old.path, old.flow, old.user_agent = new.q, new.path, new.flow, new.user_agent
    old.instance, old.reg_id, old.refreshed_at = new.instance, new.reg_id, new.refreshed_at
    old.epoch = new.epoch
    return old


def with_epoch(binding: Binding, epoch: int) -> Binding:
    """Copy a binding for storage, with another epoch."""
    copy = renew(Binding(), binding)
    copy.aor, copy.connection, copy.epoch = binding.aor, binding.connection, epoch
    return copy
