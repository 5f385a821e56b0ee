"""Session timers as a proxy asks for them (RFC 4028 §8), and the keep parameter of Via (RFC 6223)."""

from __future__ import annotations

import pytest

from edge.connections import Transport
from tests.sip.rig import Rig, Wire, answer, request
from tests.ua.sip_message import Request, Response

TIMER = {"session_expires": 600, "min_session_expires": 120}


class Call:
    """An INVITE from a wire of its own to bob, and what comes of it."""

    def __init__(self, rig: Rig, *, method: str = "INVITE", via: str | None = None, **headers: str) -> None:
        self.rig = rig
        self.bob = rig.register("bob")
        self.caller = rig.wire()
        rig.give(self.caller, request(method, "sip:bob@example.com", via=via, **headers))

    @property
    def relayed(self) -> Request:
        (relayed,) = self.bob.requests()
        return relayed

    def answered(self, status: int, *extra: tuple[str, str]) -> Response:
        """Bob answers: what reaches the caller."""
        reply = answer(self.relayed, status, extra=extra)
        self.caller.take()
        self.rig.give(self.bob, reply)
        (response,) = self.caller.responses()
        return response


@pytest.mark.requirement("SIP-SES-02")
@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
@pytest.mark.parametrize(
    ("headers", "interval", "minimum"),
    [
        ({}, ["600"], []),
        ({"Min_SE": "900"}, ["900"], ["900"]),
        ({"Session_Expires": "1800;refresher=uas"}, ["600;refresher=uas"], []),
        ({"Session_Expires": "1800", "Min_SE": "700"}, ["700"], ["700"]),
        ({"Session_Expires": "1800;refresher=uac", "Min_SE": "1800"}, ["1800;refresher=uac"], ["1800"]),
        ({"Session_Expires": "300;refresher=uac", "Supported": "timer"}, ["300;refresher=uac"], []),
        ({"Session_Expires": "90"}, ["120"], ["120"]),
        ({"Session_Expires": "90;refresher=uac", "Min_SE": "90"}, ["120;refresher=uac"], ["120"]),
        ({"x": "90"}, ["120"], ["120"]),
    ],
)
def test_rfc4028_8_1_a_proxy_inserts_and_lowers_and_never_goes_below_min_se(
    headers: dict[str, str], interval: list[str], minimum: list[str], method: str
) -> None:
    relayed = Call(Rig(sip=TIMER), method=method, **headers).relayed
    assert relayed.all("Session-Expires") == interval
    assert relayed.all("Min-SE") == minimum


@pytest.mark.requirement("SIP-SES-02")
def test_rfc4028_8_1_what_is_too_short_is_refused_to_one_who_knows_timers() -> None:
    call = Call(Rig(sip=TIMER), Session_Expires="90", Supported="replaces, timer")
    assert call.bob.requests() == []
    (refusal,) = call.caller.responses()
    assert (refusal.status, refusal.all("Min-SE")) == (422, ["120"])


@pytest.mark.requirement("SIP-SES-02")
@pytest.mark.parametrize(
    "headers", [{"Session_Expires": "soon"}, {"extra": (("x", "90"), ("Session-Expires", "9000"))}]
)
def test_a_session_expires_that_cannot_be_read_passes_untouched(headers: dict[str, str]) -> None:
    call = Call(Rig(sip=TIMER), Supported="timer", **headers)
    expected = ["soon"] if "Session_Expires" in headers else ["90", "9000"]
    assert call.relayed.all("Session-Expires") == expected
    assert call.answered(200).all("Session-Expires") == []


@pytest.mark.requirement("SIP-SES-03")
@pytest.mark.parametrize("headers", [{}, {"Session_Expires": "1800"}, {"Session_Expires": "600;refresher=uas"}])
def test_rfc4028_8_2_a_caller_who_knows_timers_refreshes_where_the_callee_does_not(headers: dict[str, str]) -> None:
    response = Call(Rig(sip=TIMER), Supported="timer", **headers).answered(200)
    assert response.all("Session-Expires") == ["600;refresher=uac"]
    assert response.all("Require") == ["timer"]


@pytest.mark.requirement("SIP-SES-03")
def test_rfc4028_8_2_what_the_callee_said_stands_and_nobody_else_is_asked() -> None:
    said = (("Session-Expires", "300;refresher=uas"), ("Require", "timer"))
    response = Call(Rig(sip=TIMER), Supported="timer").answered(200, *said)
    assert response.all("Session-Expires") == ["300;refresher=uas"]
    assert response.all("Require") == ["timer"]
    assert Call(Rig(sip=TIMER)).answered(200).all("Session-Expires") == []  # the caller knows no timers
    assert Call(Rig(sip=TIMER), Supported="timer").answered(486).all("Session-Expires") == []
    assert Call(Rig(), Supported="timer", Session_Expires="90").answered(200).all("Session-Expires") == []  # not asked


@pytest.mark.requirement("SIP-SES-03")
def test_rfc4028_8_2_a_require_that_names_timer_already_is_not_doubled() -> None:
    response = Call(Rig(sip=TIMER), Supported="timer").answered(200, ("Require", "Timer"))
    assert response.all("Session-Expires") == ["600;refresher=uac"]
    assert response.all("Require") == ["Timer"]


@pytest.mark.requirement("SIP-SES-02", "SIP-SES-03")
@pytest.mark.parametrize("method", ["MESSAGE", "BYE", "OPTIONS"])
def test_only_what_refreshes_a_session_is_touched(method: str) -> None:
    call = Call(Rig(sip=TIMER), method=method, Supported="timer")
    assert call.relayed.all("Session-Expires") == []
    assert call.answered(200).all("Session-Expires") == []


VIA = "SIP/2.0/TCP caller.example:5060;branch=z9hG4bKk1"


def top_via(response: Response) -> str:
    return response.all("Via")[0]


@pytest.mark.requirement("OB-KA-14")
@pytest.mark.parametrize("via", [f"{VIA};keep;rport", f"{VIA};rport;keep", f"{VIA};KEEP"])
def test_rfc6223_4_4_a_call_that_is_record_routed_gets_a_value_and_nobody_else_sees_it(via: str) -> None:
    rig = Rig()
    call = Call(rig, via=via)
    assert [value.lower().count("keep=") for value in call.relayed.all("Via")] == [0, 0]
    assert ";keep=120" in top_via(call.answered(180))
    assert ";keep=120" in top_via(call.answered(200))


@pytest.mark.requirement("OB-KA-14")
def test_rfc6223_4_4_no_value_without_a_dialog_a_record_route_or_a_question() -> None:
    assert "keep=" not in top_via(Call(Rig(), via=f"{VIA};keep").answered(486))
    assert "keep=" not in top_via(Call(Rig(), via=f"{VIA};keep", method="MESSAGE").answered(200))
    assert "keep" not in top_via(Call(Rig(), via=VIA).answered(200))
    assert ";keep=30" not in top_via(Call(Rig(), via=f"{VIA};keep=30").answered(200))


def with_value(response: bytes) -> bytes:
    """What a proxy further on may do to the Via of somebody else."""
    return response.replace(b";keep", b";keep=1")


@pytest.mark.requirement("OB-KA-14")
@pytest.mark.parametrize(("method", "value"), [("INVITE", ";keep=120"), ("MESSAGE", ";keep")])
def test_rfc6223_4_4_a_value_somebody_else_wrote_does_not_reach_the_client(method: str, value: str) -> None:
    rig = Rig()
    call = Call(rig, via=f"{VIA};keep;x=y", method=method)
    call.caller.take()
    rig.give(call.bob, with_value(answer(call.relayed, 200)))
    (response,) = call.caller.responses()
    assert f"{value};x=y" in top_via(response)


@pytest.mark.requirement("OB-KA-14")
def test_rfc6223_4_4_a_via_row_that_holds_both_values_is_settled_too() -> None:
    rig = Rig()
    call = Call(rig, via=f"{VIA};keep")
    call.caller.take()
    joined = answer(call.relayed, 200).replace(b"\r\nVia: SIP/2.0/TCP caller", b", SIP/2.0/TCP caller", 1)
    rig.give(call.bob, joined)
    (response,) = call.caller.responses()
    assert ";keep=120" in top_via(response)


def register_with_keep(rig: Rig, wire: Wire, cseq: int = 1, **headers: str) -> Response:
    headers = {"Contact": "<sip:carol@198.51.100.9>", "Expires": "600"} | headers
    via = f"SIP/2.0/TCP c.example:5060;branch=z9hG4bKr{cseq};keep;rport"
    wire.take()
    data = request(
        "REGISTER", "sip:example.com", to="<sip:carol@example.com>", via=via, cseq=cseq, call_id="r", **headers
    )
    if not rig.core.receive_refresh(wire, data, rig.clock.now):
        rig.give(wire, data)
    (response,) = wire.responses()
    assert response.status == 200
    return response


@pytest.mark.requirement("OB-KA-14")
def test_rfc6223_4_4_a_registration_is_told_how_often_and_so_is_each_refresh() -> None:
    rig = Rig()
    wire = rig.wire()
    for cseq in range(1, 5):
        response = register_with_keep(rig, wire, cseq)
        assert ";keep=120" in top_via(response)
        assert response.all("Flow-Timer") == []
    (flow,) = [flow for flow in rig.core.flows if flow.connection is wire]
    assert flow.flow_timer == 120  # and its silence is watched


@pytest.mark.requirement("OB-KA-14")
def test_rfc6223_4_4_keep_and_flow_timer_say_the_same() -> None:
    rig = Rig()
    response = register_with_keep(
        rig,
        rig.wire(),
        Supported="path, outbound",
        Contact='<sip:carol@198.51.100.9>;reg-id=1;+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"',
    )
    assert ";keep=120" in top_via(response)
    assert response.all("Flow-Timer") == ["120"]


@pytest.mark.requirement("OB-KA-15")
@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.UDP])
def test_nobody_is_pinged_by_us(transport: Transport) -> None:
    rig = Rig()
    wire = rig.register("carol", rig.wire(transport))
    for _ in range(30):
        rig.advance(10)
        rig.table.wheel.advance(rig.clock.now)
    assert wire.sent == []
