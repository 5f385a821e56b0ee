"""Role edge: dialogs through flows, in both directions, and flows that fail under them (RFC 5626 §5.3)."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest

from edge.connections import Transport
from edge.outbound.flows import FlowTable
from edge.outbound.token import TokenKeys
from tests.outbound.links import BOOT, KEY
from tests.sip.rig import Rig, Wire, answer, follow_up, request
from tests.ua.sip_message import Request

PHONE = '+sip.instance="<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
CORE_SIDE = "<sip:edge.example:5060;transport=tcp;lr>"


def edge(**options: Any) -> tuple[Rig, Wire]:
    """An edge, and its connection to home.example, which is reached over TCP."""
    rig = Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"}, **options)
    core = rig.wire(remote=("192.0.2.20", 5060))
    rig.roads["home.example"] = [core]
    return rig, core


def token_of(rig: Rig, client: Wire) -> str:
    return rig.core.flows.token_of(client).decode()


def recorded(rig: Rig, client: Wire, transport: str = ";transport=tcp") -> str:
    """The Record-Route value that leads to a client."""
    return f"<sip:{token_of(rig, client)}@edge.example:5060{transport};lr>"


def register(rig: Rig, core: Wire, client: Wire, reg_id: int = 1) -> None:
    contact = f"<sip:alice@10.1.1.1>;reg-id={reg_id};{PHONE}"
    rig.give(client, request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", Contact=contact))
    (sent,) = core.requests("REGISTER")
    core.take()
    rig.give(core, answer(sent, 200, extra=(("Contact", contact + ";expires=600"), ("Require", "outbound"))))
    client.take()


def only(wire: Wire, method: str) -> Request:
    (found,) = wire.requests(method)
    wire.take()
    return found


# ------------------------------------------------------------------------------------------ worked examples


# As in the collection, but for our names and for Max-Breadth (RFC 5393 §5.3.3), which the examples leave out.


def example(text: str, token: str) -> bytes:
    """Write a worked example with a token of ours."""
    lines = text.strip("\n").replace("TOKEN", token).split("\n")
    return "\r\n".join([*lines, "", ""]).encode()


def assert_comes_to_the_client(given: str, expected: str) -> None:
    """Of what the core sends by the token of a client, that client gets exactly this."""
    rig, core = edge()
    tove = rig.wire()
    token = token_of(rig, tove)
    rig.give(core, example(given, token))
    (sent,) = tove.take()
    assert without_branch(sent) == example(expected, token)


def without_branch(data: bytes) -> bytes:
    """Put BRANCH in the place of the one we chose."""
    return re.sub(rb"\A(.*\r\nVia: [^;]*;branch=)[^\r]*", rb"\1BRANCH", data)


INSTANCE = '"<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
E1_CONTACT = f"Contact: <sip:tove@10.77.3.9:51944;transport=tcp>;reg-id=1;+sip.instance={INSTANCE}"
E1 = f"""
REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r1;rport;keep
Route: <sip:edge.example:5060;transport=tcp;lr>
Max-Forwards: 70
From: <sip:tove@example.com>;tag=tvA1
To: <sip:tove@example.com>
Call-ID: r1-8842@10.77.3.9
CSeq: 1 REGISTER
Supported: path, outbound, gruu
{E1_CONTACT}
Expires: 1800
Content-Length: 0
"""
E2 = f"""
REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH
Max-Breadth: 60
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r1;rport=40112;received=203.0.113.77;keep
Path: <sip:TOKEN@edge.example:5060;transport=tcp;lr;ob>
Max-Forwards: 69
From: <sip:tove@example.com>;tag=tvA1
To: <sip:tove@example.com>
Call-ID: r1-8842@10.77.3.9
CSeq: 1 REGISTER
Supported: path, outbound, gruu
{E1_CONTACT}
Expires: 1800
Content-Length: 0
"""
E3_HEAD = """From: <sip:tove@example.com>;tag=tvA1
To: <sip:tove@example.com>;tag=hm-20a
Call-ID: r1-8842@10.77.3.9
CSeq: 1 REGISTER
Path: <sip:TOKEN@edge.example:5060;transport=tcp;lr;ob>
Service-Route: <sip:home.example;transport=tcp;lr>
Supported: path, outbound
Require: outbound"""
E3_IN = f"""
SIP/2.0 200 OK
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH;received=192.0.2.11
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r1;rport=40112;received=203.0.113.77;keep
{E3_HEAD}
{E1_CONTACT};expires=1800
Date: Thu, 20 Nov 2025 16:30:00 GMT
Content-Length: 0
"""
E3_OUT = f"""
SIP/2.0 200 OK
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r1;rport=40112;received=203.0.113.77;keep=120
{E3_HEAD}
{E1_CONTACT};expires=1800
Date: Thu, 20 Nov 2025 16:30:00 GMT
Flow-Timer: 120
Content-Length: 0
"""


@pytest.mark.requirement("OB-EREG-01", "OB-EREG-11", "OB-EREG-14", "OB-EREG-15", "OB-KA-14", "OB-SR-02", "OB-NAT-01")
def test_worked_examples_1_to_3_a_registration_octet_by_octet() -> None:
    rig, core = edge()
    tove = rig.wire(remote=("203.0.113.77", 40112))
    token = token_of(rig, tove)
    rig.give(tove, example(E1, token))
    (sent,) = core.take()
    assert without_branch(sent) == example(E2, token)
    found = re.search(rb"branch=([^\r]*)", sent)
    assert found is not None
    rig.give(core, example(E3_IN.replace("BRANCH", found[1].decode()), token))
    assert tove.take() == [example(E3_OUT, token)]


DELIVERED = """
Via: SIP/2.0/TCP px.brisk.example;branch=z9hG4bK-px-31;received=198.51.100.30
Via: SIP/2.0/UDP 198.51.100.44:5060;branch=z9hG4bK-rv-9;rport=5060;received=198.51.100.44
"""
TAIL = """From: <sip:ravi@brisk.example>;tag=rv77
To: <sip:tove@calm.example>
Call-ID: c9-5510@198.51.100.44
CSeq: 7 INVITE
Contact: <sip:ravi@198.51.100.44:5060>
Content-Length: 0
"""
E5_IN = f"""
INVITE sip:tove@10.77.3.9:51944;transport=tcp SIP/2.0
Via: SIP/2.0/TCP home.calm.example;branch=z9hG4bK-hm-77b{DELIVERED.rstrip()}
Record-Route: <sip:home.calm.example;transport=tcp;lr>
Record-Route: <sip:px.brisk.example;lr>
Route: <sip:TOKEN@edge.example:5060;transport=tcp;lr;ob>
Max-Forwards: 68
{TAIL}"""
E5_OUT = f"""
INVITE sip:tove@10.77.3.9:51944;transport=tcp SIP/2.0
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH
Max-Breadth: 60
Via: SIP/2.0/TCP home.calm.example;branch=z9hG4bK-hm-77b;received=192.0.2.20{DELIVERED.rstrip()}
Record-Route: <sip:TOKEN@edge.example:5060;transport=tcp;lr>
Record-Route: <sip:home.calm.example;transport=tcp;lr>
Record-Route: <sip:px.brisk.example;lr>
Max-Forwards: 67
{TAIL}"""


@pytest.mark.requirement("OB-EDLG-06", "OB-EDLG-05", "OB-RTE-04", "OB-RTE-01")
def test_worked_example_5_an_invite_by_token_octet_by_octet() -> None:
    assert_comes_to_the_client(E5_IN, E5_OUT)


E6_TAIL = """From: <sip:ravi@brisk.example>;tag=rv77
To: <sip:tove@calm.example>;tag=tvD4
Call-ID: c9-5510@198.51.100.44
CSeq: 8 BYE
Content-Length: 0
"""
E6_IN = f"""
BYE sip:tove@10.77.3.9:51944;transport=tcp;ob SIP/2.0
Via: SIP/2.0/TCP home.calm.example;branch=z9hG4bK-hm-80{DELIVERED.rstrip()}
Route: <sip:TOKEN@edge.example:5060;transport=tcp;lr>
Max-Forwards: 68
{E6_TAIL}"""
E6_OUT = f"""
BYE sip:tove@10.77.3.9:51944;transport=tcp;ob SIP/2.0
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH
Max-Breadth: 60
Via: SIP/2.0/TCP home.calm.example;branch=z9hG4bK-hm-80;received=192.0.2.20{DELIVERED.rstrip()}
Max-Forwards: 67
{E6_TAIL}"""


@pytest.mark.requirement("OB-EDLG-07", "OB-EDLG-08", "OB-RTE-04")
def test_worked_example_6_a_bye_from_the_far_side_octet_by_octet() -> None:
    assert_comes_to_the_client(E6_IN, E6_OUT)


E7_TAIL = """From: <sip:tove@calm.example>;tag=tvD4
To: <sip:ravi@brisk.example>;tag=rv77
Call-ID: c9-5510@198.51.100.44
CSeq: 31 UPDATE
Contact: <sip:tove@10.77.3.9:51944;transport=tcp;ob>
Content-Length: 0
"""
E7_IN = f"""
UPDATE sip:ravi@198.51.100.44:5060 SIP/2.0
Via: SIP/2.0/TCP 10.77.3.9:51946;branch=z9hG4bK-tv-u1;rport
Route: <sip:TOKEN@edge.example:5060;transport=tcp;lr>
Route: <sip:home.example;transport=tcp;lr>
Route: <sip:px.brisk.example;lr>
Max-Forwards: 70
{E7_TAIL}"""
E7_OUT = f"""
UPDATE sip:ravi@198.51.100.44:5060 SIP/2.0
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH
Max-Breadth: 60
Via: SIP/2.0/TCP 10.77.3.9:51946;branch=z9hG4bK-tv-u1;rport=40113;received=203.0.113.77
Record-Route: <sip:TOKEN@edge.example:5060;transport=tcp;lr>
Route: <sip:home.example;transport=tcp;lr>
Route: <sip:px.brisk.example;lr>
Max-Forwards: 69
{E7_TAIL}"""


@pytest.mark.requirement("OB-EDLG-08", "OB-EDLG-09", "OB-EDLG-14", "OB-SR-02")
def test_worked_example_7_an_update_of_the_client_goes_outward_octet_by_octet() -> None:
    rig, core = edge()
    tove = rig.wire(remote=("203.0.113.77", 40113))
    token = token_of(rig, tove)
    rig.give(tove, example(E7_IN, token))
    (sent,) = core.take()
    assert without_branch(sent) == example(E7_OUT, token)
    assert tove.requests() == []


@pytest.mark.requirement("OB-EDLG-08")
def test_rfc5626_5_3_another_flow_from_the_same_address_and_port_is_another_flow() -> None:
    rig, core = edge()
    tcp, udp = (rig.wire(kind, remote=("203.0.113.77", 40112)) for kind in (Transport.TCP, Transport.UDP))
    rig.give(tcp, example(E7_IN, token_of(rig, udp)))
    assert only(udp, "UPDATE").uri == "sip:ravi@198.51.100.44:5060"
    assert core.requests() == []


@pytest.mark.requirement("OB-EDLG-08")
def test_rfc5626_5_3_the_same_request_from_the_core_goes_to_the_flow_of_the_token() -> None:
    rig, core = edge()
    tove = rig.wire(remote=("203.0.113.77", 40113))
    rig.give(core, example(E7_IN, token_of(rig, tove)))
    assert only(tove, "UPDATE").uri == "sip:ravi@198.51.100.44:5060"
    assert core.requests() == []


E8_TAIL = """From: <sip:iris@calm.example>;tag=ir9
To: <sip:ravi@brisk.example>
Call-ID: ws-5-02b
CSeq: 1 INVITE
Supported: outbound, gruu
Contact: <sip:kk4v1q@t8w2m0.invalid;transport=ws;ob>
Content-Length: 0
"""
E8_IN = f"""
INVITE sip:ravi@brisk.example SIP/2.0
Via: SIP/2.0/WSS t8w2m0.invalid;branch=z9hG4bK-wb-5
Route: <sip:edge.example:5060;transport=ws;lr>
Max-Forwards: 70
{E8_TAIL}"""
E8_OUT = f"""
INVITE sip:ravi@brisk.example SIP/2.0
Via: SIP/2.0/TCP edge.example:5060;branch=BRANCH
Max-Breadth: 60
Via: SIP/2.0/WSS t8w2m0.invalid;branch=z9hG4bK-wb-5;received=203.0.113.80
Record-Route: <sip:edge.example:5060;transport=tcp;lr>
Record-Route: <sip:TOKEN@edge.example:5060;transport=ws;lr>
Max-Forwards: 69
{E8_TAIL}"""


@pytest.mark.requirement("OB-EDLG-01", "OB-EDLG-12")
def test_worked_example_8_two_values_for_a_websocket_client_octet_by_octet() -> None:
    rig, core = edge(outbound={"force": "off"})
    iris = rig.wire(Transport.WSS, ("203.0.113.80", 40900))
    token = token_of(rig, iris)
    rig.give(iris, example(E8_IN, token))
    (sent,) = core.take()
    assert without_branch(sent) == example(E8_OUT, token)


@pytest.mark.requirement("OB-EDLG-12", "OB-RTE-04")
def test_both_values_are_popped_and_the_one_with_a_token_decides_in_both_directions() -> None:
    rig, core = edge()
    iris = rig.wire(Transport.WSS)
    client_side = recorded(rig, iris, ";transport=ws")
    far = request("BYE", "sip:x@t8w2m0.invalid", to="<sip:i@example.com>;tag=i", Route=f"{CORE_SIDE}, {client_side}")
    rig.give(core, far)
    bye = only(iris, "BYE")
    assert bye.all("Route") == []
    assert bye.all("Via")[0].startswith("SIP/2.0/WSS edge.example:5060;branch=")
    assert bye["Max-Forwards"] == "69"
    route = f"{client_side}, {CORE_SIDE}, <sip:home.example;lr>"
    rig.give(iris, request("BYE", "sip:bob@198.51.100.44", to="<sip:bob@x>;tag=b", Route=route))
    assert only(core, "BYE").all("Route") == ["<sip:home.example;lr>"]
    assert iris.requests() == []


# ------------------------------------------------------------------------------------------ who gets a token


def invite(contact: str, method: str = "INVITE", **headers: str) -> bytes:
    return request(method, "sip:bob@example.com", Contact=contact, **headers)


OB = "<sip:alice@10.1.1.1;ob>"
VIAS = "SIP/2.0/UDP a.example;branch=z9hG4bK{0}a, SIP/2.0/UDP b.example;branch=z9hG4bK{0}b"


@pytest.mark.requirement("OB-EDLG-01", "OB-EDLG-04")
@pytest.mark.parametrize("method", ["INVITE", "SUBSCRIBE", "REFER"])
@pytest.mark.parametrize("supported", ["", "100rel", "outbound"])
def test_rfc5626_5_3_2_ob_in_the_contact_uri_is_enough(method: str, supported: str) -> None:
    rig, core = edge(outbound={"force": "off"})
    client = rig.wire()
    rig.give(client, invite(OB, method, **({"Supported": supported} if supported else {})))
    assert only(core, method).values("Record-Route") == [recorded(rig, client)]


@pytest.mark.requirement("OB-EDLG-04", "OB-EDLG-01")
@pytest.mark.parametrize("headers", [{"contact": "<sip:a@10.1.1.1>;ob"}, {"contact": OB, "via": VIAS.format("n")}])
def test_rfc5626_5_3_2_ob_beside_the_uri_or_behind_another_hop_is_not(headers: dict[str, str]) -> None:
    rig, core = edge(outbound={"force": "off"})
    client = rig.wire()
    rig.give(client, invite(**headers))
    assert token_of(rig, client) not in str(only(core, "INVITE").values("Record-Route"))


@pytest.mark.requirement("OB-EDLG-02")
def test_rfc5626_5_3_2_our_route_with_ob_is_enough() -> None:
    rig, core = edge(outbound={"force": "off"})
    client = rig.wire()
    route = "<sip:edge.example:5060;transport=tcp;lr{}>"
    rig.give(client, invite("<sip:alice@10.1.1.1>", Route=route.format(";ob")))
    assert only(core, "INVITE").values("Record-Route") == [recorded(rig, client)]
    rig.give(client, invite("<sip:alice@10.1.1.1>", Route=route.format("")))
    assert token_of(rig, client) not in str(only(core, "INVITE").values("Record-Route"))


@pytest.mark.requirement("OB-EDLG-14", "OB-EDLG-15")
@pytest.mark.parametrize("method", ["INVITE", "UPDATE", "SUBSCRIBE", "NOTIFY", "REFER"])
def test_rfc3261_16_6_requests_within_a_dialog_are_recorded_as_the_first_one(method: str) -> None:
    rig, core = edge()
    client = rig.wire()
    rig.give(client, invite("<sip:alice@10.1.1.1>"))
    first = only(core, "INVITE").values("Record-Route")
    within = {"to": "<sip:bob@example.com>;tag=b", "Contact": "<sip:alice@10.1.1.1>"}
    rig.give(client, request(method, "sip:bob@example.com", Route=recorded(rig, client), **within))
    assert only(core, method).values("Record-Route") == first
    rig.give(core, request(method, "sip:alice@10.1.1.1", user="bob", Route=recorded(rig, client), **within))
    assert only(client, method).values("Record-Route") == first


@pytest.mark.requirement("OB-EDLG-15")
def test_rfc6665_4_3_a_notify_before_the_200_is_recorded_with_the_same_token() -> None:
    rig, core = edge(outbound={"force": "off"})
    client = rig.wire(Transport.UDP)
    rig.give(client, invite(OB, "SUBSCRIBE", Event="presence"))
    (core_side, client_side) = only(core, "SUBSCRIBE").values("Record-Route")
    notify = {"to": "<sip:alice@example.com>;tag=a1", "tag": "n1", "Event": "presence"}
    route = f"{core_side}, {client_side}"
    rig.give(core, request("NOTIFY", "sip:alice@10.1.1.1;ob", user="bob", Route=route, **cast("Any", notify)))
    assert client_side in only(client, "NOTIFY").values("Record-Route")


@pytest.mark.requirement("OB-EDLG-18")
def test_rfc3261_16_6_sips_in_the_request_uri_or_the_route_makes_record_route_sips() -> None:
    rig, core = edge()
    client = rig.wire(Transport.TLS)
    value = f"<sips:{token_of(rig, client)}@edge.example:5060;lr>"
    rig.give(client, request("INVITE", "sips:bob@example.com", Contact="<sips:alice@10.1.1.1>"))
    assert value in only(core, "INVITE").values("Record-Route")
    rig.give(client, request("INVITE", "sip:bob@example.com", Contact=OB, Route="<sips:home.example;lr>"))
    assert value in only(core, "INVITE").values("Record-Route")
    rig.give(client, request("INVITE", "sip:bob@example.com", Contact=OB))
    assert "sips" not in str(only(core, "INVITE").values("Record-Route"))


@pytest.mark.requirement("OB-EDLG-17")
def test_rfc3261_16_4_a_strict_router_in_front_is_undone() -> None:
    rig, core = edge()
    tove = rig.wire()
    own = recorded(rig, tove)[1:-1]
    within = {"to": "<sip:alice@example.com>;tag=a", "user": "bob"}
    rig.give(core, request("BYE", own, Route="<sip:tove@10.77.3.9:51944>", **cast("Any", within)))
    bye = only(tove, "BYE")
    assert (bye.uri, bye.all("Route")) == ("sip:tove@10.77.3.9:51944", [])


@pytest.mark.requirement("OB-EDLG-10", "OB-FAIL-14")
def test_a_client_that_came_back_is_the_heir_of_its_flow_in_both_directions() -> None:
    rig, core = edge()
    old = rig.wire()
    register(rig, core, old)
    route = recorded(rig, old)
    old.fail("reset")
    bye = {"to": "<sip:alice@example.com>;tag=a", "user": "bob"}
    rig.give(core, request("BYE", "sip:alice@10.1.1.1", Route=route, **cast("Any", bye)))
    assert core.statuses("BYE") == [430]
    core.take()
    new = rig.wire()
    register(rig, core, new)
    rig.give(core, request("BYE", "sip:alice@10.1.1.1", Route=route, **cast("Any", bye)))
    assert only(new, "BYE").all("Route") == []
    again = {"to": "<sip:bob@example.com>;tag=b", "Contact": "<sip:alice@10.1.1.1>"}
    rig.give(new, request("INVITE", "sip:bob@198.51.100.9", Route=f"{route}, <sip:home.example;lr>", **again))
    assert only(core, "INVITE").uri == "sip:bob@198.51.100.9"
    assert new.requests() == []


@pytest.mark.requirement("OB-EDLG-13")
def test_rfc3261_9_1_cancel_and_ack_take_the_flow_of_their_invite() -> None:
    rig, core = edge()
    first, second = rig.wire(), rig.wire()
    register(rig, core, first)
    register(rig, core, second, 2)
    data = request("INVITE", "sip:alice@10.1.1.1", user="bob", Route=recorded(rig, second))
    rig.give(core, data)
    ringing = only(second, "INVITE")
    rig.give(second, answer(ringing, 180))
    rig.give(core, follow_up("CANCEL", data))
    cancel = only(second, "CANCEL")
    assert cancel.branch == ringing.branch
    rig.give(second, answer(cancel, 200))
    rig.give(second, answer(ringing, 487))
    assert only(second, "ACK").branch == ringing.branch
    ack = request("ACK", "sip:alice@10.1.1.1", to="<sip:alice@example.com>;tag=z", Route=recorded(rig, second))
    rig.give(core, ack)
    assert only(second, "ACK").uri == "sip:alice@10.1.1.1"
    assert first.requests() == []


# ------------------------------------------------------------------------------------------ tokens that lead nowhere


def by_route(route: str, method: str = "MESSAGE", **headers: Any) -> bytes:
    return request(method, "sip:carol@example.com", user="bob", Route=route, **headers)


@pytest.mark.requirement("OB-TOK-05")
def test_worked_example_9_a_changed_token_is_403_and_no_flow_sees_it() -> None:
    rig, core = edge()
    client = rig.wire()
    token = token_of(rig, client)
    forged = token[:-1] + ("A" if token[-1] != "A" else "Q")
    rig.give(core, by_route(f"<sip:{forged}@edge.example:5060;transport=tcp;lr;ob>", "INVITE"))
    assert core.statuses("INVITE") == [403]
    assert client.take() == []
    assert rig.core.flows.forged == 1


@pytest.mark.requirement("OB-TOK-06", "OB-TOK-13", "OB-TOK-09")
def test_a_token_of_an_unknown_key_another_node_or_an_earlier_start_is_430() -> None:
    rig, core = edge()
    other, _ = edge()
    stranger = FlowTable(
        other.table.connections, other.table.wheel, other.bus.publish, TokenKeys([bytes(32)]), boot=BOOT
    )
    node = FlowTable(other.table.connections, other.table.wheel, other.bus.publish, TokenKeys([KEY]), boot=BOOT, node=7)
    earlier = FlowTable(other.table.connections, other.table.wheel, other.bus.publish, TokenKeys([KEY]), boot=BOOT - 60)
    for table in (stranger, node, earlier):
        token = table.token_of(other.wire()).decode()
        rig.give(core, by_route(f"<sip:{token}@edge.example:5060;transport=tcp;lr;ob>"))
        assert core.statuses("MESSAGE") == [430]
        core.take()


@pytest.mark.requirement("OB-TOK-07")
def test_rfc5626_5_3_a_user_part_that_is_no_token_is_403_with_ob_and_passed_over_without() -> None:
    rig, core = edge()
    client = rig.wire()
    rig.give(client, by_route("<sip:lb1@edge.example:5060;lr>"))
    sent = only(core, "MESSAGE")
    assert (sent.uri, sent.all("Route")) == ("sip:carol@example.com", [])
    rig.give(client, by_route("<sip:lb1@edge.example:5060;lr;ob>"))
    assert client.statuses("MESSAGE") == [403]


# ------------------------------------------------------------------------------------------ no open relay


FOREIGN = "sip:ravi@198.51.100.44:5060"
WITHIN = {"to": "<sip:ravi@brisk.example>;tag=r"}


@pytest.mark.requirement("OB-EDLG-09")
def test_a_stranger_cannot_name_where_a_request_goes() -> None:
    rig, core = edge()
    for transport in (Transport.UDP, Transport.TCP):
        stranger = rig.wire(transport)
        rig.give(stranger, request("BYE", FOREIGN, Route=CORE_SIDE, **WITHIN))
        assert only(core, "BYE").uri == FOREIGN  # the core decides
        rig.give(stranger, by_route(f"{CORE_SIDE}, <sip:victim.example;lr>"))
        assert stranger.statuses("MESSAGE") == [403]
        register_elsewhere = {"to": "<sip:alice@example.com>", "Contact": "<sip:alice@10.1.1.1>"}
        rig.give(
            stranger, request("REGISTER", "sip:example.com", Route="<sip:victim.example;lr>", **register_elsewhere)
        )
        assert stranger.statuses("REGISTER") == [403]
    assert rig.asked == ["sip:home.example;transport=tcp"] * 2
    assert len(rig.transactions.servers) == 2


@pytest.mark.requirement("OB-EDLG-09")
def test_within_a_dialog_a_live_token_of_ours_opens_the_way_to_the_request_uri() -> None:
    rig, _core = edge()
    far = rig.wire()
    rig.roads["198.51.100.44"] = [far]
    client = rig.wire()
    rig.give(client, request("BYE", FOREIGN, Route=recorded(rig, client), **WITHIN))
    assert only(far, "BYE").uri == FOREIGN


@pytest.mark.requirement("OB-EDLG-09")
def test_the_core_and_registered_clients_may_name_where_a_request_goes() -> None:
    rig, core = edge()
    far = rig.wire()
    rig.roads["px.example"] = [far]
    route = f"{CORE_SIDE}, <sip:px.example;lr>"
    rig.give(core, by_route(route))
    assert core.statuses("MESSAGE") == [403]  # nothing has shown yet that this is the core
    core.take()
    client = rig.wire()
    register(rig, core, client)
    rig.give(core, by_route(route))
    assert only(far, "MESSAGE").all("Route") == ["<sip:px.example;lr>"]
    rig.give(client, by_route(route))
    assert only(far, "MESSAGE").all("Route") == ["<sip:px.example;lr>"]


@pytest.mark.requirement("OB-EDLG-09")
def test_other_servers_of_the_core_are_named_in_the_configuration() -> None:
    sip = {"next_hop": "sip:home.example;transport=tcp", "trusted_core": ("192.0.2.64/26",)}
    rig = Rig(role="edge", sip=sip)
    far = rig.wire()
    rig.roads["px.example"] = [far]
    rig.give(rig.wire(remote=("192.0.2.70", 5060)), by_route(f"{CORE_SIDE}, <sip:px.example;lr>"))
    assert only(far, "MESSAGE").all("Route") == ["<sip:px.example;lr>"]


# ------------------------------------------------------------------------------------------ flows that fail


@pytest.mark.requirement("OB-FAIL-12")
def test_rfc3261_16_9_a_flow_that_fails_before_any_answer_is_430_and_after_ringing_its_200_still_counts() -> None:
    rig, core = edge()
    client = rig.wire()
    rig.give(core, by_route(recorded(rig, client), "INVITE"))
    client.fail("reset")
    rig.run_soon()
    assert core.statuses("INVITE")[-1] == 430
    core.take()
    second = rig.wire()
    rig.give(core, by_route(recorded(rig, second), "INVITE"))
    ringing = only(second, "INVITE")
    rig.give(second, answer(ringing, 180))
    second.fail("reset")
    rig.run_soon()
    assert core.statuses("INVITE") == [100, 180]
    rig.give(rig.wire(), answer(ringing, 200))
    assert core.statuses("INVITE") == [100, 180, 200]


@pytest.mark.requirement("OB-FAIL-13")
@pytest.mark.parametrize("method", ["MESSAGE", "INVITE"])
def test_a_udp_flow_that_says_nothing_for_eight_seconds_is_430(method: str) -> None:
    rig, core = edge()
    client = rig.wire(Transport.UDP)
    rig.give(core, by_route(recorded(rig, client, ""), method))
    rig.advance(7.8)
    assert core.statuses(method) in ([], [100])
    rig.advance(0.4)
    assert core.statuses(method)[-1] == 430


@pytest.mark.requirement("OB-FAIL-13")
def test_one_that_was_heard_keeps_its_time_and_so_does_a_stream_and_who_switched_it_off() -> None:
    rig, core = edge()
    for transport, text in ((Transport.UDP, ""), (Transport.TCP, ";transport=tcp")):
        client = rig.wire(transport)
        rig.give(core, by_route(recorded(rig, client, text), "INVITE"))
        if transport is Transport.UDP:
            rig.give(client, answer(client.requests("INVITE")[0], 180))
        rig.advance(20)
        assert max(core.statuses("INVITE")) <= 180
        core.take()
    rig, core = edge(outbound={"no_response": 0.0})
    client = rig.wire(Transport.UDP)
    rig.give(core, by_route(recorded(rig, client, ""), "INVITE"))
    rig.advance(31)
    assert core.statuses("INVITE") == [100]
    rig.advance(2)
    assert core.statuses("INVITE") == [100, 430]


@pytest.mark.requirement("OB-FAIL-15")
def test_an_ack_for_a_dead_flow_is_dropped_and_counted_and_a_cancel_ends_the_call() -> None:
    rig, core = edge()
    client = rig.wire()
    data = by_route(recorded(rig, client), "INVITE")
    rig.give(core, data)
    rig.give(client, answer(only(client, "INVITE"), 180))
    route = recorded(rig, client)
    client.fail("reset")
    rig.run_soon()
    core.take()
    rig.give(core, follow_up("CANCEL", data))
    assert (core.statuses("CANCEL"), core.statuses("INVITE")) == ([200], [487])
    core.take()
    before = sum(rig.core.stats.rejected.values())
    rig.give(core, request("ACK", "sip:alice@10.1.1.1", to="<sip:alice@example.com>;tag=z", Route=route))
    assert core.take() == []
    assert sum(rig.core.stats.rejected.values()) == before + 1


@pytest.mark.requirement("OB-RTE-06")
def test_rfc5626_13_what_is_too_large_for_udp_takes_a_stream_of_the_same_device() -> None:
    rig, core = edge()
    udp, tcp = rig.wire(Transport.UDP), rig.wire()
    register(rig, core, udp)
    route, large = recorded(rig, udp, ""), b"x" * 3000
    rig.give(core, by_route(route, body=large))
    assert only(udp, "MESSAGE").body == large
    register(rig, core, tcp, 2)
    rig.give(core, by_route(route, body=large))
    assert only(tcp, "MESSAGE").body == large
    rig.give(core, by_route(route, body=b"small"))
    assert only(udp, "MESSAGE").body == b"small"


@pytest.mark.requirement("OB-FAIL-02")
def test_a_silent_udp_flow_is_430_without_a_datagram() -> None:
    rig, core = edge(outbound={"flow_timer": 20})
    client = rig.wire(Transport.UDP)
    register(rig, core, client)
    route = recorded(rig, client, "")
    rig.clock.advance(49)
    rig.give(core, by_route(route))
    rig.give(client, answer(only(client, "MESSAGE"), 200))
    assert core.statuses("MESSAGE") == [200]
    rig.clock.advance(51)  # past twice the Flow-Timer and the grace of 10 s
    core.take()
    rig.give(core, by_route(route))
    assert core.statuses("MESSAGE") == [430]
    assert client.take() == []


@pytest.mark.requirement("OB-FAIL-03", "OB-FAIL-01")
def test_a_udp_flow_that_could_not_be_sent_to_is_430_at_once_and_stays_so() -> None:
    rig, core = edge()
    client = rig.wire(Transport.UDP)
    route = recorded(rig, client, "")
    rig.give(core, by_route(route, "INVITE"))
    client.fail("unreachable")
    rig.run_soon()
    assert core.statuses("INVITE") == [100, 430]
    core.take()
    rig.give(core, by_route(route, "INVITE"))
    assert core.statuses("INVITE")[-1] == 430
