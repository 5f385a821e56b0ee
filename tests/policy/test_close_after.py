"""`relay(close_after=True)`: the stream a request left on ends once the final answer has gone up, and not before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.conftest import EdgeServer
from tests.policy.conftest import PolicyFactory
from tests.server.agents import connections_open, counted, registered, sip_ua
from tests.ua.link import Link
from tests.ua.sip import SipUA
from tests.ua.sip_dialog import Call
from tests.ua.sip_message import Request

HOP = """
    def sip_request(self, request):
        if request.method != "REGISTER":
            request.relay(request.header("X-Hop") or "", close_after=request.header("X-Close") is not None)
"""
CLOSE = [("X-Close", "yes")]


@asynccontextmanager
async def caller_and_hop(server: EdgeServer) -> AsyncIterator[tuple[SipUA, SipUA]]:
    """Alice, and a server beyond that takes connections."""
    async with (
        sip_ua(server, "alice") as alice,
        SipUA("hop", "no-secret", "far.example", transport="tcp") as hop,
    ):
        yield alice, hop


def call_over(alice: SipUA, hop: SipUA, *marks: tuple[str, str]) -> Call:
    assert hop.listener is not None
    host, port = hop.listener.address
    return alice.start_invite("sip:far@far.example", headers=[("X-Hop", f"sip:{host}:{port};transport=tcp"), *marks])


async def ringing(alice: SipUA, hop: SipUA) -> tuple[Call, Request]:
    call = call_over(alice, hop, *CLOSE)
    invite = await hop.next_request("INVITE")
    hop.respond(invite, 180)
    await call.provisional(180)
    return call, invite


def links(hop: SipUA) -> list[Link]:
    assert hop.listener is not None
    return hop.listener.links


async def policy_closed(server: EdgeServer, count: int) -> None:
    """So many connections were ended by the policy, and no more."""
    assert await counted(server, "edge_connections_closed_total", count, reason="policy") == count


async def test_a_stream_ends_after_the_ack_of_a_refusal_and_not_while_it_rings(with_policy: PolicyFactory) -> None:
    server = with_policy(HOP)
    async with caller_and_hop(server) as (alice, hop):
        call, invite = await ringing(alice, hop)
        assert not links(hop)[0].closed
        hop.respond(invite, 486)
        assert (await call.result()).status == 486
        await links(hop)[0].wait_closed()
        assert len(hop.received("ACK")) == 1  # it left before the end
        await policy_closed(server, 1)
        await connections_open(server, 1, transport="tcp")


async def test_rfc3261_13_2_2_4_the_ack_of_a_call_that_was_taken_opens_another_stream(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy(HOP)
    async with caller_and_hop(server) as (alice, hop):
        call = call_over(alice, hop, *CLOSE)
        hop.accept(await hop.next_request("INVITE"))
        dialog = await call.dialog()
        await links(hop)[0].wait_closed()
        await dialog.ack()
        ack = await hop.next_request("ACK")
        assert ack.link is links(hop)[1]
        bye = dialog.bye(headers=CLOSE)  # and what wants it closed closes that one
        hop.on_request = lambda ua, request: 200
        assert (await bye).status == 200
        await links(hop)[1].wait_closed()
        await policy_closed(server, 2)
        await connections_open(server, 1, transport="tcp")


async def test_a_stream_stays_while_another_request_waits_for_its_answer(with_policy: PolicyFactory) -> None:
    server = with_policy(HOP)
    async with caller_and_hop(server) as (alice, hop):
        first, second = call_over(alice, hop, *CLOSE), call_over(alice, hop, *CLOSE)
        invites = [await hop.next_request("INVITE") for _ in range(2)]
        hop.respond(invites[0], 486)
        await hop.next_request("ACK")
        hop.respond(invites[1], 480)  # it could not come, had the first answer ended the stream
        assert {(await first.result()).status, (await second.result()).status} == {486, 480}
        await links(hop)[0].wait_closed()
        assert len(links(hop)) == 1
        await policy_closed(server, 1)


async def test_a_cancelled_call_ends_its_stream_with_the_487(with_policy: PolicyFactory) -> None:
    server = with_policy(HOP)
    async with caller_and_hop(server) as (alice, hop):
        call, invite = await ringing(alice, hop)
        assert (await call.cancel()).status == 200
        hop.respond(await hop.next_request("CANCEL"), 200)
        assert not links(hop)[0].closed
        hop.respond(invite, 487)
        assert (await call.result()).status == 487
        await links(hop)[0].wait_closed()
        await policy_closed(server, 1)


@pytest.mark.parametrize("status", [200, 486])
async def test_the_flow_of_a_phone_that_took_the_call_stays(with_policy: PolicyFactory, status: int) -> None:
    server = with_policy(HOP)
    async with AsyncExitStack() as stack:
        alice, bob = [await registered(server, stack, name) for name in ("alice", "bob")]
        call = alice.start_invite(bob.uri, headers=CLOSE)
        invite = await bob.next_request("INVITE")
        assert bob.link is not None
        if status == 200:
            bob.accept(invite)
            await (await call.dialog()).ack()
            await bob.next_request("ACK")  # nobody could have dialled him
            assert not bob.link.closed
        else:
            bob.respond(invite, status)
            assert (await call.result()).status == status
            await bob.link.wait_closed()
            await policy_closed(server, 1)
