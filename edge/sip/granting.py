"""The lines of a 200 to REGISTER (RFC 3261 §10.3, RFC 3327 §5.3, RFC 3608, RFC 5626 §6, RFC 5627 §5.2), sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate

from edge.connections import Connection
from edge.outbound.flows import FlowTable
from edge.sip.addresses import Addresses
from edge.sip.gruu import Gruus
from edge.sip.location import Binding
from edge.sip.registrar import Hop, contact_line
from edge.sip.stamping import ROUTE_TRANSPORT

SUPPORTED = b"Supported: path, outbound"
REQUIRE = b"Require: outbound"


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """What an operator may choose; the names are those of the configuration. Seconds."""

    force: str = "streams"
    flow_timer: int = 120
    bindings: int = 200000
    min_expires: int = 60
    strict_path: bool = False
    ob_position: str = "last"
    lenient: bool = False
    outbound_required: bool = False


class Grants:
    """Writes them. `service_route`: the URIs of the Service-Route, top first; `flow_timer` in seconds."""

    __slots__ = ("_addresses", "_date", "_flows", "_gruus", "_require_and_timer", "_service_routes", "_wall_clock")

    def __init__(
        self,
        addresses: Addresses,
        flows: FlowTable,
        gruus: Gruus,
        *,
        service_route: Sequence[str],
        flow_timer: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._addresses = addresses
        self._flows = flows
        self._gruus = gruus
        self._service_routes = [b"Service-Route: <%b>" % uri.encode("ascii") for uri in service_route]
        self._require_and_timer = REQUIRE + b"\r\nFlow-Timer: %d" % flow_timer
        self._wall_clock = wall_clock
        self._date = (0, b"")

    def lines(
        self, bindings: list[Binding], hop: Hop, supported: frozenset[bytes], outbound: bool, now: float
    ) -> list[bytes]:
        """Return the header lines for the bindings there are; the last is Date. `outbound`: a flow was processed."""
        lines = self._contacts(bindings, now) if b"gruu" in supported else [contact_line(b, now) for b in bindings]
        if b"path" in supported:
            lines += [b"Path: " + value for value in hop.path]
            if outbound and hop.connection is not None:
                lines.append(self._own_path(hop.connection))
        lines += self._service_routes
        lines.append(SUPPORTED)
        if outbound:
            lines.append(REQUIRE if hop.connection is None else self._require_and_timer)
        lines.append(self.date_line())
        return lines

    def _contacts(self, bindings: list[Binding], now: float) -> list[bytes]:
        """Write every contact with its GRUUs: a new temporary one for each instance, on all of its contacts."""
        temporary: dict[bytes, bytes] = {}
        lines: list[bytes] = []
        for binding in bindings:
            line = contact_line(binding, now)
            if binding.instance:
                if binding.instance not in temporary:
                    temporary[binding.instance] = self._gruus.temporary(binding)
                line += self._gruus.parameters(binding, temporary[binding.instance])
            lines.append(line)
        return lines

    def _own_path(self, connection: Connection) -> bytes:
        """Write the Path value of a direct client, so that it may see that we keep flows (OB-SGL-03)."""
        transport = ROUTE_TRANSPORT[connection.transport]
        token, host = self._flows.token_of(connection), self._addresses.facing(connection)
        return b"Path: <sip:%b@%b%b;lr;ob>" % (token, host, transport)

    def date_line(self) -> bytes:
        """Return the Date line of this second."""
        second = int(self._wall_clock())
        if second != self._date[0]:
            self._date = (second, b"Date: " + formatdate(second, usegmt=True).encode("ascii"))
        return self._date[1]
