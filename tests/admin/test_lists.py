"""edge/admin/api.py and rows.py: what `edge show` gets, of clients that are really there."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from edge import cli
from edge.admin.api import KINDS, PORTION
from edge.admin.rows import Source
from edge.cli import COLUMNS, Kind
from edge.connections import Transport
from edge.msrp.session import Session
from tests.admin.conftest import BOOT, Admin, Deaf, Edge, SilentFlow, fill, link_of, ringing
from tests.ua.msrp import MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.wait import eventually, within

NAME = re.compile(rf"0-{BOOT:08x}-\d+")
# Not known to the objects the rows are made of.
NOT_SERVED: dict[Kind, set[str]] = {Kind.sessions: {"sent", "received"}, Kind.transactions: {"age"}}


def sip(edge: Edge, user: str, **options: Any) -> SipUA:
    return SipUA(user, server=edge.address, transport=options.pop("transport", "tcp"), **options)


async def test_every_list_is_empty_at_first(admin: Admin) -> None:
    for kind in KINDS:
        assert await admin.get(f"/api/{kind}") == {"items": [], "more": False}


def test_the_command_knows_the_same_lists() -> None:
    assert set(KINDS) == {kind.value for kind in Kind}


async def test_rows_have_the_columns_the_command_prints(edge: Edge, admin: Admin) -> None:
    async with (
        sip(edge, "alice") as alice,
        sip(edge, "bob", reg_id=1) as bob,
        MsrpEndpoint("alice", "wonderland", relay=edge.address) as chat,
    ):
        await chat.auth()
        async with ringing(edge, alice, bob):
            for kind in Kind:
                rows = await admin.items(kind.value)
                assert rows
                wanted = [name for name in COLUMNS[kind] if name not in NOT_SERVED.get(kind, set())]
                for row in rows:
                    assert [name for name in row if name in wanted] == wanted


async def test_connections(edge: Edge, admin: Admin) -> None:
    async with (
        sip(edge, "alice") as alice,
        sip(edge, "bob", transport="ws") as bob,
        MsrpEndpoint("alice", "wonderland", relay=edge.address) as chat,
    ):
        await alice.register()
        await bob.register()
        await chat.auth()
        _, writer = await asyncio.open_connection(*edge.address)
        writer.write(b"REG")
        await eventually(lambda: len(edge.table.connections) == 4)
        rows = {(row["transport"], row["protocol"], row["state"]): row for row in await admin.items("connections")}
        assert set(rows) == {
            ("tcp", "sip", "open"), ("ws", "sip", "open"), ("tcp", "msrp", "open"), ("tcp", "", "new"),
        }  # fmt: skip
        assert len({row["id"] for row in rows.values()}) == 4
        host, port = link_of(alice).local
        row = rows["tcp", "sip", "open"]
        assert NAME.fullmatch(row["id"])
        assert row["remote"] == f"{host}:{port}"
        assert row["local"] == "{}:{}".format(*edge.address)
        assert 0 <= row["idle"] <= row["age"] < 60
        assert row["queued"] == row["uses"] == 0
        assert row["registered"] >= 1
        assert row["received"] == sum(len(data) for way, data in alice.trace if way == "sent")
        assert row["sent"] == sum(len(data) for way, data in alice.trace if way == "received")
        assert rows["tcp", "", "new"]["registered"] == 0
        writer.close()
        await writer.wait_closed()


async def test_a_receiver_that_takes_nothing_is_blocked(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob") as bob:
        await bob.register()
        (connection,) = edge.table.connections.values()
        link_of(bob).pause_reading()
        connection.queue_limit = 0  # type: ignore[attr-defined]
        while connection.writable:
            connection.send(b"\r\n" * 100_000)
            await asyncio.sleep(0)
        (row,) = await admin.items("connections")
        assert row["state"] == "blocked"
        assert row["queued"] == connection.unsent() > 0
        connection.fail("stalled")
        link_of(bob).resume_reading()
        await link_of(bob).wait_closed()


async def test_somebody_who_is_not_read_is_held(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob") as bob:
        await bob.register()
        (connection,) = edge.table.connections.values()
        connection.pause_reading()
        assert (await admin.items("connections"))[0]["state"] == "held"
        connection.resume_reading()
        assert (await admin.items("connections"))[0]["state"] == "open"


async def test_registrations(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob", reg_id=1) as bob, sip(edge, "carol") as carol:
        await bob.register(600, headers={"User-Agent": "Desk \u00e9 phone"})
        await carol.register(contact="<sip:carol@192.0.2.9:5062>;q=0.5")
        rows = {row["aor"].rpartition(":")[2]: row for row in await admin.items("registrations")}
        assert set(rows) == {"bob@example.com", "carol@example.com"}
        row = rows["bob@example.com"]
        (connection,) = (c for c in await admin.items("connections") if c["id"] == row["connection"])
        host, port = link_of(bob).local
        assert connection["remote"] == f"{host}:{port}"
        assert row["contact"] == bob.contact_uri()
        assert row["instance"].strip("<>") == bob.instance
        assert (row["reg_id"], row["q"], row["user_agent"], row["path"]) == (1, 1.0, "Desk \u00e9 phone", [])
        assert 540 <= row["expires"] <= 600
        assert row["flow"].encode() == edge.table.by_name(row["connection"]).token  # type: ignore[union-attr]
        assert (rows["carol@example.com"]["q"], rows["carol@example.com"]["reg_id"]) == (0.5, 0)


async def test_flows(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob", reg_id=1) as bob:
        await alice.options("sip:example.com")
        await bob.register()
        assert len(await admin.items("connections")) == 2
        (flow,) = await admin.items("flows")
        (binding,) = await admin.items("registrations")
        assert (flow["transport"], flow["state"], flow["registrations"]) == ("tcp", "up", 1)
        assert flow["connection"] == flow["id"] == binding["connection"]
        assert flow["token"] == binding["flow"]
        assert 0 <= flow["idle"] <= flow["age"] < 60


async def test_sessions_do_not_tell_the_session_id(edge: Edge, admin: Admin) -> None:
    async with MsrpEndpoint("alice", "wonderland", relay=edge.address) as alice:
        (uri,) = await alice.auth(expires=300)
        response, body = await admin.ask("/api/sessions")
        assert response.status == 200
        (row,) = json.loads(body)["items"]
        (connection,) = await admin.items("connections")
        assert (row["user"], row["connection"], row["remote"]) == ("alice", connection["id"], connection["remote"])
        assert 240 <= row["expires"] <= 300
        assert row["far"] == []
        (session,) = edge.relay.table
        assert isinstance(session, Session)
        assert row["id"] == session.name
        assert session.uri.session_id
        assert session.uri.session_id not in body
        assert session.uri.session_id.decode() in uri


async def test_transactions(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob", reg_id=1) as bob, ringing(edge, alice, bob):
        rows = {row["kind"]: row for row in await admin.items("transactions")}
        assert set(rows) == {"server", "client"}
        for row in rows.values():
            assert (row["method"], row["state"]) == ("INVITE", "proceeding")
        assert rows["server"]["uri"] == bob.uri
        assert rows["client"]["uri"] == bob.contact_uri()
        connections = {row["id"]: row["remote"] for row in await admin.items("connections")}
        for kind, agent in (("server", alice), ("client", bob)):
            host, port = link_of(agent).local
            assert connections[rows[kind]["connection"]] == f"{host}:{port}"
        via = next(data for way, data in alice.trace if way == "sent")
        assert rows["server"]["id"].partition("|")[0].encode() in via
        received = next(data for way, data in bob.trace if way == "received" and data.startswith(b"INVITE"))
        assert b"branch=" + rows["client"]["id"].encode() in received


async def test_transactions_of_an_answered_call(edge: Edge, admin: Admin) -> None:
    """They linger for repeats of the 200 (RFC 6026), when the request itself is forgotten already."""
    async with sip(edge, "alice") as alice, sip(edge, "bob", reg_id=1) as bob:
        bob.on_request = lambda ua, request: 200
        await bob.register()
        await alice.request("INVITE", bob.uri)
        rows = {row["kind"]: row for row in await admin.items("transactions") if row["method"] == "INVITE"}
        assert {row["state"] for row in rows.values()} == {"accepted"}
        assert rows["server"]["uri"] == ""


async def test_limit(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob") as bob:
        await alice.register()
        await bob.register()
        for limit, count, more in ((1, 1, True), (2, 2, False), (3, 2, False)):
            answer = await admin.get(f"/api/registrations?limit={limit}")
            assert (len(answer["items"]), answer["more"]) == (count, more)


async def test_disconnect_closes_that_connection_and_no_other(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob") as bob:
        await alice.register()
        await bob.register()
        rows = {row["aor"].rpartition(":")[2]: row["connection"] for row in await admin.items("registrations")}
        name = rows["bob@example.com"]
        response, body = await admin.ask(f"/api/connections/{name}/disconnect", method="POST")
        assert (response.status, json.loads(body)) == (200, {"disconnected": name})
        await link_of(bob).wait_closed()
        assert [row["id"] for row in await admin.items("connections")] == [rows["alice@example.com"]]
        assert edge.table.closed_by_reason == {"operator": 1}
        assert (await admin.ask(f"/api/connections/{name}/disconnect", method="POST"))[0].status == 404


class FirstListed(SilentFlow):
    """When its row is made, it has most others closed in the next turn of the loop."""

    __slots__ = ()

    def unsent(self) -> int:
        others = list(self.table.connections.values())[2:]
        self.table.loop.call_soon(lambda: [connection.close("gone") for connection in others])
        return 0


async def test_a_long_list_leaves_the_loop_to_others_and_survives_what_they_do(edge: Edge, admin: Admin) -> None:
    edge.table.add(FirstListed(edge.table, Transport.UDP, ("127.0.0.1", 1), edge.address, None, Deaf()))
    fill(edge, 10 * PORTION)
    items = await admin.items("connections")
    assert len({item["id"] for item in items}) == len(items) == PORTION
    assert len(await admin.items("connections")) == 2


async def test_an_edge_without_sip_or_msrp_has_empty_lists(edge: Edge) -> None:
    source = Source(edge.table, edge.flows, edge.storage, listening=lambda: True, draining=lambda: False)
    assert [list(getattr(source, kind)()) for kind in KINDS] == [[]] * 5
    assert set(source.numbers().values()) == {0}


@pytest.mark.parametrize("admin", ["", "tok-en"], indirect=True)
async def test_the_command_shows_and_disconnects(
    edge: Edge, admin: Admin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGE_CONFIG", raising=False)
    address = ["--admin", admin.url, *(["--token", admin.token] if admin.token else [])]

    async def command(*arguments: str) -> tuple[int, str]:
        status = await within(asyncio.to_thread(cli.main, [*arguments, *address]), 30)
        return status, capsys.readouterr().out

    async with sip(edge, "bob", reg_id=1) as bob:
        await bob.register()
        for kind in Kind:
            status, text = await command("show", kind.value)
            assert (status, text.split()[0]) == (0, COLUMNS[kind][0])
            status, text = await command("show", kind.value, "--json")
            assert (status, len(json.loads(text)["items"])) == (0, 1 if kind in (
                Kind.connections, Kind.flows, Kind.registrations) else 0)  # fmt: skip
        (name,) = (connection.name for connection in edge.table.connections.values())
        assert await command("disconnect", name) == (0, f"{name} disconnected\n")
        await link_of(bob).wait_closed()
        assert (await command("disconnect", name))[0] == 1
