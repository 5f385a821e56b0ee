"""docs/examples/sip_edge.py with programs nobody here wrote: SIPp on both sides, and baresip as telephone."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT, EdgeServer, EdgeServerFactory, free_port
from tests.interop.baresip import installed
from tests.interop.conftest import LOOPBACK, USERS, StartProgram
from tests.interop.programs import Program, needs, udp_bound
from tests.interop.test_baresip import call, phone, registered
from tests.interop.test_sipp import MD5_ONLY, SCENARIOS, both_transports, messages, sipp
from tests.interop.test_sipp_calls import CALLS, caller
from tests.ua.certs import Authority

pytestmark = [pytest.mark.interop, needs("sipp")]

MODULE = """
from sip_edge import SipEdge

class Mine(SipEdge):
    blocked_file = "blocked.txt"
    upstreams = ("127.0.0.1:{first}", "127.0.0.1:{second}")
"""


def start_edge(edge_server: EdgeServerFactory, first: int, second: int) -> EdgeServer:
    """Start the server with the example; two ports of this machine are the upstreams."""
    config = {
        "auth": MD5_ONLY,
        "sip": {"allow_targets": LOOPBACK},
        "limits": {"trusted": LOOPBACK},
        "policy": {"module": "mine:Mine"},
    }
    server = edge_server(config, USERS, started=False)
    shutil.copy(ROOT / "docs" / "examples" / "sip_edge.py", server.directory)
    (server.directory / "mine.py").write_text(MODULE.format(first=first, second=second))
    (server.directory / "blocked.txt").write_text("")
    server.start()
    return server


def upstream(start: StartProgram, server: EdgeServer, name: str, port: int, *arguments: object) -> Program:
    """Start SIPp as an upstream and wait for its socket."""
    program = sipp(start, server, name, *arguments, "-p", port, mode="u1")
    program.wait_for(lambda: udp_bound(port), what="a socket")
    return program


@both_transports
def test_calls_to_a_number_go_to_the_second_upstream_when_the_first_has_no_room(
    edge_server: EdgeServerFactory, start: StartProgram, transport: str
) -> None:
    ports = free_port(), free_port()
    server = start_edge(edge_server, *ports)
    full, free = (
        upstream(start, server, scenario, port, "-sf", SCENARIOS / f"{scenario}.xml", "-m", CALLS)
        for scenario, port in zip(("callee_has_no_room", "callee_answers"), ports, strict=True)
    )
    program = caller(start, server, "caller_calls", transport, called="0049301234567")
    assert [each.wait() for each in (program, full, free)] == [0, 0, 0], program.report() + full.report()
    assert messages(free, "received", r"INVITE sip:\+49301234567@") == CALLS
    assert messages(free, "received", "BYE") == CALLS


@pytest.mark.skipif(not installed(), reason="not installed: baresip")
async def test_a_telephone_registers_and_calls_another_and_a_number(
    edge_server: EdgeServerFactory, start: StartProgram, tmp_path: Path
) -> None:
    port, nobody = free_port(), free_port()
    server = start_edge(edge_server, port, nobody)
    gateway = upstream(start, server, "gateway", port, "-sf", SCENARIOS / "callee_speaks.xml", "-m", 1)
    trust = Authority(tmp_path / "ca").path
    async with AsyncExitStack() as stack:
        alice, bob = [await phone(stack, start, server, name, "tcp", trust) for name in ("alice", "bob")]
        for end in (alice, bob):
            await registered(end)
        await call(alice, bob, "sip:bob@example.com")
        alice.events.clear()
        await alice.command("dial", "sip:0049301234567@example.com")
        await alice.event("CALL_ESTABLISHED")
        await alice.command("hangup")
        await alice.event("CALL_CLOSED")
    assert gateway.wait() == 0, gateway.report()
    assert messages(gateway, "received", r"INVITE sip:\+49301234567@") == 1
    assert messages(gateway, "received", "BYE") == 1
