"""Role edge: requests of clients go to the next hop, REGISTER with our Path, and what was granted is kept (sans-IO).

client ── REGISTER ─► Path with token ─► next hop        2xx ─► flow registered, Flow-Timer, keep ─► client
client ── others ───► Route that is left, else next hop
core ──── our token ► that flow, or 430; never dialled
"""

from __future__ import annotations

from edge.connections import Connection
from edge.errors import RemoteError
from edge.outbound.flows import FlowTable
from edge.outbound.path import Force, is_first_hop, read_contacts, requires_outbound, set_flow_timer, wants_token
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.branch import FLOW_FAILED, Branch, Target
from edge.sip.forward import Routes
from edge.sip.message import Message
from edge.sip.proxy import ProxyContext
from edge.sip.registrar import canonical_instance
from edge.sip.uri import SipUri, UriCache, parse_uri, uri_equal


class EdgeContext(ProxyContext):
    """A request through an edge: a flow that fails is said upstream, where others are known (RFC 5626 §5.3.1)."""

    __slots__ = ()

    def handle_flow_failure(self, branch: Branch, status: int, now: float) -> None:
        """Answer 430 for a flow; an address of the core fails as it does elsewhere."""
        if branch.target.connection is not None:
            self.handle_silence(branch, FLOW_FAILED, now)
        else:
            ProxyContext.handle_flow_failure(self, branch, status, now)


class RegisterContext(EdgeContext):
    """A REGISTER on its way through."""

    __slots__ = ("edging",)

    edging: Edging

    def forward(self, message: Message, now: float) -> None:
        """Note what a 2xx grants, and complete it, before it goes down."""
        if 200 <= message.status < 300 and self.path:
            self.edging.granted(self.source, self.message, message, now)
        ProxyContext.forward(self, message, now)


class Edging:
    """What only an edge does. `next_hop` takes all that names no other way; `flow_timer` in seconds."""

    def __init__(
        self,
        addresses: Addresses,
        flows: FlowTable,
        uris: UriCache,
        *,
        next_hop: bytes,
        force: str,
        flow_timer: int,
    ) -> None:
        self.force = Force(force)
        self._addresses = addresses
        self._flows = flows
        self._uris = uris
        self._next_hop = parse_uri(next_hop)
        self._flow_timer = flow_timer

    def onward(self, message: Message, uri: SipUri, routes: Routes) -> Target:
        """Return where a request goes that names no flow and no further Route (OB-EDLG-09)."""
        if message.to_tag is not None and routes.popped and not self._addresses.is_domain(uri.host):
            return Target(uri.target(), locate=uri)
        return Target(message.uri, locate=self._next_hop)

    def register(self, context: RegisterContext, routes: Routes) -> Target:
        """Decide about Path and keep for a REGISTER; return where it goes.

        Raises:
            RemoteError: 400 for Contacts that break the grammar.
        """
        message, source = context.message, context.source
        context.edging = self
        if is_first_hop(message):
            contacts = read_contacts(message)
            if contacts and (wants_token(contacts) or self.force.applies(source)):
                context.path = self._flows.token_of(source)
        if routes.next is not None:
            return Target(message.uri, locate=routes.next)
        return Target(message.uri, locate=self._next_hop)

    def granted(self, source: Connection, request: Message, response: Message, now: float) -> None:
        """A registrar granted a registration over the flow `source` (OB-EREG-15, 16)."""
        outbound = requires_outbound(response)
        set_flow_timer(response, self._flow_timer if outbound else 0)
        try:
            aor = self._addresses.aor(self._uris.parse(request.address(h.TO).uri))
            given = read_contacts(response)
            for contact in read_contacts(request):
                self._note(source, aor, contact, given, now)
        except RemoteError:
            return  # what cannot be read is not remembered; it goes down all the same
        if outbound and not source.closed:
            self._flows.set_flow_timer(source, self._flow_timer, now)

    def _note(self, source: Connection, aor: bytes, contact: h.NameAddr, given: list[h.NameAddr], now: float) -> None:
        instance, reg_id = _identity(contact)
        seconds = 0
        for other in given:
            if self._is_same(contact, other, instance, reg_id):
                seconds = h.parse_delta(other.parameter(b"expires") or b"", 0)
        if seconds and not source.closed:
            self._flows.register(source, aor, instance, reg_id, seconds, now)
        else:
            self._flows.unregister(source, aor, instance, reg_id)

    def _is_same(self, contact: h.NameAddr, other: h.NameAddr, instance: bytes, reg_id: int) -> bool:
        if instance and reg_id and _identity(other) == (instance, reg_id):
            return True
        return uri_equal(self._uris.parse(contact.uri), self._uris.parse(other.uri))


def _identity(contact: h.NameAddr) -> tuple[bytes, int]:
    """Return instance and reg-id, b"" and 0 where there are none that can be read."""
    instance, number = contact.parameter(b"+sip.instance"), contact.parameter(b"reg-id")
    reg_id = int(number) if number and number.isdigit() and len(number) <= 10 else 0
    return (canonical_instance(instance), reg_id) if instance else (b"", 0)
