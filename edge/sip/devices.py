"""The bindings of a user as targets: a group for each device, flows best first (RFC 5626 §7, RFC 3327 §5.4), sans-IO.

binding with a flow of ours  ─► its connection
binding with a Path          ─► the Path in front, its first value is the next hop; a value that is ours is done here
neither                      ─► its address
"""

from __future__ import annotations

from edge.connections import Connection
from edge.outbound.flows import FlowFault, FlowState, FlowTable
from edge.outbound.path import Force
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.branch import Group, Target
from edge.sip.forward import is_own
from edge.sip.location import Binding
from edge.sip.uri import SipUri, UriCache

_TRIES = 8  # flows of one device for one request


class Devices:
    """Makes targets. `order` among flows of equal state and q: "recent" (the last refreshed first) or "regid".

    `branches` is how many devices are rung at most. With `serial` those of equal q are rung one after the other.
    """

    __slots__ = ("_addresses", "_branches", "_by_reg_id", "_flows", "_force", "_serial", "_uris")

    def __init__(
        self,
        addresses: Addresses,
        flows: FlowTable,
        uris: UriCache,
        force: Force,
        *,
        order: str,
        branches: int,
        serial: bool = False,
    ) -> None:
        self._addresses = addresses
        self._flows = flows
        self._uris = uris
        self._force = force
        self._by_reg_id = order == "regid"
        self._branches = branches
        self._serial = serial

    def groups(self, bindings: list[Binding], secure: bool, now: float) -> list[Group]:
        """Return one group for each instance, highest q first; a URI on a flow comes only once (OB-TGT-01 to 03).

        Empty where sips, in either place, forbids every one of them (RFC 5630 §5.3).
        """
        if len(bindings) == 1:
            target = self.target(bindings[0], secure, now)
            return [] if target is None else [[target]]
        found: list[Group] = []
        for group in self._in_order(bindings, now):
            targets = [self.target(binding, secure, now) for binding in group[:_TRIES]]
            usable = [target for target in targets if target is not None]
            if usable:
                found.append(usable)
        if self._serial:
            _separate(found)
        return found[: self._branches]

    def _in_order(self, bindings: list[Binding], now: float) -> list[list[Binding]]:
        groups: dict[bytes, list[tuple[tuple[int, int, float, int], Binding]]] = {}
        known: set[tuple[bytes, int, tuple[bytes, ...]]] = set()
        for binding in bindings:
            connection = binding.connection
            place = (binding.contact, connection.id if connection is not None else 0, binding.path)
            if place not in known:
                known.add(place)
                device = binding.instance or b"\0" + binding.key
                groups.setdefault(device, []).append((self._rank(binding, now), binding))
        ordered = [sorted(group, key=_rank_of) for group in groups.values()]
        ordered.sort(key=_q_of)
        return [[binding for _, binding in group] for group in ordered]

    def _rank(self, binding: Binding, now: float) -> tuple[int, int, float, int]:
        """Order the flows of a device: state, q, then the newest or the lowest reg-id (OB-TGT-03).

        Without reg-id the newest contact is where the device is now (RFC 5627 §6.1).
        """
        connection = binding.connection
        state = FlowState.UP if connection is None else self._flows.state_of(connection, now)
        age = 0.0 if self._by_reg_id else -binding.refreshed_at
        return int(state), -binding.q if binding.reg_id else 0, age, binding.reg_id

    def target(self, binding: Binding, secure: bool, now: float) -> Target | None:
        """Return the target a binding means; None where sips, in either place, forbids it (RFC 5630 §5.3)."""
        uri = self._uris.parse(binding.contact)
        connection = binding.connection
        contact = uri.target() if uri.headers or b"method" in uri.parameters else binding.contact
        if secure or uri.secure:
            if (secure and not uri.secure) or (connection is not None and not connection.transport.secure):
                return None
            if not secure:
                contact = b"sip" + contact[4:]
        target = Target(contact, connection)
        target.binding = binding
        target.refreshed_at, target.cseq = binding.refreshed_at, binding.cseq
        target.q = binding.q
        if binding.path:
            self._follow_path(target, binding.path, uri, now)
        elif connection is None:
            target.locate = uri
        elif binding.reg_id or self._force.applies(connection):
            target.token = self._flows.token_of(connection)
        return target

    def _follow_path(self, target: Target, path: tuple[bytes, ...], contact: SipUri, now: float) -> None:
        """Route along a Path; what of its top is ours is done here, with nothing sent to ourselves (OB-SGL-04)."""
        target.locate = contact
        for position, value in enumerate(path):
            uri = self._uris.parse(h.parse_name_addr(value).uri)
            if not is_own(uri, self._addresses.own):
                target.routes, target.locate, target.sips = path[position:], uri, uri.secure
                return
            found = self._flows.resolve(uri.user, now) if uri.user is not None else FlowFault.NOT_A_TOKEN
            if isinstance(found, Connection):
                target.connection, target.token = found, uri.user
                target.routes, target.locate = path[position + 1 :], None
                return
            if found is not FlowFault.NOT_A_TOKEN:
                target.gone = True
                return


def _separate(groups: list[Group]) -> None:
    """Give every group a q of its own, in the order they have."""
    for number, group in enumerate(groups):
        for target in group:
            target.q = len(groups) - number


def _rank_of(ranked: tuple[tuple[int, int, float, int], Binding]) -> tuple[int, int, float, int]:
    return ranked[0]


def _q_of(group: list[tuple[tuple[int, int, float, int], Binding]]) -> int:
    return -group[0][1].q
