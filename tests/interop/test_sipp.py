"""SIPp: its built-in caller and callee, and a registration with digest, over UDP and TCP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.capture import Capture, check_sip
from tests.interop.conftest import StartProgram
from tests.interop.programs import Program, needs, udp_bound

pytestmark = [pytest.mark.interop, needs("sipp")]

SCENARIOS = Path(__file__).parent / "scenarios"
MODES = {"udp": "u1", "tcp": "t1"}
CALLS = 20
MD5_ONLY = {"algorithms": ["MD5"]}  # SIPp 3.6 looks at the first challenge and knows no other algorithm

both_transports = pytest.mark.parametrize("transport", MODES)


def sipp(start: StartProgram, server: EdgeServer, name: str, *arguments: Any, mode: str) -> Program:
    """Start SIPp towards the server; what it sent and received is in its folder."""
    options = [
        "-i",
        "127.0.0.1",
        "-t",
        mode,
        "-nostdin",
        "-max_socket",
        500,
        "-trace_err",
        "-trace_msg",
        "-timeout",
        "40s",
        "-timeout_error",
    ]
    files = ["-error_file", "errors.log", "-message_file", "messages.log", "-trace_logs", "-log_file", "actions.log"]
    return start(f"sipp-{name}", ["sipp", f"127.0.0.1:{server.port}", *options, *files, *arguments])


def register(
    start: StartProgram, server: EdgeServer, user: str, port: int, transport: str, mode: str, calls: int = 1
) -> None:
    """Run the REGISTER scenario for one user, whose Contact shows that port and transport."""
    keys = ["-key", "contact_port", port, "-key", "contact_transport", transport]
    login = ["-s", user, "-au", user, "-ap", f"{user}-secret"]
    scenario = ["-sf", SCENARIOS / "register.xml", "-m", calls, "-r", calls, "-p", free_port()]
    program = sipp(start, server, "register", *scenario, *keys, *login, mode=mode)
    assert program.wait() == 0, program.report()


def messages(program: Program, way: str, start_line: str) -> int:
    """How many messages with such a start line a SIPp sent or received."""
    text = (program.directory / "messages.log").read_text(errors="replace")
    return len(re.findall(rf"message {way} .*?\n\n{start_line}", text))


@both_transports
@pytest.mark.parametrize("sockets", ["one", "many"])
def test_registration_with_digest(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str, sockets: str
) -> None:
    server = edge(auth=MD5_ONLY)
    mode = MODES[transport] if sockets == "one" else MODES[transport][0] + "n"
    register(start, server, "carol", 9, transport, mode, calls=10)
    metrics = server.metrics()
    assert metrics.value("edge_sip_requests_total", method="REGISTER") == 20
    assert metrics.value("edge_auth_failures_total") == 0


@both_transports
def test_the_built_in_caller_and_callee_through_the_server(
    edge: Callable[..., EdgeServer], start: StartProgram, capture: Callable[[str], Capture], transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    port = free_port()
    wire = capture(f"port {server.port} or port {port}")
    register(start, server, "bob", port, transport, MODES["udp"])
    callee = sipp(start, server, "uas", "-sn", "uas", "-p", port, "-m", CALLS, mode=MODES[transport])
    if transport == "udp":
        callee.wait_for(lambda: udp_bound(port), what="a socket")
    else:
        callee.wait_ready(port)
    calls = ["-s", "bob", "-m", CALLS, "-r", 10, "-d", 200, "-p", free_port()]
    caller = sipp(start, server, "uac", "-sn", "uac", *calls, mode=MODES[transport])
    assert caller.wait() == 0
    assert callee.wait() == 0
    for start_line in ("INVITE", "BYE"):
        assert messages(callee, "received", start_line) == CALLS
    assert messages(caller, "received", "SIP/2.0 180") == CALLS
    assert messages(callee, "received", "ACK") == CALLS
    assert server.metrics().value("edge_sip_retransmissions_total") == 0
    check_sip(wire, [server.port, port], {"REGISTER": 2, "INVITE": 2 * CALLS, "ACK": 2 * CALLS, "BYE": 2 * CALLS})
