"""Response contexts: forking, the choice of the answer, CANCEL, timer C, failover, Max-Breadth, loops."""

from __future__ import annotations

import pytest

from edge.connections import Connection, Transport
from edge.sip.message import Directions, Message
from tests.sip.rig import Rig, Wire, answer, follow_up, request
from tests.ua.sip_message import Request

C_S = 185


class Fork:
    """A caller and one callee for each q given, all of one user; `ring` sends the request."""

    def __init__(self, *qs: str, rig: Rig | None = None, transport: Transport = Transport.TCP) -> None:
        self.rig = rig or Rig()
        self.callees = [
            self.rig.register("bob", self.rig.wire(transport), parameters=f";q={q}" if q else "") for q in qs
        ]
        self.caller = self.rig.wire()
        self.sent = b""

    def ring(self, method: str = "INVITE", **options: str) -> None:
        self.sent = request(method, "sip:bob@example.com", **options)
        self.rig.give(self.caller, self.sent)

    def arrived(self, number: int, method: str = "INVITE") -> Request:
        return self.callees[number].requests(method)[-1]

    def reply(self, number: int, status: int, method: str = "INVITE", **options: object) -> None:
        options.setdefault("tag", f"b{number}")
        self.rig.give(self.callees[number], answer(self.arrived(number, method), status, **options))  # type: ignore[arg-type]

    def reached(self, method: str = "INVITE") -> list[int]:
        return [number for number, callee in enumerate(self.callees) if callee.requests(method)]

    def cancel(self, *extra: tuple[str, str]) -> None:
        data = follow_up("CANCEL", self.sent)
        for name, value in extra:
            data = data.replace(b"\r\nCall-ID:", f"\r\n{name}: {value}\r\nCall-ID:".encode(), 1)
        self.rig.give(self.caller, data)


# ------------------------------------------------------------------------------------------ targets


@pytest.mark.requirement("SIP-PRX-09")
def test_rfc3261_16_5_bindings_are_tried_by_q_and_equals_together() -> None:
    fork = Fork("0.5", "1.0", "0.5")
    fork.ring()
    assert fork.reached() == [1]
    fork.reply(1, 486)
    assert fork.reached() == [0, 1, 2]
    fork.reply(0, 404)
    assert fork.caller.statuses() == [100]
    fork.reply(2, 200)
    assert fork.caller.statuses() == [100, 200]


@pytest.mark.requirement("SIP-PRX-09")
def test_rfc3261_16_6_a_uri_enters_the_target_set_once() -> None:
    rig = Rig()
    wire = rig.wire()
    for instance in (1, 2):
        parameters = f';+sip.instance="<urn:uuid:00000000-0000-1000-8000-00000000000{instance}>"'
        rig.register("bob", wire, contact="sip:bob@192.0.2.44", parameters=parameters)
    rig.give(rig.wire(), request("MESSAGE", "sip:bob@example.com"))
    assert len(wire.requests("MESSAGE")) == 1


@pytest.mark.requirement("SIP-PRX-10", "SIP-PRX-02", "SIP-LOP-04")
def test_rfc3261_16_6_what_leaves_is_what_came_but_for_what_a_proxy_changes() -> None:
    fork = Fork("")
    headers = {"Subject": "  odd   spacing ", "X_Unknown": "kept;as=is", "s": "short", "Session_Expires": "90"}
    fork.ring(body=b"v=0\r\n", **headers)  # type: ignore[arg-type]
    came, left = fork.sent.split(b"\r\n"), fork.callees[0].take()[-1].split(b"\r\n")
    assert [line for line in came[1:] if not line.startswith((b"Via", b"Max-Forwards"))] == [
        line for line in left[1:] if not line.startswith((b"Via", b"Max-", b"Record-Route"))
    ]
    assert left.count(b"Max-Forwards: 69") == left.count(b"Max-Breadth: 60") == 1
    assert [line for line in left if line.startswith(b"Via")][1].startswith(came[1])


@pytest.mark.requirement("SIP-LOP-06")
def test_a_request_has_no_more_branches_than_allowed() -> None:
    fork = Fork(*["1"] * 6, rig=Rig(limits={"branches": 4}))
    fork.ring()
    assert len(fork.reached()) == 4
    for number in list(fork.reached()):
        fork.reply(number, 486)
    assert len(fork.reached()) == 4
    assert fork.caller.statuses() == [100, 486]


@pytest.mark.requirement("SIP-LOP-06", "SIP-PRX-23")
@pytest.mark.parametrize(("branches", "left"), [(1, ["x", "y"]), (2, ["y"]), (3, [])])
def test_rfc3261_16_7_step_4_contacts_for_which_no_branch_is_left_go_up(branches: int, left: list[str]) -> None:
    rig = Rig(sip={"recurse": True}, limits={"branches": branches})
    fork, far = Fork("1", rig=rig), rig.wire()
    rig.roads["far.example"] = [far]
    fork.ring()
    values = {"y": "<sip:y@far.example>;q=0.3", "x": "<sip:x@far.example>;q=0.7"}
    fork.reply(0, 302, extra=tuple(("Contact", value) for value in values.values()))
    for number in range(branches - 1):
        rig.give(far, answer(far.requests("INVITE")[number], 404))
    final = fork.caller.responses()[-1]
    assert len(far.requests("INVITE")) == branches - 1
    assert final.status == (302 if left else 404)
    assert final.values("Contact") == [value for name, value in values.items() if name in left]
    assert fork.caller.statuses() == [100, final.status]


@pytest.mark.requirement("SIP-LOP-06", "SIP-PRX-23")
def test_rfc3261_16_7_a_redirection_that_is_not_tried_waits_for_the_other_branches() -> None:
    fork = Fork("1", "1", rig=Rig(sip={"recurse": True}, limits={"branches": 2}))
    far = fork.rig.wire()
    fork.rig.roads["far.example"] = [far]
    fork.ring()
    contact = ("Contact", "<sip:x@far.example>")
    fork.reply(0, 302, extra=(contact,))
    assert (far.sent, fork.caller.statuses()) == ([], [100])
    fork.reply(1, 486)
    final = fork.caller.responses()[-1]
    assert (far.sent, final.status, final["Contact"]) == ([], 302, contact[1])


@pytest.mark.requirement("SIP-PRX-23")
@pytest.mark.parametrize("ending", [487, 603])
def test_rfc3261_16_7_no_redirection_is_left_of_a_call_that_was_cancelled_or_declined(ending: int) -> None:
    fork = Fork("1", "1", rig=Rig(sip={"recurse": True}, limits={"branches": 2}))
    fork.ring()
    fork.reply(0, 302, extra=(("Contact", "<sip:x@far.example>"),))
    fork.reply(1, 180)
    if ending == 487:
        fork.cancel()
    fork.reply(1, ending)
    assert fork.caller.statuses("INVITE") == [100, 180, ending]


# ------------------------------------------------------------------------------------------ answers


@pytest.mark.requirement("SIP-PRX-17", "SIP-PRX-22")
def test_rfc3261_16_7_what_goes_up_and_what_does_not() -> None:
    fork = Fork("1", "1", "1")
    fork.ring()
    fork.reply(0, 100)
    fork.reply(0, 183)
    assert fork.caller.statuses() == [100, 183]
    fork.reply(1, 200)
    fork.reply(0, 200)
    fork.reply(2, 486)
    assert fork.caller.statuses() == [100, 183, 200, 200]
    assert [response.to_tag for response in fork.caller.responses()] == [None, "b0", "b1", "b0"]
    assert all(len(response.all("Via")) == 1 for response in fork.caller.responses())


@pytest.mark.requirement("SIP-PRX-18")
@pytest.mark.parametrize(
    ("statuses", "best"),
    [
        ([503, 407, 501, 404], 407),
        ([404, 302], 302),
        ([486, 603], 603),
        ([503], 500),
        ([503, 501], 501),
        ([486, 484], 484),
        ([480, 486], 486),
        ([500, 404, 415], 415),
    ],
)
def test_rfc3261_16_7_the_best_refusal(statuses: list[int], best: int) -> None:
    fork = Fork(*["1"] * len(statuses))
    fork.ring()
    for number, status in enumerate(statuses):
        fork.reply(number, status, extra=(("Retry-After", "60"),) if status == 503 else ())
    assert fork.caller.statuses() == [100, best]


@pytest.mark.requirement("SIP-PRX-20")
def test_rfc3261_16_7_every_challenge_of_every_branch_goes_up() -> None:
    fork = Fork("1", "1", "1")
    fork.ring()
    rows = [
        ("WWW-Authenticate", 'Digest realm="a", nonce="1", algorithm=SHA-256'),
        ("WWW-Authenticate", 'Digest realm="a",  nonce="1"'),
    ]
    proxy = ("Proxy-Authenticate", 'Digest realm="b", nonce="2"')
    fork.reply(0, 404)
    fork.reply(1, 401, extra=tuple(rows))
    fork.reply(2, 407, extra=(proxy,))
    final = fork.caller.responses()[-1]
    assert final.status == 401
    assert final.all("WWW-Authenticate") == [value for _, value in rows]
    assert final.all("Proxy-Authenticate") == [proxy[1]]
    assert fork.caller.take()[-1].index(rows[0][1].encode()) > 0


@pytest.mark.requirement("SIP-PRX-21")
def test_rfc3261_16_7_a_6xx_ends_the_search_when_the_others_have_ended() -> None:
    fork = Fork("1", "1", "0.1")
    fork.ring()
    fork.reply(1, 180)
    fork.reply(0, 603)
    assert len(fork.callees[1].requests("CANCEL")) == 1
    assert fork.caller.statuses() == [100, 180]
    fork.reply(1, 487)
    assert fork.caller.statuses() == [100, 180, 603]
    assert fork.reached() == [0, 1]


@pytest.mark.requirement("SIP-PRX-21")
def test_rfc3261_16_7_a_2xx_wins_over_a_6xx_that_is_not_sent_yet() -> None:
    fork = Fork("1", "1")
    fork.ring()
    fork.reply(1, 180)
    fork.reply(0, 603)
    fork.reply(1, 200)
    assert fork.caller.statuses() == [100, 180, 200]


@pytest.mark.requirement("SIP-URI-06", "SIP-PRX-23")
def test_rfc3261_19_1_5_where_others_lead_us_becomes_a_request_uri_without_method_and_headers() -> None:
    rig = Rig(sip={"recurse": True})
    fork, far, old = Fork("1", rig=rig), rig.wire(), rig.wire()
    rig.roads |= {"far.example": [far], "old.example": [old]}
    fork.ring()
    fork.reply(0, 302, extra=(("Contact", "<sip:x@far.example;method=BYE;y=1?Route=%3Csip:evil.example%3E>"),))
    (followed,) = far.requests()
    assert (followed.method, followed.uri, followed.all("Route")) == ("INVITE", "sip:x@far.example;y=1", [])
    strict = request("MESSAGE", "sip:x@far.example", Route="<sip:old.example;method=BYE;y=1?Subject=no>")
    rig.give(fork.caller, strict)
    (moved,) = old.requests()
    assert (moved.method, moved.uri) == ("MESSAGE", "sip:old.example;y=1")


@pytest.mark.requirement("SIP-CAN-01")
def test_rfc3261_16_10_a_call_cancelled_while_its_way_is_looked_for_ends_with_487() -> None:
    rig = Rig()
    caller, far = rig.wire(), rig.wire()
    rig.roads["far.example"], rig.held = [far], []
    call = request("INVITE", "sip:x@far.example")
    rig.give(caller, call)
    rig.give(caller, follow_up("CANCEL", call))
    assert caller.statuses() == [100, 200]
    for found in rig.held:
        found()
    assert (caller.statuses("INVITE"), far.sent) == ([100, 487], [])


@pytest.mark.requirement("SIP-CAN-04")
def test_rfc3261_16_7_a_branch_is_cancelled_once_for_whatever_reasons_there_are() -> None:
    fork = Fork("1", "1", "1")
    fork.ring()
    for number in range(3):
        fork.reply(number, 180)
    fork.cancel()
    fork.reply(0, 603)  # would cancel the others
    fork.reply(1, 200)  # and so would this
    fork.cancel()
    assert [len(callee.requests("CANCEL")) for callee in fork.callees] == [1, 1, 1]
    assert fork.caller.statuses("INVITE")[-1] == 200


@pytest.mark.requirement("SIP-PRX-23")
def test_rfc3261_16_7_a_redirection_is_relayed() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 302, extra=(("Contact", "<sip:carol@example.com>"),))
    final = fork.caller.responses()[-1]
    assert (final.status, final["Contact"]) == (302, "<sip:carol@example.com>")


@pytest.mark.requirement("SIP-PRX-23")
def test_rfc3261_16_7_a_redirection_is_followed_where_we_are_told_to() -> None:
    rig = Rig(sip={"recurse": True})
    fork, carol, far = Fork("1", rig=rig), rig.register("carol"), rig.wire()
    rig.roads["far.example"] = [far]
    fork.ring()
    contacts = "<sip:bob@example.com>, <sip:x@far.example>;q=0.2, <sip:carol@example.com>;q=0.7, <sips:s@far.example>"
    fork.reply(0, 302, extra=(("Contact", contacts),))
    (to_carol,) = carol.requests("INVITE")
    assert far.sent == []
    rig.give(carol, answer(to_carol, 302, extra=(("Contact", "<sip:bob@example.com>, <sip:x@far.example>"),)))
    (to_far,) = far.requests("INVITE")
    assert to_far.uri == "sip:x@far.example"
    rig.give(far, answer(to_far, 486))
    # What was tried is taken out; what cannot be tried is all that is left to be said.
    assert fork.reached() == [0]
    final = fork.caller.responses()[-1]
    assert (final.status, final.values("Contact")) == (302, ["<sip:bob@example.com>", "<sips:s@far.example>"])


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_streams_that_a_policy_wants_closed_end_one_after_the_other(transport: Transport) -> None:
    rig = Rig()
    caller, first, second = rig.wire(), rig.wire(transport), rig.wire(transport)
    rig.roads["far.example"] = [first, second]

    def close_after(connection: Connection, message: Message, now: float) -> bool:
        message.directions = Directions()
        message.directions.close_after = message.directions.authorised = True
        return False

    rig.core.request_hook = close_after
    rig.give(caller, request("INVITE", "sip:x@far.example"))
    rig.give(first, answer(first.requests("INVITE")[0], 503))
    assert (first.closed, second.closed) == (transport is Transport.TCP, False)
    assert len(first.requests("ACK")) == 1
    rig.give(second, answer(second.requests("INVITE")[0], 404))
    assert caller.statuses() == [100, 404]
    assert (second.closed, caller.closed) == (transport is Transport.TCP, False)


@pytest.mark.requirement("SIP-PRX-27")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_rfc3261_16_9_a_lost_caller_cancels_nothing(transport: Transport) -> None:
    fork = Fork("1", "1")
    fork.caller = fork.rig.wire(transport)
    fork.ring()
    fork.reply(0, 180)
    fork.caller.fail("reset")
    fork.rig.run_soon()
    fork.reply(0, 183)  # cannot be delivered, nor can the next
    fork.reply(1, 486)
    fork.rig.advance(20)
    assert [callee.requests("CANCEL") for callee in fork.callees] == [[], []]
    fork.rig.advance(C_S)
    assert len(fork.callees[0].requests("CANCEL")) == 1


@pytest.mark.requirement("SIP-PRX-27", "SIP-CAN-01")
def test_rfc3261_16_10_a_caller_who_lost_its_link_still_can_cancel() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 180)
    fork.caller.fail("reset")
    fork.rig.run_soon()
    fork.caller = fork.rig.wire()
    fork.cancel()
    assert fork.caller.statuses("CANCEL") == [200]
    assert len(fork.callees[0].requests("CANCEL")) == 1


# ------------------------------------------------------------------------------------------ time and failure


@pytest.mark.requirement("SIP-PRX-16", "SIP-CAN-04")
def test_rfc3261_16_8_timer_c_cancels_what_rings_too_long() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 180)
    fork.rig.advance(170)
    fork.reply(0, 180)
    fork.rig.advance(14)
    fork.reply(0, 100)  # is no reason to wait longer
    fork.rig.advance(C_S - 14.1)
    assert fork.callees[0].requests("CANCEL") == []
    fork.rig.advance(0.2)
    assert len(fork.callees[0].requests("CANCEL")) == 1
    fork.rig.advance(31.5)
    assert fork.caller.statuses() == [100, 180, 180]
    fork.rig.advance(1)
    assert fork.caller.statuses() == [100, 180, 180, 408]


@pytest.mark.requirement("SIP-PRX-16")
def test_rfc3261_16_8_a_branch_that_only_said_100_ends_by_timer_c_too() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 100)
    fork.rig.advance(C_S + 33)
    assert fork.caller.statuses() == [100, 408]
    assert fork.rig.transactions.clients == {}


@pytest.mark.requirement("SIP-PRX-15", "SIP-PRX-19", "SIP-DNS-07")
def test_rfc3263_4_3_the_next_address_is_tried_where_one_fails_in_a_new_transaction() -> None:
    rig = Rig()
    first, second, third = (rig.wire() for _ in range(3))
    rig.roads["far.example"] = [first, second, third]
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:x@far.example"))
    first.fail("refused")
    rig.run_soon()
    (there,) = second.requests("INVITE")
    rig.give(second, answer(there, 503))
    (last,) = third.requests("INVITE")
    assert last.branch != there.branch
    assert last.uri == there.uri == "sip:x@far.example"
    assert caller.statuses() == [100]
    rig.give(third, answer(last, 200))
    assert caller.statuses() == [100, 200]


@pytest.mark.requirement("SIP-PRX-19", "SIP-DNS-07")
def test_rfc3263_4_3_silence_moves_on_and_any_answer_does_not() -> None:
    rig = Rig()
    silent, polite = rig.wire(), rig.wire()
    rig.roads["far.example"] = [silent, polite]
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:x@far.example"))
    rig.advance(32.1)
    (arrived,) = polite.requests("INVITE")
    rig.give(polite, answer(arrived, 404))
    assert caller.statuses() == [100, 404]
    rig.roads["far.example"] = [polite, silent]
    silent.take()
    for method, status in (("INVITE", 404), ("MESSAGE", 100)):
        rig.give(caller, request(method, "sip:x@far.example"))
        rig.give(polite, answer(polite.requests(method)[-1], status))
        rig.advance(33)
    assert silent.sent == []


@pytest.mark.requirement("SIP-DNS-07")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_rfc3263_4_3_an_address_that_spoke_is_not_given_up_for_another(transport: Transport) -> None:
    """Timer F of both transactions ends at once, in no order; among fifty there are all orders."""
    rig = Rig()
    slow, spare = rig.wire(transport), rig.wire()
    rig.roads["far.example"] = [slow, spare]
    caller = rig.wire()
    for _ in range(50):
        rig.give(caller, request("MESSAGE", "sip:x@far.example"))
        rig.give(slow, answer(slow.requests("MESSAGE")[-1], 100))
    rig.advance(33)
    assert rig.transactions.clients == {}  # it is over for all of them
    assert (spare.sent, caller.statuses()) == ([], [100] * 50)
    rig.roads["far.example"] = [slow, spare]
    slow.take()
    rig.give(caller, request("INVITE", "sip:x@far.example"))
    rig.give(slow, answer(slow.requests("INVITE")[-1], 100))
    slow.fail("reset")
    rig.run_soon()
    rig.advance(40)
    assert spare.sent == []


@pytest.mark.requirement("SIP-PRX-19")
@pytest.mark.parametrize(("way", "status"), [("fails", 500), ("is silent", 408)])
def test_rfc3261_16_9_the_last_address_decides(way: str, status: int) -> None:
    rig = Rig()
    wire = rig.wire()
    rig.roads["far.example"] = [wire]
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:x@far.example"))
    if way == "fails":
        wire.fail("refused")
        rig.run_soon()
    else:
        rig.advance(33)
    assert caller.statuses() == [100, status]


@pytest.mark.requirement("SIP-PRX-28")
def test_rfc3261_21_5_4_an_address_that_asks_for_it_is_left_alone() -> None:
    rig = Rig()
    tired, fresh = rig.wire(), rig.wire()
    rig.roads["far.example"] = [tired, fresh]
    rig.give(rig.wire(), request("MESSAGE", "sip:x@far.example"))
    rig.give(tired, answer(tired.requests()[0], 503, extra=(("Retry-After", "18 (lunch);duration=9"),)))
    assert rig.avoided == [(tired, 18)]
    assert len(fresh.requests("MESSAGE")) == 1


def test_rfc5626_7_the_next_flow_is_tried_for_430_and_for_a_dead_one() -> None:
    rig = Rig()
    flows = []
    for number in (1, 2, 3):
        parameters = f';reg-id={number};+sip.instance="<urn:uuid:00000000-0000-1000-8000-000000000001>"'
        wire = rig.wire()
        contact = f"sip:bob@{wire.remote[0]}"
        headers = {"Contact": f"<{contact}>{parameters}", "Supported": "path, outbound"}
        rig.give(wire, request("REGISTER", "sip:example.com", to="<sip:bob@example.com>", **headers))
        assert wire.statuses() == [200]
        wire.take()
        flows.append(wire)
        rig.advance(1)
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    reached = [wire for wire in flows if wire.requests("INVITE")]
    assert len(reached) == 1
    rig.give(reached[0], answer(reached[0].requests("INVITE")[0], 430))
    second = [wire for wire in flows if wire.requests("INVITE") and wire is not reached[0]]
    assert len(second) == 1
    second[0].fail("reset")
    rig.run_soon()
    last = next(wire for wire in flows if wire not in (reached[0], second[0]))
    rig.give(last, answer(last.requests("INVITE")[0], 486))
    assert caller.statuses() == [100, 486]


# ------------------------------------------------------------------------------------------ CANCEL


@pytest.mark.requirement("SIP-CAN-01")
def test_rfc3261_16_10_cancel_reaches_every_branch_that_rings() -> None:
    fork = Fork("1", "1", "1")
    fork.ring()
    for number in (0, 1):
        fork.reply(number, 180)
    fork.reply(2, 486)
    fork.cancel()
    assert fork.caller.statuses("CANCEL") == [200]
    assert [len(callee.requests("CANCEL")) for callee in fork.callees] == [1, 1, 0]
    for number in (0, 1):
        fork.reply(number, 200, "CANCEL")
        fork.reply(number, 487)
    assert fork.caller.statuses("INVITE") == [100, 180, 180, 486]
    single = Fork("1", "0.5")
    single.ring()
    single.reply(0, 180)
    single.cancel()
    single.reply(0, 487)
    assert single.caller.statuses("INVITE") == [100, 180, 487]
    assert single.reached() == [0]


@pytest.mark.requirement("SIP-CAN-02")
def test_rfc3261_9_2_a_cancel_without_its_invite_is_481() -> None:
    fork = Fork("1")
    fork.rig.give(fork.caller, request("CANCEL", "sip:bob@example.com"))
    fork.rig.give(fork.caller, request("CANCEL", "sip:bob@elsewhere.example"))
    assert fork.caller.statuses() == [481, 481]
    assert (fork.callees[0].sent, fork.rig.asked) == ([], [])


@pytest.mark.requirement("SIP-CAN-03")
def test_rfc3261_9_1_our_cancel_waits_for_a_provisional_and_is_made_of_the_invite() -> None:
    rig = Rig()
    wire = rig.wire()
    rig.roads["next.example"] = [wire]
    routes = (("Route", "<sip:next.example;lr>"), ("Route", "<sip:far.example;lr>"))
    caller = rig.wire()
    data = request("INVITE", "sip:x@far.example", extra=routes, Require="foo", cseq=9)
    rig.give(caller, data)
    rig.give(caller, follow_up("CANCEL", data))
    assert caller.statuses("CANCEL") == [200]
    rig.advance(2)
    assert wire.requests("CANCEL") == []
    (invite,) = wire.requests("INVITE")
    rig.give(wire, answer(invite, 100))
    (cancel,) = wire.requests("CANCEL")
    assert cancel.uri == invite.uri
    assert cancel.all("Via") == invite.all("Via")[:1]
    assert cancel.all("Route") == invite.all("Route") != []
    assert [cancel[name] for name in ("Call-ID", "From", "To")] == [invite[name] for name in ("Call-ID", "From", "To")]
    assert cancel["CSeq"] == "9 CANCEL"
    assert invite.all("Require") == ["foo"]
    assert cancel.all("Require") == []
    rig.give(wire, answer(invite, 180))
    assert len(wire.requests("CANCEL")) == 1
    assert caller.statuses("INVITE") == [100]


@pytest.mark.requirement("SIP-CAN-03")
def test_rfc3261_9_1_a_branch_that_has_ended_is_not_cancelled() -> None:
    fork = Fork("1", "1")
    fork.ring()
    fork.cancel()
    fork.reply(0, 486)
    fork.reply(1, 200)
    assert [callee.requests("CANCEL") for callee in fork.callees] == [[], []]
    assert fork.caller.statuses("INVITE") == [100, 200]  # the callee was faster


@pytest.mark.requirement("SIP-CAN-04", "SIP-CAN-05")
def test_rfc3326_the_branches_left_over_hear_that_the_call_was_answered_elsewhere() -> None:
    fork = Fork("1", "1", "1")
    fork.ring()
    fork.reply(1, 180)
    fork.reply(0, 200)
    (cancel,) = fork.callees[1].requests("CANCEL")
    assert cancel.all("Reason") == ['SIP;cause=200;text="Call completed elsewhere"']
    assert fork.callees[2].requests("CANCEL") == []  # nothing came from there yet
    fork.reply(2, 180)
    assert len(fork.callees[2].requests("CANCEL")) == 1
    fork.reply(0, 200)
    assert [len(callee.requests("CANCEL")) for callee in fork.callees] == [0, 1, 1]


@pytest.mark.requirement("SIP-CAN-04")
def test_rfc3261_9_1_a_cancelled_branch_that_stays_silent_is_dropped() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 180)
    fork.cancel()
    fork.rig.advance(31.5)
    assert fork.caller.statuses("INVITE") == [100, 180]
    fork.rig.advance(1)
    assert fork.caller.statuses("INVITE") == [100, 180, 487]
    assert fork.rig.transactions.clients == {}


@pytest.mark.requirement("SIP-CAN-05")
def test_rfc3326_the_reason_of_a_cancel_goes_with_ours() -> None:
    fork = Fork("1")
    fork.ring()
    fork.reply(0, 180)
    fork.cancel(("Reason", "SIP;cause=600"), ("Reason", 'SIP;cause=487;text="x", Q.850;cause=16'))
    (cancel,) = fork.callees[0].requests("CANCEL")
    assert cancel.all("Reason") == ["SIP;cause=600", 'SIP;cause=487;text="x", Q.850;cause=16']


def test_a_cancel_while_the_name_is_looked_up_ends_the_call() -> None:
    rig = Rig()
    wire = rig.wire()
    rig.roads["far.example"] = [wire]
    rig.held = []
    caller = rig.wire()
    data = request("INVITE", "sip:x@far.example")
    rig.give(caller, data)
    rig.give(caller, follow_up("CANCEL", data))
    assert caller.statuses() == [100, 200]
    rig.held.pop()()
    assert caller.statuses() == [100, 200, 487]
    assert wire.sent == []


# ------------------------------------------------------------------------------------------ loops and breadth


def breadths(callees: list[Wire]) -> list[int]:
    return [int(r["Max-Breadth"]) for callee in callees for r in callee.requests("INVITE")]


@pytest.mark.requirement("SIP-LOP-04")
@pytest.mark.parametrize(("came", "left"), [(None, 60), ("500", 60), ("7", 7), ("1", 1)])
def test_rfc5393_5_3_3_requests_leave_with_one_max_breadth(came: str | None, left: int) -> None:
    fork = Fork("1")
    fork.ring(**({"Max_Breadth": came} if came else {}))
    assert breadths(fork.callees) == [left]
    assert len(fork.arrived(0).all("Max-Breadth")) == 1


@pytest.mark.requirement("SIP-LOP-05")
def test_rfc5393_5_3_3_breadth_is_shared_out_and_used_again() -> None:
    fork = Fork(*["1"] * 8)
    fork.ring(Max_Breadth="4")
    assert breadths(fork.callees) == [1, 1, 1, 1]
    started = fork.reached()
    fork.reply(started[0], 180)
    fork.reply(started[1], 486)
    assert len(fork.reached()) == 5
    assert set(breadths(fork.callees)) == {1}
    fork.reply(started[2], 200)
    assert len(fork.reached()) == 5


@pytest.mark.requirement("SIP-LOP-05")
@pytest.mark.parametrize(("came", "left"), [("60", [20, 20, 20]), ("8", [2, 3, 3]), ("1", [1])])
def test_rfc5393_5_3_3_the_sum_over_the_branches_is_what_came(came: str, left: list[int]) -> None:
    fork = Fork("1", "1", "1")
    fork.ring(Max_Breadth=came)
    assert sorted(breadths(fork.callees)) == left


@pytest.mark.requirement("SIP-LOP-05")
def test_rfc5393_5_3_3_no_breadth_is_440() -> None:
    fork = Fork("1")
    fork.ring(Max_Breadth="0")
    assert fork.caller.statuses() == [440]
    assert fork.reached() == []


def _again(rig: Rig, arrived: Request, old: str = "", new: str = "") -> bytes:
    """What a proxy further on makes of a request when it sends it back to us."""
    via = 'Via: SIP/2.0/TCP middle.example;branch=z9hG4bKmiddle;x="a;b=c";flag\r\n'
    text = arrived.raw.decode().replace("\r\nVia:", f"\r\n{via}Via:", 1)
    return text.replace(old, new, 1).encode() if old else text.encode()


@pytest.mark.requirement("SIP-LOP-02", "SIP-LOP-03")
def test_rfc5393_4_2_a_loop_is_482_and_a_spiral_goes_on() -> None:
    rig = Rig()
    middle, carol = rig.wire(), rig.register("carol")
    rig.roads["middle.example"] = [middle]
    caller = rig.wire()
    rig.register("bob", rig.wire(), contact="sip:bob@middle.example")
    bob = next(iter(rig.stack.location.bindings(b"bob@example.com")))
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    assert bob.connection is not None
    arrived = bob.connection.requests("INVITE")[0]  # type: ignore[attr-defined]
    back = _again(rig, arrived, f"INVITE {arrived.uri} ", "INVITE sip:bob@example.com ")
    rig.give(middle, back)
    assert middle.statuses() == [482]
    assert rig.core.stats.loops == 1
    rig.give(middle, _again(rig, arrived, f"INVITE {arrived.uri} ", "INVITE sip:carol@example.com "))
    assert middle.statuses() == [482, 100]
    (passed,) = carol.requests("INVITE")
    # The mark is the same for the same Request-URI, and does not know the method.
    rig.give(caller, request("MESSAGE", "sip:carol@example.com"))
    marks = [r.branch.rpartition(".")[2] for r in (passed, *carol.requests("MESSAGE"))]
    assert marks[0] == marks[1] != arrived.branch.rpartition(".")[2]


@pytest.mark.requirement("SIP-LOP-02")
def test_rfc5393_4_2_1_other_routes_make_a_spiral() -> None:
    rig = Rig()
    middle = rig.wire()
    rig.roads["middle.example"] = rig.roads["far.example"] = [middle]
    routes = (("Route", "<sip:edge.example;lr>, <sip:middle.example;lr>, <sip:edge.example;lr>"),)
    rig.give(rig.wire(), request("BYE", "sip:x@far.example", to="<sip:x@far.example>;tag=1", extra=routes))
    (arrived,) = middle.requests("BYE")
    middle.take()
    rig.give(middle, _again(rig, arrived, "<sip:middle.example;lr>, ", ""))
    assert len(middle.requests("BYE")) == 1


@pytest.mark.requirement("SIP-LOP-01")
def test_rfc5393_4_1_two_bindings_that_lead_back_to_us_are_no_storm() -> None:
    rig = Rig()
    home = rig.wire()
    rig.roads["home.example"] = [home]
    for name in ("one", "two"):
        rig.register("bob", rig.wire(), contact=f"sip:{name}@home.example")
    wires = [binding.connection for binding in rig.stack.location.bindings(b"bob@example.com")]
    caller = rig.wire()
    rig.give(caller, request("INVITE", "sip:bob@example.com"))
    for wire in wires:
        assert isinstance(wire, Wire)
        arrived = wire.requests("INVITE")[0]
        rig.give(wire, _again(rig, arrived, f"INVITE {arrived.uri} ", "INVITE sip:bob@example.com "))
        assert wire.statuses() == [482]
        rig.give(wire, answer(arrived, 482))
    assert caller.statuses() == [100, 482]
