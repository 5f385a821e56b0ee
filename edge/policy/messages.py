"""SIP messages as hooks see them: what requests and responses have in common.

Headers that identify a message, or say where it ends, cannot be changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.connections import Connection
from edge.policy.text import decode, encode, header_line
from edge.policy.views import Peer
from edge.sip import headers as h
from edge.sip.message import Message, split_head

if TYPE_CHECKING:
    from edge.policy.tools import Tools

_FIXED = frozenset(
    ("via", "v", "from", "f", "to", "t", "call-id", "i", "cseq", "content-length", "l", "max-forwards")
)  # fmt: skip


class SipMessage(Peer):
    """What requests and responses have in common."""

    __slots__ = ("changed", "message")

    def __init__(self, tools: Tools, connection: Connection, message: Message) -> None:
        self.tools = tools
        self.connection = connection
        self.message = message
        self.changed = False

    @property
    def method(self) -> str:
        """The method; that of its request for a response."""
        return decode(self.message.method)

    @property
    def body(self) -> bytes:
        """The body."""
        return self.message.body

    @property
    def size(self) -> int:
        """Octets of the whole message."""
        message = self.message
        return sum(map(len, message.lines)) + 2 * len(message.lines) + 2 + len(message.body)

    @property
    def call_id(self) -> str:
        """Call-ID."""
        return decode(self.message.value(h.CALL_ID) or b"")

    @property
    def from_uri(self) -> str:
        """The URI of From."""
        return decode(self.message.address(h.FROM).uri)

    @property
    def to_uri(self) -> str:
        """The URI of To."""
        return decode(self.message.address(h.TO).uri)

    def headers(self, name: str) -> list[str]:
        """Return the values of all headers of a name, compact forms included, in their order."""
        kind = h.BY_LOWER_NAME.get(name.lower().encode())
        return [decode(value) for value in (self.message.values(kind) if kind else self.message.named(encode(name)))]

    def header(self, name: str) -> str | None:
        """Return the value of the first header of a name."""
        found = self.headers(name)
        return found[0] if found else None

    def add_header(self, name: str, value: str) -> None:
        """Add a header behind those there are; ValueError for one that cannot be changed."""
        _check_free(name)
        self.message.lines.append(header_line(name, value))
        self._reread()

    def remove_header(self, name: str) -> int:
        """Take all headers of a name out; returns how many there were."""
        _check_free(name)
        message = self.message
        kind = h.BY_LOWER_NAME.get(name.lower().encode())
        wanted = set(message.indexes(kind)) if kind else _find_named(message, encode(name.lower()))
        message.lines = [line for index, line in enumerate(message.lines) if index not in wanted]
        self._reread()
        return len(wanted)

    def set_header(self, name: str, value: str) -> None:
        """Put one header in place of all of its name."""
        line = header_line(name, value)
        self.remove_header(name)
        self.message.lines.append(line)
        self._reread()

    def set_body(self, body: bytes, content_type: str = "") -> None:
        """Put another body in; Content-Length follows."""
        message = self.message
        message.body = body
        if content_type:
            self.set_header("Content-Type", content_type)
        index = message.first[h.CONTENT_LENGTH]
        if index:
            message.lines[index] = b"Content-Length: %d" % len(body)
        else:
            message.lines.append(b"Content-Length: %d" % len(body))
        self._reread()

    def _reread(self) -> None:
        """Find the headers anew after a change."""
        message = self.message
        fresh = split_head(b"\r\n".join(message.lines), self.tools.core.limits)
        message.lines, message.first, message.texts = fresh.lines, fresh.first, fresh.texts
        message.repeats = fresh.repeats
        self.changed = True


def _check_free(name: str) -> None:
    if name.lower() in _FIXED:
        raise ValueError(f"{name} cannot be changed")


def _find_named(message: Message, name: bytes) -> set[int]:
    lines = enumerate(message.lines)
    return {index for index, line in lines if index and line.partition(b":")[0].strip().lower() == name}
