"""Where a request goes (RFC 3261 §16.4 to §16.6, RFC 5626 §5.3, §7), sans-IO.

own Route with a token ─► that flow, whatever the Request-URI says
another Route left     ─► its host
a user of ours         ─► the bindings: one group for each instance, its flows best first
a foreign host         ─► only for whom we let out
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.outbound.flows import FlowFault, FlowTable
from edge.outbound.path import Force
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.branch import Group, Target
from edge.sip.devices import Devices
from edge.sip.edging import Edging
from edge.sip.forward import Routes
from edge.sip.gruu import Gruus
from edge.sip.location import Binding, Location
from edge.sip.message import Aim, Message
from edge.sip.proxy import ProxyContext
from edge.sip.redirection import Lead, Redirections, read_contacts
from edge.sip.uri import SipUri, UriCache, parse_uri

_STEP = 2000  # a q is at most 1000
LARGEST_DATAGRAM = 1300 - 300  # RFC 3261 §18.1.1, less what we write into a request that leaves


@dataclass(slots=True)
class Found:
    """What was found: groups to try, or the status to answer with the lines `extra`.

    `unknown_user` asks the user store: 404 or 480.
    """

    groups: list[Group] = field(default_factory=list)
    status: int = 480
    unknown_user: bytes | None = None
    extra: tuple[bytes, ...] = ()


Absent = Callable[[bytes, Callable[[bool], None]], None]


class TargetFinder:
    """Finds targets for requests. `known_user(aor, done)` asks the user store whether somebody exists."""

    def __init__(
        self,
        addresses: Addresses,
        location: Location,
        flows: FlowTable,
        uris: UriCache,
        *,
        force: Force,
        devices: Devices,
        gruus: Gruus,
        known_user: Absent,
        edging: Edging | None = None,
    ) -> None:
        self._addresses = addresses
        self._location = location
        self._flows = flows
        self._uris = uris
        self._known_user = known_user
        self._devices = devices
        self._gruus = gruus
        self._edging = edging
        self.force = force  # whose clients get a token unasked

    def find(self, connection: Connection, message: Message, uri: SipUri, routes: Routes, now: float) -> Found:
        """Decide where a request goes.

        Raises:
            RemoteError: 403, 404, 416 or 430; nothing leaves.
        """
        directions = message.directions
        if directions is not None:
            return self._directed(connection, message, uri, routes, now)
        return self._by_the_rules(connection, message, uri, routes, now)

    def _by_the_rules(self, connection: Connection, message: Message, uri: SipUri, routes: Routes, now: float) -> Found:
        if routes.popped:
            flow = self._flow_of(connection, routes, now)
            if isinstance(flow, FlowFault):
                return Found([self._other_flows(message, uri, routes, now)])
            if flow is not None:
                contact = self._contact_of(message, uri, routes)
                return Found([[self._towards_flow(flow, contact, message, routes.tokens[-1], now)]])
        if routes.next is not None:
            self._check_allowed(connection, message, routes, now)
            return Found([[self._towards_route(self._contact_of(message, uri, routes), routes.next)]])
        if self._edging is not None:
            return Found([[self._edging.onward(connection, message, uri, routes, now)]])
        if self._addresses.serves(uri):
            found = self._towards_user(uri, now)
            _prefer_streams(found.groups, message)
            return found
        self._check_allowed(connection, message, routes, now)
        return Found([[Target(uri.target(), locate=uri)]])

    def _directed(self, connection: Connection, message: Message, uri: SipUri, routes: Routes, now: float) -> Found:
        """Go where a policy says, in the way it says."""
        directions = message.directions
        assert directions is not None
        if directions.next_hop:
            found = Found([[self._towards_next_hop(message, directions.next_hop)]])
        elif directions.steps is not None:
            found = self._stepwise(directions.steps, now)
        else:
            found = self._by_the_rules(connection, message, uri, routes, now)
        if directions.failover and found.groups:
            found.groups = [[target for group in found.groups for target in group]]
        for group in found.groups:
            for target in group:
                target.failover = directions.failover
                target.existing = directions.existing_only
        return found

    def _towards_next_hop(self, message: Message, raw: bytes) -> Target:
        """Leave the Request-URI as it is; the core of an edge is known by its own setting."""
        edging = self._edging
        next_hop = edging.settings.next_hop if edging is not None and edging.settings.next_hop.raw == raw else None
        target = Target(message.uri, locate=next_hop or self._uris.parse(raw))
        target.sips = target.locate is not None and target.locate.secure and next_hop is None
        return target

    def _stepwise(self, steps: list[list[Aim]], now: float) -> Found:
        """Return the targets of all steps, those of earlier ones with a higher q."""
        groups: list[Group] = []
        nobody = Found()
        for number, step in enumerate(steps):
            for aim in step:
                found = self._towards(aim, now)
                for group in found.groups:
                    for target in group:
                        target.q += (len(steps) - number) * _STEP
                groups += found.groups
                nobody = nobody if found.groups else found
        return Found(groups) if groups else nobody

    def _towards(self, aim: Aim, now: float) -> Found:
        if aim.keys:
            known = {b.key: [b] for b in self._location.bindings(aim.uri)}
            chosen = [self._devices.groups(known[key], False, now) for key in aim.keys if key in known]
            group = [target for groups in chosen for one in groups for target in one]
            return Found([group] if group else [])
        uri = self._uris.parse(aim.uri)
        return (
            self._towards_user(uri, now) if self._addresses.serves(uri) else Found([[Target(uri.target(), locate=uri)]])
        )

    def flows_of(self, aor: bytes, now: float) -> list[Group]:
        """Return where the devices of a user are: a group for each, the best of its flows first."""
        bindings = self._location.bindings(aor)
        return self._devices.groups(bindings, False, now) if bindings else []

    def for_ack(self, connection: Connection, message: Message, routes: Routes, now: float) -> Target | None:
        """Decide where an ACK for a 2xx goes, None when nowhere (RFC 3261 §13, §17)."""
        uri = self._uris.parse(message.uri)
        if not routes.popped and not self._addresses.serves(uri):
            return None
        found = self.find(connection, message, uri, routes, now)
        return found.groups[0][0] if found.groups else None

    def _towards_flow(self, flow: Connection, uri: bytes, message: Message, token: bytes, now: float) -> Target:
        """Return the target that `token` means; what is too large for UDP takes a stream of the same device."""
        if flow.transport is Transport.UDP and message_size(message) > LARGEST_DATAGRAM:
            stream = self._flows.stream_beside(flow, now)
            if stream is not None:
                flow, token = stream, self._flows.token_of(stream)
        target = Target(uri, flow)
        target.token = token
        return target

    def _other_flows(self, message: Message, uri: SipUri, routes: Routes, now: float) -> Group:
        """Return what is known of the device whose flow a token named, and which is gone (RFC 5626 §5.3.1, OB-SGL-05).

        Raises:
            RemoteError: 430 where nothing is.
        """
        for aor, instance in self._flows.devices_of(routes.tokens[-1]) if self._edging is None else ():
            bindings = [b for b in self._location.bindings(aor) if b.reg_id and b.instance == instance]
            for group in self._devices.groups(bindings, uri.secure, now) if bindings else ():
                _prefer_streams([group], message)
                for target in group:
                    target.uri = self._contact_of(message, uri, routes)
                return group
        raise RemoteError(430, "flow_failed")

    def _flow_of(self, connection: Connection, routes: Routes, now: float) -> Connection | FlowFault | None:
        """Return the flow our Route values name, or that it is gone; None when the request is outgoing, or without one.

        Two values of ours mean both sides of the dialog: the one below is where it goes (RFC 5626 §5.3.1). A single one
        that names the flow the request came on means outgoing.
        """
        token = routes.tokens[-1]
        if not token:
            return None
        flow = self._flows.resolve(token, now)
        if isinstance(flow, FlowFault):
            if flow is FlowFault.GONE:
                return flow
            if flow is FlowFault.FORGED or routes.ob:
                raise RemoteError(403, "forged_token")
            return None
        if flow is connection and routes.popped == 1:
            return None
        return flow

    def _check_allowed(self, connection: Connection, message: Message, routes: Routes, now: float) -> None:
        """Let out what came along our own Route, or from a user of ours; no open relay (SIP-PRX-07)."""
        if self._edging is not None:
            self._edging.check_route(connection, routes, now)
            return
        if routes.popped:
            return
        if not self._addresses.serves_sender(message, self._uris):
            raise RemoteError(403, "relay", "Not relaying")

    def _towards_route(self, uri: bytes, next_hop: SipUri) -> Target:
        if next_hop.loose:
            if not next_hop.secure and uri[:5].lower() == b"sips:":  # TLS whatever the Route says (§16.6)
                next_hop = parse_uri(b"sips" + next_hop.raw[3:])
            target = Target(uri, locate=next_hop)
            target.sips = next_hop.secure
            return target
        target = Target(next_hop.target(), locate=next_hop)
        target.strict = b"<" + uri + b">"
        return target

    def _contact_of(self, message: Message, uri: SipUri, routes: Routes) -> bytes:
        """Return the Request-URI for a request whose Route says where it goes: of a GRUU the contact (RFC 5627 §6.1).

        Its Path stays out, for the Route leads there already.
        """
        if b"gr" not in uri.parameters or self._edging is not None or not self._addresses.serves(uri):
            return message.uri
        named = self._gruus.read(uri)
        found = [] if named is None else named.of(self._location.bindings(named.aor))
        tokens = {*routes.tokens, b"" if routes.next is None else routes.next.user or b""} - {b""}
        for binding in found:
            if any(token in value for token in tokens for value in (binding.flow, *binding.path)):
                return binding.contact
        return max(found, key=_age_of).contact if found else message.uri

    def _towards_user(self, uri: SipUri, now: float) -> Found:
        if uri.user is None:
            return Found(status=404)
        aor = self._addresses.aor(uri)
        bindings = self._location.bindings(aor)
        if b"gr" in uri.parameters:
            named = self._gruus.read(uri)
            if named is None:
                return Found(status=404)
            aor, bindings = named.aor, named.of(self._location.bindings(named.aor))
            if not bindings and (named.epoch or not self._location.has_departed(aor, named.instance)):
                return Found(status=404)
        if not bindings:
            return Found(unknown_user=aor)
        groups = self._devices.groups(bindings, uri.secure, now)
        return Found(groups) if groups else _no_security(uri)

    def redirected(self, context: ProxyContext, message: Message, now: float) -> list[Group] | None:
        """Follow the Contacts of a 3xx for a user of ours, each URI once and never from sip to sips or back.

        None: it is relayed as it is (§16.7 step 4).
        """
        asked = self._uris.parse(context.message.uri)
        values = read_contacts(message)
        if not values or not self._addresses.serves(asked) or b"gr" in asked.parameters:
            return None  # of a GRUU: a device is meant, and no other (RFC 5627)
        if context.redirections is None:
            context.redirections = Redirections(asked)
        leads = context.redirections.leads
        known = len(leads)
        context.redirections.add(message, values, [self._follow(value, context.redirections, now) for value in values])
        return [group for lead in leads[known:] for group in lead.groups]

    def _follow(self, value: bytes, redirections: Redirections, now: float) -> Lead | None:
        try:
            address = h.parse_name_addr(value)
            uri, q = self._uris.parse(address.uri), _read_q(address.parameter(b"q"))
        except RemoteError:
            return None
        if uri.secure is not redirections.leads[0].uri.secure:
            return None
        lead = redirections.find(uri)
        if lead is None:
            ours = self._addresses.serves(uri)
            groups = self._towards_user(uri, now).groups if ours else [[Target(uri.target(), locate=uri)]]
            for group in groups:
                for target in group:
                    target.q = q
            lead = Lead(uri, groups)
            redirections.leads.append(lead)
        return lead

    def decide_absent(self, aor: bytes, decided: Callable[[int], None]) -> None:
        """Tell the status for a user without a binding: 404 for nobody, 480 for somebody (SIP-PRX-08)."""
        self._known_user(aor, lambda exists: decided(480 if exists else 404))


def _age_of(binding: Binding) -> float:
    return binding.refreshed_at


def _read_q(value: bytes | None) -> int:
    """Return a q in thousandths, 1000 where there is none that can be read (RFC 3261 §20.10)."""
    try:
        return max(0, min(1000, round(float(value or b"1") * 1000)))
    except (ValueError, OverflowError):
        return 1000


def _prefer_streams(groups: list[Group], message: Message) -> None:
    """Let what is too large for a datagram try the streams of a device first (RFC 5626 §13, RFC 3261 §18.1.1)."""
    for group in groups:
        if len(group) > 1 and message_size(message) > LARGEST_DATAGRAM:
            group.sort(key=_may_be_datagram)


def _may_be_datagram(target: Target) -> bool:
    """Whether a flow is one over UDP; of one at an edge its contact tells, where it names a transport."""
    if target.connection is not None:
        return target.connection.transport is Transport.UDP
    if target.binding is None or not target.binding.path:
        return False  # an address: other transports can be dialled there
    contact = target.uri.lower()
    return not contact.startswith(b"sips:") and b";transport=t" not in contact and b";transport=ws" not in contact


def message_size(message: Message) -> int:
    """Return about how many octets a message has."""
    return sum(map(len, message.lines)) + 2 * len(message.lines) + len(message.body)


def _no_security(uri: SipUri) -> Found:
    """Nobody can be reached as the scheme demands (RFC 5630 §5.3, §5.4)."""
    if uri.secure:
        return Found(extra=(b'Warning: 380 %b "SIPS Not Allowed"' % uri.host,))
    return Found(extra=(b'Warning: 381 %b "SIPS Required"' % uri.host,))
