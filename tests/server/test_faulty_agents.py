"""Agents that do not do as they should, each by name, and what the server makes of them (outbound.md, section 20)."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, answering, connections_open, counted, exchange_messages, open_config, sip_ua
from tests.ua.sip import CallFailed, SipUA
from tests.ua.wait import eventually

INSTANCE = "urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"
OTHER = "urn:uuid:00000000-0000-1000-8000-0000000000b0"


async def reached(alice: SipUA, bob: SipUA) -> int:
    """The status of a MESSAGE from one to the other."""
    bob.on_request = answering()
    return (await alice.message(bob.uri, b"hello")).status


@pytest.mark.requirement("OB-UA-09")
async def test_a_silent_agent_does_not_keep_another_device_from_answering(server: EdgeServer) -> None:
    async with (
        sip_ua(server, "alice") as alice,
        sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as silent,
        sip_ua(server, "bob", instance=OTHER, reg_id=1) as bob,
    ):
        silent.on_request = lambda ua, request: None
        for agent in (silent, bob):
            await agent.register()
        call = alice.start_invite(bob.uri)
        bob.accept(await bob.next_request("INVITE"))
        await (await call.dialog()).ack()
        await bob.next_request("ACK")
        await eventually(lambda: len(silent.received("INVITE")) == 1, what="the INVITE at the silent one")


@pytest.mark.requirement("OB-UA-09")
async def test_a_pong_swallower_stays_reachable(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as bob:
        bob.answer_pings = False
        await bob.register()
        await bob.ping()
        assert await reached(alice, bob) == 200


@pytest.mark.requirement("OB-UA-09")
async def test_a_slow_reader_holds_nobody_else_up(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice, bob, carol, dave = [
            await stack.enter_async_context(sip_ua(server, name)) for name in ("alice", "bob", "carol", "dave")
        ]
        for agent in (bob, dave):
            await agent.register()
        assert bob.link is not None
        bob.link.pause_reading()
        for number in range(50):
            alice.send_raw(_message(alice, bob, number))
        assert (await exchange_messages(carol, dave)).status == 200
        bob.link.resume_reading()
        await eventually(lambda: len(bob.received("MESSAGE")) == 50, what="all messages at the slow reader")


def _message(sender: SipUA, to: SipUA, number: int) -> bytes:
    body = b"x" * 20000
    lines = [f"MESSAGE {to.uri} SIP/2.0", f"Via: {sender.via()}", "Max-Forwards: 70", f"To: <{to.uri}>"]
    lines += ["From: <sip:x@far.example>;tag=x", f"Call-ID: slow-{number}", "CSeq: 1 MESSAGE"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.requirement("OB-UA-09")
async def test_a_port_changer_is_gone_until_it_registers(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", "udp", instance=INSTANCE, reg_id=1) as bob:
        await bob.register()
        await bob.reconnect()
        assert await reached(alice, bob) == 480
        await bob.register()
        assert await reached(alice, bob) == 200


@pytest.mark.requirement("OB-UA-09")
async def test_a_reconnect_without_register_reaches_nobody(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as bob:
        await bob.register()
        await bob.reconnect(reset=True)
        assert await reached(alice, bob) == 480
        assert bob.received("MESSAGE") == []
        await bob.register()
        assert await reached(alice, bob) == 200


@pytest.mark.requirement("OB-UA-09")
async def test_an_old_route_after_a_reconnect_leads_to_the_new_flow(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as bob:
        await bob.register()
        call = alice.start_invite(bob.uri)
        bob.accept(await bob.next_request("INVITE"))
        dialog = await call.dialog()
        await dialog.ack()
        await bob.reconnect(reset=True)
        await bob.register()
        bob.on_request = answering()
        assert (await dialog.bye()).status == 200
        assert len(bob.received("BYE")) == 1


@pytest.mark.requirement("OB-UA-09")
async def test_of_two_devices_with_one_reg_id_the_later_one_is_there(server: EdgeServer) -> None:
    async with (
        sip_ua(server, "alice") as alice,
        sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as first,
        sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as second,
    ):
        await first.register()
        await second.register()
        assert len(second.bindings()) == 1
        assert await reached(alice, second) == 200
        assert first.received("MESSAGE") == []


@pytest.mark.requirement("OB-UA-09")
async def test_a_duplicate_register_changes_nothing(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", "udp", instance=INSTANCE, reg_id=1) as bob:
        await bob.register()
        answers = len(bob.received())
        bob.send_raw(bob.sent("REGISTER")[-1])
        await eventually(lambda: len(bob.received()) == answers + 1, what="the answer once more")
        assert bob.received()[-1] == bob.received()[-2]
        assert await reached(alice, bob) == 200


@pytest.mark.requirement("OB-UA-09")
async def test_a_cseq_that_goes_backwards_is_refused_and_the_binding_stays(server: EdgeServer) -> None:
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", instance=INSTANCE, reg_id=1) as bob:
        await bob.register()
        bob.reuse_nonce = True
        assert (await bob.register(headers={"CSeq": "1 REGISTER"})).status == 400
        assert await reached(alice, bob) == 200


@pytest.mark.requirement("OB-WS-09")
@pytest.mark.parametrize("transport", ["ws", "wss"])
async def test_rfc5626_6_a_page_that_is_loaded_again_leaves_no_ghost(server: EdgeServer, transport: str) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        pages = [
            await stack.enter_async_context(sip_ua(server, "erin", transport, instance=INSTANCE, reg_id=1))
            for _ in range(2)
        ]
        for page in pages:
            await page.register()
            assert len(page.bindings()) == 1
        assert pages[0].contact_uri() != pages[1].contact_uri()
        assert await reached(alice, pages[1]) == 200
        assert pages[1].link is not None
        failed = server.metrics().value("edge_flow_failed_total", reason="reset")
        pages[1].link.reset()
        await counted(server, "edge_flow_failed_total", failed + 1, reason="reset")
        with pytest.raises(CallFailed) as gone:
            await alice.invite(pages[1].uri)
        assert gone.value.response.status == 480


@pytest.mark.requirement("OB-FAIL-11")
async def test_udp_flows_without_a_registration_and_traffic_are_forgotten(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(sip={"udp_flow_timeout": 1, "min_expires": 1}), USERS)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            agent = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
            await agent.register(1, headers={"Contact": f"<{agent.contact_uri()}>;expires=1"})
        await counted(server, "edge_connections_opened_total", 20, transport="udp")
        await connections_open(server, 0, transport="udp")
        assert server.metrics().value("edge_sip_registrations") == 0
