"""What an operator's policy can ask about a frame (RFC 4975 §7, RFC 4976 §6)."""

from __future__ import annotations

from edge.connections import Address, Connection
from edge.msrp.frame import Head
from edge.msrp.uri import MsrpUri, parse_uri


class FrameAttributes:
    """One request or response as it was received, with the connection it came on.

    Hops are URIs as octets; `None` where the path is too short. The previous hop is who sent it to us, the current one
    is the URI that names us, the next one follows it; first and last hop are the two ends of the way.
    """

    __slots__ = ("body_size", "connection", "head")

    def __init__(self, connection: Connection, head: Head, body_size: int) -> None:
        self.connection = connection
        self.head = head
        self.body_size = body_size

    @property
    def method(self) -> bytes:
        """The method, empty for a response."""
        return self.head.start.method

    @property
    def code(self) -> int:
        """The status code, 0 for a request."""
        return self.head.start.code

    @property
    def transaction_id(self) -> bytes:
        """The transaction id of this hop."""
        return self.head.start.transaction_id

    @property
    def previous_hop(self) -> bytes | None:
        """The URI of whoever sent this to us."""
        return _at(self.head.from_path, 0)

    @property
    def current_hop(self) -> bytes | None:
        """The URI that names us."""
        return _at(self.head.to_path, 0)

    @property
    def next_hop(self) -> bytes | None:
        """The URI it goes to from here."""
        return _at(self.head.to_path, 1)

    @property
    def first_hop(self) -> bytes | None:
        """The URI of whoever wrote it."""
        return _at(self.head.from_path, -1)

    @property
    def last_hop(self) -> bytes | None:
        """The URI of whoever it is for."""
        return _at(self.head.to_path, -1)

    @property
    def hops_done(self) -> int:
        """How many URIs From-Path has."""
        return len(self.head.from_path)

    @property
    def hops_left(self) -> int:
        """How many URIs To-Path has, ours among them."""
        return len(self.head.to_path)

    @property
    def session_id(self) -> bytes:
        """The session-id of the URI that names us; empty without one. A secret: never log it (RFC 4975 §14.1)."""
        return self.uri.session_id

    @property
    def uri(self) -> MsrpUri:
        """The URI that names us, in its parts.

        Raises:
            RemoteError: it cannot be read.
        """
        return parse_uri(self.current_hop or b"")

    @property
    def source(self) -> Address:
        """Address and port it came from."""
        return self.connection.remote

    @property
    def socket(self) -> Address:
        """Address and port it came to."""
        return self.connection.local

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of this name, in any case; None without one."""
        return self.head.first(name.lower())


def _at(path: list[bytes], index: int) -> bytes | None:
    return path[index] if -len(path) <= index < len(path) else None
