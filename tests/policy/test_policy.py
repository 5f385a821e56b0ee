"""Policies of an operator in the running server: every hook, every decision, and what happens when one fails."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tests.policy.conftest import write_policy
from tests.server.agents import answering, msrp_client, sip_ua
from tests.ua.sip import SipUA
from tests.ua.wait import eventually


async def message(caller: SipUA, callee: SipUA, **options: Any) -> tuple[int, str]:
    response = await caller.message(callee.uri, b"hello", **options)
    return response.status, response.reason


async def test_a_request_is_rejected_with_code_reason_and_headers(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE" and request.header("Subject") == "no":
                request.reject(488, "Not Like This", [("X-Why", "because")])
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
        bob.on_request = answering()
        refused = await alice.message(bob.uri, b"hello", headers=[("Subject", "no")])
        assert (refused.status, refused.reason, refused.get("X-Why")) == (488, "Not Like This", "because")
        assert (await message(alice, bob))[0] == 200
    assert server.metrics().value("edge_sip_rejected_total", reason="policy") == 1


async def test_headers_are_added_read_and_removed_before_a_request_goes_on(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                request.add_header("X-From", request.source)
                request.remove_header("subject")

        def before_forward(self, branch):
            branch.set_header("X-Branch", branch.uri)

        def sip_response(self, response):
            response.add_header("X-Code", str(response.code))
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        await alice.register()
        await bob.register()
        seen: list[Any] = []

        def on_request(ua: SipUA, request: Any) -> int:
            seen.append(request)
            return 200

        bob.on_request = on_request
        answer = await alice.message(bob.uri, b"hello", headers=[("Subject", "secret")])
    assert (answer.status, answer.get("X-Code")) == (200, "200")
    assert (seen[0].get("X-From"), seen[0].get("Subject")) == ("127.0.0.1", None)
    assert seen[0]["X-Branch"].startswith("sip:bob@")


async def test_an_exception_answers_500_is_counted_and_logged_and_hurts_nothing_else(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "OPTIONS":
                raise RuntimeError("no idea")
    """)
    server.expect_traceback = True
    assert '{hook="sip_request"} 0.0' in server.admin_get("/metrics")  # there before its first error
    async with sip_ua(server, "alice") as alice:
        assert (await alice.register()).status == 200
        assert (await alice.options("sip:example.com")).status == 500
        assert (await alice.register()).status == 200
    assert server.metrics().value("edge_policy_errors_total", hook="sip_request") == 1
    assert "policy hook failed hook=sip_request error=RuntimeError: no idea" in server.log_text()


async def test_an_async_hook_keeps_the_order_of_its_connection_and_is_limited_in_time(with_policy: Any) -> None:
    server = with_policy(
        """
        async def sip_request(self, request):
            if request.method == "MESSAGE":
                await asyncio.sleep({b"first": 0.3, b"never": 30}.get(request.body, 0))
    """,
        auth={"required": False},
    )
    server.expect_traceback = True
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        await alice.register()
        await bob.register()
        order: list[bytes] = []

        def on_request(ua: SipUA, request: Any) -> int:
            order.append(request.body)
            return 200

        bob.on_request = on_request
        bodies = [b"first", b"second", b"third"]
        await asyncio.gather(*(alice.message(bob.uri, body) for body in bodies))
        assert order == bodies
        assert (await alice.message(bob.uri, b"never")).status == 500
        assert (await alice.message(bob.uri, b"after")).status == 200
    assert server.metrics().value("edge_policy_errors_total", hook="sip_request") == 1


async def test_a_reload_swaps_the_policy_and_a_broken_one_is_not_taken(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            request.reject(488, "One")
    """)
    async with sip_ua(server, "alice") as alice:
        assert (await alice.options("sip:example.com")).reason == "One"
        (server.directory / "mine.py").write_text("raise ValueError('half done')")
        server.signal(signal.SIGHUP)
        await eventually(lambda: "policy.module: ValueError: half done" in server.log_text())
        assert (await alice.options("sip:example.com")).reason == "One"
        write_policy(server, 'def sip_request(self, request):\n    request.reject(488, "Two")')
        server.signal(signal.SIGHUP)
        await eventually(lambda: "configuration reloaded" in server.log_text())
        assert (await alice.options("sip:example.com")).reason == "Two"


async def test_registrations_users_and_connections_are_decided_on(with_policy: Any) -> None:
    server = with_policy("""
        def registration(self, registration):
            registration.count("stored")
            if registration.user.startswith("carol"):
                registration.reject(403, "Not Carol")

        def user_known(self, user):
            if user.name.startswith("dave"):
                user.reject()
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "carol") as carol, sip_ua(server, "dave") as dave:
        assert (await alice.register()).status == 200
        assert (await alice.register()).status == 200
        refused = await carol.register()
        assert (refused.status, refused.reason) == (403, "Not Carol")
        assert (await dave.register()).status == 403
    assert server.metrics().value("edge_policy_counts_total", label="stored") == 3


async def test_a_connection_is_refused_without_a_word(with_policy: Any) -> None:
    server = with_policy("""
        blocked = AddressList(networks=["127.0.0.0/8"])

        def connection_accepted(self, connection):
            if self.blocked.lists(connection):
                connection.reject()
    """)
    with pytest.raises((OSError, EOFError, TimeoutError, AssertionError)):
        async with sip_ua(server, "alice") as alice:
            await alice.register()
    assert server.metrics().value("edge_connections_refused_total", reason="policy") >= 1


async def test_a_request_goes_to_other_targets_and_the_next_where_one_is_not_there(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE" and "bob" in request.uri:
                request.dispatch("sip:127.0.0.1:9;transport=tcp", "sip:carol@example.com")
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "carol") as carol:
        await alice.register()
        await carol.register()
        carol.on_request = answering(202)
        assert (await alice.message("sip:bob@example.com", b"hello")).status == 202


async def test_msrp_frames_are_seen_counted_refused_and_changed(with_policy: Any) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            frame.count(frame.method.lower() or "response")
            if frame.method == "SEND" and frame.body == b"no":
                frame.reject(403, "Not This", [("X-Why", "because")])
            elif frame.method == "SEND":
                frame.add_header("X-Source", frame.source)
    """)
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        await alice.auth()
        await bob.auth()
        path = [*alice.use_path, *bob.path]
        assert (await alice.send(path, b"hello")).ok
        received = await bob.next_message()
        assert bytes(received.data) == b"hello"
        assert bob.received("SEND")[0].get("X-Source") == "127.0.0.1"
        assert not (await alice.send(path, b"no")).ok
        assert alice.received("")[-1].get("X-Why") == "because"
        assert (await alice.send(path, b"large" * 2000)).ok
        assert bytes((await bob.next_message()).data) == b"large" * 2000
    metrics = server.metrics()
    assert metrics.value("edge_policy_counts_total", label="send") == 3
    assert metrics.value("edge_policy_counts_total", label="auth") >= 2
