"""Two phones nobody here wrote, one over TCP and one over TLS: they register, call each other and hang up."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EdgeServer
from tests.interop.baresip import Baresip, installed, write_configuration
from tests.interop.conftest import StartProgram
from tests.ua.certs import Authority
from tests.ua.wait import eventually

pytestmark = [pytest.mark.interop, pytest.mark.skipif(not installed(), reason="not installed: baresip")]


def secured(edge: Callable[..., EdgeServer], authority: Authority) -> EdgeServer:
    """A server with a certificate of that authority. Only MD5: baresip 1.0 gives up at a challenge with SHA-256."""
    certificate = authority.issue("edge", dns=["example.com"], ips=["127.0.0.1"])
    tls = {"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)}
    return edge(tls=tls, auth={"algorithms": ["MD5"]})


def rows(server: EdgeServer, kind: str) -> list[dict[str, Any]]:
    """What `edge show KIND` is made of."""
    items: list[dict[str, Any]] = json.loads(server.admin_get(f"/api/{kind}"))["items"]
    return items


async def phone(
    stack: AsyncExitStack,
    start: StartProgram,
    server: EdgeServer,
    name: str,
    transport: str,
    trust: Path,
    media: str = "audio_codecs=pcmu",
) -> Baresip:
    """A phone with one outbound flow; it registers at once. `media`: parameters of its account for its calls."""
    directory = server.directory.parent / f"baresip-{name}"
    account = (
        f"<sip:{name}@example.com>;auth_user={name};auth_pass={name}-secret;regint=600;answermode=manual;"
        f'sipnat=outbound;outbound1="sip:127.0.0.1:{server.port};transport={transport}";{media}'
    )
    control = write_configuration(directory, account, trust)
    program = start(f"baresip-{name}", ["baresip", "-f", directory, "-s", "-v", "-t", "120"], directory)
    return await stack.enter_async_context(Baresip(program, control))


async def registered(end: Baresip) -> None:
    """Wait until it says that it is registered; the event may have passed before anybody listened."""

    async def says_so() -> bool:
        return "OK" in await end.command("reginfo")

    await eventually(says_so, 15, what="a registration")


async def call(caller: Baresip, callee: Baresip, to: str) -> None:
    """A call: dialled, accepted, seen as established by both, ended by the callee."""
    caller.events.clear()
    callee.events.clear()
    await caller.command("dial", to)
    await callee.event("CALL_INCOMING")
    await callee.command("accept")
    for end in (caller, callee):
        await end.event("CALL_ESTABLISHED")
        assert "ESTABLISHED" in await end.command("listcalls")
    await callee.command("hangup")
    for end in (caller, callee):
        await end.event("CALL_CLOSED")
        assert "ESTABLISHED" not in await end.command("listcalls")


async def test_two_phones_register_over_tcp_and_tls_and_call_each_other(
    edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    server = secured(edge, authority)
    async with AsyncExitStack() as stack:
        alice = await phone(stack, start, server, "alice", "tcp", authority.path)
        bob = await phone(stack, start, server, "bob", "tls", authority.path)
        for end in (alice, bob):
            await registered(end)
        transports = {row["id"]: row["transport"] for row in rows(server, "connections")}
        bindings = {row["aor"]: row for row in rows(server, "registrations")}
        assert {aor: transports[row["connection"]] for aor, row in bindings.items()} == {
            "alice@example.com": "tcp",
            "bob@example.com": "tls",
        }
        for row in bindings.values():
            assert (row["reg_id"], row["instance"][:9]) == (1, "urn:uuid:")
            assert row["user_agent"].startswith("baresip")
        await call(alice, bob, "sip:bob@example.com")
        await call(bob, alice, "sip:alice@example.com")
        metrics = server.metrics()
        assert metrics.value("edge_sip_registrations") == 2
        assert metrics.value("edge_sip_requests_total", method="BYE") == 2
        # In a call, too, both stay on the flow they registered over; nothing of Bob's travels in the clear.
        assert metrics.value("edge_connections_opened_total") == 2
    # Told to end, a phone takes its registration back.
    alice.program.stop()
    bob.program.stop()
    await eventually(lambda: rows(server, "registrations") == [], what="both registrations taken back")
