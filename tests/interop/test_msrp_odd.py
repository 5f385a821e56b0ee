"""One conversation of everything odd that a relay says or passes on, with tshark as the judge of each frame of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.interop.capture import Capture
from tests.interop.messaging import chat, endpoint
from tests.interop.msrp_wire import judge
from tests.interop.programs import needs
from tests.ua.hostile import octets, random_pieces
from tests.ua.msrp import Abort, AuthFailed, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import build, end_line
from tests.ua.wait import eventually

pytestmark = [pytest.mark.interop, needs("dumpcap", "tshark")]

BINARY = "application/octet-stream"


@dataclass
class Stage:
    """Alice and Bob talk over `path`, Dave has no session, `mute` says nothing; `vanished` are ports of those who left."""

    port: int
    mute: MsrpListener
    alice: MsrpEndpoint
    bob: MsrpEndpoint
    carol: MsrpEndpoint
    dave: MsrpEndpoint
    path: list[str] = field(default_factory=list)
    vanished: list[int] = field(default_factory=list)


async def enrolment(stage: Stage) -> None:
    for who in (stage.alice, stage.bob, stage.carol):
        await who.auth()
    for expires in (5, 100_000):
        with pytest.raises(AuthFailed) as failed:
            await stage.alice.auth(expires)
        assert failed.value.status == 423
    before = stage.alice.use_path
    assert await stage.alice.auth(900, to_path=before) == before
    await stage.alice.auth()
    assert stage.alice.use_path != before
    stage.path = [*stage.alice.use_path, *stage.bob.path]
    stage.dave.password = "guessed"
    with pytest.raises(AuthFailed) as failed:
        await stage.dave.auth()
    assert failed.value.status == 401


async def refusals(stage: Stage) -> None:
    nobody = f"msrp://127.0.0.1:{stage.port}/nobodyshere;tcp"
    assert (await stage.alice.send([nobody, stage.bob.uri], b"?")).statuses == [481]
    assert (await stage.dave.send([*stage.alice.use_path, stage.mute.uri], b"?")).statuses == [403]
    assert (await stage.carol.send([*stage.carol.use_path, *stage.bob.path], b"?")).statuses == [506]
    assert (await stage.alice.send(stage.path, b"?", success_report="maybe")).statuses == [400]


async def other_methods(stage: Stage) -> None:
    """NICKNAME and one that nobody knows; what Bob says to them comes back."""
    for method, headers, body, status, comment in (
        ("NICKNAME", [("Use-Nickname", '"Ally, of course"')], None, 200, None),
        ("NICKNAME", [("Use-Nickname", '"Bob"')], None, 425, "Nickname reserved"),
        ("NICKNAME", [], None, 481, None),
        ("XYZZY", [("X-Odd", "grüße\tand: more")], b"plugh", 501, ""),
        ("XYZZY", [], None, 403, "zu früh"),
    ):
        answer = asyncio.ensure_future(stage.alice.request(method, stage.path, headers, body))
        request = await stage.bob.next_request()
        assert (request.method, bytes(request.body)) == (method, body or b"")
        assert [(name, value) for name, value in request.headers if name in dict(headers)] == headers
        stage.bob.respond(request, status, comment)
        assert (await answer).status == status


async def pieces(stage: Stage) -> None:
    """A message in chunks, two given up, one interrupted."""
    alice, bob = stage.alice, stage.bob
    assert (await alice.send(stage.path, b"0123456789" * 900, chunk_size=4000)).ok
    *first, last = (await bob.next_message()).chunks
    assert ({chunk.flag for chunk in first}, last.flag) == ({"+"}, "$")

    async def given_up() -> AsyncIterator[bytes]:
        yield b"never mind " * 1000
        raise Abort

    await alice.send(stage.path, given_up())
    assert (await bob.next_message()).aborted
    await alice.send(stage.path, aborted_small(), total=100)
    assert (await bob.next_message()).aborted
    for number, flag in ((1, "+"), (5001, "$")):
        headers = [("Message-ID", "interrupted"), ("Byte-Range", f"{number}-*/10000")]
        chunk = alice.start_chunk(stage.path, headers)
        await chunk.write(b"x" * 5000)
        await chunk.end(flag)
    assert bytes((await bob.next_message()).data) == b"x" * 10000


async def aborted_small() -> AsyncIterator[bytes]:
    """So little that the relay has not written any of it when it is given up."""
    yield b"small"
    raise Abort


async def vanishing(stage: Stage) -> None:
    """Carol has more to send, and is gone; what the relay has begun it ends with `+` and a true range."""
    await vanish(stage, "lost at once", "1-*/10000", reset)
    await vanish(stage, "lost in order", "1-10000/10000", MsrpEndpoint.stop)


async def vanish(
    stage: Stage, message_id: str, byte_range: str, leave: Callable[[MsrpEndpoint], Awaitable[None]]
) -> None:
    bob = stage.bob
    async with endpoint("carol", stage.port) as carol:
        path = await session_to_bob(stage, carol)
        await carol.start_chunk(path, [("Message-ID", message_id), ("Byte-Range", byte_range)]).write(b"x" * 5000)
        await eventually(lambda: message_id in bob.partial and bob.partial[message_id].octets > 2048)
        await leave(carol)
        await eventually(lambda: bob.partial[message_id].chunks[-1].flag == "+")


async def reset(who: MsrpEndpoint) -> None:
    who.active_link.reset()


async def vanishing_early(stage: Stage) -> None:
    """The same with so little that it waited for the rest: the last octets of a large read."""
    async with endpoint("carol", stage.port) as carol:
        path = await session_to_bob(stage, carol)
        whole = [whole_frame(carol, path, f"early{number}", b"x" * 2000) for number in range(60)]
        carol.send_raw(b"".join(whole) + whole_frame(carol, path, "early", b"x" * 2000)[:-1000])
        while (await stage.bob.next_message()).message_id != "early59":
            pass


async def session_to_bob(stage: Stage, who: MsrpEndpoint) -> list[str]:
    """Enrol, have Bob get a URI for it, and return the path."""
    await who.auth()
    await stage.bob.auth()
    stage.vanished.append(who.active_link.local[1])
    return [*who.use_path, *stage.bob.path]


async def reports_of_failure(stage: Stage) -> None:
    async with MsrpListener("gone") as gone:
        nobody_there = gone.uri
    alice, bob = stage.alice, stage.bob
    for number, (path, size, answer, wanted, status) in enumerate((
        (stage.path, 30_000, (413, "too much, zu groß"), "yes", "413"),
        (stage.path, 30_000, (481, ""), "partial", "481"),
        (stage.path, 30_000, 500, None, "500"),
        # One read takes it whole; of a chunk that is still coming in, the response would tell (decision D2).
        ([*(await alice.auth()), nobody_there], 300, 200, "partial", "408"),
    )):  # fmt: skip
        bob.answer = answer
        sent = await alice.send(path, bytes(size), BINARY, failure_report=wanted, message_id=f"failed{number}")
        assert sent.ok or wanted == "partial"
        await reported(alice, f"failed{number}", status, size)
    bob.answer = 200
    await alice.send(stage.path, b"quietly", failure_report="no")
    while bytes((await bob.next_message()).data) != b"quietly":
        pass


async def reported(who: MsrpEndpoint, message_id: str, status: str, octets: int) -> None:
    """Wait for REPORTs on all octets of a message, each named once, in order (RFC 4975 §7.1.4)."""
    told = 0
    while told < octets:
        report = await who.next_report()
        assert (report["Message-ID"], report["Status"].split()[1]) == (message_id, status)
        start, end, total = report.byte_range
        assert (start, total) == (told + 1, octets)
        told = end or 0


async def silence(stage: Stage) -> None:
    """A next hop that says nothing; Alice's REPORT on it comes while she talks to others."""
    stage.mute.answer = None
    async with endpoint("dave", stage.port) as dave:
        await dave.auth()
        assert (await dave.send([*dave.use_path, stage.mute.uri], b"anybody?")).ok
        assert (await dave.next_report(30))["Status"].startswith("000 408")


async def empty(stage: Stage) -> None:
    assert (await stage.alice.send(stage.path, None)).ok
    assert not (await stage.bob.next_bodiless()).has_body
    assert (await stage.alice.send(stage.path, b"", success_report="yes")).ok
    assert (await stage.bob.next_message()).octets == 0
    assert (await stage.alice.next_report())["Status"] == "000 200 OK"


def lookalikes(identifier: str) -> bytes:
    """Octets that are nearly the end-line of a frame, an empty line, and a whole frame of somebody else."""
    other = b"MSRP abcd1234 SEND\r\nTo-Path: msrp://a.example:1/x;tcp\r\n\r\n\r\n-------abcd1234$\r\n"
    line = b"-------" + identifier.encode()
    return b"\0\xff" + b"".join((
        line, b"$\r\n", b"\r\n", line, b"!\r\n", b"\r\n", line, b"$\r", b"\r\n", line, b"\r\n", b"\r\n-------\r\n",
        other, b"\r\n\r\n", b"\r\n-----", line, b"$\r\n", b"\r\n", line[:-1], b"$\r\n", b"\r\n", line,
    ))  # fmt: skip


def whole_frame(sender: MsrpEndpoint, path: list[str], identifier: str, body: bytes) -> bytes:
    """A SEND with that id and Message-ID."""
    headers = [("Message-ID", identifier), ("Byte-Range", f"1-{len(body)}/{len(body)}")]
    frame = build("SEND", path, [sender.uri], headers, content_type=BINARY, flag="$", transaction_id=identifier)
    return frame.head + body + end_line(frame)


async def lines_like_the_end(stage: Stage) -> None:
    """Small enough to pass as it is, and large enough to be cut; whole, octet by octet, and many in one write."""
    for number, size in enumerate((1, 40, 400)):
        identifier = f"look{number}"
        frame = whole_frame(stage.alice, stage.path, identifier, lookalikes(identifier) * size)
        for piece in octets(frame) if size == 1 else random_pieces(frame, seed=size, mean=700):
            stage.alice.send_raw(piece)
            await stage.alice.active_link.drain()
            await asyncio.sleep(0)
        assert bytes((await stage.bob.next_message()).data) == lookalikes(identifier) * size


async def many_at_once(stage: Stage) -> None:
    many = [f"many{number}" for number in range(300)]
    frames = b"".join(
        whole_frame(stage.alice, stage.path, name, lookalikes(name)[: 3 * number]) for number, name in enumerate(many)
    )
    stage.alice.send_raw(frames)
    assert [(await stage.bob.next_message()).message_id for _ in many] == many


async def both_ways(stage: Stage) -> None:
    await chat(stage.alice, stage.bob)


STEPS = (
    both_ways,
    refusals,
    other_methods,
    pieces,
    vanishing,
    vanishing_early,
    reports_of_failure,
    empty,
    lines_like_the_end,
    many_at_once,
)


async def converse(server: EdgeServer, mute: MsrpListener, transport: str) -> Stage:
    """Play all steps, one beside the others, with Bob on a transport."""
    async with AsyncExitStack() as stack:
        kinds = {"alice": "tcp", "bob": transport, "carol": "tcp", "dave": "tcp"}
        people = [await stack.enter_async_context(endpoint(name, server.port, kind)) for name, kind in kinds.items()]
        stage = Stage(server.port, mute, *people)
        await enrolment(stage)
        waiting = asyncio.create_task(silence(stage))
        for step in STEPS:
            await step(stage)
        await waiting
        return stage


@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_everything_odd_that_a_relay_says_and_passes_on(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture], tmp_path: Path, transport: str
) -> None:
    server = edge(msrp={"report_timeout": 2})
    async with MsrpListener("mute") as mute:
        wire = capture(f"tcp port {server.port} or tcp port {mute.address[1]}")
        stage = await converse(server, mute, transport)
    frames = await asyncio.to_thread(judge, wire, tmp_path, stage.vanished)
    ours = [frame for frame in frames if frame.stream[0] == server.port or frame.stream[1] == mute.address[1]]
    methods = {"SEND", "REPORT", "NICKNAME", "XYZZY"}
    assert {frame.what for frame in ours} == methods | {"200", "400", "401", "403", "423", "425", "481", "501", "506"}
    reported = {frame.read["Status"].split()[1] for frame in ours if frame.what == "REPORT"}
    assert reported == {"200", "408", "413", "481", "500"}
    sent = [frame.read for frame in ours if frame.what == "SEND"]
    assert {read.flag for read in sent} == {"$", "+", "#"}
    assert {read.flag for read in sent if read["Message-ID"].startswith("lost")} == {"+"}
    assert {bool(read.body_octets) for read in sent if read.has_body} == {True, False}
    assert not all(read.has_body for read in sent)
