"""SIP over WebSocket as the wire shows it (RFC 7118), octet by octet from a client of our own making."""

from __future__ import annotations

import asyncio
import secrets
import struct
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, answering, exchange_messages, open_config, sip_ua
from tests.ua.hostile import HostileClient
from tests.ua.wait import eventually

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


class WebSocketClient(HostileClient):
    """Frames by hand (RFC 6455 §5.2)."""

    async def upgrade(self) -> None:
        lines = ["GET /sip HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += ["Sec-WebSocket-Protocol: sip", "", ""]
        await self.send("\r\n".join(lines).encode())
        assert (await self.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")

    async def frame(self, opcode: int, data: bytes, *, fin: bool = True, masked: bool = True) -> None:
        size = len(data)
        head = bytes((opcode | 0x80 * fin,))
        mark = 0x80 if masked else 0
        head += bytes((mark | size,)) if size < 126 else bytes((mark | 126,)) + struct.pack("!H", size)
        if masked:
            mask = secrets.token_bytes(4)
            data = bytes(octet ^ mask[i % 4] for i, octet in enumerate(data))
            head += mask
        await self.send(head + data)

    async def receive(self) -> tuple[int, bytes]:
        first, size = await self.read_exactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.read_exactly(2))
        return first & 15, await self.read_exactly(size) if size else b""

    async def status(self) -> int:
        """The status of the next message."""
        _, data = await self.receive()
        assert data.startswith(b"SIP/2.0 "), data
        return int(data[8:11])


def message(method: bytes = b"OPTIONS", uri: bytes = b"sip:example.com", *lines: bytes, body: bytes = b"") -> bytes:
    mark = secrets.token_hex(6).encode()
    head = (
        b"%b %b SIP/2.0" % (method, uri),
        b"Via: SIP/2.0/WS df7jal23ls0d.invalid;branch=z9hG4bK%b" % mark,
        b"Max-Forwards: 70",
        b"From: <sip:x@far.example>;tag=%b" % mark,
        b"To: <%b>" % uri,
        b"Call-ID: %b" % mark,
        b"CSeq: 1 %b" % method,
        *lines,
    )
    return b"\r\n".join((*head, b"", body))


@pytest.fixture
async def client(server: EdgeServer) -> WebSocketClient:
    made = WebSocketClient(("127.0.0.1", server.port))
    await made.connect()
    await made.upgrade()
    yield made
    made.close()


@pytest.mark.requirement("SIP-WSS-03", "OB-WS-02", "OB-WS-03")
async def test_rfc7118_5_text_binary_and_fragments_are_one_message_each(client: WebSocketClient) -> None:
    await client.frame(TEXT, message())
    assert await client.status() == 200
    await client.frame(BINARY, message())
    assert await client.status() == 200
    data = message()
    await client.frame(TEXT, data[:20], fin=False)
    await client.frame(CONTINUATION, data[20:50], fin=False)
    await client.frame(PING, b"beat")
    assert await client.receive() == (PONG, b"beat")  # in between, at once
    await client.frame(CONTINUATION, data[50:])
    assert await client.status() == 200


@pytest.mark.requirement("SIP-WSS-03", "OB-WS-03")
async def test_rfc7118_5_a_second_message_in_one_frame_is_thrown_away(client: WebSocketClient) -> None:
    first, second = message(b"OPTIONS", b"sip:example.com", b"Content-Length: 0"), message(b"BYE", b"sip:example.com")
    await client.frame(TEXT, first + second)
    assert await client.status() == 200
    await client.frame(PING, b"?")
    assert await client.receive() == (PONG, b"?")  # no other answer came before it


@pytest.mark.requirement("SIP-WSS-03", "OB-WS-07")
async def test_rfc6455_5_1_a_frame_that_is_not_masked_ends_it_with_1002(client: WebSocketClient) -> None:
    await client.frame(TEXT, message(), masked=False)
    opcode, data = await client.receive()
    assert (opcode, struct.unpack("!H", data[:2])) == (CLOSE, (1002,))


@pytest.mark.requirement("SIP-WSS-03", "OB-WS-04")
async def test_rfc7118_5_content_length_may_be_missing_and_must_not_lie(
    server: EdgeServer, client: WebSocketClient
) -> None:
    async with sip_ua(server, "bob", "tcp") as bob:
        bob.on_request = answering()
        await bob.register()
        await client.frame(TEXT, message(b"MESSAGE", b"sip:bob@example.com", body=b"whole body"))
        assert await client.status() == 200
        (received,) = bob.received("MESSAGE")
        assert b"\r\nContent-Length: 10\r\n" in received
        assert received.endswith(b"\r\n\r\nwhole body")
        await client.frame(TEXT, message(b"MESSAGE", b"sip:bob@example.com", b"Content-Length: 11", body=b"whole body"))
        assert await client.status() == 400
        assert len(bob.received("MESSAGE")) == 1


@pytest.mark.requirement("SIP-WSS-03", "OB-WS-02")
async def test_rfc7118_4_2_what_is_not_utf8_leaves_in_a_binary_message(server: EdgeServer) -> None:
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "ws") as bob:
        await bob.register()
        kinds: list[str | None] = []
        bob.on_request = lambda ua, request: kinds.append(bob.link.last_kind) or 200
        for body in (b"\xff\xfe", "é".encode(), b"plain"):
            assert (await alice.message(bob.uri, body)).status == 200
        assert kinds == ["binary", "text", "text"]
        assert bob.received("MESSAGE")[0].endswith(b"\r\n\r\n\xff\xfe")


@pytest.mark.requirement("SIP-WSS-03")
async def test_rfc7118_5_timers_are_those_of_a_reliable_transport(server: EdgeServer) -> None:
    """Nothing is sent twice to one who takes his time; the 100 of a fallback says how long that was."""
    async with sip_ua(server, "alice", "udp") as alice, sip_ua(server, "bob", "ws") as bob:
        await bob.register()
        call = alice.start_invite(bob.uri)
        await bob.next_request("INVITE")
        waiting = asyncio.create_task(alice.message(bob.uri, b"slow", timeout=20))
        request = await bob.next_request("MESSAGE")
        await eventually(  # after 3.5 s (RFC 4320); on UDP there would have been three repeats until then
            lambda: any(b" MESSAGE\r\n" in trying for trying in alice.received("SIP/2.0 100")), 15
        )
        assert len(bob.received("INVITE")) == 1
        assert len(bob.received("MESSAGE")) == 1
        bob.respond(request, 200)
        assert (await waiting).status == 200
        call.task.cancel()


@pytest.mark.requirement("SIP-WSS-04", "OB-WS-05", "OB-WS-06")
@pytest.mark.parametrize("transport", ["ws", "wss"])
async def test_rfc7118_5_via_says_ws_or_wss_and_the_name_of_a_client_is_never_looked_up(
    server: EdgeServer, transport: str
) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "udp"))
        bob = await stack.enter_async_context(sip_ua(server, "bob", transport))
        bob.on_request = answering()
        response = await bob.register()
        assert ".invalid;transport=ws" in response["Contact"]
        assert (await alice.message(bob.uri, b"in")).status == 200
        (request,) = bob.received("MESSAGE")
        assert request.split(b"\r\n")[1].startswith(b"Via: SIP/2.0/%b " % transport.upper().encode())
        dialog = await alice.invite(bob.uri)
        (invite,) = bob.received("INVITE")
        assert b";transport=ws;lr>" in invite
        assert b"transport=wss" not in invite
        await dialog.ack()
        assert (await dialog.bye()).status == 200
        assert bob.link is not None
        await bob.link.close()  # the only way to him is gone, and his name leads nowhere
        gone = await alice.message(bob.uri, b"out")
        assert gone.status == 480
        other = await stack.enter_async_context(sip_ua(server, "bob", transport))
        other.on_request = answering()
        await other.register()
        assert (await exchange_messages(alice, other)).status == 200


@pytest.mark.requirement("OB-WS-06", "SIP-WSS-04")
async def test_rfc7118_5_3_received_may_be_left_out_on_websocket(edge_server: EdgeServerFactory) -> None:
    """What a client claims of itself is never believed, and other transports say what they always say."""
    server = edge_server(open_config(sip={"websocket_received": False}), USERS)
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
        bob.on_request = answering()
        await bob.register()
        for name, kind in (("alice", "wss"), ("carol", "ws"), ("dave", "tcp")):
            agent = await stack.enter_async_context(sip_ua(server, name, kind))
            registered = await agent.register()
            assert registered.status == 200
            answer = await agent.message(bob.uri, b"hello")
            assert (b";received=" in bob.received("MESSAGE")[-1]) is (kind == "tcp"), kind
            for response in (registered, answer):
                assert ("received=" in response["Via"]) is (kind == "tcp"), kind
            lie = {"Via": agent.via().replace(";rport", "") + ";received=192.0.2.9"}
            told = await agent.request("OPTIONS", "sip:example.com", headers=lie, auth=False)
            assert (told.status, "received=192.0.2.9" in told["Via"]) == (200, False), kind


@pytest.mark.requirement("OB-WS-05")
async def test_rfc7118_5_2_a_wss_parameter_of_somebody_else_is_understood(server: EdgeServer) -> None:
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "wss") as bob:
        bob.on_request = answering()
        contact = f"<sip:bob@{bob.sent_by};transport=wss>"
        assert (await bob.register(contact=contact)).status == 200
        assert (await alice.message(bob.uri, b"in")).status == 200
        (request,) = bob.received("MESSAGE")
        assert request.split(b"\r\n")[1].startswith(b"Via: SIP/2.0/WSS ")


@pytest.mark.requirement("SIP-WSS-05", "OB-WS-08")
@pytest.mark.parametrize(("origin", "status"), [("https://evil.test", 403), ("https://phone.test", 101), (None, 101)])
async def test_rfc6455_4_2_2_pages_of_other_sites_get_403(
    edge_server: EdgeServerFactory, origin: str | None, status: int
) -> None:
    server = edge_server(open_config(), started=False)
    server.write_config(
        {**open_config(), "listen": [{"bind": f"127.0.0.1:{server.port}", "origins": ["https://phone.test"]}]}
    )
    server.start()
    lines = ["GET /sip HTTP/1.1", "Host: example.com", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: sip"]
    lines += [f"Origin: {origin}"] if origin else []
    async with HostileClient(("127.0.0.1", server.port)) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode())
        assert (await client.read_until(b"\r\n")).startswith(b"HTTP/1.1 %d " % status)
