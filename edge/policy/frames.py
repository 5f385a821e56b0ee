"""MSRP frames as hooks see them (RFC 4975 §7, RFC 4976 §6): everything `edge.msrp.attributes` says, and operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipmessage import URI, Request

from edge.msrp.attributes import FrameAttributes
from edge.msrp.frame import ByteRange, Head, encode_byte_range, parse_start_line
from edge.msrp.framing import Frame
from edge.msrp.operations import Operations
from edge.msrp.session import Session
from edge.msrp.uri import MsrpUri, parse_uri
from edge.policy.text import decode, encode, header_line
from edge.policy.views import Headers, Peer

if TYPE_CHECKING:
    from edge.msrp.handler import MsrpHandler
    from edge.policy.tools import Tools

_FIXED = frozenset((b"to-path", b"from-path", b"message-id", b"byte-range", b"content-type"))


class MsrpFrame(Peer):
    """A request or response as it was received. Without a decision it goes its usual way.

    It is read when first asked about. Hops are URIs as text, None where a path is too short; `streamed` says that the
    body is still coming.
    """

    __slots__ = (
        "_at", "_attributes", "_body_at", "_data", "_frame", "_stop", "changed", "handler", "streamed", "taken",
    )  # fmt: skip

    def __init__(
        self,
        tools: Tools,
        handler: MsrpHandler,
        frame: Frame | None,
        data: bytes,
        at: int,
        body_at: int,
        stop: int,
    ) -> None:
        self.tools = tools
        self.connection = handler.connection
        self.handler = handler
        self.taken = False
        self.changed = False
        self.streamed = at < 0
        self._attributes: FrameAttributes | None = None
        self._frame = frame
        self._data = data
        self._at = at
        self._body_at = body_at
        self._stop = stop

    @property
    def frame(self) -> Frame:
        """The frame with its head read."""
        frame = self._frame
        if frame is None:
            data = self._data
            end = data.index(b"\r\n", self._at)
            start = parse_start_line(data[self._at : end])
            frame = Frame(Head(start, data[end + 2 : self._body_at - 2], True), data, self._body_at, self._stop)
            after = self._stop + len(b"\r\n-------") + len(start.transaction_id)
            frame.flag = data[after : after + 1]
            self._frame = frame
        return frame

    @property
    def attributes(self) -> FrameAttributes:
        """The same in octets: paths, counts, URI."""
        if self._attributes is None:
            frame = self.frame
            self._attributes = FrameAttributes(self.connection, frame.head, frame.stop - frame.body_at)
        return self._attributes

    @property
    def method(self) -> str:
        """The method, empty for a response."""
        return decode(self.attributes.method)

    @property
    def code(self) -> int:
        """The status code, 0 for a request."""
        return self.attributes.code

    @property
    def transaction_id(self) -> str:
        """The transaction id of this hop."""
        return decode(self.attributes.transaction_id)

    @property
    def previous_hop(self) -> str | None:
        """The URI of whoever sent this to us."""
        return _text(self.attributes.previous_hop)

    @property
    def current_hop(self) -> str | None:
        """The URI that names us."""
        return _text(self.attributes.current_hop)

    @property
    def next_hop(self) -> str | None:
        """The URI it goes to from here."""
        return _text(self.attributes.next_hop)

    @property
    def first_hop(self) -> str | None:
        """The URI of whoever wrote it."""
        return _text(self.attributes.first_hop)

    @property
    def last_hop(self) -> str | None:
        """The URI of whoever it is for."""
        return _text(self.attributes.last_hop)

    @property
    def hops_done(self) -> int:
        """How many URIs From-Path has."""
        return self.attributes.hops_done

    @property
    def hops_left(self) -> int:
        """How many URIs To-Path has, ours among them."""
        return self.attributes.hops_left

    @property
    def session_id(self) -> str:
        """The session-id of the URI that names us. A secret: never log it (RFC 4975 §14.1)."""
        return decode(self.attributes.session_id)

    @property
    def uri(self) -> MsrpUri:
        """The URI that names us, in its parts."""
        return self.attributes.uri

    def header(self, name: str) -> str | None:
        """Return the value of the first header of a name, in any case."""
        return _text(self.attributes.header(encode(name)))

    def headers(self, name: str) -> list[str]:
        """Return the values of all headers of a name."""
        return [decode(value) for value in self.frame.head.all(encode(name).lower())]

    @property
    def body(self) -> bytes:
        """The body, as far as it is here (`streamed`)."""
        return self.frame.data[self.frame.body_at : self.frame.stop]

    @property
    def size(self) -> int:
        """Octets of body; those of the whole message where Byte-Range says so."""
        byte_range = self.frame.head.range
        total = byte_range.total if byte_range is not None else None
        return max(self.attributes.body_size, total or 0)

    def as_request(self) -> Request:
        """Return the head as a SIP request, so that one function can look at both protocols.

        Its Request-URI is the last hop as a sip URI, From and To are the first and last hop; all headers follow.
        """
        attributes = self.attributes
        first, last = _sip_uri(attributes.first_hop), _sip_uri(attributes.last_hop)
        request = Request(self.method or "RESPONSE", last)
        request.headers.set("From", f"<{first}>")
        request.headers.set("To", f"<{last}>")
        for name, value in self.frame.head.headers:
            request.headers.add(decode(name).title(), decode(value))
        return request

    def add_header(self, name: str, value: str) -> None:
        """Add a header to what goes on; ValueError for one that cannot be changed."""
        key = _free_key(name)
        self._write_header(header_line(name, value))
        self.frame.head.headers.append((key, encode(value)))

    def _write_header(self, line: bytes) -> None:
        head = self.frame.head
        head.rest = line + b"\r\n" + head.rest
        self.changed = True

    def set_header(self, name: str, value: str) -> None:
        """Put one header in place of all of its name."""
        encode(value)
        self.remove_header(name)
        self.add_header(name, value)

    def set_body(self, body: bytes) -> None:
        """Put another body into a message that is here as a whole; Byte-Range follows.

        Raises:
            ValueError: it is a part of a message, has no body, or the body is still coming.
        """
        frame = self.frame
        span = frame.head.range
        whole = frame.flag == b"$" and (span is None or (span.start == 1 and span.end in (None, span.total)))
        if self.streamed or not whole or not frame.head.has_body:
            raise ValueError("only the body of a whole message can be changed")
        frame.data, frame.body_at, frame.stop = b"\r\n" + body, 2, 2 + len(body)
        frame.plain = b"\r\n-------" not in body
        if span is not None:
            self._drop_lines(b"byte-range")
            self._write_header(b"Byte-Range: " + encode_byte_range(1, len(body), len(body)))
            frame.head.range = ByteRange(1, len(body), len(body))
        self._attributes = None
        self.changed = True

    def _drop_lines(self, key: bytes) -> int:
        head = self.frame.head
        lines = head.rest.split(b"\r\n")
        kept = [line for line in lines if line.partition(b":")[0].lower() != key]
        head.rest = b"\r\n".join(kept)
        return len(lines) - len(kept)

    def remove_header(self, name: str) -> int:
        """Take all headers of a name out of what goes on; returns how many there were."""
        key = _free_key(name)
        found = self._drop_lines(key)
        head = self.frame.head
        head.headers = [(known, value) for known, value in head.headers if known != key]
        self.changed = self.changed or found > 0
        return found

    # -- decisions

    @property
    def operations(self) -> Operations:
        """The operations on octets, for those that are not here."""
        return Operations(self.handler, self.frame)

    def reject(self, code: int, reason: str = "", headers: Headers = (), *, close_after: bool = False) -> None:
        """Answer with a status, and headers of your own; with `close_after` its connection ends then."""
        lines = tuple((encode(name), encode(value)) for name, value in headers)
        self.operations.reply(code, encode(reason), lines)
        self.taken = True
        if close_after:
            self.handler.close("policy")

    reply = reject

    def accept(self, user: str = "", expires: int = 0) -> Session | None:
        """Ask for no credentials: an AUTH gets its URI, for `user`; everything else goes its usual way."""
        if self.method != "AUTH":
            return None
        self.taken = True
        return self.operations.enrol(user or self.source, expires, self.tools.relay.clock())

    def challenge(self) -> None:
        """Ask for credentials, and check those it has; nobody but AUTH can be asked, others get 403."""
        self.taken = True
        self.operations.challenge(self.tools.relay.clock())

    def drop(self) -> None:
        """Neither answer it nor pass it on."""
        self.taken = True

    def relay(self, *, next_hop: str = "", existing_only: bool = False, close_after: bool = False) -> None:
        """Pass it on, where it usually goes: to another next hop, only over a connection there is, as the last there.

        Raises:
            ValueError: its body is still coming; such a frame can only go its usual way.
            RemoteError: it may not go on; nothing to catch, that is answered.
        """
        if self.streamed and not (next_hop or existing_only or close_after):
            return
        if self.streamed:
            raise ValueError("a frame whose body is still coming goes its usual way")
        self.taken = True
        via = encode(next_hop) if next_hop else None
        self.operations.relay(
            self.tools.relay.clock(), next_hop=via, existing_only=existing_only, close_after=close_after
        )

    def save_session(self, user: str, lifetime_s: float) -> Session:
        """Issue a URI of this relay to the sender, as AUTH does."""
        return self.operations.save_session(user, lifetime_s, self.tools.relay.clock())

    def look_up(self, uri: str) -> Session | None:
        """Find the session of a URI of ours."""
        parse_uri(encode(uri))
        return self.operations.look_up(encode(uri), self.tools.relay.clock())


def _free_key(name: str) -> bytes:
    """Return a header name as the head keeps it; ValueError for one that cannot be changed."""
    key = encode(name).lower()
    if key in _FIXED:
        raise ValueError(f"{name} cannot be changed")
    return key


def _text(value: bytes | None) -> str | None:
    return None if value is None else decode(value)


def _sip_uri(hop: bytes | None) -> URI:
    """Write a hop as a sip URI without its session-id."""
    if hop is None:
        return URI(scheme="sip", host="anonymous.invalid")
    uri = parse_uri(hop)
    user = decode(hop).partition("://")[2].partition("/")[0].rpartition("@")[0]
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    return URI(scheme="sip", host=host, user=user or None, port=uri.port or None)
