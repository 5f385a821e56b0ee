"""Session URIs: who got them, who may use them, and for how long (RFC 4976 §5.1, §6.3).

A session is one URI this relay has issued. Its owner is the client it was issued to, its far side whoever talks to that
client through it. The owner uses it over one connection only; the first far connection is bound until it ends. Where
both ends speak first at the same time, their relays dial each other at the same time: then both connections are bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from edge.msrp.uri import HopKey, MsrpUri
from edge.timers import Timed, TimerWheel

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.route import Route

QUOTA_S = 3600.0
QUOTA_USERS = 10000  # from so many on those whose hour is over are forgotten
CROSSING_S = 10.0  # what a connection may take to come up: as long its other end may be dialling us, not knowing of it
REFUSED_LIMIT = 64  # messages of one session remembered as refused by the next hop


class Far:
    """A connection bound to the far side of a session, the URI that speaks over it, and where it leads.

    `dialled_at` says when the owner's first request was to go there.
    """

    __slots__ = ("dialled_at", "handler", "hop", "uri")

    def __init__(self, handler: MsrpHandler, uri: MsrpUri, hop: HopKey) -> None:
        self.handler = handler
        self.uri = uri
        self.hop = hop
        self.dialled_at = float("-inf")

    def leads_to(self, uri: MsrpUri) -> bool:
        """Tell whether frames for this URI go over the connection.

        A relay that only an AUTH went to has no session-id yet, and maybe no port: its first URI tells both.
        """
        secure, host, port, transport = self.hop
        if self.hop != uri.hop and (port or (secure, host, transport) != (uri.secure, uri.host, uri.transport)):
            return False
        if not self.uri.session_id:
            self.uri, self.hop = uri, uri.hop
        return True

    def speaks_as(self, uri: MsrpUri) -> bool:
        """Tell whether this URI is the one that speaks over the connection (RFC 4975 §7.3)."""
        return self.uri.key == uri.key if self.uri.session_id else self.leads_to(uri)


class Session(Timed):
    """One URI of ours that is alive.

    `owner_path` is the From-Path it was enrolled with, the next hop towards the owner first. `refused` are the messages
    the next hop answered with an error: nothing more of them is sent there. `routes` depend on this session and are
    made anew when it changes.
    """

    __slots__ = (
        "chunks",
        "closed",
        "expires_at",
        "far",
        "name",
        "number",
        "octets",
        "opened_at",
        "owner",
        "owner_path",
        "refused",
        "routes",
        "table",
        "uri",
        "user",
    )  # fmt: skip

    def __init__(
        self, table: SessionTable, uri: MsrpUri, owner: MsrpHandler, owner_path: list[bytes], user: str
    ) -> None:
        self.table = table
        self.uri = uri
        self.owner = owner
        self.owner_path = owner_path
        self.user = user
        # The short hash by which logs, events and operators know this session; never the session-id.
        self.name = sha256(uri.session_id).hexdigest()[:12]
        self.chunks = 0  # of SENDs that have left, with their octets; counted where there is accounting
        self.octets = 0
        self.far: list[Far] = []
        self.refused: dict[tuple[bool, bytes], int] = {}
        self.routes: set[Route] = set()
        self.opened_at = 0.0
        self.expires_at = 0.0
        self.closed = False
        self._slot = None

    def handle_timer(self, now: float) -> None:
        """Its time is over. Requests look at the clock themselves, this only tidies up."""
        self.table.close(self, "expired", now)

    def drop_routes(self) -> None:
        """Something changed that routes were decided by."""
        for route in list(self.routes):
            route.withdraw()

    def find_far(self, handler: MsrpHandler) -> Far | None:
        """Find the binding of this connection, or of the same relay on another one (RFC 4976 §6.3)."""
        for far in self.far:
            if far.handler is handler or far.handler.is_same_peer(handler):
                return far
        return None

    def is_crossed_by(self, uri: MsrpUri, now: float) -> bool:
        """Tell whether a frame of this URI, over a second connection, is from the very peer we are just dialling."""
        if len(self.far) != 1 or not uri.session_id:
            return False
        far = self.far[0]
        return far.uri.key == uri.key and now - far.dialled_at <= CROSSING_S

    def bind_far(self, handler: MsrpHandler, uri: MsrpUri, via: MsrpUri | None = None) -> Far:
        """Bind the far side to a connection (RFC 4975 §5.4); `via` is where that leads, if not to `uri` itself."""
        far = Far(handler, uri, (via or uri).hop)
        self.far.append(far)
        handler.far_sessions.add(self)
        handler.connection.registered += 1
        return far

    def unbind_far(self, handler: MsrpHandler) -> None:
        """Free the binding of a connection that is gone."""
        kept = [far for far in self.far if far.handler is not handler]
        handler.connection.registered -= len(self.far) - len(kept)
        self.far = kept
        self.drop_routes()

    def refuse(self, outbound: bool, message_id: bytes) -> None:
        """Remember that nothing more of this message goes on; at most `REFUSED_LIMIT`, the oldest leaving first."""
        if len(self.refused) >= REFUSED_LIMIT:
            del self.refused[next(iter(self.refused))]
        self.refused[outbound, message_id] = 1


class OctetQuota:
    """How many body octets each user may send in an hour from the first of them; `limit` 0: nobody is limited."""

    __slots__ = ("_used", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used: dict[str, tuple[float, int]] = {}  # the end of the hour, octets in it

    def take(self, user: str, octets: int, now: float) -> bool:
        """Count octets of a user; False, and not counted, when they are too many."""
        end, used = self._used.get(user, (now + QUOTA_S, 0))
        if now >= end:
            end, used = now + QUOTA_S, 0
        if used + octets > self.limit:
            return False
        if user not in self._used and len(self._used) >= QUOTA_USERS:
            self._used = {name: known for name, known in self._used.items() if known[0] > now}
        self._used[user] = (end, used + octets)
        return True


SessionCallback = Callable[[Session, str, float], None]


class SessionTable:
    """All live sessions. `closed` is called once for each session that ends, with the reason."""

    __slots__ = ("_by_raw", "_by_session_id", "_closed", "_of_user", "_wheel")

    def __init__(self, wheel: TimerWheel, closed: SessionCallback) -> None:
        self._wheel = wheel
        self._closed = closed
        self._by_raw: dict[bytes, Session] = {}
        self._by_session_id: dict[bytes, Session] = {}
        self._of_user: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_session_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_session_id.values()))

    def open(self, session: Session, now: float, lifetime_s: float) -> None:
        """Enter a session and make its owner's connection count it."""
        session.opened_at = now
        self._by_raw[session.uri.raw] = session
        self._by_session_id[session.uri.session_id] = session
        self._of_user[session.user] = self.count_of(session.user) + 1
        session.owner.sessions.add(session)
        session.owner.connection.registered += 1
        self.extend(session, now, lifetime_s)

    def extend(self, session: Session, now: float, lifetime_s: float) -> None:
        """Let a session live for `lifetime_s` from now."""
        session.expires_at = now + lifetime_s
        session.drop_routes()
        self._wheel.start(session, session.expires_at)

    def close(self, session: Session, reason: str, now: float) -> None:
        """End a session; its URI is never valid again."""
        if session.closed:
            return
        session.closed = True
        self._wheel.stop(session)
        session.drop_routes()
        del self._by_raw[session.uri.raw]
        del self._by_session_id[session.uri.session_id]
        left = self._of_user.pop(session.user) - 1
        if left:
            self._of_user[session.user] = left
        session.owner.sessions.discard(session)
        session.owner.connection.registered -= 1
        self._closed(session, reason, now)
        for far in session.far:
            far.handler.far_sessions.discard(session)
            far.handler.connection.registered -= 1
            far.handler.release_if_unused()

    def count_of(self, user: str) -> int:
        """Say how many live sessions a user has."""
        return self._of_user.get(user, 0)

    def find(self, uri: MsrpUri, now: float) -> Session | None:
        """Find the live session of an equal URI (RFC 4975 §6.1); expiry counts from the clock, not from the sweep."""
        session = self._by_session_id.get(uri.session_id)
        if session is None or session.uri.key != uri.key or now >= session.expires_at:
            return None
        return session

    def find_raw(self, raw: bytes, now: float) -> Session | None:
        """Find the live session of a URI given as octets; None for octets that are no URI at all."""
        session = self._by_raw.get(raw)
        return session if session is not None and now < session.expires_at else None

    def by_name(self, name: str) -> Session | None:
        """Find a session by the short hash operators see."""
        return next((session for session in self if session.name == name), None)
