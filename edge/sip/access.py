"""Who may do what: digest for REGISTER and for requests of our own users (RFC 3261 §22, §26.3.1), sans-IO.

    registrar  401 with WWW-Authenticate        proxy  407 with Proxy-Authenticate        ACK, CANCEL: never asked

An answer that needs the user store is continued in its callback; nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from edge.auth.authenticator import Authenticator, Outcome, Verdict
from edge.auth.credentials import Credential, CredentialCache
from edge.auth.lockout import Lockout
from edge.connections import Connection
from edge.errors import RemoteError
from edge.events import AuthenticationFailed, Event
from edge.sip import headers as h
from edge.sip.forward import Routes
from edge.sip.message import Message
from edge.sip.targets import Addresses
from edge.sip.uri import UriCache, parse_uri

Refused = Callable[..., None]


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
        return self._addresses.serves(self._uris.parse(message.address(h.FROM).uri))

    def check_proxy(
        self,
        connection: Connection,
        message: Message,
        now: float,
        granted: Callable[[float], None],
        refused: Refused,
    ) -> None:
        """Ask for Proxy-Authorization; `granted(now)` or `refused(status, header lines)` is called once."""
        sender = self._uris.parse(message.address(h.FROM).uri)

        def checked(verdict: Verdict, now: float) -> None:
            if verdict.username + b"@" + self._domain(sender.host) != self._addresses.aor(sender):
                self._report(connection, verdict, "identity")
                refused(403, ())
            else:
                granted(now)

        self._check(connection, message, self._domain(sender.host), True, now, checked, refused)

    def check_register(
        self,
        connection: Connection,
        message: Message,
        aor: bytes,
        now: float,
        granted: Callable[[float], None],
        refused: Refused,
    ) -> None:
        """Ask for Authorization; the user proven must be the user registered (RFC 3261 §10.3 steps 3, 4)."""
        if not self.enabled:
            granted(now)
            return
        domain = aor.rpartition(b"@")[2]

        def checked(verdict: Verdict, now: float) -> None:
            if verdict.username + b"@" + domain != aor:
                self._report(connection, verdict, "identity")
                refused(403, ())
            else:
                granted(now)

        self._check(connection, message, domain, False, now, checked, refused)

    def _domain(self, host: bytes) -> bytes:
        return host if self._addresses.is_domain(host) else self._addresses.domains[0]

    def _check(
        self,
        connection: Connection,
        message: Message,
        domain: bytes,
        proxy: bool,
        now: float,
        granted: Callable[[Verdict, float], None],
        refused: Refused,
    ) -> None:
        authenticator = self._authenticators[domain]
        rows = message.values(h.PROXY_AUTHORIZATION if proxy else h.AUTHORIZATION)
        if not rows:
            refused(*_challenge(authenticator, proxy, False, now))
            return
        if self._lockout.blocked(connection.source, b"", now):
            self._count("locked_out")
            refused(403, ())
            return

        def judge(now: float, again: bool) -> None:
            verdict = authenticator.verify_rows(rows, message.method, lambda uri: self._names_us(uri, message), now)
            outcome = verdict.outcome
            if outcome is Outcome.GRANTED:
                granted(verdict, now)
            elif outcome is Outcome.PENDING and not again:
                self._ask(verdict, domain, lambda now: judge(now, True), refused)
            elif outcome is Outcome.MALFORMED:
                self._report(connection, verdict, verdict.reason)
                refused(400, ())
            else:
                if outcome is Outcome.DENIED:
                    self._lockout.record_failure(connection.source, verdict.username, now)
                    self._report(connection, verdict, verdict.reason)
                refused(*_challenge(authenticator, proxy, verdict.stale, now))

        judge(now, False)

    def _ask(self, verdict: Verdict, domain: bytes, judge: Callable[[float], None], refused: Refused) -> None:
        """Fetch a user, remember the answer and go on; a store that fails is a 500, and nobody is let in."""

        def done(found: Credential | Exception | None) -> None:
            now = self._clock()
            if isinstance(found, Exception):
                self._count("storage")
                refused(500, ())
                return
            self._cache.put(verdict.username, verdict.realm, found, now)
            judge(now)

        self._users.fetch(verdict.username.decode(), domain.decode("ascii"), done)

    def _names_us(self, uri: bytes, message: Message) -> bool:
        """Whether the digest URI is the Request-URI, or at least something we serve (SIP-AUT-11)."""
        if uri == message.uri:
            return True
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


def _challenge(authenticator: Authenticator, proxy: bool, stale: bool, now: float) -> tuple[int, Sequence[bytes]]:
    name = b"Proxy-Authenticate: " if proxy else b"WWW-Authenticate: "
    return 407 if proxy else 401, [name + value for value in authenticator.challenges(now, stale)]
