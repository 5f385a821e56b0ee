"""The names and addresses that are ours: for Request-URIs, Routes, sent-by, and what we tell others (sans-IO)."""

from __future__ import annotations

from collections.abc import Iterable

from edge.connections import Address, Connection
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.forward import default_port
from edge.sip.message import Message
from edge.sip.uri import SipUri, UriCache


class Addresses:
    """The names and addresses that are ours.

    `domains` in lower case, the first is the default; `listeners` (host, port) as advertised and as bound.
    """

    def __init__(self, domains: Iterable[str], listeners: Iterable[Address]) -> None:
        self.domains = tuple(domain.lower().encode("ascii") for domain in domains)
        self._domains = frozenset(self.domains)
        self._own = {(_host_bytes(host), port) for host, port in listeners}
        self._ports = {port for _, port in self._own}
        self._own |= {(domain, port) for domain in self.domains for port in self._ports}
        self._own |= {(domain, 0) for domain in self.domains}
        self.own = frozenset(self._own)
        self._facing: dict[tuple[object, Address], bytes] = {}

    def serves(self, uri: SipUri) -> bool:
        """Whether we answer for the host of `uri`: a domain of ours, or one of our addresses with its port.

        One with a maddr is to be sent there (RFC 3261 §16.5); a maddr that names us is taken off before we ask.
        """
        if uri.parameters and b"maddr" in uri.parameters:
            return False
        if uri.host in self._domains and (uri.port is None or uri.port in self._ports):
            return True
        return (uri.host, uri.port or default_port(uri)) in self.own

    def serves_sender(self, message: Message, uris: UriCache) -> bool:
        """Whether From names a user of ours; in another scheme than sip and sips it never does (RFC 3261 §16.3 step 2).

        Raises:
            RemoteError: 400 for a From that breaks the grammar.
        """
        try:
            return self.serves(uris.parse(message.address(h.FROM).uri))
        except RemoteError as error:
            if error.status == 416:
                return False
            raise

    def is_domain(self, host: bytes) -> bool:
        """Whether `host` is one of our domains."""
        return host in self._domains

    def aor(self, uri: SipUri) -> bytes:
        """Return the AOR key of a URI we serve; one of our addresses stands for the default domain."""
        if uri.host in self._domains:
            return uri.aor()
        return uri.aor().rpartition(b"@")[0] + b"@" + self.domains[0]

    def wrote(self, host: bytes, port: int | None) -> bool:
        """Whether this is a sent-by we write into our Vias."""
        return (host, port or 5060) in self.own

    def facing(self, connection: Connection) -> bytes:
        """Return host:port to give to the peer of a connection: what its listener advertises, else our address."""
        listener = connection.listener
        key = (listener, connection.local)
        known = self._facing.get(key)
        if known is None:
            host, port = listener.advertised if listener is not None else connection.local
            if host in ("0.0.0.0", "::"):
                host = connection.local[0]
            known = b"%b:%d" % (_host_bytes(host), port)
            if len(self._facing) >= 4096:
                self._facing.clear()
            self._facing[key] = known
            self.own |= {(_host_bytes(host), port)}
        return known


def _host_bytes(host: str) -> bytes:
    text = host.lower().encode("ascii")
    return b"[" + text + b"]" if b":" in text else text
