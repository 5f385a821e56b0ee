"""AUTH: challenge, check, hand out a session URI (RFC 4976 §5.1, §6.3, §9.1).

    AUTH ─► for us? ─ more URIs ─► passed on, when its sender owns the first
              │ ours
              ├─► TLS? ─► credentials ─► permission ─► Expires ─► quota ─► 200 with Use-Path
              │    403        401            403          423       403
              └ the sender's own live URI: the same, and its lifetime starts anew

The AUTHs of one connection are handled in turn, because each uses up a nonce count; while one waits for the user store,
at most four others wait behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from edge.auth.authenticator import Authenticator, Outcome, Verdict
from edge.auth.credentials import Credential, CredentialCache
from edge.auth.lockout import Lockout
from edge.errors import RemoteError
from edge.events import AuthenticationFailed
from edge.msrp.frame import Head
from edge.msrp.framing import Frame
from edge.msrp.report import Forwarded
from edge.msrp.session import Session
from edge.msrp.uri import MsrpUri, format_host, is_same_uri, parse_uri

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.relay import Relay, UserLater

WAITING_LIMIT = 4
_NEUTRAL = (Outcome.STALE, Outcome.OTHER)  # a new challenge, and no failure


class Users(Protocol):
    """Where users come from; `done` is called on the event loop, maybe before `fetch` returns."""

    def fetch(self, username: str, domain: str, done: Callable[[Credential | Exception | None], None]) -> None:
        """Ask for one user; never blocks."""
        ...


class AuthQueue:
    """The AUTHs of one connection that wait for an earlier one."""

    __slots__ = ("busy", "waiting")

    def __init__(self) -> None:
        self.busy = False
        self.waiting: deque[Frame] = deque()


class Enrolment:
    """Handle AUTH for one relay."""

    __slots__ = ("_authenticator", "_cache", "_lockout", "_relay", "_users")

    def __init__(
        self,
        relay: Relay,
        authenticator: Authenticator,
        cache: CredentialCache,
        users: Users,
        lockout: Lockout | None = None,
    ) -> None:
        self._relay = relay
        self._authenticator = authenticator
        self._cache = cache
        self._users = users
        self._lockout = lockout

    def handle(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """Handle one AUTH, or let it wait for its turn.

        Raises:
            RemoteError: too many wait.
        """
        queue = source.auth
        if queue is None:
            queue = source.auth = AuthQueue()
        if queue.busy:
            if len(queue.waiting) >= WAITING_LIMIT:
                raise RemoteError(400, "auth_queue", "Too many AUTH requests at once")
            queue.waiting.append(frame)
            source.connection.uses += 1
            return
        self._handle_now(source, frame, now)

    def _handle_now(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        try:
            if frame.flag != b"$":
                raise RemoteError(400, "interrupted")
            if len(frame.head.to_path) > 1:
                self._pass_on(source, frame, now)
            else:
                self._check_target(source, frame.head, now)
                self._check_credentials(source, frame, now, asked=False)
        except RemoteError as error:
            self._relay.forwarder.refuse(source, frame.head, error, now)

    def _go_on(self, source: MsrpHandler, now: float) -> None:
        """The user store has answered: take the AUTHs that waited."""
        queue = source.auth
        assert queue is not None
        queue.busy = False
        source.connection.release_use()
        while queue.waiting and not queue.busy and not source.lost:
            source.connection.release_use()
            self._handle_now(source, queue.waiting.popleft(), now)

    # -- checks, in their order

    def _check_target(self, source: MsrpHandler, head: Head, now: float) -> None:
        """To-Path names this relay, over TLS, and the way back is the previous hop's own (RFC 4976 §6.3)."""
        uri = parse_uri(head.to_path[0])
        session = self._relay.table.find(uri, now)
        if session is None:
            if not self._relay.is_ours(uri, source.connection):
                raise RemoteError(0, "foreign")
            if uri.session_id:
                raise RemoteError(481, "session")
        elif session.owner is not source:
            raise RemoteError(403, "not_owner")
        if self._relay.settings.require_tls and not source.connection.transport.secure:
            raise RemoteError(403, "auth_in_clear", "AUTH needs TLS (msrp.require_tls)")
        if len(head.from_path) > 1 and parse_uri(head.from_path[0]).host not in source.connection.identities:
            raise RemoteError(403, "relay_identity")

    def _check_credentials(self, source: MsrpHandler, frame: Frame, now: float, *, asked: bool) -> None:
        value = frame.head.first(b"authorization")
        if value is None:
            self._challenge(source, frame.head, now)
            return
        self._check_lockout(source, b"", now)
        target = frame.head.to_path[-1]
        verdict = self._authenticator.verify(value, b"AUTH", lambda uri: is_same_uri(uri, target), now, uri=target)
        self._check_lockout(source, verdict.username, now)  # right or wrong: nobody is to find out
        if verdict.outcome is Outcome.GRANTED:
            if self._lockout is not None:
                self._lockout.record_success(source.connection.source, verdict.username)
            self._grant(source, frame.head, verdict, now)
        elif verdict.outcome is Outcome.PENDING and not asked:
            self._ask(source, frame, verdict)
        elif verdict.outcome is Outcome.MALFORMED:
            raise RemoteError(400, "credentials", "Bad credentials")
        else:
            self._deny(source, frame.head, verdict, now)

    def _ask(self, source: MsrpHandler, frame: Frame, verdict: Verdict) -> None:
        """Let the user store find the user, and come back."""
        assert source.auth is not None
        source.auth.busy = True
        source.connection.uses += 1
        username, domain = verdict.username, self._authenticator.domain

        def done(found: Credential | Exception | None) -> None:
            now = self._relay.clock()
            if not self._cache.receive(username, domain, found, now):
                self._relay.stats.refuse("user_store")
                if not source.lost:
                    source.respond(frame.head, 408, b"User store unavailable")
            elif not source.lost:
                self._retry(source, frame, now)
            self._go_on(source, now)

        self._users.fetch(username.decode(), domain.decode(), done)

    def _retry(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        try:
            self._check_credentials(source, frame, now, asked=True)
        except RemoteError as error:
            self._relay.forwarder.refuse(source, frame.head, error, now)

    def _challenge(self, source: MsrpHandler, head: Head, now: float, stale: bool = False) -> None:
        challenges = self._authenticator.challenges(now, stale)
        source.respond(head, 401, extra=tuple(b"WWW-Authenticate: " + challenge for challenge in challenges))

    def _deny(self, source: MsrpHandler, head: Head, verdict: Verdict, now: float) -> None:
        self._challenge(source, head, now, verdict.stale)
        if verdict.outcome not in _NEUTRAL:
            self._relay.stats.refuse("credentials")
            user = verdict.username.decode("utf-8", "replace")
            self._relay.publish(AuthenticationFailed("msrp", source.connection.remote[0], user, verdict.reason))
            self._count_guess(source, verdict, now)
            self._count_failure(source)

    def _count_guess(self, source: MsrpHandler, verdict: Verdict, now: float) -> None:
        lockout, connection = self._lockout, source.connection
        if lockout is not None:
            relayed = len(connection.identities) > 0
            for event in lockout.report_failure("msrp", connection.source, verdict, now, relayed=relayed):
                self._relay.publish(event)

    def _check_lockout(self, source: MsrpHandler, user: bytes, now: float) -> None:
        """Refuse whoever comes from where too many logins failed, and users who are guessed; a relay is not to blame.

        Raises:
            RemoteError: 403.
        """
        lockout, connection = self._lockout, source.connection
        if lockout is None:
            return
        blocked = not connection.identities and lockout.source_blocked(connection.source, now)
        if blocked or lockout.user_blocked(connection.source, user, now):
            raise RemoteError(403, "locked_out", "Too many failed logins")

    def _count_failure(self, source: MsrpHandler) -> None:
        """Close a client that fails too often; a relay, which has a certificate, is never closed for its users."""
        source.auth_failures += 1
        if source.auth_failures >= self._relay.settings.auth_failures and not source.connection.identities:
            source.close("auth_failures")

    # -- success

    def _grant(self, source: MsrpHandler, head: Head, verdict: Verdict, now: float) -> None:
        later = self._relay.user_later
        if later is not None and self._relay.permits(verdict.username):
            self._decide_later(source, head, verdict, later)
        else:
            self._enter(source, head, verdict, now)

    def _decide_later(self, source: MsrpHandler, head: Head, verdict: Verdict, later: UserLater) -> None:
        """Let a policy take its time with a user; other AUTHs of the connection wait."""
        assert source.auth is not None
        source.auth.busy = True
        source.connection.uses += 1

        def decided(allowed: bool) -> None:
            now = self._relay.clock()
            try:
                if not allowed:
                    raise RemoteError(403, "no_permission")
                if not source.lost:
                    self._enter(source, head, verdict, now)
            except RemoteError as error:
                if not source.lost:
                    self._relay.forwarder.refuse(source, head, error, now)
            self._go_on(source, now)

        if not later(source, verdict.username, decided):
            source.auth.busy = False
            source.connection.release_use()
            raise RemoteError(403, "policy_queue")

    def _enter(self, source: MsrpHandler, head: Head, verdict: Verdict, now: float) -> None:
        hook = self._relay.user_hook
        if not self._relay.permits(verdict.username) or (hook is not None and not hook(source, verdict.username)):
            raise RemoteError(403, "no_permission")
        lifetime = self._lifetime(source, head)
        if lifetime is None:
            return
        session = self._relay.table.find_raw(head.to_path[0], now) or self._relay.table.find(
            parse_uri(head.to_path[0]), now
        )
        if session is not None:
            self._relay.table.extend(session, now, lifetime)
        else:
            session = self._open(source, head, verdict, lifetime, now)
        source.authenticated = True
        source.auth_failures = 0
        source.succeed()
        use_path = b" ".join((*reversed(head.from_path[:-1]), session.uri.raw))
        extra = [b"Use-Path: " + use_path, b"Expires: %d" % lifetime]
        if verdict.authentication_info is not None:
            extra.append(b"Authentication-Info: " + verdict.authentication_info)
        source.respond(head, 200, extra=tuple(extra))

    def _lifetime(self, source: MsrpHandler, head: Head) -> int | None:
        """Seconds to grant; None when the answer was 423.

        Raises:
            RemoteError: Expires is no number.
        """
        value, settings = head.first(b"expires"), self._relay.settings
        if value is None:
            return settings.default_expires
        if not value.isdigit():
            raise RemoteError(400, "expires", "Bad Expires")
        asked = int(value[:10]) if len(value) <= 10 else settings.max_expires + 1
        if asked < settings.min_expires:
            source.respond(head, 423, extra=(b"Min-Expires: %d" % settings.min_expires,))
        elif asked > settings.max_expires:
            source.respond(head, 423, extra=(b"Max-Expires: %d" % settings.max_expires,))
        else:
            return asked
        return None

    def _open(self, source: MsrpHandler, head: Head, verdict: Verdict, lifetime: int, now: float) -> Session:
        user, limit = verdict.username.decode("utf-8", "replace"), self._relay.settings.sessions_per_user
        held = len(source.sessions)
        if held >= self._relay.settings.sessions_per_connection and source.connection.identities:
            held = [session.user for session in source.sessions].count(user)  # a relay speaks for many
        if held >= self._relay.settings.sessions_per_connection:
            raise RemoteError(403, "session_quota", "Too many sessions")
        if 0 < limit <= self._relay.table.count_of(user):
            raise RemoteError(403, "sessions_per_user", "Too many sessions")
        return self.enrol(source, head, user, lifetime, now)

    def enrol(self, source: MsrpHandler, head: Head, user: str, lifetime: float, now: float) -> Session:
        """Issue a URI of ours to whoever sent this request.

        Raises:
            RemoteError: a path that is no URI, or the relay is going down.
        """
        previous = parse_uri(head.from_path[0])
        uri = self._make_uri(source, parse_uri(head.to_path[0]))
        session = Session(self._relay.table, uri, source, head.from_path, user)
        self._relay.open_session(session, now, lifetime)
        self._relay.limit_chunks(source, previous)
        return session

    def _make_uri(self, source: MsrpHandler, asked: MsrpUri) -> MsrpUri:
        """Make a URI of ours (RFC 4976 §6.3); it names TCP for WebSocket clients, too (RFC 7977 §5.2.2)."""
        secure = asked.secure or source.connection.transport.secure
        host, port = self._relay.advertised(asked, source.connection)
        identifier = self._relay.identifiers.draw_session_id()
        scheme = b"msrps" if secure else b"msrp"
        return parse_uri(b"%b://%b:%d/%b;tcp" % (scheme, format_host(host), port, identifier))

    # -- AUTH to a relay behind this one

    def _pass_on(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """Pass AUTH on for the owner of a URI, over TLS only (RFC 4976 §9.2)."""
        head = frame.head
        session = self._relay.router.find_session(source, head, now)
        if not source.owns(session):
            raise RemoteError(403, "not_owner")
        if self._relay.settings.require_tls and not parse_uri(head.to_path[1]).secure:
            raise RemoteError(403, "auth_in_clear", "AUTH needs TLS (msrp.require_tls)")
        self._relay.forwarder.pass_on(source, frame, now)

    def handle_forwarded_answer(self, source: MsrpHandler, entry: Forwarded, head: Head) -> None:
        """Count what another relay says about our client's password."""
        values = head.all(b"www-authenticate")
        stale = any(b"stale=true" in value.replace(b" ", b"").replace(b'"', b"").lower() for value in values)
        if head.start.code == 401 and entry.credentials and not stale:
            self._count_failure(source)
