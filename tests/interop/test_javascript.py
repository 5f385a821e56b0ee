"""JsSIP and SIP.js under Node over WSS, with outbound: they register, write to each other, and come back after a loss."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EdgeServer
from tests.interop.conftest import StartProgram
from tests.interop.javascript import JavaScriptClient, registered_clients, require_packages
from tests.interop.test_baresip import rows, secured
from tests.ua.certs import Authority
from tests.ua.wait import eventually

pytestmark = [pytest.mark.interop]


@dataclass
class Pair:
    """Alice with JsSIP and Bob with SIP.js, both registered."""

    server: EdgeServer
    alice: JavaScriptClient
    bob: JavaScriptClient

    def bindings(self) -> dict[str, dict[str, Any]]:
        return {row["aor"].partition("@")[0]: row for row in rows(self.server, "registrations")}


@pytest.fixture
async def pair(edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path) -> AsyncIterator[Pair]:
    require_packages()
    authority = Authority(tmp_path / "ca")
    server = secured(edge, authority)
    async with AsyncExitStack() as stack:
        members = ("alice", "jssip.mjs", server), ("bob", "sipjs.mjs", server)
        clients = await registered_clients(stack, start, authority.path, *members)
        yield Pair(server, *clients)


async def write(sender: JavaScriptClient, receiver: JavaScriptClient, body: str) -> None:
    """A MESSAGE that arrives, and whose 200 comes back."""
    sender.order("message", to=f"sip:{receiver.user}@example.com", body=body)
    assert (await receiver.event("message", body=body))["from"] == f"sip:{sender.user}@example.com"
    assert (await sender.event("sent"))["status"] == 200
    sender.events.clear()
    receiver.events.clear()


async def test_both_register_a_flow_and_write_to_each_other(pair: Pair) -> None:
    for client in (pair.alice, pair.bob):
        row = pair.bindings()[client.user]
        assert (row["instance"], row["reg_id"]) == (f"urn:uuid:{client.instance}", 1)
    await write(pair.alice, pair.bob, "from JsSIP")
    await write(pair.bob, pair.alice, "from SIP.js")


@pytest.mark.parametrize("lost", ["alice", "bob"])
async def test_a_client_whose_connection_was_cut_is_reached_over_its_next_one(pair: Pair, lost: str) -> None:
    loser, other = (pair.alice, pair.bob) if lost == "alice" else (pair.bob, pair.alice)
    before = pair.bindings()[lost]["connection"]
    loser.events.clear()
    pair.server.run("disconnect", before, "--config", str(pair.server.config_path))
    await loser.event("disconnected")
    assert (await loser.event("registered", 20))["status"] == 200
    after = await eventually(lambda: pair.bindings().get(lost), what="the binding")
    assert after["connection"] != before
    assert len(rows(pair.server, "registrations")) == 2
    await write(other, loser, "after the loss")


@pytest.mark.parametrize("leaving", ["alice", "bob"])
async def test_a_client_takes_its_registration_back(pair: Pair, leaving: str) -> None:
    (pair.alice if leaving == "alice" else pair.bob).order("unregister")
    await eventually(lambda: leaving not in pair.bindings(), what="the registration gone")
    assert len(pair.bindings()) == 1
