"""The worked examples a registrar answers: outbound.md E12 to E14 and E16 (E15 is in `tests/proxyprotocol`).

As in the collection, but for our names, for what we choose (tags, tokens, temporary GRUUs, the order of lines), for the
Date we always write, and for `received`, which we always write too.
"""

from __future__ import annotations

import re

import pytest

from edge.connections import Transport
from edge.websocket import UpgradeRules, WebSocketUpgrade
from tests.sip.registering import Counter
from tests.sip.rig import Wire
from tests.websocket.test_stream import MASK, frame
from tests.websocket.test_upgrade import E12, E12_ANSWER

TOVE = '"<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
IRIS = '"<urn:uuid:b2d90e17-5a44-4f6b-9c03-7e12f08a6d51>"'
E12_REGISTER = f"""
REGISTER sip:calm.example SIP/2.0
Via: SIP/2.0/WSS t8w2m0.invalid;branch=z9hG4bK-wb-1
Max-Forwards: 70
From: <sip:iris@calm.example>;tag=ir1
To: <sip:iris@calm.example>
Call-ID: ws-1-77q
CSeq: 1 REGISTER
Supported: path, outbound, gruu
Contact: <sip:kk4v1q@t8w2m0.invalid;transport=ws>;reg-id=1;+sip.instance={IRIS};expires=600
Content-Length: 0
"""
E12_200 = f"""
SIP/2.0 200 OK
Via: SIP/2.0/WSS t8w2m0.invalid;branch=z9hG4bK-wb-1;received=203.0.113.77
From: <sip:iris@calm.example>;tag=ir1
To: <sip:iris@calm.example>;tag=TAG
Call-ID: ws-1-77q
CSeq: 1 REGISTER
Path: <sip:TOKEN@edge.example:5060;transport=ws;lr;ob>
Supported: path, outbound
Require: outbound
Contact: <sip:kk4v1q@t8w2m0.invalid;transport=ws>;reg-id=1;+sip.instance={IRIS};expires=600\
;pub-gruu="sip:iris@calm.example;gr={IRIS[2:-2]}";temp-gruu="TEMPORARY"
Flow-Timer: 120
Content-Length: 0
"""
REGISTER = """
REGISTER sip:calm.example SIP/2.0
Via: SIP/2.0/TCP 10.77.3.9:{port};branch=z9hG4bK-tv-r{serial};rport
Route: <sip:edge.example:5060;transport=tcp;lr>
Max-Forwards: 70
From: <sip:tove@calm.example>;tag=tv{serial}
To: <sip:tove@calm.example>
Call-ID: {call_id}
CSeq: {cseq} REGISTER
Supported: path, outbound, gruu
{rest}
Content-Length: 0
"""
E13_200 = f"""
SIP/2.0 200 OK
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r9;rport=40112;received=203.0.113.77
From: <sip:tove@calm.example>;tag=tv9
To: <sip:tove@calm.example>;tag=TAG
Call-ID: r1-8842@10.77.3.9
CSeq: 9 REGISTER
Path: <sip:TOKEN@edge.example:5060;transport=tcp;lr;ob>
Supported: path, outbound
Require: outbound
Flow-Timer: 120
Contact: <sip:tove@10.77.3.9:51946;transport=tcp>;reg-id=2;+sip.instance={TOVE};expires=1212\
;pub-gruu="sip:tove@calm.example;gr={TOVE[2:-2]}";temp-gruu="TEMPORARY"
Content-Length: 0
"""
E13_ALL_200 = """
SIP/2.0 200 OK
Via: SIP/2.0/TCP 10.77.3.9:51946;branch=z9hG4bK-tv-r10;rport=40112;received=203.0.113.77
From: <sip:tove@calm.example>;tag=tv10
To: <sip:tove@calm.example>;tag=TAG
Call-ID: r2-1170@10.77.3.9
CSeq: 4 REGISTER
Supported: path, outbound
Content-Length: 0
"""
E14 = f"""
REGISTER sip:calm.example SIP/2.0
Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK-old-1
Via: SIP/2.0/UDP 10.77.3.9:5062;branch=z9hG4bK-tv-r20;rport=40112;received=203.0.113.77
Path: <sip:192.0.2.66;lr>
Max-Forwards: 69
From: <sip:tove@calm.example>;tag=tvC1
To: <sip:tove@calm.example>
Call-ID: r3-0093@10.77.3.9
CSeq: 1 REGISTER
Supported: path, outbound
Contact: <sip:tove@10.77.3.9:5062>;reg-id=1;+sip.instance={TOVE}
Expires: 1800
Content-Length: 0
"""
E14_439 = """
SIP/2.0 439 First Hop Lacks Outbound Support
Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK-old-1
Via: SIP/2.0/UDP 10.77.3.9:5062;branch=z9hG4bK-tv-r20;rport=40112;received=203.0.113.77
From: <sip:tove@calm.example>;tag=tvC1
To: <sip:tove@calm.example>;tag=TAG
Call-ID: r3-0093@10.77.3.9
CSeq: 1 REGISTER
Supported: path, outbound
Content-Length: 0
"""
E16_423 = """
SIP/2.0 423 Interval Too Brief
Via: SIP/2.0/TCP 10.77.3.9:51944;branch=z9hG4bK-tv-r30;rport=40112;received=203.0.113.77
From: <sip:tove@calm.example>;tag=tv30
To: <sip:tove@calm.example>;tag=TAG
Call-ID: r1-8842@10.77.3.9
CSeq: 12 REGISTER
Min-Expires: 60
Content-Length: 0
"""


@pytest.fixture
def counter() -> Counter:
    return Counter(domains=("calm.example",), sip={"trusted_edges": ("192.0.2.0/24",)})


def octets(text: str) -> bytes:
    return text.strip("\n").replace("\n", "\r\n").encode() + b"\r\n\r\n"


def answered(counter: Counter, wire: Wire, request: str) -> list[str]:
    """The lines of the one answer, sorted behind the first, with our own choices replaced by their names."""
    text = counter.ask(wire, octets(request)).raw.decode()
    text = re.sub(r"(\r\nTo: [^\r]*;tag=)[^\r]*", r"\1TAG", text)
    text = re.sub(r'temp-gruu="sip:tgruu\.[^"]*"', 'temp-gruu="TEMPORARY"', text)
    text = text.replace(counter.flows.token_of(wire).decode(), "TOKEN")
    first, *lines = re.sub(r"\r\nDate: [^\r]*", "", text).split("\r\n")
    assert lines[-2:] == ["", ""]
    return [first, *sorted(lines[:-2])]


def expected(text: str) -> list[str]:
    first, *lines = text.strip("\n").split("\n")
    return [first, *sorted(lines)]


def tove(port: int, serial: int, call_id: str, cseq: int, *rest: str) -> str:
    return REGISTER.format(port=port, serial=serial, call_id=call_id, cseq=cseq, rest="\n".join(rest))


def contact(port: int, reg_id: int, expires: str = "") -> str:
    return f"Contact: <sip:tove@10.77.3.9:{port};transport=tcp>;reg-id={reg_id};+sip.instance={TOVE}{expires}"


@pytest.mark.requirement("OB-WS-01", "OB-SGL-03", "OB-GRU-01")
def test_worked_example_12_a_browser_comes_and_registers(counter: Counter) -> None:
    upgrade = WebSocketUpgrade(UpgradeRules(), secure=True).receive_data(E12)
    assert upgrade is not None
    assert upgrade.response == E12_ANSWER
    register = octets(E12_REGISTER)
    assert len(register) == 401
    framed = frame(1, register)
    assert framed[:16] == bytes.fromhex("81fe0191") + MASK + bytes.fromhex("65bf667464ae646f")
    wire = counter.wire(Transport.WSS, ("203.0.113.77", 40112))
    assert answered(counter, wire, E12_REGISTER) == expected(E12_200)


@pytest.mark.requirement("OB-RIN-11", "OB-REG-07", "OB-FAIL-10", "OB-REG-12")
def test_worked_example_13_one_flow_is_removed_and_then_everything(counter: Counter) -> None:
    one, two = counter.wire(remote=("203.0.113.77", 40112)), counter.wire(remote=("203.0.113.77", 40113))
    for wire, port, number, call_id in ((one, 51944, 1, "r1-8842@10.77.3.9"), (two, 51946, 2, "r2-1170@10.77.3.9")):
        lines = answered(counter, wire, tove(port, number, call_id, 1, contact(port, number), "Expires: 1800"))
        assert lines[0] == "SIP/2.0 200 OK"
    counter.advance(588)
    removal = tove(51944, 9, "r1-8842@10.77.3.9", 9, contact(51944, 1, ";expires=0"))
    assert answered(counter, one, removal) == expected(E13_200)
    assert not one.closed
    assert [binding.connection for binding in counter.bindings(b"tove@calm.example")] == [two]
    everything = tove(51946, 10, "r2-1170@10.77.3.9", 4, "Contact: *", "Expires: 0")
    lines = answered(counter, two, everything)
    assert lines == expected(E13_ALL_200.replace("40112", "40113"))
    assert (counter.bindings(b"tove@calm.example"), two.closed) == ([], False)


@pytest.mark.requirement("OB-RIN-02")
def test_worked_example_14_a_first_hop_without_outbound_is_439(counter: Counter) -> None:
    wire = counter.wire(Transport.UDP, ("192.0.2.66", 5060))
    assert len(octets(E14)) == 511
    assert answered(counter, wire, E14) == expected(E14_439)
    assert counter.bindings(b"tove@calm.example") == []


@pytest.mark.requirement("OB-RIN-04")
def test_worked_example_14_where_439_is_spared_the_reg_id_is_ignored() -> None:
    counter = Counter(domains=("calm.example",), sip={"trusted_edges": ("192.0.2.0/24",)}, outbound={"lenient": True})
    lines = answered(counter, counter.wire(Transport.UDP, ("192.0.2.66", 5060)), E14)
    assert lines[0] == "SIP/2.0 200 OK"
    assert not any(line.startswith("Require") or "reg-id" in line for line in lines)
    (binding,) = counter.bindings(b"tove@calm.example")
    assert (binding.reg_id, binding.path) == (0, (b"<sip:192.0.2.66;lr>",))


@pytest.mark.requirement("OB-REG-09")
def test_worked_example_16_too_brief_an_interval_is_423(counter: Counter) -> None:
    wire = counter.wire(remote=("203.0.113.77", 40112))
    asked = tove(51944, 30, "r1-8842@10.77.3.9", 12, contact(51944, 1), "Expires: 10")
    assert answered(counter, wire, asked) == expected(E16_423)
