"""Files of all sizes through one and two relays; what a receiver that takes nothing, or many senders, do to the server.

`make soak` runs the largest ones, which are too long for every day, and prints what they took.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.server.agents import USERS, enrolled, msrp_client, open_config
from tests.ua.certs import Authority
from tests.ua.msrp import HashSink, MsrpEndpoint
from tests.ua.msrp_frame import Frame
from tests.ua.msrp_message import Received
from tests.ua.wait import eventually

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
STALL_S = 3
PATIENCE_S = 600
soak = pytest.mark.skipif(not os.environ.get("EDGE_SOAK"), reason="takes minutes: make soak")
PIECE = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EdgeServer, EdgeServer]]:
    """Two relays that trust each other's certificates."""
    both = []
    authority = Authority(tmp_path_factory.mktemp("ca"))
    for name in ("one", "two"):
        own = authority.issue(name, ips=["127.0.0.1"])
        tls = {
            "certificate": str(own.certificate), "private_key": str(own.private_key), "trust": str(authority.path),
        }  # fmt: skip
        config = open_config(limits={"stall_timeout": STALL_S}, tls=tls, msrp={"websocket_piece": 65536})
        server = EdgeServer(tmp_path_factory.mktemp(name), config)
        server.import_users(USERS)
        server.start()
        both.append(server)
    yield both[0], both[1]
    for server in both:
        server.finish()


def memory(server: EdgeServer, field: str) -> int:
    """Octets of memory of the process: VmRSS now, VmHWM at its largest."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition(field + ":")[2].split()[0]) * 1024


def reset_peak(server: EdgeServer) -> None:
    """Have VmHWM count from now on (proc(5), clear_refs)."""
    assert server.process is not None
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def cpu_seconds(server: EdgeServer) -> float:
    """Processor time the process has taken so far (proc(5), stat)."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pieces(size: int) -> Iterator[bytes]:
    """A file of that size."""
    for _ in range(size // len(PIECE)):
        yield PIECE
    if size % len(PIECE):
        yield PIECE[: size % len(PIECE)]


def digest(size: int) -> str:
    """The SHA-256 of that file, in hex."""
    whole = hashlib.sha256()
    for piece in pieces(size):
        whole.update(piece)
    return whole.hexdigest()


async def transfer(
    alice: MsrpEndpoint, path: list[str], receiver: MsrpEndpoint, size: int, *, chunk_size: int | None = None
) -> Received:
    """Send a file, as one chunk where none is said, and return what arrived, which must be that file."""
    receiver.sink = HashSink
    sent = await alice.send(
        path,
        pieces(size) if size else b"",
        "application/octet-stream",
        chunk_size=chunk_size,
        total=size or None,
        success_report="yes",
        seconds=PATIENCE_S,
    )
    assert sent.ok
    message = await receiver.next_message(PATIENCE_S)
    assert message.octets == size
    assert message.overlap == 0
    assert message.sha256 == digest(size)
    assert (await alice.next_report())["Status"] == "000 200 OK"
    return message


@pytest.mark.parametrize("size", [0, 1, 100 * MEBIBYTE])
@pytest.mark.parametrize(
    ("one", "other"), [("tcp", "tls"), pytest.param("tls", "ws", marks=pytest.mark.slow), ("ws", "tcp")]
)
async def test_files_pass_one_relay(relays: tuple[EdgeServer, EdgeServer], one: str, other: str, size: int) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(relays[0], stack, "alice", one)
        bob = await enrolled(relays[0], stack, "bob", other)
        await transfer(alice, [*alice.use_path, *bob.path], bob, size)


@pytest.mark.parametrize("size", [0, 1, 100 * MEBIBYTE])
@pytest.mark.parametrize(
    ("one", "other"),
    [("tcp", "tcp"), ("tls", "tls"), ("ws", "tcp"), pytest.param("tcp", "ws", marks=pytest.mark.slow)],
)
async def test_files_pass_two_relays(relays: tuple[EdgeServer, EdgeServer], one: str, other: str, size: int) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(relays[0], stack, "alice", one)
        bob = await enrolled(relays[1], stack, "bob", other)
        await transfer(alice, [*alice.use_path, *bob.path], bob, size)


@pytest.mark.requirement("MSRP-WS-05")
async def test_a_websocket_message_of_100_mebibytes_is_relayed_while_it_comes(
    relays: tuple[EdgeServer, EdgeServer],
) -> None:
    server = relays[0]
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "ws")
        bob = await enrolled(server, stack, "bob", "tcp")
        path = [*alice.use_path, *bob.path]
        await transfer(alice, path, bob, MEBIBYTE)
        reset_peak(server)
        before = memory(server, "VmHWM")
        await transfer(alice, path, bob, 100 * MEBIBYTE)
        assert memory(server, "VmHWM") - before < 8 * MEBIBYTE


@pytest.mark.requirement("MSRP-FLOW-08")
async def test_a_receiver_who_takes_nothing_costs_no_memory_and_has_failed_in_time(
    relays: tuple[EdgeServer, EdgeServer],
) -> None:
    server = relays[0]
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "tcp")
        bob = await enrolled(server, stack, "bob", "tcp")
        carol = await enrolled(server, stack, "carol", "tls")
        dave = await enrolled(server, stack, "dave", "ws")
        path = [*alice.use_path, *bob.path]
        bob.answer = None
        assert (await alice.send(path, b"answered here, confirmed by nobody", message_id="early")).ok
        await bob.next_message()
        bob.pause_reading()
        reset_peak(server)
        before = memory(server, "VmHWM")
        failed = server.metrics().value("edge_connections_failed_total", reason="stalled")
        began = time.monotonic()
        offered = asyncio.ensure_future(
            alice.send(path, pieces(GIBIBYTE), total=GIBIBYTE, message_id="late", seconds=60)
        )
        for number in range(20):  # meanwhile others notice nothing
            assert (await carol.send([*carol.use_path, *dave.path], b"%d" % number)).ok
            assert bytes((await dave.next_message()).data) == b"%d" % number
        assert not offered.done()
        assert server.metrics().value("edge_connections_failed_total", reason="stalled") == failed
        await eventually(lambda: server.metrics().value("edge_connections_failed_total", reason="stalled") > failed, 20)
        assert time.monotonic() - began >= STALL_S
        assert memory(server, "VmHWM") - before < 8 * MEBIBYTE
        report = await alice.next_report()
        assert (report["Message-ID"], report["Status"].split()[1]) == ("early", "408")
        assert 408 in (await offered).statuses


@pytest.mark.requirement("MSRP-FLOW-05")
async def test_ten_senders_share_one_receiver_and_a_small_message_passes_them(
    relays: tuple[EdgeServer, EdgeServer],
) -> None:
    server = relays[0]
    share: Counter[str] = Counter()
    enough = asyncio.Event()

    def count(frame: Frame, data: bytes) -> None:
        share[frame["Message-ID"]] += len(data)
        if sum(share.values()) > 40 * MEBIBYTE:
            enough.set()

    async def endless() -> AsyncIterator[bytes]:
        while not enough.is_set():
            yield PIECE[:65536]
            await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        bob = await enrolled(server, stack, "bob", "tcp")
        bob.sink, bob.on_body = HashSink, count
        senders = [await stack.enter_async_context(msrp_client(server, "alice", "tcp")) for _ in range(10)]
        bobs = {}
        for alice in senders:
            await alice.auth()
            (bobs[alice],) = await bob.auth()
        sending = [
            asyncio.ensure_future(
                alice.send([*alice.use_path, bobs[alice], bob.uri], endless(), message_id=f"big{n}", seconds=60)
            )
            for n, alice in enumerate(senders)
        ]
        await eventually(lambda: len(share) == 10, 20)
        share.clear()
        erin = await enrolled(server, stack, "erin", "tcp")
        (uri,) = await bob.auth()
        assert (await erin.send([*erin.use_path, uri, bob.uri], b"small", message_id="small")).ok
        await eventually(lambda: share["small"] == 5, 20)
        assert not enough.is_set()
        async with asyncio.timeout(60):
            await enough.wait()
        del share["small"]
        assert max(share.values()) < 2 * min(share.values()), share
        await asyncio.gather(*sending)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "hops"),
    [
        ("tcp", 1),
        pytest.param("tcp", 2, marks=soak),
        pytest.param("tls", 1, marks=soak),
        pytest.param("tls", 2, marks=soak),
        pytest.param("ws", 1, marks=soak),
        pytest.param("ws", 2, marks=soak),
    ],
)
async def test_five_gibibytes_in_one_message_take_no_memory(
    relays: tuple[EdgeServer, EdgeServer], hops: int, transport: str
) -> None:
    async with AsyncExitStack() as stack:
        alice = await enrolled(relays[0], stack, "alice", transport)
        bob = await enrolled(relays[hops - 1], stack, "bob", transport)
        path = [*alice.use_path, *bob.path]
        # A WebSocket client of the tests has a chunk in its memory before it leaves.
        chunk_size = MEBIBYTE if transport == "ws" else None
        await transfer(alice, path, bob, MEBIBYTE, chunk_size=chunk_size)
        used = relays[:hops]
        for relay in used:
            reset_peak(relay)
        before = [(memory(relay, "VmHWM"), cpu_seconds(relay)) for relay in used]
        began = time.monotonic()
        await transfer(alice, path, bob, 5 * GIBIBYTE, chunk_size=chunk_size)
        print(f"\n5 GiB over {transport}, {hops} relay(s): {time.monotonic() - began:.0f} s")
        for relay, (octets, seconds) in zip(used, before, strict=True):
            growth = memory(relay, "VmHWM") - octets
            print(f"  relay: {cpu_seconds(relay) - seconds:.1f} s CPU, peak {growth / MEBIBYTE:+.1f} MiB after 1 MiB")
            assert growth < 8 * MEBIBYTE
