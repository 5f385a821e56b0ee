"""Two processes: an edge, and behind it a registrar that believes its Path and holds the users."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import LOOPBACK, USERS, answering, exchange_messages, open_config, sip_ua
from tests.sip.rig import request
from tests.ua.hostile import HostileUdp
from tests.ua.sip import SipUA
from tests.ua.sip_message import Response, uri_parameters
from tests.ua.wait import deadline, eventually


def make_edge(edge_server: EdgeServerFactory, home: EdgeServer, **settings: Any) -> EdgeServer:
    next_hop = f"sip:127.0.0.1:{home.port};transport=tcp"
    return edge_server({**open_config(sip={"next_hop": next_hop}), "role": "edge", **settings})


@pytest.fixture
def home(edge_server: EdgeServerFactory) -> EdgeServer:
    return edge_server({**open_config(sip={"trusted_edges": LOOPBACK}), "role": "registrar"}, USERS)


@pytest.fixture
def edge(edge_server: EdgeServerFactory, home: EdgeServer) -> EdgeServer:
    return make_edge(edge_server, home)


async def registered(server: EdgeServer, stack: AsyncExitStack, name: str, transport: str = "tcp") -> SipUA:
    agent = await stack.enter_async_context(sip_ua(server, name, transport, reg_id=1))
    assert (await agent.register()).status == 200
    return agent


@pytest.mark.parametrize("transport", ["tcp", "tls", "wss"])
async def test_rfc5626_clients_register_through_an_edge_with_the_passwords_of_the_registrar_and_reach_each_other(
    edge: EdgeServer, transport: str
) -> None:
    async with sip_ua(edge, "alice", transport) as alice, sip_ua(edge, "bob", "tcp") as bob:
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await exchange_messages(bob, alice)).status == 200


@pytest.mark.requirement("OB-EDLG-11", "OB-EDLG-13", "OB-EDLG-03")
@pytest.mark.parametrize(("one", "other"), [("tcp", "tcp"), ("udp", "wss"), ("tls", "udp")])
async def test_a_call_between_two_clients_of_an_edge_is_ended_by_the_callee(
    edge: EdgeServer, one: str, other: str
) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice", one), await registered(edge, stack, "bob", other)
        for caller, callee in ((alice, bob), (bob, alice)):
            call = caller.start_invite(callee.uri, b"v=0\r\n")
            invite = await callee.next_request("INVITE")
            answered = callee.accept(invite, b"v=1\r\n")
            dialog = await call.dialog()
            await dialog.ack()
            assert (await callee.next_request("ACK")).uri == callee.contact_uri(ob=True)
            assert all("lr" in uri_parameters(route.strip("<>")) for route in dialog.route_set)
            caller.on_request = callee.on_request = answering()
            assert (await dialog.request("INFO")).status == 200
            assert (await answered.request("INFO")).status == 200
            assert (await answered.bye()).status == 200
            assert len(caller.received("BYE")) == 1
            caller.on_request = callee.on_request = None


@pytest.mark.requirement("OB-FAIL-14", "OB-EDLG-10")
async def test_a_call_goes_on_over_the_connection_its_client_came_back_with(edge: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice"), await registered(edge, stack, "bob")
        call = alice.start_invite(bob.uri, b"v=0\r\n")
        answered = bob.accept(await bob.next_request("INVITE"), b"v=1\r\n")
        dialog = await call.dialog()
        await dialog.ack()
        await bob.next_request("ACK")
        await bob.reconnect(reset=True)
        assert (await bob.register()).status == 200
        alice.on_request = bob.on_request = answering()
        assert (await dialog.request("INFO")).status == 200  # with the token of the old connection
        assert len(bob.received("INFO")) == 1
        answered.link = bob.link
        assert (await answered.bye()).status == 200
        assert len(alice.received("BYE")) == 1


async def test_a_private_next_hop_needs_to_be_named_once(edge_server: EdgeServerFactory, home: EdgeServer) -> None:
    next_hop = f"sip:127.0.0.1:{home.port};transport=tcp"
    for sip, statuses in (({}, range(400, 600)), ({"trusted_core": ["127.0.0.0/8"]}, (200,))):
        edge = edge_server({"role": "edge", "sip": {"next_hop": next_hop, **sip}})
        async with sip_ua(edge, "alice") as alice:
            assert (await alice.register()).status in statuses


@pytest.mark.requirement("OB-RTE-03", "OB-FAIL-01")
async def test_rfc5626_5_3_1_the_address_of_a_client_that_has_gone_is_not_dialled(edge: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice"), await registered(edge, stack, "bob")
        host, port = bob.address
        assert bob.link is not None
        bob.link.reset()
        await bob.link.wait_closed()
        callers: list[asyncio.StreamWriter] = []
        trap = await asyncio.start_server(lambda reader, writer: callers.append(writer), host, port)
        async with trap:
            assert (await alice.message(bob.uri, b"are you there?")).status == 480
            assert (await alice.message(bob.uri, b"are you there?")).status == 480
        assert callers == []


@pytest.mark.requirement("OB-FAIL-03")
async def test_rfc5626_7_a_udp_client_whose_port_is_closed_has_failed_without_a_wait(
    edge_server: EdgeServerFactory, home: EdgeServer
) -> None:
    outbound = {"no_response": 0.0}  # ICMP alone tells
    edge = make_edge(edge_server, home, outbound=outbound)
    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice"), await registered(edge, stack, "bob", "udp")
        await bob.stop()
        assert (await alice.message(bob.uri, b"are you there?", timeout=10)).status == 480
        assert edge.metrics().value("edge_flow_failed_total", reason="unreachable") == 1


@pytest.mark.requirement("OB-RTE-05")
@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"stall_timeout": 1, "send_queue": 64 << 20}, "stalled"), ({"send_queue": 65536}, "send_queue")],
)
async def test_rfc3261_18_4_a_flow_whose_client_reads_nothing_fails_and_what_comes_next_is_430(
    edge_server: EdgeServerFactory, home: EdgeServer, limits: dict[str, Any], reason: str
) -> None:
    """Too long, or too much. What had left before arrives whole, and in order."""
    edge = make_edge(edge_server, home, limits={"trusted": LOOPBACK, **limits})
    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice"), await registered(edge, stack, "bob")
        assert bob.link is not None
        assert bob.registration is not None
        route = {"Route": bob.registration["Path"]}  # the token of his flow: nobody but the edge is asked
        bob.link.pause_reading()
        flood: list[asyncio.Task[Response]] = []
        async with deadline(60):
            while edge.metrics().value("edge_flow_failed_total", reason=reason) == 0:
                for number in range(len(flood), min(len(flood) + 20, 500)):  # 15 MB: more than the system holds
                    body = b"%06d" % number + b"x" * 30_000
                    flood.append(asyncio.create_task(alice.message(bob.uri, body, headers=route, timeout=60)))
                await asyncio.sleep(0.05)
        assert (await alice.message(bob.uri, b"next", headers=route)).status == 430
        assert {response.status for response in await asyncio.gather(*flood)} == {430}
        bob.link.resume_reading()
        await bob.link.wait_closed()
        bodies = [raw.partition(b"\r\n\r\n")[2] for raw in bob.received("MESSAGE")]
        assert bodies == [b"%06d" % number + b"x" * 30_000 for number in range(len(bodies))]
        assert bodies
        assert bob.errors == []


@pytest.mark.requirement("OB-TOK-09")
async def test_udp_clients_are_reached_by_their_old_tokens_after_a_restart_of_the_edge_and_others_are_not(
    edge: EdgeServer,
) -> None:
    async with AsyncExitStack() as stack:
        bob, carol = await registered(edge, stack, "bob", "udp"), await registered(edge, stack, "carol")
        edge.restart()
        alice = await registered(edge, stack, "alice")
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await alice.message(carol.uri, b"are you there?")).status == 480


@pytest.mark.requirement("OB-TOK-08", "OB-TOK-06")
async def test_rfc5626_5_2_keys_change_on_reload_and_no_client_is_lost_while_the_old_one_is_named(
    edge: EdgeServer, home: EdgeServer
) -> None:
    """From the key that was made to one that is configured, on to a second, and away with the first."""
    port = {"bind": f"127.0.0.1:{edge.port}"}
    sip = {"sip": {"next_hop": f"sip:127.0.0.1:{home.port};transport=tcp", "allow_targets": LOOPBACK}}
    keys = ["11" * 32, "22" * 32]

    async def seal_with(*chosen: str) -> None:
        before = edge.metrics().value("edge_config_last_reload_timestamp_seconds")
        edge.write_config({**open_config(**sip), "role": "edge", "listen": [port], "outbound": {"token_keys": chosen}})
        edge.signal(signal.SIGHUP)
        await eventually(lambda: edge.metrics().value("edge_config_last_reload_timestamp_seconds") > before)
        assert edge.metrics().value("edge_config_last_reload_successful") == 1
        assert "need a restart" not in edge.log_text()

    async with AsyncExitStack() as stack:
        alice, bob = await registered(edge, stack, "alice"), await registered(edge, stack, "bob")
        assert bob.registration is not None
        first = bob.registration["Path"]
        await seal_with(keys[0])
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await bob.register()).status == 200
        assert bob.registration["Path"] == first  # the same flow, the same token
        await bob.reconnect()
        assert (await bob.register()).status == 200
        second = bob.registration["Path"]
        await seal_with(keys[1], keys[0])
        assert (await exchange_messages(alice, bob)).status == 200
        await seal_with(keys[1])
        assert (await alice.message(bob.uri, b"lost", headers={"Route": second})).status == 430
        assert (await bob.register()).status == 200
        assert bob.registration["Path"] != second
        assert (await exchange_messages(alice, bob)).status == 200


@pytest.mark.requirement("OB-RTE-02")
async def test_rfc5626_7_a_udp_client_is_spoken_to_from_the_address_it_registered_at(
    edge_server: EdgeServerFactory,
) -> None:
    home = edge_server(open_config(sip={"trusted_edges": LOOPBACK}, auth={"required": False}))
    ports = (free_port(), free_port())
    listen = [{"bind": f"127.0.0.1:{port}"} for port in ports]
    next_hop = f"sip:127.0.0.1:{home.port};transport=tcp"
    config = {**open_config(sip={"next_hop": next_hop}), "role": "edge", "listen": listen}
    edge = edge_server(config, port=ports[0])
    async with HostileUdp(("127.0.0.1", ports[1])) as phone, sip_ua(edge, "alice") as alice:
        contact = '<sip:bob@192.0.2.99>;reg-id=1;+sip.instance="<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
        via = "SIP/2.0/UDP phone.example;branch=z9hG4bKphone;rport"
        headers: dict[str, Any] = {"Contact": contact, "Supported": "path, outbound"}
        to = "<sip:bob@example.com>"
        await phone.send(request("REGISTER", "sip:example.com", user="bob", to=to, via=via, **headers))
        assert (await phone.read()).startswith(b"SIP/2.0 200 ")
        waiting = asyncio.create_task(alice.message("sip:bob@example.com", b"hello"))
        data, source = await phone.read_from()
        assert data.startswith(b"MESSAGE sip:bob@192.0.2.99 ")
        assert source == ("127.0.0.1", ports[1])
        waiting.cancel()
        await eventually(waiting.done, what="the end of the request")
