"""Input that is too long, never ends, or is nothing at all: an answer or a counted end, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.server.agents import USERS, connections_open, counted, ended, exchange_messages, open_config, sip_ua
from tests.ua.hostile import HostileClient, HostileUdp
from tests.ua.link import open_link
from tests.ua.wait import deadline, eventually, scaled

SILENT = 2000
# What one such connection may leave behind: tables grow to their size once, and pages that are partly in use are kept.
LEFT_BEHIND_EACH = 4096

OPTIONS = (
    b"OPTIONS %b SIP/2.0\r\nVia: SIP/2.0/%b c.example;branch=z9hG4bK%b;rport\r\nMax-Forwards: 70\r\n"
    b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: %b\r\nCSeq: 7 OPTIONS\r\n"
)


def options(branch: bytes = b"x", *, uri: bytes = b"sip:example.com", via: bytes = b"TCP", rest: bytes = b"") -> bytes:
    return OPTIONS % (uri, via, branch, branch) + (rest or b"Content-Length: 0\r\n\r\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeServer]:
    """A server with short patience."""
    waits = {"first_message_timeout": 2, "message_timeout": 1, "handshake_timeout": 1}
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), open_config(limits=waits))
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


@pytest.fixture
async def bystanders(server: EdgeServer) -> AsyncIterator[None]:
    """Two users who talk before, during (while the test runs) and after somebody misbehaves, on connections that stay."""
    async with sip_ua(server, "alice", "tls") as alice, sip_ua(server, "bob", "udp") as bob:
        await alice.register()
        await bob.register()

        async def talk() -> None:
            while True:
                assert (await exchange_messages(alice, bob)).status == 200
                assert await alice.ping() is None
                await asyncio.sleep(0.1)

        talking = asyncio.create_task(talk())
        yield
        talking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await talking
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await exchange_messages(bob, alice)).status == 200


async def answer_to(server: EdgeServer, data: bytes | list[bytes], *, tls: bool = False) -> bytes:
    """What comes back until the server closes."""
    async with HostileClient(("127.0.0.1", server.port), tls=tls) as client:
        with contextlib.suppress(ConnectionError):  # closed before the end of it
            await client.send(data)
        return await client.read_until_close()


# ------------------------------------------------------------------------------------------ SIP on streams


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
class TestSipStream:
    @pytest.mark.requirement("SIP-DMX-08")
    async def test_a_first_line_without_end_is_closed_at_its_limit(self, server: EdgeServer, tls: bool) -> None:
        junk = server.metrics().value("edge_connections_refused_total", reason="start_line")
        assert await answer_to(server, b"A" * 100_000, tls=tls) == b""
        await counted(server, "edge_connections_refused_total", junk + 1, reason="start_line")
        rejected = server.metrics().value("edge_sip_rejected_total", reason="start_line")
        assert await answer_to(server, b"OPTIONS sip:" + b"a" * 100_000, tls=tls) == b""
        await counted(server, "edge_sip_rejected_total", rejected + 1, reason="start_line")

    async def test_a_long_uri_gets_414_and_the_connection_goes_on(self, server: EdgeServer, tls: bool) -> None:
        async with HostileClient(("127.0.0.1", server.port), tls=tls) as client:
            await client.send(options(uri=b"sip:" + b"u" * 3000 + b"@example.com"))
            assert (await client.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 414 ")
            await client.send(options(b"after"))
            assert (await client.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 200 ")

    async def test_too_many_octets_of_headers_get_513_and_the_end(self, server: EdgeServer, tls: bool) -> None:
        before = ended(server)
        lines = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 500) for number in range(100))
        answer = await answer_to(server, options(rest=lines), tls=tls)
        assert answer.startswith(b"SIP/2.0 513 ")
        assert answer.count(b"SIP/2.0 ") == 1
        await counted(server, "edge_sip_rejected_total", reason="header_block")
        await eventually(lambda: ended(server) != before)

    async def test_a_body_that_is_too_long_gets_413_and_the_end(self, server: EdgeServer, tls: bool) -> None:
        answer = await answer_to(server, options(rest=b"Content-Length: 99999999\r\n\r\n"), tls=tls)
        assert answer.startswith(b"SIP/2.0 413 ")
        await counted(server, "edge_sip_rejected_total", reason="body")

    async def test_a_body_that_never_comes_ends_the_connection(self, server: EdgeServer, tls: bool) -> None:
        before = server.metrics().value("edge_connections_closed_total", reason="message_timeout")
        assert await answer_to(server, options(rest=b"Content-Length: 500\r\n\r\nhalf of"), tls=tls) == b""
        await counted(server, "edge_connections_closed_total", before + 1, reason="message_timeout")

    @pytest.mark.requirement("SIP-TRP-14")
    async def test_without_content_length_the_rest_is_thrown_away(self, server: EdgeServer, tls: bool) -> None:
        answer = await answer_to(server, options(b"one", rest=b"\r\n") + options(b"two"), tls=tls)
        assert answer.startswith(b"SIP/2.0 400 ")
        assert answer.count(b"SIP/2.0 ") == 1
        assert b"z9hG4bKone" in answer

    @pytest.mark.requirement("SIP-DMX-01", "MSRP-CON-01")
    async def test_another_protocol_later_on_is_a_framing_error(self, server: EdgeServer, tls: bool) -> None:
        paths = b"To-Path: msrp://127.0.0.1:%d/x;tcp\r\nFrom-Path: msrp://b.example:2/y;tcp\r\n" % server.port
        frame = b"MSRP a786hjs2 SEND\r\n" + paths
        requests = server.metrics().value("edge_msrp_frames_total")
        first = await answer_to(server, options() + frame + b"-------a786hjs2$\r\n\r\n", tls=tls)
        assert first.startswith(b"SIP/2.0 200 ")
        assert b"MSRP" not in first
        assert server.metrics().value("edge_msrp_frames_total") == requests
        asked = server.metrics().value("edge_sip_requests_total", method="OPTIONS")
        second = await answer_to(server, frame + b"-------a786hjs2$\r\n" + options(), tls=tls)
        assert second.startswith(b"MSRP a786hjs2 ")
        assert b"SIP/2.0" not in second
        assert server.metrics().value("edge_sip_requests_total", method="OPTIONS") == asked


@pytest.mark.usefixtures("bystanders")
class TestJunk:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\x16\x03\x01\x00\x05\x01unk!", "tls_handshake"),
            (b"\x16\x03\x01\x00\x05junk!", "tls"),
            (b"\x00\x01\x02\x03 nothing of the kind", "stun"),
            (b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12), "stun"),
            (b"\xff\xfe\xfd", "junk"),
            (b'{"json": true}\r\n', "junk"),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "junk"),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", "junk"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"),
            (b"\r\n" * 100, "keepalive_flood"),
        ],
        ids=lambda value: None if isinstance(value, bytes) else value,
    )
    async def test_first_octets_that_are_no_protocol_end_the_connection(
        self, server: EdgeServer, data: bytes, reason: str
    ) -> None:
        before = server.metrics().value("edge_connections_refused_total", reason=reason)
        answer = await answer_to(server, data)
        assert answer.strip(b"\r\n") == b"" or (reason == "tls_handshake" and answer[0] == 0x15)
        await counted(server, "edge_connections_refused_total", before + 1, reason=reason)

    @pytest.mark.requirement("SIP-DMX-06")
    async def test_tls_in_tls_is_junk(self, server: EdgeServer) -> None:
        before = server.metrics().value("edge_connections_refused_total", reason="tls")
        assert await answer_to(server, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", tls=True) == b""
        await counted(server, "edge_connections_refused_total", before + 1, reason="tls")

    @pytest.mark.requirement("SIP-DMX-03")
    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    async def test_other_http_gets_a_short_answer(self, server: EdgeServer, tls: bool) -> None:
        for request, status in (
            (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", b"426"),
            (b"GET /index.html HTTP/1.1\r\nHost: example.com\r\n\r\n", b"404"),
            (b"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n", b"405"),
            (b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000, b"400"),
        ):
            answer = await answer_to(server, request, tls=tls)
            assert answer.startswith(b"HTTP/1.1 " + status), request[:40]
            assert len(answer) < 300
            await counted(server, "edge_connections_refused_total", reason=f"http_{status.decode()}")

    @pytest.mark.requirement("SIP-DMX-09", "SIP-DMX-10", "SIP-KA-03", "OB-KA-07", "OB-KA-09")
    async def test_datagrams_of_no_use_are_counted_and_not_answered(self, server: EdgeServer) -> None:
        kinds = {
            b"\r\n\r\n": "keepalive",
            b"\x00 \r\n": "keepalive",
            b"short": "short",
            b"MSRP d93kswow SEND\r\nTo-Path: msrp://a.example:1/x;tcp\r\n": "junk",
            b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n": "junk",
            b"\x16\xfe\xfd" + bytes(60): "dtls",
            b"\xc8" * 60: "binary",
            b"\x00\x01\x00\x00\x21\x12\xa4\x43" + bytes(12): "bad_stun",
            b"\x00\x01\x00\x04\x21\x12\xa4\x42" + bytes(12): "bad_stun",
            b"\x00\x11\x00\x00\x21\x12\xa4\x42" + bytes(12): "stun",  # an indication
            b"\x01\x01\x00\x00\x21\x12\xa4\x42" + bytes(12): "stun",  # a success response
        }
        async with HostileUdp(("127.0.0.1", server.port)) as udp:
            flows = server.metrics().value("edge_udp_flows")
            for datagram, kind in kinds.items():
                before = server.metrics().value("edge_datagrams_total", kind=kind)
                await udp.send(datagram)
                await counted(server, "edge_datagrams_total", before + 1, kind=kind)
            assert server.metrics().value("edge_udp_flows") == flows
            await udp.send(options(via=b"UDP").replace(b"OPTIONS", b"!interesting-Method0123456789_*+`.%indeed'~"))
            assert (await udp.read()).startswith(b"SIP/2.0 ")  # the first answer of all

    async def test_broken_sip_in_a_datagram_is_refused_or_dropped(self, server: EdgeServer) -> None:
        async with HostileUdp(("127.0.0.1", server.port)) as udp:
            before = server.metrics().value("edge_sip_rejected_total")
            await udp.send(b"OPTIONS sip:example.com SIP/2.0\r\nVia: none\r\n\r\n")
            await udp.send(b"INVITE sip:example.com SIP/2.0\r\n" + b"X: y\r\n" * 400)
            await udp.send(options(b"cut", via=b"UDP", rest=b"Content-Length: 500\r\n\r\nhalf of"))
            assert (await udp.read()).startswith(b"SIP/2.0 400 ")
            await counted(server, "edge_sip_rejected_total", before + 3)
            await udp.send(options(b"fine", via=b"UDP"))
            assert b"z9hG4bKfine" in await udp.read()


# ------------------------------------------------------------------------------------------ WebSocket


def frame(opcode: int, data: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    """One frame as a client sends it; the mask is zeros, which changes nothing."""
    head = bytes([opcode | (0x80 if fin else 0)])
    flag = 0x80 if mask else 0
    size = struct.pack("!B", flag | len(data)) if len(data) < 126 else struct.pack("!BQ", flag | 127, len(data))
    return head + size + (bytes(4) if mask else b"") + data


@contextlib.asynccontextmanager
async def upgraded(server: EdgeServer, subprotocol: bytes = b"sip") -> AsyncIterator[HostileClient]:
    """A raw connection after its WebSocket handshake."""
    client = await HostileClient(("127.0.0.1", server.port)).connect()
    await client.send(
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: " + subprotocol + b"\r\n\r\n"
    )
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    yield client
    client.close()


def closes_with(data: bytes, code: int) -> bool:
    return data[:1] == b"\x88" and data[2:4] == code.to_bytes(2, "big")


@pytest.mark.usefixtures("bystanders")
class TestWebSocket:
    @pytest.mark.parametrize("transport", ["ws", "wss"])
    async def test_a_message_over_the_limit_is_closed_with_1009(self, server: EdgeServer, transport: str) -> None:
        before = server.metrics().value("edge_connections_closed_total", reason="websocket_too_big")
        link = await open_link(transport, ("127.0.0.1", server.port), lambda link, data: None, subprotocols=("sip",))
        link.send(b"x" * (1 << 20) + b"y")
        assert (await link.wait_closed()).startswith("closed 1009")
        await link.close()
        await counted(server, "edge_connections_closed_total", before + 1, reason="websocket_too_big")

    async def test_fragments_without_end_are_closed_with_1009(self, server: EdgeServer) -> None:
        async with upgraded(server) as client:
            await client.send(frame(0x01, b"x" * 60_000, fin=False))
            with contextlib.suppress(ConnectionError):
                for _ in range(30):
                    await client.send(frame(0x00, b"x" * 60_000, fin=False))
            assert closes_with(await client.read_until_close(), 1009)

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(0x01, b"hello", mask=False), 1002),
            (frame(0x00, b"no beginning"), 1002),
            (frame(0x03, b"reserved"), 1002),
            (frame(0x01, b"\xff\xfe no text"), 1007),
        ],
    )
    async def test_what_breaks_the_framing_is_closed_with_its_code(
        self, server: EdgeServer, data: bytes, code: int
    ) -> None:
        before = server.metrics().value("edge_connections_closed_total", reason="websocket_error")
        async with upgraded(server) as client:
            await client.send(data)
            assert closes_with(await client.read_until_close(), code)
        await counted(server, "edge_connections_closed_total", before + 1, reason="websocket_error")

    async def test_a_message_that_is_no_sip_is_counted_and_the_connection_goes_on(self, server: EdgeServer) -> None:
        before = server.metrics().value("edge_sip_rejected_total")
        async with upgraded(server) as client:
            await client.send(frame(0x01, b"nothing of the kind"))
            await counted(server, "edge_sip_rejected_total", before + 1)
            await client.send(frame(0x01, options(via=b"WS")))
            assert b"SIP/2.0 200 " in await client.read_until(b"\r\n\r\n")

    async def test_a_handshake_that_never_ends_is_closed(self, server: EdgeServer) -> None:
        before = server.metrics().value("edge_connections_closed_total", reason="upgrade_timeout")
        assert await answer_to(server, b"GET / HTTP/1.1\r\nHost: example") == b""
        await counted(server, "edge_connections_closed_total", before + 1, reason="upgrade_timeout")


# ------------------------------------------------------------------------------------------ what came before is read


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_an_answer_is_not_lost_because_its_sender_is_still_sending(server: EdgeServer, tls: bool) -> None:
    async with HostileClient(("127.0.0.1", server.port), tls=tls) as client:
        sending = asyncio.create_task(
            client.send([options(rest=b"Content-Length: 99999999\r\n\r\n")] + [b"x" * 16384] * 200)
        )
        await asyncio.gather(sending, return_exceptions=True)
        assert (await client.read_until_close()).startswith(b"SIP/2.0 413 ")


# ------------------------------------------------------------------------------------------ slow and silent


@pytest.mark.usefixtures("bystanders")
class TestSilence:
    async def test_half_a_tls_handshake_is_given_up(self, server: EdgeServer) -> None:
        before = server.metrics().value("edge_connections_refused_total", reason="tls_timeout")
        sizes = (1, 3, 11, 100, None)
        clients = [await HostileClient(("127.0.0.1", server.port)).connect() for _ in sizes]
        for client, size in zip(clients, sizes, strict=True):
            await client.send_client_hello(size)
        for client in clients:
            await client.read_until_close()
            client.close()
        await counted(server, "edge_connections_refused_total", before + len(sizes), reason="tls_timeout")

    @pytest.mark.requirement("SIP-KA-05")
    async def test_each_kind_of_dawdler_is_closed_for_its_reason(self, server: EdgeServer) -> None:
        metrics = server.metrics()
        before = {reason: metrics.value("edge_connections_closed_total", reason=reason) for reason in ("no_message",)}
        silent = metrics.value("edge_connections_refused_total", reason="silent")

        async def drip(data: bytes, tls: bool = False) -> bytes:
            async with HostileClient(("127.0.0.1", server.port), tls=tls) as client:
                dripping = asyncio.create_task(client.drip(data, 0.2))
                answer = await client.read_until_close(scaled(10))
                await dripping
                return answer

        answers = await asyncio.gather(
            answer_to(server, b""),  # nothing
            drip(options() * 10),  # an octet now and then
            drip(b"MSRP d93kswow SEND\r\nTo-Path: " + b"x" * 200),
            drip(b"GET / HTTP/1.1\r\nHost: " + b"x" * 200),
            drip(options() * 10, True),
            answer_to(server, b"", tls=True),
            drip(b"\r\n" * 30),  # only pings
        )
        assert answers[:6] == [b""] * 6
        assert set(answers[6]) <= set(b"\r\n")
        await counted(server, "edge_connections_refused_total", silent + 1, reason="silent")
        await counted(server, "edge_connections_closed_total", before["no_message"] + 6, reason="no_message")


def resident(server: EdgeServer) -> int:
    """Octets of memory the server's process has."""
    assert server.process is not None
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def descriptors(server: EdgeServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


async def stay_silent(server: EdgeServer, hello: bytes, floor: int = 0) -> None:
    """Open SILENT connections, a third of which begin a TLS handshake and a third a SIP request; wait until all are closed."""
    loop = asyncio.get_running_loop()
    sockets = []
    for number in range(SILENT):
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        sock.send((b"", hello, b"OPTIONS sip:")[number % 3] or b"")
        sockets.append(sock)
    await eventually(lambda: resident(server) > floor, what="the memory they take")
    async with deadline(20):
        for sock in sockets:
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(sock, 4096):
                    pass
            sock.close()


@pytest.mark.usefixtures("many_descriptors", "bystanders")
async def test_2000_connections_that_say_nothing_disturb_nobody_and_leave_no_memory_behind(server: EdgeServer) -> None:
    async with HostileClient(("127.0.0.1", server.port)) as client:
        hello = await client.send_client_hello()
    metrics = server.metrics()
    refused = {name: metrics.value("edge_connections_refused_total", reason=name) for name in ("silent", "tls_timeout")}
    closed = metrics.value("edge_connections_closed_total", reason="no_message")
    opened = descriptors(server)
    before = resident(server)
    limit = before + SILENT * LEFT_BEHIND_EACH
    await stay_silent(server, hello[:50], floor=limit)  # so there is something to be given back
    await stay_silent(server, hello[:50])
    await connections_open(server, 0, transport="tcp")
    await eventually(lambda: resident(server) < limit, 15, what="memory back where it was")
    await eventually(lambda: descriptors(server) <= opened, what="descriptors closed")
    for name, count in refused.items():
        await counted(server, "edge_connections_refused_total", count + 2 * (SILENT // 3), reason=name)
    await counted(server, "edge_connections_closed_total", closed + 2 * (SILENT // 3), reason="no_message")
