"""Checks that are ready-made: by address, rate, method, user agent, size, domain, certificate.

Each answers with True when there is something to object to, but for `has_identity`. None of them waits for anything.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from edge.msrp.uri import parse_uri as parse_msrp_uri
from edge.networks import Network, NetworkSet
from edge.policy.text import decode
from edge.rates import source_key
from edge.sip.uri import parse_uri as parse_sip_uri

log = logging.getLogger("edge.policy")

_MOST = 65536  # buckets; with forged addresses there may be any number
_LOOK_AGAIN_S = 2.0
SCANNERS = ("friendly-scanner", "friendly-request", "sipvicious", "sipcli", "sipsak", "sip-scan", "sundayddr", "pplsip",
            "vaxsipuseragent", "eyebeam rc", "iwar", "siparmyknife", "test agent")  # fmt: skip


class HasSource(Protocol):
    """Whatever came from an address: connections, SIP messages, MSRP frames."""

    @property
    def source(self) -> str: ...


class HasMethod(HasSource, Protocol):
    """Requests of both protocols."""

    @property
    def method(self) -> str: ...


class HasIdentities(Protocol):
    """Whatever came over a connection that may have shown a certificate."""

    @property
    def identities(self) -> tuple[str, ...]: ...


class AddressList:
    """A list of networks, one to a line in `path` (`#` begins a comment), or given as `networks`.

    The file is looked at again every two seconds when it is asked; a line that is no network keeps the list before.

    Raises:
        OSError, ValueError: the file cannot be read, or a line of it, when the list is made.
    """

    def __init__(
        self,
        path: str | Path = "",
        networks: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path) if path else None
        self._clock = clock
        self._fixed = [_network(text) for text in networks]
        self._stamp = (0, 0)
        self._next = 0.0
        self._set = NetworkSet(self._fixed)
        if self._path is not None:
            self._read(self._path)

    def __contains__(self, source: str) -> bool:
        """Tell whether an address is in the list."""
        if self._path is not None and self._clock() >= self._next:
            self._refresh(self._path)
        return self._set.contains(source)

    def lists(self, what: HasSource) -> bool:
        """Tell whether something came from an address of the list."""
        return what.source in self

    def _refresh(self, path: Path) -> None:
        self._next = self._clock() + _LOOK_AGAIN_S
        try:
            if _stamp(path) != self._stamp:
                self._read(path)
        except (OSError, ValueError) as error:
            log.warning("address list kept as it was file=%s reason=%s", path, error)

    def _read(self, path: Path) -> None:
        stamp = _stamp(path)
        lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
        self._set = NetworkSet([*self._fixed, *(_network(line) for line in lines if line)])
        self._stamp = stamp


class FloodDetector:
    """Tokens in a bucket for each key: `rate` a second, at most `burst` at once.

    `floods(source)` for a flood by address (the /64 of IPv6 is one); `exceeds(user)` for any other key.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a rate is above 0, a burst at least 1")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def floods(self, what: HasSource | str) -> bool:
        """Take a token of a source; True when it has none left."""
        source = what if isinstance(what, str) else what.source
        return self.exceeds(source_key(source) if ":" in source else source)

    def exceeds(self, key: str) -> bool:
        """Take a token of any key; True when it has none left."""
        now = self._clock()
        tokens, seen = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - seen) * self._rate)
        if len(self._buckets) >= _MOST:
            del self._buckets[next(iter(self._buckets))]  # the one that was quiet for longest
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens < 1

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._buckets)


class MethodRates:
    """A `FloodDetector` for each method of both protocols: `MethodRates({"INVITE": (5, 20), "SEND": (50, 200)})`.

    The numbers are tokens a second and tokens at most. A method that is not named has no bound.
    """

    def __init__(self, rates: Mapping[str, tuple[float, float]], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = {method: FloodDetector(rate, burst, clock) for method, (rate, burst) in rates.items()}
        self._users = {method: FloodDetector(rate, burst, clock) for method, (rate, burst) in rates.items()}

    def by_source(self, request: HasMethod) -> bool:
        """Take a token of the request's source for its method; True when there is none left."""
        detector = self._sources.get(request.method)
        return detector is not None and detector.floods(request)

    def by_user(self, request: HasMethod, user: str) -> bool:
        """Take a token of a user for the method; True when there is none left.

        Before credentials are checked a name is a claim: who claims another's uses up that one's tokens.
        """
        detector = self._users.get(request.method)
        return detector is not None and detector.exceeds(user)


class ScannerList:
    """User agents of programs that look for open servers."""

    def __init__(self, words: Iterable[str] = SCANNERS) -> None:
        self._words = tuple(word.lower() for word in words)

    def names(self, user_agent: str | None) -> bool:
        """Tell whether a User-Agent is one of them."""
        text = (user_agent or "").lower()
        return any(word in text for word in self._words)


class DomainList:
    """Domains; one with a `.` in front stands for everything below it."""

    def __init__(self, domains: Iterable[str]) -> None:
        names = [domain.lower() for domain in domains]
        self._names = frozenset(name for name in names if not name.startswith("."))
        self._endings = tuple(name for name in names if name.startswith("."))

    def __contains__(self, host: str) -> bool:
        """Tell whether a host is listed."""
        name = host.lower().rstrip(".")
        return name in self._names or name.endswith(self._endings or ("\0",))

    def lists(self, uri: str) -> bool:
        """Tell whether the host of a sip, sips, msrp or msrps URI is listed.

        Raises:
            RemoteError: no such URI; nothing to catch in a hook for messages, that is answered.
        """
        raw = uri.encode("utf-8", "surrogateescape")
        if raw[:4].lower() == b"msrp":
            return parse_msrp_uri(raw).host in self
        return decode(parse_sip_uri(raw).host) in self


def has_identity(what: HasIdentities, names: Iterable[str]) -> bool:
    """Tell whether the client showed a verified certificate with one of these names."""
    return not set(what.identities).isdisjoint(names)


def is_larger(size: int, limit: int) -> bool:
    """Tell whether something has more octets than allowed."""
    return size > limit


def _network(text: str) -> Network:
    return ipaddress.ip_network(text, strict=False)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
