"""The default policy answers as the server does without one: the same conversations with both, message by message."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from tests.conftest import ROOT, EdgeServer, EdgeServerFactory
from tests.server.agents import LOOPBACK, USERS, answering, counted, msrp_client, open_config, sip_ua
from tests.ua.msrp import AuthFailed, MsrpEndpoint
from tests.ua.msrp_message import Frame
from tests.ua.sip import CallFailed, SipUA
from tests.ua.sip_message import Request, Response

DEFAULT = {"module": "edge.policy.default:DefaultPolicy"}
Told = list[Any]


def shape(message: Response | Request | bytes) -> tuple[Any, ...]:
    """What must be the same: first line without ports and tokens, names of headers in their order, body, challenges."""
    asked = message.challenges if isinstance(message, Response) else 0
    raw = message if isinstance(message, bytes) else message.raw
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    names = [line.partition(":")[0] for line in lines]
    tokens = [re.sub(r"[\w.~-]{20,}@", "TOKEN@", line) for line in lines if line.startswith(("Record-Route", "Path"))]
    return (*(re.sub(r":[0-9]{2,5}|[0-9a-z]+\.invalid", "HOST", line) for line in (first, *tokens)), names, body, asked)


def frame_shape(frame: Frame) -> tuple[Any, ...]:
    names = [name for name, _ in frame.headers]
    return frame.method, frame.status, frame.comment, names, len(frame.to_path), len(frame.from_path)


async def registering(server: EdgeServer, told: Told) -> None:
    async with sip_ua(server, "alice", "tcp", reg_id=1) as alice, sip_ua(server, "bob", "udp") as bob:
        for response in (
            await alice.register(auth=False), await alice.register(), await alice.register(7200), await alice.register(5),
            await bob.register(), await alice.register(headers=[("Require", "nonsense")]),
            await bob.register(headers=[("To", "<sip:alice@example.com>")]),
            await bob.register(headers=[("To", "<sip:alice@far.example>")]),
            await alice.unregister(), await bob.register(contact="*", expires=0),
        ):  # fmt: skip
            told.append(shape(response))
        eve = SipUA("alice", "wrong", server=("127.0.0.1", server.port), transport="tcp")
        async with eve:
            told.append(shape(await eve.register()))


async def messages(server: EdgeServer, told: Told) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "ws"))
        far = await stack.enter_async_context(sip_ua(server, "far", domain="far.example"))
        assert (await alice.register()).status == (await bob.register()).status == 200
        bob.on_request = answering(202)
        for sender in (alice, far):
            for uri in (
                bob.uri, "sips:bob@example.com", "sip:nobody@example.com", "sip:erin@example.com", "sip:example.com",
                "sip:x@127.0.0.1:9;transport=tcp", "sip:bob@example.com?Subject=x", "tel:+1", bob.contact_uri(),
                "sip:bob@example.com;gr=nothing",
            ):  # fmt: skip
                told.append((uri[:8], shape(await sender.message(uri, b"hello"))))
                told.append(shape(await sender.message(uri, b"hello", auth=False)))
            told.append(shape(await sender.options("sip:example.com")))
            told.append(shape(await sender.request("INFO", "sip:example.com")))
            told.append(shape(await sender.request("INFO", "sip:example.com", to="<sip:example.com>;tag=x")))
            told.append(shape(await sender.message(bob.uri, b"x", headers=[("Max-Forwards", "0")])))
            told.append(shape(await sender.message(bob.uri, b"x", headers=[("Proxy-Require", "nonsense")])))
            told.append(shape(await sender.request("CANCEL", bob.uri, auth=False)))
            for route in ("<sip:127.0.0.1:9;transport=tcp;lr>", f"<sip:nothing@127.0.0.1:{server.port};lr>"):
                told.append(shape(await sender.message(bob.uri, b"x", headers=[("Route", route)])))
        told += map(shape, bob.received("MESSAGE"))


async def calls(server: EdgeServer, told: Told) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice", "tcp", reg_id=1))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "tcp", reg_id=1))
        assert (await alice.register()).status == (await bob.register()).status == 200
        call = alice.start_invite(bob.uri, b"v=0\r\n")
        invite = await bob.next_request("INVITE")
        answered = bob.accept(invite, b"v=1\r\n")
        dialog = await call.dialog()
        assert dialog.response is not None
        await dialog.ack()
        told += [shape(invite), shape(dialog.response), shape(await bob.next_request("ACK"))]
        bob.on_request = alice.on_request = answering()
        told += [shape(await dialog.request("INFO")), shape(await answered.request("INFO"))]
        forged = [re.sub(r"sip:(.{40})....", r"sip:\1AAAA", route) for route in dialog.route_set]
        uri, _ = dialog.target()
        lines = [("Route", route) for route in forged]
        told.append(shape(await alice.request("INFO", uri, to=dialog.remote, headers=lines)))
        told.append(shape(await alice.request("INFO", uri, headers=lines)))
        await bob.stop()
        await counted(server, "edge_connections_closed_total", reason="eof")
        told.append(shape(await dialog.request("INFO")))
        told.append(shape(await alice.message(bob.uri, b"gone")))
        bob = await stack.enter_async_context(sip_ua(server, "bob", "udp"))
        await bob.register()
        call = alice.start_invite(bob.uri)
        invite = await bob.next_request("INVITE")
        bob.respond(invite, 180)
        told.append(shape(await call.provisional(180)))
        told.append(shape(await call.cancel()))
        bob.respond(await bob.next_request("CANCEL"), 200)
        bob.respond(invite, 487)
        told.append(shape(await call.result()))
        bob.on_request = answering(486)
        with pytest.raises(CallFailed) as failed:
            await alice.invite(bob.uri)
        told.append(shape(failed.value.response))


async def frames(server: EdgeServer, told: Told) -> None:
    eve = MsrpEndpoint("alice", "wrong", relay=("127.0.0.1", server.port))
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob, eve:
        for client, options in ((eve, {}), (alice, {"credentials": False}), (alice, {"expires": 1})):
            with pytest.raises(AuthFailed) as failed:
                await client.auth(**options)
            told.append(frame_shape(failed.value.frame))
        await alice.auth()
        await bob.auth(600)
        path = [*alice.use_path, *bob.path]
        for body in (b"hello", b"large" * 20000):
            sent = await alice.send(path, body, success_report="yes")
            told += map(frame_shape, sent.responses)
            received = await bob.next_message()
            told.append(bytes(received.data))
            bob.report(received)
            told.append(frame_shape(await alice.next_report()))
        told.append(frame_shape(bob.received("SEND")[0]))
        unknown = path[0].rpartition("/")[0] + "/unknown;tcp"
        for to_path in ([unknown, *bob.path], [path[0]], [path[0], path[0], *bob.path], [path[0], "msrp://x"]):
            told += map(frame_shape, (await alice.send(to_path, b"hello")).responses)
        told += map(frame_shape, (await bob.send(path, b"not the owner")).responses)
        keepalive = await alice.send([path[0]], None)
        told += map(frame_shape, keepalive.responses)
        waiting = asyncio.create_task(alice.request("NICKNAME", path, [("Use-Nickname", '"al"')]))
        bob.respond(await bob.next_request(), 200)
        told.append(frame_shape(await waiting))
        told.append(frame_shape(await alice.request("BOGUS", [path[0]])))
        with pytest.raises(AuthFailed) as failed:
            await eve.auth(to_path=[path[0]])
        told.append(frame_shape(failed.value.frame))


Conversation = Callable[[EdgeServer, Told], Awaitable[None]]


async def compare(plain: EdgeServer, other: EdgeServer, conversation: Conversation, least: int) -> None:
    told: list[Told] = [[], []]
    for server, list_ in zip((plain, other), told, strict=True):
        await conversation(server, list_)
    assert len(told[0]) >= least
    assert told[0] == told[1]
    assert (
        sum(other.metrics().value("edge_policy_errors_total", hook=name) for name in ("sip_request", "msrp_frame")) == 0
    )


@pytest.mark.parametrize(
    ("conversation", "least"),
    [(registering, 11), (messages, 58), (calls, 13), (frames, 19)],
    ids=lambda v: getattr(v, "__name__", ""),
)
async def test_the_default_policy_answers_as_no_policy_does(
    edge_server: EdgeServerFactory, conversation: Conversation, least: int
) -> None:
    plain = edge_server(open_config(), USERS)
    other = edge_server({**open_config(), "policy": DEFAULT}, USERS)
    await compare(plain, other, conversation, least)


@pytest.mark.parametrize("conversation", [registering, messages, calls], ids=lambda v: v.__name__)
async def test_the_default_policy_answers_as_no_policy_does_where_nobody_is_asked_for_a_password(
    edge_server: EdgeServerFactory, conversation: Conversation
) -> None:
    config = {**open_config(), "auth": {"required": False}}
    await compare(edge_server(config, USERS), edge_server({**config, "policy": DEFAULT}, USERS), conversation, 11)


@pytest.mark.parametrize("conversation", [registering, messages, calls], ids=lambda v: v.__name__)
async def test_the_default_policy_answers_as_no_policy_does_at_an_edge(
    edge_server: EdgeServerFactory, conversation: Conversation
) -> None:
    made = []
    for policy in ({}, {"policy": DEFAULT}):
        home = edge_server({**open_config(sip={"trusted_edges": LOOPBACK}), "role": "registrar", **policy}, USERS)
        next_hop = f"sip:127.0.0.1:{home.port};transport=tcp"
        made.append(edge_server({**open_config(sip={"next_hop": next_hop}), "role": "edge", **policy}))
    await compare(made[0], made[1], conversation, 11)


MINE = """
from edge.policy import AddressList, MethodRates, ScannerList
from edge.policy.default import DefaultPolicy

class Mine(DefaultPolicy):
    blocked = AddressList(networks=["127.0.0.9/32"])
    scanners = ScannerList()
    rates = MethodRates({"OPTIONS": (0.001, 2), "SEND": (0.001, 1)})
"""


SCANNER = (
    b"OPTIONS sip:example.com SIP/2.0\r\nVia: %b\r\nMax-Forwards: 70\r\nFrom: <sip:eve@far.example>;tag=1\r\n"
    b"To: <sip:example.com>\r\nCall-ID: scan\r\nCSeq: 1 OPTIONS\r\nUser-Agent: friendly-scanner\r\nContent-Length: 0\r\n\r\n"
)


async def test_the_lists_of_the_default_policy_need_only_be_filled(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(policy={"module": "mine:Mine"}), USERS, started=False)
    (server.directory / "mine.py").write_text(MINE)
    server.start()
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, 10, source_address=("127.0.0.9", 0)) as eve:
        eve.sendall(b"OPTIONS ")
        with suppress(ConnectionResetError):
            assert eve.recv(1) == b""
    async with sip_ua(server, "alice") as alice:
        alice.send_request(SCANNER % alice.via().encode())
        assert [(await alice.options("sip:example.com")).status for _ in range(3)] == [200, 200, 503]
    assert await counted(server, "edge_connections_refused_total", reason="policy") == 1
    assert await counted(server, "edge_sip_rejected_total", reason="policy_dropped") == 1


def test_the_default_policy_is_short_and_uses_the_public_package_alone() -> None:
    source = (ROOT / "edge" / "policy" / "default.py").read_text()
    assert len(source.splitlines()) <= 120
    imported = re.findall(r"^from (\S+) import (.*)$", source, re.MULTILINE)
    public = re.findall(r"import (\w+) as", (ROOT / "edge" / "policy" / "__init__.py").read_text())
    for module, names in imported[2:]:  # behind `annotations` and `ClassVar`
        assert module.startswith("edge.policy.")
        assert set(names.split(", ")) <= set(public)
    assert not re.search(r"\._|\.tools|\.message\b|\.connection\b", source.partition('"""')[2])
