"""What an operator's policy can do with one request, besides reading its attributes (`edge.msrp.attributes`).

reply               answer it, with headers of one's own
relay               pass it on; over connections that exist, by way of another next hop, closing after it
challenge           ask for credentials, and check those it has
enrol               let an AUTH have its URI without credentials
save_session        issue a URI to its sender without AUTH; look_up finds any session again
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import RemoteError
from edge.msrp.attributes import FrameAttributes
from edge.msrp.route import remember_route
from edge.msrp.uri import parse_uri

if TYPE_CHECKING:
    from edge.msrp.framing import Frame
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.session import Session


class Operations:
    """One whole request that came over `source`; each method is for use at once, while the request is being handled."""

    __slots__ = ("_frame", "_source", "attributes")

    def __init__(self, source: MsrpHandler, frame: Frame) -> None:
        self._source = source
        self._frame = frame
        self.attributes = FrameAttributes(source.connection, frame.head, frame.stop - frame.body_at)

    def reply(self, code: int, comment: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Answer with a status, an own comment and own headers; nothing is sent where the RFC wants no answer.

        Raises:
            ValueError: a header, or the comment, with a line end in it, or a code without three digits.
        """
        lines = tuple(b"%b: %b" % header for header in headers)
        if not 100 <= code <= 999 or any(b"\r" in text or b"\n" in text for text in (comment, *lines)):
            raise ValueError("a response has three digits and no line ends inside")
        head = self._frame.head
        if head.start.method and head.start.method != b"REPORT" and head.failure_report != b"no":
            self._source.respond(head, code, comment, lines)

    def relay(
        self, now: float, *, next_hop: bytes | None = None, existing_only: bool = False, close_after: bool = False
    ) -> None:
        """Pass the request on, and what follows with the same paths in the same way.

        `next_hop` is a URI to connect to in place of the next one of To-Path; `existing_only` opens no connection;
        `close_after` ends the connection it leaves on when it has left.

        Raises:
            RemoteError: it may not go on, or there is no way; what to answer.
        """
        source, head = self._source, self._frame.head
        if next_hop is not None or existing_only:
            via = parse_uri(next_hop) if next_hop is not None else None
            over = source.relay.router.resolve_over(source, head, now, via=via, existing_only=existing_only)
            remember_route(source.routes, over)
            source.succeed()
        route = source.relay.forwarder.find_route(source, head, now) if close_after else None
        source.relay.forwarder.handle_frame(source, self._frame, now)
        if route is not None:
            route.outbox.close_when_sent()

    def challenge(self, now: float) -> None:
        """Let an AUTH be asked for credentials, and those it carries be checked (RFC 4976 §5.1).

        Raises:
            RemoteError: 403 for any other request.
        """
        if self._frame.head.start.method != b"AUTH":
            raise RemoteError(403, "policy")
        self._source.relay.forwarder.handle_frame(self._source, self._frame, now)

    def enrol(self, user: str, lifetime_s: int, now: float) -> Session:
        """Answer an AUTH with a URI although nobody has proved anything; `lifetime_s` 0 stands for the usual one.

        Raises:
            RemoteError: it is no AUTH, has paths of strangers, or the relay is going down.
        """
        source, head = self._source, self._frame.head
        if head.start.method != b"AUTH":
            raise RemoteError(403, "policy")
        lifetime = lifetime_s or source.relay.settings.default_expires
        session = self.save_session(user, lifetime, now)
        source.authenticated = True
        source.succeed()
        use_path = b" ".join((*reversed(head.from_path[:-1]), session.uri.raw))
        source.respond(head, 200, extra=(b"Use-Path: " + use_path, b"Expires: %d" % lifetime))
        return session

    def save_session(self, user: str, lifetime_s: float, now: float) -> Session:
        """Issue a URI of this relay to the sender, as AUTH does; `reply` tells it (`Use-Path`, `Expires`).

        Raises:
            RemoteError: the request has paths of strangers, or the relay is going down.
        """
        relay, head = self._source.relay, self._frame.head
        if len(head.to_path) != 1 or not relay.is_ours(parse_uri(head.to_path[0]), self._source.connection):
            raise RemoteError(403, "foreign")
        return relay.enrolment.enrol(self._source, head, user, lifetime_s, now)

    def look_up(self, uri: bytes, now: float) -> Session | None:
        """Find the live session of a URI of ours, whoever owns it."""
        relay = self._source.relay
        return relay.table.find_raw(uri, now) or relay.table.find(parse_uri(uri), now)
