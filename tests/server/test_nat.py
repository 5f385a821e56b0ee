"""Clients behind a NAT, and what is never challenged: rport, received, flows that move (RFC 3581, RFC 5626)."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import TRANSPORTS, USERS, answering, exchange_messages, open_config, sip_ua
from tests.ua.hostile import HostileUdp
from tests.ua.sip import SipUA
from tests.ua.sip_message import address_uri
from tests.ua.wait import eventually


def options(via: str) -> bytes:
    mark = secrets.token_hex(6)
    lines = ["OPTIONS sip:example.com SIP/2.0", f"Via: {via};branch=z9hG4bK{mark}", "Max-Forwards: 70"]
    lines += [f"From: <sip:x@far.example>;tag={mark}", "To: <sip:example.com>", f"Call-ID: {mark}", "CSeq: 1 OPTIONS"]
    return "\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()


def top_via(answer: bytes) -> str:
    return answer.split(b"\r\n")[1].decode()


@pytest.mark.requirement("OB-NAT-01")
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_rfc3581_4_rport_is_filled_and_received_added_on_every_transport(
    server: EdgeServer, transport: str
) -> None:
    async with sip_ua(server, "alice", transport) as alice:
        response = await alice.options("sip:example.com", auth=False)
        host, port = alice.address
        assert f";rport={port};received={host}" in response["Via"]  # also where sent-by says the same
        via = f"SIP/2.0/{transport.upper()} 203.0.113.9:9;branch=z9hG4bK{secrets.token_hex(8)};x=y;rport;z"
        response = await alice.options("sip:example.com", auth=False, headers={"Via": via})
        assert f"rport={port}" in response["Via"]
        assert f"received={host}" in response["Via"]
        assert "203.0.113.9:9" in response["Via"]


@pytest.mark.requirement("OB-NAT-02")
async def test_rfc3581_4_answers_on_udp_leave_from_the_socket_that_was_asked(server: EdgeServer) -> None:
    edge = ("127.0.0.1", server.port)
    async with HostileUdp(edge) as client, HostileUdp(edge) as advertised:
        port = advertised.local[1]
        await client.send(options(f"SIP/2.0/UDP host.example:{port}"))  # no rport: to received and the sent-by port
        answer, source = await advertised.read_from()
        assert source == edge
        assert ";received=127.0.0.1" in top_via(answer)
        assert "rport" not in top_via(answer)
        await client.send(options(f"SIP/2.0/UDP host.example:{port};rport"))
        answer, source = await client.read_from()
        assert source == edge
        assert f";rport={client.local[1]};received=127.0.0.1" in top_via(answer)
        await client.send(options(f"SIP/2.0/UDP 127.0.0.1:{client.local[1]}"))
        assert "received" not in top_via(await client.read())  # sent-by says what the socket saw


@pytest.mark.requirement("OB-NAT-03")
async def test_two_plain_clients_behind_nats_call_each_other_and_their_contacts_stay(
    edge_server: EdgeServerFactory,
) -> None:
    """Their Via and Contact name addresses nobody can reach; the way back is the flow they came by."""
    server = edge_server(open_config(outbound={"force": "all"}), USERS)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "udp"))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
        contacts = {ua.user: f"<sip:{ua.user}@192.168.77.{number}:5060>" for number, ua in enumerate((alice, bob), 1)}
        for ua in (alice, bob):
            response = await ua.register(contact=contacts[ua.user])
            assert response.status == 200
            assert response["Contact"].startswith(contacts[ua.user])
        for caller, callee in ((alice, bob), (bob, alice)):
            mine, theirs = contacts[caller.user], contacts[callee.user]
            call = caller.start_invite(callee.uri, headers={"Contact": mine})
            invite = await callee.next_request("INVITE")
            assert invite.uri == theirs.strip("<>")
            assert invite.values("Contact") == [mine]
            callee.respond(invite, 200, headers={"Contact": theirs})
            answered = await call.result()
            assert answered.values("Contact") == [theirs]
            dialog = await call.dialog()
            await dialog.ack()
            await callee.next_request("ACK")
            callee.on_request = answering()
            assert (await dialog.bye()).status == 200
            callee.on_request = None
            for received in caller.received() + callee.received():
                assert b"alias=" not in received
                assert b"nat=yes" not in received


@pytest.mark.requirement("OB-NAT-04")
async def test_rfc5626_a_new_source_port_is_a_new_flow_and_heir_to_the_old_token(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "tcp"))
        old = await stack.enter_async_context(sip_ua(server, "bob", "udp", reg_id=1))
        old.on_request = answering()
        token = address_uri((await old.register())["Path"])
        via_token = {"Route": f"<{token}>"}
        assert (await alice.message(old.uri, b"one", headers=via_token)).status == 200
        new = await stack.enter_async_context(sip_ua(server, "bob", "udp", reg_id=1, instance=old.instance))
        new.on_request = answering()
        assert (await new.options("sip:example.com")).status == 200  # a datagram from there moves nothing
        assert (await alice.message(old.uri, b"two", headers=via_token)).status == 200
        assert len(old.received("MESSAGE")) == 2
        assert address_uri((await new.register())["Path"]) != token
        assert (await alice.message(old.uri, b"three", headers=via_token)).status == 200
        assert len(old.received("MESSAGE")) == 2
        assert new.received("MESSAGE")[0].endswith(b"three")


# ------------------------------------------------------------------------------------------ SIP-REG-13, SIP-AUT-02


@pytest.mark.requirement("SIP-REG-13")
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
async def test_rfc5626_5_3_1_a_binding_ends_with_its_connection_and_nobody_is_dialled(
    server: EdgeServer, transport: str, reset: bool
) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "udp"))
        bob = await stack.enter_async_context(sip_ua(server, "bob", transport, reg_id=1))
        # A Contact that could be dialled, and is watched: nobody knocks there.
        door = SipUA("door", transport="tcp") if transport == "tcp" else None
        if door is not None:
            await stack.enter_async_context(door)
        contact = None
        if door is not None:
            contact = f'<sip:bob@127.0.0.1:{door.address[1]};transport=tcp>;reg-id=1;+sip.instance="<{bob.instance}>"'
        response = await bob.register(contact=contact)
        token = address_uri(response["Path"])
        assert bob.link is not None
        before = server.metrics().value("edge_connections")
        if reset:
            bob.link.reset()
            await bob.link.wait_closed()
        else:
            await bob.link.close()
        await eventually(lambda: server.metrics().value("edge_connections") < before)
        assert bob.instance not in server.admin_get("/api/registrations?limit=1000")
        assert (await alice.message(bob.uri, b"?")).status == 480
        assert (await alice.message(bob.uri, b"?", headers={"Route": f"<{token}>"})).status == 430
        if door is not None:
            assert door.listener is not None
            assert door.listener.links == []


@pytest.mark.requirement("SIP-AUT-02")
async def test_rfc3261_22_1_ack_and_cancel_are_never_challenged(server: EdgeServer) -> None:
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "tcp") as bob:
        await alice.register()
        await bob.register()
        stale = 'Digest username="alice", realm="example.com", nonce="old", uri="sip:x", response="0"'
        for credentials in (None, stale):
            call = alice.start_invite(bob.uri)
            invite = await bob.next_request("INVITE")
            bob.respond(invite, 200)
            dialog = await call.dialog()
            raw = await dialog.ack(headers={"Proxy-Authorization": credentials})
            assert raw.get("Proxy-Authorization") == credentials
            assert (await bob.next_request("ACK")).call_id == invite.call_id
            bob.on_request = answering()
            assert (await dialog.bye()).status == 200
            bob.on_request = None
        call = alice.start_invite(bob.uri)
        ringing = await bob.next_request("INVITE")
        bob.respond(ringing, 180)
        await call.provisional(180)
        assert (await call.cancel()).status == 200  # CANCEL has no credentials
        cancel = await bob.next_request("CANCEL")
        assert cancel.get("Proxy-Authorization") is None
        bob.respond(cancel, 200)
        bob.respond(ringing, 487)
        assert (await call.result()).status == 487
        assert (await exchange_messages(bob, alice)).status == 200
        assert not any(b"ACK" in answer or b"CANCEL" in answer for answer in alice.received("SIP/2.0 407"))
