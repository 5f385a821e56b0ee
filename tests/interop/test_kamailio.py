"""Kamailio as the proxy of another domain: behind the server for calls that go out, in front for those that come in.

The two speak UDP or TCP with each other. Alice is at ours by TLS, Frank at Kamailio by UDP.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import LOOPBACK, StartProgram
from tests.interop.programs import needs
from tests.server.agents import ringing_and_taken
from tests.ua.dns import DnsServer
from tests.ua.sip import CallFailed, SipUA

pytestmark = [pytest.mark.interop, needs("kamailio")]


@dataclass
class Federation:
    """Alice at our server by TLS, Kamailio, and Frank, whom Kamailio serves."""

    server: EdgeServer
    kamailio: int
    link: str
    alice: SipUA
    frank: SipUA


@pytest.fixture(params=["udp", "tcp"])
async def federation(
    request: pytest.FixtureRequest, edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path
) -> AsyncIterator[Federation]:
    link: str = request.param
    async with AsyncExitStack() as stack:
        port = free_port()
        dns = await stack.enter_async_context(
            DnsServer(
                f"_sip._{link}.far.example. 60 IN SRV 1 0 {port} k.far.example.", "k.far.example. 60 IN A 127.0.0.1"
            )
        )
        server = edge(sip={"nameservers": [dns.address], "allow_targets": LOOPBACK})
        frank = SipUA("frank", domain="far.example", server=("127.0.0.1", port), transport="udp", retransmit=True)
        await stack.enter_async_context(frank)
        text = (Path(__file__).parent / "kamailio_sip.cfg").read_text()
        values = {"@PORT@": port, "@FAR@": frank.address[1], "@EDGE@": server.port, "@LINK@": link}
        for mark, value in values.items():
            text = text.replace(mark, str(value))
        config = tmp_path / "kamailio.cfg"
        config.write_text(text)
        arguments = ["kamailio", "-DD", "-E", "-f", config, "-P", tmp_path / "k.pid", "-Y", tmp_path, "-m", "64"]
        start("kamailio", arguments).wait_ready(port)
        alice = SipUA("alice", "alice-secret", server=("127.0.0.1", server.port), transport="tls")
        await stack.enter_async_context(alice)
        assert (await alice.register()).status == 200
        yield Federation(server, port, link, alice, frank)


@pytest.mark.parametrize("way", ["out", "in"])
async def test_a_call_with_a_reinvite_and_an_end_from_either_side(federation: Federation, way: str) -> None:
    caller, callee = (federation.alice, federation.frank) if way == "out" else (federation.frank, federation.alice)
    call = caller.start_invite(callee.uri, b"v=0\r\n")
    invite = await callee.next_request("INVITE")
    # From the top: to the callee, between the two proxies, from the caller.
    vias = invite.all("Via")
    assert [re.match(r"SIP/2.0/(\w+)", via)[1] for via in vias] == [
        callee.transport.upper(),
        federation.link.upper(),
        caller.transport.upper(),
    ]
    dialog, answered = await ringing_and_taken(call, callee, invite)
    assert len(dialog.route_set) >= 2
    for side, other in ((dialog, callee), (answered, caller)):
        waiting = asyncio.create_task(side.reinvite(b"v=2\r\n"))
        other.respond(await other.next_request("INVITE"), 200, body=b"v=3\r\n")
        assert (await waiting).status == 200
        await side.ack()
        await other.next_request("ACK")
    caller.on_request = lambda ua, request: 200
    assert (await answered.bye()).status == 200
    assert len(caller.received("BYE")) == 1


@pytest.mark.parametrize("way", ["out", "in"])
async def test_a_call_that_is_cancelled_and_one_that_is_refused(federation: Federation, way: str) -> None:
    caller, callee = (federation.alice, federation.frank) if way == "out" else (federation.frank, federation.alice)
    call = caller.start_invite(callee.uri)
    invite = await callee.next_request("INVITE")
    callee.respond(invite, 180)
    await call.provisional(180)
    assert (await call.cancel()).status == 200
    callee.respond(await callee.next_request("CANCEL"), 200)
    callee.respond(invite, 487)
    assert (await call.result()).status == 487
    await callee.next_request("ACK")
    callee.on_request = lambda ua, request: 486
    with pytest.raises(CallFailed) as failed:
        await caller.invite(callee.uri)
    assert failed.value.response.status == 486
