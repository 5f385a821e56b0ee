"""The MSRP relay as the server sees it: what it is made of, and what an operator can ask of it (RFC 4976).

Relay ── handler_for(connection) ──► MsrpHandler   one for each connection: frames in, answers out
  ├── Enrolment   AUTH and session URIs              ├── Outbox       what leaves, in turns
  ├── Router      who may send where                 └── FrameReader  frames that are not of every day
  ├── Forwarder   frames that go the long way
  └── Reporter    failures, told once
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge.auth.authenticator import Authenticator
from edge.auth.credentials import CredentialCache
from edge.auth.lockout import Lockout
from edge.connections import Connection
from edge.errors import RemoteError
from edge.events import Event, SessionClosed, SessionOpened
from edge.msrp.accounts import Accounts
from edge.msrp.auth import Enrolment, Users
from edge.msrp.chunker import Outbox
from edge.msrp.forward import Forwarder
from edge.msrp.framing import Frame
from edge.msrp.handler import HEAD_TIMEOUT_S, MsrpHandler
from edge.msrp.identifier import Identifiers, RandomSource
from edge.msrp.relief import Reliever
from edge.msrp.report import Reporter
from edge.msrp.route import Router
from edge.msrp.session import OctetQuota, Session, SessionTable
from edge.msrp.target import Network, is_dialable, is_permitted
from edge.msrp.uri import HopKey, MsrpUri
from edge.timers import TimerWheel

_TURN_OCTETS = 131072  # of one connection in a turn of the loop: chunks cost next to nothing for each octet


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What an operator may set; the names are those of the configuration where it has them. Times in seconds.

    `names` are the (host, port) pairs that mean this relay, hosts in lower case, IPv6 without brackets. `chunk_sizes`
    are limits for single next hops by (host, port), in place of `max_chunk_size`; there, in `max_message_size` and in
    the limits for a user 0 means no limit. `octets_per_user` are those that the sessions of one user send in an hour.
    `content_types` are the only ones passed on, in lower case, `image/*` for a whole type; none: all.
    `use_path` is the host and port in URIs we issue, None: those of the listener. `one_far_path`
    refuses the use of one of our URIs towards a second far party.
    """

    names: frozenset[tuple[str, int]] = frozenset()
    use_path: tuple[str, int] | None = None
    min_expires: int = 60
    max_expires: int = 3600
    default_expires: int = 600
    max_chunk_size: int = 65536
    chunk_sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    require_tls: bool = True
    allow_targets: Sequence[Network] = ()
    share_links: bool = False
    report_timeout: float = 30.0
    link_grace: float = 2.0
    websocket_piece: int = 2048
    max_message_size: int = 0
    one_far_path: bool = False
    auth_failures: int = 5
    sessions_per_connection: int = 32
    sessions_per_user: int = 0
    octets_per_user: int = 0
    connects_per_second: int = 10
    blocked_methods: Collection[bytes] = ()
    content_types: Collection[bytes] = ()


class Dial(Protocol):
    """Open a connection (secure, host, port, handler, check_address); returns at once.

    Port 0 means that the URI has none: look `_msrps._tcp` up (SRV), else 2855 (RFC 4976 §8). The connection takes
    `send` while it is being opened. `check_address` is asked for each resolved address before it is dialled.
    `handler.handle_writable` is called when the connection is up, `handler.handle_lost` when it fails.
    """

    def __call__(
        self, secure: bool, host: str, port: int, handler: MsrpHandler, check_address: Callable[[str], bool]
    ) -> Connection:
        """Begin to open a connection."""
        ...


# A policy's: (handler, frame if it has been read, data, where frame, body and its end are, now); True: it has it.
# A SEND whose body is still coming is a frame without one, at -1.
UserLater = Callable[[MsrpHandler, bytes, Callable[[bool], None]], bool]  # False: there is no room for it
FrameHook = Callable[[MsrpHandler, Frame | None, bytes, int, int, int, float], bool]


class RelayStats:
    """Counters, all plain integers; dictionaries have a fixed set of keys but for methods, which fold into `other`."""

    __slots__ = (
        "_methods", "_responses", "dials", "octets", "refused", "refused_downstream", "reports_made", "reports_relayed",
        "second_far_paths", "sends", "sessions_opened", "unanswered",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sends = 0  # SENDs that went the short way
        self.unanswered = 0  # those of them that wanted no 200
        self.octets = 0  # body octets of SENDs
        self.reports_made = 0
        self.reports_relayed = 0
        self.sessions_opened = 0
        self.dials = 0
        self.second_far_paths = 0
        self.refused: dict[str, int] = {}
        self.refused_downstream: dict[int, int] = {}
        self._methods: dict[str, int] = {}
        self._responses: dict[int, int] = {}

    @property
    def frames(self) -> dict[str, int]:
        """Requests received, by method."""
        return {**self._methods, "SEND": self._methods.get("SEND", 0) + self.sends}

    @property
    def responses(self) -> dict[int, int]:
        """Responses of ours, by code."""
        return {**self._responses, 200: self._responses.get(200, 0) + self.sends - self.unanswered}

    @property
    def reports(self) -> dict[str, int]:
        """REPORTs sent, by origin."""
        return {"relayed": self.reports_relayed, "made": self.reports_made}

    def count_method(self, method: bytes) -> None:
        """Count a request."""
        name = method.decode() if method in (b"SEND", b"REPORT", b"AUTH", b"NICKNAME") else "other"
        self._methods[name] = self._methods.get(name, 0) + 1

    def count_response(self, code: int) -> None:
        """Count a response of ours."""
        self._responses[code] = self._responses.get(code, 0) + 1

    def count_refusal(self, code: int) -> None:
        """Count an error response of a next hop; codes a stranger invents fold into 0."""
        known = code if code in (400, 403, 408, 413, 415, 481, 501, 506) else 0
        self.refused_downstream[known] = self.refused_downstream.get(known, 0) + 1

    def refuse(self, label: str) -> None:
        """Count something that was not done for a peer, by its reason."""
        self.refused[label] = self.refused.get(label, 0) + 1


class Relay:
    """One MSRP relay.

    `random` takes a number of octets and returns that many from a cryptographic source. `clock` is monotonic, `soon`
    calls a function in a later turn of the loop. `publish` takes events, `permits` says whether a user may use this
    relay. `lockout` counts failed logins and refuses sources with too many;
    `account` is told of sessions and chunks.
    """

    def __init__(
        self,
        settings: RelaySettings,
        *,
        authenticator: Authenticator,
        cache: CredentialCache,
        users: Users,
        dial: Dial,
        wheel: TimerWheel,
        random: RandomSource,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        publish: Callable[[Event], None],
        permits: Callable[[bytes], bool] = lambda username: True,
        lockout: Lockout | None = None,
        account: Accounts | None = None,
    ) -> None:
        self.settings = settings
        self.wheel = wheel
        self.clock = clock
        self.soon = soon
        self.publish = publish
        self.permits = permits
        self.account = account
        self.identifiers = Identifiers(random)
        self.stats = RelayStats()
        self.table = SessionTable(wheel, self._session_closed)
        self.octets = OctetQuota(settings.octets_per_user)
        self.router = Router(self)
        self.forwarder = Forwarder(self)
        self.reporter = Reporter(self)
        self.enrolment = Enrolment(self, authenticator, cache, users, lockout)
        self.gathering = False  # a read is being handled; `flush` follows
        self.dirty: list[Outbox] = []
        self.draining = False
        self.frame_hook: FrameHook | None = None
        self.user_later: UserLater | None = None  # one that takes its time
        self.user_hook: Callable[[MsrpHandler, bytes], bool] | None = None  # a policy's: may this user have a URI?
        self._dial = dial
        self._hosts = frozenset(host for host, _ in settings.names)
        self._ports = frozenset(port for _, port in settings.names)
        self._links: dict[HopKey, MsrpHandler] = {}
        self._peers: dict[str, MsrpHandler] = {}  # relays by certificate name
        self._handlers: set[MsrpHandler] = set()
        self._reliever = Reliever()
        self._dialled: dict[MsrpHandler, tuple[float, float]] = {}

    # -- for the server

    def handler_for(self, connection: Connection) -> MsrpHandler:
        """Make the handler of an accepted connection that speaks MSRP, from the first octet of its first frame."""
        handler = MsrpHandler(self, self.settings.max_chunk_size)
        self._enter(handler, connection)
        self.wheel.start(handler, connection.opened_at + HEAD_TIMEOUT_S)
        return handler

    def _enter(self, handler: MsrpHandler, connection: Connection) -> None:
        handler.attach(connection)
        connection.turn_octets = _TURN_OCTETS
        self._handlers.add(handler)
        if hasattr(connection, "queue_limit"):
            connection.queue_limit = 0  # whoever feeds it is held instead
        for name in connection.identities:
            self._peers[name] = handler

    def flush(self) -> None:
        """Hand over what was gathered during a read."""
        self.gathering = False
        if self.dirty:
            for outbox in self.dirty:
                outbox.flush()
            self.dirty.clear()

    def sessions(self) -> list[dict[str, object]]:
        """Describe all live sessions, for operators; no session-id is in it."""
        now = self.clock()
        return [
            {
                "id": session.name,
                "user": session.user,
                "connection": session.owner.connection.name,
                "far": [far.handler.connection.name for far in session.far],
                "age_s": int(now - session.opened_at),
                "expires_s": max(0, int(session.expires_at - now)),
            }
            for session in self.table
        ]

    def close_session(self, name: str) -> bool:
        """End the session an operator names; False when there is none."""
        session = self.table.by_name(name)
        if session is not None:
            self.table.close(session, "operator", self.clock())
        return session is not None

    def relieve(self) -> int:
        """Close connections nobody needs because there is no room for others; returns how many (RFC 4976 §6.5)."""
        return self._reliever.relieve(self._handlers, self.clock())

    def drain(self) -> int:
        """Take no new sessions from now on; returns how many messages are on their way."""
        self.draining = True
        return sum(len(handler.outbox.streams) for handler in self._handlers)

    # -- sessions

    def open_session(self, session: Session, now: float, lifetime_s: float) -> None:
        """Enter a session that was granted.

        Raises:
            RemoteError: the relay is going down (403).
        """
        if self.draining:
            raise RemoteError(403, "draining", "Relay is shutting down")
        self.table.open(session, now, lifetime_s)
        self.stats.sessions_opened += 1
        self.publish(SessionOpened(session.name, session.user, session.owner.connection.name))

    def _session_closed(self, session: Session, reason: str, now: float) -> None:
        if self.account is not None:
            self.account.close(session, reason, now)
        connection, age = session.owner.connection.name, now - session.opened_at
        self.publish(SessionClosed(session.name, session.user, connection, reason, age))

    def handle_lost(self, handler: MsrpHandler, reason: str, now: float) -> None:
        """A connection is gone: its sessions end, what was bound to it is free."""
        self._handlers.discard(handler)
        self._dialled.pop(handler, None)
        if self._links:
            self._links = {hop: known for hop, known in self._links.items() if known is not handler}
        for name in handler.connection.identities:
            if self._peers.get(name) is handler:
                del self._peers[name]
        for session in list(handler.sessions):
            if len(session.owner_path) == 1 or not handler.connection.identities:
                self.table.close(session, reason, now)
        for session in list(handler.far_sessions):
            session.unbind_far(handler)
        handler.far_sessions.clear()

    def reachable(self, handler: MsrpHandler) -> MsrpHandler | None:
        """Find the connection to write to for this one: itself, or another one of the same relay (RFC 4976 §6.3)."""
        if not handler.lost:
            return handler
        return next((self._peers[name] for name in handler.connection.identities if name in self._peers), None)

    # -- names and next hops

    def is_ours(self, uri: MsrpUri, connection: Connection) -> bool:
        """Tell whether a URI's host and port mean this relay (RFC 4976 §6.2); without a port any of ours is meant."""
        local_host, local_port = connection.local[0], connection.local[1]
        if uri.host == local_host.lower() and uri.port in (0, local_port):
            return True
        if uri.host not in self._hosts:
            return False
        return uri.port == 0 or uri.port in self._ports or (uri.port == 443 and uri.transport == b"ws")

    def advertised(self, asked: MsrpUri, connection: Connection) -> tuple[str, int]:
        """Choose host and port for a URI of ours: as set, else the listener's, else as the client called us."""
        if self.settings.use_path is not None:
            return self.settings.use_path
        host, port = connection.listener.advertised if connection.listener is not None else connection.local
        if host in ("0.0.0.0", "::", ""):
            host = asked.host
        return host, port

    def dial_next_hop(self, uri: MsrpUri, source: MsrpHandler, now: float) -> MsrpHandler:
        """Find or open the connection to a next hop (RFC 4976 §6.4.2, §9.3).

        Raises:
            RemoteError: 481 nothing listens there, 403 it is not to be dialled.
        """
        if not is_dialable(uri.transport, uri.host, uri.port):
            raise RemoteError(481, "not_dialable")
        link = self._links.get(uri.hop)
        if link is not None and not link.lost:
            return link
        if not self._may_dial(source, now):
            raise RemoteError(403, "dial_rate")
        return self._open_link(uri)

    def _open_link(self, uri: MsrpUri) -> MsrpHandler:
        allowed = self.settings.allow_targets

        def check_address(address: str) -> bool:
            return is_permitted(address, allowed)

        limit = self.settings.chunk_sizes.get((uri.host, uri.port), self.settings.max_chunk_size)
        handler = MsrpHandler(self, limit)
        handler.outbox.connecting = True
        self.stats.dials += 1
        connection = self._dial(uri.secure, uri.host, uri.port, handler, check_address)
        if handler.lost:
            raise RemoteError(408, "unreachable", "Next hop unreachable")
        self._enter(handler, connection)
        if self.settings.share_links:
            self._links[uri.hop] = handler
        return handler

    def limit_chunks(self, handler: MsrpHandler, hop: MsrpUri) -> None:
        """Cut what goes to this hop at the size set for it, also over a connection that it has opened."""
        size = self.settings.chunk_sizes.get((hop.host, hop.port), 0)
        if size:
            handler.outbox.lower_limit(size)

    def _may_dial(self, source: MsrpHandler, now: float) -> bool:
        """Allow so many connections each second for the frames of one peer."""
        rate = float(self.settings.connects_per_second)
        tokens, last = self._dialled.get(source, (rate, now))
        tokens = min(rate, tokens + (now - last) * rate)
        self._dialled[source] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1
