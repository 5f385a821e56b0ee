"""Role registrar: which flow of which device gets a request, and what comes of one that fails (RFC 5626 §7, RFC 3327)."""

from __future__ import annotations

import pytest

from edge.connections import Transport
from tests.outbound.home import OTHER, PHONE, Home, path_of
from tests.sip.rig import answer, follow_up, request

OK = 200


@pytest.fixture
def home() -> Home:
    return Home()


@pytest.mark.requirement("OB-TGT-01")
def test_rfc5626_7_one_branch_for_each_instance_and_never_for_each_reg_id(home: Home) -> None:
    for reg_id, edge in ((1, "e1"), (2, "e2")):
        home.register(edge, reg_id)
        home.register(edge, reg_id + 2, instance=OTHER)
    home.call()
    routes = [request.values("Route")[0] for edge in ("e1", "e2") for request in home.sent(edge)]
    assert sorted(routes) == [path_of("e2", 2), path_of("e2", 4)]


@pytest.mark.requirement("OB-TGT-01", "OB-TGT-07")
def test_rfc5626_7_an_instance_without_reg_id_is_one_device_too(home: Home) -> None:
    phones = [home.rig.wire() for _ in range(2)]
    for wire in phones:
        home.rig.register("bob", wire, parameters=f';+sip.instance="<{PHONE}>"')
        home.rig.advance(1)
    home.call()
    assert [len(wire.requests("INVITE")) for wire in phones] == [0, 1]
    home.rig.give(phones[1], answer(phones[1].requests("INVITE")[0], 486))
    assert (phones[0].requests("INVITE"), home.caller.statuses("INVITE")) == ([], [100, 486])


@pytest.mark.requirement("OB-TGT-02")
def test_rfc3261_16_6_groups_go_by_q(home: Home) -> None:
    home.register("e1", 1, parameters=";q=0.5")
    home.register("e2", 2, instance=OTHER, parameters=";q=1.0")
    home.call()
    assert (len(home.sent("e1")), len(home.sent("e2"))) == (0, 1)
    home.reply("e2", 486)
    assert len(home.sent("e1")) == 1


@pytest.mark.requirement("OB-TGT-02")
def test_rfc3261_16_6_devices_of_equal_q_are_rung_together(home: Home) -> None:
    home.register("e1", 1, parameters=";q=0.5")
    home.register("e2", 2, instance=OTHER, parameters=";q=0.5")
    home.call()
    assert (len(home.sent("e1")), len(home.sent("e2"))) == (1, 1)


@pytest.mark.requirement("OB-TGT-02")
def test_rfc3261_16_6_devices_of_equal_q_are_rung_one_after_the_other_where_that_is_set() -> None:
    home = Home(sip={"forking": "serial"})
    home.register("e1", 1, parameters=";q=0.5")
    home.register("e2", 2, instance=OTHER, parameters=";q=0.5")
    home.call()
    assert (len(home.sent("e1")), len(home.sent("e2"))) == (1, 0)
    home.reply("e1", 486)
    assert len(home.sent("e2")) == 1
    home.reply("e2", 486)
    assert home.caller.statuses("INVITE") == [100, 486]


@pytest.mark.requirement("OB-TGT-02")
def test_rfc3261_16_6_where_not_all_can_be_rung_the_highest_q_is() -> None:
    home = Home(limits={"branches": 1})
    home.register("e1", 1, parameters=";q=0.5")
    home.register("e2", 2, instance=OTHER, parameters=";q=1.0")
    home.call()
    home.reply("e2", 486)
    assert (home.sent("e1"), home.caller.statuses("INVITE")) == ([], [100, 486])


def order(home: Home) -> list[str]:
    """The edges a request goes to when every flow of a device fails, one after the other."""
    found: list[str] = []
    home.call()
    while True:
        tried = [edge for edge in ("e1", "e2") if home.sent(edge)]
        if not tried:
            return found
        (edge,) = tried
        found += [edge]
        home.reply(edge, 430)
        home.to[edge].take()


@pytest.mark.requirement("OB-TGT-03")
@pytest.mark.parametrize(
    ("setting", "qs", "expected"),
    [
        ("recent", ("", ""), ["e1", "e2"]),
        ("regid", ("", ""), ["e2", "e1"]),
        ("recent", (";q=0.9", ";q=0.3"), ["e2", "e1"]),
        ("regid", (";q=0.3", ";q=0.9"), ["e1", "e2"]),
    ],
)
def test_rfc5626_7_the_flows_of_a_device_are_tried_in_the_order_set(
    setting: str, qs: tuple[str, str], expected: list[str]
) -> None:
    home = Home(outbound={"flow_order": setting})
    home.register("e2", 1, parameters=qs[0])
    home.register("e1", 2, parameters=qs[1])
    assert order(home) == expected


@pytest.mark.requirement("OB-TGT-03", "OB-SGL-02")
@pytest.mark.parametrize(("silence_s", "reached"), [(120, ["newer"]), (140, ["older", "newer"]), (260, ["older"])])
def test_rfc5626_7_a_flow_in_doubt_comes_after_one_that_speaks_and_a_dead_one_not_at_all(
    home: Home, silence_s: float, reached: list[str]
) -> None:
    """Flow-Timer 120: in doubt from 130 s of silence on, dead from 250 s on."""
    flows = {"older": home.direct(1), "newer": home.direct(2)}
    home.rig.advance(silence_s)
    flows["older"].last_received = home.rig.clock.now
    home.call()
    if reached == ["older", "newer"]:
        assert flows["newer"].requests("INVITE") == []
        flows["older"].close("peer")
        home.rig.run_soon()
    assert [name for name, wire in flows.items() if reached.count(name) and wire.sent] == reached
    assert home.rig.asked == []


@pytest.mark.requirement("OB-TGT-04", "OB-TGT-08", "OB-TGT-09", "OB-TGT-11")
def test_rfc5626_7_430_moves_on_to_the_next_flow_while_another_phone_rings(home: Home) -> None:
    home.register("e2", 2)
    home.register("e1", 1)
    other = home.direct(1, instance=OTHER)
    home.call()
    home.rig.give(other, answer(other.requests("INVITE")[0], 180))
    (first,) = home.sent("e1")
    assert (first.values("Route"), home.sent("e2")) == ([path_of("e1", 1)], [])
    home.reply("e1", 430)
    (second,) = home.sent("e2")
    assert second.values("Route") == [path_of("e2", 2)]
    assert first.values("Via")[0].split("branch=")[1] != second.values("Via")[0].split("branch=")[1]
    assert (first.uri, second.uri) == ("sip:bob@10.0.0.1:5062", "sip:bob@10.0.0.2:5062")
    assert other.requests("CANCEL") == []
    assert [ack.values("Route") for ack in home.sent("e1", "ACK")] == [[path_of("e1", 1)]]
    home.reply("e2", OK)
    assert home.caller.statuses("INVITE") == [100, 180, 200]
    assert home.reg_ids() == [1, 2]  # the other phone's 1; ours, which failed, is gone


@pytest.mark.requirement("OB-TGT-05")
def test_only_the_registration_that_was_tried_is_removed(home: Home) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    home.call()
    home.reply("e2", 430)
    assert home.reg_ids() == [1]
    home.register("e2", 2)
    home.call()
    home.register("e2", 2, path=path_of("e2", 22))
    home.reply("e2", 430)
    assert home.reg_ids() == [1, 2]
    home.reply("e1", 430)
    assert home.reg_ids() == [2]


@pytest.mark.requirement("OB-TGT-06")
def test_rfc5626_7_a_flow_that_says_nothing_has_failed_like_one_that_is_gone(home: Home) -> None:
    home.register("e1", 1)
    dead = home.direct(2, transport=Transport.UDP)
    home.call("MESSAGE")
    home.rig.advance(9)
    assert len(dead.requests("MESSAGE")) > 3
    assert home.reg_ids() == [1]
    assert len(home.sent("e1", "MESSAGE")) == 1
    home.reply("e1", OK, "MESSAGE")
    assert home.caller.statuses("MESSAGE")[-1] == 200


@pytest.mark.requirement("OB-TGT-06")
def test_rfc3261_16_9_an_edge_that_cannot_be_reached_has_failed_with_its_flows(home: Home) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    home.call()
    home.to["e2"].fail("refused")
    home.rig.run_soon()
    assert (len(home.sent("e1")), home.reg_ids()) == (1, [1])


@pytest.mark.requirement("OB-TGT-06")
def test_rfc5626_7_a_408_that_was_received_moves_on_and_removes_nothing(home: Home) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    home.call()
    home.reply("e2", 408)
    assert (len(home.sent("e1")), home.reg_ids()) == (1, [1, 2])


@pytest.mark.requirement("OB-TGT-06")
@pytest.mark.parametrize("end", ["timer C", "408"])
def test_rfc3261_16_8_who_rang_is_not_rung_again(home: Home, end: str) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    home.call()
    home.reply("e2", 180)
    if end == "timer C":
        home.rig.advance(186)
        assert len(home.sent("e2", "CANCEL")) == 1
        home.reply("e2", 487)
    else:
        home.reply("e2", 408)
    assert (home.sent("e1"), home.reg_ids()) == ([], [1, 2])
    assert home.caller.statuses("INVITE")[:2] == [100, 180]
    assert len(home.caller.statuses("INVITE")) == 3


@pytest.mark.requirement("OB-TGT-07")
def test_rfc5626_7_any_other_answer_is_the_answer_of_the_device_in_every_q(home: Home) -> None:
    home.register("e1", 1, parameters=";q=0.5")
    home.register("e2", 2, parameters=";q=1.0")
    home.call()
    home.reply("e2", 486)
    assert (home.sent("e1"), home.caller.statuses("INVITE")) == ([], [100, 486])
    assert home.reg_ids() == [1, 2]


@pytest.mark.requirement("OB-TGT-09")
def test_rfc3327_5_4_a_path_is_routed_in_its_order_before_the_route_left(home: Home) -> None:
    path = "<sip:e1.example;lr>, <sip:f1.token1@e9.example;lr;ob>"
    home.register("e1", 1, path=path)
    home.call(Route="<sip:edge.example:5060;lr>")
    (invite,) = home.sent("e1")
    assert invite.values("Route") == path.split(", ")
    assert home.rig.asked == ["sip:e1.example;lr"]


@pytest.mark.requirement("OB-TGT-10")
def test_rfc3261_16_10_nothing_is_tried_after_cancel(home: Home) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    invite = home.call()
    home.reply("e2", 100)
    home.rig.give(home.caller, follow_up("CANCEL", invite))
    home.reply("e2", 430)
    assert home.sent("e1") == []
    assert home.caller.statuses("INVITE") == [100, 487]


@pytest.mark.requirement("OB-TGT-10")
@pytest.mark.parametrize("final", [200, 603])
def test_rfc3261_16_7_nothing_is_tried_after_2xx_and_6xx(home: Home, final: int) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    other = home.direct(1, instance=OTHER)
    home.call()
    home.rig.give(other, answer(other.requests("INVITE")[0], final))
    home.reply("e2", 430)
    assert home.sent("e1") == []
    assert home.caller.statuses("INVITE") == [100, final]


@pytest.mark.requirement("OB-TGT-11")
@pytest.mark.parametrize(("others", "best"), [([], 480), ([486], 486), ([503], 480), ([404], 404)])
def test_rfc5626_11_5_no_430_goes_up(home: Home, others: list[int], best: int) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    phones = [home.direct(1, instance=OTHER) for _ in others]
    home.call()
    home.reply("e2", 430)
    home.reply("e1", 430)
    for wire, status in zip(phones, others, strict=True):
        home.rig.give(wire, answer(wire.requests("INVITE")[0], status))
    assert home.caller.statuses("INVITE") == [100, best]


@pytest.mark.requirement("OB-TGT-11")
def test_rfc5626_11_5_a_430_for_a_request_inside_a_dialog_becomes_480(home: Home) -> None:
    """It went along a Route of its own, so nothing is known here of other flows."""
    route = ", ".join(["<sip:edge.example:5060;lr>", path_of("e1", 1)])
    home.rig.give(home.caller, request("BYE", "sip:bob@10.0.0.1", to="<sip:bob@example.com>;tag=b", Route=route))
    home.reply("e1", 430, "BYE")
    assert home.caller.statuses("BYE") == [480]


@pytest.mark.requirement("OB-TGT-12")
def test_rfc4320_ten_dead_flows_are_answered_for_while_the_caller_waits() -> None:
    home = Home(limits={"flows_per_instance": 10})
    dead = [home.direct(number, transport=Transport.UDP) for number in range(1, 11)]
    began = home.rig.clock.now
    home.call("MESSAGE")
    while 480 not in home.caller.statuses("MESSAGE") and home.rig.clock.now < began + 40:
        home.rig.advance(0.5)
    assert home.rig.clock.now - began < 32
    assert sum(bool(wire.requests("MESSAGE")) for wire in dead) == 8


@pytest.mark.requirement("OB-GRU-09", "OB-EDLG-05")
def test_rfc5627_6_2_what_goes_through_an_edge_is_recorded_without_a_token(home: Home) -> None:
    """The flows of both clients are at their edges; our connections to edges may come and go."""
    home.register("e1", 1)
    vias = "SIP/2.0/TCP e2.example;branch=z9hG4bKx, SIP/2.0/TCP 10.0.0.9;branch=z9hG4bKy"
    recorded = "<sip:f1.token9@e2.example;transport=tcp;lr>"
    invite = request("INVITE", "sip:bob@example.com", via=vias, Record_Route=recorded, Contact="<sip:a@10.0.0.9;ob>")
    home.rig.give(home.of["e2"], invite)
    assert home.sent("e1")[0].values("Record-Route") == ["<sip:edge.example:5060;transport=tcp;lr>", recorded]


@pytest.mark.requirement("OB-TGT-12")
@pytest.mark.parametrize(
    ("outbound", "delivered"), [({"late_flow": 3.0}, True), ({"late_flow": 0.0}, False), ({}, False)]
)
def test_rfc3261_16_5_a_device_that_comes_back_in_time_gets_the_request(
    outbound: dict[str, float], delivered: bool
) -> None:
    home = Home(outbound=outbound)
    home.register("e1", 1)
    home.call()
    home.reply("e1", 430)
    assert home.caller.statuses("INVITE") == ([100] if delivered else [100, 480])
    home.rig.advance(1)
    home.register("e1", 1, instance=OTHER)  # another device is not the one that is waited for
    assert len(home.sent("e1")) == 1
    home.register("e2", 2)
    assert [invite.uri for invite in home.sent("e2")] == (["sip:bob@10.0.0.2:5062"] if delivered else [])
    if delivered:
        home.reply("e2", OK)
        assert home.caller.statuses("INVITE") == [100, 200]


@pytest.mark.requirement("OB-TGT-12")
def test_rfc4320_whatever_the_setting_nobody_is_waited_for_beyond_the_life_of_the_request() -> None:
    home = Home(outbound={"late_flow": 60.0})
    home.register("e1", 1)
    home.call("MESSAGE")
    home.reply("e1", 430, "MESSAGE")
    home.rig.advance(29)
    assert home.caller.statuses("MESSAGE") == [100]
    home.rig.advance(2)
    assert home.caller.statuses("MESSAGE") == [100, 480]


@pytest.mark.requirement("OB-TGT-12")
@pytest.mark.parametrize("end", ["time", "cancel"])
def test_nobody_waits_longer_than_the_caller_and_the_setting_allow(end: str) -> None:
    home = Home(outbound={"late_flow": 3.0})
    home.register("e1", 1)
    invite = home.call()
    home.reply("e1", 430)
    if end == "cancel":
        home.rig.give(home.caller, follow_up("CANCEL", invite))
        assert home.caller.statuses("INVITE") == [100, 487]
    else:
        home.rig.advance(2.8)
        assert home.caller.statuses("INVITE") == [100]
        home.rig.advance(0.4)
        assert home.caller.statuses("INVITE") == [100, 480]
    latecomers = home.rig.core.latecomers
    assert latecomers is not None
    assert len(latecomers) == 0
    home.register("e2", 2)
    assert home.sent("e2") == []
