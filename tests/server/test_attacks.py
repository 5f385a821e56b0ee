"""Inputs made to cost much, without end, and a call in between them (SIP-DOS-02)."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, open_config, sip_ua
from tests.ua.sip import SipUA
from tests.ua.sip_message import Request
from tests.ua.wait import eventually, scaled

LAG_S = 0.05
SETUP_S = 0.2
CALLS = 20
VOLLEY = 42
UNDER_ATTACK_S = 6.0  # the server looks at its lag once a second

VALUES = b",".join([b"<sip:a@h.example;x=y>"] * 350)
HOSTILE: list[tuple[bytes, dict[bytes, bytes], bytes]] = [  # method, headers replaced, further lines
    (b"REGISTER", {}, b"Authorization: Digest " + b"".join(b'a%d="x", ' % n for n in range(600)) + b"!\r\n"),
    (b"REGISTER", {}, b'Authorization: Digest username="' + b'\\"' * 3900 + b"\r\n"),
    (b"REGISTER", {}, b"Contact: " + VALUES + b"\r\n"),
    (b"INVITE", {b"From": b'"' + b'" <' * 2600}, b""),
    (b"INVITE", {b"To": b"tel:" + b"1" * 8000 + b"!"}, b""),
    (b"INVITE", {}, b"".join(b"X-%d: 1\r\n" % n for n in range(240))),
    (b"INVITE", {}, (b"Route: " + VALUES + b"\r\n") * 3),
    (b"MESSAGE", {}, b"Via: SIP/2.0/UDP h.example" + b";p=1" * 1900 + b"\r\n"),
    (b"MESSAGE", {}, b"Via: " + b",".join([b"SIP/2.0/UDP h.example;branch=z9hG4bK1"] * 120) + b"\r\n"),
    (b"MESSAGE", {b"From": b"<sip:a@" + b"a." * 3900 + b"example>;tag=1"}, b""),
    (b"OPTIONS", {}, b"Supported: " + b"," * 8000 + b"\r\n"),
    (b"OPTIONS", {}, b"Subject: " + b'"' * 8000 + b"\r\n"),
    (b"ACK", {}, b""),
    (b"OPTIONS", {}, b""),
]


def hostile_messages(transport: bytes) -> Iterator[bytes]:
    """Go round the list without end; each message is one of its own."""
    for method, replaced, lines in itertools.cycle(HOSTILE):
        mark = secrets.token_hex(8).encode()
        headers = {
            b"Via": b"SIP/2.0/%b 127.0.0.1;branch=z9hG4bK%b;rport" % (transport, mark),
            b"Max-Forwards": b"70",
            b"From": b"<sip:x@far.example>;tag=1",
            b"To": b"<sip:alice@example.com>",
            b"Call-ID": mark,
            b"CSeq": b"1 " + method,
            b"Content-Length": b"0",
        } | replaced
        head = b"".join(b"%b: %b\r\n" % pair for pair in headers.items())
        yield method + b" sip:example.com SIP/2.0\r\n" + head + lines + b"\r\n"


class Attacker(threading.Thread):
    """Sends as much as is taken, on a thread of its own, until `over`; reads what comes back.

    On a stream it comes again when hung up on. Datagrams would be lost: there it waits for answers now and then.
    """

    def __init__(self, address: tuple[str, int], kind: socket.SocketKind) -> None:
        super().__init__(daemon=True)
        self.address, self.kind = address, kind
        self.over = threading.Event()
        self.sent = 0

    def run(self) -> None:
        messages = hostile_messages(b"TCP" if self.kind is socket.SOCK_STREAM else b"UDP")
        while not self.over.is_set():
            with socket.socket(socket.AF_INET, self.kind) as wire:
                wire.connect(self.address)
                if self.kind is socket.SOCK_STREAM:
                    self._pour(wire, messages)
                else:
                    self._volley(wire, messages)

    def _pour(self, wire: socket.socket, messages: Iterator[bytes]) -> None:
        reader = threading.Thread(target=_drain, args=(wire,), daemon=True)
        reader.start()
        with suppress(OSError):
            while not self.over.is_set():
                wire.sendall(next(messages))
                self.sent += 1
        with suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)
        reader.join()

    def _volley(self, wire: socket.socket, messages: Iterator[bytes]) -> None:
        wire.settimeout(0.5)
        while not self.over.is_set():
            for message in itertools.islice(messages, VOLLEY):
                wire.send(message)
                self.sent += 1
            with suppress(TimeoutError):
                for _ in range(VOLLEY // 2):
                    wire.recv(65536)


def _drain(wire: socket.socket) -> None:
    with suppress(OSError):
        while wire.recv(65536):
            pass


@contextmanager
def attack(server: EdgeServer, *kinds: socket.SocketKind) -> Iterator[list[Attacker]]:
    """Have attackers of these kinds at work meanwhile."""
    attackers = [Attacker(("127.0.0.1", server.port), kind) for kind in kinds]
    for attacker in attackers:
        attacker.start()
    try:
        yield attackers
    finally:
        for attacker in attackers:
            attacker.over.set()
        for attacker in attackers:
            attacker.join()


def accept(agent: SipUA, request: Request) -> None:
    """Answer a call at once, and its end."""
    if request.method == "INVITE":
        agent.accept(request)
    elif request.method != "ACK":
        agent.respond(request, 200)


async def set_up_a_call(caller: SipUA, callee: SipUA) -> float:
    """Call, and hang up; returns the seconds from the INVITE to its 200."""
    began = asyncio.get_running_loop().time()
    dialog = await caller.invite(callee.uri, timeout=20)
    took = asyncio.get_running_loop().time() - began
    await dialog.ack()
    assert (await dialog.bye()).status == 200
    return took


@pytest.mark.slow
@pytest.mark.requirement("SIP-DOS-02")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
async def test_a_call_is_set_up_while_the_parser_is_under_attack(
    edge_server: EdgeServerFactory, kind: socket.SocketKind
) -> None:
    """The figures are the row's. Half the calls may take longer: the machine has other things to do as well."""
    server = edge_server(open_config(), USERS)
    loop = asyncio.get_running_loop()
    async with sip_ua(server, "alice", "tcp") as alice, sip_ua(server, "bob", "tcp") as bob:
        await alice.register()
        await bob.register()
        bob.on_request = accept
        with attack(server, kind, kind) as attackers:
            await eventually(lambda: sum(attacker.sent for attacker in attackers) > 1000, 30)
            began, took = loop.time(), list[float]()
            while len(took) < CALLS or loop.time() < began + UNDER_ATTACK_S:
                took.append(await set_up_a_call(alice, bob))
            assert all(attacker.is_alive() for attacker in attackers)
            assert statistics.median(took) < scaled(SETUP_S)
            await eventually(
                lambda: server.metrics().value("edge_loop_lag_seconds") < scaled(LAG_S), 60, what="little lag"
            )
