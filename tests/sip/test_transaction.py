"""The four transaction machines with all their timers, on a clock that stands still."""

from __future__ import annotations

import gc
import re
from typing import Any

import pytest

from edge.connections import Transport
from edge.sip.branch import Branch
from edge.sip.forward import Draft
from edge.sip.proxy import ProxyContext
from edge.sip.transaction import ClientTransaction, ServerTransaction, State
from tests.sip.rig import Rig, Wire, answer, follow_up, request
from tests.ua.sip_message import Request, parse

INVITE_TIMES = [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
OTHER_TIMES = [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]


class Call:
    """A caller on TCP, a callee on the transport under test, and one request between them."""

    def __init__(self, method: str = "INVITE", transport: Transport = Transport.UDP, **options: Any) -> None:
        self.rig = Rig()
        self.callee = self.rig.register("bob", self.rig.wire(transport))
        self.rig.roads[self.callee.remote[0]] = [self.callee]
        self.rig.advance(33)  # the REGISTER is forgotten
        self.caller = self.rig.wire(options.pop("caller", Transport.TCP))
        self.sent = request(method, "sip:bob@example.com", **options)
        self.rig.give(self.caller, self.sent)
        self.start = self.rig.clock.now
        (self.arrived,) = self.callee.requests(method)

    def reply(self, status: int, **options: Any) -> None:
        self.rig.give(self.callee, answer(self.arrived, status, **options))

    @property
    def clients(self) -> dict[bytes, ClientTransaction]:
        return self.rig.transactions.clients


# ------------------------------------------------------------------------------------------ INVITE client


@pytest.mark.requirement("SIP-TXN-01", "SIP-TXN-02")
def test_rfc3261_17_1_1_2_invite_is_sent_seven_times_on_udp_then_408() -> None:
    call = Call()
    call.rig.advance(31.9)
    assert call.callee.times(call.start) == INVITE_TIMES
    assert len(set(call.callee.take())) == 1
    assert call.caller.statuses() == [100]
    call.rig.advance(0.2)
    assert call.caller.statuses() == [100, 408]
    assert call.callee.take() == []  # no ACK


@pytest.mark.requirement("SIP-TXN-01")
def test_rfc3261_17_1_1_2_invite_is_sent_once_on_a_stream() -> None:
    call = Call(transport=Transport.TCP)
    call.rig.advance(31.9)
    assert len(call.callee.sent) == 1
    call.rig.advance(3)
    assert (len(call.callee.sent), call.caller.statuses()) == (1, [100, 408])


@pytest.mark.requirement("SIP-TXN-02")
def test_rfc3261_17_1_1_2_a_provisional_ends_repeats_and_timer_b() -> None:
    call = Call()
    call.rig.advance(0.3)
    call.reply(100)
    call.rig.advance(40)
    assert len(call.callee.sent) == 1
    assert call.caller.statuses() == [100]
    for status in (180, 183, 180):
        call.reply(status)
    assert call.caller.statuses() == [100, 180, 183, 180]
    call.reply(200)
    assert call.caller.statuses()[-1] == 200


@pytest.mark.requirement("SIP-TXN-03", "SIP-TXN-04")
def test_rfc3261_17_1_1_2_each_repeat_of_a_refusal_draws_the_ack_again_for_timer_d() -> None:
    call = Call()
    for _ in range(3):
        call.reply(486)
    assert [r.method for r in call.callee.requests()] == ["INVITE", "ACK", "ACK", "ACK"]
    assert len(set(call.callee.take()[1:])) == 1
    assert call.caller.statuses() == [100, 486]
    call.rig.advance(31.8)
    call.reply(486)
    assert len(call.callee.requests("ACK")) == 1
    call.callee.take()
    call.rig.advance(0.3)
    call.reply(486)
    assert (call.callee.sent, call.clients) == ([], {})


@pytest.mark.requirement("SIP-TXN-04")
def test_rfc6026_8_4_timer_d_is_zero_on_a_stream() -> None:
    call = Call(transport=Transport.TCP)
    call.reply(486)
    assert len(call.callee.requests("ACK")) == 1
    assert call.clients == {}


@pytest.mark.requirement("SIP-TXN-05")
def test_rfc3261_17_1_1_3_the_ack_to_a_refusal_is_made_of_the_invite() -> None:
    rig = Rig()
    callee = rig.wire(Transport.UDP)
    rig.roads["next.example"] = [callee]
    body = b"v=0\r\n"
    routes = (("Route", "<sip:next.example;lr>"), ("Route", "<sip:far.example;lr>"))
    rig.give(rig.wire(), request("INVITE", "sip:bob@elsewhere.example", body=body, extra=routes, cseq=7))
    (invite,) = callee.requests()
    rig.give(callee, answer(invite, 404, tag="zz"))
    ack = callee.requests("ACK")[0]
    assert ack.uri == invite.uri
    for name in ("Call-ID", "From"):
        assert ack[name] == invite[name]
    assert ack.all("Route") == invite.all("Route") == ["<sip:next.example;lr>", "<sip:far.example;lr>"]
    assert ack.all("Via") == invite.all("Via")[:1]
    assert ack["To"] == invite["To"] + ";tag=zz"
    assert ack["CSeq"] == "7 ACK"
    assert ack["Max-Forwards"] == "70"
    assert ack.body == b""


@pytest.mark.requirement("SIP-TXN-06")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_rfc6026_7_2_every_2xx_goes_up_for_timer_m(transport: Transport) -> None:
    call = Call(transport=transport)
    for tag in ("a", "a", "b"):
        call.reply(200, tag=tag)
        call.rig.advance(10)
    tags = [response.to_tag for response in call.caller.responses() if response.status == 200]
    assert tags == ["a", "a", "b"]
    assert call.callee.requests("ACK") == []
    call.caller.take()
    call.rig.advance(2.5)
    call.reply(200, tag="c")
    assert (call.caller.sent, call.clients) == ([], {})


# ------------------------------------------------------------------------------------------ non-INVITE client


@pytest.mark.requirement("SIP-TXN-07", "SIP-TXN-21")
def test_rfc3261_17_1_2_2_a_request_is_sent_eleven_times_on_udp_and_no_408_follows() -> None:
    call = Call("MESSAGE")
    call.rig.advance(40)
    assert call.callee.times(call.start) == OTHER_TIMES
    assert len(set(call.callee.take())) == 1
    assert call.caller.statuses() == [100]
    call.reply(200)
    assert call.caller.statuses() == [100]
    assert call.rig.idle()


@pytest.mark.requirement("SIP-TXN-21")
def test_rfc4320_4_2_a_408_from_further_on_is_not_passed_up() -> None:
    call = Call("MESSAGE")
    call.reply(408)
    assert call.caller.statuses() == []


@pytest.mark.requirement("SIP-TXN-07")
def test_rfc3261_17_1_2_2_a_provisional_makes_the_gap_t2() -> None:
    call = Call("MESSAGE")
    call.rig.advance(0.2)
    call.reply(100)
    call.rig.advance(9)
    assert call.callee.times(call.start) == [0, 0.5, 4.5, 8.5]


@pytest.mark.requirement("SIP-TXN-07")
def test_rfc3261_17_1_2_2_no_repeats_on_a_stream() -> None:
    call = Call("MESSAGE", Transport.TCP)
    call.rig.advance(40)
    assert len(call.callee.sent) == 1


@pytest.mark.requirement("SIP-TXN-08")
def test_rfc3261_17_1_2_2_timer_f_ends_it_and_a_final_goes_up_once() -> None:
    call = Call("MESSAGE")
    call.reply(100)
    call.rig.advance(31.9)
    assert len(call.clients) == 1
    call.rig.advance(0.2)
    assert call.clients == {}
    call = Call("MESSAGE")
    call.reply(200)
    call.reply(200)
    assert call.caller.statuses() == [200]


@pytest.mark.requirement("SIP-TXN-09")
def test_rfc3261_17_1_3_the_answer_to_a_cancel_is_not_the_answer_to_its_invite() -> None:
    call = Call()
    call.reply(180)
    call.rig.give(call.caller, follow_up("CANCEL", call.sent))
    (cancel,) = call.callee.requests("CANCEL")
    assert cancel.branch == call.arrived.branch
    call.rig.give(call.callee, answer(cancel, 200))
    assert call.caller.statuses("INVITE") == [100, 180]
    assert [client.state for client in call.clients.values()] == [State.PROCEEDING]
    call.reply(487)
    assert call.caller.statuses("INVITE") == [100, 180, 487]


@pytest.mark.requirement("SIP-TXN-09")
@pytest.mark.parametrize(
    ("method", "other"), [("INVITE", "MESSAGE"), ("MESSAGE", "INVITE"), ("MESSAGE", "OPTIONS"), ("INFO", "INFORM")]
)
def test_rfc3261_17_1_3_a_response_to_another_method_is_not_ours(method: str, other: str) -> None:
    call = Call(method)
    call.caller.take()
    call.rig.give(call.callee, answer(call.arrived, 200).replace(f"1 {method}".encode(), f"1 {other}".encode()))
    assert call.caller.sent == []
    assert [client.state for client in call.clients.values()] == [State.TRYING]
    call.reply(200)
    assert call.caller.statuses() == [200]


@pytest.mark.requirement("SIP-TXN-10", "SIP-TRP-10")
def test_rfc6026_7_3_a_response_that_matches_nothing_goes_nowhere() -> None:
    call = Call()
    caller, callee = call.caller.take(), call.callee.take()
    stray = answer(call.arrived, 200).replace(call.arrived.branch.encode(), b"z9hG4bKother")
    call.rig.give(call.callee, stray)
    foreign = answer(call.arrived, 200).replace(b" edge.example:5060", b" other.example:5060")
    call.rig.give(call.callee, foreign)
    call.rig.give(call.callee, answer(call.arrived, 200).replace(b"1 INVITE", b"1 MESSAGE"))
    assert (call.caller.sent, call.callee.sent) == ([], [])
    assert call.rig.core.stats.stray_responses == 3
    assert (len(caller), len(callee)) == (1, 1)  # the 100, the INVITE


# ------------------------------------------------------------------------------------------ INVITE server


@pytest.mark.requirement("SIP-TXN-11")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_rfc3261_17_2_1_trying_leaves_at_once(transport: Transport) -> None:
    call = Call(caller=transport, Timestamp="54")
    (trying,) = call.caller.responses()
    assert (trying.status, trying.to_tag, trying["Timestamp"]) == (100, None, "54")


@pytest.mark.requirement("SIP-TXN-12")
def test_rfc3261_17_2_1_a_repeat_draws_the_latest_provisional() -> None:
    call = Call(caller=Transport.UDP)
    call.reply(180)
    assert call.caller.statuses() == [100, 180]
    call.rig.give(call.caller, call.sent)
    assert call.caller.statuses() == [100, 180, 180]
    assert len(call.callee.requests("INVITE")) == 1


@pytest.mark.requirement("SIP-TXN-13")
def test_rfc3261_17_2_1_a_refusal_is_repeated_by_timer_g_until_timer_h() -> None:
    call = Call(caller=Transport.UDP, transport=Transport.TCP)
    call.caller.take()
    call.reply(486)
    call.rig.advance(31.9)
    assert call.caller.times(call.start) == OTHER_TIMES
    assert len(set(call.caller.take())) == 1
    call.rig.give(call.caller, call.sent)
    assert call.caller.statuses() == [486]
    call.rig.advance(0.2)
    assert call.rig.transactions.acks_missing == 1
    assert call.rig.idle()


@pytest.mark.requirement("SIP-TXN-13")
def test_rfc3261_17_2_1_timer_h_runs_on_streams_too() -> None:
    call = Call(transport=Transport.TCP)
    call.caller.take()
    call.reply(486)
    call.rig.advance(31.9)
    assert (call.caller.statuses(), len(call.rig.transactions.servers)) == ([486], 1)
    call.rig.advance(0.2)
    assert call.rig.transactions.acks_missing == 1
    assert call.rig.idle()


@pytest.mark.requirement("SIP-TXN-14")
def test_rfc3261_17_2_1_the_ack_stops_timer_g_and_is_absorbed_for_timer_i() -> None:
    call = Call(caller=Transport.UDP)
    call.reply(486)
    call.rig.advance(0.6)
    repeats = len(call.caller.statuses())
    ack = follow_up("ACK", call.sent, to=call.arrived["To"] + ";tag=b1")
    for _ in range(2):
        call.rig.give(call.caller, ack)
    call.rig.advance(4.8)
    call.rig.give(call.caller, ack)
    assert len(call.caller.statuses()) == repeats
    assert len(call.callee.requests("ACK")) == 1  # our own
    assert len(call.rig.transactions.servers) == 1
    call.rig.advance(0.3)
    assert (call.rig.transactions.servers, call.rig.transactions.acks_missing) == ({}, 0)
    stream = Call()
    stream.reply(486)
    stream.rig.give(stream.caller, follow_up("ACK", stream.sent, to=stream.arrived["To"] + ";tag=b1"))
    assert stream.rig.transactions.servers == {}


@pytest.mark.requirement("SIP-TXN-15")
def test_rfc6026_7_1_after_a_2xx_repeats_of_the_invite_are_swallowed() -> None:
    call = Call(caller=Transport.UDP)
    call.reply(200)
    call.rig.advance(5)
    sent = (len(call.caller.sent), len(call.callee.sent))
    call.rig.give(call.caller, call.sent)
    assert (len(call.caller.sent), len(call.callee.sent)) == sent
    call.reply(200, tag="other")
    assert call.caller.statuses()[-2:] == [200, 200]
    call.rig.advance(26.9)
    assert len(call.rig.transactions.servers) == 1
    call.rig.advance(0.3)
    assert call.rig.idle()


@pytest.mark.requirement("SIP-TXN-16", "SIP-PRX-24")
@pytest.mark.parametrize("same_uri", [False, True], ids=["contact", "the INVITE's"])
@pytest.mark.parametrize("branch", [";branch=z9hG4bKack", "", ";branch=old"])
def test_rfc6026_7_1_the_ack_to_a_2xx_goes_on(branch: str, same_uri: bool) -> None:
    """Without the cookie, and to the same Request-URI, it has the key of its INVITE."""
    via = f"SIP/2.0/TCP caller.example:5060{branch}"
    call = Call(via=via if branch != ";branch=z9hG4bKack" else None)
    call.reply(200)
    route = call.caller.responses()[-1].all("Record-Route")
    ack = request(
        "ACK", "sip:bob@example.com" if same_uri else call.arrived.uri, via=via, to=call.arrived["To"] + ";tag=b1", call_id=call.arrived["Call-ID"],
        extra=tuple(("Route", value) for value in reversed(route)),
    )  # fmt: skip
    call.rig.give(call.caller, ack)
    (forwarded,) = call.callee.requests("ACK")
    assert len(forwarded.all("Via")) == 2
    assert forwarded.branch not in (call.arrived.branch, "old")
    assert call.clients.keys() == {call.arrived.branch.encode()}  # no transaction for an ACK


@pytest.mark.requirement("SIP-TXN-17")
def test_rfc6026_8_8_an_answer_that_cannot_be_delivered_changes_nothing() -> None:
    call = Call()
    call.caller.fail("reset")
    call.rig.run_soon()
    call.reply(486)
    again = call.rig.wire()
    call.rig.give(again, call.sent)
    assert len(call.callee.requests("INVITE")) == 1
    assert len(call.rig.transactions.servers) == 1
    call.rig.advance(32.5)
    assert call.rig.idle()


# ------------------------------------------------------------------------------------------ non-INVITE server


@pytest.mark.requirement("SIP-TXN-18")
def test_rfc3261_17_2_2_repeats_are_dropped_or_draw_the_last_answer_for_timer_j() -> None:
    call = Call("MESSAGE", caller=Transport.UDP)
    call.rig.give(call.caller, call.sent)
    assert call.caller.sent == []
    call.rig.advance(3.6)
    call.rig.give(call.caller, call.sent)
    assert call.caller.statuses() == [100, 100]
    call.caller.take()
    call.reply(200)
    call.reply(404)
    call.rig.give(call.caller, call.sent)
    call.rig.advance(31.5)
    call.rig.give(call.caller, call.sent)
    assert call.caller.statuses() == [200, 200, 200]
    assert len(set(call.caller.take())) == 1
    assert len(call.callee.requests("MESSAGE")) == 4  # ours by timer E
    call.rig.advance(1.5)
    call.rig.give(call.caller, call.sent)
    assert len(call.callee.requests("MESSAGE")) == 5
    stream = Call("MESSAGE")
    stream.reply(200)
    assert stream.rig.transactions.finals == {}
    assert stream.rig.transactions.servers == {}


@pytest.mark.requirement("SIP-TXN-18")
@pytest.mark.parametrize("invite", [False, True])
def test_rfc3261_17_2_2_an_answer_behind_the_final_one_is_discarded(invite: bool) -> None:
    rig = Rig()
    wire = rig.wire(Transport.UDP)
    server = rig.transactions.add_server(b"key", invite, wire)
    server.respond(486, b"SIP/2.0 486 first", rig.clock.now)
    for status in (100, 200, 486, 500):
        server.respond(status, b"SIP/2.0 later", rig.clock.now)
    assert wire.take() == [b"SIP/2.0 486 first"]


@pytest.mark.requirement("SIP-TXN-18")
def test_rfc3261_17_2_2_a_register_on_udp_is_done_once() -> None:
    rig = Rig()
    wire = rig.wire(Transport.UDP)
    register = request(
        "REGISTER", "sip:example.com", to="<sip:alice@example.com>", Contact="<sip:a@192.0.2.9>;expires=60"
    )
    for _ in range(3):
        rig.give(wire, register)
        rig.advance(4)
    assert wire.statuses() == [200, 200, 200]
    assert len(set(wire.take())) == 1  # the seconds left are those of the first


@pytest.mark.requirement("SIP-TXN-19")
def test_rfc4320_4_1_no_provisional_but_100_for_other_requests() -> None:
    call = Call("MESSAGE")
    for status in (100, 180, 183):
        call.reply(status)
    assert call.caller.sent == []


@pytest.mark.requirement("SIP-TXN-20")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_rfc4320_4_1_trying_after_three_and_a_half_seconds(transport: Transport) -> None:
    call = Call("MESSAGE", caller=transport)
    call.rig.advance(3.4)
    assert call.caller.sent == []
    call.rig.advance(10)
    assert (call.caller.times(call.start), call.caller.statuses()) == ([3.5], [100])


# ------------------------------------------------------------------------------------------ matching


@pytest.mark.requirement("SIP-TXN-22")
def test_rfc3261_17_2_3_branch_sent_by_and_method_make_the_key() -> None:
    rig = Rig()
    callee, caller = rig.register("bob"), rig.wire()
    for via, method in (
        ("SIP/2.0/TCP one.example;branch=z9hG4bKsame", "MESSAGE"),
        ("SIP/2.0/TCP one.example:5060;branch=z9hG4bKsame", "MESSAGE"),  # the same
        ("SIP/2.0/TCP two.example;branch=z9hG4bKsame", "MESSAGE"),
        ("SIP/2.0/TCP one.example:5070;branch=z9hG4bKsame", "MESSAGE"),
        ("SIP/2.0/TCP one.example;branch=z9hG4bKsame", "OPTIONS"),
    ):
        rig.give(caller, request(method, "sip:bob@example.com", via=via))
    assert [r.method for r in callee.requests()] == ["MESSAGE", "MESSAGE", "MESSAGE", "OPTIONS"]


@pytest.mark.requirement("SIP-TXN-23")
def test_rfc3261_17_2_3_requests_without_the_cookie_match_as_in_rfc2543() -> None:
    rig = Rig()
    callee, caller = rig.register("bob"), rig.wire(Transport.UDP, ("198.51.100.20", 5060))
    old = request("INVITE", "sip:bob@example.com", via="SIP/2.0/UDP 198.51.100.20;maddr=198.51.100.20", call_id="2543")
    for _ in range(2):
        rig.give(caller, old)
    (invite,) = callee.requests("INVITE")
    changes = [(b": 2543", b": 2544"), (b"1 INVITE", b"2 INVITE"), (b"tag=a1", b"tag=a2"), (b";maddr", b":5060;maddr")]
    for change in (*changes, (b"INVITE sip:bob@example.com", b"INVITE sip:bob@example.com;x=1")):
        changed = old.replace(*change)
        assert changed != old
        rig.give(caller, changed)
    assert len(callee.requests("INVITE")) == 6  # while the first is pending each of them is another
    caller.take()
    rig.give(callee, answer(invite, 404))
    rig.advance(1)
    assert caller.statuses() == [404, 404]
    rig.give(caller, follow_up("ACK", old, to="<sip:bob@example.com>;tag=b1"))
    rig.advance(20)
    assert caller.statuses() == [404, 404]
    assert len(callee.requests("ACK")) == 1


@pytest.mark.requirement("SIP-TXN-24")
def test_rfc4475_3_2_1_a_branch_of_nothing_but_the_cookie_is_nobodys_key() -> None:
    rig = Rig()
    callee = rig.register("bob")
    for call_id in ("one", "two"):
        caller = rig.wire()
        via = "SIP/2.0/TCP caller.example;branch=z9hG4bK"
        rig.give(caller, request("MESSAGE", "sip:bob@example.com", via=via, call_id=call_id))
    first, second = callee.requests("MESSAGE")
    assert (first["Call-ID"], second["Call-ID"]) == ("one", "two")


@pytest.mark.requirement("SIP-TXN-25", "SIP-CAN-01")
def test_rfc3261_9_2_a_cancel_finds_its_invite_and_has_a_transaction_of_its_own() -> None:
    call = Call(caller=Transport.UDP)
    call.reply(180)
    cancel = follow_up("CANCEL", call.sent)
    call.rig.give(call.caller, cancel)
    call.rig.give(call.caller, cancel)
    assert call.caller.statuses("CANCEL") == [200, 200]
    (sent,) = call.callee.requests("CANCEL")
    call.rig.give(call.callee, answer(sent, 200))
    call.reply(487)
    assert call.caller.statuses("INVITE") == [100, 180, 487]
    assert len(call.callee.requests("ACK")) == 1


@pytest.mark.requirement("SIP-TXN-28")
def test_rfc3261_16_3_merged_requests_both_go_through() -> None:
    rig = Rig()
    callee, caller = rig.register("bob"), rig.wire()
    for _ in range(2):
        rig.give(caller, request("INVITE", "sip:bob@example.com", call_id="merged"))
    assert len(callee.requests("INVITE")) == 2


# ------------------------------------------------------------------------------------------ ends


@pytest.mark.requirement("SIP-TXN-27")
def test_rfc3261_8_1_1_7_branches_are_tokens_and_never_come_twice() -> None:
    rig = Rig()
    seen = {rig.core.stamper.new_branch(b"0123abcd") for _ in range(100_000)}
    assert len(seen) == 100_000
    assert all(re.fullmatch(rb"z9hG4bK[A-Za-z0-9.!%*_+`'~-]+", branch) for branch in seen)
    other = Rig(seed=6)
    assert not {other.core.stamper.new_branch(b"0123abcd") for _ in range(10)} & seen


def _finish(rig: Rig, caller: Wire, callee: Wire, kind: int) -> None:
    method = "INVITE" if kind % 2 else "MESSAGE"
    data = request(method, "sip:bob@example.com")
    rig.give(caller, data)
    arrived = parse(callee.take()[-1])
    assert isinstance(arrived, Request)
    status = (0, 180, 200, 486, 603)[kind % 5]
    if status:
        rig.give(callee, answer(arrived, status))
    if status == 180 and method == "INVITE":
        rig.give(caller, follow_up("CANCEL", data))
    if status > 300 and method == "INVITE" and kind % 3:
        rig.give(caller, follow_up("ACK", data, to=arrived["To"] + ";tag=b1"))


@pytest.mark.requirement("SIP-TXN-26")
def test_rfc3261_17_nothing_is_left_of_finished_transactions() -> None:
    rig = Rig()
    callees = [rig.register("bob", rig.wire(Transport.UDP))]
    callers = [rig.wire(), rig.wire(Transport.UDP)]
    for kind in range(3000):
        if kind % 100 == 0:
            rig.advance(0.1)
            callees[0].take()
        if not rig.stack.location.bindings(b"bob@example.com"):
            callees = [rig.register("bob", rig.wire(Transport.UDP))]
        _finish(rig, callers[kind % 2], callees[0], kind)
    assert rig.transactions.servers
    rig.advance(110)
    assert rig.idle()
    assert all(wire.uses == 0 for wire in callers)


def _alive(*kinds: type) -> int:
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


@pytest.mark.requirement("SIP-TXN-26")
@pytest.mark.parametrize("status", [200, 486])
@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_what_is_over_is_freed_by_counting(method: str, status: int) -> None:
    """No cycle holds what is finished: it goes without the collector, at the latest when its last timer has fired."""
    gc.collect()
    gc.disable()
    try:
        before = _alive(ProxyContext, Branch, Draft), _alive(ServerTransaction, ClientTransaction)
        drafts = _alive(Draft)
        call = Call(method)
        assert _alive(ProxyContext, Branch, Draft) == before[0] + 3
        call.reply(status)
        assert _alive(Draft) == drafts
        call.rig.advance(33)
        assert (_alive(ProxyContext, Branch, Draft), _alive(ServerTransaction, ClientTransaction)) == before
    finally:
        gc.enable()
