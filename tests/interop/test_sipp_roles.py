"""SIPp as a client with a flow through one edge, called through another: over the flow, and 480 once it is gone (RFC 5626)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import StartProgram
from tests.interop.programs import Program, needs
from tests.interop.test_baresip import rows
from tests.interop.test_roles import our_edge, our_registrar
from tests.interop.test_sipp import MODES, SCENARIOS, both_transports, messages, sipp
from tests.ua.wait import eventually_blocking

pytestmark = [pytest.mark.interop, needs("sipp")]

CALLS = 5


def bob_with_a_flow(start: StartProgram, server: EdgeServer, transport: str, port: int) -> Program:
    """Register Bob with reg-id and instance, and a Contact where nobody listens; let a scenario answer on that flow."""
    calls = ["-oocsf", SCENARIOS / "callee_answers.xml", "-m", 1]
    login = ["-s", "bob", "-au", "bob", "-ap", "bob-secret", "-auth_uri", "example.com", "-p", port]
    scenario = ["-sf", SCENARIOS / "flow_registers.xml"]
    return sipp(start, server, "flow", *scenario, *calls, *login, mode=MODES[transport])


def alice_calls(start: StartProgram, server: EdgeServer, scenario: str, transport: str) -> Program:
    login = ["-s", "bob", "-au", "alice", "-ap", "alice-secret", "-auth_uri", "bob@example.com"]
    arguments = ["-sf", SCENARIOS / f"{scenario}.xml", "-p", free_port(), "-m", CALLS, "-r", 5, *login]
    program = sipp(start, server, scenario, *arguments, mode=MODES[transport])
    assert program.wait() == 0, program.report()
    return program


def received(program: Program, start_line: str) -> list[str]:
    """Every message of that kind that a SIPp received, whole."""
    text = (program.directory / "messages.log").read_text(errors="replace").replace("\r", "")
    parts = [part.split("\n\n", 1)[1] for part in text.split("message received")[1:]]
    return [part.split("\n\n", 1)[0] for part in parts if part.startswith(start_line)]


def lines(message: str, name: str) -> list[str]:
    return [line for line in message.split("\n") if line.lower().startswith(f"{name.lower()}:")]


def flow_failures(server: EdgeServer) -> float:
    return server.metrics().value("edge_sip_rejected_total", reason="flow_failed")


@both_transports
def test_rfc5626_5_3_sipp_is_called_over_its_flow_through_two_edges_and_not_found_without_it(
    edge: Callable[..., EdgeServer], start: StartProgram, transport: str
) -> None:
    registrar = our_registrar(edge)
    near, far = (our_edge(edge, registrar.port) for _ in range(2))
    port = free_port()
    bob = bob_with_a_flow(start, near, transport, port)
    bob.wait_for(lambda: len(rows(near, "flows")) == 1, what="its flow")
    (flow,), (binding,) = rows(near, "flows"), rows(registrar, "registrations")
    assert (flow["transport"], flow["remote"]) == (transport, f"127.0.0.1:{port}")
    assert (binding["reg_id"], len(binding["path"])) == (1, 1)
    assert f"@127.0.0.1:{near.port}" in binding["path"][0]
    assert rows(far, "flows") == []

    alice_calls(start, far, "caller_calls", transport)
    invites = received(bob, "INVITE")
    assert len(invites) == messages(bob, "received", "ACK") == messages(bob, "received", "BYE") == CALLS
    for invite in invites:
        vias, records = lines(invite, "Via"), lines(invite, "Record-Route")
        assert [f":{each.port};" in via for each, via in zip((near, registrar, far), vias, strict=False)] == [True] * 3
        assert f"127.0.0.1:{near.port}" in records[0]
        assert f"127.0.0.1:{far.port}" in records[-1]
    assert len(rows(near, "flows")) == 1

    near.run("disconnect", flow["id"], "--config", str(near.config_path))
    eventually_blocking(lambda: rows(near, "flows") == [], what="the end of the flow")
    assert len(rows(registrar, "registrations")) == 1  # nobody has told it
    opened = near.metrics().value("edge_connections_opened_total", transport=transport)
    missed = alice_calls(start, far, "caller_finds_nobody", transport)
    assert messages(missed, "received", "SIP/2.0 480") == CALLS
    assert flow_failures(near) == 1  # the registrar asks once, hears 430, and has forgotten the binding
    assert flow_failures(far) == flow_failures(registrar) == 0
    assert rows(registrar, "registrations") == []
    assert near.metrics().value("edge_connections_opened_total", transport=transport) == opened
    assert len(received(bob, "INVITE")) == CALLS
