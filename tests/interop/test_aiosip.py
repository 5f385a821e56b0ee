"""aiosip, a SIP encoder nobody here wrote, as phones on UDP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.conftest import EdgeServer
from tests.interop.capture import Capture, check_sip
from tests.ua.wait import eventually, within

adapter = pytest.importorskip("tests.ua.aiosip_adapter", exc_type=ModuleNotFoundError)

pytestmark = pytest.mark.interop


async def test_register_message_and_a_call_from_invite_to_bye(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture]
) -> None:
    server = edge()
    wire = capture(f"udp port {server.port}")
    proxy = ("127.0.0.1", server.port)
    async with (
        adapter.AiosipPhone("alice", "alice-secret", proxy=proxy) as alice,
        adapter.AiosipPhone("bob", "bob-secret", proxy=proxy) as bob,
    ):
        for phone in (alice, bob):
            assert (await phone.register()).status_code == 200
        assert server.metrics().value("edge_sip_registrations") == 2
        for sender, receiver in ((alice, bob), (bob, alice)):
            text = f"from {sender.user}"
            assert (await sender.message(receiver.uri, text)).status_code == 200
            message = await receiver.next_request()
            assert (message.method, message.payload) == ("MESSAGE", text)
        call = await alice.invite(bob.uri)
        invite = await bob.next_request()
        assert invite.method == "INVITE"
        call.ack()
        await eventually(lambda: [data for way, data in bob.trace if way == "received" and data.startswith(b"ACK ")])
        assert (await call.bye()).status_code == 200
        assert await bob.next_end() == invite.headers["Call-ID"]
    assert server.metrics().value("edge_sip_retransmissions_total") == 0
    expected = {"REGISTER": 4, "MESSAGE": 6, "INVITE": 3, "ACK": 3, "BYE": 2}
    await within(asyncio.to_thread(check_sip, wire, [server.port], expected), 60)
