"""The hooks for connections, users, and what is over; and events of a policy's own."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from tests.policy.conftest import PolicyFactory, write_policy
from tests.server.agents import answering, cancelled_while_ringing, counted, msrp_client, sip_ua
from tests.ua.hostile import HostileClient
from tests.ua.msrp import AuthFailed
from tests.ua.sip import CallFailed, SipUA
from tests.ua.wait import eventually, whole_lines

ENDED = """
    def ended(self, what):
        duration = "none" if what.duration is None else what.duration >= 0
        self.note(what.protocol, what.reason, what.code, what.user, what.peer, duration)

    def note(self, *values):
        with open("ended.txt", "a") as file:
            print(*values, file=file)
"""


def notes(server: Any) -> list[str]:
    return whole_lines(server.directory / "ended.txt")


async def handshake(port: int, *lines: str) -> bytes:
    client = HostileClient(("127.0.0.1", port))
    await client.connect()
    head = ["GET /sip?x=1 HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade"]
    head += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    head += ["Sec-WebSocket-Protocol: sip", *lines, "", ""]
    await client.send("\r\n".join(head).encode())
    answer = await client.read_until(b"\r\n\r\n")
    client.close()
    return answer


@pytest.mark.requirement("OB-WS-08")
async def test_a_websocket_is_decided_on_by_origin_path_query_and_cookies(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def websocket_upgrade(self, upgrade):
            upgrade.tag("who", upgrade.cookies.get("name", ""))
            if upgrade.origin != "https://ours.example":
                upgrade.reject()
            elif upgrade.cookies.get("session") != "good":
                upgrade.reject(401, [("WWW-Authenticate", "Bearer")])
            elif (upgrade.path, upgrade.query, upgrade.subprotocol, upgrade.source) != ("/sip", "x=1", "sip", "127.0.0.1"):
                upgrade.reject(404)

        def sip_request(self, request):
            request.reject(488, request.tagged("who"))
    """)
    assert (await handshake(server.port, "Origin: https://theirs.example")).startswith(b"HTTP/1.1 403 ")
    asked = await handshake(server.port, "Origin: https://ours.example", "Cookie: a=b; session=old")
    assert asked.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in asked
    good = ("Origin: https://ours.example", "Cookie: a=b; session=good; name=zoe")
    assert (await handshake(server.port, *good)).startswith(b"HTTP/1.1 101 ")
    metrics = server.metrics()
    assert metrics.value("edge_connections_refused_total", reason="http_403") == 1
    assert metrics.value("edge_connections_refused_total", reason="http_401") == 1


async def test_a_tag_of_the_handshake_stays_with_its_connection(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def websocket_upgrade(self, upgrade):
            upgrade.tag("path", upgrade.path)

        def sip_request(self, request):
            request.reject(488, request.tagged("path") or "none")
    """)
    async with sip_ua(server, "alice", "ws") as alice, sip_ua(server, "bob", "tcp") as bob:
        assert (await alice.options("sip:example.com")).reason.startswith("/")
        assert (await bob.options("sip:example.com")).reason == "none"


async def test_the_user_of_an_auth_is_refused_after_the_password_and_named_with_the_connection(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy("""
        def user_known(self, user):
            user.count(f"{user.protocol}_{user.name}_{user.transport}")
            if user.name == "bob":
                user.reject()
    """)
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        await alice.auth()
        with pytest.raises(AuthFailed) as failed:
            await bob.auth()
        assert (failed.value.status, bob.challenges) == (403, 1)
    await counted(server, "edge_policy_counts_total", label="msrp_alice_tcp")
    await counted(server, "edge_policy_counts_total", label="msrp_bob_tcp")


async def pair(server: Any, stack: AsyncExitStack) -> tuple[SipUA, SipUA]:
    alice = await stack.enter_async_context(sip_ua(server, "alice"))
    bob = await stack.enter_async_context(sip_ua(server, "bob"))
    assert (await alice.register()).status == (await bob.register()).status == 200
    return alice, bob


async def cancelled(alice: SipUA, bob: SipUA) -> None:
    call, invite, cancel = await cancelled_while_ringing(alice, bob)
    bob.respond(cancel, 200)
    bob.respond(invite, 487)
    assert (await call.result()).status == 487


@pytest.mark.parametrize("accounting", ["", "file:calls.jsonl"], ids=["alone", "beside accounting"])
async def test_the_end_of_a_call_is_told_whether_by_bye_cancel_or_refusal(
    with_policy: PolicyFactory, accounting: str
) -> None:
    server = with_policy(ENDED, **({"accounting": {"url": accounting}} if accounting else {}))
    async with AsyncExitStack() as stack:
        alice, bob = await pair(server, stack)
        call = alice.start_invite(bob.uri)
        answered = bob.accept(await bob.next_request("INVITE"))
        dialog = await call.dialog()
        await dialog.ack()
        bob.on_request = alice.on_request = answering()
        assert not notes(server)
        assert (await dialog.bye()).status == 200
        await eventually(lambda: len(notes(server)) == 1)
        call = alice.start_invite(bob.uri)
        bob.on_request = None
        answered = bob.accept(await bob.next_request("INVITE"))
        await (await call.dialog()).ack()
        assert (await answered.bye()).status == 200
        await cancelled(alice, bob)
        bob.on_request = answering(486)
        with pytest.raises(CallFailed):
            await alice.invite(bob.uri)
        with pytest.raises(CallFailed):
            await alice.invite("sip:nobody@example.com")
        bob.on_request = answering(408)
        with pytest.raises(CallFailed):
            await alice.invite(bob.uri)
        await eventually(lambda: len(notes(server)) == 6)
    who = f"{alice.uri} {bob.uri}"
    assert notes(server) == [
        f"sip bye_caller 200 {who} True",
        f"sip bye_callee 200 {who} True",
        f"sip cancelled 487 {who} none",
        f"sip refused 486 {who} none",
        f"sip refused 404 {alice.uri} sip:nobody@example.com none",
        f"sip timeout 408 {who} none",
    ]
    if accounting:
        assert server.stop() == 0
        kinds = [json.loads(line)["kind"] for line in (server.directory / "calls.jsonl").read_text().splitlines()]
        assert kinds.count("call") == 6


async def test_the_end_of_a_session_is_told_with_its_user_and_duration(with_policy: PolicyFactory) -> None:
    server = with_policy(ENDED)
    async with msrp_client(server, "alice", "tcp") as alice:
        await alice.auth()
        assert not notes(server)
    await eventually(lambda: notes(server))
    assert notes(server)[0].split()[0:4:3] == ["msrp", "alice"]
    assert notes(server)[0].endswith(" True")


async def test_an_async_hook_is_told_of_an_end_as_well(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async def ended(self, what):
            await asyncio.sleep(0)
            what.count(what.protocol)
    """)
    async with msrp_client(server, "alice", "tcp") as alice:
        await alice.auth()
    await counted(server, "edge_policy_counts_total", label="msrp")


async def test_an_event_of_the_policys_own_reaches_hooks_by_name_and_filter_and_the_stream(
    with_policy: PolicyFactory,
) -> None:
    hook = ["/bin/sh", "-c", 'echo "$EDGE_EVENT $EDGE_USER" >> seen.txt']
    server = with_policy(
        """
        def sip_request(self, request):
            if request.method == "OPTIONS":
                request.publish("ignored")
                request.publish("asked", user=request.from_uri, often=3)
            if request.method == "MESSAGE":
                request.publish("No Label")
    """,
        hooks=[
            {"name": "named", "events": ["policy.asked"], "exec": hook},
            {"name": "filtered", "events": ["policy.*"], "filter": {"often": [4]}, "exec": hook},
        ],
    )
    server.expect_traceback = True
    async with aiohttp.ClientSession() as session, sip_ua(server, "alice") as alice:
        url = f"http://127.0.0.1:{server.admin_port}/api/events?name=policy.asked"
        async with session.get(url) as response:
            assert (await response.content.readline()).startswith(b": edge")
            assert (await alice.options("sip:example.com")).status == 200
            lines = [await asyncio.wait_for(response.content.readline(), 10) for _ in range(4)]
        assert b"event: policy.asked\n" in lines
        told = json.loads(next(line for line in lines if line.startswith(b"data:"))[5:])
        assert (told["event"], told["label"]) == ("policy.asked", "asked")
        assert told["details"] == {"user": alice.uri, "often": 3}
        assert (await alice.message("sip:example.com", b"x", auth=False)).status == 500
    seen = server.directory / "seen.txt"
    await eventually(lambda: seen.exists() and seen.read_text())
    assert seen.read_text() == f"policy.asked {alice.uri}\n"
    assert server.metrics().value("edge_hook_events_total", hook="filtered", result="started") == 0


async def test_a_reload_begins_and_ends_to_watch_for_ends(with_policy: PolicyFactory) -> None:
    server = with_policy("pass")
    async with AsyncExitStack() as stack:
        alice, bob = await pair(server, stack)
        bob.on_request = answering(486)
        for methods, told in (("pass", 0), (ENDED, 1), ("pass", 1), (ENDED, 2)):
            write_policy(server, methods)
            reloads = server.log_text().count("configuration reloaded")
            server.signal(signal.SIGHUP)
            await eventually(lambda before=reloads: server.log_text().count("configuration reloaded") > before)
            with pytest.raises(CallFailed):
                await alice.invite(bob.uri)
            await eventually(lambda count=told: len(notes(server)) == count)


async def test_a_connection_is_known_by_its_address_transport_and_certificate(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def connection_accepted(self, connection):
            connection.tag("seen", f"{connection.source} {connection.transport} {connection.socket[1]}")
            if connection.transport != "tls" or connection.identities:
                connection.reject()

        def sip_request(self, request):
            request.reject(488, request.tagged("seen"))
    """)
    async with sip_ua(server, "alice", "tls") as alice:
        assert (await alice.options("sip:example.com")).reason == f"127.0.0.1 tls {server.port}"
    with pytest.raises((OSError, EOFError, TimeoutError, AssertionError)):
        async with sip_ua(server, "bob", "tcp") as bob:
            await bob.register()
