"""Whatever ends a flow: one `flow.failed` with the reason, over the running server (RFC 5626 §7, OB-FAIL-05)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import counted, flow_events, open_config, sip_ua, start_with_flow_events
from tests.ua.link import StreamLink, WebSocketLink
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

OPEN = {"auth": {"required": False}}


async def fin(ua: SipUA, server: EdgeServer) -> None:
    wire = ua.link.websocket.transport if isinstance(ua.link, WebSocketLink) else stream(ua)._wire
    wire.close()


async def reset(ua: SipUA, server: EdgeServer) -> None:
    assert ua.link is not None
    ua.link.reset()


async def close(ua: SipUA, server: EdgeServer) -> None:
    """In order: close_notify over TLS, a Close frame over WebSocket."""
    assert ua.link is not None
    await ua.link.close()


async def broken_tls(ua: SipUA, server: EdgeServer) -> None:
    os.write(stream(ua)._wire.get_extra_info("socket").fileno(), b"no record of TLS" * 4)


async def unmasked(ua: SipUA, server: EdgeServer) -> None:
    assert isinstance(ua.link, WebSocketLink)
    ua.link.websocket.transport.write(b"\x81\x02\r\n")  # RFC 6455 §5.1: a client masks


async def junk(ua: SipUA, server: EdgeServer) -> None:
    ua.send_raw(b"OPTIONS sip:example.com SIP/2.0\r\nContent-Length: many\r\n\r\n")


async def disconnected(ua: SipUA, server: EdgeServer) -> None:
    (flow,) = [
        event for event in flow_events(server, "flow.up") if event["registrations"][0]["aor"].startswith(ua.user)
    ]
    server.run("disconnect", flow["flow"], "--config", str(server.config_path))


async def unreachable(ua: SipUA, server: EdgeServer) -> None:
    uri = ua.uri
    await ua.stop()
    async with sip_ua(server, "caller") as caller:
        assert (await caller.message(uri, b"are you there?")).status == 480


def stream(ua: SipUA) -> StreamLink:
    assert isinstance(ua.link, StreamLink)
    return ua.link


CAUSES: dict[str, tuple[str, Callable[[SipUA, EdgeServer], Awaitable[None]], str]] = {
    "fin": ("tcp", fin, "eof"),
    "rst": ("tcp", reset, "reset"),
    "tlsclose": ("tls", close, "eof"),
    "tlserror": ("tls", broken_tls, "tls"),
    "tlsrst": ("tls", reset, "reset"),
    "wsclose": ("ws", close, "websocket_close"),
    "wsfin": ("ws", fin, "eof"),
    "wserror": ("ws", unmasked, "websocket_error"),
    "wssrst": ("wss", reset, "reset"),
    "junk": ("tcp", junk, "framing"),
    "ours": ("tcp", disconnected, "operator"),
    "icmp": ("udp", unreachable, "unreachable"),
}


@pytest.mark.requirement("OB-FAIL-05", "OB-FAIL-08")
async def test_rfc5626_7_every_cause_of_an_end_is_one_failure_with_its_reason(edge_server: EdgeServerFactory) -> None:
    server = start_with_flow_events(edge_server, open_config(**OPEN))
    async with AsyncExitStack() as stack:
        for name, (transport, cause, reason) in CAUSES.items():
            ua = await stack.enter_async_context(sip_ua(server, name, transport, reg_id=1))
            assert (await ua.register()).status == 200
            await eventually(lambda name=name: _failures(server, name, "flow.up"), what=f"flow of {name}")
            await cause(ua, server)
            await counted(server, "edge_flow_failed_total", reason=reason)
            await eventually(lambda name=name: _failures(server, name), what=f"failure of {name}")
    counted_by_reason = server.metrics()
    server.stop()  # a second failure would be told by now
    reasons = {name: how[2] for name, how in CAUSES.items()}
    assert {name: _failures(server, name) for name in CAUSES} == {name: [reason] for name, reason in reasons.items()}
    assert len(flow_events(server, "flow.up")) == len(CAUSES)
    for reason, count in Counter(reasons.values()).items():
        assert counted_by_reason.value("edge_flow_failed_total", reason=reason) == count
    logged = re.findall(r" INFO edge\.sip flow failed src=\S+ flow=(\S+) .*reason=(\S+)", server.log_text())
    assert logged == [(event["flow"], event["reason"]) for event in flow_events(server, "flow.failed")]


def _failures(server: EdgeServer, name: str, kind: str = "flow.failed") -> list[str]:
    """The reasons told for whoever is called so."""
    aor = f"{name}@example.com"
    return [event.get("reason", "") for event in flow_events(server, kind) if event["registrations"][0]["aor"] == aor]


@pytest.mark.requirement("OB-FAIL-05", "OB-KA-13", "OB-FAIL-07")
async def test_rfc5626_5_4_silence_is_a_failure_and_the_end_after_it_is_none_unless_it_spoke_again(
    edge_server: EdgeServerFactory,
) -> None:
    server = start_with_flow_events(edge_server, open_config(**OPEN, outbound={"flow_timer": 1}))
    async with sip_ua(server, "silent", reg_id=1) as ua:
        assert (await ua.register()).status == 200
        await eventually(lambda: _failures(server, "silent"), 40, what="the failure of a silent flow")
        assert server.metrics().value("edge_connections", transport="tcp") == 1
        await ua.ping()
        await eventually(lambda: flow_events(server, "flow.recovered"), what="recovery")
        await eventually(lambda: len(_failures(server, "silent")) == 2, 40, what="a second silence")
    server.stop()
    assert _failures(server, "silent") == ["silent", "silent"]
    words = re.findall(r" INFO edge\.sip flow (\w+) src=\S+ flow=\S+ (.*)", server.log_text())
    assert [word for word, _ in words] == ["suspect", "failed", "recovered", "suspect", "failed"]
    assert words[2][1] == "after=failed"


async def test_rfc5626_a_flow_that_takes_the_place_of_another_is_told_with_its_heir(
    edge_server: EdgeServerFactory,
) -> None:
    server = start_with_flow_events(edge_server, open_config(**OPEN))
    async with sip_ua(server, "mover", reg_id=1) as ua:
        await ua.register()
        await ua.reconnect(reset=True)
        await ua.register()
        (replaced,) = await eventually(lambda: flow_events(server, "flow.replaced"), what="the heir")
        await eventually(lambda: len(flow_events(server, "flow.up")) == 2, what="the flow that took its place")
        old, new = (event["flow"] for event in flow_events(server, "flow.up"))
    server.stop()
    assert (replaced["flow"], replaced["heir"]) == (old, new)
    assert f" flow replaced src={replaced['remote']} flow={old} heir={new}" in server.log_text()
