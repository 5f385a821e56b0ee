"""The simulated agent with several flows keeps RFC 5626's rules for user agents."""

import random
from contextlib import AsyncExitStack

import pytest

from tests.ua.outbound import OutboundClient, keepalive_interval, recovery_wait
from tests.ua.sip import Request, SipUA
from tests.ua.sip_message import Response, header_parameters, parse


def grant(ua: SipUA, request: Request) -> object:
    """A registrar that grants outbound wherever a reg-id asks for it."""
    headers = [("Contact", value) for value in request.values("Contact") if value != "*"]
    if any("reg-id" in header_parameters(value) for _, value in headers):
        headers += [("Require", "outbound"), ("Flow-Timer", "100")]
    return 200, "OK", headers


def registers(edge: SipUA) -> list[Request | Response]:
    return [parse(raw) for raw in edge.received("REGISTER")]


async def two_edges(stack: AsyncExitStack, transport: str = "tcp") -> tuple[SipUA, SipUA]:
    edges = [await stack.enter_async_context(SipUA(f"e{n}", transport=transport)) for n in (1, 2)]
    for edge in edges:
        edge.on_request = grant
    return edges[0], edges[1]


async def client_of(stack: AsyncExitStack, *edges: SipUA, **options) -> OutboundClient:
    wanted = [(edge.address, edge.transport) for edge in edges]
    return await stack.enter_async_context(OutboundClient("tove", "x", wanted, **options))


@pytest.mark.requirement("OB-UA-01", "OB-UA-02")
async def test_each_edge_gets_a_registration_of_its_own_and_a_reboot_changes_nothing() -> None:
    async with AsyncExitStack() as stack:
        edges = await two_edges(stack)
        client = await client_of(stack, *edges)
        assert [response.status for response in await client.register()] == [200, 200]
        again = await client_of(stack, *edges, instance=client.instance)
        await again.register()
        sent = [[header_parameters(r["Contact"]) for r in registers(edge)] for edge in edges]
        assert [[c["reg-id"] for c in of_edge] for of_edge in sent] == [["1", "1"], ["2", "2"]]
        assert {c["+sip.instance"] for of_edge in sent for c in of_edge} == {f"<{client.instance}>"}
        assert len({r.call_id for edge in edges for r in registers(edge)}) == 4
        assert all(r.values("Supported") == ["path", "outbound"] for edge in edges for r in registers(edge))


@pytest.mark.requirement("OB-UA-03")
async def test_refresh_and_removal_stay_on_the_flow() -> None:
    async with AsyncExitStack() as stack:
        edge, _ = await two_edges(stack)
        client = await client_of(stack, edge)
        ua = client.flows[0].ua
        await client.register()
        await client.register()
        await ua.unregister()
        await ua.register(0, contact="*")
        first, refresh, removal, star = registers(edge)
        assert len(edge.listener.links) == 1
        assert first["Contact"] == refresh["Contact"] == removal["Contact"]
        assert (removal["Expires"], star["Contact"], star["Expires"]) == ("0", "*", "0")
        assert [r.cseq.sequence for r in (first, refresh, removal, star)] == [1, 2, 3, 4]


@pytest.mark.requirement("OB-UA-04")
async def test_without_require_outbound_there_are_no_keepalives_and_439_drops_the_reg_id() -> None:
    async with AsyncExitStack() as stack:
        edge, _ = await two_edges(stack)
        edge.on_request = lambda ua, r: 439 if "reg-id" in r["Contact"] else 200
        client = await client_of(stack, edge)
        assert [response.status for response in await client.register()] == [200]
        assert client.next_keepalive(client.flows[0]) is None
        assert edge.keepalives == []
        edge.on_request = lambda ua, r: 430
        assert (await client.flows[0].ua.message("sip:ravi@example.com", "x")).status == 430


@pytest.mark.requirement("OB-UA-05")
@pytest.mark.parametrize(
    ("flow_timer", "transport", "low", "high"),
    [(120, "tcp", 96, 120), (25, "udp", 20, 25), (None, "tcp", 95, 120), (None, "udp", 24, 29)],
)
def test_keepalive_intervals(flow_timer: int | None, transport: str, low: float, high: float) -> None:
    dice = random.Random(1)
    intervals = [keepalive_interval(flow_timer, transport, dice) for _ in range(100)]
    assert all(low <= interval <= high for interval in intervals)
    assert len(set(intervals)) > 90


@pytest.mark.requirement("OB-UA-06")
async def test_missing_pong_fails_the_flow() -> None:
    async with AsyncExitStack() as stack:
        edges = await two_edges(stack)
        client = await client_of(stack, *edges)
        await client.register()
        edges[0].answer_pings = False
        assert [await client.check(flow, seconds=0.1) for flow in client.flows] == [False, True]


@pytest.mark.requirement("OB-UA-06")
async def test_another_mapped_address_fails_the_flow_and_recovery_registers_again() -> None:
    async with AsyncExitStack() as stack:
        edge, _ = await two_edges(stack, "udp")
        client = await client_of(stack, edge)
        flow = client.flows[0]
        await client.register()
        assert await client.check(flow)
        await flow.ua.reconnect()
        assert not await client.check(flow)
        assert (await client.recover(flow)).status == 200
        assert await client.check(flow)
        contacts = [header_parameters(r["Contact"]) for r in registers(edge)]
        assert contacts[0] == contacts[1]


@pytest.mark.requirement("OB-UA-07")
@pytest.mark.parametrize(
    ("failures", "all_failed", "low", "high"),
    [(1, True, 30, 60), (2, True, 60, 120), (1, False, 90, 180), (20, True, 900, 1800), (20, False, 900, 1800)],
)
def test_recovery_waits(failures: int, all_failed: bool, low: float, high: float) -> None:
    dice = random.Random(1)
    waits = [recovery_wait(failures, all_failed=all_failed, dice=dice) for _ in range(100)]
    assert all(low <= wait <= high for wait in waits)
    assert len(set(waits)) > 90


@pytest.mark.requirement("OB-UA-07")
async def test_retry_after_is_respected_on_the_kept_connection_and_reg_id_stays() -> None:
    async with AsyncExitStack() as stack:
        edge, _ = await two_edges(stack)
        edge.on_request = lambda ua, r: (503, None, {"Retry-After": "400 (busy)"})
        client = await client_of(stack, edge)
        flow = client.flows[0]
        await client.register()
        assert client.next_recovery(flow) == 400
        assert await client.check(flow)
        edge.on_request = grant
        assert (await client.recover(flow)).status == 200
        assert len(edge.listener.links) == 1
        assert [header_parameters(r["Contact"])["reg-id"] for r in registers(edge)] == ["1", "1"]


@pytest.mark.requirement("OB-UA-08")
async def test_other_requests_reuse_the_flow() -> None:
    async with AsyncExitStack() as stack:
        edge, _ = await two_edges(stack)
        client = await client_of(stack, edge)
        await client.register()
        ua = client.flows[0].ua
        await (await ua.invite("sip:ravi@example.com")).ack()
        invite = parse(edge.received("INVITE")[0])
        assert len(edge.listener.links) == 1
        assert ";ob>" in invite["Contact"]
        assert ";rport" in invite["Via"]
