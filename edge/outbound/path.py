"""What an edge reads in a REGISTER, and whether a token goes into its Path (RFC 5626 §5.1, RFC 3327), sans-IO."""

from __future__ import annotations

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.grammar import split_list, unfold
from edge.sip.message import Message


class Force:
    """Whether clients get tokens unasked. The one place of this decision: `mode` is that of `outbound.force`."""

    __slots__ = ("_transports",)

    def __init__(self, mode: str) -> None:
        chosen = {"off": (), "streams": tuple(t for t in Transport if t.reliable), "all": tuple(Transport)}[mode]
        self._transports: frozenset[Transport] = frozenset(chosen)

    def applies(self, connection: Connection) -> bool:
        """Whether a client on this connection gets a token although nothing in its request asks for one."""
        return connection.transport in self._transports


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
