"""Where requests go and what is written into them: checks, Route, Record-Route, strict routers, maddr, sips."""

from __future__ import annotations

import pytest

from edge.auth.credentials import Credential
from edge.connections import Transport
from tests.sip.rig import Rig, answer, follow_up, request
from tests.ua.sip_message import address_uri, uri_parameters

IN_DIALOG = "<sip:bob@example.com>;tag=b1"


# ------------------------------------------------------------------------------------------ checks


@pytest.mark.requirement("SIP-PRX-01", "SIP-PRX-02", "SIP-PRX-03")
def test_rfc3261_16_3_checks_come_in_their_order_and_the_first_decides() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()

    def status(method: str = "MESSAGE", uri: str = "sip:bob@example.com", **options: object) -> int:
        caller.take()
        rig.give(caller, request(method, uri, **options))  # type: ignore[arg-type]
        return caller.statuses()[-1] if caller.sent else 0

    assert status(max_forwards=0, Proxy_Require="foo", From="broken <") == 400
    assert status(uri="tel:+1", max_forwards=0) == 416
    assert status(max_forwards=0, Proxy_Require="foo") == 483
    assert status(method="INVITE", max_forwards=0) == 483
    assert status(method="OPTIONS", uri="sip:example.com", max_forwards=0) == 200
    assert status(Proxy_Require="foo, Bar") == 420
    assert caller.responses()[-1].values("Unsupported") == ["foo", "Bar"]
    assert bob.requests() == []
    assert status(Require="foo") == 0  # the business of the other end
    assert status(max_forwards=None) == 0
    assert [r["Max-Forwards"] for r in bob.requests()] == ["69", "70"]


@pytest.mark.requirement("SIP-PRX-03")
def test_rfc3261_16_3_proxy_require_is_not_looked_at_in_cancel_and_ack() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()
    data = request("INVITE", "sip:bob@example.com")
    rig.give(caller, data)
    (invite,) = bob.requests("INVITE")
    rig.give(bob, answer(invite, 180))
    required = b"\r\nProxy-Require: foo\r\nCall-ID:"
    rig.give(caller, follow_up("CANCEL", data).replace(b"\r\nCall-ID:", required))
    assert caller.statuses("CANCEL") == [200]
    rig.give(bob, answer(invite, 487))
    ack = follow_up("ACK", data, to=invite["To"] + ";tag=b1")
    rig.give(caller, ack.replace(b"\r\nCall-ID:", required))
    assert rig.transactions.servers == {}


@pytest.mark.requirement("SIP-PRX-07", "SIP-PRX-08")
def test_rfc3261_16_5_no_open_relay_404_for_nobody_and_480_for_somebody_absent() -> None:
    rig = Rig()
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:x@other.example").replace(b"alice@example.com", b"mallory@evil.example"))
    assert caller.statuses() == [403]
    assert rig.asked == []
    rig.give(caller, request("MESSAGE", "sip:nobody@example.com"))
    assert caller.statuses() == [403, 404]
    rig.storage.users.put("carol", "example.com", Credential(None, None))
    rig.give(caller, request("MESSAGE", "sip:carol@example.com"))
    assert caller.statuses() == [403, 404, 480]


@pytest.mark.requirement("SIP-PRX-25", "SIP-PRX-26")
def test_rfc3261_11_2_options_for_us_and_the_form_of_our_answers() -> None:
    rig = Rig()
    caller = rig.wire()
    data = request("OPTIONS", "sip:example.com", extra=(("Via", "SIP/2.0/UDP below.example;branch=z9hG4bKx"),))
    for _ in range(2):
        rig.give(caller, data)
    first, second = caller.responses()
    assert (first.status, first.body, first.all("Allow")) == (200, b"", [])
    assert all(first.all(name) for name in ("Accept", "Accept-Encoding", "Accept-Language", "Supported"))
    assert [via.split(";")[0] for via in first.all("Via")] == [
        "SIP/2.0/TCP caller.example:5060",
        "SIP/2.0/UDP below.example",
    ]
    assert (first["From"], first["CSeq"]) == ("<sip:alice@example.com>;tag=a1", "1 OPTIONS")
    assert first.to_tag == second.to_tag
    assert first.to_tag


# ------------------------------------------------------------------------------------------ Route and Request-URI


@pytest.mark.requirement("SIP-PRX-04")
@pytest.mark.parametrize(
    "rows", [["<sip:a.example;lr>, <sip:bob@h.example>"], ["<sip:a.example;lr>", "<sip:bob@h.example>"]]
)
def test_rfc3261_16_4_what_a_strict_router_did_is_undone(rows: list[str]) -> None:
    rig = Rig()
    next_hop = rig.wire()
    rig.roads["a.example"] = [next_hop]
    extra = tuple(("Route", row) for row in rows)
    rig.give(rig.wire(), request("INVITE", "sip:edge.example:5060;lr", to=IN_DIALOG, extra=extra))
    (left,) = next_hop.requests("INVITE")
    assert left.uri == "sip:bob@h.example"
    assert left.values("Route") == ["<sip:a.example;lr>"]


@pytest.mark.requirement("SIP-PRX-05")
@pytest.mark.parametrize("own", ["edge.example", "EDGE.example:5060", "example.com", "edge.example:5060;transport=tcp"])
def test_rfc3261_16_4_route_values_of_ours_are_taken_off(own: str) -> None:
    rig = Rig()
    next_hop = rig.wire()
    rig.roads["far.example"] = [next_hop]
    extra = (("Route", f"<sip:{own};lr;r2=on>,<sip:edge.example:5060;transport=tcp;lr;r2=on>"),)
    rig.give(rig.wire(), request("BYE", "sip:bob@far.example", to=IN_DIALOG, extra=extra))
    (left,) = next_hop.requests("BYE")
    assert left.all("Route") == []


@pytest.mark.requirement("SIP-PRX-05")
def test_rfc3261_16_4_a_port_that_is_not_ours_is_somebody_else() -> None:
    rig = Rig()
    other = rig.wire()
    rig.roads["edge.example"] = [other]
    extra = (("Route", "<sip:edge.example:5070;lr>"),)
    rig.give(rig.wire(), request("MESSAGE", "sip:bob@far.example", extra=extra))
    (left,) = other.requests("MESSAGE")
    assert left.all("Route") == ["<sip:edge.example:5070;lr>"]


@pytest.mark.requirement("SIP-PRX-06")
def test_rfc3261_16_4_a_maddr_that_names_us_is_taken_off_and_another_is_the_target() -> None:
    rig = Rig()
    bob, caller, there = rig.register("bob"), rig.wire(), rig.wire()
    rig.give(caller, request("MESSAGE", "sip:bob@example.com:5060;maddr=edge.example;transport=tcp"))
    rig.give(caller, request("MESSAGE", "sip:bob@example.com;maddr=edge.example"))
    assert len(bob.requests("MESSAGE")) == 2
    rig.roads["example.com"] = [there]
    rig.give(caller, request("MESSAGE", "sip:bob@example.com;maddr=192.0.2.99"))
    assert rig.asked == ["sip:bob@example.com;maddr=192.0.2.99"]
    assert [r.uri for r in there.requests("MESSAGE")] == ["sip:bob@example.com;maddr=192.0.2.99"]
    assert len(bob.requests("MESSAGE")) == 2


@pytest.mark.requirement("SIP-PRX-13")
def test_rfc3261_16_6_a_strict_next_hop_gets_the_request_uri_as_last_route() -> None:
    rig = Rig()
    old = rig.wire()
    rig.roads["old.example"] = [old]
    extra = (("Route", "<sip:old.example>, <sip:third.example;lr>"),)
    rig.give(rig.wire(), request("INVITE", "sip:bob@h.example", extra=extra))
    (left,) = old.requests("INVITE")
    assert left.uri == "sip:old.example"
    assert left.values("Route") == ["<sip:third.example;lr>", "<sip:bob@h.example>"]


@pytest.mark.requirement("SIP-PRX-14")
def test_rfc3261_16_6_the_top_route_is_the_next_hop_and_sips_forces_tls() -> None:
    rig = Rig()
    caller = rig.wire(Transport.TLS)
    extra = (("Route", "<sip:next.example;lr>"),)
    rig.give(caller, request("MESSAGE", "sip:bob@h.example", extra=extra))
    rig.give(caller, request("MESSAGE", "sip:bob@h.example"))
    rig.give(caller, request("MESSAGE", "sips:bob@h.example", extra=extra))
    assert rig.asked == ["sip:next.example;lr", "sip:bob@h.example", "sips:next.example;lr"]


# ------------------------------------------------------------------------------------------ Record-Route


@pytest.mark.requirement("SIP-PRX-11")
def test_rfc3261_16_6_what_forms_a_dialog_is_recorded() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()
    recorded = {}
    for method in ("INVITE", "SUBSCRIBE", "REFER", "NOTIFY", "NEWMETHOD", "MESSAGE", "OPTIONS", "PUBLISH"):
        rig.give(caller, request(method, "sip:bob@example.com"))
        recorded[method] = bob.requests(method)[-1].all("Record-Route")
    assert [method for method, rows in recorded.items() if not rows] == ["MESSAGE", "OPTIONS", "PUBLISH"]
    (invite,) = bob.requests("INVITE")
    assert all("lr" in uri_parameters(address_uri(row)) for row in recorded["INVITE"])
    rig.give(bob, answer(invite, 200))
    routes = caller.responses()[-1].all("Record-Route")
    extra = tuple(("Route", value) for value in reversed(routes))
    rig.give(caller, request("BYE", invite.uri, to=IN_DIALOG, extra=extra))
    assert len(bob.requests("BYE")) == 1


@pytest.mark.requirement("SIP-PRX-12")
def test_rfc3261_16_6_both_sides_are_recorded_where_they_differ() -> None:
    rig = Rig()
    bob, caller = rig.register("bob", rig.wire(Transport.UDP)), rig.wire(Transport.TLS)
    rig.roads[bob.remote[0]] = [bob]
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    (invite,) = bob.requests("INVITE")
    onward, back = [uri_parameters(address_uri(row)).get("transport") for row in invite.all("Record-Route")]
    assert (onward, back) == (None, "tls")
    rig.give(bob, answer(invite, 200))
    routes = invite.all("Record-Route")
    rig.give(caller, request("BYE", invite.uri, to=IN_DIALOG, extra=tuple(("Route", r) for r in reversed(routes))))
    (bye,) = bob.requests("BYE")
    assert bye.values("Via")[0].startswith("SIP/2.0/UDP edge.example:5060")
    extra = tuple(("Route", row) for row in routes)
    rig.give(bob, request("BYE", "sip:alice@caller.example", user="bob", to="<sip:a@example.com>;tag=a1", extra=extra))
    assert [r.values("Via")[0].split(";")[0] for r in caller.requests("BYE")] == ["SIP/2.0/TLS edge.example:5060"]


@pytest.mark.requirement("SIP-SES-01")
def test_rfc4028_8_3_session_timers_pass_untouched() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()
    timers = {"Session_Expires": "90;refresher=uac", "Min_SE": "90", "Supported": "timer, 100rel", "Require": "timer"}
    rig.give(caller, request("INVITE", "sip:bob@example.com", **timers))
    (invite,) = bob.requests("INVITE")
    for name, value in timers.items():
        assert invite.all(name.replace("_", "-")) == [value]
    rig.give(bob, answer(invite, 200, extra=(("Session-Expires", "90;refresher=uas"), ("Require", "timer"))))
    ok = caller.responses()[-1]
    assert (ok.all("Session-Expires"), ok.all("Require"), ok.all("Supported")) == (["90;refresher=uas"], ["timer"], [])
    rig.advance(200)
    assert bob.requests("BYE") == caller.requests("BYE") == []


# ------------------------------------------------------------------------------------------ ACK, Via


@pytest.mark.requirement("SIP-PRX-24")
def test_an_ack_from_nowhere_goes_nowhere() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()
    rig.give(caller, request("ACK", "sip:bob@far.example", to="<sip:bob@far.example>;tag=1"))
    extra = (("Route", "<sip:far.example;lr>"),)
    rig.give(caller, request("ACK", "sip:bob@far.example", to="<sip:bob@far.example>;tag=1", extra=extra))
    assert (caller.sent, bob.sent, rig.asked) == ([], [], [])


@pytest.mark.requirement("SIP-PRX-29")
def test_rfc3261_16_11_what_is_sent_without_a_transaction_is_the_same_each_time() -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire()
    extra = (("Route", "<sip:edge.example;lr>"),)
    ack = request("ACK", "sip:bob@example.com", to=IN_DIALOG, extra=extra)
    for _ in range(2):
        rig.give(caller, ack)
        rig.advance(1)
    other = request("ACK", "sip:bob@example.com", to=IN_DIALOG, extra=extra)
    rig.give(caller, other)
    first, second, third = (r.branch for r in bob.requests("ACK"))
    assert first == second != third


@pytest.mark.requirement("SIP-TRP-04")
def test_rfc3261_18_2_2_a_maddr_in_via_sends_nothing_elsewhere() -> None:
    rig = Rig()
    caller = rig.wire(Transport.UDP, ("198.51.100.7", 5060))
    for number, parameters in enumerate(("", ";rport", ";received=239.1.1.1;rport=9")):
        via = f"SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKm{number};maddr=239.1.1.1{parameters}"
        rig.give(caller, request("OPTIONS", "sip:example.com", via=via))
    assert caller.statuses() == [200, 200, 200]
    assert rig.core.stats.rejected["via_maddr"] == 3


# ------------------------------------------------------------------------------------------ sips


@pytest.mark.requirement("SIP-TLS-05")
def test_rfc5630_5_3_sips_is_reached_by_sips_alone() -> None:
    rig = Rig()
    caller = rig.wire(Transport.TLS)
    for scheme, transport in (("sip", Transport.TLS), ("sips", Transport.TCP)):
        wire = rig.register("bob", rig.wire(transport), contact=f"{scheme}:bob@192.0.2.5")
        rig.give(caller, request("INVITE", "sips:bob@example.com"))
        final = caller.responses()[-1]
        assert (final.status, final["Warning"][:4]) == (480, "380 ")
        assert wire.requests() == []
        wire.fail("reset")
        rig.run_soon()
    wire = rig.register("bob", rig.wire(Transport.TLS), contact="sips:bob@192.0.2.5")
    rig.give(caller, request("INVITE", "sips:bob@example.com"))
    assert [r.uri for r in wire.requests("INVITE")] == ["sips:bob@192.0.2.5"]


@pytest.mark.requirement("SIP-TLS-05")
def test_rfc5630_5_3_sip_reaches_a_sips_binding_over_tls_and_written_as_sip() -> None:
    rig = Rig()
    caller = rig.wire()
    plain = rig.register("bob", rig.wire(Transport.TCP), contact="sips:bob@192.0.2.5")
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    final = caller.responses()[-1]
    assert (final.status, final["Warning"][:4]) == (480, "381 ")
    assert plain.requests() == []
    plain.fail("reset")
    rig.run_soon()
    secure = rig.register("bob", rig.wire(Transport.TLS), contact="sips:bob@192.0.2.5")
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    assert [r.uri for r in secure.requests("INVITE")] == ["sip:bob@192.0.2.5"]


# ------------------------------------------------------------------------------------------ where it came from


@pytest.mark.requirement("SIP-TRP-01", "SIP-TRP-02", "OB-NAT-01")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP, Transport.WSS])
@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ("h.example:40112;branch=B", "h.example:40112;branch=B;received=A"),
        ("h.example;branch=B;rport", "h.example;branch=B;rport=P;received=A"),
        ("h.example;rport;branch=B", "h.example;rport=P;received=A;branch=B"),
        ("A:40112;branch=B", "A:40112;branch=B"),
        ("A;branch=B;rport", "A;branch=B;rport=P;received=A"),
        ("A:5060;rport;branch=B", "A:5060;rport=P;received=A;branch=B"),
        ("A;RPort;branch=B;x=1", "A;branch=B;x=1;rport=P;received=A"),
        ("A;rport=9;branch=B", "A;branch=B;rport=P;received=A"),
        ("A:40112;branch=B;received=192.0.2.9", "A:40112;branch=B"),
        ("h.example;rport=9;branch=B;received=192.0.2.9", "h.example;branch=B;rport=P;received=A"),
        ("h.example:40112;branch=B;Received=192.0.2.9", "h.example:40112;branch=B;received=A"),
    ],
)
def test_rfc3261_18_2_1_and_rfc3581_4_the_top_via_says_what_the_socket_saw(
    sent: str, passed: str, transport: Transport
) -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire(transport, ("198.51.100.77", 40112))

    def filled(via: str) -> str:
        for mark, text in (("A", "198.51.100.77"), ("=P", "=40112"), ("=B", "=z9hG4bKwhence")):
            via = via.replace(mark, text)
        return f"SIP/2.0/{transport.name} {via}"

    rig.give(caller, request("MESSAGE", "sip:bob@example.com", via=filled(sent)))
    (message,) = bob.requests("MESSAGE")
    assert message.all("Via")[1] == filled(passed)
    rig.give(bob, answer(message, 200))
    assert caller.responses()[-1].all("Via") == [filled(passed)]


@pytest.mark.requirement("SIP-MSG-29", "SIP-TRP-01")
@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ("h.example;branch=B;rport", "h.example;branch=B;rport=40112;received=2001:db8::5"),
        ("h.example:40112;branch=B", "h.example:40112;branch=B;received=2001:db8::5"),
        ("[2001:db8::5]:40112;branch=B", "[2001:db8::5]:40112;branch=B"),
        ("[2001:DB8:0::5]:40112;branch=B", "[2001:DB8:0::5]:40112;branch=B"),
        ("[2001:db8::6]:40112;branch=B", "[2001:db8::6]:40112;branch=B;received=2001:db8::5"),
        (
            "[2001:db8::5];rport=9;received=[2001:db8::9];branch=B",
            "[2001:db8::5];branch=B;rport=40112;received=2001:db8::5",
        ),
    ],
)
def test_rfc5118_4_5_received_of_ipv6_is_written_without_brackets(sent: str, passed: str) -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire(Transport.UDP, ("2001:db8::5", 40112))
    via = f"SIP/2.0/UDP {sent}".replace("=B", "=z9hG4bKsix")
    rig.give(caller, request("MESSAGE", "sip:bob@example.com", via=via))
    (message,) = bob.requests("MESSAGE")
    assert message.all("Via")[1] == f"SIP/2.0/UDP {passed}".replace("=B", "=z9hG4bKsix")


@pytest.mark.requirement("SIP-TRP-03")
@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_rfc3261_18_2_2_every_answer_on_udp_goes_to_the_port_of_the_via_without_rport(method: str) -> None:
    rig = Rig()
    bob, caller = rig.register("bob"), rig.wire(Transport.UDP, ("198.51.100.77", 40112))
    via = f"SIP/2.0/UDP h.example:5090;branch=z9hG4bK{method}"
    rig.give(caller, request(method, "sip:bob@example.com", via=via))
    rig.give(bob, answer(bob.requests(method)[-1], 486))
    assert caller.sent == []
    places = [wire for wire in rig.table.connections.values() if wire.remote == ("198.51.100.77", 5090)]
    assert sorted({status for wire in places for status in wire.statuses(method)} - {100}) == [486]  # type: ignore[attr-defined]


@pytest.mark.requirement("SIP-PRX-24", "SIP-PRX-13")
def test_rfc3261_16_6_the_ack_of_a_2xx_passes_a_strict_next_hop_too() -> None:
    rig = Rig()
    strict, caller = rig.wire(), rig.wire()
    rig.roads["old.example"] = [strict]
    routes = "<sip:edge.example:5060;lr>, <sip:old.example>"
    rig.give(caller, request("ACK", "sip:bob@192.0.2.7", to=IN_DIALOG, Route=routes))
    (ack,) = strict.requests("ACK")
    assert (ack.uri, ack.all("Route")) == ("sip:old.example", ["<sip:bob@192.0.2.7>"])
