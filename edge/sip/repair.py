"""Request-URIs that others have changed, put right before a request is routed (RFC 3261 §16.4), sans-IO."""

from __future__ import annotations

from edge.connections import Connection
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.forward import default_port
from edge.sip.grammar import normalize_host, split_list, unfold
from edge.sip.message import Message
from edge.sip.uri import SipUri, UriCache


def repair_uri(connection: Connection, message: Message, uri: SipUri, addresses: Addresses, uris: UriCache) -> SipUri:
    """Undo what a strict router did to `message`, or take a maddr off that names us; returns the Request-URI to use.

    Raises:
        RemoteError: 400, 416 for a last Route value that cannot be a Request-URI.
    """
    if b"lr" in uri.parameters and message.first[h.ROUTE] and addresses.serves(uri):
        return _undo_strict_routing(message, uris)
    if b"maddr" in uri.parameters and _names_us(connection, uri, addresses):
        message.uri = _without_maddr(uri)
        return uris.parse(message.uri)
    return uri


def _undo_strict_routing(message: Message, uris: UriCache) -> SipUri:
    """Put the Request-URI, a Record-Route value of ours, back on top of the Route set and take the last one instead."""
    rows = message.indexes(h.ROUTE)
    values = [item for row in rows for item in split_list(unfold(message.value_at(row)))]
    last = uris.parse_bracketed(values.pop())
    values.insert(0, b"<" + message.uri + b">")
    first = rows[0]
    message.lines[first] = b"Route: " + b", ".join(values)
    message.texts[h.ROUTE] = message.lines[first][6:]
    for row in rows[1:]:
        message.lines[row] = b""
    message.repeats = [entry for entry in message.repeats if entry[0] != h.ROUTE]
    message.uri = last.target()
    return uris.parse(message.uri)


def _names_us(connection: Connection, uri: SipUri, addresses: Addresses) -> bool:
    """Whether maddr and port are ours and the request came by the transport, where the URI names one."""
    try:
        host = normalize_host(uri.parameters[b"maddr"])
    except RemoteError:
        return False
    port = uri.port or default_port(uri)
    named = uri.transport.upper()
    return (host, port) in addresses.own and named in (b"", connection.transport.name.encode("ascii"))


def _without_maddr(uri: SipUri) -> bytes:
    start = uri.raw.rfind(b"@") + 1
    host, *parameters = uri.raw[start:].split(b";")
    kept = [item for item in parameters if item.partition(b"=")[0].lower() not in (b"maddr", b"transport")]
    if uri.port is not None:
        host = host.rpartition(b":")[0]
    return uri.raw[:start] + b";".join((host, *kept))
