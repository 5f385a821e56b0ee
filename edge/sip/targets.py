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
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.forward import Routes
from edge.sip.location import Binding, Location
from edge.sip.message import Message
from edge.sip.proxy import Group, ProxyContext, Target
from edge.sip.uri import SipUri, UriCache


@dataclass(slots=True)
class Found:
    """What was found: groups to try, or the status to answer. `unknown_user` asks the user store: 404 or 480."""

    groups: list[Group] = field(default_factory=list)
    status: int = 480
    unknown_user: bytes | None = None


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
        force: str,
        known_user: Absent,
        branches: int = 12,
    ) -> None:
        self._addresses = addresses
        self._location = location
        self._flows = flows
        self._uris = uris
        self._known_user = known_user
        self._branches = branches
        self._forced = {
            "off": frozenset[Transport](),
            "streams": frozenset(t for t in Transport if t.reliable),
            "all": frozenset(Transport),
        }[force]

    def forces(self, transport: Transport) -> bool:
        """Whether clients on this transport get a token unasked (`outbound.force`)."""
        return transport in self._forced

    def find(self, connection: Connection, message: Message, uri: SipUri, routes: Routes, now: float) -> Found:
        """Decide where a request goes.

        Raises:
            RemoteError: 403, 404, 416 or 430; nothing leaves.
        """
        if routes.popped:
            flow = self._flow_of(connection, routes, now)
            if flow is not None:
                target = Target(message.uri, flow)
                target.token = routes.tokens[-1]
                return Found([[target]])
        if routes.next is not None:
            self._check_allowed(message, routes)
            return Found([[self._towards_route(message, routes.next)]])
        if self._addresses.serves(uri):
            return self._towards_user(uri)
        self._check_allowed(message, routes)
        return Found([[Target(uri.target(), locate=uri)]])

    def for_ack(self, connection: Connection, message: Message, routes: Routes, now: float) -> Target | None:
        """Decide where an ACK for a 2xx goes, None when nowhere (RFC 3261 §13, §17)."""
        uri = self._uris.parse(message.uri)
        if not routes.popped and not self._addresses.serves(uri):
            return None
        found = self.find(connection, message, uri, routes, now)
        return found.groups[0][0] if found.groups else None

    def _flow_of(self, connection: Connection, routes: Routes, now: float) -> Connection | None:
        """Return the flow our Route values name; None when the request is outgoing or they name none.

        Two values of ours mean both sides of the dialog: the one below is where it goes (RFC 5626 §5.3.1). A single one that
        names the flow the request came on means outgoing.
        """
        token = routes.tokens[-1]
        if not token:
            return None
        flow = self._flows.resolve(token, now)
        if isinstance(flow, FlowFault):
            if flow is FlowFault.GONE:
                raise RemoteError(430, "flow_failed")
            if flow is FlowFault.FORGED or routes.ob:
                raise RemoteError(403, "forged_token")
            return None
        if flow is connection and routes.popped == 1:
            return None
        return flow

    def _check_allowed(self, message: Message, routes: Routes) -> None:
        """Let out what came along our own Route, or from a user of ours; no open relay (SIP-PRX-07)."""
        if routes.popped:
            return
        sender = self._uris.parse(message.address(h.FROM).uri)
        if not self._addresses.serves(sender):
            raise RemoteError(403, "relay", "Not relaying")

    @staticmethod
    def _towards_route(message: Message, next_hop: SipUri) -> Target:
        if next_hop.loose:
            return Target(message.uri, locate=next_hop)
        target = Target(next_hop.target(), locate=next_hop)
        target.strict = b"<" + message.uri + b">"
        return target

    def _towards_user(self, uri: SipUri) -> Found:
        if uri.user is None:
            return Found(status=404)
        aor = self._addresses.aor(uri)
        bindings = self._location.bindings(aor)
        if not bindings:
            return Found(unknown_user=aor)
        if len(bindings) == 1:
            return Found([[self._towards_binding(bindings[0])]])
        return Found(self._group(bindings)[: self._branches])

    def _group(self, bindings: list[Binding]) -> list[Group]:
        """One group for each instance, its flows best first (OB-TGT-01 to 03)."""
        groups: dict[bytes, list[Binding]] = {}
        for binding in bindings:
            groups.setdefault(binding.instance if binding.reg_id else b"\0" + binding.key, []).append(binding)
        ordered = [sorted(group, key=_best_flow) for group in groups.values()]
        ordered.sort(key=lambda group: -group[0].q)
        return [[self._towards_binding(binding) for binding in group] for group in ordered]

    def _towards_binding(self, binding: Binding) -> Target:
        uri = self._uris.parse(binding.contact)
        contact = uri.target() if uri.headers or b"method" in uri.parameters else binding.contact
        target = Target(contact, binding.connection)
        target.binding = binding
        target.q = binding.q
        target.routes = binding.path
        if binding.connection is None:
            target.locate = self._uris.parse(h.parse_name_addr(binding.path[0]).uri) if binding.path else uri
        elif binding.reg_id or self.forces(binding.connection.transport):
            target.token = self._flows.token_of(binding.connection)
        return target

    def decide_absent(self, aor: bytes, context: ProxyContext) -> None:
        """Answer for a user without a binding: 404 for nobody, 480 for somebody (SIP-PRX-08)."""

        def known(exists: bool) -> None:
            if not context.final_sent:
                context.answer(480 if exists else 404, context.core.clock())

        self._known_user(aor, known)


def _best_flow(binding: Binding) -> tuple[bool, int, float, int]:
    return (not binding.reachable, -binding.q, -binding.refreshed_at, binding.reg_id)
