"""What an operator sets for the MSRP relay, and what protects it, in the running server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from edge.relayfinder import RelayFinder
from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import USERS, answering, counted, enrolled, msrp_client, open_config, sip_ua
from tests.ua.certs import Authority
from tests.ua.dns import DnsServer
from tests.ua.hostile import HostileClient
from tests.ua.msrp import AuthFailed, MsrpEndpoint, MsrpListener
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

LIMIT = 5000


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeServer]:
    """A server with a small limit of each kind."""
    msrp = {
        "max_message_size": LIMIT,
        "sessions_per_connection": 2,
        "blocked_methods": ["NICKNAME"],
        "users": ["alice", "bob"],
        "websocket_piece": 4096,
    }
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), open_config(msrp=msrp))
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


async def pair(server: EdgeServer, stack: AsyncExitStack, other: str = "tcp") -> tuple[MsrpEndpoint, MsrpEndpoint]:
    """Alice, and Bob on another transport, both enrolled."""
    alice = await enrolled(server, stack, "alice")
    bob = await enrolled(server, stack, "bob", other)
    return alice, bob


@pytest.mark.requirement("MSRP-SEC-08")
async def test_messages_and_sessions_end_at_their_limits(limited: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await pair(limited, stack)
        path = [*alice.use_path, *bob.path]
        assert (await alice.send(path, bytes(LIMIT))).ok
        assert (await bob.next_message()).octets == LIMIT
        assert 413 in (await alice.send(path, bytes(LIMIT + 1))).statuses
        assert 413 in (await alice.send(path, bytes(LIMIT + 1), chunk_size=2500)).statuses
        assert (await alice.send(path, b"next")).ok
        await alice.auth()
        with pytest.raises(AuthFailed) as failed:
            await alice.auth()
        assert failed.value.status == 403
        await counted(limited, "edge_msrp_rejected_total", reason="message_size")


async def test_methods_and_users_are_let_in_by_the_lists(limited: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await pair(limited, stack)
        path = [*alice.use_path, *bob.path]
        assert (await alice.request("NICKNAME", path, [("Use-Nickname", '"a"')])).status == 403
        carol = await stack.enter_async_context(msrp_client(limited, "carol"))
        with pytest.raises(AuthFailed) as failed:
            await carol.auth()
        assert failed.value.status == 403
        await counted(limited, "edge_msrp_rejected_total", reason="blocked_method")
        await counted(limited, "edge_msrp_rejected_total", reason="no_permission")


async def test_pieces_to_a_websocket_have_the_size_that_is_set(limited: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await pair(limited, stack, "wss")
        assert (await alice.send([*alice.use_path, *bob.path], bytes(4999))).ok
        message = await bob.next_message()
        assert [chunk.body_octets for chunk in message.chunks] == [4096, 903]


async def test_pieces_to_one_next_hop_have_the_size_set_for_it(edge_server: EdgeServerFactory) -> None:
    async with MsrpListener("small") as small, MsrpListener("usual") as usual:
        hop = f"127.0.0.1:{small.address[1]}"
        server = edge_server(open_config(msrp={"chunk_sizes": {hop: 2048}}), USERS)
        async with msrp_client(server, "alice") as alice:
            for peer, sizes in ((small, {2048, 1808}), (usual, {10000})):
                (uri,) = await alice.auth()
                assert (await alice.send([uri, peer.uri], bytes(10000))).ok
                message = await peer.next_message()
                assert {chunk.body_octets for chunk in message.chunks} == sizes


async def test_a_websocket_message_that_is_no_whole_frame_closes_with_1002(limited: EdgeServer) -> None:
    async with msrp_client(limited, "alice", "wss") as alice:
        await alice.auth()
        alice.send_raw(b"MSRP abcd1234 SEND\r\nTo-Path: ")
        assert "1002" in await alice.wait_closed()
        await counted(limited, "edge_msrp_rejected_total", reason="websocket_frame")


async def test_operators_see_sessions_and_never_their_ids(limited: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, _ = await pair(limited, stack)
        shown = limited.run("show", "sessions", "--json", "--admin", limited.admin_url).stdout
        rows = json.loads(shown)["items"]
        assert {row["user"].partition("@")[0] for row in rows} == {"alice", "bob"}
        session_id = alice.use_path[0].rpartition("/")[2].partition(";")[0]
        assert session_id not in shown
        assert session_id not in limited.log_text()


@pytest.mark.requirement("MSRP-SEC-05")
async def test_guessing_session_ids_ends_after_five(limited: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, _ = await pair(limited, stack)
        session_id = alice.use_path[0].rpartition("/")[2].partition(";")[0]
        assert len(session_id) * 6 >= 128
        guess = "".join(reversed(session_id))
        stranger = await stack.enter_async_context(msrp_client(limited, "erin"))
        uri = alice.use_path[0].replace(session_id, guess)
        statuses = []
        for _ in range(5):
            statuses += (await stranger.send([uri, alice.uri], b"?")).statuses
        assert statuses == [481] * 5
        await stranger.wait_closed()
        await counted(limited, "edge_msrp_rejected_total", 5, reason="session")


@pytest.mark.requirement("MSRP-SEC-09")
async def test_passwords_are_not_stored_and_nonces_end_with_the_process(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(), USERS)
    async with msrp_client(server, "alice") as alice:
        await alice.auth()
        for path in server.directory.glob("edge.db*"):
            assert b"alice-secret" not in path.read_bytes()
        server.restart()
        alice.reuse_nonce = True
        await alice.connect()
        seen = len(alice.received(""))
        await alice.auth()
        stale, granted = alice.received("")[seen:]
        assert (stale.status, granted.status) == (401, 200)
        assert all("stale=true" in value for value in stale.all("WWW-Authenticate"))


@pytest.mark.requirement("MSRP-CON-10")
async def test_old_tls_and_the_suite_the_rfcs_name_are_refused(limited: EdgeServer) -> None:
    def context() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        made.set_ciphers("ALL:@SECLEVEL=0")
        return made

    def shake(made: ssl.SSLContext) -> str | None:
        with socket.create_connection(("127.0.0.1", limited.port), 5) as raw, made.wrap_socket(raw) as wrapped:
            return wrapped.version()

    assert shake(context()) == "TLSv1.3"
    current = context()
    current.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(current) == "TLSv1.2"
    current.set_ciphers("AES128-SHA:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(current)


@pytest.mark.requirement("MSRP-CON-09")
async def test_a_certificate_has_to_name_the_relay(edge_server: EdgeServerFactory, authority: Authority) -> None:
    own = authority.issue("edge", dns=["example.com"])
    files = {"certificate": str(own.certificate), "private_key": str(own.private_key)}
    server = edge_server(open_config(tls=files, msrp={"use_path": "relay.example.com:2855"}), started=False)
    refused = server.run("serve", "--config", str(server.config_path), check=False)
    assert refused.returncode == 2
    assert "tls.certificate" in refused.stderr
    assert "relay.example.com" in refused.stderr
    named = edge_server(open_config(tls=files, msrp={"use_path": "example.com:2855"}), USERS)
    async with msrp_client(named, "alice") as alice:
        (uri,) = await alice.auth()
        assert uri.startswith("msrps://example.com:2855/")
    made = edge_server(open_config(msrp={"use_path": "relay.example.com:2855"}), USERS)
    assert "certificate does not name the relay host=relay.example.com" in made.log_text()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom servers trust."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.requirement("MSRP-CON-08")
async def test_relays_show_each_other_certificates_and_a_client_needs_none(
    edge_server: EdgeServerFactory, authority: Authority
) -> None:
    own = authority.issue("edge", dns=["localhost"])
    files = {"certificate": str(own.certificate), "private_key": str(own.private_key), "trust": str(authority.path)}
    server = edge_server(open_config(tls={**files, "client_ca": str(authority.path)}), USERS)
    context = authority.server_context(authority.issue("peer", dns=["localhost"]), client_certificates=True)
    listener = MsrpListener("peer", transport="tls", uri_host="localhost", ssl_context=context)
    async with msrp_client(server, "alice") as alice, listener as peer:  # Alice shows none and still is a client
        await alice.auth()
        assert (await alice.send([*alice.use_path, peer.uri], b"mutual")).ok
        assert bytes((await peer.next_message()).data) == b"mutual"
    relay = authority.client_context(authority.issue("relay", dns=["relay.example"]), check_hostname=False)
    async with HostileClient(("127.0.0.1", server.port), tls=relay) as client:
        await client.send(
            b"MSRP a786hjs2 AUTH\r\nTo-Path: msrps://example.com:%d;tcp\r\n"
            b"From-Path: msrps://relay.example:2855/x;tcp msrps://c.example:9/y;tcp\r\n-------a786hjs2$\r\n"
            % server.port
        )
        assert (await client.read()).startswith(b"MSRP a786hjs2 401")


@pytest.mark.requirement("MSRP-URI-11")
async def test_the_next_relay_of_an_auth_is_found_by_srv(edge_server: EdgeServerFactory) -> None:
    async with MsrpListener("relay") as relay, DnsServer() as dns:
        with socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))
            port = relay.address[1]
            dns.set(
                f"_msrp._tcp.next.example. 60 IN SRV 1 0 {dead.getsockname()[1]} localhost.",
                f"_msrp._tcp.next.example. 60 IN SRV 2 0 {port} localhost.",
            )
            server = edge_server(open_config(sip={"nameservers": [dns.address]}), USERS)
            async with msrp_client(server, "alice", "tcp") as alice:
                (uri,) = await alice.auth()
                asking = asyncio.ensure_future(alice.request("AUTH", [uri, "msrp://next.example;tcp"]))
                relay.respond(await relay.next_request(), 200)
                assert (await asking).status == 200
                assert ("_msrp._tcp.next.example", "SRV") in dns.questions
        finder = RelayFinder([dns.address], 5, os.urandom)
        assert await finder.find("next.example", True) == [("next.example", 2855)]
        dns.set("_msrps._tcp.next.example. 60 IN SRV 1 0 9000 r.example.", "_msrps._tcp.no.example. 60 IN SRV 0 0 0 .")
        assert await finder.find("next.example", True) == [("r.example", 9000)]
        assert await finder.find("no.example", True) == []
        assert await finder.find("192.0.2.1", True) == [("192.0.2.1", 2855)]


async def test_a_reload_asks_the_name_servers_that_are_set_from_then_on(edge_server: EdgeServerFactory) -> None:
    async with MsrpListener("relay") as relay, DnsServer() as old, DnsServer() as new, AsyncExitStack() as stack:
        server = edge_server(open_config(sip={"nameservers": [old.address], "dns_timeout": 3}), USERS)
        alice = await stack.enter_async_context(msrp_client(server, "alice", "tcp"))
        caller = await stack.enter_async_context(sip_ua(server, "alice"))
        peer = await stack.enter_async_context(
            SipUA("far", domain="far.example", transport="udp", local_host="127.0.0.1")
        )
        peer.on_request = answering()
        new.set(
            f"_msrp._tcp.next.example. 60 IN SRV 1 0 {relay.address[1]} localhost.",
            f"_sip._udp.far.example. 60 IN SRV 1 0 {peer.address[1]} host.far.example.",
            "host.far.example. 60 IN A 127.0.0.1",
        )
        (uri,) = await alice.auth()
        assert (await caller.message("sip:x@far.example", b"hello")).status == 480
        server.write_config(open_config(sip={"nameservers": [new.address], "dns_timeout": 3}))
        server.signal(signal.SIGHUP)
        await eventually(lambda: "configuration reloaded" in server.log_text())
        assert "need a restart" not in server.log_text()
        asked = list(old.questions)
        assert (await caller.message("sip:x@far.example", b"hello")).status == 200
        asking = asyncio.ensure_future(alice.request("AUTH", [uri, "msrp://next.example;tcp"]))
        relay.respond(await relay.next_request(), 200)
        assert (await asking).status == 200
        assert old.questions == asked


@pytest.mark.requirement("MSRP-RESP-07")
async def test_an_operator_can_say_which_types_are_passed_on(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(msrp={"content_types": ["Text/Plain", "image/*"]}), USERS)
    async with AsyncExitStack() as stack:
        alice, bob = await pair(server, stack)
        path = [*alice.use_path, *bob.path]
        assert 415 in (await alice.send(path, b"<p>no</p>", "text/html")).statuses
        assert (await alice.send(path, b"\x89PNG", "image/png")).ok
        assert bytes((await bob.next_message()).data) == b"\x89PNG"
        await counted(server, "edge_msrp_rejected_total", reason="content_type_refused")
        server.write_config(open_config(msrp={"content_types": ["text"]}))
        checked = server.run("check", "--config", str(server.config_path), check=False)
        assert checked.returncode == 2
        assert "msrp.content_types[0]" in checked.stdout + checked.stderr


@pytest.mark.parametrize("other", ["tcp", "tls", "ws"])
async def test_a_client_with_ipv4_and_one_with_ipv6_write_to_each_other(
    edge_server: EdgeServerFactory, other: str
) -> None:
    port = free_port()
    binds = [{"bind": f"127.0.0.1:{port}"}, {"bind": f"[::1]:{port}"}]
    server = edge_server(open_config() | {"listen": binds}, USERS, port=port)
    async with AsyncExitStack() as stack:
        four = await stack.enter_async_context(msrp_client(server, "alice", "tcp"))
        six = await stack.enter_async_context(msrp_client(server, "bob", other, host="::1"))
        peer = await stack.enter_async_context(MsrpListener("peer", host="::1"))
        await four.auth()
        await six.auth()
        assert "//[::1]:" in six.use_path[0]
        assert "//127.0.0.1:" in four.use_path[0]
        for sender, receiver in ((four, six), (six, four)):
            sent = await sender.send([*sender.use_path, *receiver.path], bytes(100_000), success_report="yes")
            assert sent.ok
            assert (await receiver.next_message()).octets == 100_000
            assert (await sender.next_report())["Status"] == "000 200 OK"
        assert (await four.send([*four.use_path, peer.uri], b"dialled")).ok
        assert bytes((await peer.next_message()).data) == b"dialled"
