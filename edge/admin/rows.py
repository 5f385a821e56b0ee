"""The rows of `edge show`, made from the server's own objects when somebody asks.

Every list begins with a copy of the references to its objects, since they come and go while it is made; each row reads
its object at that moment. Nothing here changes anything but `disconnect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edge.admin.api import AdminSource, Row
from edge.connections import Connection, ConnectionTable, Handler, format_address
from edge.msrp.relay import Relay
from edge.msrp.session import Session
from edge.outbound.flows import Flow, FlowTable
from edge.sip.branch import Branch
from edge.sip.core import SipCore
from edge.sip.location import Binding
from edge.sip.proxy import ProxyContext
from edge.sip.transaction import ClientTransaction, ServerTransaction
from edge.storage.base import Storage
from edge.stream import StreamConnection
from edge.websocket import WebSocketStream

_LONGEST_NAME = 64  # of a connection, in octets


class Source(AdminSource):
    """The running server. Parts that it does not have, by its role and protocols, are None and their lists empty.

    `listening` and `draining` say whether the ports are open and whether the end has begun.
    """

    def __init__(
        self,
        table: ConnectionTable,
        flows: FlowTable,
        storage: Storage,
        *,
        core: SipCore | None = None,
        relay: Relay | None = None,
        listening: Callable[[], bool],
        draining: Callable[[], bool],
    ) -> None:
        self._table = table
        self._flows = flows
        self._storage = storage
        self._core = core
        self._relay = relay
        self._listening = listening
        self._draining = draining
        self._started_at = table.now()

    def connections(self) -> Iterator[Row]:
        """Every connection and UDP flow; `uses` counts open transactions, `registered` registrations and sessions."""
        now = self._table.now
        return (connection_row(c, now()) for c in list(self._table.connections.values()) if not c.closed)

    def flows(self) -> Iterator[Row]:
        """The connections that somebody registered over, or was told a Flow-Timer on."""
        now = self._table.now
        return (flow_row(flow, flow.connection, now()) for flow in list(self._flows) if flow.connection is not None)

    def registrations(self) -> Iterator[Row]:
        """Every binding, those of one AOR together."""
        location, now = (self._core.location if self._core else None), self._table.now
        for aor in location.aors() if location else ():
            for binding in list(location.bindings(aor)) if location else ():
                yield binding_row(binding, now())

    def sessions(self) -> Iterator[Row]:
        """MSRP sessions of this relay."""
        now = self._table.now
        return (session_row(session, now()) for session in (self._relay.table if self._relay else ()))

    def transactions(self) -> Iterator[Row]:
        """Server transactions, then client transactions."""
        layer = self._core.transactions if self._core else None
        for server in list(layer.servers.values()) if layer else ():
            yield server_row(server)
        for client in list(layer.clients.values()) if layer else ():
            yield client_row(client)

    def numbers(self) -> dict[str, int]:
        """Count without looking at anything singly."""
        core, relay = self._core, self._relay
        return {
            "connections": len(self._table.connections),
            "flows": len(self._flows),
            "registrations": core.location.count if core else 0,
            "sessions": len(relay.table) if relay else 0,
            "transactions": len(core.transactions.servers) + len(core.transactions.clients) if core else 0,
        }

    def disconnect(self, name: str) -> bool:
        """Close a connection in order: what is queued for it still leaves."""
        connection = self._table.by_name(name) if name.isascii() and len(name) <= _LONGEST_NAME else None
        if connection is None:
            return False
        connection.close("operator")
        return True

    def health(self) -> tuple[bool, Row]:
        """Alive, as whoever can answer is; `uptime` in seconds."""
        return True, {"status": "alive", "uptime": round(self._table.now() - self._started_at, 1)}

    def readiness(self) -> tuple[bool, Row]:
        """Listening, storage healthy, not draining; `reasons` says what is wrong, in words every stranger may read."""
        troubles = {
            "not listening": not self._listening(),
            "storage down": not self._storage.healthy,
            "draining": self._draining(),
        }
        reasons = [reason for reason, applies in troubles.items() if applies]
        return not reasons, {"status": "not ready" if reasons else "ready", "reasons": reasons}


def connection_row(connection: Connection, now: float) -> Row:
    """Describe a connection; `queued`, `received` and `sent` are octets."""
    return {
        "id": connection.name,
        "transport": connection.transport.name.lower(),
        "protocol": protocol_of(connection.handler),
        "remote": format_address(connection.remote),
        "local": format_address(connection.local),
        "state": _state(connection),
        "uses": connection.uses,
        "age": _seconds(now - connection.opened_at),
        "idle": _seconds(now - connection.last_received),
        "queued": connection.unsent(),
        "registered": connection.registered,
        "received": connection.octets_in,
        "sent": connection.octets_out,
    }


def flow_row(flow: Flow, connection: Connection, now: float) -> Row:
    """Describe a flow; its id is that of its connection, as in the events."""
    return {
        "id": connection.name,
        "token": _text(connection.token or b""),
        "transport": connection.transport.name.lower(),
        "remote": format_address(connection.remote),
        "state": flow.state.name.lower(),
        "connection": connection.name,
        "age": _seconds(now - connection.opened_at),
        "idle": _seconds(now - connection.last_received),
        "registrations": len(flow.registrations),
        "flow_timer": flow.flow_timer,
    }


def binding_row(binding: Binding, now: float) -> Row:
    """Describe a binding; `flow` is the token of the flow it came over, `q` goes from 0 to 1."""
    connection = binding.connection
    return {
        "aor": _text(binding.aor),
        "contact": _text(binding.contact),
        "instance": _text(binding.instance),
        "reg_id": binding.reg_id,
        "q": binding.q / 1000,
        "expires": _seconds(binding.expires_at - now),
        "flow": _text(binding.flow),
        "connection": connection.name if connection is not None else None,
        "user_agent": _text(binding.user_agent),
        "path": [_text(value) for value in binding.path],
    }


def session_row(session: Session, now: float) -> Row:
    """Describe an MSRP session; `far` are the connections bound to its far side."""
    connection = session.owner.connection
    return {
        "id": session.name,
        "user": session.user,
        "connection": connection.name,
        "remote": format_address(connection.remote),
        "expires": _seconds(session.expires_at - now),
        "age": _seconds(now - session.opened_at),
        "far": [far.handler.connection.name for far in session.far],
    }


def server_row(server: ServerTransaction) -> Row:
    """Describe a server transaction; its id is what the client's Via says."""
    identifier, _, method = server.key.rpartition(b"|")
    context = server.user
    return {
        "id": _text(identifier),
        "kind": "server",
        "method": _text(method),
        "state": server.state.name.lower(),
        "uri": _text(context.message.uri) if isinstance(context, ProxyContext) else "",
        "connection": server.connection.name,
    }


def client_row(client: ClientTransaction) -> Row:
    """Describe a client transaction; its id is the branch we gave it."""
    method, _, rest = client.request.partition(b" ")  # an INVITE with a final answer has forgotten its request
    branch = client.user
    uri = branch.target.uri if isinstance(branch, Branch) else rest.partition(b" ")[0]
    return {
        "id": _text(client.branch),
        "kind": "client",
        "method": _text(method or b"INVITE"),
        "state": client.state.name.lower(),
        "uri": _text(uri),
        "connection": client.connection.name,
    }


def protocol_of(handler: Handler) -> str:
    """Say which protocol a connection turned out to speak, by the package of its handler; empty while nobody knows."""
    inside = handler.inner if isinstance(handler, WebSocketStream) else handler
    package = type(inside).__module__.split(".")[1:2]
    return package[0] if package in (["sip"], ["msrp"]) else ""


def _state(connection: Connection) -> str:
    """Say what holds a connection up: `blocked` its receiver, `held` somebody it feeds; `new` has said nothing yet."""
    if not connection.writable:
        return "blocked"
    if isinstance(connection, StreamConnection) and connection.reading_paused:
        return "held"
    return "open" if connection.first_message or connection.outgoing else "new"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _seconds(value: float) -> float:
    return round(max(0.0, value), 1)
