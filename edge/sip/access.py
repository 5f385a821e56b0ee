"""Who may do what: digest for REGISTER and for requests of our own users (RFC 3261 §22, §26.3.1), sans-IO.

    registrar  401 with WWW-Authenticate        proxy  407 with Proxy-Authenticate        ACK, CANCEL: never asked

Checks are plain calls. One that needs the user store says so, and is made again in the store's callback; nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.auth.authenticator import Authenticator, Outcome, Verdict
from edge.auth.credentials import Credential, CredentialCache, Lookup
from edge.auth.lockout import Lockout
from edge.connections import Connection
from edge.errors import RemoteError
from edge.events import AuthenticationFailed, Event
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.forward import Routes
from edge.sip.message import Message
from edge.sip.uri import UriCache, parse_uri

Refusal = tuple[int, Sequence[bytes]]


@dataclass(slots=True)
class Pending:
    """Credentials of a user who must be fetched first; see `Access.ask`."""

    verdict: Verdict
    domain: bytes


class Users(Protocol):
    """The user store (`edge.storage.base.UserStore`)."""

    def fetch(self, username: str, domain: str, done: Callable[[Credential | Exception | None], None]) -> None: ...


class Access:
    """Authentication and the identity of the sender. `authenticators` by domain in lower case."""

    def __init__(
        self,
        *,
        enabled: bool,
        addresses: Addresses,
        authenticators: Mapping[bytes, Authenticator],
        users: Users,
        cache: CredentialCache,
        lockout: Lockout,
        uris: UriCache,
        clock: Callable[[], float],
        publish: Callable[[Event], None],
    ) -> None:
        self.enabled = enabled
        self.failures: dict[str, int] = {}
        self._addresses = addresses
        self._authenticators = authenticators
        self._users = users
        self._cache = cache
        self._lockout = lockout
        self._uris = uris
        self._clock = clock
        self._publish = publish

    def required(self, message: Message, routes: Routes) -> bool:
        """Whether a request must prove who sent it: those of our own users that open something new."""
        if not self.enabled or (message.to_tag is not None and routes.popped):
            return False
        return self._addresses.serves_sender(message, self._uris)

    def sender(self, message: Message) -> bytes:
        """Return the AOR a request claims to come from: what must be proven."""
        return self._addresses.aor(self._uris.parse(message.address(h.FROM).uri))

    def check_request(
        self, connection: Connection, message: Message, aor: bytes, proxy: bool, now: float
    ) -> Refusal | Pending | None:
        """Judge the credentials of a request that acts for `aor`; see `check`."""
        rows = message.values(h.PROXY_AUTHORIZATION if proxy else h.AUTHORIZATION)
        return self.check(connection, rows, message.method, message.uri, aor, proxy, now)

    def check(
        self,
        connection: Connection,
        rows: Sequence[bytes],
        method: bytes,
        uri: bytes,
        aor: bytes,
        proxy: bool,
        now: float,
    ) -> Refusal | Pending | None:
        """Judge rows of credentials for a request that acts for `aor`.

        Returns None when they are good, the status and header lines of the refusal, or `Pending`: call `ask` with it.
        """
        domain = aor.rpartition(b"@")[2]
        authenticator = self._authenticators[domain]
        if not rows:
            return _challenge(authenticator, proxy, False, now)
        if self._lockout.blocked(connection.source, b"", now):
            self._count("locked_out")
            return 403, ()
        verdict = authenticator.verify_rows(rows, method, lambda named: named == uri or self._names_us(named), now)
        outcome = verdict.outcome
        if outcome is Outcome.GRANTED:
            return self._check_identity(connection, verdict, aor, domain)
        if outcome is Outcome.PENDING:
            return Pending(verdict, domain)
        if outcome is Outcome.MALFORMED:
            self._report(connection, verdict, verdict.reason)
            return 400, ()
        if outcome is Outcome.DENIED:
            self._lockout.record_failure(connection.source, verdict.username, now)
            self._report(connection, verdict, verdict.reason)
        return _challenge(authenticator, proxy, verdict.stale, now)

    def _check_identity(self, connection: Connection, verdict: Verdict, aor: bytes, domain: bytes) -> Refusal | None:
        """The user proven must be the one acted for (RFC 3261 §10.3 step 4; SIP-AUT-15)."""
        if verdict.username + b"@" + domain == aor:
            return None
        self._report(connection, verdict, "identity")
        return 403, ()

    def ask(self, pending: Pending, again: Callable[[float], None], refused: Callable[[int], None]) -> None:
        """Fetch a user, remember the answer, call `again(now)`; a store that fails is a 500, and nobody is let in."""
        verdict = pending.verdict

        def done(found: Credential | Exception | None) -> None:
            now = self._clock()
            if isinstance(found, Exception):
                self._cache.degraded = True
                if isinstance(self._cache.get(verdict.username, verdict.realm, now), Lookup):
                    self._count("storage")
                    refused(500)
                    return
            else:
                self._cache.degraded = False
                self._cache.put(verdict.username, verdict.realm, found, now)
            again(now)

        self._users.fetch(verdict.username.decode(), pending.domain.decode("ascii"), done)

    def _names_us(self, uri: bytes) -> bool:
        """Whether a digest URI other than the Request-URI at least names something we serve (SIP-AUT-11)."""
        try:
            return self._addresses.serves(parse_uri(uri))
        except RemoteError:
            return False

    def _report(self, connection: Connection, verdict: Verdict, reason: str) -> None:
        self._count(reason)
        user = verdict.username.decode("utf-8", "backslashreplace")
        self._publish(AuthenticationFailed("sip", connection.remote[0], user, reason))

    def _count(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1


def _challenge(authenticator: Authenticator, proxy: bool, stale: bool, now: float) -> Refusal:
    name = b"Proxy-Authenticate: " if proxy else b"WWW-Authenticate: "
    return 407 if proxy else 401, [name + value for value in authenticator.challenges(now, stale)]
