"""The MSRP relay in the running server: enrolment, messages between clients, peers beyond it over TCP and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import STREAMS, USERS, counted, enrolled, msrp_client, open_config
from tests.ua.certs import Authority, Certificate
from tests.ua.digest import parse_parameters
from tests.ua.hostile import HostileClient, octets, random_pieces
from tests.ua.msrp import AuthFailed, HashSink, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import Frame, build
from tests.ua.wait import eventually

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the server trusts."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[EdgeServer]:
    """A server that trusts `authority` for the peers it dials."""
    config = open_config(tls={"trust": str(authority.path)})
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), config)
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


# ------------------------------------------------------------------------------------------ AUTH


@pytest.mark.parametrize("transport", STREAMS)
@pytest.mark.requirement("MSRP-AUTH-03", "MSRP-AUTH-18", "MSRP-AUTH-21")
async def test_auth_is_challenged_once_and_then_hands_out_a_uri(server: EdgeServer, transport: str) -> None:
    async with msrp_client(server, "alice", transport) as alice:
        (uri,) = await alice.auth()
        assert alice.challenges == 1
        assert alice.expires == 600
        first, last = alice.received("")
        assert (first.status, last.status) == (401, 200)
        assert {"rspauth", "cnonce", "nc", "qop"} <= parse_parameters(last["Authentication-Info"]).keys()
        assert (last["Use-Path"], last["Expires"]) == (uri, "600")
        assert uri.startswith(f"{'msrps' if transport in ('tls', 'wss') else 'msrp'}://127.0.0.1:{server.port}/")
        assert uri.endswith(";tcp")
        await alice.auth(900)
        assert alice.expires == 900


@pytest.mark.requirement("MSRP-AUTH-13", "MSRP-AUTH-22")
async def test_auth_is_refused_for_a_wrong_password_and_for_lifetimes_out_of_bounds(server: EdgeServer) -> None:
    async with msrp_client(server, "alice") as alice:
        for expires, header in ((5, "Min-Expires"), (0, "Min-Expires"), (100_000, "Max-Expires")):
            with pytest.raises(AuthFailed) as failed:
                await alice.auth(expires)
            assert failed.value.status == 423
            assert {name for name in ("Min-Expires", "Max-Expires") if failed.value.frame.get(name)} == {header}
        for expires in ("abc", "-1", "60.5"):
            with pytest.raises(AuthFailed) as failed:
                await alice.auth(headers=[("Expires", expires)])
            assert failed.value.status == 400
        alice.password = "wrong"
        before = server.metrics().value("edge_auth_failures_total")
        with pytest.raises(AuthFailed) as failed:
            await alice.auth()
        assert failed.value.status == 401
        wrong_password = shape(failed.value.frame)
        await counted(server, "edge_auth_failures_total", before + 1)
    async with MsrpEndpoint("nobody", "?", relay=("127.0.0.1", server.port), transport="tls") as nobody:
        with pytest.raises(AuthFailed) as failed:
            await nobody.auth()
        assert failed.value.status == 401
        assert shape(failed.value.frame) == wrong_password


def shape(frame: Frame) -> str:
    """An answer without what differs from one to the next: its id, its nonces, who asked."""
    text = re.sub(r'nonce="[^"]*"', "nonce", frame.head.decode())
    return text.replace(frame.transaction_id, "ID").replace(frame["To-Path"], "PEER")


# ------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(("one", "other"), [("tls", "wss"), ("wss", "tcp"), ("tcp", "ws"), ("ws", "tls")])
async def test_send_its_answer_and_its_report_between_two_clients(server: EdgeServer, one: str, other: str) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", one)
        bob = await enrolled(server, stack, "bob", other)
        path = [*alice.use_path, *bob.path]
        sent = await alice.send(path, b"hello", success_report="yes", message_id="one")
        assert sent.ok
        message = await bob.next_message()
        assert (bytes(message.data), message.message_id) == (b"hello", "one")
        report = await alice.next_report()
        assert (report["Message-ID"], report["Status"]) == ("one", "000 200 OK")
        # Bob answers the other way, over the path the message came.
        assert (await bob.send(message.from_path, b"back")).ok
        assert bytes((await alice.next_message()).data) == b"back"
        # An error of the far end comes as a REPORT, because the relay has said 200 already.
        bob.answer = 413
        assert (await alice.send(path, b"no more", message_id="two")).ok
        report = await alice.next_report()
        assert (report["Message-ID"], report["Status"].split()[1]) == ("two", "413")
        await bob.next_message()


@pytest.mark.requirement("MSRP-BIND-03", "MSRP-CON-12")
async def test_a_session_that_is_unknown_or_gone_gets_481(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "tls")
        unknown = f"msrps://127.0.0.1:{server.port}/nobodyshere;tcp"
        assert (await alice.send([unknown, "msrp://b.example:2/y;tcp"], b"?")).statuses == [481]
        bob = await enrolled(server, stack, "bob", "tls")
        path = [*bob.use_path, bob.uri]
        assert (await alice.send(path, b"there?")).ok
        assert bob.link is not None
        bob.link.reset()
        await eventually(lambda: server.metrics().value("edge_msrp_sessions") == 1)
        assert (await alice.send(path, b"there?")).statuses == [481]
        await bob.connect()  # the same client over another connection is a stranger to its old URI
        assert (await alice.send(path, b"there?")).statuses == [481]


@pytest.mark.parametrize(("one", "other"), [("tls", "tcp"), ("tcp", "wss"), ("wss", "tls")])
async def test_ten_mebibytes_of_anything_arrive_as_they_left(server: EdgeServer, one: str, other: str) -> None:
    source = random.Random(1)
    pieces = [source.randbytes(65536) for _ in range(160)]
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", one)
        bob = await enrolled(server, stack, "bob", other)
        bob.sink = HashSink
        before = server.metrics().value("edge_msrp_relayed_octets_total")
        sent = await alice.send(
            [*alice.use_path, *bob.path],
            iter(pieces),
            "application/octet-stream",
            chunk_size=None if one != "wss" else 500_000,
            total=10 * MEBIBYTE,
            success_report="yes",
            seconds=60,
        )
        assert sent.ok
        message = await bob.next_message(30)
        assert message.octets == 10 * MEBIBYTE
        assert message.overlap == 0
        assert message.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
        assert (await alice.next_report())["Status"] == "000 200 OK"
        assert server.metrics().value("edge_msrp_relayed_octets_total") == before + 10 * MEBIBYTE


async def test_frames_cut_anywhere_and_many_in_one_write_mean_the_same(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "tcp")
        bob = await enrolled(server, stack, "bob", "tls")
        body = b"-------\r\nMSRP \x00\xff" + b"----" * 10

        def frame(identifier: str) -> bytes:
            headers = [("Message-ID", identifier), ("Byte-Range", f"1-{len(body)}/{len(body)}")]
            path = [*alice.use_path, *bob.path]
            made = build("SEND", path, [alice.uri], headers, content_type="application/octet-stream", flag="$")
            made.add(body)
            return made.raw

        many = [f"m{number}" for number in range(200)]
        for pieces, identifiers in (
            (octets(frame("octets")), ["octets"]),
            ([b"".join(map(frame, many))], many),
            (random_pieces(b"".join(map(frame, many)), seed=3, mean=40), many),
        ):
            for piece in pieces:
                alice.send_raw(piece)
                await asyncio.sleep(0)
            for identifier in identifiers:
                message = await bob.next_message()
                assert (message.message_id, bytes(message.data)) == (identifier, body)
            for _ in identifiers:
                async with asyncio.timeout(10):
                    assert (await alice.responses.get()).status in (200, 401)


@pytest.mark.requirement("MSRP-CON-01", "SIP-DMX-02")
async def test_every_protocol_is_recognised_octet_by_octet(server: EdgeServer) -> None:
    frame = (
        b"MSRP a786hjs2 SEND\r\nTo-Path: msrp://127.0.0.1:%d/x;tcp\r\nFrom-Path: msrp://b.example:2/y;tcp\r\n"
        b"Message-ID: 1\r\n-------a786hjs2$\r\n" % server.port
    )
    request = (
        b"MESSAGE sip:example.com SIP/2.0\r\nVia: SIP/2.0/TCP c.example;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n"
        b"From: <sip:a@b.example>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: x\r\nCSeq: 7 MESSAGE\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: msrp\r\n\r\n"
    )
    for tls in (False, True):
        for data, answer in (
            (frame, b"MSRP a786hjs2 481"),
            (request, b"SIP/2.0 4"),
            (upgrade, b"HTTP/1.1 101 "),
            (b"\r\n\r\n" + frame, b"\r\nMSRP a786hjs2 481"),
        ):
            async with HostileClient(("127.0.0.1", server.port), tls=tls) as client:
                await client.send(octets(data))
                assert (await client.read_until(b"\r\n" + (b"-------" if b"MSRP " in answer else b"\r\n"))).startswith(
                    answer
                )


# ------------------------------------------------------------------------------------------ beyond the relay


async def test_a_peer_beyond_the_relay_is_dialled_over_tcp(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "tls")
        peer = await stack.enter_async_context(MsrpListener("peer"))
        for number in range(3):
            assert (await alice.send([*alice.use_path, peer.uri], b"%d" % number, success_report="yes")).ok
            message = await peer.next_message()
            assert bytes(message.data) == b"%d" % number
            assert message.from_path == [*alice.use_path, alice.uri]
            assert (await alice.next_report())["Status"] == "000 200 OK"
        assert len(peer.links) == 1  # one connection for the session, used again
        assert (await peer.send(message.from_path, b"back")).ok
        assert bytes((await alice.next_message()).data) == b"back"
        await counted(server, "edge_connections_opened_total", transport="tcp")


@pytest.mark.requirement("MSRP-CON-07")
async def test_a_peer_beyond_the_relay_is_dialled_over_tls_and_must_prove_its_name(
    server: EdgeServer, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger"))

    async def try_peer(owner: Authority, certificate: Certificate) -> str:
        """Send one message to a peer with that certificate; "" when it arrived, else what was reported."""
        context = owner.server_context(certificate)
        listener = MsrpListener("peer", transport="tls", uri_host="localhost", ssl_context=context)
        async with msrp_client(server, "alice") as alice, listener as peer:
            await alice.auth()
            assert (await alice.send([*alice.use_path, peer.uri], b"secret")).ok
            message, report = asyncio.ensure_future(peer.next_message()), asyncio.ensure_future(alice.next_report())
            await asyncio.wait((message, report), return_when=asyncio.FIRST_COMPLETED)
            outcome = report.result()["Status"] if report.done() else ""
            assert not message.done() or bytes(message.result().data) == b"secret"
            for task in (message, report):
                task.cancel()
            await asyncio.gather(message, report, return_exceptions=True)
            assert outcome == "" or not any(link.octets_received for link in peer.links)
            return outcome

    good = authority.issue("good", dns=["localhost"])
    assert await try_peer(authority, good) == ""
    assert (await try_peer(authority, authority.issue("other", dns=["other.example"]))).startswith("000 408")
    assert (await try_peer(authority, authority.issue("old", dns=["localhost"], days=(-10, -1)))).startswith("000 408")
    assert (await try_peer(stranger, stranger.issue("self", dns=["localhost"]))).startswith("000 408")


async def test_a_peer_who_is_not_there_is_reported_with_408(server: EdgeServer) -> None:
    async with msrp_client(server, "alice") as alice:
        await alice.auth()
        async with MsrpListener("peer") as peer:
            uri = peer.uri
        assert (await alice.send([*alice.use_path, uri], b"?", message_id="lost")).ok
        report = await alice.next_report()
        assert (report["Message-ID"], report["Status"].split()[1]) == ("lost", "408")
        await counted(server, "edge_connections_failed_total", reason="refused")


@pytest.mark.requirement("MSRP-CON-14")
async def test_a_peer_whose_address_is_a_black_hole_is_given_up_after_ten_seconds(server: EdgeServer) -> None:
    with socket.socket() as hole, socket.socket() as filler, socket.socket() as other:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)  # one connection waits to be accepted, and what knocks after it is not answered
        for sock in (filler, other):
            sock.setblocking(False)
            sock.connect_ex(hole.getsockname())
        uri = f"msrp://127.0.0.1:{hole.getsockname()[1]}/x;tcp"
        async with msrp_client(server, "alice") as alice:
            await alice.auth()
            began = time.monotonic()
            assert (await alice.send([*alice.use_path, uri], b"?", message_id="lost")).ok
            report = await alice.next_report(20)
            assert (report["Message-ID"], report["Status"].split()[1]) == ("lost", "408")
            assert time.monotonic() - began >= 9
            await counted(server, "edge_connections_failed_total", reason="timed_out")


@pytest.mark.requirement("MSRP-CON-06")
async def test_what_cannot_be_dialled_gets_481_and_is_not_looked_for(server: EdgeServer) -> None:
    async with msrp_client(server, "alice") as alice:
        await alice.auth()
        opened = server.metrics().value("edge_connections_opened_total", transport="tcp")
        for uri in ("msrps://q.invalid:2855/x;ws", "msrp://q.invalid:2855/x;tcp", "msrp://127.0.0.1:9/x;tcp"):
            assert (await alice.send([*alice.use_path, uri], b"?")).statuses == [481]
        assert server.metrics().value("edge_connections_opened_total", transport="tcp") == opened


@pytest.mark.requirement("MSRP-CON-05")
async def test_an_answer_for_somebody_who_has_left_is_dropped(server: EdgeServer) -> None:
    async with AsyncExitStack() as stack:
        bob = await enrolled(server, stack, "bob", "tcp")
        bob.answer = None
        alice = await enrolled(server, stack, "alice", "tls")
        await alice.send([*alice.use_path, *bob.path], b"bye", wait=False)
        message = await bob.next_message()
        assert alice.link is not None
        alice.link.reset()
        await eventually(lambda: server.metrics().value("edge_connections", transport="tls") == 0)
        bob.respond(message.chunks[-1], 413)
        bob.report(message)
        bob.answer = 200
        carol = await enrolled(server, stack, "carol", "tls")
        await bob.auth()
        assert (await carol.send([*carol.use_path, *bob.path], b"still here")).ok
        assert bytes((await bob.next_message()).data) == b"still here"
        assert alice.link.closed


@pytest.mark.requirement("MSRP-AUTH-31")
async def test_a_relay_in_front_of_a_client_is_known_by_its_certificate(
    edge_server: EdgeServerFactory, authority: Authority, tmp_path: Path
) -> None:
    server = edge_server(
        open_config(tls={"certificate": "e.crt", "private_key": "e.key", "client_ca": str(authority.path)}),
        started=False,
    )
    own = authority.issue("edge", dns=["example.com"])
    (server.directory / "e.crt").write_bytes(own.certificate.read_bytes())
    (server.directory / "e.key").write_bytes(own.private_key.read_bytes())
    server.import_users(USERS)
    server.start()
    stranger = Authority(tmp_path / "stranger")
    auth = (
        b"MSRP a786hjs2 AUTH\r\nTo-Path: msrps://example.com:%d;tcp\r\n"
        b"From-Path: msrps://%b:2855/x;tcp msrps://c.example:9/y;tcp\r\n-------a786hjs2$\r\n"
    )
    relay = authority.issue("relay", dns=["relay.example"])
    for certificate, host, status in (
        (authority.client_context(relay, check_hostname=False), b"relay.example", b"401"),
        (authority.client_context(relay, check_hostname=False), b"other.example", b"403"),
        (authority.client_context(check_hostname=False), b"relay.example", b"403"),
    ):
        async with HostileClient(("127.0.0.1", server.port), tls=certificate) as client:
            await client.send(auth % (server.port, host))
            assert (await client.read()).startswith(b"MSRP a786hjs2 " + status)
    # A certificate from nowhere ends the handshake.
    context = authority.client_context(check_hostname=False)
    foreign = stranger.issue("relay", dns=["relay.example"])
    context.load_cert_chain(foreign.certificate, foreign.private_key)
    async with HostileClient(("127.0.0.1", server.port), tls=context) as client:
        assert await client.read_until_close() == b""
    await counted(server, "edge_connections_refused_total", reason="tls_handshake")


async def test_a_peer_who_asks_for_our_certificate_gets_it(
    edge_server: EdgeServerFactory, authority: Authority
) -> None:
    own = authority.issue("edge", dns=["example.com"])
    files = {"certificate": str(own.certificate), "private_key": str(own.private_key), "trust": str(authority.path)}
    server = edge_server(open_config(tls=files), USERS)
    context = authority.server_context(authority.issue("peer", dns=["localhost"]), client_certificates=True)
    listener = MsrpListener("peer", transport="tls", uri_host="localhost", ssl_context=context)
    async with msrp_client(server, "alice") as alice, listener as peer:
        await alice.auth()
        assert (await alice.send([*alice.use_path, peer.uri], b"mutual")).ok
        assert bytes((await peer.next_message()).data) == b"mutual"
