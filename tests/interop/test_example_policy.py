"""docs/examples/sip_edge.py with SIPp on both sides: calls to a number find the upstream that has room."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT, EdgeServerFactory, free_port
from tests.interop.conftest import LOOPBACK, USERS, StartProgram
from tests.interop.programs import needs, udp_bound
from tests.interop.test_sipp import MD5_ONLY, SCENARIOS, both_transports, messages, sipp
from tests.interop.test_sipp_calls import CALLS, caller

pytestmark = [pytest.mark.interop, needs("sipp")]

MODULE = """
from sip_edge import SipEdge

class Mine(SipEdge):
    blocked_file = "blocked.txt"
    upstreams = ("127.0.0.1:{first}", "127.0.0.1:{second}")
"""


@both_transports
def test_calls_to_a_number_go_to_the_second_upstream_when_the_first_has_no_room(
    edge_server: EdgeServerFactory, start: StartProgram, transport: str
) -> None:
    ports = free_port(), free_port()
    config = {
        "auth": MD5_ONLY,
        "sip": {"allow_targets": LOOPBACK},
        "limits": {"trusted": LOOPBACK},
        "policy": {"module": "mine:Mine"},
    }
    server = edge_server(config, USERS, started=False)
    shutil.copy(ROOT / "docs" / "examples" / "sip_edge.py", server.directory)
    (server.directory / "mine.py").write_text(MODULE.format(first=ports[0], second=ports[1]))
    (server.directory / "blocked.txt").write_text("")
    server.start()
    full, free = (
        sipp(start, server, scenario, "-sf", SCENARIOS / f"{scenario}.xml", "-p", port, "-m", CALLS, mode="u1")
        for scenario, port in zip(("callee_has_no_room", "callee_answers"), ports, strict=True)
    )
    for program, port in ((full, ports[0]), (free, ports[1])):
        program.wait_for(lambda port=port: udp_bound(port), what="a socket")  # type: ignore[misc]
    program = caller(start, server, "caller_calls", transport, called="0049301234567")
    assert [each.wait() for each in (program, full, free)] == [0, 0, 0], program.report() + full.report()
    assert messages(free, "received", r"INVITE sip:\+49301234567@") == CALLS
    assert messages(free, "received", "BYE") == CALLS
