"""What the hooks besides those for messages are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.connections import Address, Connection
from edge.errors import RemoteError
from edge.policy.text import decode
from edge.websocket import Refusal, UpgradeRequest

if TYPE_CHECKING:
    from edge.policy.tools import Tools
    from edge.sip.registrar import Plan

Headers = Sequence[tuple[str, str]]
Detail = str | int | float | bool


class Lent:
    """What a hook can do whatever it is given."""

    __slots__ = ("tools",)

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    def count(self, label: str) -> None:
        """Count something under a label of your own: `edge_policy_counts_total{label}`, at most 64 labels."""
        self.tools.count(label)

    def publish(self, label: str, **details: Detail) -> None:
        """Report an event `policy.<label>` to hooks, the event stream and functions.

        Raises:
            ValueError: a label that is not of small letters, digits, `.`, `_` and `-`, or a detail no plain value.
        """
        self.tools.publish(label, details)


class Peer(Lent):
    """What is known of the connection something came by."""

    __slots__ = ("connection",)

    def __init__(self, tools: Tools, connection: Connection) -> None:
        self.tools = tools
        self.connection = connection

    @property
    def source(self) -> str:
        """The IP address it came from, the real client's behind a PROXY header."""
        return self.connection.remote[0]

    @property
    def address(self) -> Address:
        """Address and port it came from."""
        return self.connection.remote

    @property
    def socket(self) -> Address:
        """Address and port it came to."""
        return self.connection.local

    @property
    def transport(self) -> str:
        """One of udp, tcp, tls, ws, wss."""
        return self.connection.transport.name.lower()

    @property
    def identities(self) -> tuple[str, ...]:
        """The names in the client's certificate, none without one that was verified."""
        return self.connection.identities

    def tag(self, name: str, value: str) -> None:
        """Remember something about this connection until it ends."""
        self.tools.tags.setdefault(self.connection.name, {})[name] = value

    def tagged(self, name: str) -> str | None:
        """Return what `tag` remembered."""
        return self.tools.tags.get(self.connection.name, {}).get(name)


class NewConnection(Peer):
    """A connection that wants in."""

    __slots__ = ("refused",)

    def __init__(self, tools: Tools, connection: Connection) -> None:
        super().__init__(tools, connection)
        self.refused = False

    def reject(self) -> None:
        """End it without a word."""
        self.refused = True


class Upgrading(Peer):
    """A WebSocket handshake."""

    __slots__ = ("code", "headers", "request")

    def __init__(self, tools: Tools, connection: Connection, request: UpgradeRequest) -> None:
        super().__init__(tools, connection)
        self.request = request
        self.code = 0
        self.headers: tuple[tuple[str, str], ...] = ()

    @property
    def origin(self) -> str:
        """The Origin header, empty without one."""
        return self.request.origin

    @property
    def path(self) -> str:
        """The path asked for, without its query."""
        return self.request.path

    @property
    def query(self) -> str:
        """What stands behind the `?`."""
        return self.request.query

    @property
    def subprotocol(self) -> str:
        """The protocol it is going to get, sip or msrp."""
        return self.request.subprotocol

    def header(self, name: str) -> str | None:
        """Return the first header of a name, in any case."""
        values = self.request.headers.get_all(name)
        return values[0] if values else None

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies it sent, by name."""
        pairs = (pair.partition("=") for pair in (self.header("Cookie") or "").split(";"))
        return {name.strip(): value.strip() for name, equals, value in pairs if equals}

    def reject(self, code: int = 403, headers: Headers = ()) -> None:
        """Answer with an HTTP status instead of the upgrade."""
        self.code = code
        self.headers = tuple(headers)

    def verdict(self) -> Refusal | None:
        """Return what was decided: None lets the client in."""
        return Refusal(self.code, self.headers) if self.code else None


class Registering(Peer):
    """A registration that may be stored; `reject` keeps it from being so."""

    __slots__ = ("code", "plan", "reason")

    def __init__(self, tools: Tools, connection: Connection, plan: Plan) -> None:
        super().__init__(tools, connection)
        self.plan = plan
        self.code = 0
        self.reason = ""

    @property
    def user(self) -> str:
        """The address of record, `user@domain`."""
        return decode(self.plan.aor)

    @property
    def contacts(self) -> list[tuple[str, int]]:
        """The contacts to store, each with the seconds it gets."""
        return [(decode(binding.contact), seconds) for binding, _, seconds in self.plan.put]

    @property
    def removed(self) -> list[str]:
        """The contacts that go."""
        return [decode(binding.contact) for binding in self.plan.remove]

    @property
    def new(self) -> bool:
        """Whether a contact comes that was not there before."""
        return any(old is None for _, old, _ in self.plan.put)

    def reject(self, code: int = 403, reason: str = "") -> None:
        """Answer this, and store nothing."""
        self.code = code
        self.reason = reason

    def verdict(self) -> RemoteError | None:
        """Return what was decided: None lets the bindings be stored."""
        return RemoteError(self.code, "policy", self.reason) if self.code else None


class User(Peer):
    """Somebody who proved who they are: `name` is `user@domain` in SIP, the user alone in MSRP."""

    __slots__ = ("code", "name", "protocol")

    def __init__(self, tools: Tools, connection: Connection, protocol: str, name: str) -> None:
        super().__init__(tools, connection)
        self.protocol = protocol
        self.name = name
        self.code = 0

    def reject(self) -> None:
        """Answer 403."""
        self.code = 403


class Ended(Lent):
    """A call (`protocol` "sip") or an MSRP session ("msrp") that is over.

    `user` is who began it: the URI of From, or the session's user. `session` is the Call-ID, or a short name of the
    session. `reason` is why: bye_caller, bye_callee, cancelled, refused, timeout, limit, table_full or shutdown for a
    call; expired, operator, or what ended the connection for a session. A call has `peer` (whom it was for), `code`
    (the last status) and `source` (address and port of the caller). `duration` are the seconds from the answer on, None
    where there was none, and those of the whole session in MSRP; `connection` is that of who began it.
    """

    __slots__ = ("code", "connection", "duration", "peer", "protocol", "reason", "session", "source", "user")

    def __init__(self, tools: Tools, protocol: str, session: str, user: str, reason: str) -> None:
        super().__init__(tools)
        self.protocol = protocol
        self.session = session
        self.user = user
        self.reason = reason
        self.peer = ""
        self.code = 0
        self.source = ""
        self.connection = ""
        self.duration: float | None = None
