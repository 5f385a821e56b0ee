"""What a hook sees of MSRP frames, and what it can do with them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from edge.policy import MsrpFrame, SipRequest
from tests.conftest import EdgeServer
from tests.policy.conftest import PolicyFactory
from tests.server.agents import counted, msrp_client
from tests.ua.msrp import AuthFailed, MsrpEndpoint, MsrpListener
from tests.ua.wait import eventually, whole_lines

SEEN = """
    def msrp_frame(self, frame):
        import json
        request = frame.as_request()
        uri = frame.uri
        values = dict(
            method=frame.method, code=frame.code, tid=frame.transaction_id, previous=frame.previous_hop,
            current=frame.current_hop, next=frame.next_hop, first=frame.first_hop, last=frame.last_hop,
            done=frame.hops_done, left=frame.hops_left, session=frame.session_id, size=frame.size,
            body=frame.body.decode(), source=frame.source, address=frame.address, socket=frame.socket,
            transport=frame.transport, streamed=frame.streamed, type=frame.header("content-type"),
            ids=frame.headers("Message-ID"),
            uri=[uri.secure, uri.host, uri.port, uri.session_id.decode(), uri.transport.decode()],
            request=[request.method, str(request.uri), request.headers.get("Content-Type")],
        )
        with open("frames.txt", "a") as file:
            print(json.dumps(values), file=file)
"""


def seen(server: EdgeServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(server.directory / "frames.txt")]


def answers_seen(server: EdgeServer, uri: str) -> list[dict[str, Any]]:
    return [frame for frame in seen(server) if not frame["method"] and frame["previous"] == uri]


async def test_every_attribute_of_a_frame_and_of_its_uri_is_seen(with_policy: PolicyFactory) -> None:
    server = with_policy(SEEN)
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        await alice.auth()
        await bob.auth()
        sent = await alice.send([*alice.use_path, *bob.path], b"hello", message_id="m-1")
        await bob.next_message()
        await alice.send([*alice.use_path, *bob.path], b"large" * 400000)
        ours, theirs = alice.active_link.local, bob.active_link.local
        await eventually(lambda: answers_seen(server, bob.uri), what="an answer to the small message")
    frames = seen(server)
    (hello,) = [
        frame for frame in frames if frame["ids"] == ["m-1"] and frame["method"] == "SEND" and frame["left"] == 3
    ]
    first, second = alice.use_path[0], bob.use_path[0]
    host, port, identifier = "127.0.0.1", server.port, first.partition(";")[0].rpartition("/")[2]
    assert hello == {
        "method": "SEND", "code": 0, "tid": sent.responses[0].transaction_id, "previous": alice.uri, "current": first,
        "next": second, "first": alice.uri, "last": bob.uri, "done": 1, "left": 3, "session": identifier, "size": 5,
        "body": "hello", "source": ours[0], "address": list(ours[:2]), "socket": [host, port], "transport": "tcp",
        "streamed": False, "type": "text/plain", "ids": ["m-1"], "uri": [False, host, port, identifier, "tcp"],
        "request": ["SEND", f"sip:{host}:{theirs[1]}", "text/plain"],
    }  # fmt: skip
    (large,) = [frame for frame in frames if frame["size"] == 2000000]
    assert large["streamed"]
    for answer in answers_seen(server, bob.uri):
        assert (answer["code"], answer["request"][0]) == (200, "RESPONSE")
    assert [frame["method"] for frame in frames].count("AUTH") == 4


async def pair(alice: MsrpEndpoint, bob: MsrpEndpoint) -> list[str]:
    await alice.auth()
    await bob.auth()
    return [*alice.use_path, *bob.path]


async def test_bodies_and_headers_are_changed(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            if frame.method == "SEND" and not frame.streamed:
                frame.set_body(frame.body.upper() + b"!")
                frame.set_header("X-Was", str(frame.header("X-Was")) + "?")
                frame.remove_header("X-Secret")
    """)
    server.expect_traceback = True
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        path = await pair(alice, bob)
        for headers in ([], [("X-Was", "here"), ("X-Secret", "a"), ("X-Secret", "b")]):
            assert (await alice.send(path, b"hello", headers=headers)).ok
            assert bytes((await bob.next_message()).data) == b"HELLO!"
        assert (await alice.send(path, b"x" * 2000)).ok
        assert bytes((await bob.next_message()).data) == b"X" * 2000 + b"!"
        first, second, *_ = bob.received("SEND")
        assert first["Byte-Range"] == "1-6/6"
        assert (first["X-Was"], second["X-Was"]) == ("None?", "here?")
        assert second.get("X-Secret") is None
        part = await alice.send(path, b"part", byte_range="1-4/8")  # of a message whose rest is not there
        assert part.statuses == [500]
    assert server.metrics().value("edge_policy_errors_total", hook="msrp_frame") == 1


async def test_auth_is_let_in_without_a_password_or_asked_for_one(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            if frame.method == "AUTH" and frame.header("X-Guest"):
                session = frame.accept(frame.header("X-Guest"), 120)
                frame.count("guest_" + session.user)
            elif frame.method == "AUTH":
                frame.challenge()
            elif frame.method == "NICKNAME":
                frame.challenge()
            elif frame.method:
                frame.accept()
    """)
    async with msrp_client(server, "zoe", "tcp") as zoe, msrp_client(server, "bob", "tcp") as bob:
        with pytest.raises(AuthFailed) as failed:
            await zoe.auth(credentials=False)
        assert failed.value.status == 401
        await zoe.auth(headers=[("X-Guest", "zoe")])
        assert (zoe.expires, zoe.challenges) == (120, 0)
        await bob.auth()
        assert bob.challenges == 1
        path = [*zoe.use_path, *bob.path]
        assert (await zoe.send(path, b"hello")).ok
        assert bytes((await bob.next_message()).data) == b"hello"
        assert (await zoe.request("NICKNAME", path)).status == 403
    await counted(server, "edge_policy_counts_total", label="guest_zoe")


async def test_sessions_are_saved_and_looked_up_by_a_policy_alone(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            if frame.method == "AUTH":
                session = frame.save_session("somebody", 60)
                frame.reply(200, "Welcome", [("Use-Path", session.uri.raw.decode()), ("Expires", "60")])
            elif frame.method == "SEND":
                session = frame.look_up(frame.current_hop)
                frame.count("known" if session is not None and session.user == "somebody" else "unknown")
                if session is None:
                    frame.reject(481, "Who?", close_after=True)
    """)
    async with msrp_client(server, "zoe", "tcp") as zoe, msrp_client(server, "bob", "tcp") as bob:
        path = await pair(zoe, bob)
        assert zoe.challenges == bob.challenges == 0
        assert (await zoe.send(path, b"hello")).ok
        before, slash, identifier = zoe.use_path[0].rpartition("/")
        wrong = f"{before}{slash}x{identifier}"
        refused = await zoe.send([wrong, *bob.path], b"hello")
        assert (refused.statuses, refused.responses[0].comment) == ([481], "Who?")
        await zoe.wait_closed()
    metrics = server.metrics()
    assert metrics.value("edge_policy_counts_total", label="known") == 1
    assert metrics.value("edge_policy_counts_total", label="unknown") == 1
    assert metrics.value("edge_connections_closed_total", reason="policy") == 1


async def test_a_frame_is_dropped_or_only_goes_where_a_connection_is_or_as_the_last_of_it(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            wanted = frame.header("X-Wanted")
            if wanted == "drop":
                frame.drop()
            elif wanted == "existing":
                frame.relay(existing_only=True)
            elif wanted == "close":
                frame.relay(close_after=True)
            elif wanted:
                frame.relay(next_hop=wanted)
    """)
    far = MsrpListener("far")
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob, far:
        path = await pair(alice, bob)

        async def send(to_path: list[str], wanted: str, **options: Any) -> list[int]:
            sent = await alice.send(to_path, b"hello", headers=[("X-Wanted", wanted)], **options)
            return sent.statuses

        assert await send([*alice.use_path, "msrp://127.0.0.1:9/nobody;tcp"], "existing") == [481]
        assert await send(path, "existing") == [200]
        assert await send(path, "close") == [200]
        await bob.wait_closed()
        await bob.connect()
        with pytest.raises(TimeoutError):
            await send(path, "drop", seconds=0.5)
        nowhere = "msrp://127.0.0.1:9/somebody;tcp"
        sent = await alice.send([alice.use_path[0], nowhere], b"hello", headers=[("X-Wanted", far.uri)])
        assert sent.ok
        (received,) = await eventually(lambda: far.received("SEND"))
        assert received.to_path == [nowhere]


async def test_an_exception_answers_500_for_that_frame_alone(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def msrp_frame(self, frame):
            if frame.method == "SEND" and (frame.streamed or b"bad" in frame.body):
                raise RuntimeError("no idea")
    """)
    server.expect_traceback = True
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        path = await pair(alice, bob)
        assert (await alice.send(path, b"bad")).statuses == [500]
        assert (await alice.send(path, b"streamed" * 20000)).statuses == [500]
        assert (await alice.send(path, b"good")).ok
        assert bytes((await bob.next_message()).data) == b"good"
    assert server.metrics().value("edge_policy_errors_total", hook="msrp_frame") == 2
    assert "policy hook failed hook=msrp_frame error=RuntimeError: no idea" in server.log_text()


def test_what_means_the_same_has_the_same_name_in_both_protocols() -> None:
    both = {
        "accept", "add_header", "address", "body", "challenge", "code", "count", "drop", "header", "headers", "identities",
        "method", "publish", "reject", "relay", "remove_header", "reply", "set_body", "set_header", "size", "socket",
        "source", "tag", "tagged", "transport",
    }  # fmt: skip
    assert both <= set(dir(SipRequest)) & set(dir(MsrpFrame))
    for name in ("relay", "reject", "add_header", "set_header", "remove_header"):
        sip, msrp = (set(inspect.signature(getattr(kind, name)).parameters) for kind in (SipRequest, MsrpFrame))
        assert sip == msrp, name


async def test_a_frame_starts_an_event(with_policy: PolicyFactory) -> None:
    server = with_policy(
        """
        def msrp_frame(self, frame):
            if frame.method == "SEND":
                frame.publish("large" if frame.size > 9 else "small", size=frame.size)
    """,
        hooks=[{"name": "large", "events": ["policy.large"], "filter": {"size": [10]}, "exec": ["/bin/true"]}],
    )
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        path = await pair(alice, bob)
        for size in (5, 10, 11):
            assert (await alice.send(path, b"x" * size)).ok
    await counted(server, "edge_hook_events_total", hook="large", result="done")
    assert server.metrics().value("edge_hook_events_total", hook="large", result="started") == 1
