"""aiosip against our simulated UA: two encoders that know nothing of each other."""

import asyncio
import collections

import pytest

from tests.ua.sip import Request, SipUA
from tests.ua.sip_message import parse
from tests.ua.wait import within

adapter = pytest.importorskip("tests.ua.aiosip_adapter", exc_type=ModuleNotFoundError)

pytestmark = pytest.mark.interop


def challenge_once(ua: SipUA, request: Request) -> object:
    """Challenge with two algorithms and a nonce that holds an equals sign."""
    if request.method == "ACK":
        return ua.incoming.put_nowait(request)
    if request.get("Authorization") is None:
        offers = [f'Digest realm="loom", nonce="a==", algorithm={name}, qop="auth"' for name in ("SHA-256", "MD5")]
        return 401, None, [("WWW-Authenticate", offer) for offer in offers]
    return 200, "OK", [("Contact", "<sip:far@127.0.0.1:9;ob>"), ("Record-Route", "<sip:p2;lr>, <sip:p1;lr>")]


def test_shim_is_gone_after_import() -> None:
    assert not hasattr(asyncio, "coroutine")
    assert not hasattr(collections, "MutableMapping")


async def test_register_message_and_call_out() -> None:
    async with SipUA("far") as far, adapter.AiosipPhone("ann", "secret", proxy=far.address) as phone:
        far.on_request = challenge_once
        assert (await phone.register()).status_code == 200
        first, second = (parse(raw) for raw in far.received("REGISTER"))
        assert first.branch != second.branch
        assert "algorithm=SHA-256" in second["Authorization"]
        assert (await phone.message("sip:bob@example.com", "hello")).status_code == 200
        assert parse(far.received("MESSAGE")[-1]).body == b"hello"
        call = await phone.invite("sip:bob@example.com")
        await far.next_request("ACK")
        call.ack()
        ack = await far.next_request("ACK")
        assert (ack.uri, ack.all("Route")) == ("sip:far@127.0.0.1:9;ob", ["<sip:p1;lr>", "<sip:p2;lr>"])
        assert ack.cseq.method == "ACK"
        assert (await call.bye()).status_code == 200


async def test_message_and_call_in() -> None:
    async with SipUA("far") as far, adapter.AiosipPhone("ann", proxy=far.address) as phone:
        far.on_request = lambda ua, request: 200
        await phone.register()
        far.route = [f"<sip:127.0.0.1:{phone.local[1]};lr>"]
        vias = [("Via", far.via()), ("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx")]
        response = await within(far.message("sip:ann@example.com", "in", headers=vias))
        assert (response.status, len(response.all("Via"))) == (200, 2)
        assert (await phone.next_request()).payload == "in"
        dialog = await far.invite("sip:ann@example.com", headers={"Record-Route": "<sip:127.0.0.1:1;lr>"})
        assert dialog.route_set == ["<sip:127.0.0.1:1;lr>"]
        await dialog.ack()
        assert (await dialog.bye()).status == 200
        assert await phone.next_end() == dialog.call_id
