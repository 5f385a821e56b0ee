"""A hook that raises: what happens to what it was asked about, and that nothing else notices."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus

from tests.policy.conftest import PolicyFactory
from tests.server.agents import all_registered, answering, counted, msrp_client, sip_ua
from tests.ua.msrp import AuthFailed
from tests.ua.sip import CallFailed

KINDS = pytest.mark.parametrize("kind", ["def", "async def"])


def raising(kind: str, hook: str, when: str = "True") -> str:
    return f"""
        {kind} {hook}(self, what):
            if {when}:
                raise RuntimeError("no idea")
    """


@KINDS
async def test_a_connection_is_refused(with_policy: PolicyFactory, kind: str) -> None:
    server = with_policy(raising(kind, "connection_accepted", "what.transport == 'tcp'"))
    server.expect_traceback = True
    with pytest.raises((OSError, EOFError, TimeoutError, AssertionError)):
        async with sip_ua(server, "bob", "tcp") as bob:
            await bob.register()
    async with sip_ua(server, "alice", "tls") as alice:
        assert (await alice.register()).status == 200
    assert server.metrics().value("edge_policy_errors_total", hook="connection_accepted") == 1
    assert server.metrics().value("edge_connections_refused_total", reason="policy") == 1


@KINDS
async def test_a_handshake_is_answered_500(with_policy: PolicyFactory, kind: str) -> None:
    server = with_policy(raising(kind, "websocket_upgrade", "what.transport == 'tcp' and what.path == '/bad'"))
    server.expect_traceback = True
    with pytest.raises(InvalidStatus) as failed:
        async with sip_ua(server, "bob", "ws", path="/bad"):
            pass
    assert failed.value.response.status_code == 500
    async with sip_ua(server, "alice", "ws") as alice:
        assert (await alice.register()).status == 200
    assert server.metrics().value("edge_policy_errors_total", hook="websocket_upgrade") == 1


@KINDS
@pytest.mark.parametrize(("hook", "status"), [("sip_request", 500), ("registration", 500), ("user_known", 403)])
async def test_a_register_is_refused(with_policy: PolicyFactory, kind: str, hook: str, status: int) -> None:
    user = {"sip_request": "what.from_uri", "registration": "what.user", "user_known": "what.name"}[hook]
    server = with_policy(raising(kind, hook, f"'bob' in {user}"))
    server.expect_traceback = True
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        assert (await bob.register()).status == status
        assert (await alice.register()).status == 200
    assert server.metrics().value("edge_policy_errors_total", hook=hook) == 1
    assert f"policy hook failed hook={hook} error=RuntimeError: no idea" in server.log_text()


@KINDS
async def test_a_user_of_msrp_is_refused(with_policy: PolicyFactory, kind: str) -> None:
    server = with_policy(raising(kind, "user_known", "what.name == 'bob'"))
    server.expect_traceback = True
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        with pytest.raises(AuthFailed) as failed:
            await bob.auth()
        assert failed.value.status == 403
        await alice.auth()


@KINDS
async def test_a_branch_is_left_out_and_a_response_passed_on(with_policy: PolicyFactory, kind: str) -> None:
    server = with_policy(
        raising(kind, "before_forward", "what.body == b'bad'") + raising(kind, "sip_response", "what.code == 202")
    )
    server.expect_traceback = True
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        bob.on_request = answering(202)
        assert (await alice.message(bob.uri, b"bad")).status == 480
        assert (await alice.message(bob.uri, b"good")).status == 202
    metrics = server.metrics()
    assert metrics.value("edge_policy_errors_total", hook="before_forward") == 1
    assert metrics.value("edge_policy_errors_total", hook="sip_response") == 1


@KINDS
async def test_the_end_of_a_call_happens_all_the_same(with_policy: PolicyFactory, kind: str) -> None:
    server = with_policy(raising(kind, "ended"))
    server.expect_traceback = True
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        bob.on_request = answering(486)
        for _ in range(2):
            with pytest.raises(CallFailed) as failed:
                await alice.invite(bob.uri)
            assert failed.value.response.status == 486
        await counted(server, "edge_policy_errors_total", 2, hook="ended")
    assert server.log_text().count("policy hook failed hook=ended") == 1  # one line a second


async def test_an_answer_is_dropped_as_if_it_had_not_come(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_response(self, response):
            if response.code == 486:
                response.drop()
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        bob.on_request = answering(486)
        with pytest.raises(TimeoutError):
            await alice.message(bob.uri, b"x", timeout=0.5)
        bob.on_request = answering(202)
        assert (await alice.message(bob.uri, b"x")).status == 202
