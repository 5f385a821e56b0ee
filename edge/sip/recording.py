"""Which sides of a request get our Record-Route, with which token (RFC 3261 §16.6 step 4, RFC 5626 §5.3), sans-IO."""

from __future__ import annotations

from collections.abc import Callable

from edge.connections import Connection
from edge.errors import RemoteError
from edge.outbound.flows import FlowTable
from edge.outbound.path import Force, is_first_hop
from edge.sip import headers as h
from edge.sip.branch import Target
from edge.sip.forward import Routes
from edge.sip.message import Message
from edge.sip.stamping import Stamper
from edge.sip.uri import UriCache


class Recorder:
    """Decides about tokens. `behind_edges(source)` tells whether an address is that of an edge in front of us."""

    __slots__ = ("_behind_edges", "_flows", "_force", "_stamper", "_uris")

    def __init__(
        self,
        stamper: Stamper,
        flows: FlowTable,
        force: Force,
        behind_edges: Callable[[str], bool] | None,
        uris: UriCache,
    ) -> None:
        self._stamper = stamper
        self._flows = flows
        self._force = force
        self._behind_edges = behind_edges
        self._uris = uris

    def source_token(self, connection: Connection, message: Message, routes: Routes) -> bytes | None:
        """Return the token of the flow a request came by, None where it is not that of a client.

        A connection of an edge in front of us is none: the client's flow is there, and that edge recorded it.
        """
        directions = message.directions
        if directions is not None and directions.token is not None:
            return self._flows.token_of(connection) if directions.token else None
        first = (not message.repeats and b"," not in message.texts[h.VIA]) or is_first_hop(message)
        if not self._force.grants(connection, first and (routes.ob or self._contact_has_ob(message))):
            return None
        return self._flows.token_of(connection) if first or not self._is_between_servers(connection) else None

    def _contact_has_ob(self, message: Message) -> bool:
        """Whether the Contact URI carries `;ob` (RFC 5626 §5.3.2)."""
        value = message.value(h.CONTACT)
        if value is None or b";ob" not in value.lower():
            return False
        try:
            return b"ob" in self._uris.parse_bracketed(value).parameters
        except RemoteError:
            return False

    def _is_between_servers(self, connection: Connection) -> bool:
        return connection.outgoing or (self._behind_edges is not None and self._behind_edges(connection.remote[0]))

    def values(
        self, source: Connection, source_token: bytes | None, target: Target, onward: Connection, secure: bool
    ) -> list[bytes]:
        """Return the Record-Route values for a branch that leaves by `onward`, top first."""
        token = target.token
        if token is None and target.connection is not None and self._force.applies(onward):
            token = self._flows.token_of(onward)
        return self._stamper.record_routes(source, source_token, onward, token, secure)
