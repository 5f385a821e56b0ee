"""Registration, calls and messages between transports, through the running server."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

import pytest

from edge.server import boot_stamp
from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import (
    TRANSPORTS,
    USERS,
    answering,
    cancelled_while_ringing,
    exchange_messages,
    open_config,
    registered,
    sip_ua,
)
from tests.ua.hostile import HostileClient, HostileUdp
from tests.ua.sip import CallFailed, SipUA
from tests.ua.sip_message import Request, header_parameter, uri_parameters
from tests.ua.wait import eventually

# Every transport calls and is called once.
PAIRS = [("udp", "tcp"), ("tcp", "tls"), ("tls", "wss"), ("wss", "ws"), ("ws", "udp"), ("udp", "udp")]


# ------------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_register_is_challenged_once_then_kept_and_removed(server: EdgeServer, transport: str) -> None:
    async with sip_ua(server, "alice", transport) as alice:
        first = await alice.register()
        assert (first.status, first.challenges) == (200, 1)
        (contact,) = first.values("Contact")
        assert contact.startswith(f"<{alice.contact_uri()}>")
        assert int(header_parameter(contact, "expires") or 0) > 3500
        gone = await alice.unregister()
        assert (gone.status, gone.values("Contact")) == (200, [])


async def test_a_user_added_by_the_command_may_register_and_nobody_else(edge_server: EdgeServerFactory) -> None:
    server = edge_server(started=False)
    server.add_user("alice@example.com", "alice-secret")
    server.start()
    async with (
        sip_ua(server, "alice") as alice,
        SipUA("alice", "wrong", server=("127.0.0.1", server.port), transport="tcp") as eve,
    ):
        assert (await alice.register()).status == 200
        assert (await eve.register()).status == 401
        async with sip_ua(server, "mallory", "udp") as mallory:
            assert (await mallory.register()).status == 401
    server.add_user("bob@example.com", "bob-secret")  # while it runs
    async with sip_ua(server, "bob", "udp") as bob:
        assert (await bob.register()).status == 200
    assert server.metrics().value("edge_auth_failures_total") >= 1


def test_two_starts_within_a_second_have_stamps_of_their_own() -> None:
    assert len({boot_stamp(1.8e9 + tenth / 10) for tenth in range(10)}) == 10
    assert boot_stamp(1.8e9) != boot_stamp(1.8e9 + 86400 * 365)
    assert 0 <= boot_stamp(2**40) < 2**32


async def test_bindings_on_udp_survive_a_restart_and_those_on_streams_do_not(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(), USERS)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        bob = await registered(server, stack, "bob", "tcp")
        carol = await registered(server, stack, "carol", "udp")
        dave = await stack.enter_async_context(sip_ua(server, "dave", "udp", reg_id=1))
        assert (await dave.register()).status == 200
        server.restart()
        assert (await exchange_messages(alice, carol)).status == 200
        assert (await exchange_messages(alice, dave)).status == 200
        answer = await alice.message(bob.uri, b"are you there?")
        assert answer.status == 480
        assert server.metrics().value("edge_connections_opened_total", transport="tcp") == 0  # nobody was dialled
        assert bob.link is not None
        assert bob.link.closed
        await bob.reconnect()
        assert (await bob.register()).status == 200
        assert (await exchange_messages(alice, bob)).status == 200


# ------------------------------------------------------------------------------------------ calls


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
@pytest.mark.requirement("SIP-TRP-17")
async def test_a_call_from_invite_to_bye_between_two_transports(server: EdgeServer, one: str, other: str) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", one)
        bob = await registered(server, stack, "bob", other)
        call = alice.start_invite(bob.uri, b"v=0\r\n")
        invite = await bob.next_request("INVITE")
        assert (await call.provisional(100)).status == 100
        assert invite.body == b"v=0\r\n"
        assert invite.uri == bob.contact_uri()
        bob.respond(invite, 180)
        assert (await call.provisional(180)).status == 180
        answered = bob.accept(invite, b"v=1\r\n")
        dialog = await call.dialog()
        assert dialog.response is not None
        assert dialog.response.body == b"v=1\r\n"
        await dialog.ack()
        assert (await bob.next_request("ACK")).uri == bob.contact_uri()
        # Both sides name the server in their route sets, and what they send comes through it.
        bob.on_request = alice.on_request = answering()
        assert (await dialog.request("INFO")).status == 200
        assert (await answered.request("INFO")).status == 200
        assert len(alice.received("INFO")) == len(bob.received("INFO")) == 1
        assert dialog.route_set == answered.route_set[::-1] != []
        assert all("lr" in uri_parameters(route.strip("<>")) for route in dialog.route_set)
        assert (await answered.bye()).status == 200
        assert len(alice.received("BYE")) == 1
        for request in (invite, *bob.received("ACK")):
            raw = request.raw if isinstance(request, Request) else request
            top, below = re.findall(rb"\r\nVia: SIP/2.0/([A-Z]+) ", raw)
            assert (top.decode(), below.decode()) == (other.upper(), one.upper())


async def test_cancel_ends_a_ringing_call_with_487(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tcp")
        bob = await registered(server, stack, "bob", "udp")
        call, invite, cancel = await cancelled_while_ringing(alice, bob)
        assert cancel.branch == invite.branch
        assert cancel.uri == invite.uri
        bob.respond(cancel, 200)
        bob.respond(invite, 487)
        assert (await call.result()).status == 487
        assert (await bob.next_request("ACK")).branch == invite.branch
        stray = await alice.request("CANCEL", bob.uri, auth=False)
        assert stray.status == 481


async def test_a_refusal_comes_back_as_it_is_and_its_ack_goes_one_hop_only(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "wss")
        bob = await registered(server, stack, "bob", "tcp")
        bob.on_request = lambda ua, request: {"code": 486, "reason": "Not Today", "headers": {"X-Why": "busy"}}
        with pytest.raises(CallFailed) as failed:
            await alice.invite(bob.uri)
        assert (failed.value.response.status, failed.value.response.reason) == (486, "Not Today")
        assert failed.value.response["X-Why"] == "busy"
        await eventually(lambda: bob.received("ACK"))
        (invite,), (ack,) = bob.received("INVITE"), bob.received("ACK")
        assert re.findall(rb"branch=([^;\r]+)", ack)[0] == re.findall(rb"branch=([^;\r]+)", invite)[0]
        assert len(re.findall(rb"\r\nVia:", ack)) == 1


@pytest.mark.parametrize(("one", "other"), PAIRS[:5], ids=str)
async def test_messages_and_options_pass_between_two_transports(server: EdgeServer, one: str, other: str) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", one)
        bob = await registered(server, stack, "bob", other)
        body = "grüße, €\r\n\r\nin zwei Teilen".encode()
        assert (await exchange_messages(alice, bob, body)).status == 200
        message = bob.received("MESSAGE")[0]
        assert message.endswith(b"\r\n\r\n" + body)
        assert b"Content-Length: %d\r\n" % len(body) in message
        assert (await alice.options(bob.uri)).status == 200
        assert len(bob.received("OPTIONS")) == 1
        own = await alice.options("sip:example.com")
        assert own.status == 200
        assert own["Accept"] == "application/sdp"
        assert (await alice.message("sip:nobody@example.com", b"?")).status == 404
        assert (await alice.message("sip:erin@example.com", b"?")).status == 480


@pytest.mark.requirement("SIP-TRP-05")
async def test_an_answer_for_a_caller_who_has_left_is_dropped_and_nobody_is_dialled(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tcp")
        bob = await registered(server, stack, "bob", "udp")
        opened = server.metrics().value("edge_connections_opened_total")
        call = alice.start_invite(bob.uri)
        invite = await bob.next_request("INVITE")
        assert alice.link is not None
        address = alice.link.local
        alice.link.reset()
        await asyncio.gather(call.task, return_exceptions=True)
        # Somebody listens where Alice was: a server that dialled her would be heard there.
        calls: list[object] = []
        watcher = await asyncio.start_server(lambda reader, writer: calls.append(writer), *address)
        async with watcher:
            bob.respond(invite, 486)
            await bob.next_request("ACK")  # the answer has arrived and been dealt with
            async with sip_ua(server, "carol") as carol:
                assert (await carol.options("sip:example.com")).status == 200
            assert calls == []
        assert server.metrics().value("edge_connections_opened_total") == opened + 1  # Carol's


# ------------------------------------------------------------------------------------------ Via


@pytest.mark.requirement("SIP-TRP-01", "SIP-TRP-02", "SIP-TRP-03")
async def test_received_and_rport_say_what_the_socket_saw(server: EdgeServer) -> None:
    request = (
        b"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/%b %b;branch=z9hG4bK%b%b\r\nMax-Forwards: 70\r\n"
        b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: via-%b\r\nCSeq: 1 OPTIONS\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    async with (
        HostileUdp(("127.0.0.1", server.port)) as udp,
        HostileUdp(("127.0.0.1", server.port)) as asked,
        HostileClient(("127.0.0.1", server.port)) as tcp,
    ):
        port = udp.local[1]
        await udp.send(request % (b"UDP", b"h.example:%d" % port, b"v1", b"", b"1"))
        assert b"Via: SIP/2.0/UDP h.example:%d;branch=z9hG4bKv1;received=127.0.0.1\r\n" % port in await udp.read()
        await udp.send(request % (b"UDP", b"127.0.0.1:%d" % port, b"v2", b";rport", b"2"))
        assert b";branch=z9hG4bKv2;rport=%d;received=127.0.0.1\r\n" % port in await udp.read()
        # What the sender claims is overwritten, and decides nothing.
        claim = b";received=127.0.0.2;rport=%d" % asked.local[1]
        await udp.send(request % (b"UDP", b"h.example", b"v3", claim, b"3"))
        answer = await udp.read()
        assert b"rport=%d" % port in answer
        assert b"received=127.0.0.1" in answer
        assert b"127.0.0.2" not in answer
        # Without rport the answer goes to the port of sent-by, from the socket that was asked.
        await udp.send(request % (b"UDP", b"h.example:%d" % asked.local[1], b"v4", b"", b"4"))
        data, source = await asked.read_from()
        assert source == ("127.0.0.1", server.port)
        assert b"z9hG4bKv4;received=127.0.0.1" in data
        await tcp.send(request % (b"TCP", b"h.example", b"v5", b";rport", b"5"))
        assert b";rport=%d;received=127.0.0.1\r\n" % tcp.local[1] in await tcp.read_until(b"\r\n\r\n")


# ------------------------------------------------------------------------------------------ UDP and time


async def test_retransmissions_on_udp_are_absorbed_and_answered_again(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        bob = await registered(server, stack, "bob", "tcp")
        alice.reuse_nonce = True
        assert (await exchange_messages(alice, bob)).status == 200
        absorbed = server.metrics().value("edge_sip_retransmissions_total")
        again = alice.sent("MESSAGE")[-1]
        for _ in range(3):
            alice.send_raw(again)
        await eventually(lambda: len(alice.stray) == 3, what="three more answers")
        assert {response.status for response in alice.stray} == {200}
        assert len(bob.received("MESSAGE")) == 1
        bob.on_request = None
        call = alice.start_invite(bob.uri)
        await call.provisional(100)
        invite = await bob.next_request("INVITE")
        assert call.transaction is not None
        alice.send_raw(call.transaction.request.raw)
        await eventually(lambda: [r.status for r in call.provisionals] == [100, 100], what="another 100")
        bob.respond(invite, 603)
        assert (await call.result()).status == 603
        assert len(bob.received("INVITE")) == 1
        assert server.metrics().value("edge_sip_retransmissions_total") >= absorbed + 4


async def test_a_request_without_an_answer_on_udp_is_repeated(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tls")
        bob = await registered(server, stack, "bob", "udp")

        waiting = asyncio.create_task(alice.message(bob.uri, b"knock"))
        request = await bob.next_request("MESSAGE")
        await eventually(lambda: bob.retransmissions_absorbed >= 2, what="two repeats")  # after 0.5 and 1.5 s
        assert set(bob.received("MESSAGE")) == {request.raw}
        bob.respond(request, 202)
        assert (await waiting).status == 202


@pytest.mark.requirement("SIP-TRP-11")
async def test_a_closed_udp_port_fails_the_call_long_before_its_timer(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tcp")
        bob = await registered(server, stack, "bob", "udp")
        assert bob.endpoint is not None
        await bob.endpoint.close()
        answer = await alice.message(bob.uri, b"gone?", timeout=5)
        assert answer.status in (408, 430, 480, 503)


@pytest.mark.requirement("SIP-TRP-08")
async def test_a_message_of_60000_octets_passes_from_udp_to_tcp(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        bob = await registered(server, stack, "bob", "tcp")
        body = bytes(ord("a") + n % 26 for n in range(60_000))
        assert (await exchange_messages(alice, bob, body)).status == 200
        assert bob.received("MESSAGE")[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.slow
async def test_a_callee_who_says_nothing_is_given_up_after_32_seconds(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tls")
        bob = await registered(server, stack, "bob", "tcp")
        call = alice.start_invite(bob.uri)
        # Nobody is told 408 for anything else (RFC 4320 §4.2), only that somebody tries.
        message = asyncio.create_task(alice.message(bob.uri, b"?", timeout=60))
        assert (await call.result(45)).status == 408
        assert len(bob.received("INVITE")) == len(bob.received("MESSAGE")) == 1
        assert not message.done()
        message.cancel()
        await asyncio.gather(message, return_exceptions=True)
