"""The UDP port: flows, what is no SIP, and errors that come back, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Self

import pytest
import uvloop

from edge.connections import Transport
from edge.datagram import UdpPort
from edge.sockets import bind_datagram
from tests.connections.conftest import Recorder, World, make_world
from tests.ua.wait import eventually, within

SIP = b"OPTIONS sip:example.com SIP/2.0\r\n\r\n"
STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Body = Callable[[World, UdpPort, Recorder], Awaitable[None]]


class Peer:
    """A UDP socket on whichever loop runs: uvloop has no `sock_sendto`."""

    def __init__(self, port: tuple[str, int]) -> None:
        self.port = port
        self.socket = socket.socket(socket.AF_INET6 if ":" in port[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((port[0], 0))
        self.local: tuple[str, int] = self.socket.getsockname()[:2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.socket.sendto(datagram, self.port)

    async def read_from(self) -> tuple[bytes, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self.socket.fileno(), lambda: readable.done() or readable.set_result(None))
        try:
            await within(readable)
        finally:
            loop.remove_reader(self.socket.fileno())
        data, address = self.socket.recvfrom(65536)
        return data, address[:2]

    async def read(self) -> bytes:
        return (await self.read_from())[0]


class Where:
    index = 3
    address = ("127.0.0.1", 0)
    advertised = ("edge.example.com", 5060)


def run(loop: Callable[[], asyncio.AbstractEventLoop], body: Body, host: str = "127.0.0.1", flows: int = 100) -> None:
    """Run `body` with a UDP port of its own."""

    async def whole() -> None:
        here, recorder = make_world(), Recorder()
        sock = bind_datagram(host, 0)
        port = UdpPort(here.table, Where(), sock, recorder, lambda data, source: b"stun %d" % source[1], flows)
        try:
            await body(here, port, recorder)
        finally:
            port.close()
            await here.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(whole())


def address_of(port: UdpPort) -> tuple[str, int]:
    return port._socket.getsockname()[:2]


@LOOPS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_flow_is_made_once_for_each_address_and_answers_from_the_same_socket(
    loop: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        with Peer(address_of(port)) as one, Peer(address_of(port)) as other:
            recorder.on_data = lambda connection, data: connection.send(b"from %d" % connection.remote[1])
            for peer in (one, other, one):
                peer.send(SIP)
                assert await peer.read_from() == (b"from %d" % peer.local[1], address_of(port))
            assert here.table.flows == len(port.flows) == 2
            flow = port.known_flow(*one.local)
            assert flow is not None
            assert (flow.transport, flow.remote, flow.local) == (Transport.UDP, one.local, address_of(port))
            assert flow.octets_in == 2 * len(SIP)
            assert port.flow_to(*one.local) is flow
            assert port.speaks_to(host)
            assert not port.speaks_to("::1" if host == "127.0.0.1" else "127.0.0.1")

    run(loop, body, host)


@LOOPS
def test_what_is_no_sip_makes_no_flow_and_is_counted(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        with Peer(address_of(port)) as peer:
            peer.send(b"\r\n\r\n", b"junk" * 20, STUN)
            assert await peer.read() == b"stun %d" % peer.local[1]
            assert here.table.datagrams == {"keepalive": 1, "junk": 1, "stun": 1}
            assert port.flows == {}
            assert recorder.calls == []
            # On a flow that exists they are signs of life.
            peer.send(SIP)
            await eventually(lambda: port.flows)
            flow = port.known_flow(*peer.local)
            assert flow is not None
            flow.last_received = before = flow.last_received - 10
            peer.send(b"\r\n\r\n")
            await eventually(lambda: flow.last_received > before)

    run(loop, body)


@pytest.mark.requirement("OB-FAIL-04")
@LOOPS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_unreachable_peer_fails_its_flow_and_nobody_elses(
    loop: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        with Peer(address_of(port)) as alive:
            recorder.on_data = lambda connection, data: connection.send(b"answer")
            alive.send(SIP)
            await alive.read()
            for attempt in range(1, 4):  # the port goes on after each of them
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind((host, 0))
                    gone = probe.getsockname()[:2]
                dead = port.flow_to(*gone)
                dead.send(b"is anybody there?")
                await eventually(lambda flow=dead: flow.closed)
                assert recorder.lost == ["unreachable"] * attempt
                assert port.known_flow(*gone) is None
                alive.send(SIP)
                assert await alive.read() == b"answer"
            assert here.table.flows == 1
            assert here.table.failed_by_reason == {"unreachable": 3}
            assert here.table.datagrams["unreachable"] == 3

    run(loop, body, host)


def quoted(source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """The start of a datagram from `source` to `target`, as an ICMP error gives it back (RFC 792, RFC 4443 §3)."""
    ports = struct.pack("!HHHH", source[1], target[1], 8, 0)
    if ":" in source[0]:
        addresses = [socket.inet_pton(socket.AF_INET6, address) for address, _ in (source, target)]
        return struct.pack("!IHBB", 6 << 28, 8, socket.IPPROTO_UDP, 64) + b"".join(addresses) + ports
    addresses = [socket.inet_aton(address) for address, _ in (source, target)]
    return struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, socket.IPPROTO_UDP, 0) + b"".join(addresses) + ports


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of octets."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def send_icmp(host: str, kind: int, about: bytes) -> None:
    """Send an ICMP error; the kernel fills in the checksum of version 6 alone."""
    if ":" in host:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp")) as raw:
            raw.sendto(struct.pack("!BBHI", kind, 0, 0, 0) + about, (host, 0))
        return
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        mark = checksum(struct.pack("!BBHI", kind, 0, 0, 0) + about)
        raw.sendto(struct.pack("!BBHI", kind, 0, mark, 0) + about, (host, 0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send ICMP errors")
@pytest.mark.requirement("SIP-TRP-11")
@LOOPS
@pytest.mark.parametrize(("host", "ignored", "counts"), [("127.0.0.1", (4, 11), 12), ("::1", (3,), 4)])
def test_rfc3261_18_4_a_parameter_problem_is_a_failure_and_an_exceeded_ttl_is_none(
    loop: Callable[[], asyncio.AbstractEventLoop], host: str, ignored: tuple[int, ...], counts: int
) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        recorder.on_data = lambda connection, data: connection.send(b"answer")
        with Peer(address_of(port)) as one, Peer(address_of(port)) as other:
            for peer in (one, other):
                peer.send(SIP)
                await peer.read()
            for kind in ignored:
                send_icmp(host, kind, quoted(address_of(port), one.local))
            send_icmp(host, counts, quoted(address_of(port), other.local))
            await eventually(lambda: recorder.lost)
            assert port.known_flow(*other.local) is None
            assert port.known_flow(*one.local) is not None
            one.send(SIP)
            assert await one.read() == b"answer"
            assert recorder.lost == ["unreachable"]

    run(loop, body, host)


@LOOPS
def test_what_the_kernel_does_not_send_fails_its_flow(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        flow = port.flow_to("127.0.0.1", 9)
        flow.send(b"x" * 70_000)  # more than a datagram holds
        await eventually(lambda: flow.closed)
        assert recorder.lost == ["send_error"]
        flow.send(b"too late")
        assert port.flows == {}

    run(loop, body)


@LOOPS
def test_flows_beyond_the_limit_are_served_and_not_remembered(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        recorder.on_data = lambda connection, data: connection.send(b"answer")
        with Peer(address_of(port)) as one, Peer(address_of(port)) as other:
            for peer in (one, other, other):
                peer.send(SIP)
                assert await peer.read() == b"answer"
            assert list(port.flows) == [one.local]
            assert here.table.datagrams == {"flow_limit": 2}

    run(loop, body, flows=1)


@LOOPS
def test_an_idle_flow_ends_and_one_with_a_registration_does_not(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        registered, idle = port.flow_to("127.0.0.1", 40001), port.flow_to("127.0.0.1", 40002)
        registered.registered = 1
        await eventually(lambda: idle.closed, 10)  # after `udp_idle`, one second here
        assert recorder.lost == ["idle"]
        assert list(port.flows.values()) == [registered]
        here.table.close_all("shutdown")
        assert not registered.closed
        registered.close("test")

    run(loop, body)


def test_a_wildcard_socket_knows_where_it_answers_from() -> None:
    async def body(here: World, port: UdpPort, recorder: Recorder) -> None:
        with Peer(("127.0.0.1", address_of(port)[1])) as peer:
            peer.send(SIP)
            await eventually(lambda: port.flows)
            (flow,) = port.flows.values()
            assert flow.local == ("127.0.0.1", address_of(port)[1])

    run(asyncio.new_event_loop, body, "0.0.0.0")
