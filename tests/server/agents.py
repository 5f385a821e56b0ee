"""What the tests of the running server share: the usual configuration, agents that belong to it, its counters."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.ua.msrp import MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.sip_dialog import Call, Dialog
from tests.ua.sip_message import Request, Response
from tests.ua.wait import eventually, whole_lines

STREAMS = ("tcp", "tls", "ws", "wss")
TRANSPORTS = ("udp", *STREAMS)

LOOPBACK = ["127.0.0.0/8", "::1/128"]
USERS = {f"{name}@example.com": f"{name}-secret" for name in ("alice", "bob", "carol", "dave", "erin")}


def open_config(**sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which MSRP also works without TLS and towards this machine; sections are merged into it."""
    config: dict[str, Any] = {
        "msrp": {"require_tls": False, "allow_targets": LOOPBACK},
        "sip": {"allow_targets": LOOPBACK},
        "limits": {"trusted": LOOPBACK},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    return config


def sip_ua(server: EdgeServer, name: str, transport: str = "tcp", **options: Any) -> SipUA:
    """A user of `USERS` on a transport, not started yet."""
    host = options.pop("host", "127.0.0.1")
    port = options.pop("port", server.port)
    return SipUA(name, f"{name}-secret", server=(host, port), transport=transport, local_host=host, **options)


def msrp_client(server: EdgeServer, name: str, transport: str = "tls", **options: Any) -> MsrpEndpoint:
    """A user of `USERS` as MSRP client, not connected yet."""
    host = options.pop("host", "127.0.0.1")
    port = options.pop("port", server.port)
    return MsrpEndpoint(name, f"{name}-secret", relay=(host, port), transport=transport, host=host, **options)


async def enrolled(
    server: EdgeServer, stack: AsyncExitStack, name: str, transport: str = "tls", **options: Any
) -> MsrpEndpoint:
    """A user of `USERS` as MSRP client with a Use-Path, until the stack is left."""
    client = await stack.enter_async_context(msrp_client(server, name, transport, **options))
    await client.auth()
    return client


def answering(status: int = 200) -> Callable[[SipUA, Request], int]:
    """An `on_request` that answers everything with one status."""
    return lambda ua, request: status


async def registered(
    server: EdgeServer, stack: AsyncExitStack, name: str, transport: str = "tcp", **options: Any
) -> SipUA:
    """A user of `USERS`, registered, until the stack is left."""
    agent = await stack.enter_async_context(sip_ua(server, name, transport, **options))
    assert (await agent.register()).status == 200
    return agent


async def all_registered(server: EdgeServer, stack: AsyncExitStack, *names: str) -> list[SipUA]:
    """Users of `USERS` over TCP, registered in this order, until the stack is left."""
    return [await registered(server, stack, name) for name in names]


async def cancelled_while_ringing(caller: SipUA, callee: SipUA) -> tuple[Call, Request, Request]:
    """A call that rang and was cancelled: the caller's side, and the INVITE and CANCEL that wait for an answer."""
    call = caller.start_invite(callee.uri)
    invite = await callee.next_request("INVITE")
    callee.respond(invite, 180)
    await call.provisional(180)
    assert (await call.cancel()).status == 200
    return call, invite, await callee.next_request("CANCEL")


async def ringing_and_taken(call: Call, callee: SipUA, invite: Request) -> tuple[Dialog, Dialog]:
    """A call that rings, is taken and acknowledged: the caller's dialog, and the callee's."""
    callee.respond(invite, 180)
    await call.provisional(180)
    answered = callee.accept(invite, b"v=1\r\n")
    dialog = await call.dialog()
    await dialog.ack()
    await callee.next_request("ACK")
    return dialog, answered


async def exchange_messages(caller: SipUA, callee: SipUA, body: bytes = b"hello") -> Response:
    """MESSAGE from one registered user to another, answered 200; returns that answer."""
    callee.on_request = answering()
    return await caller.message(callee.uri, body)


async def counted(server: EdgeServer, name: str, at_least: float = 1, **labels: str) -> float:
    """Wait until a counter of /metrics has reached `at_least` and return it."""
    return await eventually(
        lambda: (value := server.metrics().value(name, **labels)) >= at_least and value,
        what=f"{name}{labels} >= {at_least}",
    )


def ended(server: EdgeServer) -> dict[str, float]:
    """Every counter of an end or refusal with its reason: what to compare before and after a test's trouble."""
    metrics = server.metrics()
    names = ("edge_connections_closed_total", "edge_connections_failed_total", "edge_connections_refused_total")
    return {f"{s.name}:{s.labels['reason']}": s.value for s in metrics.samples if s.name in names}


async def connections_open(server: EdgeServer, count: int, **labels: str) -> None:
    """Wait until exactly so many connections are open."""
    await eventually(
        lambda: server.metrics().value("edge_connections", **labels) == count, what=f"{count} connections open"
    )


_HOOK = """
def told(event):
    with open("events.jsonl", "a") as file:
        file.write(__import__("json").dumps(event) + "\\n")
"""


def start_with_flow_events(edge_server: EdgeServerFactory, config: dict[str, Any], queue: int = 1000) -> EdgeServer:
    """A server whose flow events are kept in a file, for `flow_events`."""
    server = edge_server(
        {**config, "hooks": [{"events": ["flow.*"], "call": "keeping:told", "queue": queue}]}, started=False
    )
    (server.directory / "keeping.py").write_text(_HOOK)
    server.start()
    return server


def flow_events(server: EdgeServer, kind: str) -> list[dict[str, Any]]:
    """The events of one name that were told so far; all of them once the server was stopped."""
    path = server.directory / "events.jsonl"
    return [event for event in map(json.loads, whole_lines(path)) if event["event"] == kind]
