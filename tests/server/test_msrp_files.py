"""Files of all sizes through one and two relays; what a receiver that takes nothing, or many senders, do to the server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.server.agents import USERS, msrp_client, open_config
from tests.ua.msrp import HashSink, MsrpEndpoint
from tests.ua.msrp_frame import Frame
from tests.ua.msrp_message import Received
from tests.ua.wait import eventually

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
STALL_S = 3
PIECE = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EdgeServer, EdgeServer]]:
    """Two relays."""
    both = []
    for name in ("one", "two"):
        server = EdgeServer(tmp_path_factory.mktemp(name), open_config(limits={"stall_timeout": STALL_S}))
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


async def transfer(alice: MsrpEndpoint, path: list[str], receiver: MsrpEndpoint, size: int) -> Received:
    """Send a file and return what arrived, which must be that file."""
    receiver.sink = HashSink
    sent = await alice.send(
        path,
        pieces(size) if size else b"",
        "application/octet-stream",
        total=size or None,
        success_report="yes",
        seconds=300,
    )
    assert sent.ok
    message = await receiver.next_message(300)
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
        alice = await stack.enter_async_context(msrp_client(relays[0], "alice", one))
        bob = await stack.enter_async_context(msrp_client(relays[0], "bob", other))
        await alice.auth()
        await bob.auth()
        await transfer(alice, [*alice.use_path, *bob.path], bob, size)


@pytest.mark.parametrize("size", [0, 1, 100 * MEBIBYTE])
@pytest.mark.parametrize(
    ("one", "other"), [("tcp", "tcp"), ("ws", "tcp"), pytest.param("tcp", "ws", marks=pytest.mark.slow)]
)
async def test_files_pass_two_relays(relays: tuple[EdgeServer, EdgeServer], one: str, other: str, size: int) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(msrp_client(relays[0], "alice", one))
        bob = await stack.enter_async_context(msrp_client(relays[1], "bob", other))
        await alice.auth()
        await bob.auth()
        await transfer(alice, [*alice.use_path, *bob.path], bob, size)


@pytest.mark.requirement("MSRP-WS-05")
async def test_a_websocket_message_of_100_mebibytes_is_relayed_while_it_comes(
    relays: tuple[EdgeServer, EdgeServer],
) -> None:
    server = relays[0]
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(msrp_client(server, "alice", "ws"))
        bob = await stack.enter_async_context(msrp_client(server, "bob", "tcp"))
        await alice.auth()
        await bob.auth()
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
        alice = await stack.enter_async_context(msrp_client(server, "alice", "tcp"))
        bob = await stack.enter_async_context(msrp_client(server, "bob", "tcp"))
        await alice.auth()
        await bob.auth()
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
        bob = await stack.enter_async_context(msrp_client(server, "bob", "tcp"))
        await bob.auth()
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
        erin = await stack.enter_async_context(msrp_client(server, "erin", "tcp"))
        await erin.auth()
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
@pytest.mark.parametrize(("hops", "one", "other"), [(1, "tcp", "tcp"), (2, "tcp", "tcp")])
async def test_five_gibibytes_in_one_message_take_no_memory(
    relays: tuple[EdgeServer, EdgeServer],
    hops: int,
    one: str,
    other: str,
    record_property: Callable[[str, object], None],
) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(msrp_client(relays[0], "alice", one))
        bob = await stack.enter_async_context(msrp_client(relays[hops - 1], "bob", other))
        await alice.auth()
        await bob.auth()
        path = [*alice.use_path, *bob.path]
        await transfer(alice, path, bob, MEBIBYTE)
        used = relays[:hops]
        for relay in used:
            reset_peak(relay)
        before = [(memory(relay, "VmHWM"), cpu_seconds(relay)) for relay in used]
        began = time.monotonic()
        await transfer(alice, path, bob, 5 * GIBIBYTE)
        record_property("seconds", round(time.monotonic() - began, 1))
        for relay, (octets, seconds) in zip(used, before, strict=True):
            record_property("cpu_seconds", round(cpu_seconds(relay) - seconds, 1))
            record_property("growth_octets", memory(relay, "VmHWM") - octets)
            assert memory(relay, "VmHWM") - octets < 8 * MEBIBYTE
