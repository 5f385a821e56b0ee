"""Thousands who send an octet a second: all are closed on time, and cost next to nothing meanwhile (SIP-DMX-07)."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, connections_open, counted, exchange_messages, open_config, sip_ua
from tests.ua.wait import eventually, scaled

SLOW = 5_000
MEBIBYTE = 2**20
EACH = 24 * 1024  # octets for a connection and what it has begun to say

HEAD = (
    b"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/TCP c.example.com;branch=z9hG4bKslow\r\nMax-Forwards: 70\r\n"
    b"From: <sip:c@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: slow\r\nCSeq: 1 OPTIONS\r\n"
)
# What was said before the dripping begins, and the reason the end of it is counted by.
BEGINNINGS = {
    "start line": (b"OPTIONS sip:", "message_timeout"),
    "headers": (b"OPTIONS sip:example.com SIP/2.0\r\nX: ", "message_timeout"),
    "body": (HEAD + b"Content-Length: 60000\r\n\r\n", "message_timeout"),
    "upgrade": (b"GET / HTTP/1.1\r\nX: ", "upgrade_timeout"),
}


class Crowd:
    """Clients that drip: `left` are still connected, `heard` is whatever the server said to any of them."""

    def __init__(self) -> None:
        self.left: list[socket.socket] = []
        self.heard = b""

    async def connect(self, address: tuple[str, int], count: int) -> None:
        """Open `count` connections and say nothing."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            self.left.append(client)
            await loop.sock_connect(client, address)

    def begin(self) -> None:
        """Say how it begins, a part of the crowd each."""
        beginnings = [data for data, _ in BEGINNINGS.values()]
        for number, client in enumerate(self.left):
            client.send(beginnings[number % len(beginnings)])

    def drip(self) -> None:
        """Send one octet more each; who was hung up on is not among those left any more."""
        self.left = [client for client in self.left if self._is_open(client)]

    def _is_open(self, client: socket.socket) -> bool:
        try:
            client.send(b"x")
            self.heard += client.recv(4096)  # whatever comes, it is the end of the connection
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        client.close()
        return False

    def close(self) -> None:
        for client in self.left:
            client.close()


def resident(server: EdgeServer) -> int:
    """Octets of memory the server's process has."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def descriptors(server: EdgeServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.requirement("SIP-DMX-07")
@pytest.mark.usefixtures("many_descriptors")
async def test_5000_who_drip_an_octet_a_second_are_closed_on_time_and_cost_no_memory(
    edge_server: EdgeServerFactory,
) -> None:
    """While one octet after the other arrives nothing may grow, and no octet may buy time."""
    limits = {"first_message_timeout": 300, "start_line_timeout": 6, "message_timeout": 9, "handshake_timeout": 6}
    server = edge_server(open_config(limits=limits), USERS)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "tcp"))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
        await alice.register()
        await bob.register()
        before = resident(server)
        crowd = Crowd()
        stack.callback(crowd.close)
        await crowd.connect(("127.0.0.1", server.port), SLOW)
        await eventually(lambda: descriptors(server) > SLOW, 30, what="all of them accepted")
        crowd.begin()
        sizes: list[int] = []
        rounds = 0
        while crowd.left:
            await asyncio.sleep(1.0)
            crowd.drip()
            rounds += 1
            assert rounds < scaled(40), f"{len(crowd.left)} are still there"
            if len(crowd.left) == SLOW:
                sizes.append(resident(server))
                assert (await exchange_messages(alice, bob)).status == 200
        assert crowd.heard == b""  # closed without an answer
        assert len(sizes) >= 3
        assert sizes[-1] - sizes[0] < 2 * MEBIBYTE
        assert sizes[-1] - before < SLOW * EACH
        assert (await exchange_messages(alice, bob)).status == 200
        await connections_open(server, 1, transport="tcp")
    for reason in ("message_timeout", "upgrade_timeout"):
        of_this_reason = sum(SLOW // len(BEGINNINGS) for _, why in BEGINNINGS.values() if why == reason)
        assert await counted(server, "edge_connections_closed_total", of_this_reason, reason=reason) == of_this_reason
