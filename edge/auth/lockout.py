"""Slow down guessing: count failed logins for each source and each user, and block who has too many (bounded memory).

Failures are counted in sliding windows of two buckets, the former weighted by how much of it the window still covers.
A source is an address, or the /64 of an IPv6 address, since whoever has one of those has all of it. The limit for users
is higher and spares a source that lately logged in as that user, so a stranger's guesses do not lock out the owner.
"""

from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from edge.auth.authenticator import Verdict
from edge.events import AuthenticationFlood, Event, UserLocked

Network = IPv4Network | IPv6Network

_NAME_OCTETS = 64  # of an invented name of 8 KiB no more is kept


class _Tally:
    """Failures of one key: two buckets, and until when it is blocked."""

    __slots__ = ("blocked_until", "current", "former", "started")

    def __init__(self, now: float) -> None:
        self.started = now
        self.current = 0
        self.former = 0
        self.blocked_until = 0.0

    def add(self, now: float, window_s: float) -> float:
        """Count a failure, and return how many there were in the window that ends now."""
        passed = int((now - self.started) // window_s)
        if passed:
            self.former = self.current if passed == 1 else 0
            self.current = 0
            self.started += passed * window_s
        self.current += 1
        return self.current + self.former * (1 - (now - self.started) / window_s)


class _Counter:
    """Tallies by key, the least recently added leaving first."""

    __slots__ = ("_block_s", "_blocks", "_entries", "_limit", "_tallies", "_window_s")

    def __init__(self, limit: int, window_s: float, block_s: float, entries: int) -> None:
        self._limit = limit
        self._window_s = window_s
        self._block_s = block_s
        self._entries = entries
        self._tallies: OrderedDict[bytes, _Tally] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tallies)

    def blocked(self, key: bytes, now: float) -> bool:
        tally = self._tallies.get(key)
        return tally is not None and now < tally.blocked_until

    def add(self, key: bytes, now: float) -> bool:
        """Count a failure; True when this one began a block."""
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= self._entries:
                self._tallies.popitem(last=False)
            tally = self._tallies[key] = _Tally(now)
        if now < tally.blocked_until or tally.add(now, self._window_s) < self._limit:
            return False
        tally.blocked_until = now + self._block_s
        tally.current = tally.former = 0
        return True


class Lockout:
    """Who failed too often lately?

    `source_failures` within `window_s` block a source for `block_s`, `user_failures` a user. `exempt` networks
    ("10.0.0.0/8": load balancers, load tests) are never counted or blocked as sources; their failures count for users.
    Memory holds `entries` sources, users and good logins each.
    """

    __slots__ = ("_entries", "_exempt", "_good", "_sources", "_users", "block_s")

    def __init__(
        self,
        *,
        source_failures: int = 20,
        user_failures: int = 100,
        window_s: float = 60.0,
        block_s: float = 60.0,
        entries: int = 10_000,
        exempt: Iterable[str | Network] = (),
    ) -> None:
        self.block_s = block_s
        self._sources = _Counter(source_failures, window_s, block_s, entries)
        self._users = _Counter(user_failures, window_s, block_s, entries)
        self._good: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._entries = entries
        self._exempt = tuple(ip_network(network) for network in exempt)

    def user_blocked(self, source: str, user: bytes, now: float) -> bool:
        """Tell whether a user is guessed too often, and `source` is none that lately logged in as that user."""
        if not self._users or not self._users.blocked(user[:_NAME_OCTETS], now):
            return False
        return (_source_key(source), user[:_NAME_OCTETS]) not in self._good

    def record_failure(self, source: str, user: bytes, now: float) -> tuple[bool, bool]:
        """Count a DENIED verdict; returns whether it began a block of the source, and of the user.

        No source counts where it is empty: others speak through it, and it is not to blame.
        """
        key = user[:_NAME_OCTETS]
        blamed = source != "" and not self._is_exempt(source)
        return blamed and self._sources.add(_source_key(source), now), key != b"" and self._users.add(key, now)

    def report_failure(
        self, protocol: str, source: str, verdict: Verdict, now: float, *, relayed: bool = False
    ) -> list[Event]:
        """Count a DENIED verdict; returns the events of blocks it began. `relayed`: the source speaks for others."""
        source_began, user_began = self.record_failure("" if relayed else source, verdict.username, now)
        user = verdict.username.decode("utf-8", "backslashreplace")
        events: list[Event] = []
        if source_began:
            events.append(AuthenticationFlood(protocol, source, user, verdict.reason, self.block_s))
        if user_began:
            events.append(UserLocked(protocol, source, user, verdict.reason, self.block_s))
        return events

    def source_blocked(self, source: str, now: float) -> bool:
        """Tell whether everything from this source is refused, whoever it says it is."""
        return bool(self._sources) and self._sources.blocked(_source_key(source), now)

    def record_success(self, source: str, user: bytes) -> None:
        """Remember that `source` knows the password of `user`. The source's failures with other names stay counted."""
        key = (_source_key(source), user[:_NAME_OCTETS])
        self._good[key] = None
        self._good.move_to_end(key)
        if len(self._good) > self._entries:
            self._good.popitem(last=False)

    def _is_exempt(self, source: str) -> bool:
        if not self._exempt:
            return False
        address = ip_address(source.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._exempt)


def _source_key(source: str) -> bytes:
    """Fold an address to what one subscriber has: an IPv4 address, or a /64."""
    if ":" not in source:
        return source.encode()
    address = IPv6Address(source.partition("%")[0])
    return str(address.ipv4_mapped).encode() if address.ipv4_mapped else address.packed[:8]
