"""sipsak as a probe: OPTIONS over UDP and TCP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import StartProgram
from tests.interop.programs import needs

pytestmark = [pytest.mark.interop, needs("sipsak")]

FOUR_DIGITS = range(2048, 10000)  # it cuts longer ports in URIs


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_options_to_the_server_itself_is_answered_with_200(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(port=free_port(FOUR_DIGITS))
    arguments = ["sipsak", "-vv", "-E", transport, "-s", f"sip:127.0.0.1:{server.port}"]
    program = start("sipsak", arguments)
    assert program.wait(20) == 0, program.report()
    assert "SIP/2.0 200 OK" in program.log_text()
    assert server.metrics().value("edge_sip_requests_total", method="OPTIONS") == 1


def test_a_user_nobody_knows_is_a_404(edge: Callable[..., EdgeServer], start: StartProgram) -> None:
    server = edge(port=free_port(FOUR_DIGITS))
    program = start("sipsak", ["sipsak", "-vv", "-s", f"sip:nobody@127.0.0.1:{server.port}"])
    assert program.wait(20) == 1, program.report()
    assert "SIP/2.0 404" in program.log_text()
