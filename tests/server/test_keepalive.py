"""Keep-alives and framing on streams of the running server, however the octets are cut."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer
from tests.server.agents import answering, registered, sip_ua
from tests.ua.hostile import HostileClient, HostileUdp, octets, pieces, random_pieces
from tests.ua.link import StreamLink, open_link
from tests.ua.stun import BINDING_SUCCESS, binding_request, mapped_address, parse
from tests.ua.wait import deadline, eventually

PING = b"\r\n\r\n"
BOTH = pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])


def options(branch: str, *, via: str = "TCP", rest: bytes = b"Content-Length: 0\r\n\r\n") -> bytes:
    return (
        f"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/{via} c.example;branch=z9hG4bK{branch};rport\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: {branch}\r\n"
        "CSeq: 7 OPTIONS\r\n"
    ).encode() + rest


def stream(server: EdgeServer, tls: bool = False) -> HostileClient:
    return HostileClient(("127.0.0.1", server.port), tls=tls)


async def answers(client: HostileClient, *branches: str) -> bytes:
    """Read until there is an answer to each of these OPTIONS, in that order; returns everything."""
    collected = bytearray()
    async with deadline():
        while collected.count(b"\r\n\r\n") < len(branches) or not collected.endswith(b"\r\n\r\n"):
            collected += await client.read()
    found = re.findall(rb"SIP/2.0 200 OK\r\nVia: SIP/2.0/\w+ c.example;branch=z9hG4bK(\w+)", collected)
    assert [branch.decode() for branch in found] == list(branches)
    return bytes(collected)


# ------------------------------------------------------------------------------------------ CRLF on streams


@BOTH
@pytest.mark.requirement("SIP-KA-01", "SIP-KA-02", "OB-KA-01", "OB-KA-03")
async def test_a_ping_gets_its_pong_however_it_is_cut(server: EdgeServer, tls: bool) -> None:
    async with stream(server, tls) as client:
        for ping in ([PING], octets(PING), pieces(PING, 3), pieces(PING, 1)):
            await client.send(ping)
            assert await client.read() == b"\r\n"
        await client.send(PING * 3)
        pongs = b""
        while len(pongs) < 6:
            pongs += await client.read()
        assert pongs == b"\r\n" * 3
        await client.send(PING + options("one"))
        assert (await answers(client, "one")).startswith(b"\r\nSIP/2.0 200 ")
        await client.send(options("two") + PING)
        data = await client.read_until(b"\r\n\r\n\r\n")
        assert data.startswith(b"SIP/2.0 200 ")
        assert data.endswith(b"\r\n\r\n\r\n")


@BOTH
@pytest.mark.requirement("OB-KA-02")
async def test_blank_lines_inside_a_message_are_no_pings(server: EdgeServer, tls: bool) -> None:
    async with stream(server, tls) as client:
        for cut in (
            [options("one", rest=b"Content-Length: 8\r\n\r\n" + PING * 2)],
            octets(options("one", rest=b"Content-Length: 8\r\n\r\n" + PING * 2)),
        ):
            await client.send(cut)
            assert (await answers(client, "one")).startswith(b"SIP/2.0 200 ")
        await client.send(options("two"))
        assert (await answers(client, "two")).startswith(b"SIP/2.0 200 ")  # nothing stood before it


@BOTH
@pytest.mark.requirement("SIP-KA-03", "OB-KA-04")
async def test_a_single_line_end_is_no_ping_and_two_far_apart_are_none_either(server: EdgeServer, tls: bool) -> None:
    async with stream(server, tls) as client:
        await client.send(b"\r\n")
        await asyncio.sleep(1.2)  # a half ping is forgotten after a second
        await client.send(b"\r\n" + options("one"))
        assert (await answers(client, "one")).startswith(b"SIP/2.0 200 ")
        await client.send(b"\r\n")
        await asyncio.sleep(1.2)
        await client.send([b"\r\n", options("two")])
        assert (await answers(client, "two")).startswith(b"SIP/2.0 200 ")


@BOTH
@pytest.mark.requirement("OB-KA-05")
async def test_a_ping_does_not_settle_the_protocol(server: EdgeServer, tls: bool) -> None:
    frame = b"MSRP d93kswow SEND\r\nTo-Path: msrp://127.0.0.1:%d/x;tcp\r\nFrom-Path: msrp://b.example:2/y;tcp\r\n"
    for data, answer in (
        (options("one"), b"SIP/2.0 200 "),
        (frame % server.port + b"Message-ID: 1\r\n-------d93kswow$\r\n", b"MSRP d93kswow 481 "),
        (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", b"HTTP/1.1 426 "),
    ):
        async with stream(server, tls) as client:
            await client.send(PING)
            assert await client.read() == b"\r\n"
            await client.send(data)
            assert (await client.read()).startswith(answer)


@pytest.mark.parametrize("transport", ["ws", "wss"])
@pytest.mark.requirement("SIP-KA-01", "OB-KA-06")
async def test_on_websocket_a_ping_is_a_message_and_so_is_its_pong(server: EdgeServer, transport: str) -> None:
    came: asyncio.Queue[bytes] = asyncio.Queue()
    link = await open_link(
        transport, ("127.0.0.1", server.port), lambda link, data: came.put_nowait(data), subprotocols=("sip",)
    )
    for binary, kind in ((False, "text"), (True, "binary")):
        link.send(PING, binary=binary)
        async with deadline():
            assert await came.get() == b"\r\n"
        assert link.last_kind == kind
        link.send(b"\r\n", binary=binary)  # a pong: silence, the next to come is the answer below
        link.send(options("one", via=transport.upper()))
        async with deadline():
            assert (await came.get()).startswith(b"SIP/2.0 200 ")
    await link.close()


# ------------------------------------------------------------------------------------------ STUN


@pytest.mark.requirement("OB-KA-10", "OB-KA-12")
async def test_stun_is_answered_from_the_same_socket_and_makes_no_flow(server: EdgeServer) -> None:
    async with HostileUdp(("127.0.0.1", server.port)) as udp:
        flows = server.metrics().value("edge_udp_flows")
        request = binding_request(bytes(range(1, 13)))
        for _ in range(2):
            await udp.send(request.encode())
            data, source = await udp.read_from()
            answer = parse(data)
            assert source == ("127.0.0.1", server.port)
            assert (answer.kind, answer.transaction) == (BINDING_SUCCESS, request.transaction)
            assert mapped_address(answer) == udp.local
            assert len(data) == 32  # XOR-MAPPED-ADDRESS and nothing else
        assert server.metrics().value("edge_udp_flows") == flows
        await udp.send(options("x", via="UDP"))
        assert (await udp.read()).startswith(b"SIP/2.0 200 ")


# ------------------------------------------------------------------------------------------ messages in pieces


@BOTH
@pytest.mark.requirement("SIP-TRP-13")
async def test_messages_glued_cut_and_after_blank_lines(server: EdgeServer, tls: bool) -> None:
    three = [options(name) for name in ("a", "b", "c")]
    for cut in ([b"".join(three)], octets(b"".join(three)), random_pieces(b"".join(three), seed=5, mean=60)):
        async with stream(server, tls) as client:
            await client.send(cut)
            await answers(client, "a", "b", "c")
    async with stream(server, tls) as client:
        await client.send(b"\r\n\r\n\r\n" + options("after"))
        assert (await answers(client, "after")).startswith(b"\r\nSIP/2.0 200 ")
    async with stream(server) as client:
        await client.send(options("last"))
        client.send_eof()
        assert b"z9hG4bKlast" in await client.read_until_close()


@pytest.mark.requirement("SIP-TRP-13")
async def test_answers_still_go_to_one_who_has_finished_sending(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        bob = await registered(server, stack, "bob", "tls")
        call = asyncio.create_task(alice.message(bob.uri, b"and then I hang up"))
        request = await bob.next_request("MESSAGE")
        assert isinstance(alice.link, StreamLink)
        alice.link._wire.write_eof()
        await eventually(lambda: server.metrics().value("edge_sip_registrations") == 1)  # the end has been seen
        bob.respond(request, 202)
        assert (await call).status == 202
        await alice.link.wait_closed()


@pytest.mark.requirement("SIP-TRP-09")
async def test_content_length_is_computed_where_it_was_missing(server: EdgeServer) -> None:
    async with HostileUdp(("127.0.0.1", server.port)) as udp, sip_ua(server, "bob", "tcp") as bob:
        assert (await bob.register()).status == 200
        bob.on_request = answering()
        request = options("short", via="UDP", rest=b"\r\nseventeen octets.").replace(b"OPTIONS", b"MESSAGE")
        request = request.replace(b"sip:example.com SIP", b"sip:bob@example.com SIP").replace(b"a@example", b"a@other")
        assert b"Content-Length" not in request
        await udp.send(request)
        data = await udp.read()
        while data.startswith(b"SIP/2.0 1"):
            data = await udp.read()
        assert data.startswith(b"SIP/2.0 200 ")
        (message,) = bob.received("MESSAGE")
        assert b"\r\nContent-Length: 17\r\n" in message
        assert message.endswith(b"\r\n\r\nseventeen octets.")


@pytest.mark.requirement("SIP-TRP-10")
async def test_a_response_that_is_not_for_us_goes_nowhere(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        bob = await registered(server, stack, "bob")
        call = alice.start_invite(bob.uri)
        invite = await bob.next_request("INVITE")
        host = f"127.0.0.1:{server.port}"
        forged = (
            f"SIP/2.0 200 OK\r\n{{}}From: {invite['From']}\r\nTo: {invite['To']};tag=x\r\nCall-ID: {invite.call_id}\r\n"
            f"CSeq: {invite['CSeq']}\r\nContent-Length: 0\r\n\r\n"
        )
        vias = [f"Via: {value}\r\n" for value in invite.values("Via")]
        assert host in vias[0]
        other = vias[0].replace(host, "other.example")
        for lines in (other + vias[1], other, vias[1]):
            bob.send_raw(forged.format(lines).encode())
        bob.respond(invite, 486)
        assert (await call.result()).status == 486
        assert not [raw for raw in alice.received("SIP/2.0 200") if b"INVITE" in raw]
