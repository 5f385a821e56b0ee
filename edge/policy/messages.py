"""SIP messages as hooks see them: reading, changing, deciding.

Text is UTF-8; octets that are none survive a change unharmed (surrogates). Headers that identify a message, or say
where it ends, cannot be changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from edge.connections import Connection
from edge.errors import RemoteError
from edge.outbound.flows import FlowFault
from edge.policy.views import Headers, Peer
from edge.sip import headers as h
from edge.sip.grammar import is_token
from edge.sip.message import Directions, Message, split_head
from edge.sip.uri import parse_uri

if TYPE_CHECKING:
    from edge.policy.tools import Tools
    from edge.sip.branch import Branch

_FIXED = frozenset(
    ("via", "v", "from", "f", "to", "t", "call-id", "i", "cseq", "content-length", "l", "max-forwards")
)  # fmt: skip
_NO_HEADERS: Headers = ()


class Route(Enum):
    """What a flow token of ours led to (RFC 5626 §5.3)."""

    NONE = "none"
    FLOW = "flow"
    GONE = "gone"
    FORGED = "forged"


def encode(text: str) -> bytes:
    """Turn a hook's text into octets; line ends in it are an error, for they would begin a header of their own."""
    data = text.encode("utf-8", "surrogateescape")
    if b"\r" in data or b"\n" in data or b"\0" in data:
        raise ValueError("no line ends in a header")
    return data


def decode(data: bytes) -> str:
    """Turn octets into text for a hook."""
    return data.decode("utf-8", "surrogateescape")


def header_line(name: str, value: str) -> bytes:
    """Write a header line; ValueError for what cannot be one."""
    if not is_token(encode(name)):
        raise ValueError(f"{name!r} is not the name of a header")
    return encode(name) + b": " + encode(value)


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


class SipRequest(SipMessage):
    """A request that came in. The last thing decided counts; without a decision it goes its usual way."""

    __slots__ = ("code", "extra", "reason")

    def __init__(self, tools: Tools, connection: Connection, message: Message) -> None:
        self.tools = tools
        self.connection = connection
        self.message = message
        self.changed = False
        self.code = 0

    @property
    def uri(self) -> str:
        """The Request-URI."""
        return decode(self.message.uri)

    def set_uri(self, uri: str) -> None:
        """Rewrite the Request-URI."""
        parse_uri(encode(uri))
        message = self.message
        message.uri = encode(uri)
        message.lines[0] = b"%b %b SIP/2.0" % (message.method, message.uri)
        self.changed = True

    @property
    def in_dialog(self) -> bool:
        """Whether it belongs to a dialog: its To has a tag."""
        return self.message.to_tag is not None

    @property
    def from_us(self) -> bool:
        """Whether From names a user of a domain served here."""
        try:
            return self.tools.core.addresses.serves(parse_uri(encode(self.from_uri)))
        except RemoteError:
            return False

    @property
    def to_us(self) -> bool:
        """Whether the Request-URI is in a domain served here."""
        return self.tools.core.addresses.serves(parse_uri(self.message.uri))

    def reject(self, code: int, reason: str = "", headers: Headers = _NO_HEADERS) -> None:
        """Answer with a final status, and headers of your own."""
        if not 200 <= code <= 699:
            raise ValueError("a final status is from 200 to 699")
        encode(reason)
        self.extra = tuple(header_line(name, value) for name, value in headers)
        self.code, self.reason = code, reason

    def drop(self) -> None:
        """Do not answer at all."""
        self.code = -1

    def accept(self) -> None:
        """Ask for no credentials; the rest goes its usual way."""
        self._directions().authorised = True

    def challenge(self) -> None:
        """Ask for credentials, whatever the settings say; a stranger, who has none here, gets 403."""
        if self.from_us:
            self._directions().authorised = False
        else:
            self.reject(403)

    def relay(self, next_hop: str = "") -> None:
        """Forward it without asking for credentials; to `next_hop` as it is, else where it usually goes."""
        directions = self._directions()
        directions.authorised = True
        if next_hop:
            parse_uri(encode(next_hop))
            directions.next_hop = encode(next_hop)

    def set_targets(self, *steps: str | Sequence[str]) -> None:
        """Send it to these URIs: those of one step together, one step after the other has refused.

        A URI of a user here stands for all their devices.
        """
        self._set_steps(steps, failover=False)

    def dispatch(self, *uris: str) -> None:
        """Send it to the first of these URIs that can be reached and does not answer 503."""
        self._set_steps(uris, failover=True)

    def _set_steps(self, steps: Sequence[str | Sequence[str]], failover: bool) -> None:
        found = [[encode(step)] if isinstance(step, str) else list(map(encode, step)) for step in steps]
        for uri in (uri for step in found for uri in step):
            parse_uri(uri)
        directions = self._directions()
        directions.steps, directions.failover = found, failover

    def force_token(self) -> None:
        """Record-Route with a flow token towards whoever sent this (RFC 5626 §5.3)."""
        self._directions().token = True

    def forbid_token(self) -> None:
        """Record-Route without a flow token towards whoever sent this."""
        self._directions().token = False

    def route_by_token(self) -> Route:
        """Tell what the flow token in the topmost Route leads to; what follows from it happens by itself, too."""
        core = self.tools.core
        value = self.header("Route")
        if value is None:
            return Route.NONE
        user = parse_uri(h.parse_name_addr(encode(value).partition(b",")[0]).uri).user
        found = core.flows.resolve(user, core.clock()) if user else FlowFault.NOT_A_TOKEN
        if isinstance(found, FlowFault):
            return {FlowFault.GONE: Route.GONE, FlowFault.FORGED: Route.FORGED}.get(found, Route.NONE)
        return Route.FLOW

    def contacts(self, user: str) -> list[str]:
        """Return the contacts of a user here (`alice@example.com`), none when unregistered."""
        return [decode(binding.contact) for binding in self.tools.core.location.bindings(encode(user))]

    def _directions(self) -> Directions:
        directions = self.message.directions
        if directions is None:
            directions = self.message.directions = Directions()
        return directions


class SipResponse(SipMessage):
    """A response from further on."""

    __slots__ = ("dropped",)

    def __init__(self, tools: Tools, connection: Connection, message: Message) -> None:
        super().__init__(tools, connection, message)
        self.dropped = False

    @property
    def code(self) -> int:
        """The status."""
        return self.message.status

    def drop(self) -> None:
        """Behave as if it had not come; its request then runs out of time."""
        self.dropped = True


class SipBranch(SipMessage):
    """A request as it is about to leave, on its way to one target by `connection`."""

    __slots__ = ("branch", "refused")

    def __init__(self, tools: Tools, connection: Connection, message: Message, branch: Branch) -> None:
        super().__init__(tools, connection, message)
        self.branch = branch
        self.refused = False

    @property
    def uri(self) -> str:
        """The Request-URI it leaves with."""
        return decode(self.message.uri)

    @property
    def came_from(self) -> str:
        """The IP address the request came from."""
        return self.branch.context.source.remote[0]

    def refuse(self) -> None:
        """Do not send this branch; the next one takes its place."""
        self.refused = True


def _check_free(name: str) -> None:
    if name.lower() in _FIXED:
        raise ValueError(f"{name} cannot be changed")


def _find_named(message: Message, name: bytes) -> set[int]:
    lines = enumerate(message.lines)
    return {index for index, line in lines if index and line.partition(b":")[0].strip().lower() == name}
