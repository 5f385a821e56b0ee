"""Connections we open: name look-up, address filter, TCP, TLS, with one time limit over all of it.

`connect` returns at once; the connection takes `send` while it is coming up. When it does not, its handler is told by
`handle_lost` with one of: not_found, refused_target, refused, unreachable, timed_out, tls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable

from edge.certificates import names_host
from edge.connections import Address, Connection, ConnectionTable, Handler, Listener, Transport
from edge.sockets import tune_stream
from edge.stream import LINGER_S, StreamConnection

_CONNECT_S = 10.0
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Dialer:
    """Opens TCP and TLS connections. `tls` is asked for the context at each dial, so that a reload is seen."""

    def __init__(
        self, table: ConnectionTable, tls: Callable[[], ssl.SSLContext], timeout_s: float = _CONNECT_S
    ) -> None:
        self._table = table
        self._tls = tls
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(
        self,
        transport: Transport,
        host: str,
        port: int,
        handler: Handler,
        *,
        listener: Listener | None = None,
        server_name: str = "",
        check_address: Callable[[str], bool] = lambda address: True,
        locate: Callable[[str, bool], Awaitable[list[Address]]] | None = None,
    ) -> Connection:
        """Open a connection to a host name or address. `check_address` may refuse what a name resolved to.

        `locate` (host, whether secure) may name the servers of a host, (name, port) in the order to try them.
        """
        connection = StreamConnection(self._table, transport, (host, port), ("", 0), listener, handler)
        connection.outgoing = True
        if transport.secure:
            name = server_name or host
            connection.verify_peer = lambda session: names_host(session.getpeercert() or {}, name)
        task = self._table.loop.create_task(
            self._open(connection, [(host, port)], server_name or host, check_address, locate)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection

    async def _open(
        self,
        connection: StreamConnection,
        places: list[Address],
        name: str,
        allowed: Callable[[str], bool],
        locate: Callable[[str, bool], Awaitable[list[Address]]] | None,
    ) -> None:
        reason = "timed_out"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                if locate is not None:
                    places = await locate(places[0][0], connection.transport.secure)
                if not places:
                    reason = "not_found"
                for host, port in places:
                    reason = await self._try_addresses(connection, host, port, name, allowed)
                    if not reason:
                        break
        if reason and not connection.closed:
            connection.dial_failed(reason)

    async def _try_addresses(
        self, connection: StreamConnection, host: str, port: int, name: str, allowed: Callable[[str], bool]
    ) -> str:
        try:
            found = await self._table.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: no name at all, with labels that are empty or too long
            return "not_found"
        addresses = [(info[0], info[4]) for info in found if allowed(str(info[4][0]))]
        reason = "refused_target" if found else "not_found"
        for family, address in addresses:
            if connection.closed:
                return ""
            reason = await self._try_address(connection, family, (str(address[0]), int(address[1])), name)
            if not reason:
                break
        return reason

    async def _try_address(self, connection: StreamConnection, family: int, address: Address, name: str) -> str:
        """Dial one address; returns why it does not come up.

        The loop makes the socket: one of ours would stay open in name when a connection ends before uvloop has noted
        it, and be closed once more, by then under the number of another connection.
        """
        loop, secure, protocol = self._table.loop, connection.transport.secure, connection.as_protocol
        host, port = address
        if secure and not _is_name(name):
            return "tls"
        try:
            if secure:
                made = await loop.create_connection(
                    protocol,
                    host,
                    port,
                    family=family,
                    ssl=self._tls(),
                    server_hostname=name,
                    ssl_shutdown_timeout=LINGER_S,
                )
            else:
                made = await loop.create_connection(protocol, host, port, family=family)
        except (OSError, ssl.SSLError) as error:
            return _reason(error)
        sock = made[0].get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may have ended already
            if sock is not None:
                tune_stream(sock, self._table.stall_timeout)
        return ""

    async def close(self) -> None:
        """Give up on connections that are still coming up."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _is_name(name: str) -> bool:
    """Whether a certificate could have this name; the loop would leave the socket of any other open."""
    try:
        return bool(name.encode("idna")) and not name.startswith(".")
    except UnicodeError:
        return False


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return "tls"
    if isinstance(error, ConnectionError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "timed_out"
    return "unreachable" if error.errno in _UNREACHABLE else "refused"
