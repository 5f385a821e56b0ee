"""Hooks that are `async`: what they decide about waits for them, in its order, and not forever."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.exceptions import InvalidMessage

from tests.policy.conftest import PolicyFactory
from tests.server.agents import all_registered, answering, counted, msrp_client, sip_ua
from tests.sip.rig import request
from tests.ua.hostile import HostileClient, HostileUdp
from tests.ua.msrp import AuthFailed
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

UPGRADE = """GET /sip HTTP/1.1\r
Host: a\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
Sec-WebSocket-Protocol: sip\r
"""


@pytest.mark.parametrize("transport", ["tcp", "tls", "wss"])
async def test_a_connection_waits_before_anything_of_it_is_read(with_policy: PolicyFactory, transport: str) -> None:
    server = with_policy("""
        refuse = False

        async def connection_accepted(self, connection):
            await asyncio.sleep(0.1)
            connection.count("accepted")
            if self.refuse:
                connection.reject()
            type(self).refuse = True
    """)
    async with sip_ua(server, "alice", transport) as alice:
        assert (await alice.register()).status == 200
        with pytest.raises((OSError, EOFError, TimeoutError, AssertionError, InvalidMessage)):
            async with sip_ua(server, "bob", transport) as bob:
                await bob.register()
        assert (await alice.options("sip:example.com")).status == 200
    metrics = server.metrics()
    assert metrics.value("edge_policy_counts_total", label="accepted") == 2
    assert metrics.value("edge_connections_refused_total", reason="policy") == 1


async def test_a_websocket_handshake_waits_and_what_came_behind_it_is_not_lost(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async def websocket_upgrade(self, upgrade):
            await asyncio.sleep(0.1)
            if upgrade.cookies.get("session") == "slow":
                await asyncio.sleep(30)
            elif upgrade.cookies.get("session") != "good":
                upgrade.reject(401)
    """)
    server.expect_traceback = True
    for cookie, status in (("bad", 401), ("slow", 500), ("good", 101)):
        client = HostileClient(("127.0.0.1", server.port))
        await client.connect()
        ping = b"\x81\x84\0\0\0\0\r\n\r\n"  # RFC 5626 §4.4.1 in a masked frame
        await client.send(f"{UPGRADE}Cookie: session={cookie}\r\n\r\n".encode() + ping)
        answer = await client.read_until(b"\x81\x02\r\n" if status == 101 else b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status), cookie
        client.close()
    assert server.metrics().value("edge_policy_errors_total", hook="websocket_upgrade") == 1


async def test_users_registrations_and_branches_wait_in_the_order_of_their_connection(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy("""
        async def user_known(self, user):
            await asyncio.sleep(0.05)
            user.count("known")
            if user.name == "carol@example.com":
                user.reject()

        async def registration(self, registration):
            await asyncio.sleep(0.05)
            registration.count("registration")
            if registration.user == "dave@example.com":
                registration.reject(403, "Not Dave")

        async def before_forward(self, branch):
            await asyncio.sleep({b"first": 0.2, b"second": 0.1}.get(branch.body, 0))
            branch.set_header("X-Seen", branch.uri.partition("@")[0])
            if branch.body == b"refused":
                branch.refuse()
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        carol, dave = [await stack.enter_async_context(sip_ua(server, name)) for name in ("carol", "dave")]
        assert (await carol.register()).status == 403
        answer = await dave.register()
        assert (answer.status, answer.reason) == (403, "Not Dave")
        assert (await dave.register(5)).status == 423
        seen: list[bytes] = []

        def on_request(ua: SipUA, request: Any) -> int:
            seen.append(request.body)
            assert request["X-Seen"] == "sip:bob"
            return 200

        bob.on_request = on_request
        alice.reuse_nonce = True
        await alice.message(bob.uri, b"hello")
        bodies = [b"first", b"second", b"third"]
        answers = await asyncio.gather(*(alice.message(bob.uri, body) for body in bodies))
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert seen == [b"hello", *bodies]
        assert (await alice.message(bob.uri, b"refused")).status == 480
        assert (await alice.unregister()).status == 200
    metrics = server.metrics()
    assert metrics.value("edge_policy_counts_total", label="registration") == 4
    assert metrics.value("edge_policy_counts_total", label="known") >= 9


async def test_a_call_is_cancelled_while_a_policy_thinks_about_its_branch(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async def before_forward(self, branch):
            await asyncio.sleep(0.3 if branch.method == "INVITE" else 0)
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        call = alice.start_invite(bob.uri)
        await call.provisional(100)
        cancelled = asyncio.create_task(call.cancel())
        invite = await bob.next_request("INVITE", 5)  # the CANCEL comes behind it
        bob.respond(invite, 180)
        assert (await cancelled).status == 200
        bob.respond(await bob.next_request("CANCEL"), 200)
        bob.respond(invite, 487)
        assert (await call.result()).status == 487
        call = alice.start_invite(bob.uri)  # and the next one goes through
        bob.accept(await bob.next_request("INVITE", 5))
        await (await call.dialog()).ack()


async def test_a_branch_that_was_decided_on_too_late_does_not_leave(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                request.set_targets(["sip:bob@example.com", "sip:carol@example.com"])

        async def before_forward(self, branch):
            branch.count("asked")
            if branch.uri.startswith("sip:carol@"):
                await asyncio.sleep(0.4)
                branch.count("decided")
    """)
    async with AsyncExitStack() as stack:
        alice, bob, carol = await all_registered(server, stack, "alice", "bob", "carol")
        bob.on_request = carol.on_request = answering(202)
        assert (await alice.message("sip:team@example.com", b"x")).status == 202
        await counted(server, "edge_policy_counts_total", label="decided")
        assert (await alice.options("sip:example.com")).status == 200
        assert carol.received("MESSAGE") == []
        assert server.metrics().value("edge_policy_counts_total", label="asked") == 2


async def test_a_flow_that_ends_while_a_policy_thinks_is_a_flow_that_failed(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async def before_forward(self, branch):
            branch.count("asked")
            await asyncio.sleep(0.3)
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        asked = asyncio.create_task(alice.message(bob.uri, b"x"))
        await counted(server, "edge_policy_counts_total", label="asked")
        await bob.stop()
        assert (await asked).status == 480


@pytest.mark.parametrize(
    ("hook", "status"),
    [("user_known", 403), ("registration", 500)],
)
async def test_a_hook_that_takes_too_long_or_raises_lets_nobody_in(
    with_policy: PolicyFactory, hook: str, status: int
) -> None:
    server = with_policy(f"""
        async_timeout = 0.2
        calls = 0

        async def {hook}(self, what):
            type(self).calls += 1
            if self.calls == 1:
                await asyncio.sleep(30)
            elif self.calls == 2:
                raise RuntimeError("no idea")
    """)
    server.expect_traceback = True
    async with sip_ua(server, "alice") as alice:
        assert [(await alice.register()).status for _ in range(3)] == [status, status, 200]
    assert server.metrics().value("edge_policy_errors_total", hook=hook) == 2


FRAMES = """
    async def msrp_frame(self, frame):
        frame.count(frame.method.lower() or "response")
        if frame.method == "SEND" and frame.header("X-Slow"):
            await asyncio.sleep(float(frame.header("X-Slow")))
        elif frame.method == "SEND":
            await asyncio.sleep(0)
        if frame.body == b"no":
            frame.reject(403, "Not This")
        elif frame.body == b"raise":
            raise RuntimeError("no idea")
        elif frame.body == b"other":
            frame.set_body(b"changed")
        elif frame.header("X-No"):
            frame.reject(403)

    async def user_known(self, user):
        await asyncio.sleep(0.05)
        if user.name == "carol":
            user.reject()
"""


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws"])
async def test_frames_wait_in_the_order_of_their_connection(with_policy: PolicyFactory, transport: str) -> None:
    server = with_policy(FRAMES)
    server.expect_traceback = True
    async with (
        msrp_client(server, "alice", transport) as alice,
        msrp_client(server, "bob", "tcp") as bob,
        msrp_client(server, "carol", "tcp") as carol,
    ):
        await alice.auth()
        await bob.auth()
        with pytest.raises(AuthFailed) as failed:
            await carol.auth()
        assert failed.value.status == 403
        path = [*alice.use_path, *bob.path]
        slow = [("X-Slow", "0.2")]
        bodies = [b"one", b"two" * 3000, b"three", b"four" * 50000, b"five"]
        sends = [alice.send(path, body, headers=slow if body in (b"one", bodies[3]) else ()) for body in bodies]
        sent = await asyncio.gather(*sends)
        assert all(one.ok for one in sent)
        received = [bytes((await bob.next_message()).data) for _ in bodies]
        assert received == bodies
        assert (await alice.send(path, b"no")).statuses == [403]
        assert (await alice.send(path, b"raise")).statuses == [500]
        assert (await alice.send(path, b"no" * 100000, headers=[*slow, ("X-No", "1")])).statuses[0] == 403
        assert (await alice.send(path, b"slow", headers=[("X-Slow", "30")])).statuses == [500]
        assert (await alice.send(path, b"other")).ok
        assert bytes((await bob.next_message()).data) == b"changed"
    metrics = server.metrics()
    assert metrics.value("edge_policy_counts_total", label="send") == 10
    assert metrics.value("edge_policy_errors_total", hook="msrp_frame") == 2


async def test_at_most_so_many_messages_of_a_udp_flow_wait(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async_queue = 5

        async def sip_request(self, request):
            request.count(request.method.lower())
            if request.method == "OPTIONS":
                await asyncio.sleep(0.5)
            request.reject(488)
    """)
    async with HostileUdp(("127.0.0.1", server.port), connected=True) as flow:
        via = f"SIP/2.0/UDP 127.0.0.1:{flow.local[1]};branch=z9hG4bKq"
        await flow.send(request("OPTIONS", "sip:example.com", via=f"{via}0;rport"))
        await counted(server, "edge_policy_counts_total", label="options")
        await flow.send(request("INFO", "sip:example.com", via=f"{via}{number};rport") for number in range(1, 21))
        answers = [await flow.read() for _ in range(6)]
    assert all(answer.startswith(b"SIP/2.0 488") for answer in answers)
    metrics = server.metrics()
    assert metrics.value("edge_sip_rejected_total", reason="policy_queue") == 15
    assert metrics.value("edge_policy_counts_total", label="info") == 5


FULL = """
    async_timeout = 60.0
    open = asyncio.Event()

    async def sip_request(self, request):
        request.count("asked")
        await self.open.wait()
        request.reject(488)

    async def msrp_frame(self, frame):
        frame.count("frame")
        await self.open.wait()

    def websocket_upgrade(self, upgrade):
        self.open.set()
"""
MOST = 1000


async def test_more_hooks_than_may_run_find_no_room_and_all_that_waited_goes_on_in_its_order(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy(FULL)
    async with AsyncExitStack() as stack:
        flows = [await stack.enter_async_context(HostileUdp(("127.0.0.1", server.port))) for _ in range(MOST + 5)]

        async def ask(number: int, sequence: int = 1) -> None:
            via = f"SIP/2.0/UDP 127.0.0.1:{flows[number].local[1]};branch=z9hG4bK{number}-{sequence};rport"
            await flows[number].send(request("OPTIONS", "sip:example.com", via=via, cseq=sequence))

        for number in range(MOST):
            await ask(number)
            if number % 100 == 99:  # the socket of the server holds no thousand datagrams
                await counted(server, "edge_policy_running", number + 1)
        for number in range(0, MOST, 100):
            for sequence in range(2, 5):
                await ask(number, sequence)
        for number in range(MOST, MOST + 5):
            await ask(number)
            assert (await flows[number].read()).startswith(b"SIP/2.0 503 ")
        async with msrp_client(server, "alice", "tcp") as alice:
            with pytest.raises(AuthFailed) as failed:
                await alice.auth()
            assert failed.value.status == 500
        metrics = server.metrics()
        assert metrics.value("edge_policy_running") == metrics.value("edge_policy_counts_total", label="asked") == MOST
        assert metrics.value("edge_sip_rejected_total", reason="policy_queue") == 5
        assert metrics.value("edge_policy_errors_total", hook="sip_request") == 5
        assert metrics.value("edge_policy_errors_total", hook="msrp_frame") == 1
        assert server.log_text().count(f"policy hook not begun hook=sip_request running={MOST}") >= 1
        async with sip_ua(server, "bob", "ws"):
            for number in range(MOST):
                for sequence in range(1, 5 if number % 100 == 0 else 2):
                    answer = await flows[number].read()
                    assert answer.startswith(b"SIP/2.0 488 "), answer
                    assert b"\r\nCSeq: %d OPTIONS\r\n" % sequence in answer
            await ask(MOST, 2)
            assert (await flows[MOST].read()).startswith(b"SIP/2.0 488 ")
    await eventually(lambda: server.metrics().value("edge_policy_running") == 0, what="no hook runs")
    assert server.metrics().value("edge_policy_errors_total", hook="sip_request") == 5


async def test_something_a_hook_waited_for_and_that_is_cancelled_is_an_error_like_any_other(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy("""
        async def sip_request(self, request):
            waited_for = asyncio.get_running_loop().create_future()
            waited_for.cancel()
            if request.method == "OPTIONS":
                await waited_for
            request.reject(488)
    """)
    server.expect_traceback = True
    async with sip_ua(server, "alice") as alice:
        assert (await alice.options("sip:example.com")).status == 500
        assert (await alice.message("sip:bob@example.com", b"behind it")).status == 488
    metrics = server.metrics()
    assert (metrics.value("edge_policy_errors_total", hook="sip_request"), metrics.value("edge_policy_running")) == (
        1,
        0,
    )


async def test_a_stop_ends_hooks_that_wait(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async_timeout = 60.0

        async def sip_request(self, request):
            request.count("asked")
            await asyncio.sleep(60)
    """)
    async with sip_ua(server, "alice") as alice:
        asked = asyncio.create_task(alice.options("sip:example.com"))
        await counted(server, "edge_policy_counts_total", label="asked")
        assert server.stop() == 0
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def test_a_reload_while_a_hook_waits_lets_it_finish_as_it_began(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        async def sip_request(self, request):
            request.count("asked")
            await asyncio.sleep(0.5)
            request.reject(488, "Old")
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        asked = asyncio.create_task(alice.options("sip:example.com"))
        await counted(server, "edge_policy_counts_total", label="asked")
        (server.directory / "mine.py").write_text("from edge.policy import Policy\nclass Mine(Policy): pass\n")
        server.signal(signal.SIGHUP)
        await eventually(lambda: "configuration reloaded" in server.log_text())
        assert (await bob.options("sip:example.com")).status == 200
        assert (await asked).reason == "Old"
        assert (await alice.options("sip:example.com")).status == 200
        bob.on_request = answering()
