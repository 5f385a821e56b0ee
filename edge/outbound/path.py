"""What an edge reads in a REGISTER, and whether a token goes into its Path (RFC 5626 §5.1, RFC 3327), sans-IO."""

from __future__ import annotations

from collections.abc import Iterable

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.networks import Network, NetworkSet
from edge.sip import headers as h
from edge.sip.grammar import split_list, unfold
from edge.sip.message import Message


class Force:
    """Whether clients get tokens unasked: the one place of this decision, for Path and Record-Route alike.

    A mode is that of `outbound.force`: "off", "streams", "all", or "never", which leaves tokens out even where a client
    asks. `listeners` has one for each listener by number, "" for `mode`; `sources` for networks, the narrowest decides.
    A source goes before its listener.
    """

    __slots__ = ("_listeners", "_mode", "_sources")

    def __init__(self, mode: str, listeners: Iterable[str] = (), sources: Iterable[tuple[Network, str]] = ()) -> None:
        self._mode = mode
        self._listeners = tuple(given or mode for given in listeners)
        if all(given == mode for given in self._listeners):
            self._listeners = ()
        narrowest_first = sorted(sources, key=lambda rule: -rule[0].prefixlen)
        self._sources = [(NetworkSet([network]), given) for network, given in narrowest_first]

    def applies(self, connection: Connection) -> bool:
        """Whether a client on this connection gets a token although nothing in its request asks for one."""
        mode = self._mode_of(connection)
        return mode == "all" or (mode == "streams" and connection.transport is not Transport.UDP)

    def grants(self, connection: Connection, asked: bool) -> bool:
        """Whether a client on this connection gets a token; `asked` says whether its request asks for one."""
        return (asked and self._mode_of(connection) != "never") or self.applies(connection)

    def _mode_of(self, connection: Connection) -> str:
        for networks, mode in self._sources:
            if networks.contains(connection.remote[0]):
                return mode
        listener = connection.listener
        if self._listeners and listener is not None and listener.index < len(self._listeners):
            return self._listeners[listener.index]
        return self._mode


def read_contacts(message: Message) -> list[h.NameAddr]:
    """Return the Contacts that name a URI, none for `*`.

    Raises:
        RemoteError: 400 for one that breaks the grammar.
    """
    values = [item for row in message.values(h.CONTACT) for item in split_list(unfold(row))]
    return [h.parse_name_addr(value) for value in values if value.strip() != b"*"]


def is_first_hop(message: Message) -> bool:
    """Whether the request has exactly one Via value: it comes from a client (RFC 5626 §5.1)."""
    return len(message.indexes(h.VIA)) == 1 and len(split_list(unfold(message.value(h.VIA) or b""))) == 1


def wants_token(contacts: list[h.NameAddr]) -> bool:
    """Whether a Contact asks for a flow by reg-id, or names an instance (OB-EREG-01, 06, 07)."""
    return any(
        contact.parameter(b"reg-id") is not None or contact.parameter(b"+sip.instance") is not None
        for contact in contacts
    )


def clears_all(message: Message) -> bool:
    """Whether a REGISTER takes all bindings of its AOR away: `Contact: *` (RFC 3261 §10.2.2)."""
    return (message.value(h.CONTACT) or b"").strip() == b"*"


def set_flow_timer(message: Message, seconds: int) -> None:
    """Leave exactly one Flow-Timer in a response, with our value; none where `seconds` is 0 (RFC 5626 §5.4)."""
    if message.first[h.FLOW_TIMER]:
        last_via = message.indexes(h.VIA)[-1]
        for index in reversed(message.indexes(h.FLOW_TIMER)):
            if index > last_via:
                del message.lines[index]
    if seconds:
        line = b"Flow-Timer: %d" % seconds
        for index in range(len(message.lines) - 1, 0, -1):
            if message.lines[index][:15].lower() == b"content-length:":
                message.lines[index] = line + b"\r\n" + message.lines[index]
                return
        message.lines.append(line)


def requires_outbound(message: Message) -> bool:
    """Whether a registrar says that it used outbound (RFC 5626 §6)."""
    if not message.first[h.REQUIRE]:
        return False
    try:
        return any(tag.lower() == b"outbound" for tag in h.parse_tokens(message.values(h.REQUIRE)))
    except RemoteError:
        return False
