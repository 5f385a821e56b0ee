"""`transports` and `protocols` of a listener: what is served, and what the others are told in their own protocol."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import LOOPBACK, STREAMS, USERS, counted, msrp_client, open_config, sip_ua
from tests.ua.hostile import HostileClient, HostileUdp
from tests.ua.msrp import AuthFailed
from tests.ua.stun import stun_binding

OPTIONS = (
    b"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/%b c.example;branch=z9hG4bKx;rport\r\nMax-Forwards: 70\r\n"
    b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: x\r\nCSeq: 7 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)
AUTH = (
    b"MSRP f00dcafe AUTH\r\nTo-Path: msrps://example.com:2855;tcp\r\nFrom-Path: msrps://c.example:9/abc;tcp\r\n"
    b"-------f00dcafe$\r\n"
)
MSRP_REFUSED = (
    b"MSRP f00dcafe 403 Not served on this port\r\nTo-Path: msrps://c.example:9/abc;tcp\r\n"
    b"From-Path: msrps://example.com:2855;tcp\r\n-------f00dcafe$\r\n"
)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %b\r\n\r\n"
)

PLACES: dict[str, dict[str, list[str]]] = {
    "sip_only": {"protocols": ["sip"]},
    "msrp_only": {"protocols": ["msrp"]},
    "tls_only": {"transports": ["tls"]},
    "plain": {"transports": ["udp", "tcp", "ws"]},
    "wss": {"transports": ["wss"]},
    "no_ws": {"transports": ["tcp", "tls"]},
}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """A port for each listener of the server."""
    chosen: dict[str, int] = {}
    while len(chosen) < len(PLACES):
        port = free_port()
        if port not in chosen.values():
            chosen[list(PLACES)[len(chosen)]] = port
    return chosen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[EdgeServer]:
    """A server with one listener for each of PLACES."""
    listens = [{"bind": f"127.0.0.1:{ports[name]}", **limits} for name, limits in PLACES.items()]
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), {"listen": listens} | open_config(), port=ports["sip_only"])
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


async def answer_to(port: int, data: bytes, *, tls: bool = False) -> bytes:
    """What comes back until the server closes."""
    async with HostileClient(("127.0.0.1", port), tls=tls) as client:
        await client.send(data)
        return await client.read_until_close()


async def refused(server: EdgeServer, port: int, *, tls: bool = False) -> None:
    """SIP and MSRP get their 403 and the end of the connection."""
    before = server.metrics().value("edge_connections_closed_total", reason="protocol")
    sip = await answer_to(port, OPTIONS % (b"TLS" if tls else b"TCP"), tls=tls)
    assert sip.startswith(b"SIP/2.0 403 Not served on this port\r\n")
    assert b"\r\nCSeq: 7 OPTIONS\r\n" in sip
    assert b";branch=z9hG4bKx;rport=" in sip
    assert await answer_to(port, AUTH, tls=tls) == MSRP_REFUSED
    await counted(server, "edge_connections_closed_total", before + 2, reason="protocol")


@pytest.mark.parametrize("transport", STREAMS)
async def test_where_only_sip_is_served_msrp_gets_403(
    server: EdgeServer, ports: dict[str, int], transport: str
) -> None:
    port = ports["sip_only"]
    async with sip_ua(server, "alice", transport, port=port) as alice:
        assert (await alice.register()).status == 200
    if transport in ("tcp", "tls"):
        assert await answer_to(port, AUTH, tls=transport == "tls") == MSRP_REFUSED
    else:
        answer = await answer_to(port, UPGRADE % b"msrp", tls=transport == "wss")
        assert answer.startswith(b"HTTP/1.1 400 ")
        await counted(server, "edge_connections_refused_total", reason="http_400")


@pytest.mark.parametrize("transport", STREAMS)
async def test_where_only_msrp_is_served_sip_gets_403(
    server: EdgeServer, ports: dict[str, int], transport: str
) -> None:
    port = ports["msrp_only"]
    async with msrp_client(server, "bob", transport, port=port) as bob:
        assert await bob.auth()
    if transport in ("tcp", "tls"):
        answer = await answer_to(port, OPTIONS % transport.upper().encode(), tls=transport == "tls")
        assert answer.startswith(b"SIP/2.0 403 ")
    else:
        assert (await answer_to(port, UPGRADE % b"sip", tls=transport == "wss")).startswith(b"HTTP/1.1 400 ")


async def test_where_only_msrp_is_served_a_sip_datagram_gets_403_and_stun_its_answer(
    server: EdgeServer, ports: dict[str, int]
) -> None:
    async with HostileUdp(("127.0.0.1", ports["msrp_only"])) as udp:
        await udp.send(OPTIONS % b"UDP")
        assert (await udp.read()).startswith(b"SIP/2.0 403 Not served on this port\r\n")
    assert (await stun_binding("127.0.0.1", ports["msrp_only"]))[0] == "127.0.0.1"


async def test_a_listener_for_tls_alone_serves_neither_plain_text_nor_websocket(
    server: EdgeServer, ports: dict[str, int]
) -> None:
    port = ports["tls_only"]
    async with sip_ua(server, "alice", "tls", port=port) as alice, msrp_client(server, "bob", "tls", port=port) as bob:
        assert (await alice.register()).status == 200
        assert await bob.auth()
        await refused(server, port)
        for tls in (False, True):
            assert (await answer_to(port, UPGRADE % b"sip", tls=tls)).startswith(b"HTTP/1.1 403 ")
        assert (await alice.options("sip:example.com")).status == 200
        async with HostileUdp(("127.0.0.1", port), connected=True) as udp:
            with pytest.raises(ConnectionRefusedError):  # no UDP socket is there
                await udp.send(OPTIONS % b"UDP")
                await udp.read()


async def test_a_listener_without_tls_answers_a_handshake_with_an_alert(
    server: EdgeServer, ports: dict[str, int]
) -> None:
    port = ports["plain"]
    before = server.metrics().value("edge_connections_refused_total", reason="transport")
    async with HostileClient(("127.0.0.1", port)) as client:
        await client.send_client_hello()
        assert await client.read_until_close() == bytes.fromhex("15 0301 0002 02 28")
    client = HostileClient(("127.0.0.1", port), tls=True)
    await client.connect()
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake"):
        await client.handshake()
    client.close()
    await counted(server, "edge_connections_refused_total", before + 2, reason="transport")
    for transport in ("udp", "tcp", "ws"):
        async with sip_ua(server, "alice", transport, port=port) as alice:
            assert (await alice.register()).status == 200


async def test_a_listener_for_secure_websockets_alone(server: EdgeServer, ports: dict[str, int]) -> None:
    port = ports["wss"]
    async with sip_ua(server, "alice", "wss", port=port) as alice, msrp_client(server, "bob", "wss", port=port) as bob:
        assert (await alice.register()).status == 200
        assert await bob.auth()
    await refused(server, port)
    await refused(server, port, tls=True)
    assert (await answer_to(port, UPGRADE % b"sip")).startswith(b"HTTP/1.1 403 ")


async def test_a_listener_without_websockets_refuses_the_upgrade(server: EdgeServer, ports: dict[str, int]) -> None:
    port = ports["no_ws"]
    before = server.metrics().value("edge_connections_refused_total", reason="http_403")
    for tls in (False, True):
        for protocol in (b"sip", b"msrp"):
            assert (await answer_to(port, UPGRADE % protocol, tls=tls)).startswith(b"HTTP/1.1 403 ")
    await counted(server, "edge_connections_refused_total", before + 4, reason="http_403")
    for transport in ("tcp", "tls"):
        async with sip_ua(server, "alice", transport, port=port) as alice:
            assert (await alice.register()).status == 200


@pytest.mark.requirement("MSRP-AUTH-01", "MSRP-CON-11")
async def test_auth_in_clear_is_refused_where_tls_is_required(edge_server: EdgeServerFactory) -> None:
    server = edge_server({"msrp": {"allow_targets": LOOPBACK}}, USERS)
    async with msrp_client(server, "bob", "tcp") as bob, msrp_client(server, "alice", "tls") as alice:
        with pytest.raises(AuthFailed) as failed:
            await bob.auth()
        assert failed.value.status == 403
        assert "require_tls" in failed.value.frame.comment
        assert failed.value.frame.get("WWW-Authenticate") is None
        # Who reaches a user through her session URI needs no TLS.
        await alice.auth()
        assert (await bob.send([*alice.use_path, alice.uri], b"in clear")).ok
        assert bytes((await alice.next_message()).data) == b"in clear"
    assert (await answer_to(server.port, UPGRADE % b"msrp")).startswith(b"HTTP/1.1 403 ")
    async with msrp_client(server, "bob", "wss") as bob:
        assert await bob.auth()
