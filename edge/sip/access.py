"""Who may do what: digest for REGISTER and for requests of our own users (RFC 3261 §22, §26.3.1), sans-IO.

    registrar  401 with WWW-Authenticate        proxy  407 with Proxy-Authenticate        ACK, CANCEL: never asked

Checks are plain calls. One that needs the user store says so, and is made again in the store's callback; nothing waits.
Whoever registers an AOR must be its user, or one of those who may do so for others (`sip.third_party`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from edge.auth.authenticator import Authenticator, Outcome, Verdict
from edge.auth.credentials import Credential, CredentialCache
from edge.auth.digest import MD5
from edge.auth.fallback import Fallback
from edge.auth.lockout import Lockout
from edge.connections import Connection
from edge.errors import RemoteError
from edge.events import AuthenticationFailed, Event
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.forward import Routes
from edge.sip.gruu import Gruus
from edge.sip.message import Message
from edge.sip.uri import UriCache, parse_uri

Refusal = tuple[int, Sequence[bytes]]


class Grant(Enum):
    """Who acts: the user of the AOR (then a check returns None), or somebody who may register others."""

    THIRD_PARTY = "third_party"


THIRD_PARTY: Final = Grant.THIRD_PARTY
_MD5_NAMES = (None, MD5.token, MD5.token.lower())


@dataclass(slots=True)
class Pending:
    """What must be known first; see `Access.ask`: the user of credentials, or what a policy says of `proven`."""

    verdict: Verdict | None
    domain: bytes
    connection: Connection | None = None
    proven: bytes = b""
    grant: Grant | None = None


Later = Callable[[Connection, bytes, Callable[[bool], None]], bool]  # False: there is no room for it


class Users(Protocol):
    """The user store (`edge.storage.base.UserStore`)."""

    def fetch(self, username: str, domain: str, done: Callable[[Credential | Exception | None], None]) -> None:
        """Look a user up without blocking."""


class Access:
    """Authentication and the identity of the sender.

    `authenticators` by domain in lower case. `third_party`: AORs of users who may register others of their domain.
    `waiting` holds the keys of requests that wait for storage: a repeat of one is absorbed (RFC 3261 §17.2.2).
    """

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
        gruus: Gruus,
        third_party: Iterable[str] = (),
        fallback_s: float = 300.0,
    ) -> None:
        self.enabled = enabled
        self.waiting: set[bytes] = set()
        self.failures: dict[str, int] = {}
        self.user_hook: Callable[[Connection, bytes], Refusal | None] | None = None  # a policy's
        self.later: Later | None = None  # one that takes its time
        self._proven = b""
        self._decided: dict[bytes, Grant | None] = {}  # by key of the request, while it is judged again
        self._addresses = addresses
        self._authenticators = authenticators
        self._users = users
        self._cache = cache
        self._lockout = lockout
        self._uris = uris
        self._gruus = gruus
        self._clock = clock
        self._publish = publish
        agents = [user.rpartition("@") for user in third_party]
        self._third_party = frozenset(f"{name}@{domain.lower()}".encode() for name, _, domain in agents)
        self._third_party_names = tuple(name.encode() for name, _, _ in agents)
        self._fallback = Fallback(fallback_s)

    def asks(self, message: Message) -> bool:
        """Whether credentials are asked for at all: the setting, or what a policy says of this request."""
        directions = message.directions
        return self.enabled if directions is None or directions.authorised is None else not directions.authorised

    def required(self, message: Message, routes: Routes) -> bool:
        """Whether a request must prove who sent it: those of our own users that open something new."""
        if message.directions is not None and message.directions.authorised is not None:
            return not message.directions.authorised
        return self.is_due(message, routes)

    def is_due(self, message: Message, routes: Routes) -> bool:
        """Whether the settings alone ask for credentials; see `required`."""
        if not self.enabled or (message.to_tag is not None and routes.popped):
            return False
        return self._addresses.serves_sender(message, self._uris)

    def sender(self, message: Message) -> bytes:
        """Return the AOR a request claims to come from: what must be proven."""
        return self._addresses.aor(self._uris.parse(message.address(h.FROM).uri))

    def check_registration(
        self, connection: Connection, message: Message, aor: bytes, now: float
    ) -> Refusal | Pending | Grant | None:
        """Judge the credentials of a REGISTER, where any are asked for; see `check`."""
        return self.check_request(connection, message, aor, False, now) if self.asks(message) else None

    def check_request(
        self, connection: Connection, message: Message, aor: bytes, proxy: bool, now: float
    ) -> Refusal | Pending | Grant | None:
        """Judge the credentials of a request that acts for `aor`; see `check`."""
        if self._decided and message.key in self._decided:
            return self._decided.pop(message.key)
        rows = message.values(h.PROXY_AUTHORIZATION if proxy else h.AUTHORIZATION)
        dialogue = message.texts[h.CALL_ID], message.cseq
        outcome = self.check(connection, rows, message.method, message.uri, aor, proxy, now, dialogue)
        if outcome is None and proxy and self._gruus.claims_another(message, aor):
            self._count("gruu")
            return 403, ()
        if self.later is not None and (outcome is None or outcome is THIRD_PARTY):
            return Pending(None, b"", connection, self._proven, outcome)
        return outcome

    def check(
        self,
        connection: Connection,
        rows: Sequence[bytes],
        method: bytes,
        uri: bytes,
        aor: bytes,
        proxy: bool,
        now: float,
        dialogue: tuple[bytes, int],
    ) -> Refusal | Pending | Grant | None:
        """Judge rows of credentials for a request that acts for `aor`; `dialogue` is its Call-ID and CSeq.

        Returns None when they are those of the AOR's user, THIRD_PARTY when they are of one who may register others,
        the status and header lines of the refusal, or `Pending`: call `ask` with it.
        """
        domain = aor.rpartition(b"@")[2]
        authenticator = self._authenticators[domain]
        if not rows:
            call_id, cseq = dialogue
            last = authenticator.md5_last and self._fallback.challenge(connection.source, call_id, cseq, now)
            return _challenge(authenticator, proxy, False, last, now)
        if self._lockout.source_blocked(connection.source, now):
            self._count("locked_out")
            return 403, ()
        verdict = authenticator.verify_rows(rows, method, lambda named: named == uri or self._names_us(named), now)
        outcome = verdict.outcome
        # Whether the password was right or wrong: nobody is to find out.
        if self._lockout.user_blocked(connection.source, verdict.username, now):
            self._count("locked_out")
            return 403, ()
        if outcome is Outcome.PENDING:
            return Pending(verdict, domain)
        self._fallback.answered(connection.source, dialogue[0])
        if outcome is Outcome.GRANTED:
            return self._check_identity(connection, verdict, aor, domain, proxy)
        if outcome is Outcome.MALFORMED:
            self._report(connection, verdict, verdict.reason)
            return 400, ()
        if outcome is Outcome.DENIED:
            self._report(connection, verdict, verdict.reason)
            for event in self._lockout.report_failure("sip", connection.source, verdict, now):
                self._publish(event)
        return _challenge(authenticator, proxy, verdict.stale, authenticator.md5_last and _prefers_md5(verdict), now)

    def _check_identity(
        self, connection: Connection, verdict: Verdict, aor: bytes, domain: bytes, proxy: bool
    ) -> Refusal | Grant | None:
        """The user proven must be the one acted for (RFC 3261 §10.3 step 4; SIP-AUT-15, OB-3P-01)."""
        self._lockout.record_success(connection.source, verdict.username)
        proven = self._proven = verdict.username + b"@" + domain
        if self.user_hook is not None and (refusal := self.user_hook(connection, proven)) is not None:
            return refusal
        if proven == aor:
            return None
        if not proxy and proven in self._third_party:
            return THIRD_PARTY
        self._report(connection, verdict, "identity")
        return 403, ()

    def may_be_third_party(self, row: bytes) -> bool:
        """Whether credentials could be those of somebody who registers others; sure when it says no."""
        names = self._third_party_names
        return bool(names) and (b"\\" in row or any(name in row for name in names))

    def ask(self, pending: Pending, key: bytes, again: Callable[[float], None], refused: Callable[[int], None]) -> None:
        """Fetch a user, remember the answer, call `again(now)`; a store that fails is a 500, and nobody is let in.

        `key` is that of the request's transaction: its repeats are absorbed meanwhile.
        """
        if pending.verdict is None:
            self._ask_policy(pending, key, again, refused)
            return
        username, domain = pending.verdict.username, pending.domain
        self.waiting.add(key)

        def done(found: Credential | Exception | None) -> None:
            self.waiting.discard(key)
            now = self._clock()
            if self._cache.receive(username, domain, found, now):
                again(now)
            else:
                self._count("storage")
                refused(500)

        self._users.fetch(username.decode(), domain.decode("ascii"), done)

    def _ask_policy(
        self, pending: Pending, key: bytes, again: Callable[[float], None], refused: Callable[[int], None]
    ) -> None:
        """Let a policy decide about somebody who has proved who they are."""

        def decided(allowed: bool) -> None:
            self.waiting.discard(key)
            if not allowed:
                refused(403)
                return
            self._decided[key] = pending.grant
            again(self._clock())
            self._decided.pop(key, None)

        connection = pending.connection
        if self.later is not None and connection is not None and self.later(connection, pending.proven, decided):
            self.waiting.add(key)
        else:
            refused(503)

    def know(self, aor: bytes, key: bytes, known: Callable[[bool | None], None]) -> None:
        """Find out whether there is such a user; None when the store cannot say. `key` as for `ask`."""
        user, _, domain = aor.rpartition(b"@")
        try:
            name = user.decode()
        except UnicodeDecodeError:
            known(False)
            return
        self.waiting.add(key)

        def done(found: Credential | Exception | None) -> None:
            self.waiting.discard(key)
            known(None if isinstance(found, Exception) else found is not None)

        self._users.fetch(name, domain.decode("ascii"), done)

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


def _challenge(authenticator: Authenticator, proxy: bool, stale: bool, last: bool, now: float) -> Refusal:
    name = b"Proxy-Authenticate: " if proxy else b"WWW-Authenticate: "
    return 407 if proxy else 401, [name + value for value in authenticator.challenges(now, stale, last=last)]


def _prefers_md5(verdict: Verdict) -> bool:
    """Whether a client that knows the password answered with MD5 although it could choose: it knows nothing else."""
    credentials = verdict.credentials
    return verdict.stale and credentials is not None and credentials.algorithm in _MD5_NAMES
