"""Requests and responses on their long way through the relay (RFC 4976 §6.4).

What is wrong is answered in this order: headers, first To-Path URI, expiry, who may use it, header rules (RFC 4976
§6.2, §6.4).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from edge.errors import RemoteError
from edge.msrp.frame import OTHER_BODY_LIMIT, UNREADABLE, Head, clean_comment
from edge.msrp.framing import Frame
from edge.msrp.outstream import OutStream
from edge.msrp.report import Forwarded
from edge.msrp.route import remember_route
from edge.msrp.uri import is_same_uri

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler
    from edge.msrp.relay import Relay
    from edge.msrp.route import Route


class Forwarder:
    """Handle the frames of one relay that are not of every day."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def handle_frame(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """Handle a whole frame: response, SEND, AUTH, or any other request."""
        head = frame.head
        if not head.start.method:
            self._handle_response(source, frame, now)
            return
        self._relay.stats.count_method(head.start.method)
        if not self._is_sound(source, head, now):
            return
        try:
            if head.start.method == b"SEND":
                self._relay_send(source, frame, now)
            elif head.start.method == b"AUTH":
                self._relay.enrolment.handle(source, frame, now)
            else:
                self._relay_other(source, frame, now)
        except RemoteError as error:
            self.refuse(source, head, error, now)

    def _is_sound(self, source: MsrpHandler, head: Head, now: float) -> bool:
        """Refuse a head that breaks the syntax."""
        if head.error is None and head.to_path and head.from_path:
            return True
        if not head.to_path or not head.from_path:
            source.handle_broken("paths", None, now)
            source.reader.stop()
        elif head.error is not None:
            self.refuse(source, head, head.error, now)
            if head.fatal:
                source.reader.stop()
                source.close("protocol_error")
        return False

    def refuse(self, source: MsrpHandler, head: Head, error: RemoteError, now: float) -> None:
        """Answer a request with an error, where one may be answered (RFC 4975 §7.1.2, §7.1.4); status 0 closes."""
        self._relay.stats.refuse(error.label)
        method = head.start.method
        if not error.status:
            source.reader.stop()
            source.close(error.label)
            return
        if method and method != b"REPORT" and not (method == b"SEND" and head.failure_report == b"no"):
            source.respond(head, error.status, error.detail.encode())
        source.count_failure()

    # -- SEND

    def _relay_send(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        head = frame.head
        if self._is_keepalive(source, head, now):
            source.succeed()
            if head.failure_report == b"yes":
                source.respond(head, 200)
            return
        stream = self._admit(source, head, now, frame.flag)
        if stream is None:
            return
        if source.is_too_large(stream, frame.stop - frame.body_at):
            stream.route.outbox.abort(stream)
            raise RemoteError(413, "message_size")
        if frame.stop > frame.body_at:
            self._relay.stats.octets += frame.stop - frame.body_at
            stream.add(memoryview(frame.data)[frame.body_at : frame.stop], frame.plain)
        self.end_send(source, stream, frame.flag, now)

    def begin_send(self, source: MsrpHandler, head: Head, now: float) -> OutStream | None:
        """Decide on a SEND by its head; None: it was answered, and its body is to be thrown away."""
        self._relay.stats.count_method(head.start.method)
        if not self._is_sound(source, head, now):
            return None
        try:
            return self._admit(source, head, now, b"")
        except RemoteError as error:
            self.refuse(source, head, error, now)
            return None

    def end_send(self, source: MsrpHandler, stream: OutStream, flag: bytes, now: float) -> None:
        """The chunk is here completely: send its end on, and answer for it at once (RFC 4976 §6.4.1)."""
        stream.route.outbox.finish(stream, flag, now)
        if stream.head.failure_report == b"yes" and not stream.failed:
            source.respond(stream.head, 200)

    def _admit(self, source: MsrpHandler, head: Head, now: float, flag: bytes) -> OutStream | None:
        """Find the way of a SEND and begin its stream.

        Raises:
            RemoteError: it must not go on.
        """
        route = self.find_route(source, head, now)
        _check_send(head)
        if head.has_body and self._relay.settings.content_types:
            _check_type(head, self._relay.settings.content_types)
        self._check_refused(route, head, flag)
        if source in route.outbox.stuck:
            raise RemoteError(413, "link_full")
        stream = OutStream(route, head)
        route.outbox.start(stream)
        return stream

    def _check_refused(self, route: Route, head: Head, flag: bytes) -> None:
        """Nothing goes on of a message that the next hop refused (RFC 4975 §10.5)."""
        key = route.outbound, head.message_id
        if key in route.refused:
            if flag in (b"$", b"#"):
                del route.refused[key]
            raise RemoteError(413, "refused_message")

    def _is_keepalive(self, source: MsrpHandler, head: Head, now: float) -> bool:
        """A bodiless SEND to nobody but us, from the owner of a live URI (RFC 7977 §6)."""
        if len(head.to_path) != 1 or head.has_body:
            return False
        session = self._relay.router.find_session(source, head, now)
        return source.owns(session)

    def find_route(self, source: MsrpHandler, head: Head, now: float) -> Route:
        """Find the route of a request, remembered or new.

        Raises:
            RemoteError: it may not go on.
        """
        route = source.routes.get(head.paths)
        if route is None or not route.valid or now >= route.expires_at:
            route = self._relay.router.resolve(source, head, now)
            remember_route(source.routes, route)
            source.succeed()
        return route

    # -- other requests

    def _relay_other(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """REPORT, NICKNAME and methods nobody knows yet go on as they are (RFC 4976 §6.4.2)."""
        head = frame.head
        method = head.start.method
        if frame.flag != b"$" or method == UNREADABLE or frame.stop - frame.body_at > OTHER_BODY_LIMIT:
            raise RemoteError(400, "interrupted")
        if len(head.to_path) == 1:
            self._relay.router.find_session(source, head, now)
            raise RemoteError(501, "method")
        if method in self._relay.settings.blocked_methods:
            raise RemoteError(403, "blocked_method")
        self.pass_on(source, frame, now)

    def pass_on(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """Pop, push, new transaction id; for all but REPORT remember who wants the answer."""
        head = frame.head
        route = self.find_route(source, head, now)
        _check_body(head)
        outbox = route.outbox
        if source in outbox.stuck:
            raise RemoteError(413, "link_full")
        identifier = self._relay.identifiers.draw(outbox.pending)
        body = frame.data[frame.body_at - 2 : frame.stop] + b"\r\n" if head.has_body else b""
        line = b"MSRP %b %b\r\n" % (identifier, head.start.method)
        outbox.send_frame(b"%b%b%b%b-------%b$\r\n" % (line, route.out_paths, head.rest, body, identifier))
        if head.start.method == b"REPORT":
            self._relay.stats.reports_relayed += 1
        else:
            entry = Forwarded(source, head, route.own_uris)
            entry.position = outbox.queued
            outbox.outstanding.add(identifier, entry, now)
            source.connection.uses += 1
        if outbox.blocked:
            outbox.hold(source, now)

    # -- responses

    def _handle_response(self, source: MsrpHandler, frame: Frame, now: float) -> None:
        """Match an answer with the transaction of this connection it belongs to; anything else is dropped."""
        head = frame.head
        pending = source.outbox.pending
        entry = pending.get(head.start.transaction_id)
        if entry is None or not head.start.code or frame.flag != b"$" or head.has_body or head.error is not None:
            self._relay.stats.refuse("stray_response")
            return
        own = entry.own_uris[-1] if isinstance(entry, Forwarded) else entry[1].own_uris[-1]
        if not head.to_path or not is_same_uri(head.to_path[0], own):
            self._relay.stats.refuse("stray_response")
            return
        del pending[head.start.transaction_id]
        if isinstance(entry, Forwarded):
            self._return_response(entry, head, now)
        elif self._relay.account is not None:
            self._relay.account.settle(entry, head.start.code, now)
        if not isinstance(entry, Forwarded) and head.start.code != 200:
            self._relay.reporter.handle_refusal(entry, head.start.code, clean_comment(head.start.comment), now)
        if source.outbox.feeders:
            source.outbox.pump(now)

    def _return_response(self, entry: Forwarded, head: Head, now: float) -> None:
        """Send an answer back the way its request came (RFC 4976 §6.4.3)."""
        requester = entry.requester
        if requester.lost:
            return
        start = b"MSRP %b %03d%b" % (
            entry.transaction_id, head.start.code, b" " + head.start.comment if head.start.comment else b"",
        )  # fmt: skip
        to_path = b" ".join(head.to_path[len(entry.own_uris) :]) or entry.answer_to
        from_path = b" ".join((*entry.own_uris, *head.from_path))
        requester.outbox.send_frame(
            b"%b\r\nTo-Path: %b\r\nFrom-Path: %b\r\n%b-------%b$\r\n"
            % (start, to_path, from_path, head.rest, entry.transaction_id)
        )
        requester.connection.release_use()
        if entry.method == b"AUTH":
            self._relay.enrolment.handle_forwarded_answer(requester, entry, head)


def _check_type(head: Head, allowed: Collection[bytes]) -> None:
    """Refuse what an operator does not want passed on (RFC 4975 §10.6)."""
    value = (head.first(b"content-type") or b"").partition(b";")[0].strip().lower()
    if value not in allowed and value[: value.find(b"/") + 1] + b"*" not in allowed:
        raise RemoteError(415, "content_type_refused")


def _check_body(head: Head) -> None:
    """A body has a type, whatever the method (RFC 4975 §7.1)."""
    typed = head.first(b"content-type") is not None
    if typed != head.has_body:
        raise RemoteError(400, "content_type", "Content-Type and body must come together")


def _check_send(head: Head) -> None:
    """Check what a SEND needs besides its paths (RFC 4975 §7.1)."""
    _check_body(head)
    if head.has_body and not head.message_id:
        raise RemoteError(400, "message_id", "Message-ID missing")
