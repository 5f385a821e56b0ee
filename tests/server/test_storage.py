"""What becomes of registrations when the process dies or the database goes away, with the running server."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import LOOPBACK, USERS, exchange_messages, open_config, sip_ua
from tests.storage.conftest import Postgres, start_postgres
from tests.ua.hostile import HostileUdp
from tests.ua.wait import eventually, scaled


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A database server that a test may end."""
    server = start_postgres()
    yield server
    server.stop()
    server.remove()


def register(name: str, port: int) -> bytes:
    lines = ["REGISTER sip:example.com SIP/2.0", f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{name};rport"]
    lines += ["Max-Forwards: 70", f"From: <sip:{name}@example.com>;tag={name}", f"To: <sip:{name}@example.com>"]
    lines += [f"Call-ID: {name}", "CSeq: 1 REGISTER", f"Contact: <sip:{name}@127.0.0.1:{port}>", "Expires: 3600"]
    return "\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()


def registered(server: EdgeServer) -> set[str]:
    listed = json.loads(server.admin_get("/api/registrations?limit=100000"))
    assert not listed["more"]
    return {row["aor"].partition("@")[0] for row in listed["items"]}


def kill(server: EdgeServer) -> None:
    assert server.process is not None
    server.signal(signal.SIGKILL)
    server.process.wait(scaled(20))


@pytest.mark.slow
@pytest.mark.requirement("OB-REG-17")
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.interop)])
async def test_kill_9_under_registration_load_loses_nothing_that_was_acknowledged(
    edge_server: EdgeServerFactory, database: str, request: pytest.FixtureRequest
) -> None:
    """Twenty times, each after another number of answers, with twenty requests on their way at every moment."""
    source = random.Random(7)
    storage = {"url": request.getfixturevalue("postgres").create()} if database == "postgresql" else {}
    server = edge_server(open_config(auth={"required": False}, storage=storage), started=False)
    acknowledged: set[str] = set()
    async with HostileUdp(("127.0.0.1", server.port)) as udp:
        port = udp.local[1]
        for turn in range(20):
            server.start()
            assert acknowledged <= registered(server), f"lost before turn {turn}"
            names = (f"u{turn}x{number}" for number in range(100_000))
            await udp.send(register(next(names), port) for _ in range(20))
            for _ in range(source.randint(1, 300)):
                acknowledged.add(acknowledged_by(await udp.read(20)))
                await udp.send(register(next(names), port))
            kill(server)
            try:
                while True:
                    acknowledged.add(acknowledged_by(await udp.read(0.05)))
            except (TimeoutError, ConnectionError):
                pass
        server.start()
        assert len(acknowledged) > 1000
        assert acknowledged <= registered(server)


def acknowledged_by(answer: bytes) -> str:
    assert answer.startswith(b"SIP/2.0 200 "), answer
    return answer.partition(b"\r\nCall-ID: ")[2].partition(b"\r\n")[0].decode()


@pytest.mark.interop
async def test_a_database_that_goes_down_later_degrades_says_so_and_recovers(
    edge_server: EdgeServerFactory, postgres: Postgres
) -> None:
    server = edge_server(open_config(storage={"url": postgres.create()}), USERS)
    async with AsyncExitStack() as stack:
        alice, bob, carol = [
            await stack.enter_async_context(sip_ua(server, name, transport))
            for name, transport in (("alice", "udp"), ("bob", "tcp"), ("carol", "tcp"))
        ]
        for ua in (alice, bob):
            assert (await ua.register()).status == 200
        assert (await exchange_messages(alice, bob)).status == 200
        postgres.stop()
        # What is cached goes on: users who are known, bindings that are there.
        assert (await exchange_messages(alice, bob)).status == 200
        # What has to be written, or is not known yet, gets an error, and no binding that was there is lost.
        extra = f"<sip:bob@127.0.0.1:{bob.address[1]};transport=tcp;x=y>"
        assert (await bob.register(contact=extra)).status == 500
        assert (await carol.register()).status == 500
        await eventually(lambda: server.admin_status("/readyz") == 503)
        assert server.admin_status("/healthz") == 200
        assert server.metrics().value("edge_storage_healthy") == 0
        assert registered(server) == {"alice", "bob"}
        assert (await exchange_messages(alice, bob)).status == 200
        assert "storage healthy=" in server.log_text()
        postgres.start()
        await eventually(lambda: server.admin_status("/readyz") == 200, 30)
        assert (await carol.register()).status == 200
        assert (await bob.register(contact=extra)).status == 200


@pytest.mark.interop
def test_a_database_that_is_down_at_the_start_is_one_clear_line(
    edge_server: EdgeServerFactory, postgres: Postgres
) -> None:
    url = postgres.create()
    server = edge_server({"storage": {"url": url}, "limits": {"trusted": LOOPBACK}}, started=False)
    postgres.stop()
    done = server.run("serve", "--config", str(server.config_path), check=False)
    postgres.start()
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("edge: ")]
    assert str(postgres.port) in line
    assert "Traceback" not in done.stderr
