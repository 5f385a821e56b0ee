"""SIP.js in headless Chromium over WSS, and baresip over UDP, TCP or TLS: each calls the other through the server.

Nothing is left out: the browser's own offer is answered by baresip's DTLS-SRTP and ICE, and the audio, which passes the
server by, is counted where it arrives in the browser.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.interop.baresip import BROWSER_MEDIA, Baresip, installed
from tests.interop.conftest import USERS, StartProgram
from tests.interop.javascript import JavaScriptClient, require_packages
from tests.interop.programs import needs
from tests.interop.test_baresip import phone, registered, rows, secured
from tests.ua.certs import Authority
from tests.ua.wait import eventually

pytestmark = [
    pytest.mark.interop,
    needs("chromium"),
    pytest.mark.skipif(not installed(), reason="not installed: baresip"),
]


@dataclass
class Pair:
    """Alice at a browser, Bob at a phone, both registered."""

    server: EdgeServer
    browser: JavaScriptClient
    phone: Baresip


@pytest.fixture(params=["udp", "tcp"])
async def pair(
    request: pytest.FixtureRequest, edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path
) -> AsyncIterator[Pair]:
    require_packages()
    authority = Authority(tmp_path / "ca")
    server = secured(edge, authority)
    async with AsyncExitStack() as stack:
        bob = await phone(
            stack, start, server, "bob", request.param, authority.path, f"{BROWSER_MEDIA};audio_codecs=pcmu"
        )
        client = JavaScriptClient("alice", USERS["alice@example.com"], f"wss://127.0.0.1:{server.port}")
        alice = await stack.enter_async_context(client)
        alice.run_in_chromium(start, tmp_path / "profile")
        await registered(bob)
        assert (await alice.event("registered", 30))["status"] == 200
        yield Pair(server, alice, bob)


async def connected(pair: Pair) -> None:
    """Both ends have their call, and audio arrives in the browser."""
    await pair.browser.event("call Established")
    await pair.phone.event("CALL_ESTABLISHED")
    assert "ESTABLISHED" in await pair.phone.command("listcalls")

    async def heard() -> bool:
        pair.browser.events.clear()
        pair.browser.order("media")
        return bool((await pair.browser.event("media"))["octets"])

    await eventually(heard, 10, what="audio from the phone in the browser")


async def test_the_browser_and_the_phone_call_each_other(pair: Pair) -> None:
    transports = {row["id"]: row["transport"] for row in rows(pair.server, "connections")}
    bindings = {row["aor"]: row for row in rows(pair.server, "registrations")}
    assert transports[bindings["alice@example.com"]["connection"]] == "wss"
    assert bindings["alice@example.com"]["instance"] == f"urn:uuid:{pair.browser.instance}"

    pair.browser.order("invite", to="sip:bob@example.com")
    await pair.phone.event("CALL_INCOMING")
    assert (await pair.browser.event("response", status=180))["status"] == 180
    await pair.phone.command("accept")
    assert (await pair.browser.event("response", status=200))["status"] == 200
    await connected(pair)
    pair.browser.order("bye")
    assert (await pair.browser.event("ended"))["status"] == 200
    await pair.phone.event("CALL_CLOSED")

    pair.browser.events.clear()
    pair.phone.events.clear()
    await pair.phone.command("dial", "sip:alice@example.com")
    assert (await pair.browser.event("incoming"))["from"] == "sip:bob@example.com"
    await pair.phone.event("CALL_RINGING")
    pair.browser.order("accept")
    await connected(pair)
    await pair.phone.command("hangup")
    await pair.browser.event("call Terminated")
    await pair.phone.event("CALL_CLOSED")
    metrics = pair.server.metrics()
    assert metrics.value("edge_sip_requests_total", method="BYE") == 2
    assert metrics.value("edge_connections_opened_total", transport="wss") == 1
