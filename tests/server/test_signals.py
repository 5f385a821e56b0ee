"""SIGTERM, SIGHUP and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, exchange_messages, msrp_client, open_config, registered, sip_ua
from tests.ua.certs import Authority, Certificate
from tests.ua.hostile import HostileClient
from tests.ua.link import StreamLink, open_link
from tests.ua.wait import eventually


async def ended(server: EdgeServer, seconds: float = 10) -> int:
    """Wait for the end of the process and return its exit status."""
    process = server.process
    assert process is not None
    await eventually(lambda: process.poll() is not None, seconds, what="the end of the server")
    return process.returncode


# ------------------------------------------------------------------------------------------ SIGTERM


@pytest.mark.requirement("OB-LIM-05")
async def test_sigterm_lets_calls_and_a_pending_request_end_and_takes_no_registration(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(limits={"drain_timeout": 60}), USERS)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        bob = await registered(server, stack, "bob", "udp")
        call = alice.start_invite(bob.uri)
        bob.accept(await bob.next_request("INVITE"))
        dialog = await call.dialog()
        await dialog.ack()
        pending = asyncio.create_task(alice.message(bob.uri, b"before the end"))
        request = await bob.next_request("MESSAGE")
        server.signal(signal.SIGTERM)
        await eventually(lambda: "draining" in server.log_text())
        assert server.admin_status("/readyz") == 503
        refused = await alice.register()
        assert refused.status == 503
        assert 5 <= int(refused["Retry-After"]) <= 36  # at random, so that not all come at once
        late = HostileClient(("127.0.0.1", server.port))
        with pytest.raises(ConnectionRefusedError):
            await late.connect()
        late.close()
        bye = asyncio.create_task(dialog.bye())  # by the flow tokens of its route set
        bob.respond(await bob.next_request("BYE"), 200)
        assert (await bye).status == 200
        bob.respond(request, 200)
        assert (await pending).status == 200
        assert await ended(server) == 0
        assert alice.link is not None
        await alice.link.wait_closed()
    assert "stopped" in server.log_text()


async def test_sigterm_lets_an_msrp_message_end(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"drain_timeout": 60}), USERS)
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tls") as bob:
        await alice.auth()
        await bob.auth()
        bob.answer = None
        sending = asyncio.create_task(alice.send([*alice.use_path, *bob.path], b"x" * 10_000))
        message = await bob.next_message()
        server.signal(signal.SIGTERM)
        await eventually(lambda: "draining" in server.log_text())
        assert server.process is not None
        assert server.process.poll() is None
        bob.respond(message.chunks[-1], 200)
        assert (await sending).ok
        assert await ended(server) == 0


@contextlib.asynccontextmanager
async def told_to_end_while_a_phone_rings(make: EdgeServerFactory, drain_s: int) -> AsyncIterator[EdgeServer]:
    server = make(open_config(limits={"drain_timeout": drain_s}), USERS)
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "tcp") as bob:
        await alice.register()
        await bob.register()
        call = alice.start_invite(bob.uri)
        bob.respond(await bob.next_request("INVITE"), 180)
        await call.provisional(180)
        server.signal(signal.SIGTERM)
        yield server


async def test_the_drain_is_bounded(edge_server: EdgeServerFactory) -> None:
    async with told_to_end_while_a_phone_rings(edge_server, 1) as server:
        assert await ended(server) == 0


async def test_a_second_sigterm_stops_now(edge_server: EdgeServerFactory) -> None:
    async with told_to_end_while_a_phone_rings(edge_server, 600) as server:
        await eventually(lambda: "draining" in server.log_text())
        assert server.process is not None
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        assert await ended(server) == 0


# ------------------------------------------------------------------------------------------ SIGHUP


def issue(folder: Path, name: str) -> tuple[Authority, Certificate]:
    authority = Authority(folder / name, name)
    return authority, authority.issue("edge.example.com", dns=["edge.example.com", "example.com"])


def put_in_place(certificate: Certificate, folder: Path) -> None:
    """What a renewal does: key and certificate replaced under their old names."""
    for new, name in ((certificate.private_key, "edge.key"), (certificate.certificate, "edge.crt")):
        (folder / f"{name}.new").write_bytes(new.read_bytes())
        (folder / f"{name}.new").rename(folder / name)


async def shown(server: EdgeServer) -> bytes | None:
    """The certificate a client is shown."""
    link = await open_link("tls", ("127.0.0.1", server.port), lambda link, data: None)
    assert isinstance(link, StreamLink)
    assert link.ssl_object is not None
    found = link.ssl_object.getpeercert(binary_form=True)
    await link.close()
    return found


def with_certificate(folder: Path, **sections: dict[str, object]) -> dict[str, object]:
    return open_config(**sections) | {
        "tls": {"certificate": str(folder / "edge.crt"), "private_key": str(folder / "edge.key")}
    }


async def test_sighup_takes_what_is_right_and_keeps_what_works_from_what_is_wrong(
    edge_server: EdgeServerFactory, tmp_path: Path
) -> None:
    _, first = issue(tmp_path, "first")
    put_in_place(first, tmp_path)
    server = edge_server(with_certificate(tmp_path), USERS)

    async def reload(outcome: float) -> None:
        before = server.metrics().value("edge_config_last_reload_timestamp_seconds")
        server.signal(signal.SIGHUP)
        await eventually(lambda: server.metrics().value("edge_config_last_reload_timestamp_seconds") > before)
        await eventually(lambda: server.metrics().value("edge_config_last_reload_successful") == outcome)

    async with sip_ua(server, "alice", "tls") as alice, sip_ua(server, "bob", "udp") as bob:
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
        old = await shown(server)
        _, second = issue(tmp_path, "second")
        put_in_place(second, tmp_path)
        await reload(1)
        renewed = await shown(server)
        assert renewed != old

        server.write_config(with_certificate(tmp_path, limits={"connections": "many"}))
        await reload(0)
        assert "limits.connections" in server.log_text()
        (tmp_path / "edge.crt").write_text("no certificate")
        server.write_config(with_certificate(tmp_path))
        await reload(0)
        assert "tls.certificate" in server.log_text()
        assert await shown(server) == renewed

        put_in_place(second, tmp_path)
        server.write_config(with_certificate(tmp_path, limits={"connections_per_source": 1, "trusted": ["127.0.0.9"]}))
        await reload(1)
        assert (await exchange_messages(alice, bob)).status == 200  # live connections stay as they are
    assert server.metrics().value("edge_config_last_reload_successful") == 1


async def test_limits_of_a_reload_hold_for_the_next_connection(edge_server: EdgeServerFactory) -> None:
    server = edge_server({"limits": {"connections_per_source": 5}})
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(HostileClient(("127.0.0.1", server.port)))
            await client.send(b"\r\n\r\n")
            assert await client.read_exactly(2) == b"\r\n"
        server.write_config({"limits": {"connections_per_source": 3}})
        server.signal(signal.SIGHUP)
        await eventually(lambda: "configuration reloaded" in server.log_text())
        late = HostileClient(("127.0.0.1", server.port))
        with contextlib.suppress(ConnectionError):
            await late.connect()
            assert await late.read_until_close() == b""
        late.close()
        assert server.metrics().value("edge_connections_refused_total", reason="source_limit") == 1
        await client.send(b"\r\n\r\n")
        assert await client.read_exactly(2) == b"\r\n"


async def test_what_needs_a_restart_is_named(edge_server: EdgeServerFactory) -> None:
    server = edge_server()
    server.write_config({"sip": {"max_expires": 1800}})
    server.signal(signal.SIGHUP)
    await eventually(lambda: "these need a restart: sip" in server.log_text())


async def test_a_renewed_certificate_is_noticed_without_a_signal(
    edge_server: EdgeServerFactory, tmp_path: Path
) -> None:
    _, first = issue(tmp_path, "first")
    put_in_place(first, tmp_path)
    server = edge_server(with_certificate(tmp_path), USERS)
    old = await shown(server)
    (tmp_path / "edge.crt").write_text("half of a certifica")
    await eventually(lambda: "certificate not reloaded" in server.log_text(), 15)
    assert await shown(server) == old
    authority, second = issue(tmp_path, "second")
    put_in_place(second, tmp_path)
    await eventually(lambda: "certificate reloaded" in server.log_text(), 15)
    assert await shown(server) != old
    options = {"ssl_context": authority.client_context(), "server_hostname": "edge.example.com"}
    async with sip_ua(server, "alice", "tls", **options) as alice, sip_ua(server, "bob", "wss", **options) as bob:
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
    assert server.log_text().count("certificate not reloaded") == 1  # not at every look
