"""Linphone's daemon over TCP and TLS: it names an instance but no flow of its own, registers and writes messages."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import EdgeServer
from tests.interop.conftest import USERS, StartProgram
from tests.interop.programs import Program, needs
from tests.interop.test_baresip import rows, secured
from tests.ua.certs import Authority
from tests.ua.sip import SipUA
from tests.ua.wait import deadline, eventually

pytestmark = [pytest.mark.interop, needs("linphone-daemon")]

# Its own ports at random. It compares an address with the DNS names of a certificate alone, hence the chain is all it verifies.
_CONFIG = """\
[sip]
sip_port=-1
sip_tcp_port=-1
sip_tls_port=-1
root_ca={trust}
verify_server_cn=0
default_proxy=0

[proxy_0]
reg_proxy=<sip:127.0.0.1:{port};transport={transport}>
reg_route=<sip:127.0.0.1:{port};transport={transport};lr>
reg_identity=sip:alice@example.com
reg_sendregister=1
reg_expires=600

[auth_info_0]
username=alice
domain=example.com
passwd={password}
"""


class Linphone:
    """A running daemon, given orders over the socket it makes in /tmp; `log_text` has every message it saw."""

    def __init__(self, program: Program, socket: Path) -> None:
        self.program = program
        self.socket = socket

    async def __aenter__(self) -> Self:
        self.program.wait_for(self.socket.exists, what="making its socket")
        self._reader, self._writer = await asyncio.open_unix_connection(self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)
        self.socket.unlink(missing_ok=True)

    async def command(self, line: str) -> str:
        """Give one order and return what it answers; raises AssertionError if it refuses."""
        self._writer.write(line.encode() + b"\n")
        async with deadline(10):
            answer = (await self._reader.read(65536)).decode()
        assert answer.startswith("Status: Ok"), f"{line}: {answer}"
        return answer

    def log_text(self) -> str:
        """Its log so far, with all it sent and received."""
        return (self.program.directory / "daemon.log").read_text(errors="replace")


@dataclass
class Scene:
    """Alice at Linphone, Bob a simulated user agent, both registered."""

    server: EdgeServer
    alice: Linphone
    bob: SipUA


@pytest.fixture(params=["tcp", "tls"])
async def scene(
    request: pytest.FixtureRequest, edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path
) -> AsyncIterator[Scene]:
    authority = Authority(tmp_path / "ca")
    server = secured(edge, authority)
    directory = tmp_path / "linphone"
    (directory / ".local/share/linphone").mkdir(parents=True)  # without it, it has nowhere to keep messages
    values = {"port": server.port, "transport": request.param, "trust": authority.path}
    (directory / "rc").write_text(_CONFIG.format(**values, password=USERS["alice@example.com"]))
    name = f"linphone-{uuid.uuid4()}"
    arguments = ["linphone-daemon", "--config", "rc", "--log", "daemon.log", "--pipe", name]
    async with AsyncExitStack() as stack:
        program = start("linphone", arguments, directory)
        alice = await stack.enter_async_context(Linphone(program, Path("/tmp") / name))
        bob = SipUA("bob", USERS["bob@example.com"], server=("127.0.0.1", server.port), transport="tcp")
        await stack.enter_async_context(bob)
        assert (await bob.register()).status == 200

        async def registered() -> bool:
            return "State: LinphoneRegistrationOk" in await alice.command("register-status ALL")

        await eventually(registered, 15, what="Linphone's registration")
        yield Scene(server, alice, bob)


async def test_rfc5626_6_a_registration_without_reg_id_is_not_answered_as_an_outbound_one(scene: Scene) -> None:
    binding = next(row for row in rows(scene.server, "registrations") if row["aor"] == "alice@example.com")
    assert binding["reg_id"] == 0
    log = scene.alice.log_text()
    sent = re.findall(r"^REGISTER sip:.*?\r?\n\r?\n", log, re.MULTILINE | re.DOTALL)
    answers = re.findall(r"^SIP/2\.0 200 .*?\r?\n\r?\n", log, re.MULTILINE | re.DOTALL)
    assert re.search(r"^Supported:.*\boutbound\b", sent[-1], re.MULTILINE), sent[-1]
    assert "+sip.instance=" in sent[-1]
    assert "reg-id" not in sent[-1]
    assert "CSeq:" in answers[-1]
    assert "REGISTER" in answers[-1]
    assert not re.search(r"^(Require|Flow-Timer):", answers[-1], re.MULTILINE | re.IGNORECASE), answers[-1]


async def test_messages_both_ways(scene: Scene) -> None:
    scene.bob.on_request = lambda ua, request: 200
    await scene.alice.command("message sip:bob@example.com from Linphone")
    received = await eventually(lambda: scene.bob.received("MESSAGE"), 10, what="a MESSAGE")
    assert received[0].endswith(b"\r\n\r\nfrom Linphone")
    accepted = r"^SIP/2\.0 200 (?:[^\r\n]+\r?\n)*CSeq: \d+ MESSAGE"
    await eventually(lambda: re.search(accepted, scene.alice.log_text(), re.MULTILINE), what="the 200 to its MESSAGE")
    response = await scene.bob.message("sip:alice@example.com", b"to Linphone")
    assert response.status == 200
    # That 200 is its own: it came over the connection it registered with.
    assert "to Linphone" in scene.alice.log_text()
    assert scene.server.metrics().value("edge_connections_opened_total") == 2
