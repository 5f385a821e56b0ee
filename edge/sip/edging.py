"""Role edge: requests of clients go to the next hop, REGISTER with our Path, and what was granted is kept (sans-IO).

client ── REGISTER ─► Path with token ─► next hop        2xx ─► flow registered, Flow-Timer, keep ─► client
client ── others ───► Route that is left, else next hop
core ──── our token ► that flow, or 430; never dialled
"""

from __future__ import annotations

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.networks import NetworkSet
from edge.outbound.flows import FlowTable
from edge.outbound.path import (
    Force,
    clears_all,
    is_first_hop,
    read_contacts,
    requires_outbound,
    set_flow_timer,
    wants_token,
)
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.answering import Explained
from edge.sip.branch import FLOW_FAILED, Branch, Core, Group, Target, retry_after
from edge.sip.forward import Draft, Routes
from edge.sip.message import Message
from edge.sip.proxy import ProxyContext
from edge.sip.registrar import canonical_instance
from edge.sip.transaction import ServerTransaction
from edge.sip.uri import SipUri, UriCache, parse_uri, uri_equal

_MAX_CORE = 256


class EdgeSettings:
    """The settings of role edge: `next_hop` takes all that names no other way; `flow_timer` in seconds.

    `path_double`, `path_always`, `without_path` ("add" or "reject") as in `outbound`; `flows` is the most there may be.
    `no_response`: seconds of silence after which a UDP flow has failed a request, 0 for as long as transactions live.
    """

    __slots__ = ("flow_timer", "flows", "next_hop", "no_response", "path_always", "path_double", "without_path")

    def __init__(
        self,
        *,
        next_hop: bytes,
        flow_timer: int,
        no_response: float = 8.0,
        path_double: bool = False,
        path_always: bool = False,
        without_path: str = "add",
        flows: int = 200000,
    ) -> None:
        self.next_hop = parse_uri(next_hop)
        self.flow_timer = flow_timer
        self.no_response = no_response
        self.path_double = path_double
        self.path_always = path_always
        self.without_path = without_path
        self.flows = flows


class EdgeContext(ProxyContext):
    """A request through an edge: a flow that fails is said upstream, where others are known (RFC 5626 §5.3.1)."""

    __slots__ = ("edging", "inward")

    def __init__(
        self, core: Core, server: ServerTransaction, message: Message, draft: Draft, source: Connection, edging: Edging
    ) -> None:
        ProxyContext.__init__(self, core, server, message, draft, source)
        self.edging = edging
        self.inward = False  # towards the next hop

    def start(self, groups: list[Group], now: float) -> None:
        """Begin; all there is at an edge is one target."""
        place = groups[0][0].locate
        self.inward = place is not None and place.host == self.edging.settings.next_hop.host
        ProxyContext.start(self, groups, now)

    def avoids(self, alternative: bool) -> bool:
        """Leave the next hop alone only where another can take it: what it refuses to one, it may grant to others."""
        return alternative or not self.inward

    def refuse(self, status: int, message: Message | None, now: float) -> None:
        """Answer 503 while the next hop cannot be had: whatever else comes has no other way (RFC 3261 §16.7 step 6)."""
        asked = 0 if message is None else retry_after(message)
        if self.inward and status in (500, 503) and (message is None or asked):
            self.answer(503, now, (b"Retry-After: %d" % asked if asked else self.core.retry_line(),))
        else:
            ProxyContext.refuse(self, status, message, now)

    def handle_final(self, branch: Branch, message: Message, now: float) -> None:
        """Note where the core is before the answer goes its way."""
        if branch.target.locate is self.edging.settings.next_hop:
            self.edging.note_core(branch.client.connection)
        ProxyContext.handle_final(self, branch, message, now)

    def patience(self, target: Target, group: Group, now: float) -> float:
        """Return how many seconds a flow may say nothing: the core needs the rest for others (RFC 4320 §4.2)."""
        connection = target.connection
        if connection is not None and connection.transport is Transport.UDP:
            return self.edging.settings.no_response
        return 0.0

    def handle_flow_failure(self, branch: Branch, status: int, now: float) -> None:
        """Answer 430 for a flow; an address of the core fails as it does elsewhere."""
        if branch.target.connection is not None:
            self.handle_silence(branch, FLOW_FAILED, now)
        else:
            ProxyContext.handle_flow_failure(self, branch, status, now)


class Passage:
    """What was decided about a REGISTER: where it goes, and the token for its Path, b"" for no Path.

    With `ob` the Path leads to a client's flow, else to whoever is in front of us.
    """

    __slots__ = ("ob", "target", "token")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.token = b""
        self.ob = False


class RegisterContext(EdgeContext):
    """A REGISTER on its way through."""

    __slots__ = ("passage",)

    def __init__(
        self,
        core: Core,
        server: ServerTransaction,
        message: Message,
        draft: Draft,
        source: Connection,
        edging: Edging,
        passage: Passage,
    ) -> None:
        EdgeContext.__init__(self, core, server, message, draft, source, edging)
        self.passage = passage

    def path_towards(self, connection: Connection) -> bytes:
        """Write our Path for a registrar behind `connection`."""
        passage = self.passage
        if not passage.token:
            return b""
        beside = self.source if self.edging.settings.path_double else None
        return self.core.stamper.path_value(connection, passage.token, passage.ob, beside)

    def forward(self, message: Message, now: float) -> None:
        """Note what a 2xx grants, and complete it, before it goes down."""
        if 200 <= message.status < 300:
            self.edging.granted(self, message, now)
        ProxyContext.forward(self, message, now)


class Edging:
    """What only an edge does. `trusted_core` says whether an address belongs to the servers behind it."""

    def __init__(
        self,
        addresses: Addresses,
        flows: FlowTable,
        uris: UriCache,
        force: Force,
        settings: EdgeSettings,
        trusted_core: NetworkSet,
    ) -> None:
        self.settings = settings
        self._addresses = addresses
        self._flows = flows
        self._uris = uris
        self._force = force
        self._trusted_core = trusted_core
        self._core: set[str] = set()  # addresses the next hop has answered from

    # -- who may send what where

    def note_core(self, connection: Connection) -> None:
        """The next hop answered over `connection`: what comes from its address is no client's."""
        if connection.remote[0] not in self._core:
            if len(self._core) >= _MAX_CORE:
                self._core.clear()
            self._core.add(connection.remote[0])

    def onward(self, connection: Connection, message: Message, uri: SipUri, routes: Routes, now: float) -> Target:
        """Return where a request goes that names no flow and no further Route (OB-EDLG-09).

        To the next hop, but for what belongs to a dialog with somebody who is reached by the Request-URI.
        """
        if message.to_tag is not None and routes.popped and not self._addresses.is_domain(uri.host):
            if self._is_vouched_for(connection, routes, now):
                return Target(uri.target(), locate=uri)
        return Target(message.uri, locate=self.settings.next_hop)

    def check_route(self, connection: Connection, routes: Routes, now: float) -> None:
        """Let a request follow its Route: to the core, or from whom we know; an edge is no open relay.

        Raises:
            RemoteError: 403.
        """
        next_hop = routes.next
        if next_hop is None or next_hop.host == self.settings.next_hop.host or self._addresses.is_domain(next_hop.host):
            return
        if not self._is_vouched_for(connection, routes, now):
            raise RemoteError(403, "relay", "Not relaying")

    def _is_vouched_for(self, connection: Connection, routes: Routes, now: float) -> bool:
        """Whether a request may name a host to go to, although nobody here has asked for a password.

        A live token of ours was given to the two sides of a dialog alone; a registration was granted by the registrar;
        and the core has done its own asking.
        """
        if connection.registered:
            return True
        for token in routes.tokens:
            if token and isinstance(self._flows.resolve(token, now), Connection):
                return True
        return connection.remote[0] in self._core or self._trusted_core.contains(connection.remote[0])

    # -- REGISTER

    def is_full(self, connection: Connection) -> bool:
        """Whether no flow can be added for a REGISTER over `connection`: no Path without a flow (OB-EREG-02)."""
        return len(self._flows) >= self.settings.flows and not self._flows.knows(connection)

    def plan(self, source: Connection, message: Message, routes: Routes, now: float) -> Passage:
        """Decide about Path for a REGISTER, and where it goes.

        Raises:
            RemoteError: 400 for Contacts that break the grammar, 403 for a Route to strangers, 421 without Path.
        """
        directions = message.directions
        if directions is not None and directions.next_hop and directions.next_hop != self.settings.next_hop.raw:
            next_hop = self._uris.parse(directions.next_hop)
        else:
            self.check_route(source, routes, now)
            next_hop = self.settings.next_hop if routes.next is None else routes.next
        passage = Passage(Target(message.uri, locate=next_hop))
        contacts = read_contacts(message)
        if directions is not None and directions.path is not None:  # a policy knows what it wants
            passage.token, passage.ob = directions.path, directions.ob
        elif contacts:
            passage.ob = is_first_hop(message) and self._force.grants(source, wants_token(contacts))
            if passage.ob or (self.settings.path_always and self._force.grants(source, asked=True)):
                self._check_supported(message)
                passage.token = self._flows.token_of(source)
        return passage

    def new_context(
        self,
        core: Core,
        server: ServerTransaction,
        message: Message,
        draft: Draft,
        source: Connection,
        passage: Passage | None,
    ) -> EdgeContext:
        """Return the context of a request, with a `passage` that of a REGISTER."""
        if passage is None:
            return EdgeContext(core, server, message, draft, source, self)
        return RegisterContext(core, server, message, draft, source, self, passage)

    def _check_supported(self, message: Message) -> None:
        if self.settings.without_path == "reject" and not h.has_option(message.values(h.SUPPORTED), b"path"):
            raise Explained(421, "path_unsupported", b"Require: path")

    def granted(self, context: RegisterContext, response: Message, now: float) -> None:
        """A registrar granted a registration over the flow of `context` (OB-EREG-15, 16)."""
        source, request = context.source, context.message
        outbound = requires_outbound(response)
        set_flow_timer(response, self.settings.flow_timer if outbound else 0)
        try:
            aor = self._addresses.aor(self._uris.parse(request.address(h.TO).uri))
            if clears_all(request):
                self._flows.unregister_all(aor)
            elif context.passage.token:
                self._note(source, aor, read_contacts(request), read_contacts(response), now)
        except RemoteError:
            return  # what cannot be read is not remembered; it goes down all the same
        if outbound and not source.closed:
            self._flows.set_flow_timer(source, self.settings.flow_timer, now)

    def _note(
        self, source: Connection, aor: bytes, asked: list[h.NameAddr], given: list[h.NameAddr], now: float
    ) -> None:
        for contact in asked:
            seconds = 0
            for other in given:
                if self._is_same(contact, other):
                    seconds = h.parse_delta(other.parameter(b"expires") or b"", 0)
            instance, reg_id = _identity(contact)
            if seconds and not source.closed:
                self._flows.register(source, aor, instance, reg_id, seconds, now)
            else:
                self._flows.unregister(source, aor, instance, reg_id)

    def _is_same(self, contact: h.NameAddr, other: h.NameAddr) -> bool:
        """Whether a Contact of the answer is that of the request: by instance and reg-id where both have them."""
        mine, theirs = _identity(contact), _identity(other)
        if mine[1] and theirs[1]:
            return mine == theirs
        if theirs[1]:
            return False
        return uri_equal(self._uris.parse(contact.uri), self._uris.parse(other.uri))


def _identity(contact: h.NameAddr) -> tuple[bytes, int]:
    """Return instance and reg-id, b"" and 0 where there are none that can be read; no reg-id without an instance."""
    instance, number = contact.parameter(b"+sip.instance"), contact.parameter(b"reg-id")
    reg_id = int(number) if number and number.isdigit() and len(number) <= 10 else 0
    return (canonical_instance(instance), reg_id) if instance else (b"", 0)
