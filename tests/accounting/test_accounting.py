"""Accounting of the running server: what is written of real calls and messages, and that no bad day tears or stops it."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import USERS, cancelled_while_ringing, open_config, sip_ua
from tests.ua.msrp import MsrpEndpoint
from tests.ua.sip import CallFailed
from tests.ua.wait import eventually

ALL = ["call", "answer", "registration", "session", "message"]


def config(**accounting: Any) -> dict[str, Any]:
    return open_config(accounting={"url": "file:acc.jsonl", "interval": 0.05, "records": ALL, **accounting})


def records(server: EdgeServer, kind: str = "", name: str = "acc.jsonl") -> list[dict[str, Any]]:
    """Every record of a kind; a line that is no JSON fails the test."""
    path = server.directory / name
    text = path.read_text() if path.exists() else ""
    assert not text or text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    return [record for record in found if record["kind"] == kind or not kind]


async def written(server: EdgeServer, kind: str, count: int) -> list[dict[str, Any]]:
    return await eventually(lambda: len(found := records(server, kind)) >= count and found, 10, what=f"{count} {kind}")


# -- what is written


@pytest.mark.parametrize("ender", ["caller", "callee"])
async def test_a_call_has_one_record_from_start_to_end(edge_server: EdgeServerFactory, ender: str) -> None:
    server = edge_server(config(), USERS)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", "udp") as bob:
        await alice.register()
        await bob.register()
        call = alice.start_invite(bob.uri, b"v=0\r\n")
        invite = await bob.next_request("INVITE")
        theirs = bob.accept(invite, b"v=0\r\n")
        ours = await call.dialog()
        (answer,) = await written(server, "answer", 1)
        assert records(server, "call") == []
        side, other = (ours, bob) if ender == "caller" else (theirs, alice)
        bye = side.bye()
        task = asyncio.create_task(bye)
        other.respond(await other.next_request("BYE"), 200)
        await task
        (record,) = await written(server, "call", 1)
        flows = {row["remote"]: row["id"] for row in json.loads(server.admin_get("/api/connections"))["items"]}
    assert record["reason"] == f"bye_{ender}"
    assert (record["caller"], record["callee"]) == ("sip:alice@example.com", bob.uri)
    assert (record["code"], record["transport"], record["call_id"]) == (200, "tcp", invite.call_id)
    assert record["flow"] == flows[record["source"]]
    assert record["peer_flow"] in flows.values()
    assert record["peer_flow"] != record["flow"]
    assert record["started"] <= record["answered"] <= record["ended"]
    assert record["duration"] == pytest.approx(record["ended"] - record["answered"], abs=0.01)
    assert (answer["ended"], answer["reason"]) == (None, "answered")
    same = ("call_id", "from_tag", "to_tag", "caller", "callee", "flow", "peer_flow", "started", "answered", "code")
    assert {name: answer[name] for name in same} == {name: record[name] for name in same}


async def test_calls_that_are_refused_cancelled_or_lead_nowhere_are_written(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(), USERS)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        await alice.register()
        with pytest.raises(CallFailed):
            await alice.invite("sip:carol@example.com")
        await bob.register()
        call = alice.start_invite(bob.uri)
        bob.respond(await bob.next_request("INVITE"), 486)
        with pytest.raises(CallFailed):
            await call.dialog()
        call, invite, cancel = await cancelled_while_ringing(alice, bob)
        bob.respond(cancel, 200)
        bob.respond(invite, 487)
        with pytest.raises(CallFailed):
            await call.dialog()
        found = await written(server, "call", 3)
    assert [(record["code"], record["reason"]) for record in found] == [
        (480, "refused"), (486, "refused"), (487, "cancelled"),
    ]  # fmt: skip
    assert {record["answered"] for record in found} == {None}


async def test_calls_without_a_bye_end_by_the_limit_by_room_or_with_the_server(edge_server: EdgeServerFactory) -> None:
    async def call(server: EdgeServer) -> None:
        async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
            await alice.register()
            await bob.register()
            started = alice.start_invite(bob.uri)
            bob.accept(await bob.next_request("INVITE"))
            await started.dialog()

    server = edge_server(config(call_limit=0.5, records=["call"]), USERS)
    await call(server)
    assert [record["reason"] for record in await written(server, "call", 1)] == ["limit"]
    server = edge_server(config(calls=1, records=["call"]), USERS)
    await call(server)
    await call(server)
    assert [record["reason"] for record in await written(server, "call", 1)] == ["table_full"]
    server.stop()
    assert [record["reason"] for record in records(server)] == ["table_full", "shutdown"]


async def test_registrations_sessions_and_messages_are_written_and_never_their_content(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(config(), USERS)
    async with sip_ua(server, "alice", reg_id=1) as alice:
        await alice.register()
        await alice.register()  # a refresh is no change
        await alice.unregister()
    found = await written(server, "registration", 2)
    assert [(record["aor"], record["reason"]) for record in found] == [
        ("alice@example.com", "added"), ("alice@example.com", "removed"),
    ]  # fmt: skip
    assert found[0]["reg_id"] == 1
    relay = ("127.0.0.1", server.port)
    async with (
        MsrpEndpoint("alice", USERS["alice@example.com"], relay=relay) as alice,
        MsrpEndpoint("bob", USERS["bob@example.com"], relay=relay) as bob,
    ):
        await alice.auth()
        await bob.auth()
        path = [*alice.use_path, *bob.path]
        assert (await alice.send(path, b"very secret", message_id="short")).ok
        assert (await alice.send(path, b"secret" * 50_000, message_id="long")).ok
        messages = await written(server, "message", 2)
        unknown = [*alice.use_path, f"msrp://127.0.0.1:{free_port()}/nobody;tcp"]
        await alice.send(unknown, b"lost", message_id="lost")
        messages = await written(server, "message", 3)
    by_id = {record["message_id"]: record for record in messages}
    assert (by_id["short"]["octets"], by_id["short"]["code"], by_id["short"]["reason"]) == (11, 200, "delivered")
    assert (by_id["long"]["octets"], by_id["long"]["reason"]) == (300_000, "delivered")
    assert (by_id["short"]["direction"], by_id["short"]["username"]) == ("out", "alice")
    assert (by_id["lost"]["code"], by_id["lost"]["reason"]) == (408, "refused")
    sessions = {record["username"]: record for record in await written(server, "session", 2)}
    assert sessions["alice"]["octets"] == 300_011
    assert sessions["alice"]["session"] == by_id["short"]["session"]
    assert "secret" not in (server.directory / "acc.jsonl").read_text()
    assert server.metrics().value("edge_accounting_records_total", kind="message") == 3


async def test_only_the_kinds_asked_for_are_written(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(records=["call"]), USERS)
    async with sip_ua(server, "alice") as alice:
        await alice.register()
    server.stop()
    assert records(server) == []


# -- bad days


async def register(server: EdgeServer, times: int) -> None:
    async with sip_ua(server, "alice", "udp") as alice:
        for _ in range(times):
            assert (await alice.register()).status == 200
            assert (await alice.unregister()).status == 200


async def test_a_kill_tears_no_line_and_a_torn_one_is_mended(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(), USERS)
    await register(server, 5)
    await written(server, "registration", 10)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    before = records(server)
    with (server.directory / "acc.jsonl").open("ab") as file:
        file.write(b'{"id":"torn","kind":"regis')
    server.start()
    await register(server, 1)
    after = await written(server, "registration", len(before) + 2)
    assert after[: len(before)] == before
    assert len({record["id"] for record in after}) == len(after)
    assert "accounting mended file=acc.jsonl octets=26" in server.log_text()


async def test_kills_amid_traffic_lose_nothing_that_was_written_and_leave_whole_lines(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(config(), USERS)
    before = 0
    for _ in range(3):
        traffic = asyncio.create_task(register(server, 100_000))
        name = "edge_accounting_records_total"
        seen = await eventually(lambda: (metrics := server.metrics()).value(name) >= 50 and metrics, 30)  # noqa: B023
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
        server.start()  # cuts off what the kill may have left of a line
        found = records(server)
        # What waited when the numbers were read may be lost, what was written is not.
        assert len(found) - before >= seen.value(name)
        before = len(found)
    assert len({record["id"] for record in found}) == before


async def test_a_full_disk_holds_nobody_up_is_counted_and_is_over_when_there_is_room(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(config(queue=6), USERS, started=False)
    path = server.directory / "acc.jsonl"
    path.symlink_to("/dev/full")
    server.start()
    await register(server, 5)
    metrics = server.metrics()
    assert metrics.value("edge_accounting_lost_total", reason="queue") == 4
    assert metrics.value("edge_accounting_waiting") == 6
    await eventually(lambda: server.metrics().value("edge_accounting_healthy") == 0)
    assert server.admin_status("/readyz") == 200
    assert 'storage down part=accounting reason="[Errno 28] No space left on device"' in server.log_text()
    path.unlink()
    assert len(await written(server, "registration", 6)) == 6
    await eventually(lambda: server.metrics().value("edge_accounting_healthy") == 1)
    assert server.metrics().value("edge_accounting_waiting") == 0


async def test_a_database_that_is_away_keeps_nobody_from_registering_and_the_end_says_what_is_lost(
    edge_server: EdgeServerFactory,
) -> None:
    url = f"postgresql://edge:hunter2@127.0.0.1:{free_port()}/edge"
    server = edge_server(config(url=url), USERS)
    await register(server, 2)
    await eventually(lambda: server.metrics().value("edge_accounting_healthy") == 0, 10)
    await register(server, 1)
    assert server.metrics().value("edge_accounting_waiting") == 6
    assert server.admin_status("/readyz") == 200
    assert server.stop() == 0
    assert "storage down part=accounting" in server.log_text()
    assert "accounting records lost count=6" in server.log_text()
    assert "hunter2" not in server.log_text()


async def test_a_database_somebody_has_locked_gets_every_record_once_when_it_is_free(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(config(url="sqlite:///acc.db", records=["registration"]), USERS)
    await register(server, 1)
    await eventually(lambda: server.metrics().value("edge_accounting_waiting") == 0, 10)
    with closing(sqlite3.connect(server.directory / "acc.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await register(server, 2)  # nobody waits for the lock
        assert server.metrics().value("edge_accounting_waiting") == 4
        other.execute("ROLLBACK")
        await eventually(lambda: server.metrics().value("edge_accounting_waiting") == 0, 30)
        assert server.metrics().value("edge_accounting_healthy") == 1
        rows = other.execute("SELECT id, aor, reason FROM accounting ORDER BY started").fetchall()
    assert [reason for _, _, reason in rows] == ["added", "removed"] * 3
    assert len({row for row, _, _ in rows}) == 6


async def test_a_file_is_rotated_by_size_and_so_many_are_kept(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(rotate_size=1000, keep=2, interval=0.01), USERS)
    await register(server, 15)
    server.stop()
    files = sorted(path.name for path in server.directory.glob("acc.jsonl*"))
    assert files == ["acc.jsonl", "acc.jsonl.1", "acc.jsonl.2"]
    assert all(records(server, name=name) for name in files)


async def test_a_file_that_was_moved_away_is_begun_anew_at_sighup(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(), USERS)
    await register(server, 1)
    await written(server, "registration", 2)
    path = server.directory / "acc.jsonl"
    path.rename(server.directory / "moved")
    server.signal(signal.SIGHUP)
    await eventually(path.exists)
    await register(server, 1)
    assert len(await written(server, "registration", 2)) == 2
    assert len(records(server, name="moved")) == 2


def test_a_file_that_cannot_be_opened_is_a_configuration_error(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(url="file:/nowhere/acc.jsonl"), started=False)
    done: subprocess.CompletedProcess[str] = server.run("serve", "--config", str(server.config_path), check=False)
    assert done.returncode == 2
    assert "accounting.url: No such file or directory" in done.stderr
