"""UDP on the shared port: one socket, many flows, and the ICMP errors that come back for them.

A flow is a `Connection` made for a remote address that spoke SIP to us, or that we sent a request to. STUN and
keep-alive bytes make none. Errors are read from the socket's error queue, which names the peer that was not reached.

    event loop ── readable? ──► epoll ── octets or errors ──► socket

The loop watches an epoll descriptor with the socket in it, which is readable whenever there is something of either
kind. Watching the socket itself would be the end of it under uvloop: libuv stops polling a descriptor that reports an
error.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from typing import Any, Protocol

from edge.connections import Address, Connection, ConnectionTable, Handler, Listener, Transport
from edge.demux import DatagramKind, classify_datagram

log = logging.getLogger("edge.conn")

SocketAddress = tuple[Any, ...]
"""As the socket module has it: host and port, and for IPv6 two numbers more."""

_LARGEST = 65535
_READS_IN_A_ROW = 64
_OCTETS_IN_A_ROW = 32768
_SOCKET_BUFFER = 4 * 1024 * 1024
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_ICMP_FAILURES = (3, 12)  # unreachable, parameter problem (RFC 792)
_ICMP6_FAILURES = (1, 4)  # (RFC 4443 §3.1, §3.4)


class DatagramHandler(Handler, Protocol):
    """The protocol behind a UDP port: `receive_data` gets one whole datagram."""


class UdpFlow(Connection):
    """One remote address on one UDP socket."""

    __slots__ = ("_address", "_port")

    def __init__(self, port: UdpPort, address: SocketAddress) -> None:
        remote = (address[0], address[1])
        super().__init__(port.table, Transport.UDP, remote, port.local_for(remote), port.listener, port.handler)
        self._port = port
        self._address = address

    def send(self, data: bytes) -> None:
        """Queue one datagram."""
        if not self.closed:
            self.octets_out += len(data)
            self._port.send_to(data, self)

    @property
    def address(self) -> SocketAddress:
        """The socket address datagrams go to."""
        return self._address

    def close(self, reason: str) -> None:
        """Forget the flow."""
        self._port.forget(self)
        self.table.end(self, reason, failed=False)

    def fail(self, reason: str) -> None:
        """Forget the flow, as a failure."""
        self._port.forget(self)
        self.table.end(self, reason, failed=True)


class UdpPort:
    """One UDP socket of a listener. `answer_stun(datagram, source)` returns what to send back, or None."""

    def __init__(
        self,
        table: ConnectionTable,
        listener: Listener,
        sock: socket.socket,
        handler: DatagramHandler,
        answer_stun: Callable[[bytes, Address], bytes | None],
        flow_limit: int,
    ) -> None:
        self.table = table
        self.listener = listener
        self.handler = handler
        self.flows: dict[object, UdpFlow] = {}
        self._socket = sock
        self._answer_stun = answer_stun
        self._flow_limit = flow_limit
        self._locals: dict[str, Address] = {}
        self._out: list[tuple[bytes, UdpFlow]] = []
        self._view = memoryview(bytearray(_LARGEST))
        self._loop: asyncio.AbstractEventLoop = table.loop
        _prepare(sock)
        self._epoll = select.epoll(1)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._loop.add_reader(self._epoll.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading and close the socket."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._socket.close()

    def _readable(self) -> None:
        receive, view = self._socket.recvfrom_into, self._view
        heard = 0
        try:
            for _ in range(_READS_IN_A_ROW):
                size, address = receive(view)
                heard += size or 1
                self._receive(view[:size].tobytes(), address)
                if heard > _OCTETS_IN_A_ROW:  # the rest in the next turn of the loop
                    return
        except BlockingIOError:
            if not heard:  # woken for an error alone, which somebody else's `sendto` has taken note of
                self._read_errors()
        except OSError:
            self._read_errors()

    def _receive(self, data: bytes, address: SocketAddress) -> None:
        kind = classify_datagram(data)
        if kind is DatagramKind.SIP:
            flow = self.flows.get(address) or self._open(address)
            now = flow.last_received = self.table.now()
            flow.octets_in += len(data)
            self.handler.receive_data(flow, data, now)
            return
        self._count(kind.value)
        known = self.flows.get(address)
        if known is not None:
            known.last_received = self.table.now()
        if kind is DatagramKind.STUN:
            answer = self._answer_stun(data, (address[0], address[1]))
            if answer is not None:
                self._send(answer, address)

    def _count(self, label: str) -> None:
        counts = self.table.datagrams
        counts[label] = counts.get(label, 0) + 1

    def _open(self, address: SocketAddress) -> UdpFlow:
        """Make a flow; past the limit it is used once and not remembered."""
        flow = UdpFlow(self, address)
        if self.table.flows < self._flow_limit:
            self.flows[address] = flow
            self.table.add(flow)
        else:
            self._count("flow_limit")
        return flow

    def flow_to(self, host: str, port: int) -> UdpFlow:
        """Return the flow to a remote address, a new one where there is none."""
        address: SocketAddress = (host, port)
        if self._socket.family == socket.AF_INET6:
            address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][4]
        return self.flows.get(address) or self._open(address)

    def known_flow(self, host: str, port: int) -> UdpFlow | None:
        """Return the flow to a remote address if there is one."""
        if self._socket.family == socket.AF_INET6:
            return self.flows.get((host, port, 0, 0))
        return self.flows.get((host, port))

    def speaks_to(self, host: str) -> bool:
        """Whether an IP address is of this socket's family."""
        return (":" in host) == (self._socket.family == socket.AF_INET6)

    def forget(self, flow: UdpFlow) -> None:
        """Take a flow out of the map."""
        if self.flows.get(flow.address) is flow:
            del self.flows[flow.address]

    def send_to(self, data: bytes, flow: UdpFlow) -> None:
        """Send one datagram on behalf of a flow at the end of this turn of the loop.

        All of a turn leave together: a peer that serves many of them is woken once.
        """
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append((data, flow))

    def _flush(self) -> None:
        """Send what was queued in this turn; what the kernel refuses fails its flow."""
        out, self._out = self._out, []
        for data, flow in out:
            if not self._send(data, flow.address):
                flow.fail("send_error")

    def _send(self, data: bytes, address: SocketAddress) -> bool:
        for _ in range(2):  # a pending ICMP error of somebody else may be reported by the first call
            try:
                self._socket.sendto(data, address)
            except BlockingIOError:
                self._count("send_buffer_full")
                return True
            except OSError as error:
                log.debug("udp send failed error=%s", error.errno)
                self._read_errors()
            else:
                return True
        return False

    def local_for(self, remote: Address) -> Address:
        """Return the local address datagrams to `remote` leave from; asks the kernel where we listen on all."""
        address = self._socket.getsockname()
        if address[0] not in ("0.0.0.0", "::"):
            return address[0], address[1]
        known = self._locals.get(remote[0])
        if known is None:
            with socket.socket(self._socket.family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect((remote[0], remote[1] or 9))
                    known = (probe.getsockname()[0], address[1])
                except OSError:
                    known = (address[0], address[1])
            if len(self._locals) >= 4096:
                self._locals.clear()
            self._locals[remote[0]] = known
        return known

    def _read_errors(self) -> None:
        """Blame ICMP errors on the flows they are about (RFC 3261 §18.4)."""
        while True:
            try:
                _, ancillary, _, address = self._socket.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            flow = self.flows.get(address)
            if flow is not None and any(_is_unreachable(data) for _, _, data in ancillary):
                self._count("unreachable")
                flow.fail("unreachable")


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def _is_unreachable(data: bytes) -> bool:
    """Whether an error queue entry says that datagrams do not arrive; TTL exceeded and source quench do not count."""
    if len(data) < 8:
        return False
    origin, kind = data[4], data[5]  # struct sock_extended_err: errno (4), origin, type, code …
    return (origin == 2 and kind in _ICMP_FAILURES) or (origin == 3 and kind in _ICMP6_FAILURES)
