"""Everything at the same time on one port number: SIP, MSRP and STUN on every transport they have."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import STREAMS, TRANSPORTS, answering, msrp_client, open_config, sip_ua
from tests.ua.msrp import MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.stun import stun_binding

NAMES = ("one", "two", "three", "four", "five")
USERS = {f"{name}@example.com": f"{name}-secret" for name in NAMES}


async def everybody(server: EdgeServer, host: str, stack: AsyncExitStack) -> tuple[list[SipUA], list[MsrpEndpoint]]:
    """Open every agent before the first one says anything."""
    sip = [sip_ua(server, name, transport, host=host) for name, transport in zip(NAMES, TRANSPORTS, strict=True)]
    msrp = [msrp_client(server, name, transport, host=host) for name, transport in zip(NAMES, STREAMS, strict=False)]
    for agent in [*sip, *msrp]:
        await stack.enter_async_context(agent)
    return sip, msrp


async def message_all_round(agents: list[SipUA]) -> None:
    """Each one to the next: every transport sends once and receives once."""
    for agent in agents:
        agent.on_request = answering()
    pairs = zip(agents, [*agents[1:], agents[0]], strict=True)
    answers = await asyncio.gather(*(one.message(other.uri, f"from {one.transport}") for one, other in pairs))
    assert [answer.status for answer in answers] == [200] * len(agents)
    for agent in agents:
        assert len(agent.received("MESSAGE")) == 1


async def send_both_ways(one: MsrpEndpoint, other: MsrpEndpoint) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sent = await sender.send([*sender.use_path, *receiver.path], b"over " + sender.transport.encode())
        assert sent.ok, sent.responses
        received = await receiver.next_message()
        assert bytes(received.data) == b"over " + sender.transport.encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.requirement("SIP-TRP-12", "SIP-TRP-17", "OB-KA-08")
async def test_sip_msrp_and_stun_on_every_transport_of_one_port_at_the_same_time(
    edge_server: EdgeServerFactory, host: str, loop: str
) -> None:
    port = free_port(host=host)
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = edge_server(open_config() | {"listen": [{"bind": bind}]}, USERS, loop=loop, port=port)
    async with AsyncExitStack() as stack:
        sip, msrp = await everybody(server, host, stack)
        stun = asyncio.create_task(stun_binding(host, port, local_host=host))
        registered = await asyncio.gather(*(agent.register() for agent in sip))
        enrolled = await asyncio.gather(*(client.auth() for client in msrp))
        assert [response.status for response in registered] == [200] * 5
        assert all(len(use_path) == 1 for use_path in enrolled)
        await message_all_round(sip)
        tcp, tls, ws, wss = msrp
        await send_both_ways(tcp, wss)
        await send_both_ways(tls, ws)
        assert (await stun)[0] == host
        metrics = server.metrics()
        assert {name: metrics.value("edge_connections", transport=name) for name in STREAMS} == dict.fromkeys(
            STREAMS, 2
        )
        assert metrics.value("edge_udp_flows") == 1
        for agent, other in zip(sip, [sip[-1], *sip[:-1]], strict=True):
            (message,) = agent.received("MESSAGE")
            top, below = (line for line in message.decode().split("\r\n") if line.startswith("Via:"))
            assert top.startswith(f"Via: SIP/2.0/{agent.transport.upper()} {bind};")
            assert below.startswith(f"Via: SIP/2.0/{other.transport.upper()} ")
