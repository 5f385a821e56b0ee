"""SIPp: calls with digest that fork and are cancelled, are redirected, or are invited again, over UDP and TCP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import StartProgram
from tests.interop.programs import Program, needs, udp_bound
from tests.interop.test_sipp import MD5_ONLY, MODES, SCENARIOS, both_transports, messages, register, sipp

pytestmark = [pytest.mark.interop, needs("sipp")]

CALLS = 10


def callee(start: StartProgram, server: EdgeServer, scenario: str, transport: str) -> Program:
    """Register bob at a port and let a scenario answer there."""
    port = free_port()
    register(start, server, "bob", port, transport, MODES["udp"])
    arguments = ["-sf", SCENARIOS / f"{scenario}.xml", "-p", port, "-m", CALLS, "-s", "bob"]
    program = sipp(start, server, scenario, *arguments, mode=MODES[transport])
    if transport == "udp":
        program.wait_for(lambda: udp_bound(port), what="a socket")
    else:
        program.wait_ready(port)
    return program


def caller(start: StartProgram, server: EdgeServer, scenario: str, transport: str) -> Program:
    """Let alice call bob."""
    login = ["-s", "bob", "-au", "alice", "-ap", "alice-secret", "-auth_uri", "bob@example.com"]
    arguments = ["-sf", SCENARIOS / f"{scenario}.xml", "-p", free_port(), "-m", CALLS, "-r", 5, *login]
    return sipp(start, server, scenario, *arguments, mode=MODES[transport])


@both_transports
def test_a_forked_call_is_cancelled_on_every_phone(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    phones = [callee(start, server, "callee_rings", "udp") for _ in range(2)]
    program = caller(start, server, "caller_cancels", transport)
    assert program.wait() == 0, program.report()
    for phone in phones:
        assert phone.wait() == 0, phone.report()
        assert messages(phone, "received", "CANCEL") == CALLS
    assert messages(program, "received", "SIP/2.0 487") == CALLS


@both_transports
def test_a_redirection_reaches_the_caller(edge: Callable[..., EdgeServer], start: StartProgram, transport: str) -> None:
    server = edge(auth=MD5_ONLY)
    phone = callee(start, server, "callee_redirects", transport)
    program = caller(start, server, "caller_redirected", transport)
    assert (program.wait(), phone.wait()) == (0, 0), program.report() + phone.report()


@both_transports
def test_a_call_with_a_reinvite(edge: Callable[..., EdgeServer], start: StartProgram, transport: str) -> None:
    server = edge(auth=MD5_ONLY)
    phone = callee(start, server, "callee_reinvited", transport)
    program = caller(start, server, "caller_reinvites", transport)
    assert (program.wait(), phone.wait()) == (0, 0), program.report() + phone.report()
    assert messages(phone, "received", "INVITE") == 2 * CALLS
