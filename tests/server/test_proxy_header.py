"""PROXY headers in front of connections: believed from balancers that are configured, junk from everybody else."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator

import pytest

from tests.conftest import EdgeServer, free_port
from tests.server.agents import USERS, counted, open_config
from tests.ua.hostile import HostileClient, octets, trusting_context
from tests.ua.wait import eventually

BALANCER, STRANGER = "127.0.0.2", "127.0.0.3"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def options(transport: bytes = b"TCP") -> bytes:
    return (
        b"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/%b c.example;branch=z9hG4bKx;rport\r\nMax-Forwards: 70\r\n"
        b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: x\r\nCSeq: 7 OPTIONS\r\n"
        b"Content-Length: 0\r\n\r\n" % transport
    )


def v1(source: str = "203.0.113.77", port: int = 40112) -> bytes:
    family = "TCP6" if ":" in source else "TCP4"
    destination = "2001:db8::5" if ":" in source else "192.0.2.11"
    return f"PROXY {family} {source} {destination} {port} 5061\r\n".encode()


def v2(source: str = "203.0.113.77", port: int = 40112, *, command: int = 0x21, tlvs: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    body = address.packed + address.packed + struct.pack("!HH", port, 5061) + tlvs
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeServer]:
    """A server that believes BALANCER, and lets a source have three connections."""
    port = free_port()
    config = open_config(limits={"proxy_header_timeout": 1, "connections_per_source": 3, "trusted": [STRANGER]}) | {
        "listen": [{"bind": f"0.0.0.0:{port}", "proxy_protocol": [BALANCER]}]
    }
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), config, port=port)
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


def balancer(server: EdgeServer, host: str = BALANCER) -> HostileClient:
    return HostileClient(("127.0.0.1", server.port), local_host=host)


def answered(data: bytes, source: str, port: int) -> bool:
    return data.startswith(b"SIP/2.0 200 ") and b";rport=%d;received=%b\r\n" % (port, source.encode()) in data


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (v1(), "203.0.113.77"),
        (v1("2001:db8::77"), "2001:db8::77"),
        (v2(), "203.0.113.77"),
        (v2("2001:db8::77"), "2001:db8::77"),
        (v2(tlvs=b"\x04\x03\x81" + bytes(897)), "203.0.113.77"),
    ],
    ids=["v1", "v1-ipv6", "v2", "v2-ipv6", "v2-900-octets-of-tlvs"],
)
@pytest.mark.requirement("OB-PRX-02", "OB-PRX-03", "OB-PRX-06", "SIP-DMX-05")
async def test_the_header_names_the_client(server: EdgeServer, header: bytes, source: str) -> None:
    for data in ([header + options()], [header, options()], [*octets(header), options()]):
        async with balancer(server) as client:
            await client.send(data)
            assert answered(await client.read_until(b"\r\n\r\n"), source, 40112)
    await eventually(lambda: f"src={'[' + source + ']' if ':' in source else source}:40112 " in server.log_text())


@pytest.mark.requirement("OB-PRX-05", "SIP-DMX-05")
@pytest.mark.parametrize("header", [v1(), v2()], ids=["v1", "v2"])
async def test_tls_follows_the_header(server: EdgeServer, header: bytes) -> None:
    async with balancer(server) as client:
        await client.send(octets(header))
        client.context = trusting_context()
        await client.handshake()
        await client.send(options(b"TLS"))
        assert answered(await client.read_until(b"\r\n\r\n"), "203.0.113.77", 40112)


@pytest.mark.requirement("OB-PRX-07", "SIP-DMX-05")
@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(command=0x20)], ids=["v1-unknown", "v2-local"])
async def test_a_header_without_a_client_keeps_the_real_address(server: EdgeServer, header: bytes) -> None:
    async with balancer(server) as client:
        await client.send([header, options()])
        assert answered(await client.read_until(b"\r\n\r\n"), *client.local)


@pytest.mark.requirement("OB-PRX-07")
async def test_a_balancer_that_only_connects_leaves_no_trace(server: EdgeServer) -> None:
    async with balancer(server) as client:
        await client.send(v1() + options())
        await client.read_until(b"\r\n\r\n")
        refused = server.metrics().value("edge_connections_refused_total")
        lines = server.log_text().count("\n")
        for _ in range(20):
            async with balancer(server):
                pass
            async with balancer(server) as check:
                await check.send(v1("198.51.100.1"))
        await client.send(options())  # in the order of arrival: those above have been seen
        await client.read_until(b"\r\n\r\n")
        assert server.metrics().value("edge_connections_refused_total") == refused
        assert server.log_text().count("\n") == lines


@pytest.mark.requirement("OB-PRX-01", "SIP-DMX-04")
async def test_a_balancer_without_a_header_is_closed_without_an_answer(server: EdgeServer) -> None:
    for data in (options(), b"MSRP a1b2c3d4 SEND\r\n", b"\x16\x03\x01\x00\xc8\x01\x00\x00", b"\r\n\r\n" + options()):
        before = server.metrics().value("edge_connections_refused_total", reason="proxy_header")
        async with balancer(server) as client:
            await client.send(data)
            assert await client.read_until_close() == b""
        await counted(server, "edge_connections_refused_total", before + 1, reason="proxy_header")


@pytest.mark.requirement("OB-PRX-02", "OB-PRX-03", "SIP-DMX-05")
@pytest.mark.parametrize(
    "header",
    [
        v1().replace(b"\r\n", b"\n"),
        b"PROXY TCP4 203.0.113.077 192.0.2.11 40112 5061\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::8 40112 5061\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 040112 5061\r\n",
        b"PROXY " + b"x" * 102,
        v2(command=0x22),
        v2(command=0x11),
        SIGNATURE + b"\x21\x44\x00\x0c" + bytes(12),
    ],
    ids=["bare-lf", "leading-zero", "wrong-family", "port", "108-octets", "command", "version", "unknown-family"],
)
async def test_a_broken_header_is_closed_without_an_answer(server: EdgeServer, header: bytes) -> None:
    before = server.metrics().value("edge_connections_refused_total", reason="proxy_header")
    async with balancer(server) as client:
        with contextlib.suppress(ConnectionError):
            await client.send([header, options()])
        assert await client.read_until_close() == b""
    await counted(server, "edge_connections_refused_total", before + 1, reason="proxy_header")


@pytest.mark.requirement("OB-PRX-01", "SIP-DMX-04")
async def test_a_strangers_header_is_junk_and_its_address_not_believed(server: EdgeServer) -> None:
    before = server.metrics().value("edge_connections_refused_total", reason="junk")
    async with balancer(server, STRANGER) as client:
        with contextlib.suppress(ConnectionError):
            await client.send([v1("198.51.100.23"), options()])
        assert await client.read_until_close() == b""
    await counted(server, "edge_connections_refused_total", before + 1, reason="junk")
    assert "198.51.100.23" not in server.log_text()


@pytest.mark.requirement("OB-PRX-04", "SIP-DMX-05")
async def test_the_signature_of_version_2_is_a_ping_for_strangers_only(server: EdgeServer) -> None:
    async with balancer(server) as client:
        await client.send(octets(v2()))
        await client.send(options())
        assert answered(await client.read_until(b"\r\n\r\n"), "203.0.113.77", 40112)  # with no pong before it
        await client.send(b"\r\n\r\n")
        assert await client.read_exactly(2) == b"\r\n"
    async with balancer(server, STRANGER) as stranger:
        with contextlib.suppress(ConnectionError):
            await stranger.send(octets(v2()))
        assert await stranger.read_until_close() == b"\r\n"


@pytest.mark.requirement("OB-PRX-05")
async def test_a_header_that_never_comes_is_given_up(server: EdgeServer) -> None:
    before = server.metrics().value("edge_connections_refused_total", reason="proxy_timeout")
    async with balancer(server) as one, balancer(server) as other, balancer(server) as third:
        await other.send(v1()[:-1])
        await third.send(v2()[:-1])
        for client in (one, other, third):
            assert await client.read_until_close() == b""
    await counted(server, "edge_connections_refused_total", before + 3, reason="proxy_timeout")


@pytest.mark.requirement("OB-PRX-06")
async def test_limits_count_the_client_and_not_the_balancer(server: EdgeServer) -> None:
    before = server.metrics().value("edge_connections_refused_total", reason="source_limit")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(8):  # more than any one source may have
            client = await stack.enter_async_context(balancer(server))
            await client.send(v1(f"203.0.113.{100 + number}") + options())
            await client.read_until(b"\r\n\r\n")
        for number in range(4):
            client = await stack.enter_async_context(balancer(server))
            with contextlib.suppress(ConnectionError):
                await client.send(v1("198.51.100.77", 1024 + number) + options())
            assert bool(await client.read_until_close(2) if number == 3 else await client.read()) is (number < 3)
    await counted(server, "edge_connections_refused_total", before + 1, reason="source_limit")
