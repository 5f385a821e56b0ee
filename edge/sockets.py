"""The sockets of the configured addresses, bound before anything else is done; how those of connections are set."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

from edge.config import Listen
from edge.errors import ConfigError

log = logging.getLogger("edge.server")

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

Bound = tuple[Listen, socket.socket, socket.socket | None]


def bind_all(listens: Sequence[Listen], source: str) -> list[Bound]:
    """Bind TCP and, where it is served, UDP on the same port of each address (RFC 3261 §18.2.1).

    An unspecified IPv6 address is left out on a machine without IPv6.

    Raises:
        ConfigError: one cannot be bound; the others are closed again.
    """
    bound: list[Bound] = []
    for index, listen in enumerate(listens):
        try:
            stream, datagram = _bind_pair(listen)
        except OSError as error:
            if listen.host == "::" and error.errno in _NO_IPV6 and bound:
                log.warning("no IPv6 on this machine, bind=%s left out", listen.bind)
                continue
            for _, one, other in bound:
                one.close()
                if other is not None:
                    other.close()
            reason = f"cannot listen on {listen.bind}: {error.strerror}"
            raise ConfigError(source, f"listen[{index}].bind", reason) from error
        bound.append((listen, stream, datagram))
    return bound


def _bind_pair(listen: Listen) -> tuple[socket.socket, socket.socket | None]:
    stream = bind_stream(listen.host, listen.port)
    if "udp" not in listen.transports:
        return stream, None
    try:
        return stream, bind_datagram(listen.host, stream.getsockname()[1])
    except OSError:
        stream.close()
        raise


def bind_stream(host: str, port: int) -> socket.socket:
    """Bind a TCP socket for listening. Raises OSError."""
    return _bind(host, port, socket.SOCK_STREAM)


def tune_stream(sock: socket.socket, patience: float) -> None:
    """Prepare a TCP connection: nothing waits to be sent, and a peer that is gone without a word is found out.

    `patience`: seconds after which a receiver that takes nothing has failed (stalled: that we find out ourselves). The
    system waits half as long again for what was sent to be acknowledged (timed_out), and asks for a peer that nothing
    is sent to with its keep-alives.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(patience * 1500) + 1000)


def bind_datagram(host: str, port: int) -> socket.socket:
    """Bind a UDP socket. Raises OSError."""
    return _bind(host, port, socket.SOCK_DGRAM)


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """IPv6 is IPv6 alone; a TCP port is free again as soon as its listener is gone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
