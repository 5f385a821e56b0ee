"""Role edge: Path, what is remembered of a registration, routing by token, Record-Route (RFC 5626 §5, RFC 3327)."""

from __future__ import annotations

import pytest

from edge.connections import Transport
from tests.sip.rig import Rig, Wire, answer, request

INSTANCE = '+sip.instance="<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
CONTACT = f"<sip:alice@10.1.1.1:5062;transport=tcp>;reg-id=1;{INSTANCE}"


@pytest.fixture
def rig() -> Rig:
    return Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"})


@pytest.fixture
def core(rig: Rig) -> Wire:
    """The connection to the registrar."""
    wire = rig.wire(remote=("192.0.2.50", 5060))
    rig.roads["home.example"] = [wire]
    return wire


def register(rig: Rig, client: Wire, contact: str = CONTACT, **headers: str) -> None:
    rig.give(client, request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", Contact=contact, **headers))


def path_of(rig: Rig, client: Wire, core: Wire, contact: str = CONTACT, **headers: str) -> list[str]:
    core.take()
    register(rig, client, contact, **headers)
    (sent,) = core.requests("REGISTER")
    return sent.values("Path")


def own_path(rig: Rig, client: Wire) -> str:
    return f"<sip:{rig.core.flows.token_of(client).decode()}@edge.example:5060;transport=tcp;lr;ob>"


def grant(rig: Rig, core: Wire, contact: str = CONTACT, **headers: str) -> None:
    (sent,) = core.requests("REGISTER")
    core.take()
    rig.give(core, answer(sent, 200, extra=(("Contact", contact + ";expires=600"), *headers.items())))


@pytest.mark.requirement("OB-EREG-01", "OB-EREG-02", "OB-EREG-03", "OB-EREG-10", "OB-EREG-11", "OB-EREG-17")
def test_rfc5626_5_1_register_of_a_first_hop_gets_path_with_token_and_ob_and_no_record_route(
    rig: Rig, core: Wire
) -> None:
    client = rig.wire()
    register(rig, client)
    (sent,) = core.requests("REGISTER")
    assert sent.values("Path") == [own_path(rig, client)]
    assert sent.all("Contact") == [CONTACT]
    assert sent.all("Record-Route") == []


@pytest.mark.requirement("OB-EREG-05")
def test_rfc5626_5_1_behind_another_hop_there_is_no_ob(rig: Rig, core: Wire) -> None:
    vias = "SIP/2.0/TCP a.example;branch=z9hG4bKa, SIP/2.0/TCP b.example;branch=z9hG4bKb"
    client = rig.wire()
    rig.give(client, request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", via=vias, Contact=CONTACT))
    (sent,) = core.requests("REGISTER")
    assert not any(";ob" in value for value in sent.values("Path"))


@pytest.mark.requirement("OB-EREG-06", "OB-EREG-07")
def test_rfc5626_5_1_what_asks_for_a_token_over_udp_where_nothing_is_forced(rig: Rig, core: Wire) -> None:
    udp, tcp = rig.wire(Transport.UDP), rig.wire()
    plain = "<sip:alice@10.1.1.1>"
    assert path_of(rig, udp, core, plain) == []
    assert path_of(rig, tcp, core, plain) == [own_path(rig, tcp)]
    assert path_of(rig, udp, core, f"{plain};{INSTANCE}") == [own_path(rig, udp)]
    assert path_of(rig, udp, core, f"{plain}, <sip:b@10.1.1.2>;{INSTANCE};Reg-ID=1") == [own_path(rig, udp)]


@pytest.mark.requirement("OB-EREG-12")
def test_rfc3327_5_2_one_path_above_those_there_are(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    assert path_of(rig, client, core, Path="<sip:p0.example;lr>") == [own_path(rig, client), "<sip:p0.example;lr>"]


@pytest.mark.requirement("OB-EREG-14", "OB-EREG-15")
def test_rfc5626_5_4_flow_timer_is_ours_and_only_with_require_outbound(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    paths = "<sip:x@edge.example;lr;ob>, <sip:p0.example;lr>"
    register(rig, client)
    grant(rig, core, Require="outbound", **{"Flow-Timer": "25", "Path": paths})
    (response,) = client.responses("REGISTER")
    assert response.all("Flow-Timer") == ["120"]
    assert response.all("Path") == [paths]
    client.take()
    register(rig, client)
    grant(rig, core, **{"Flow-Timer": "25"})
    assert client.responses("REGISTER")[0].all("Flow-Timer") == []


@pytest.mark.requirement("OB-EREG-16")
def test_what_was_granted_is_remembered_with_its_flow_and_forgotten_when_it_is_removed(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    register(rig, client)
    assert client.registered == 0
    grant(rig, core)
    (flow,) = rig.core.flows
    (row,) = flow.describe(rig.clock.now)
    assert (row["aor"], row["reg_id"], row["expires_s"]) == ("alice@example.com", 1, 600)
    assert row["instance"] == "urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"
    register(rig, client, Expires="0")
    (sent,) = core.requests("REGISTER")
    rig.give(core, answer(sent, 200))
    assert client.registered == 0


def incoming(rig: Rig, client: Wire, method: str = "INVITE") -> bytes:
    return request(method, "sip:kk4v1q@t8w2m0.invalid;transport=ws", user="bob", Route=own_path(rig, client))


@pytest.mark.requirement("OB-RTE-01", "OB-EDLG-06", "OB-EDLG-05", "OB-EDLG-16")
def test_rfc5626_5_3_1_a_token_leads_to_its_flow_whatever_the_request_uri_says(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    token = rig.core.flows.token_of(client).decode()
    rig.give(core, incoming(rig, client))
    (invite,) = client.requests("INVITE")
    assert invite.uri == "sip:kk4v1q@t8w2m0.invalid;transport=ws"
    assert invite.all("Route") == []
    assert invite.values("Record-Route") == [f"<sip:{token}@edge.example:5060;transport=tcp;lr>"]
    client.take()
    rig.give(core, incoming(rig, client, "MESSAGE"))
    assert client.requests("MESSAGE")[0].all("Record-Route") == []
    assert rig.asked == []


@pytest.mark.requirement("OB-FAIL-01", "OB-RTE-03")
def test_rfc5626_5_3_1_a_flow_that_is_gone_is_430_and_is_not_dialled(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    late = incoming(rig, client)
    rig.give(core, incoming(rig, client))
    core.take()
    client.close("peer")
    rig.run_soon()
    assert core.statuses("INVITE") == [430]
    core.take()
    rig.give(core, late)
    assert core.statuses("INVITE") == [430]
    assert rig.asked == []


@pytest.mark.requirement("OB-EDLG-09")
def test_other_requests_of_clients_go_to_the_next_hop_with_the_token_of_the_caller(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    token = rig.core.flows.token_of(client).decode()
    rig.give(client, request("INVITE", "sip:bob@example.com", Contact="<sip:alice@10.1.1.1>"))
    (invite,) = core.requests("INVITE")
    assert invite.uri == "sip:bob@example.com"
    assert invite.values("Record-Route") == [f"<sip:{token}@edge.example:5060;transport=tcp;lr>"]
