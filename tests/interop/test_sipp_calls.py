"""SIPp: calls with digest over UDP and TCP: forked, cancelled at bad moments, redirected, invited again, updated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import StartProgram
from tests.interop.programs import Program, needs, udp_bound
from tests.interop.test_sipp import MD5_ONLY, MODES, SCENARIOS, both_transports, messages, register, sipp

pytestmark = [pytest.mark.interop, needs("sipp")]

CALLS = 10


def callee(start: StartProgram, server: EdgeServer, scenario: str, transport: str, user: str = "bob") -> Program:
    """Register a user at a port and let a scenario answer there."""
    port = free_port()
    register(start, server, user, port, transport, MODES["udp"])
    arguments = ["-sf", SCENARIOS / f"{scenario}.xml", "-p", port, "-m", CALLS, "-s", user]
    program = sipp(start, server, scenario, *arguments, mode=MODES[transport])
    if transport == "udp":
        program.wait_for(lambda: udp_bound(port), what="a socket")
    else:
        program.wait_ready(port)
    return program


def caller(
    start: StartProgram,
    server: EdgeServer,
    scenario: str,
    transport: str,
    password: str = "alice-secret",
    called: str = "bob",
) -> Program:
    """Let alice call bob, or somebody else."""
    login = ["-s", called, "-au", "alice", "-ap", password, "-auth_uri", f"{called}@example.com"]
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


@both_transports
def test_a_forked_call_is_answered_by_one_phone_and_taken_from_the_other(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    ringing, answering = (callee(start, server, name, "udp") for name in ("callee_rings", "callee_answers"))
    program = caller(start, server, "caller_calls", transport)
    assert [each.wait() for each in (program, ringing, answering)] == [0, 0, 0]
    assert messages(ringing, "received", "CANCEL") == CALLS
    assert messages(answering, "received", "BYE") == CALLS
    # The answer of the phone that was cancelled is the server's to acknowledge and nobody else's to see.
    assert messages(program, "received", "SIP/2.0 487") == 0


@both_transports
def test_rfc3261_9_1_a_call_answered_while_its_cancel_travels_stands(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    phone = callee(start, server, "callee_answers_cancelled", transport)
    program = caller(start, server, "caller_cancels_late", transport)
    assert (program.wait(), phone.wait()) == (0, 0), program.report() + phone.report()
    assert messages(phone, "received", "CANCEL") == messages(phone, "received", "BYE") == CALLS


@both_transports
def test_rfc3261_9_1_a_cancel_waits_until_the_phone_has_said_something(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    phone = callee(start, server, "callee_rings_late", transport)
    program = caller(start, server, "caller_cancels_at_once", transport)
    assert (program.wait(), phone.wait()) == (0, 0), program.report() + phone.report()
    assert messages(phone, "received", "CANCEL") == messages(program, "received", "SIP/2.0 487") == CALLS


@both_transports
def test_rfc3262_and_rfc3311_prack_and_update_pass_in_an_early_and_a_confirmed_dialog(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    phone = callee(start, server, "callee_updated", transport)
    program = caller(start, server, "caller_updates", transport)
    assert (program.wait(), phone.wait()) == (0, 0), program.report() + phone.report()
    assert messages(phone, "received", "PRACK") == CALLS
    assert messages(phone, "received", "UPDATE") == 2 * CALLS


@both_transports
def test_a_redirection_is_followed_where_the_operator_wants_it(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY, sip={"recurse": True})
    away = callee(start, server, "callee_redirects", transport)
    phone = callee(start, server, "callee_answers", transport, user="carol")
    program = caller(start, server, "caller_calls", transport)
    assert [each.wait() for each in (program, away, phone)] == [0, 0, 0]
    assert messages(phone, "received", "INVITE") == messages(phone, "received", "BYE") == CALLS


@both_transports
def test_a_wrong_password_is_challenged_again_and_reaches_nobody(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    server = edge(auth=MD5_ONLY)
    program = caller(start, server, "caller_is_refused", transport, password="guess")
    assert program.wait() == 0, program.report()
    assert messages(program, "received", "SIP/2.0 407") == 2 * CALLS
    assert server.metrics().value("edge_auth_failures_total") >= CALLS
