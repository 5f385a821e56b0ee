"""Limits of the connection table: how many, how long, and how much may wait for one who does not read."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import (
    USERS,
    answering,
    connections_open,
    counted,
    enrolled,
    exchange_messages,
    open_config,
    registered,
    sip_ua,
)
from tests.ua.hostile import HostileClient
from tests.ua.wait import eventually


def resident(server: EdgeServer) -> int:
    """Octets of memory the server's process has."""
    assert server.process is not None
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


async def opened(server: EdgeServer, stack: AsyncExitStack, host: str, count: int) -> list[HostileClient]:
    """Connections that have been let in: each has got its pong."""
    clients = []
    for _ in range(count):
        client = HostileClient(("127.0.0.1", server.port), local_host=host)
        clients.append(await stack.enter_async_context(client))
        await client.send(b"\r\n\r\n")
        assert await client.read_exactly(2) == b"\r\n"
    return clients


async def turned_away(server: EdgeServer, host: str, reason: str) -> None:
    """One more is reset, maybe before it has noticed that it was connected."""
    before = server.metrics().value("edge_connections_refused_total", reason=reason)
    client = HostileClient(("127.0.0.1", server.port), local_host=host)
    with contextlib.suppress(ConnectionError):
        await client.connect()
        await client.send(b"\r\n\r\n")
        assert await client.read_until_close() == b""
    client.close()
    await counted(server, "edge_connections_refused_total", before + 1, reason=reason)


@pytest.mark.requirement("SIP-DOS-03", "SIP-DOS-04", "OB-LIM-02")
async def test_connections_are_limited_for_each_source_and_in_total(edge_server: EdgeServerFactory) -> None:
    server = edge_server({"limits": {"connections": 10, "connections_per_source": 4, "trusted": ["127.0.0.9"]}})
    async with AsyncExitStack() as stack:
        first = await opened(server, stack, "127.0.0.1", 4)
        await turned_away(server, "127.0.0.1", "source_limit")
        await opened(server, stack, "127.0.0.9", 6)  # trusted: only the total counts
        await turned_away(server, "127.0.0.2", "connection_limit")
        await turned_away(server, "127.0.0.9", "connection_limit")
        first[0].close()
        await connections_open(server, 9)
        await opened(server, stack, "127.0.0.1", 1)  # one left, so one may come
        await turned_away(server, "127.0.0.1", "connection_limit")


@pytest.mark.requirement("SIP-TRP-16")
async def test_a_sip_reader_who_takes_nothing_is_closed_at_the_bound_of_its_queue(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(limits={"send_queue": 65536}), USERS)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        bob = await registered(server, stack, "bob")
        carol = await registered(server, stack, "carol", "tls")
        alice.reuse_nonce = carol.reuse_nonce = True
        await exchange_messages(alice, carol)
        assert bob.link is not None
        bob.link.pause_reading()
        before = resident(server)
        flood = []
        body = b"x" * 30_000
        while server.metrics().value("edge_connections_failed_total", reason="send_queue") == 0:
            flood += [asyncio.create_task(alice.message(bob.uri, body)) for _ in range(20)]
            assert (await exchange_messages(carol, alice)).status == 200  # nobody else notices
            assert len(flood) < 1000, "the queue of a reader who does not read has no bound"
        assert resident(server) - before < 32 << 20
        bob.link.resume_reading()
        await bob.link.wait_closed()
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert all(isinstance(outcome, TimeoutError) or outcome.status >= 400 for outcome in outcomes)
        assert (await alice.message(bob.uri, b"gone")).status == 480


async def test_a_receiver_who_stalls_fails_and_its_sender_was_slowed_down(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"stall_timeout": 2}), USERS)
    async with AsyncExitStack() as stack:
        alice = await enrolled(server, stack, "alice", "tcp")
        bob = await enrolled(server, stack, "bob", "tcp")
        carol = await enrolled(server, stack, "carol", "tcp")
        dave = await enrolled(server, stack, "dave", "tcp")
        bob.pause_reading()
        before = resident(server)
        path = [*alice.use_path, *bob.path]
        transfers = [asyncio.create_task(alice.send(path, (b"x" * 65536 for _ in range(1600)), seconds=60))]
        while server.metrics().value("edge_connections_failed_total", reason="stalled") == 0:
            assert (await carol.send([*carol.use_path, *dave.path], b"meanwhile")).ok
            assert resident(server) - before < 24 << 20  # of 100 MiB that want to get through
            await asyncio.sleep(0.1)
        bob.resume_reading()
        await bob.wait_closed()
        (outcome,) = await asyncio.gather(*transfers, return_exceptions=True)
        assert isinstance(outcome, Exception) or not outcome.ok
        again = await alice.send(path, b"gone")
        assert not again.ok


async def test_udp_flows_are_limited_and_those_beyond_are_served_all_the_same(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"udp_flows": 2}), USERS)
    async with AsyncExitStack() as stack:
        for name in ("alice", "bob", "carol", "dave"):
            agent = await stack.enter_async_context(sip_ua(server, name, "udp"))
            agent.on_request = answering()
            assert (await agent.options("sip:example.com")).status == 200
        assert server.metrics().value("edge_udp_flows") == 2
        await eventually(lambda: server.metrics().value("edge_datagrams_total", kind="flow_limit") >= 2)
