"""Edge and registrar in one: nothing goes over the wire to ourselves, and what fails is found out inside (RFC 5626 §6, §7)."""

from __future__ import annotations

import pytest

from edge.connections import Transport
from edge.outbound.flows import FlowState
from tests.outbound.home import OTHER, PHONE, Home
from tests.sip.registering import Counter, flow_contact
from tests.sip.rig import Rig, Wire, answer, request

BOB = b"bob@example.com"


@pytest.fixture
def home() -> Home:
    return Home()


def token_route(home: Home, flow: Wire) -> str:
    token = home.rig.core.flows.token_of(flow).decode()
    return f"<sip:{token}@edge.example:5060;transport=tcp;lr>"


def bye(home: Home, route: str, uri: str = "sip:bob@10.0.1.1:5062") -> None:
    home.rig.give(home.caller, request("BYE", uri, to="<sip:bob@example.com>;tag=b", Route=route))


@pytest.mark.requirement("OB-SGL-01", "OB-SGL-02")
def test_a_call_whose_first_flow_is_dead_takes_the_second_at_once_and_nothing_leaves_for_ourselves(home: Home) -> None:
    """The first found dead when it is used: what leaves is one INVITE, for the second flow, in the same turn."""
    second, first = home.direct(2), home.direct(1)
    home.rig.advance(140)
    for wire in (second, first):
        wire.last_received = home.rig.clock.now
    first.last_received -= 300
    began = home.rig.clock.now
    everybody = [wire for wire in home.rig.table.connections.values() if isinstance(wire, Wire)]
    home.call()
    assert [(wire, at) for wire in everybody for at, data in wire.sent if not data.startswith(b"SIP/2.0")] == [
        (second, began)
    ]
    assert {wire for wire in everybody if wire.sent} == {second, home.caller}
    assert (home.rig.asked, home.caller.statuses()) == ([], [100])


@pytest.mark.requirement("OB-SGL-02")
@pytest.mark.parametrize("reason", ["closed", "silent"])
def test_the_flows_of_a_device_are_walked_through_until_one_is_alive(home: Home, reason: str) -> None:
    flows = [home.direct(number) for number in (1, 2, 3)]
    home.rig.advance(260)
    flows[0].last_received = home.rig.clock.now
    if reason == "closed":
        for wire in flows[1:]:
            wire.close("peer")
    home.call()
    assert [len(wire.requests("INVITE")) for wire in flows] == [1, 0, 0]
    home.rig.give(flows[0], answer(flows[0].requests("INVITE")[0], 200))
    assert home.caller.statuses() == [100, 200]


@pytest.mark.requirement("OB-SGL-02", "OB-TGT-11")
def test_where_every_flow_is_dead_the_answer_comes_at_once(home: Home) -> None:
    flows = [home.direct(number) for number in (1, 2)]
    home.rig.advance(260)
    home.call()
    assert home.caller.statuses() == [100, 480]
    assert [wire.sent for wire in flows] == [[], []]


@pytest.mark.requirement("OB-SGL-03")
def test_rfc5626_6_the_own_path_is_shown_to_who_supports_it() -> None:
    counter = Counter()
    wire = counter.wire()
    granted = counter.register(wire, flow_contact(), supported="path, outbound")
    assert wire.token is not None
    assert granted.values("Path") == [f"<sip:{wire.token.decode()}@edge.example:5060;transport=tcp;lr;ob>"]
    assert counter.register(wire, flow_contact(), supported="outbound").values("Path") == []
    wire.handler.receive_data(wire, b"\r\n\r\n", counter.clock.now)
    assert wire.take() == [b"\r\n"]


@pytest.mark.requirement("OB-SGL-04")
def test_direct_clients_and_those_behind_edges_ring_together(home: Home) -> None:
    direct = home.direct(1)
    home.register("e2", 1, instance=OTHER)
    home.call()
    assert (len(direct.requests("INVITE")), len(home.sent("e2"))) == (1, 1)
    assert direct.requests("INVITE")[0].all("Route") == []


@pytest.mark.requirement("OB-SGL-04")
def test_one_device_with_a_flow_here_and_one_over_an_edge_is_tried_over_both(home: Home) -> None:
    home.register("e2", 2)
    direct = home.direct(1)
    home.call()
    assert home.sent("e2") == []
    direct.close("peer")
    home.rig.run_soon()
    assert len(home.sent("e2")) == 1


@pytest.mark.requirement("OB-SGL-04", "OB-SGL-01")
@pytest.mark.parametrize("alive", [True, False])
def test_a_path_that_begins_with_ourselves_is_followed_inside(home: Home, alive: bool) -> None:
    flow = home.rig.wire()
    path = token_route(home, flow).replace(";lr>", ";lr;ob>")
    home.register("e1", 1, path=path)
    if not alive:
        flow.close("peer")
    home.call()
    assert home.rig.asked == []
    assert [invite.all("Route") for invite in flow.requests("INVITE")] == ([[]] if alive else [])
    assert home.caller.statuses() == ([100] if alive else [100, 480])
    assert home.reg_ids() == ([1] if alive else [])


@pytest.mark.requirement("OB-SGL-05")
def test_rfc5626_5_3_1_a_request_for_a_dead_flow_takes_another_of_the_device(home: Home) -> None:
    first, second = home.direct(1), home.direct(2)
    stranger = home.direct(1, instance=OTHER)
    route = token_route(home, first)
    first.close("peer")
    bye(home, route)
    (arrived,) = second.requests("BYE")
    assert (arrived.uri, arrived.all("Route"), stranger.sent) == ("sip:bob@10.0.1.1:5062", [], [])
    second.close("peer")
    home.rig.run_soon()
    home.caller.take()
    bye(home, route)
    assert home.caller.statuses("BYE") == [430]


@pytest.mark.requirement("OB-SGL-05")
def test_rfc5626_5_3_1_a_dead_flow_of_nobody_is_430(home: Home) -> None:
    wire = home.rig.wire()
    route = token_route(home, wire)
    wire.close("peer")
    bye(home, route)
    assert home.caller.statuses("BYE") == [430]


@pytest.mark.requirement("OB-EDLG-11")
@pytest.mark.parametrize(
    ("one", "other"), [(Transport.TCP, Transport.TCP), (Transport.UDP, Transport.UDP), (Transport.UDP, Transport.TCP)]
)
def test_rfc5626_5_3_a_call_between_two_of_our_flows_has_a_token_for_each_side(
    one: Transport, other: Transport
) -> None:
    """Contacts that lead nowhere: whatever either side sends within the dialog takes the flow of the other."""
    rig = Rig(outbound={"force": "all"})
    alice, bob = (rig.register(user, rig.wire(kind), contact=f"sip:{user}@nowhere.invalid") for user, kind in
                  (("alice", one), ("bob", other)))  # fmt: skip
    tokens = [rig.core.flows.token_of(wire).decode() for wire in (bob, alice)]
    rig.give(alice, request("INVITE", "sip:bob@example.com", Contact="<sip:alice@nowhere.invalid>"))
    (invite,) = bob.requests("INVITE")
    recorded = invite.values("Record-Route")
    assert [value.partition("@")[0] for value in recorded] == [f"<sip:{token}" for token in tokens]
    rig.give(bob, answer(invite, 200, extra=(("Contact", "<sip:bob@nowhere.invalid>"),)))
    assert alice.statuses("INVITE") == [100, 200]
    for sender, receiver, routes in ((alice, bob, recorded[::-1]), (bob, alice, recorded)):
        whom = "bob" if receiver is bob else "alice"
        for method in ("ACK", "INVITE", "BYE"):
            receiver.take()
            tag = f"<sip:{whom}@example.com>;tag=b1"
            rig.give(sender, request(method, f"sip:{whom}@nowhere.invalid", to=tag, Route=", ".join(routes)))
            (arrived,) = receiver.requests(method)
            assert (arrived.uri, arrived.all("Route")) == (f"sip:{whom}@nowhere.invalid", [])
    assert rig.asked == []


@pytest.mark.requirement("OB-RTE-06")
@pytest.mark.parametrize("datagram_first", [True, False])
def test_rfc5626_13_a_large_request_for_a_user_takes_a_stream_of_the_device(home: Home, datagram_first: bool) -> None:
    udp = home.direct(1, transport=Transport.UDP) if datagram_first else None
    tcp = home.direct(2)
    udp = udp or home.direct(1, transport=Transport.UDP)  # the one refreshed last is the best, but for the size
    home.call("MESSAGE", body=b"x" * 3000)
    assert (len(tcp.requests("MESSAGE")), udp.sent) == (1, [])
    tcp.take()
    home.call("MESSAGE", body=b"small")
    best, other = (tcp, udp) if datagram_first else (udp, tcp)
    assert (len(best.requests("MESSAGE")), other.sent) == (1, [])


@pytest.mark.requirement("OB-RTE-06")
def test_rfc5626_13_a_large_request_goes_as_a_datagram_where_the_stream_is_dead(home: Home) -> None:
    udp, tcp = home.direct(1, transport=Transport.UDP), home.direct(2)
    tcp.close("peer")
    home.call("MESSAGE", body=b"x" * 3000)
    assert len(udp.requests("MESSAGE")) == 1


@pytest.mark.requirement("OB-RTE-06", "OB-SGL-05")
def test_rfc5626_13_a_large_request_for_a_dead_flow_takes_the_stream_before_the_datagram(home: Home) -> None:
    tcp, udp, dead = home.direct(2), home.direct(3, transport=Transport.UDP), home.direct(1)
    route = token_route(home, dead)
    dead.close("peer")
    home.rig.give(home.caller, request("MESSAGE", "sip:bob@10.0.1.1:5062", Route=route, body=b"x" * 3000))
    assert (len(tcp.requests("MESSAGE")), udp.sent) == (1, [])


@pytest.mark.requirement("OB-RTE-06")
@pytest.mark.parametrize(("contact", "first"), [("sip:bob@10.0.0.1;transport=TCP", "e1"), ("sip:bob@10.0.0.1", "e2")])
def test_rfc5626_13_behind_edges_the_contact_tells_which_flow_is_a_stream(home: Home, contact: str, first: str) -> None:
    value = '<{}>;reg-id={};+sip.instance="<' + PHONE + '>"'
    home.register("e1", 1, Contact=value.format(contact, 1))
    home.register("e2", 2, Contact=value.format("sip:bob@10.0.0.2", 2))
    home.call("MESSAGE", body=b"x" * 3000)
    assert [len(home.sent(edge, "MESSAGE")) for edge in ("e1", "e2")] == [first == "e1", first == "e2"]


@pytest.mark.requirement("OB-FAIL-06")
def test_rfc5626_7_every_binding_of_a_flow_that_fails_is_gone(home: Home) -> None:
    wire = home.rig.wire()
    for user in ("bob", "carol", "dave"):
        home.rig.register(user, wire)
    kept = home.rig.register("bob")
    wire.fail("reset")
    assert [home.rig.stack.location.bindings(f"{user}@example.com".encode()) for user in ("carol", "dave")] == [[], []]
    assert [binding.connection for binding in home.rig.stack.location.bindings(BOB)] == [kept]


@pytest.mark.requirement("OB-FAIL-11")
def test_nothing_is_left_of_flows_that_have_ended() -> None:
    counter = Counter()
    for number in range(500):
        wire = counter.wire(remote=("198.51.100.7", 10000 + number))
        counter.register(wire, flow_contact(number % 4 + 1), supported="outbound", expires=60)
        wire.close("peer")
    assert (counter.table.connections, counter.location.count) == ({}, 0)
    counter.advance(61)
    flows = counter.flows
    kept = [getattr(flows, name) for name in ("_flows", "_ended", "_index", "_heirs", "_revived")]
    assert (len(flows), [len(held) for held in kept]) == (0, [0] * 5)


@pytest.mark.requirement("OB-FAIL-12")
def test_what_had_no_answer_on_a_flow_that_fails_is_430_where_a_token_named_it(home: Home) -> None:
    flow = home.rig.wire()
    home.rig.give(home.caller, request("INVITE", "sip:bob@10.0.1.1", to="<sip:bob@example.com>;tag=b",
                                       Route=token_route(home, flow)))  # fmt: skip
    assert len(flow.requests("INVITE")) == 1
    flow.fail("reset")
    home.rig.run_soon()
    assert home.caller.statuses("INVITE") == [100, 430]


@pytest.mark.requirement("OB-FAIL-12")
def test_rfc3261_18_2_2_who_rang_may_answer_over_another_connection(home: Home) -> None:
    flow = home.direct(1)
    home.call()
    (invite,) = flow.requests("INVITE")
    home.rig.give(flow, answer(invite, 180))
    flow.fail("reset")
    home.rig.run_soon()
    assert home.caller.statuses("INVITE") == [100, 180]
    home.rig.give(home.rig.wire(), answer(invite, 200))
    assert home.caller.statuses("INVITE") == [100, 180, 200]


@pytest.mark.requirement("OB-LIM-05")
def test_rfc5626_4_5_who_drains_sends_registrations_away_and_keeps_flows(home: Home) -> None:
    flow = home.direct(1)
    home.rig.core.draining = True
    waits = set()
    for number in range(20):
        wire = home.rig.wire()
        home.rig.give(wire, request("REGISTER", "sip:example.com", user="bob", to="<sip:bob@example.com>",
                                    Contact=f"<sip:bob@10.0.2.{number}>"))  # fmt: skip
        (refused,) = wire.responses("REGISTER")
        assert refused.status == 503
        waits.add(int(refused["Retry-After"]))
    assert len(waits) > 5
    bye(home, token_route(home, flow))
    assert len(flow.requests("BYE")) == 1


@pytest.mark.requirement("OB-TOK-09")
def test_rfc5626_9_3_a_udp_token_of_the_process_before_is_tried_once_and_one_of_a_stream_is_gone() -> None:
    before, after = Rig(boot=0x6710A3C0), Rig(boot=0x6710A4C0)
    udp, tcp = before.wire(Transport.UDP), before.wire()
    tokens = {wire: before.core.flows.token_of(wire).decode() for wire in (udp, tcp)}
    caller = after.wire()

    def invite(flow: Wire) -> list[int]:
        route = f"<sip:{tokens[flow]}@edge.example:5060;lr;ob>"
        after.give(caller, request("INVITE", "sip:bob@10.0.0.1", to="<sip:bob@example.com>;tag=b", Route=route))
        statuses = caller.statuses("INVITE")
        caller.take()
        return statuses

    assert invite(tcp) == [430]
    assert invite(udp) == [100]
    (revived,) = [wire for wire in after.table.connections.values() if isinstance(wire, Wire) and wire is not caller]
    assert (revived.transport, revived.remote, len(revived.requests("INVITE"))) == (Transport.UDP, udp.remote, 1)
    assert after.core.flows.state_of(revived, after.clock.now) is FlowState.SUSPECT
    revived.fail("icmp_port")
    after.run_soon()
    assert caller.statuses("INVITE") == [430]


def test_the_rig_is_the_server_it_says() -> None:
    """A rig in role single with an edge it trusts serves both alike."""
    rig = Rig(sip={"trusted_edges": ("192.0.2.0/24",)})
    edge, road = rig.wire(remote=("192.0.2.11", 30000)), rig.wire(remote=("192.0.2.11", 5060))
    rig.roads["e1.example"] = [road]
    contact = f'<sip:bob@10.0.0.1>;reg-id=1;+sip.instance="<{PHONE}>"'
    vias = "SIP/2.0/TCP e1.example;branch=z9hG4bKa, SIP/2.0/TCP 10.0.0.1;branch=z9hG4bKb"
    headers = {"Contact": contact, "Supported": "path, outbound", "Path": "<sip:t@e1.example;lr;ob>"}
    rig.give(edge, request("REGISTER", "sip:example.com", user="bob", to="<sip:bob@example.com>", via=vias, **headers))
    assert edge.responses("REGISTER")[0]["Require"] == "outbound"
    rig.give(rig.wire(), request("MESSAGE", "sip:bob@example.com"))
    assert road.requests("MESSAGE")[0].values("Route") == ["<sip:t@e1.example;lr;ob>"]
