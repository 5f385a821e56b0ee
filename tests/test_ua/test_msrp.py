"""Simulated MSRP endpoints talking directly to each other."""

import asyncio
import hashlib
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.ua import digest
from tests.ua.certs import Authority
from tests.ua.msrp import Abort, AuthFailed, HashSink, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import Frame
from tests.ua.wait import eventually, within

TRANSPORTS = ["tcp", "tls", "ws", "wss"]
MIB = 1024 * 1024

Pair = Callable[..., AbstractAsyncContextManager[tuple[MsrpEndpoint, MsrpListener]]]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = Authority(tmp_path_factory.mktemp("certs"))
    certificate = authority.issue("peer", ips=["127.0.0.1"])
    return authority.server_context(certificate), authority.client_context()


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Pair:
    """Make a listener and an endpoint that takes it for its relay: (near, far)."""

    @asynccontextmanager
    async def make(transport: str = "tcp", **options):
        async with MsrpListener("far", transport=transport, ssl_context=contexts[0]) as far:
            near = MsrpEndpoint(
                "near", "zanzibar", relay=far.address, transport=transport, ssl_context=contexts[1], **options
            )
            async with near:
                yield near, far

    return make


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_send_both_ways(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        sent = await near.send(far.path, "Grüße".encode(), "text/plain;charset=utf-8")
        assert sent.ok
        received = await far.next_message()
        assert (bytes(received.data), received.content_type) == ("Grüße".encode(), "text/plain;charset=utf-8")
        assert received.from_path == near.path
        assert received.chunks[0]["Byte-Range"] == "1-7/7"
        assert received.chunks[0].raw == sent.chunks[0].raw
        assert (await far.send(near.path, b"back")).ok
        assert bytes((await near.next_message()).data) == b"back"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_chunked_binary_mebibyte_with_success_report(pair: Pair, transport: str) -> None:
    body = random.Random(4975).randbytes(MIB)
    async with pair(transport) as (near, far):
        sent = await near.send(
            far.path, body, "application/octet-stream", chunk_size=100_000, success_report="yes", message_id="big.1"
        )
        assert sent.statuses == [200] * 11
        received = await far.next_message()
        assert received.sha256 == hashlib.sha256(body).hexdigest()
        assert (received.octets, received.total, received.overlap) == (MIB, MIB, 0)
        assert [chunk.flag for chunk in received.chunks] == ["+"] * 10 + ["$"]
        report = await near.next_report()
        assert (report["Message-ID"], report["Status"]) == ("big.1", "000 200 OK")
        assert report["Byte-Range"] == f"1-{MIB}/{MIB}"
        assert report.to_path == near.path


async def test_huge_open_chunk_goes_to_a_hash(pair: Pair) -> None:
    piece = os.urandom(65536)
    async with pair() as (near, far):
        far.sink = HashSink
        sent = await near.send(far.path, (piece for _ in range(160)), "application/octet-stream", total=10 * MIB)
        received = await far.next_message()
        assert (sent.statuses, received.octets, len(received.data)) == ([200], 10 * MIB, 0)
        assert received.sha256 == hashlib.sha256(piece * 160).hexdigest()
        assert received.chunks[0]["Byte-Range"] == f"1-*/{10 * MIB}"


async def test_async_body_regrouped_into_chunks(pair: Pair) -> None:
    async def body() -> AsyncIterator[bytes]:
        for letter in b"abcdefghij":
            yield bytes([letter]) * 3

    async with pair() as (near, far):
        sent = await near.send(far.path, body(), chunk_size=8)
        ranges = [chunk["Byte-Range"] for chunk in sent.chunks]
        assert ranges == ["1-8/*", "9-16/*", "17-24/*", "25-30/*"]
        assert bytes((await far.next_message()).data) == b"aaabbbcccdddeeefffggghhhiiijjj"


async def test_open_chunk_is_interrupted_for_a_waiting_answer(pair: Pair) -> None:
    """RFC 4975 §5.1: whoever sends an open chunk must let other frames through."""
    async with pair() as (near, far):
        far_sent: list[asyncio.Task] = []

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await eventually(lambda: far.partial)
            far_sent.append(asyncio.create_task(far.send(near.path, b"in between")))
            await eventually(lambda: near.is_held(near.active_link))
            yield b"second"
            assert (await within(far_sent[0])).ok

        sent = await near.send(far.path, body())
        assert [(chunk["Byte-Range"], chunk.flag) for chunk in sent.chunks] == [("1-*/*", "+"), ("6-*/*", "$")]
        assert bytes((await far.next_message()).data) == b"firstsecond"


async def test_abort_ends_with_hash_sign(pair: Pair) -> None:
    def body():
        yield b"abc"
        raise Abort

    async with pair() as (near, far):
        sent = await near.send(far.path, body())
        received = await far.next_message()
        assert (sent.chunks[0].flag, received.aborted, received.complete, bytes(received.data)) == (
            "#",
            True,
            False,
            b"abc",
        )


async def test_early_error_ends_an_open_chunk(pair: Pair) -> None:
    async with pair() as (near, far):
        far.answer = None
        far.on_body = lambda frame, data: far.respond(frame, 408) if data == b"abc" else None

        async def body() -> AsyncIterator[bytes]:
            yield b"abc"
            await eventually(lambda: near.received(""))
            yield b"never sent"

        sent = await near.send(far.path, body())
        assert (sent.statuses, sent.chunks[0].flag, sent.chunks[0].body_octets) == ([408], "#", 3)


async def test_delivery_octet_by_octet(pair: Pair) -> None:
    async with pair() as (near, far):
        chunk = near.start_chunk(far.path, [("Message-ID", "slow.1"), ("Byte-Range", "1-3/3")])
        for octet in b"abc":
            await chunk.write(bytes([octet]))
        await chunk.end()
        assert (await within(chunk.response)).status == 200
        raw = chunk.frame.raw.replace(b"slow.1", b"slow.2")
        for octet in raw:
            near.send_raw(bytes([octet]))
            await asyncio.sleep(0)
        assert [bytes((await far.next_message()).data) for _ in range(2)] == [b"abc", b"abc"]


@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_bodiless_and_empty_message(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        assert (await near.send(far.path, None)).ok
        assert not (await far.next_bodiless()).has_body
        assert (await near.send(far.path, b"")).ok
        received = await far.next_message()
        assert (received.octets, received.complete, received.chunks[0]["Byte-Range"]) == (0, True, "1-0/0")


@pytest.mark.parametrize(
    ("answer", "failure_report", "expected"),
    [
        (200, None, [200]),
        (200, "no", []),
        (200, "partial", []),
        (413, "partial", [413]),
        ((415, "Odd"), "yes", [415]),
        (403, "no", []),
        (None, None, []),
    ],
)
async def test_answers_obey_failure_report(pair: Pair, answer, failure_report: str | None, expected: list[int]) -> None:
    async with pair() as (near, far):
        far.answer = answer
        await near.send(far.path, b"x", failure_report=failure_report, wait=False)
        await far.next_message()
        far.answer = 200
        await near.send(far.path, b"barrier")
        assert [frame.status for frame in near.received("")] == [*expected, 200]


async def test_wrong_to_path_is_answered_481(pair: Pair) -> None:
    async with pair() as (near, far):
        sent = await near.send([*far.path, "msrp://127.0.0.1:9/other;tcp"], b"x")
        assert (sent.statuses, len(far.misrouted)) == ([481], 1)


async def test_chunks_in_odd_order_with_overlap(pair: Pair) -> None:
    async with pair() as (near, far):
        for byte_range, body, flag in [("4-6/6", b"def", "$"), ("1-2/6", b"ab", "+"), ("2-3/6", b"bc", "+")]:
            chunk = near.start_chunk(far.path, [("Message-ID", "odd.1"), ("Byte-Range", byte_range)])
            await chunk.write(body)
            await chunk.end(flag)
        received = await far.next_message()
        assert (bytes(received.data), received.overlap) == (b"abcdef", 1)


async def test_slow_reader_stalls_the_sender(pair: Pair) -> None:
    async with pair() as (near, far), asyncio.TaskGroup() as group:
        await near.send(far.path, b"first")
        far.pause_reading()
        sending = group.create_task(near.send(far.path, (bytes(65536) for _ in range(256))))
        chunk = await eventually(lambda: near.open_chunks.get(near.active_link))
        await eventually(lambda: chunk.frame.body_octets > MIB)
        assert far.links[0].octets_received < MIB
        far.resume_reading()
        assert (await within(sending, 30)).ok


async def test_lost_connection_fails_what_is_open(pair: Pair) -> None:
    async with pair() as (near, far):
        far.answer = None
        task = asyncio.create_task(near.send(far.path, b"x"))
        await far.next_message()
        far.links[0].reset()
        with pytest.raises(ConnectionError):
            await within(task)
        assert await near.wait_closed()


def relay_like(far: MsrpListener, password: str, *, stale_first: bool = False) -> Callable[[], object]:
    """Return a coroutine function that plays a relay's AUTH, far enough for the client's side."""

    async def serve() -> None:
        stale = stale_first
        while True:
            frame = await far.requests.get()
            value = frame.get("Authorization")
            if value is None or stale:
                stale = stale and value is None
                offer = f'Digest realm="loom", nonce="n{len(far.frames)}", opaque="o", algorithm=SHA-256, qop="auth"'
                mark = ", stale=true" if value else ""
                far.respond(frame, 401, "Unauthorized", [("WWW-Authenticate", offer + mark)])
            else:
                answer_auth(far, frame, password, digest.parse_parameters(value.removeprefix("Digest ")))

    return serve


def answer_auth(far: MsrpListener, frame: Frame, password: str, found: dict[str, str]) -> None:
    challenge = digest.Challenge(found["realm"], found["nonce"], found["algorithm"], found["opaque"], ("auth",))
    expected = digest.answer(
        challenge,
        found["username"],
        password,
        "AUTH",
        frame.to_path[-1],
        count=int(found["nc"], 16),
        cnonce=found["cnonce"],
    )
    if f'response="{found["response"]}"' not in expected.header:
        far.respond(frame, 401, "No", [("WWW-Authenticate", 'Digest realm="loom", nonce="x", qop="auth"')])
        return
    proof = f'rspauth="{expected.expected_rspauth()}", cnonce="{found["cnonce"]}", nc={found["nc"]}, qop=auth'
    headers = [("Use-Path", "msrp://r1:1/a;tcp msrp://r2:1/b;tcp"), ("Expires", frame.get("Expires") or "600")]
    far.respond(frame, 200, "OK", [*headers, ("Authentication-Info", proof)])


@pytest.mark.parametrize("stale", [False, True])
async def test_auth_answers_the_challenge(pair: Pair, stale: bool) -> None:
    async with pair("tls") as (near, far):
        relay = asyncio.create_task(relay_like(far, "zanzibar", stale_first=stale)())
        assert await near.auth(expires=900) == ["msrp://r1:1/a;tcp", "msrp://r2:1/b;tcp"]
        assert near.path == ["msrp://r2:1/b;tcp", "msrp://r1:1/a;tcp", near.uri]
        assert near.expires == 900
        assert near.sent("AUTH")[0].to_path == [f"msrps://127.0.0.1:{far.address[1]};tcp"]
        relay.cancel()


async def test_auth_with_a_wrong_password_raises(pair: Pair) -> None:
    async with pair() as (near, far):
        relay = asyncio.create_task(relay_like(far, "other")())
        with pytest.raises(AuthFailed) as caught:
            await near.auth()
        assert (caught.value.status, near.challenges) == (401, 1)
        relay.cancel()
