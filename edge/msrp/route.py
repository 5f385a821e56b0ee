"""Where a frame goes, and whether it may: the rules of RFC 4976 §6.2 to §6.4, decided once for each pair of paths.

    first To-Path URI     ours and alive ─ no ─► 481, or close when it names somebody else's relay
    from its owner        outbound: any next hop, over the connection bound to the far side, or a new one
    from anybody else     inbound: only to the owner's own URI, over the owner's connection; the first far one is bound
    next URI ours, too    two relays in a row: outbound for the first, inbound for the second

A `Route` keeps the result for the paths of one incoming frame; `valid` is withdrawn when a session or connection it was
decided by changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import RemoteError
from edge.msrp.identifier import ID_LENGTH
from edge.msrp.uri import MsrpUri, is_same_uri, parse_uri

if TYPE_CHECKING:
    from edge.msrp.chunker import Outbox
    from edge.msrp.frame import Head
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.relay import Relay
    from edge.msrp.session import Far, Session

ROUTES_LIMIT = 2048  # of one connection


class Route:
    """The decision for one pair of paths that came over one connection.

    `paths` are the path lines as received, `out_paths` those of the frame that goes on, `report_paths` those of a
    REPORT of ours back to the sender, `answered` what follows the transaction id in a 200, `expected` the To-Path line
    of the next hop's answers. Bodies of up to `whole_limit` octets may go on as one frame, those whose range ends in
    `*` up to `star_limit`. `own_uris` are the URIs taken off To-Path, the first one first.
    """

    __slots__ = (
        "_sessions",
        "answer_size", "answered", "expected", "expires_at", "out_paths", "out_size", "outbound", "outbox", "own_uris",
        "paths", "refused", "report_paths", "session", "source", "star_limit", "valid", "whole_limit",
    )  # fmt: skip

    def __init__(
        self, source: MsrpHandler, outbox: Outbox, sessions: list[Session], outbound: bool, head: Head
    ) -> None:
        taken, to_path, from_path = len(sessions), head.to_path, head.from_path
        self.source = source
        self.outbox = outbox
        self.session = sessions[0]
        self.outbound = outbound
        self.refused = sessions[0].refused
        self.own_uris = to_path[:taken]
        back = [*reversed(self.own_uris), *from_path]
        self.paths = head.paths
        self.out_paths = b"To-Path: %b\r\nFrom-Path: %b\r\n" % (b" ".join(to_path[taken:]), b" ".join(back))
        self.report_paths = b"To-Path: %b\r\nFrom-Path: %b\r\n" % (b" ".join(from_path), b" ".join(self.own_uris))
        self.answered = b" 200 OK\r\nTo-Path: %b\r\nFrom-Path: %b\r\n-------" % (from_path[0], to_path[0])
        # Octets of a whole SEND besides headers and body, and of a 200 besides the transaction id, for `Outbox.gather`.
        self.out_size = len(b"MSRP  SEND\r\n\r\n\r\n-------$\r\n") + 2 * ID_LENGTH + len(self.out_paths)
        self.answer_size = len(b"MSRP $\r\n") + len(self.answered)
        self.expected = b"To-Path: %b\r\n" % back[0]
        self.expires_at = min(session.expires_at for session in sessions)
        self.whole_limit = outbox.limit
        self.star_limit = -1 if outbox.websocket else outbox.limit
        settings = source.relay.settings
        if settings.max_message_size or settings.content_types or source.relay.octets.limit:
            self.whole_limit = self.star_limit = -1
        self.valid = True
        self._sessions = sessions
        for session in sessions:
            session.routes.add(self)
        outbox.routes.add(self)

    def withdraw(self) -> None:
        """Do not use this route any more; its source, which may stay for long, keeps nothing of who has gone."""
        self.valid = False
        if self.source.routes.get(self.paths) is self:
            del self.source.routes[self.paths]
        self.outbox.routes.discard(self)
        for session in self._sessions:
            session.routes.discard(self)


def remember_route(routes: dict[bytes, Route], route: Route) -> None:
    """Keep a route of one connection by its paths; of more than `ROUTES_LIMIT` the first goes, and is found anew."""
    former = routes.pop(route.paths, None)
    if former is None and len(routes) >= ROUTES_LIMIT:
        former = routes.pop(next(iter(routes)))
    if former is not None:
        former.withdraw()
    routes[route.paths] = route


class Router:
    """Make routes for one relay."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def find_session(self, source: MsrpHandler, head: Head, now: float) -> Session:
        """Find the session of the first To-Path URI.

        Raises:
            RemoteError: 400 it is no URI; 481 it is not alive; status 0: it is somebody else's (label "foreign").
        """
        session = self._relay.table.find_raw(head.to_path[0], now)
        if session is not None:
            return session
        uri = parse_uri(head.to_path[0])
        session = self._relay.table.find(uri, now)
        if session is not None:
            return session
        if not self._relay.is_ours(uri, source.connection):
            raise RemoteError(0, "foreign")
        raise RemoteError(481, "session")

    def resolve(self, source: MsrpHandler, head: Head, now: float) -> Route:
        """Decide where a request with at least one To-Path URI of ours goes.

        Raises:
            RemoteError: what to answer; status 0 means to close the connection.
        """
        session = self.find_session(source, head, now)
        if self._loops(head, now):
            raise RemoteError(403, "loop")
        if not source.owns(session):
            outbox = self._inbound(session, source, head.to_path, head.from_path, now)
            return Route(source, outbox, [session], False, head)
        return self._outbound(session, source, head, now)

    def resolve_over(
        self, source: MsrpHandler, head: Head, now: float, *, via: MsrpUri | None, existing_only: bool
    ) -> Route:
        """Decide as `resolve` does, but reach the next hop as an operator says.

        `via` is connected to in place of the next hop, for a session's owner, and paths stay as they are; with
        `existing_only` nothing is dialled.

        Raises:
            RemoteError: as `resolve`; also 481 (label "no_connection"), and 403 when the sender is not the owner.
        """
        session = self.find_session(source, head, now)
        if via is None and self._stays_here(session, source, head, now):
            return self.resolve(source, head, now)
        if not source.owns(session) or not _same_path(head.from_path, session.owner_path):
            raise RemoteError(403, "not_owner")
        if len(head.to_path) < 2:
            raise RemoteError(481, "ends_here")
        uri = parse_uri(head.to_path[1])
        target = via or uri
        if self._relay.is_ours(target, source.connection):
            raise RemoteError(481, "session")
        for far in session.far:
            if far.hop == target.hop and not far.handler.outbox.closed:
                return Route(source, far.handler.outbox, [session], True, head)
        if existing_only:
            raise RemoteError(481, "no_connection")
        handler = self._relay.dial_next_hop(target, source, now)
        self._bind(session, handler, uri, target).dialled_at = now
        return Route(source, handler.outbox, [session], True, head)

    def _stays_here(self, session: Session, source: MsrpHandler, head: Head, now: float) -> bool:
        """Whether a request is for a user of this relay, to whom nobody dials."""
        if not source.owns(session):
            return True
        return len(head.to_path) > 1 and self._relay.table.find(parse_uri(head.to_path[1]), now) is not None

    def _loops(self, head: Head, now: float) -> bool:
        own = [uri for uri in head.to_path if self._relay.table.find_raw(uri, now)]
        return len(set(own)) < len(own) or len(own) > 2

    def _outbound(self, session: Session, source: MsrpHandler, head: Head, now: float) -> Route:
        if not _same_path(head.from_path, session.owner_path):
            raise RemoteError(403, "from_path")
        if len(head.to_path) < 2:
            raise RemoteError(481, "ends_here")
        next_uri = parse_uri(head.to_path[1])
        if not next_uri.port and head.start.method != b"AUTH":  # RFC 4976 §8 lets AUTH leave it out
            raise RemoteError(400, "uri", "Next hop without port")
        second = self._relay.table.find(next_uri, now)
        if second is None:
            return Route(source, self._far_outbox(session, next_uri, source, head, now), [session], True, head)
        outbox = self._inbound(second, source, head.to_path[1:], head.to_path[:1], now)
        if session.find_far(second.owner) is None and not session.far:
            session.bind_far(second.owner, next_uri)
        return Route(source, outbox, [session, second], True, head)

    def _inbound(
        self, session: Session, source: MsrpHandler, to_path: list[bytes], from_path: list[bytes], now: float
    ) -> Outbox:
        """Check a frame of the far side; bind its connection when it is the first (RFC 4975 §5.4)."""
        if len(to_path) < 2:
            raise RemoteError(481, "ends_here")
        if not is_same_uri(to_path[1], session.owner_path[0]):
            raise RemoteError(403, "target")
        if not source.may_send:
            raise RemoteError(403, "unauthenticated")
        owner = self._relay.reachable(session.owner)
        if owner is None:
            raise RemoteError(481, "owner_gone")
        uri = parse_uri(from_path[0])
        far = session.find_far(source)
        if far is None and session.far and not session.is_crossed_by(uri, now):
            raise RemoteError(506, "bound")
        if far is not None and not far.speaks_as(uri):
            raise RemoteError(481, "far_path")
        if far is None or far.handler is not source:
            self._bind(session, source, uri, uri)
        return owner.outbox

    def _far_outbox(self, session: Session, uri: MsrpUri, source: MsrpHandler, head: Head, now: float) -> Outbox:
        """Find the connection to the far side, or open one (RFC 4976 §6.4.2)."""
        if self._relay.is_ours(uri, source.connection):  # no way leads past the checks of a session, alive or not
            raise RemoteError(481, "session")
        for far in session.far:
            if not far.handler.outbox.closed and far.leads_to(uri):
                return far.handler.outbox
        if head.start.method == b"REPORT":  # it has to wait for nobody, so it opens nothing (decision D9)
            raise RemoteError(481, "report_without_connection")
        if session.far:  # one URI serves one session (RFC 4976 §5.1)
            if self._relay.settings.one_far_path:
                raise RemoteError(403, "second_far_path")
            self._relay.stats.second_far_paths += 1
        handler = self._relay.dial_next_hop(uri, source, now)
        self._bind(session, handler, uri, uri).dialled_at = now
        return handler.outbox

    def _bind(self, session: Session, handler: MsrpHandler, uri: MsrpUri, hop: MsrpUri) -> Far:
        """Bind a far connection; the chunk size set for its hop holds whoever opened the connection."""
        far = session.bind_far(handler, uri, hop)
        self._relay.limit_chunks(handler, hop)
        return far


def _same_path(path: list[bytes], enrolled: list[bytes]) -> bool:
    return len(path) == len(enrolled) and all(map(is_same_uri, path, enrolled))
