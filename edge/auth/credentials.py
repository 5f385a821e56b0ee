"""What is known about a user's password, and a bounded memory of it in front of the user store.

The cache answers at once or says MISSING; asking the store and putting its answer here is the caller's work. Users and
strangers have separate room, so that a flood of invented names cannot push real users out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge.auth.digest import MD5, SHA_256, SHA_512_256, Algorithm, ha1


@dataclass(frozen=True, slots=True)
class Credential:
    """H(A1) of one user for each algorithm, lower-case hexadecimal digits; None where the store does not have it."""

    ha1: bytes | None
    ha1_sha256: bytes | None
    ha1_sha512_256: bytes | None = None

    def for_algorithm(self, algorithm: Algorithm) -> bytes | None:
        """Return the H(A1) made with `algorithm`."""
        if algorithm is MD5:
            return self.ha1
        return self.ha1_sha256 if algorithm is SHA_256 else self.ha1_sha512_256


def derive_credential(username: bytes, realm: bytes, password: bytes) -> Credential:
    """Hash a password for every algorithm we know; arguments in UTF-8."""
    return Credential(
        ha1(username, realm, password, MD5),
        ha1(username, realm, password, SHA_256),
        ha1(username, realm, password, SHA_512_256),
    )


class Lookup(Enum):
    """What the cache can say besides a credential: the store has no such user, or nobody asked it lately."""

    ABSENT = "absent"
    MISSING = "missing"


ABSENT: Final = Lookup.ABSENT
MISSING: Final = Lookup.MISSING

_Key = tuple[bytes, bytes]


class CredentialCache:
    """Remember the user store's answers for (username, domain), the oldest leaving first at `entries` of each kind.

    A user is believed for `ttl_s`, an absence for `absent_ttl_s`. While `degraded` is set (`receive` does so when the
    store fails, and takes it back when it answers) users of any age are served for up to `degraded_s` after their time:
    a store that is down for an hour must not lock out who was here before.
    """

    __slots__ = ("_absent", "_absent_ttl_s", "_degraded_s", "_entries", "_known", "_ttl_s", "degraded")

    def __init__(
        self,
        *,
        entries: int = 100_000,
        ttl_s: float = 300.0,
        absent_ttl_s: float = 30.0,
        degraded_s: float = 86_400.0,
    ) -> None:
        self._entries = entries
        self._ttl_s = ttl_s
        self._absent_ttl_s = absent_ttl_s
        self._degraded_s = degraded_s
        self._known: OrderedDict[_Key, tuple[Credential, float]] = OrderedDict()
        self._absent: OrderedDict[_Key, float] = OrderedDict()
        self.degraded = False

    def get(self, username: bytes, domain: bytes, now: float) -> Credential | Lookup:
        """Return the credential, ABSENT for a user the store does not have, MISSING when the store must be asked."""
        key = (username, domain)
        entry = self._known.get(key)
        if entry is not None:
            credential, until = entry
            if now < until or (self.degraded and now < until + self._degraded_s):
                return credential
            return MISSING
        absent_until = self._absent.get(key)
        return ABSENT if absent_until is not None and now < absent_until else MISSING

    def receive(self, username: bytes, domain: bytes, answer: Credential | Exception | None, now: float) -> bool:
        """Take the user store's answer; False when it failed and nothing older is known that could serve instead."""
        self.degraded = isinstance(answer, Exception)
        if isinstance(answer, Exception):
            return not isinstance(self.get(username, domain, now), Lookup)
        self.put(username, domain, answer, now)
        return True

    def put(self, username: bytes, domain: bytes, credential: Credential | None, now: float) -> None:
        """Remember the store's answer, None for no such user; it replaces an earlier one."""
        key = (username, domain)
        self.invalidate(username, domain)
        if credential is None:
            self._absent[key] = now + self._absent_ttl_s
            if len(self._absent) > self._entries:
                self._absent.popitem(last=False)
        else:
            self._known[key] = credential, now + self._ttl_s
            if len(self._known) > self._entries:
                self._known.popitem(last=False)

    def invalidate(self, username: bytes, domain: bytes) -> None:
        """Forget one user, whose password changed or who was removed; unknown ones are no error."""
        key = (username, domain)
        self._known.pop(key, None)
        self._absent.pop(key, None)

    def clear(self) -> None:
        """Forget everybody."""
        self._known.clear()
        self._absent.clear()

    @property
    def in_memory(self) -> int:
        """How many answers are remembered, of both kinds and any age, for metrics."""
        return len(self._known) + len(self._absent)
