"""Ways out for SIP requests that have no flow: resolver, UDP, TCP and TLS (RFC 3263, RFC 3261 §18.1.1).

Connections we opened are kept and used again for the same destination, and so are those of peers who show a
certificate and allow it by `alias` (RFC 5923). Towards addresses of nobody we know, and that
the operator did not allow (loopback, private, multicast …), nothing leaves (SIP-TRP-15).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Protocol

from edge.certificates import names_one_of
from edge.connections import Connection, Handler, Listener, Transport
from edge.datagram import UdpPort
from edge.dialer import Dialer
from edge.sip.branch import Opener, Reached
from edge.sip.resolver import Destination
from edge.sip.uri import SipUri

_LARGEST_DATAGRAM = 1300  # RFC 3261 §18.1.1
_MOST_KEPT = 1024
FORBIDDEN = 403


class Locator(Protocol):
    """Finds destinations (`edge.sip.resolver.Resolver`)."""

    def resolve(self, uri: SipUri, done: Callable[[list[Destination], int], None]) -> None: ...

    def avoid(self, address: str, port: int, transport: Transport, seconds: float) -> None: ...


class SipReach:
    """Opens, finds and reuses connections towards destinations."""

    def __init__(
        self,
        *,
        resolver: Locator,
        dialer: Dialer,
        ports: Sequence[UdpPort],
        listener: Listener,
        handler: Callable[[Connection], Handler],
        allowed: Callable[[str], bool],
        may_dial: bool = True,
    ) -> None:
        self._resolver = resolver
        self._dialer = dialer
        self._ports = ports
        self._listener = listener
        self._handler = handler
        self._allowed = allowed
        self._may_dial = may_dial
        self._open: dict[tuple[Transport, str, int, str], Connection] = {}
        self._aliases: dict[tuple[str, int], Connection] = {}  # opened by peers, by the address they advertise

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None:
        """Find ways to the host of a URI for a request of about `size` octets."""

        def done(destinations: list[Destination], status: int) -> None:
            permitted = [d for d in destinations if self._permits(d)]
            if destinations and not permitted:
                reached([], FORBIDDEN)
                return
            reached([way for d in permitted for way in self._ways(d, size)], status)

        self._resolver.resolve(uri, done)

    def reach_existing(self, uri: SipUri, reached: Reached) -> None:
        """Find ways to the host of a URI that need no connection to be opened: streams there are, and UDP."""

        def done(destinations: list[Destination], _status: int) -> None:
            ways = [way for d in destinations if self._needs_none(d) for way in self._ways(d, 0)]
            reached(ways, 480)

        self._resolver.resolve(uri, done)

    def _needs_none(self, destination: Destination) -> bool:
        if not self._permits(destination):
            return False
        return destination.transport is Transport.UDP or self._known(destination) is not None

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection:
        """Return the UDP flow for an answer to `host`:`port` from the socket that `connection` belongs to."""
        for udp in self._ports:
            if udp.listener is connection.listener:
                return udp.flow_to(host, port)
        return connection

    def avoid(self, connection: Connection, seconds: float) -> None:
        """Leave the address of a connection out of later look-ups for a while (RFC 3261 §21.5.4)."""
        self._resolver.avoid(connection.remote[0], connection.remote[1], connection.transport, seconds)

    def _permits(self, destination: Destination) -> bool:
        if not is_unicast(destination.address) or not destination.port:
            return False
        if self._allowed(destination.address) or is_public(destination.address):
            return True
        return self._known(destination) is not None

    def _known(self, destination: Destination) -> Connection | None:
        """Return a connection to this very address that exists already."""
        if destination.transport is Transport.UDP:
            for port in self._ports:
                if port.speaks_to(destination.address):
                    flow = port.known_flow(destination.address, destination.port)
                    if flow is not None:
                        return flow
            return None
        known = self._open.get(_key(destination))
        if known is None or known.closed:
            known = self._aliased(destination) if self._aliases and destination.transport is Transport.TLS else None
        return known

    def note_alias(self, connection: Connection, port: int) -> None:
        """Use a connection that its peer opened for requests to it: to its address and this port (RFC 5923 §8.2)."""
        if len(self._aliases) >= _MOST_KEPT:
            self._aliases = {key: held for key, held in self._aliases.items() if not held.closed}
        self._aliases[connection.remote[0], port] = connection

    def _aliased(self, destination: Destination) -> Connection | None:
        """Return a peer's connection whose certificate names the destination; those of clients are flows, not ours."""
        place = destination.address, destination.port
        known = self._aliases.get(place)
        if known is None:
            return None
        if known.closed:
            del self._aliases[place]
            return None
        named = names_one_of(known.identities, destination.server_name or destination.address)
        return known if named and not known.registered else None

    def _is_client(self, destination: Destination) -> bool:
        """Whether somebody registered from there: such a one is not dialled."""
        known = self._known(destination)
        return known is not None and known.registered > 0

    def _ways(self, destination: Destination, size: int) -> list[Opener]:
        udp = destination.transport is Transport.UDP
        ways: list[Opener] = [lambda: self._connect(destination)]
        if udp and size > _LARGEST_DATAGRAM and self._may_dial and not self._is_client(destination):
            stream = Destination(Transport.TCP, destination.address, destination.port, destination.server_name)
            ways.insert(0, lambda: self._connect(stream))
        return ways

    def _connect(self, destination: Destination) -> Connection:
        known = self._known(destination)
        if known is not None:
            return known
        if destination.transport is Transport.UDP:
            port = next(p for p in self._ports if p.speaks_to(destination.address))
            return port.flow_to(destination.address, destination.port)
        connection = self._dialer.connect(
            destination.transport,
            destination.address,
            destination.port,
            _NO_HANDLER,
            listener=self._listener,
            server_name=destination.server_name,
        )
        connection.handler = self._handler(connection)
        self._open[_key(destination)] = connection
        if len(self._open) > _MOST_KEPT:
            self._open = {key: held for key, held in self._open.items() if not held.closed}
        return connection


class LateReach:
    """The reach of a server whose ports are not open yet: for those who are built before them."""

    def __init__(self) -> None:
        self._real: SipReach | None = None

    def use(self, real: SipReach) -> None:
        """Pass everything on to this one."""
        self._real = real

    @property
    def real(self) -> SipReach:
        """What does the work."""
        assert self._real is not None
        return self._real

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None:
        """See `SipReach.reach`."""
        self.real.reach(uri, size, reached)

    def reach_existing(self, uri: SipUri, reached: Reached) -> None:
        """See `SipReach.reach_existing`."""
        self.real.reach_existing(uri, reached)

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection:
        """See `SipReach.reply_flow`."""
        return self.real.reply_flow(connection, host, port)

    def avoid(self, connection: Connection, seconds: float) -> None:
        """See `SipReach.avoid`."""
        self.real.avoid(connection, seconds)

    def note_alias(self, connection: Connection, port: int) -> None:
        """See `SipReach.note_alias`."""
        self.real.note_alias(connection, port)


def _key(destination: Destination) -> tuple[Transport, str, int, str]:
    """Tell connections apart; one over TLS is for the name it was checked against alone (RFC 5922 §7.3)."""
    secure = destination.transport is Transport.TLS
    return destination.transport, destination.address, destination.port, destination.server_name if secure else ""


class _NoHandler:
    """Stands in until the real handler is made, which needs the connection."""

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Nothing arrives before the handler is in place."""

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """Nothing arrives before the handler is in place."""
        return False

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Nothing was sent before the handler is in place."""

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Nothing was lost before the handler is in place."""


_NO_HANDLER = _NoHandler()


def is_unicast(address: str) -> bool:
    """Whether an address can be a peer's: not unspecified, multicast or broadcast."""
    ip = ipaddress.ip_address(address)
    return not (ip.is_unspecified or ip.is_multicast or address == "255.255.255.255")


def is_public(address: str) -> bool:
    """Whether an address is a public one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global
