"""Requests that leave for elsewhere, and calls with everything in them, through the running server and a real DNS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import LOOPBACK, USERS, answering, cancelled_while_ringing, open_config, registered, sip_ua
from tests.ua.dns import DnsServer
from tests.ua.sip import CallFailed, SipUA
from tests.ua.sip_message import address_uri, uri_parameters
from tests.ua.wait import eventually


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def server(edge_server: EdgeServerFactory, dns: DnsServer) -> EdgeServer:
    """A server that asks our name server."""
    return edge_server(open_config(sip={"nameservers": [dns.address], "dns_timeout": 3}), USERS)


def far_peer(transport: str = "udp", port: int = 0, name: str = "far") -> SipUA:
    """Somebody beyond the server, who listens."""
    return SipUA(name, domain="far.example", transport=transport, local_port=port, local_host="127.0.0.1")


def srv(transport: str, *targets: tuple[int, int, str]) -> list[str]:
    """SRV records of far.example: (priority, port, host)."""
    return [f"_sip._{transport}.far.example. 60 IN SRV {priority} 0 {port} {host}." for priority, port, host in targets]


# ------------------------------------------------------------------------------------------ the DNS


@pytest.mark.requirement("SIP-DNS-07", "SIP-DNS-09", "SIP-PRX-19", "SIP-TRP-11")
async def test_rfc3263_4_3_the_next_server_gets_what_the_first_does_not_take(
    server: EdgeServer, dns: DnsServer
) -> None:
    async with far_peer() as peer, sip_ua(server, "alice") as alice:
        records = srv("udp", (1, free_port(), "dead.far.example"), (2, peer.address[1], "live.far.example"))
        dns.set(*records, "dead.far.example. 60 IN A 127.0.0.1", "live.far.example. 60 IN A 127.0.0.1")
        peer.on_request = lambda ua, request: 404 if request.method == "INVITE" else 200
        assert (await alice.message("sip:x@far.example", b"hello", timeout=5)).status == 200
        (message,) = peer.received("MESSAGE")
        assert message.startswith(b"MESSAGE sip:x@far.example SIP/2.0\r\n")
        with pytest.raises(CallFailed) as failed:
            await alice.invite("sip:x@far.example")
        assert failed.value.response.status == 404
        assert len(peer.received("INVITE")) == 1  # an answer ends the search


@pytest.mark.requirement("SIP-DNS-08")
async def test_rfc3263_4_what_belongs_to_an_invite_goes_where_the_invite_went(
    server: EdgeServer, dns: DnsServer
) -> None:
    async with far_peer() as old, far_peer() as new, sip_ua(server, "alice") as alice:
        dns.set(*srv("udp", (1, old.address[1], "a.far.example")), "a.far.example. 0 IN A 127.0.0.1")
        call = alice.start_invite("sip:x@far.example")
        invite = await old.next_request("INVITE")
        old.respond(invite, 180)
        await call.provisional(180)
        dns.set(*srv("udp", (1, new.address[1], "b.far.example")), "b.far.example. 0 IN A 127.0.0.1")
        await call.cancel()
        old.respond(await old.next_request("CANCEL"), 200)
        old.respond(invite, 487)
        assert (await old.next_request("ACK")).branch == invite.branch
        assert (await call.result()).status == 487
        assert new.received() == []


@pytest.mark.requirement("SIP-DNS-06")
async def test_rfc7984_3_1_both_families_are_asked_for_and_one_is_tried_at_a_time(
    edge_server: EdgeServerFactory, dns: DnsServer
) -> None:
    port = free_port()
    sections = open_config(sip={"nameservers": [dns.address]})
    for binds, kinds in (([f"127.0.0.1:{port}"], {"A"}), ([f"127.0.0.1:{port}", f"[::1]:{port}"], {"A", "AAAA"})):
        server = edge_server({**sections, "listen": [{"bind": bind} for bind in binds]}, USERS, port=port)
        async with far_peer() as four, sip_ua(server, "alice") as alice:
            six = SipUA("far", domain="far.example", transport="udp", local_host="::1", local_port=four.address[1])
            async with six:
                host = "both.far.example"
                records = [f"{host}. 60 IN A 127.0.0.1", f"{host}. 60 IN AAAA ::1"]
                dns.set(*srv("udp", (1, four.address[1], host)), *records)
                dns.questions.clear()
                waiting = asyncio.create_task(alice.message("sip:x@far.example", b"?"))
                peer, other = (four, six)
                request = await peer.next_request("MESSAGE")
                await eventually(lambda peer=peer: peer.retransmissions_absorbed, what="a repeat")
                assert other.received() == []
                peer.respond(request, 200)
                assert (await waiting).status == 200
                assert {kind for name, kind in dns.questions if name == host} == kinds
        server.stop()


@pytest.mark.requirement("SIP-PRX-28")
async def test_rfc3261_21_5_4_a_server_that_asks_for_it_is_left_alone(server: EdgeServer, dns: DnsServer) -> None:
    async with far_peer() as tired, far_peer() as fresh, sip_ua(server, "alice") as alice:
        host = "h.far.example"
        dns.set(*srv("udp", (1, tired.address[1], host), (2, fresh.address[1], host)), f"{host}. 60 IN A 127.0.0.1")
        tired.on_request = lambda ua, request: {"code": 503, "headers": {"Retry-After": "60"}}
        fresh.on_request = answering()
        for _ in range(2):
            assert (await alice.message("sip:x@far.example", b"hello")).status == 200
        assert (len(tired.received("MESSAGE")), len(fresh.received("MESSAGE"))) == (1, 2)


async def test_a_name_server_that_stays_silent_gives_an_answer_all_the_same(server: EdgeServer, dns: DnsServer) -> None:
    dns.silent = True
    async with sip_ua(server, "alice") as alice:
        assert (await alice.message("sip:x@far.example", b"?", timeout=15)).status == 504


# ------------------------------------------------------------------------------------------ ways out


@pytest.mark.requirement("SIP-TRP-06")
async def test_rfc3261_18_a_connection_is_used_again_both_ways(server: EdgeServer) -> None:
    async with far_peer("tcp") as peer, sip_ua(server, "alice") as alice:
        peer.on_request = answering()
        uri = f"sip:x@127.0.0.1:{peer.address[1]};transport=tcp"
        for _ in range(3):
            assert (await alice.message(uri, b"hello")).status == 200
        assert peer.listener is not None
        (link,) = peer.listener.links
        listed = json.loads(server.admin_get("/api/connections"))["items"]
        remotes = [row["remote"] for row in listed]
        assert remotes.count(f"127.0.0.1:{peer.address[1]}") == 1  # the same table as those that came in
        assert (await peer.request("OPTIONS", "sip:example.com", link=link, auth=False)).status == 200


@pytest.mark.requirement("SIP-TRP-07")
@pytest.mark.parametrize("with_tcp", [True, False])
async def test_rfc3261_18_1_1_what_is_large_leaves_by_tcp_or_else_by_udp(server: EdgeServer, with_tcp: bool) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        udp = await stack.enter_async_context(far_peer("udp", port))
        udp.on_request = answering()
        if with_tcp:
            tcp = await stack.enter_async_context(far_peer("tcp", port))
            tcp.on_request = answering()
        uri = f"sip:x@127.0.0.1:{port}"
        assert (await alice.message(uri, b"small")).status == 200
        assert (await alice.message(uri, b"x" * 1400)).status == 200
        if with_tcp:
            (large,) = tcp.received("MESSAGE")
            assert b"\r\nVia: SIP/2.0/TCP 127.0.0.1:" in large
            assert len(udp.received("MESSAGE")) == 1
        else:
            assert b"\r\nVia: SIP/2.0/UDP 127.0.0.1:" in udp.received("MESSAGE")[1]


@pytest.mark.requirement("SIP-TRP-15")
async def test_nothing_is_sent_to_addresses_nobody_allowed(edge_server: EdgeServerFactory, dns: DnsServer) -> None:
    server = edge_server({"limits": {"trusted": LOOPBACK}, "sip": {"nameservers": [dns.address]}}, USERS)
    dns.set("inside.far.example. 60 IN A 127.0.0.1", "any.far.example. 60 IN A 0.0.0.0")
    async with far_peer() as peer, sip_ua(server, "alice") as alice:
        port = peer.address[1]
        targets = ["127.0.0.1", "inside.far.example", "any.far.example", "255.255.255.255", "239.1.1.1", "10.0.0.1"]
        for host in targets:
            assert (await alice.message(f"sip:x@{host}:{port}", b"?")).status == 403, host
        routed = await alice.message("sip:x@far.example", b"?", headers={"Route": f"<sip:127.0.0.1:{port};lr>"})
        assert routed.status == 403
        assert peer.received() == []


# ------------------------------------------------------------------------------------------ calls


async def test_what_a_call_is_made_of_passes_in_both_directions(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        bob = await registered(server, stack, "bob", "wss")
        call = alice.start_invite(bob.uri, b"v=0\r\n", headers={"Supported": "100rel, timer"})
        invite = await bob.next_request("INVITE")
        bob.respond(invite, 183, headers={"Require": "100rel", "RSeq": "7"})
        early = await call.provisional(183)
        assert early.values("Require") == ["100rel"]
        routes = early.values("Record-Route")[::-1]
        waiting = asyncio.create_task(
            alice.request(
                "PRACK",
                address_uri(early.values("Contact")[0]),
                to=early["To"],
                headers=[("RAck", f"7 {invite.cseq.sequence} INVITE"), ("Call-ID", early["Call-ID"])]
                + [("Route", route) for route in routes],
            )
        )
        prack = await bob.next_request("PRACK")
        assert prack["RAck"] == f"7 {invite.cseq.sequence} INVITE"
        bob.respond(prack, 200)
        assert (await waiting).status == 200
        answered = bob.accept(invite, b"v=1\r\n")
        dialog = await call.dialog()
        await dialog.ack()
        await bob.next_request("ACK")
        bob.on_request = alice.on_request = lambda ua, request: 200 if request.method == "UPDATE" else None
        assert (await dialog.request("UPDATE", headers={"Session-Expires": "1800"})).status == 200
        assert (await answered.request("UPDATE")).status == 200
        bob.on_request = alice.on_request = None
        for side, ua, other in ((dialog, alice, bob), (answered, bob, alice)):
            waiting = asyncio.create_task(side.reinvite(b"v=2\r\n"))
            again = await other.next_request("INVITE")
            assert again.body == b"v=2\r\n"
            other.respond(again, 200, body=b"v=3\r\n")
            assert (await waiting).status == 200
            await side.ack()
            await other.next_request("ACK")
            assert ua.stray == []
        bob.on_request = answering()
        assert (await dialog.bye()).status == 200


async def test_a_redirection_is_relayed_and_a_stranger_is_challenged(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tls")
        bob = await registered(server, stack, "bob", "udp")
        refused = alice.start_invite(bob.uri, auth=False)
        assert (await refused.result()).status == 407
        assert bob.received("INVITE") == []
        bob.on_request = lambda ua, request: {"code": 302, "headers": {"Contact": "<sip:carol@example.com>"}}
        with pytest.raises(CallFailed) as failed:
            await alice.invite(bob.uri)
        assert failed.value.response.status == 302
        assert failed.value.response["Contact"] == "<sip:carol@example.com>"


@pytest.mark.requirement("SIP-CAN-05", "SIP-PRX-17")
async def test_a_forked_call_is_answered_once_and_the_others_stop_ringing(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        phones = [await registered(server, stack, "bob", transport) for transport in ("udp", "tcp", "tls")]
        call = alice.start_invite(phones[0].uri)
        invites = [await phone.next_request("INVITE") for phone in phones]
        for phone, invite in zip(phones, invites, strict=True):
            phone.respond(invite, 180)
        await eventually(lambda: len(call.provisionals) >= 4, what="three phones ringing")
        phones[1].accept(invites[1], b"v=1\r\n")
        dialog = await call.dialog()
        for phone, invite in ((phones[0], invites[0]), (phones[2], invites[2])):
            cancel = await phone.next_request("CANCEL")
            assert cancel["Reason"] == 'SIP;cause=200;text="Call completed elsewhere"'
            phone.respond(cancel, 200)
            phone.respond(invite, 487)
            await phone.next_request("ACK")
        await dialog.ack()
        await phones[1].next_request("ACK")
        phones[1].on_request = answering()
        assert (await dialog.bye()).status == 200


async def test_a_call_answered_while_it_is_cancelled_stands(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "tcp")
        bob = await registered(server, stack, "bob", "udp")
        call, invite, cancel = await cancelled_while_ringing(alice, bob)
        bob.accept(invite, b"v=1\r\n")
        bob.respond(cancel, 200)
        dialog = await call.dialog()
        await dialog.ack()
        await bob.next_request("ACK")
        bob.on_request = answering()
        assert (await dialog.bye()).status == 200


async def test_the_server_is_one_hop_between_strict_ends(server: EdgeServer) -> None:
    """A dialog whose route set a strict router has rewritten still finds its way (RFC 3261 §16.4)."""
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice", "udp")
        bob = await registered(server, stack, "bob", "udp")
        call = alice.start_invite(bob.uri)
        bob.accept(await bob.next_request("INVITE"), b"v=1\r\n")
        dialog = await call.dialog()
        await dialog.ack()
        route = dialog.route_set[0]
        assert "lr" in uri_parameters(address_uri(route))
        headers = [("Route", None), ("Route", f"<{dialog.remote_target}>")]
        target, dialog.remote_target, dialog.route_set = dialog.remote_target, address_uri(route), []
        bob.on_request = answering()
        assert (await dialog.request("INFO", headers=headers)).status == 200
        (info,) = bob.received("INFO")
        assert info.startswith(f"INFO {target} SIP/2.0\r\n".encode())
