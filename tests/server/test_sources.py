"""What one source may ask for, how long it may take, and what there may be in all (sip-core §3.4, outbound OB-LIM)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, counted, exchange_messages, open_config, sip_ua
from tests.ua.hostile import HostileClient, HostileUdp
from tests.ua.link import trusting_context
from tests.ua.msrp import AuthFailed, MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.sip_message import address_uri
from tests.ua.wait import eventually

HELLO = b"\x16\x03\x01"


def options(server: EdgeServer, *lines: bytes, sender: bytes = b"sip:x@far.example", via: bytes = b"UDP") -> bytes:
    mark = secrets.token_hex(6).encode()
    head = (
        b"OPTIONS sip:127.0.0.1:%d SIP/2.0" % server.port,
        b"Via: SIP/2.0/%b 127.0.0.1;branch=z9hG4bK%b;rport" % (via, mark),
        b"Max-Forwards: 70",
        b"From: <%b>;tag=%b" % (sender, mark),
        b"To: <sip:example.com>",
        b"Call-ID: %b" % mark,
        b"CSeq: 1 OPTIONS",
        *lines,
        b"Content-Length: 0",
    )
    return b"\r\n".join((*head, b"", b""))


def here(server: EdgeServer) -> tuple[str, int]:
    return "127.0.0.1", server.port


# ------------------------------------------------------------------------------------------ time


@pytest.mark.requirement("SIP-DMX-07", "OB-LIM-02")
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize(
    ("setting", "data", "counter", "reason"),
    [
        ("first_message_timeout", b"", "edge_connections_refused_total", "silent"),
        ("first_message_timeout", b"\r\n\r\n", "edge_connections_closed_total", "no_message"),
        ("start_line_timeout", b"OPTIO", "edge_connections_closed_total", "message_timeout"),
        ("message_timeout", b"OPTIONS sip:a SIP/2.0\r\nVia", "edge_connections_closed_total", "message_timeout"),
        ("handshake_timeout", b"GET / HTTP/1.1\r\nHost: a", "edge_connections_closed_total", "upgrade_timeout"),
    ],
)
async def test_every_stage_of_a_stream_ends_at_its_own_deadline_without_an_answer(
    edge_server: EdgeServerFactory, setting: str, data: bytes, counter: str, reason: str, tls: bool
) -> None:
    """Only the deadline under test is short: with any other clock the wait below is too long."""
    long = {"first_message_timeout": 600, "start_line_timeout": 600, "message_timeout": 600, "handshake_timeout": 600}
    server = edge_server(open_config(limits={**long, setting: 1}))
    async with HostileClient(here(server), tls=tls) as client:
        if data:
            await client.send(data)
        left = await client.read_until_close(20)
    assert left == (b"\r\n" if data == b"\r\n\r\n" else b"")
    # With TLS the listener has heard somebody: silence behind the handshake is that of a connection.
    if tls and reason == "silent":
        counter, reason = "edge_connections_closed_total", "no_message"
    await counted(server, counter, 1, reason=reason)


@pytest.mark.requirement("SIP-DMX-07")
async def test_an_octet_now_and_then_does_not_keep_a_stream_open(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"start_line_timeout": 1, "message_timeout": 2}))
    for start in (b"OPTIONS sip:", b"OPTIONS sip:example.com SIP/2.0\r\nX: "):
        async with HostileClient(here(server)) as client:
            await client.send(start)
            dripping = asyncio.create_task(client.drip(b"a" * 100_000, 0.1))
            with contextlib.suppress(ConnectionError):
                assert await client.read_until_close(20) == b""
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
    await counted(server, "edge_connections_closed_total", 2, reason="message_timeout")


# ------------------------------------------------------------------------------------------ TLS


@pytest.mark.requirement("SIP-TLS-06", "OB-LIM-02", "SIP-DMX-07")
async def test_tls_handshakes_have_a_deadline_and_a_cap(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"handshakes": 3, "handshake_timeout": 3}), USERS)
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(HostileClient(here(server))) for _ in range(3)]
        for client in slow:
            await client.send(HELLO)
        await asyncio.sleep(0)
        refused = HostileClient(here(server), tls=True)
        while server.metrics().value("edge_connections_refused_total", reason="handshake_limit") == 0:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await refused.connect()
                await refused.handshake()
            refused.close()
        assert await (await plain(server, stack)).read_until(b"\r\n\r\n")  # no TLS, no cap
        for client in slow:
            assert await client.read_until_close(20) == b""
        await counted(server, "edge_connections_refused_total", 3, reason="tls_timeout")
        async with sip_ua(server, "alice", "tls") as alice:
            assert (await alice.register()).status == 200


async def plain(server: EdgeServer, stack: AsyncExitStack) -> HostileClient:
    """Somebody who asks over TCP."""
    client = await stack.enter_async_context(HostileClient(here(server)))
    await client.send(options(server, via=b"TCP"))
    return client


@pytest.mark.requirement("SIP-TLS-06")
async def test_rfc8446_6_1_a_shutdown_says_close_notify(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config())

    def open_tls() -> ssl.SSLSocket:
        wire = socket.create_connection(here(server), 10)
        wrapped = trusting_context().wrap_socket(wire, suppress_ragged_eofs=False)
        wrapped.sendall(options(server, via=b"TLS"))
        assert wrapped.recv(65536).startswith(b"SIP/2.0 200 ")
        return wrapped

    wrapped = await asyncio.to_thread(open_tls)
    server.stop()
    assert await asyncio.to_thread(wrapped.recv, 1) == b""  # an end without a goodbye raises
    wrapped.close()


# ------------------------------------------------------------------------------------------ rates


async def answers(peer: HostileUdp, count: int) -> int:
    """How many answers have come when that of `count` is known, or nothing comes any more."""
    got = 0
    with contextlib.suppress(TimeoutError):
        while got < count:
            await peer.read(1.0)
            got += 1
    return got


@pytest.mark.requirement("SIP-DOS-03")
async def test_a_source_over_its_rate_is_blocked_for_a_while_and_nobody_else(edge_server: EdgeServerFactory) -> None:
    limits = {"messages_per_source": 30, "block_timeout": 2, "trusted": ["127.0.0.9"]}
    server = edge_server(open_config(limits=limits))
    async with AsyncExitStack() as stack:
        loud, other, trusted = [
            await stack.enter_async_context(HostileUdp(here(server), local_host=host))
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.9")
        ]
        await loud.send(options(server) for _ in range(31))  # the 31st of two seconds begins a block
        assert await answers(loud, 31) == 31
        await loud.send(options(server) for _ in range(9))
        await counted(server, "edge_sip_rejected_total", 9, reason="message_rate")
        async with HostileClient(here(server)) as stream:  # its connections are closed as well
            await stream.send(options(server, via=b"TCP"))
            assert await stream.read_until_close() == b""
        await counted(server, "edge_connections_closed_total", 1, reason="message_rate")
        await other.send(options(server))
        assert await answers(other, 1) == 1
        await trusted.send(options(server) for _ in range(60))
        assert await answers(trusted, 60) == 60
        assert server.log_text().count("reason=message_rate") >= 1
        assert "src=127.0.0.1 reason=message_rate" in server.log_text()

        async def asked_again() -> bool:
            await loud.send(options(server))
            return await answers(loud, 1) == 1

        while not await asked_again():  # unblocked after the time
            pass
        assert server.metrics().value("edge_connections_refused_total", reason="message_rate") == 0


@pytest.mark.requirement("SIP-DOS-03")
async def test_a_stream_over_its_rate_is_closed(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"messages_per_source": 30, "trusted": []}))
    async with HostileClient(here(server)) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                await client.send(options(server, via=b"TCP"))
            assert (await client.read_until_close()).count(b"SIP/2.0 200 ") < 40
    await counted(server, "edge_connections_closed_total", 1, reason="message_rate")


def stun() -> bytes:
    return b"\x00\x01\x00\x00\x21\x12\xa4\x42" + secrets.token_bytes(12)


@pytest.mark.requirement("OB-LIM-04")
async def test_answers_to_stun_and_bad_tokens_stop_and_good_traffic_goes_on(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"courtesies_per_source": 5, "trusted": []}), USERS)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "tcp", reg_id=1))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
        response = await alice.register()
        await bob.register()
        token = address_uri(response["Path"]).partition(":")[2].partition("@")[0]
        forged = token[:-6] + ("A" if token[-6] != "A" else "B") + token[-5:]
        route = b"Route: <sip:%b@127.0.0.1:%d;lr;ob>" % (forged.encode(), server.port)
        floods: list[Callable[[], bytes]] = [stun, lambda: options(server, route)]
        for number, flood in enumerate(floods):  # from sources of their own: a window lasts longer than an exchange
            async with HostileUdp(here(server), local_host=f"127.0.1.{number + 1}") as loud:
                await loud.send(flood() for _ in range(200))
                got = await answers(loud, 200)
                assert 5 <= got < 100
            async with HostileUdp(here(server), local_host=f"127.0.2.{number + 1}") as other:
                await other.send(flood())
                assert await answers(other, 1) == 1
            assert (await exchange_messages(bob, alice)).status == 200
        assert server.metrics().value("edge_sip_rejected_total", reason="forged_token") == 201


@pytest.mark.requirement("OB-LIM-04")
async def test_pongs_stop_for_one_who_pings_all_the_time(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"courtesies_per_source": 5, "trusted": []}))
    async with HostileClient(here(server)) as client:
        await client.send(options(server, via=b"TCP"))
        await client.read_until(b"\r\n\r\n")
        await client.send(b"\r\n\r\n" * 2000 + options(server, via=b"TCP"))
        answer = await client.read_until(b"SIP/2.0 200 ")
        assert answer.count(b"\r\n") < 200


# ------------------------------------------------------------------------------------------ in all


@pytest.mark.requirement("SIP-DOS-04")
async def test_rfc3261_21_5_4_beyond_the_cap_on_transactions_503_says_when_to_come_again(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(limits={"transactions": 1}), USERS)
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "tcp") as bob:
        await alice.register()
        await bob.register()
        waiting = asyncio.create_task(alice.message(bob.uri, b"one"))
        first = await bob.next_request("MESSAGE")
        refused = await alice.message(bob.uri, b"two")
        assert refused.status == 503
        assert int(refused["Retry-After"]) > 0
        bob.respond(first, 200)
        assert (await waiting).status == 200
        assert (await alice.register()).status == 200
        await eventually(lambda: server.metrics().value("edge_sip_transactions", kind="server") == 0)
        assert (await exchange_messages(alice, bob)).status == 200


@pytest.mark.requirement("SIP-DOS-04")
async def test_rfc3261_21_5_4_beyond_the_cap_on_bindings_503_and_those_there_are_stay(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(limits={"bindings": 2}), USERS)
    async with AsyncExitStack() as stack:
        alice, bob, carol = [
            await stack.enter_async_context(sip_ua(server, name, "tcp")) for name in ("alice", "bob", "carol")
        ]
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
        refused = await carol.register()
        assert refused.status == 503
        assert int(refused["Retry-After"]) > 0
        assert (await alice.register()).status == 200
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await alice.unregister()).status == 200
        assert (await carol.register()).status == 200


# ------------------------------------------------------------------------------------------ guessing


async def msrp_logins(server: EdgeServer, host: str, password: str, times: int = 1) -> list[int]:
    """The answers to AUTH of alice from an address."""
    statuses = []
    async with MsrpEndpoint("alice", password, relay=here(server), host=host) as client:
        for _ in range(times):
            try:
                await client.auth()
                statuses.append(200)
            except AuthFailed as error:
                statuses.append(error.status)
    return statuses


async def sip_logins(server: EdgeServer, host: str, password: str, times: int = 1) -> list[int]:
    """The answers to REGISTER of alice from an address."""
    async with SipUA("alice", password, server=here(server), transport="tcp", local_host=host) as client:
        return [(await client.register()).status for _ in range(times)]


async def test_a_user_who_is_guessed_over_both_protocols_is_locked_out_of_both_but_not_from_home(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(limits={"auth_failures": 200}), USERS)
    right, home, eve, abroad = USERS["alice@example.com"], "127.0.0.1", "127.0.0.2", "127.0.0.3"
    assert await sip_logins(server, home, right) == [200]
    assert await sip_logins(server, eve, "wrong", 50) == [401] * 50
    assert await msrp_logins(server, eve, "wrong", 52) == [401] * 50 + [403] * 2
    assert await sip_logins(server, eve, "wrong") == [403]
    assert (await msrp_logins(server, abroad, right), await sip_logins(server, abroad, right)) == ([403], [403])
    assert (await msrp_logins(server, home, right), await sip_logins(server, home, right)) == ([200], [200])
    await counted(server, "edge_auth_failures_total", 5, reason="locked_out")
    text = server.log_text()
    assert text.count("WARNING edge.security user locked src=127.0.0.2 user=alice protocol=msrp") == 1
    assert "auth flood" not in text  # trusted addresses are not to blame
