"""A thousand browsers that register and are gone: exactly one `flow.failed` for each `flow.up` (OB-FAIL-08)."""

from __future__ import annotations

import asyncio
import random
import resource
from collections import Counter
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import flow_events, open_config, start_with_flow_events
from tests.ua.sip import SipUA
from tests.ua.wait import deadline, eventually

CLIENTS = 1000
FLOW_TIMER_S = 1  # silence of 12 s is a failure
AT_A_TIME = 40  # handshakes


@pytest.fixture
def server(edge_server: EdgeServerFactory) -> EdgeServer:
    config = open_config(auth={"required": False}, outbound={"flow_timer": FLOW_TIMER_S})
    return start_with_flow_events(edge_server, config, queue=10 * CLIENTS)


@pytest.fixture(autouse=True)
def _enough_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + 500
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


async def live_and_die(
    server: EdgeServer, number: int, how: str, gate: asyncio.Semaphore, dice: random.Random
) -> SipUA:
    """Register over WebSocket, and end after up to two seconds; who falls silent keeps its socket open."""
    ua = SipUA(f"user{number}", server=("127.0.0.1", server.port), transport="ws", reg_id=1, timeout=30)
    async with gate:
        await ua.start()
        assert (await ua.register()).status == 200
    await asyncio.sleep(dice.uniform(0, 2))
    assert ua.link is not None
    if how == "reset":
        ua.link.reset()
    elif how == "fin":
        ua.link.websocket.transport.close()  # type: ignore[attr-defined]
    else:
        ua.link.pause_reading()
    return ua


@pytest.mark.slow
@pytest.mark.requirement("OB-FAIL-08")
async def test_1000_websocket_clients_killed_at_random_fail_once_each(server: EdgeServer) -> None:
    dice, gate = random.Random(5626), asyncio.Semaphore(AT_A_TIME)
    ways = [dice.choice(("fin", "reset", "silence")) for _ in range(CLIENTS)]
    async with deadline(120):
        agents = await asyncio.gather(*(live_and_die(server, n, how, gate, dice) for n, how in enumerate(ways)))

    def told(kind: str) -> list[dict[str, Any]]:
        return flow_events(server, kind)

    try:
        await eventually(lambda: len(told("flow.failed")) >= CLIENTS, 60, what=f"{CLIENTS} failures")
    finally:
        for ua in agents:
            if ua.link is not None and not ua.link.closed:
                ua.link.reset()
        await asyncio.gather(*(ua.stop() for ua in agents))
    # The sockets of the silent end now: that is no second failure.
    await eventually(lambda: server.metrics().value("edge_connections", transport="ws") == 0, 30, what="no connection")
    server.stop()
    up, failed = (Counter(event["flow"] for event in told(kind)) for kind in ("flow.up", "flow.failed"))
    assert len(up) == CLIENTS
    assert set(up.values()) == {1}
    assert failed == up
    reasons = Counter(event["reason"] for event in told("flow.failed"))
    assert reasons["silent"] >= ways.count("silence")
    assert all(len(event["registrations"]) == 1 for event in told("flow.failed"))
