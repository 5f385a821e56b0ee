"""Hooks and the event stream of the running server, and the examples in deploy/hooks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import ROOT, EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, open_config, sip_ua
from tests.ua.msrp import AuthFailed, MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.wait import eventually, scaled, whole_lines, within

FIREWALL = ROOT / "deploy" / "hooks" / "firewall"


def config(*hooks: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {**open_config(), "hooks": list(hooks), **sections}


def results(server: EdgeServer, hook: str) -> dict[str, float]:
    metrics = server.metrics()
    found = {
        name: metrics.value("edge_hook_events_total", hook=hook, result=name)
        for name in ("started", "done", "failed", "timed_out", "dropped", "retried")
    }
    return {name: count for name, count in found.items() if count}


async def guess(server: EdgeServer, times: int, host: str = "127.0.0.1") -> list[int]:
    """Register with a wrong password, so many times."""
    statuses = []
    async with SipUA("alice", "wrong", server=(host, server.port), transport="tcp") as eve:
        for _ in range(times):
            statuses.append((await eve.register()).status)
    return statuses


# -- the server


@pytest.mark.requirement("OB-FAIL-09")
async def test_ob_fail_09_a_stuck_hook_delays_no_message_and_is_killed(edge_server: EdgeServerFactory) -> None:
    hook = {"name": "stuck", "events": ["registration.changed"], "exec": ["/bin/sleep", "30"], "timeout": 2, "queue": 1}
    server = edge_server(config(hook), USERS)
    async with sip_ua(server, "alice") as alice:
        for _ in range(10):
            assert (await alice.register()).status == 200
            assert (await alice.unregister()).status == 200
        # Twenty registrations were answered, while the first program still ran.
        assert results(server, "stuck") == {"started": 1, "dropped": 18}
        await eventually(lambda: results(server, "stuck").get("timed_out") == 2, 20)
    assert "hook failed hook=stuck event=registration.changed result=timed_out" in server.log_text()


@pytest.mark.requirement("OB-FAIL-07")
async def test_ob_fail_07_a_hook_is_told_everything_of_a_flow_that_failed(
    edge_server: EdgeServerFactory, tmp_path: Path
) -> None:
    out = tmp_path / "flow.json"
    hook = {"events": ["flow.*"], "exec": ["/bin/sh", "-c", f"cat >> {out}"]}
    server = edge_server(config(hook), USERS)
    async with sip_ua(server, "alice", reg_id=1) as alice:
        assert (await alice.register()).status == 200
        assert alice.link is not None
    events = await eventually(lambda: _lines(out, 2), 10)
    up, failed = events
    assert (up["event"], failed["event"]) == ("flow.up", "flow.failed")
    assert set(failed) == {
        "event", "time", "id", "flow", "transport", "remote", "local", "reason", "age_s", "silent_s", "registrations",
        "pending",
    }  # fmt: skip
    assert failed["flow"] == up["flow"]
    assert failed["local"] == f"127.0.0.1:{server.port}"
    (registration,) = failed["registrations"]
    assert (registration["aor"], registration["reg_id"]) == ("alice@example.com", 1)


def _lines(path: Path, number: int) -> list[dict[str, Any]]:
    lines = whole_lines(path)
    return [json.loads(line) for line in lines] if len(lines) >= number else []


async def test_reload_swaps_hooks_and_a_broken_file_keeps_them(edge_server: EdgeServerFactory, tmp_path: Path) -> None:
    def hook(name: str) -> dict[str, Any]:
        return {"name": name, "events": ["registration.*"], "exec": ["/bin/sh", "-c", f"echo >> {tmp_path}/{name}"]}

    server = edge_server(config(hook("first")), USERS)
    async with sip_ua(server, "alice", "udp") as alice:
        await alice.register()
        await eventually(lambda: results(server, "first") == {"started": 1, "done": 1})
        server.write_config(config({"events": ["no.such"], "exec": ["/bin/true"]}))
        server.signal(signal.SIGHUP)
        await eventually(lambda: "configuration not reloaded" in server.log_text())
        await alice.unregister()
        await eventually(lambda: results(server, "first") == {"started": 2, "done": 2})
        server.write_config(config(hook("second")))
        server.signal(signal.SIGHUP)
        await eventually(lambda: "INFO edge.server configuration reloaded" in server.log_text())
        await alice.register()
        await eventually(lambda: results(server, "second") == {"started": 1, "done": 1})
    assert results(server, "first") == {"started": 2, "done": 2}


async def test_auth_flood_comes_once_when_a_source_is_locked_out_by_sip_or_msrp(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config({"name": "f", "events": ["auth.flood"], "exec": ["/bin/true"]}, limits={}), USERS)
    assert await guess(server, 19) == [401] * 19
    assert results(server, "f") == {}
    async with MsrpEndpoint("alice", "wrong", relay=("127.0.0.1", server.port)) as eve:
        with pytest.raises(AuthFailed):
            await eve.auth()
    await eventually(lambda: results(server, "f") == {"started": 1, "done": 1})
    assert await guess(server, 3) == [403] * 3
    async with MsrpEndpoint("alice", USERS["alice@example.com"], relay=("127.0.0.1", server.port)) as alice:
        with pytest.raises(AuthFailed) as refused:
            await alice.auth()
        assert refused.value.status == 403
    assert results(server, "f") == {"started": 1, "done": 1}
    assert "auth flood src=127.0.0.1 user=alice protocol=msrp" in server.log_text()


# -- the stream


@asynccontextmanager
async def stream(server: EdgeServer, query: str = "", token: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.admin_url}/api/events{query}", headers=headers) as response,
    ):
        if response.status == 200:
            assert await within(response.content.readuntil(b"\n\n")) == b": edge\n\n"
        yield response


async def read_event(response: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    block = (await within(response.content.readuntil(b"\n\n"))).decode()
    fields = dict(line.split(": ", 1) for line in block.strip().splitlines())
    return fields["event"], json.loads(fields["data"])


async def test_events_are_streamed_to_whoever_reads_them(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(admin={"token": "t0ken"}), USERS)
    async with stream(server, "?name=registration.*&name=flow.up", "t0ken") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        async with sip_ua(server, "alice") as alice:
            await alice.register()
            seen = dict([await read_event(response), await read_event(response)])
        assert set(seen) == {"registration.changed", "flow.up"}
        assert seen["registration.changed"]["aor"] == "alice@example.com"
        assert seen["registration.changed"]["connection"] == seen["flow.up"]["flow"]
        server.signal(signal.SIGTERM)
        await within(response.content.read(), 20)  # the stream ends with the server


async def test_the_stream_needs_the_token_and_a_name_that_exists(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(admin={"token": "t0ken"}))
    async with stream(server) as response:
        assert response.status == 401
    async with stream(server, "?name=no.such", "t0ken") as response:
        assert response.status == 400


async def test_a_reader_that_does_not_read_loses_events_and_only_those(edge_server: EdgeServerFactory) -> None:
    server = edge_server(config(), USERS)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.admin_port))
    with slow:
        slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(64).startswith(b"HTTP/1.1 200")

        async def churn() -> bool:
            for _ in range(50):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"?" * 64)
                writer.close()
                await writer.wait_closed()
            return server.metrics().value("edge_event_stream_missed_total") > 0

        await eventually(churn, 60)
        async with stream(server, "?name=connection.*") as response:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"?" * 64)
            assert (await read_event(response))[0].startswith("connection.")
            writer.close()


# -- the examples


async def test_flow_alert_tells_a_receiver_above_its_rate(
    edge_server: EdgeServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def answer(request: web.BaseRequest) -> web.Response:
        await told.put(await request.json())
        return web.Response()

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("EDGE_ALERT_URL", f"http://127.0.0.1:{runner.addresses[0][1]}/")
    monkeypatch.setenv("EDGE_ALERT_FLOWS", "3")
    hook = {"name": "flow-alert", "events": ["flow.failed"], "call": "flow_alert:told"}
    server = edge_server(config(hook), USERS, started=False)
    shutil.copy(ROOT / "deploy" / "hooks" / "flow_alert.py", server.directory)
    server.start()
    for number in range(4):
        async with sip_ua(server, "alice", reg_id=1) as alice:
            assert (await alice.register()).status == 200
            assert alice.link is not None
            alice.link.reset()
        await eventually(lambda: results(server, "flow-alert").get("done") == number + 1)  # noqa: B023
        assert told.qsize() == (1 if number >= 2 else 0)
    assert (await told.get())["text"] == "edge: 3 flows failed within 60 s: reset 3"
    assert "WARNING edge.alert 3 flows failed" in server.log_text()
    await runner.cleanup()


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with loopback up and nothing else."""
    if shutil.which("nft") is None or os.geteuid() != 0:
        pytest.skip("needs nft and root")
    name = f"edge-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def inside(namespace: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *command],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=scaled(20),
    )  # fmt: skip


ARRIVES = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
target = socket.socket(family, socket.SOCK_DGRAM)
target.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
for source in sys.argv[1:]:
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(source.encode(), target.getsockname()[:2])
print(target.recv(100).decode())
"""


def first_to_arrive(namespace: str, *sources: str) -> str:
    """Send a datagram from each source in turn; return which one was taken first."""
    return inside(namespace, "python3", "-c", ARRIVES, *sources).stdout.strip()


@pytest.mark.interop
async def test_firewall_blocks_a_flooding_source_in_the_kernel_and_lets_it_in_again(
    edge_server: EdgeServerFactory, namespace: str
) -> None:
    assert inside(namespace, str(FIREWALL), "setup").returncode == 0
    assert inside(namespace, str(FIREWALL), "setup").returncode == 0  # after a reload of the rules by somebody else
    command = ["ip", "netns", "exec", namespace, str(FIREWALL), "block", "600"]
    server = edge_server(config({"name": "firewall", "events": ["auth.flood"], "exec": command}, limits={}), USERS)
    assert first_to_arrive(namespace, "127.0.0.1", "127.0.0.3") == "127.0.0.1"
    await guess(server, 20)
    await eventually(lambda: results(server, "firewall") == {"started": 1, "done": 1}, 10)
    assert "127.0.0.1 timeout 10m" in inside(namespace, str(FIREWALL), "list").stdout
    assert first_to_arrive(namespace, "127.0.0.1", "127.0.0.3") == "127.0.0.3"
    assert inside(namespace, str(FIREWALL), "remove", "127.0.0.1").returncode == 0
    assert first_to_arrive(namespace, "127.0.0.1", "127.0.0.3") == "127.0.0.1"


@pytest.mark.interop
@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "fe80::1%eth0"])
async def test_firewall_takes_an_address_out_by_itself(namespace: str, source: str) -> None:
    inside(namespace, str(FIREWALL), "setup")
    wanted = source.removeprefix("::ffff:").partition("%")[0]
    assert inside(namespace, str(FIREWALL), "block", "600", EDGE_SOURCE=source).returncode == 0
    assert inside(namespace, str(FIREWALL), "block", EDGE_SOURCE=source, EDGE_BLOCKED_S="1.0").returncode == 0
    assert f"{wanted} timeout 1s" in inside(namespace, str(FIREWALL), "list").stdout  # its time began anew
    await eventually(lambda: wanted not in inside(namespace, str(FIREWALL), "list").stdout, 10)


@pytest.mark.interop
@pytest.mark.parametrize("source", ["", "example.com", "192.0.2.7 }; flush ruleset; #", "192.0.2"])
def test_firewall_refuses_what_is_no_address(namespace: str, source: str) -> None:
    inside(namespace, str(FIREWALL), "setup")
    done = inside(namespace, str(FIREWALL), "block", "600", EDGE_SOURCE=source)
    assert done.returncode != 0
    assert "table inet edge" in inside(namespace, "nft", "list", "ruleset").stdout
