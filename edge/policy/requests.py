"""A SIP request as a hook sees it when it came in: reading, changing, deciding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.connections import Connection
from edge.errors import RemoteError
from edge.outbound.flows import FlowFault
from edge.outbound.path import is_first_hop
from edge.policy.messages import SipMessage
from edge.policy.routing import ROUTES, Flow, Route, Step, find_flows, read_step
from edge.policy.text import decode, encode, header_line
from edge.policy.views import Headers
from edge.sip import headers as h
from edge.sip.forward import read_routes
from edge.sip.message import Directions, Message
from edge.sip.uri import parse_uri

if TYPE_CHECKING:
    from edge.policy.tools import Tools

_NO_HEADERS: Headers = ()


class SipRequest(SipMessage):
    """A request that came in. The last thing decided counts; without a decision it goes its usual way."""

    __slots__ = ("close_after", "code", "extra", "reason")

    def __init__(self, tools: Tools, connection: Connection, message: Message) -> None:
        self.tools = tools
        self.connection = connection
        self.message = message
        self.changed = False
        self.code = 0

    # -- what is asked about it

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
    def has_route(self) -> bool:
        """Whether a Route says where it goes, of ours or of others."""
        return self.message.first[h.ROUTE] > 0

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

    @property
    def to_server(self) -> bool:
        """Whether it is for this server and nobody behind it: no user, and no Route."""
        return not self.has_route and self.to_us and parse_uri(self.message.uri).user is None

    @property
    def needs_credentials(self) -> bool:
        """Whether the settings ask for credentials: for REGISTER, and for what users of ours begin."""
        core = self.tools.core
        if self._is_registration:
            return core.access.enabled
        return core.access.is_due(self.message, read_routes(self.message, core.addresses.own, self.tools.uris))

    @property
    def _is_registration(self) -> bool:
        return self.message.method == b"REGISTER" and self.to_us

    @property
    def next_hop(self) -> str:
        """Where an edge sends what names no other way (`sip.next_hop`); empty in other roles."""
        return decode(self.tools.next_hop)

    def contacts(self, user: str) -> list[str]:
        """Return the contacts of a user here (`alice@example.com`), none when unregistered."""
        return [decode(binding.contact) for binding in self.tools.core.location.bindings(encode(user))]

    # -- decisions

    def accept(self) -> None:
        """Ask for no credentials; the rest goes its usual way."""
        self._directions().authorised = True

    def challenge(self) -> None:
        """Ask for credentials, whatever the settings say; a stranger, who has none here, gets 403."""
        if self.from_us or self._is_registration:
            self._directions().authorised = False
        else:
            self.reject(403)

    def reject(self, code: int, reason: str = "", headers: Headers = _NO_HEADERS, *, close_after: bool = False) -> None:
        """Answer with a final status, and headers of your own; with `close_after` the stream it came by ends then."""
        if not 200 <= code <= 699:
            raise ValueError("a final status is from 200 to 699")
        encode(reason)
        self.extra = tuple(header_line(name, value) for name, value in headers)
        self.code, self.reason, self.close_after = code, reason, close_after

    reply = reject

    def drop(self) -> None:
        """Do not answer at all."""
        self.code = -1

    def register(self) -> None:
        """Leave a REGISTER to the registrar here, whatever was said before about where it goes."""
        directions = self._directions()
        directions.next_hop, directions.steps = b"", None

    def relay(self, next_hop: str = "", *, existing_only: bool = False, close_after: bool = False) -> None:
        """Forward it: to `next_hop` as it is, else where it usually goes.

        No credentials are asked for, unless `challenge` was called. With `existing_only` no connection is opened for it
        (480 where there is none), with `close_after` the stream it left on ends once it was answered.
        """
        directions = self._directions()
        if directions.authorised is None:
            directions.authorised = True
        if next_hop:
            parse_uri(encode(next_hop))
        directions.next_hop, directions.steps = encode(next_hop), None
        directions.existing_only, directions.close_after = existing_only, close_after

    def set_targets(self, *steps: Step) -> None:
        """Send it to these: those of one step together, one step after the other has refused.

        A URI of a user here stands for all their devices. A list of flows (`best_flows`) is one device: its flows are
        tried in order until one works.
        """
        self._set_steps(steps, failover=False)

    def dispatch(self, *steps: Step) -> None:
        """Send it to the first of these that can be reached and does not answer 503."""
        self._set_steps(steps, failover=True)

    def _set_steps(self, steps: tuple[Step, ...], failover: bool) -> None:
        directions = self._directions()
        directions.steps, directions.failover = list(map(read_step, steps)), failover
        directions.next_hop = b""

    # -- Outbound (RFC 5626)

    def force_token(self) -> None:
        """Put a flow token into Record-Route and Path towards whoever sent this, whether asked for or not (§5.3)."""
        self._directions().token = True
        if self.message.method == b"REGISTER":
            self.add_path()

    def forbid_token(self) -> None:
        """Record-Route, and Path, without a flow token towards whoever sent this."""
        directions = self._directions()
        directions.token, directions.path = False, b""

    def record_route_with_token(self) -> None:
        """Record-Route with a flow token, also where the method usually gets none."""
        directions = self._directions()
        directions.token = directions.record = True

    def add_path(self) -> None:
        """Add a Path with the token of the flow this came by, `;ob` for a client's, where it leaves (§5.1)."""
        directions = self._directions()
        directions.path = self.tools.core.flows.token_of(self.connection)
        directions.ob = is_first_hop(self.message)

    def route_by_token(self) -> Route:
        """Tell what the flow token in the topmost Route leads to; what follows from it happens by itself, too."""
        core = self.tools.core
        value = self.header("Route")
        if value is None:
            return Route.NONE
        user = parse_uri(h.parse_name_addr(encode(value).partition(b",")[0]).uri).user
        found = core.flows.resolve(user, core.clock()) if user else FlowFault.NOT_A_TOKEN
        return ROUTES[found] if isinstance(found, FlowFault) else Route.FLOW

    def best_flows(self, user: str) -> list[list[Flow]]:
        """Return the devices of a user here (`alice@example.com`): for each a list of flows, best first (§7)."""
        return find_flows(self.tools, user)

    def _directions(self) -> Directions:
        directions = self.message.directions
        if directions is None:
            directions = self.message.directions = Directions()
        return directions
