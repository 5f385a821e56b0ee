"""What a REGISTER changes and how it is answered (RFC 3261 §10.3, RFC 5626 §6, RFC 3327 §5.3)."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

import pytest

from edge.connections import Transport
from edge.sip.keeper import BindingKeeper
from tests.sip.registering import BOB, INSTANCE, Counter, Shelf, flow_contact, register
from tests.ua.sip_message import Response, header_parameter

PROXY = ("198.51.100.200", 5060)
EDGES = {"trusted_edges": ("198.51.100.200",)}
PATH = "<sip:f1token@e1.example;lr;ob>"
OUTBOUND = "path, outbound"


def expires_of(answer: Response) -> list[int]:
    return [int(header_parameter(value, "expires") or -1) for value in answer.all("Contact")]


# ------------------------------------------------------------------------------------------ domain, extensions, AOR


@pytest.mark.requirement("SIP-REG-01", "OB-REG-02")
@pytest.mark.parametrize("users", [None, {"bob@example.com": "secret"}], ids=["open", "digest"])
def test_an_unknown_extension_is_420_before_anything_else(users: dict[str, str] | None) -> None:
    counter = Counter(users=users)
    for to in ("<sip:bob@example.com>", "<tel:+1>", "<sip:bob@other.example>"):
        answer = counter.register(None, BOB, to=to, require="outbound, foo, path, Bar")
        assert (answer.status, answer["Unsupported"]) == (420, "foo, Bar")
    assert counter.location.count == 0
    answer = counter.register(None, BOB, require="path, outbound, GRUU")
    assert answer.status == (401 if users else 200)


@pytest.mark.requirement("SIP-REG-01")
def test_what_is_not_ours_is_said_after_who_it_is_and_contacts_are_read_last() -> None:
    counter, wire = Counter(users={"bob@example.com": "secret"}), None
    wire = counter.wire()
    assert counter.register(wire, BOB, to="<sip:bob@other.example>").status == 401
    assert counter.register(wire, "<not a contact").status == 401
    open_counter = Counter()
    assert open_counter.register(None, "<not a contact", to="<sip:bob@other.example>").status == 404
    assert open_counter.register(None, "<not a contact").status == 400


@pytest.mark.requirement("OB-REG-01")
def test_register_for_another_domain_is_passed_on_and_never_kept() -> None:
    counter = Counter()
    wire = counter.wire()
    answers = counter.give(wire, register(BOB, uri="sip:other.example"))
    assert counter.asked == ["sip:other.example"]
    assert [answer.status for answer in answers] in ([480], [100, 480], [])
    assert counter.location.count == 0
    # A user part of the Request-URI is ignored.
    assert counter.register(wire, BOB, uri="sip:anybody@example.com").status == 200
    assert counter.listed() == [f"{BOB};expires=3600"]
    assert counter.listed("anybody") == []


@pytest.mark.requirement("SIP-REG-02")
@pytest.mark.parametrize(
    ("to", "status"),
    [
        ("<tel:+15551234>", 400),
        ("<unknown:bob@example.com>", 400),
        ("<sip:bob@other.example>", 404),
        ("<sip:example.com>", 404),
        ("<sips:bob@example.com>", 200),
    ],
)
def test_the_aor_is_sip_and_ours(to: str, status: int) -> None:
    counter = Counter()
    assert counter.register(None, BOB, to=to).status == status
    assert counter.location.count == (status == 200)


@pytest.mark.requirement("OB-REG-04")
def test_an_aor_is_compared_in_its_canonical_form() -> None:
    counter = Counter()
    for number, to in enumerate(
        ("<sip:%62ob@EXAMPLE.com;x=1>", "Bob <sips:b%6Fb@example.com:5060>;x=2", "sip:bob@edge.example:5060")
    ):
        assert counter.register(None, f"<sip:bob@198.51.100.{number}>", to=to).status == 200
    assert len(counter.listed()) == 3
    assert counter.location.aors() == [b"bob@example.com"]
    assert counter.register(None, "<sip:b@h>", to="<sip:BOB@example.com>").status == 200
    assert counter.location.aors() == [b"bob@example.com", b"BOB@example.com"]
    assert counter.register(None, "<sip:b@h>", to="<sip:bob@calm.example>").status == 404


# ------------------------------------------------------------------------------------------ listing, *


@pytest.mark.requirement("SIP-REG-03", "OB-REG-06")
def test_without_contact_the_bindings_are_listed_and_stay() -> None:
    counter = Counter()
    counter.register(None, BOB)
    before = [vars_of(binding) for binding in counter.bindings()]
    counter.clock.advance(7)
    answer = counter.register(None, expires=0, call_id="other", cseq=900)
    assert (answer.status, answer.all("Contact")) == (200, [f"{BOB};expires=3593"])
    assert [vars_of(binding) for binding in counter.bindings()] == before


def vars_of(binding: object) -> dict[str, object]:
    return {name: getattr(binding, name) for name in ("contact", "cseq", "call_id", "expires_at", "refreshed_at")}


@pytest.mark.requirement("SIP-REG-03", "OB-REG-07")
@pytest.mark.parametrize(
    ("contacts", "expires"),
    [
        (("*",), 3600),
        (("*",), 60),
        (("*",), None),
        (("*",), "00000000000000000001"),
        (("*",), "abc"),
        (("*", BOB), 0),
        ((BOB, "*"), 0),
        ((f"*, {BOB}",), 0),
        (("*;expires=0",), None),
        (("*", "*"), 0),
    ],
)
def test_star_stands_alone_and_with_expires_0(contacts: tuple[str, ...], expires: object) -> None:
    counter = Counter()
    counter.register(None, "<sip:bob@192.0.2.1>")
    assert counter.register(None, *contacts, expires=expires).status == 400
    assert len(counter.listed()) == 1


@pytest.mark.requirement("SIP-REG-03", "OB-REG-07")
def test_star_removes_all_but_not_out_of_order() -> None:
    counter = Counter()
    counter.register(None, "<sip:bob@192.0.2.1>", call_id="one", cseq=5)
    counter.register(None, flow_contact(), call_id="two", cseq=9)
    for cseq in (8, 9):
        assert counter.register(None, "*", expires=0, call_id="two", cseq=cseq).status == 400
        assert len(counter.listed()) == 2
    answer = counter.register(None, "*", expires="0", call_id="two", cseq=10, supported=OUTBOUND)
    assert (answer.status, answer.all("Contact"), answer.get("Require")) == (200, [], None)
    assert counter.listed() == []
    assert [event.change for event in counter.events if event.name == "registration.changed"][-2:] == ["removed"] * 2


# ------------------------------------------------------------------------------------------ time


@pytest.mark.requirement("SIP-REG-04", "OB-REG-08")
@pytest.mark.parametrize(
    ("parameter", "header", "granted"),
    [
        ("", None, 3600),
        ("", 600, 600),
        (";expires=60", 600, 60),
        (";expires=600", 60, 600),
        (";expires=abc", 600, 3600),
        (";expires", 600, 3600),
        (";expires=-1", None, 3600),
        ("", "soon", 3600),
        (";expires=99999999999", None, 7200),
        ("", 99999999999, 7200),
        (";expires=4294967295", None, 7200),
        (";expires=7201", None, 7200),
        (";expires=7199", None, 7199),
    ],
)
def test_time_is_granted_as_asked_and_never_longer(parameter: str, header: object, granted: int) -> None:
    counter = Counter(sip={"max_expires": 7200})
    assert expires_of(counter.register(None, BOB + parameter, expires=header)) == [granted]
    counter.advance(granted - 1)
    assert counter.location.count == 1
    counter.advance(1.5)
    assert counter.location.count == 0
    assert counter.names()[-1] == "registration.changed"


@pytest.mark.requirement("SIP-REG-04")
def test_the_default_is_settable() -> None:
    assert expires_of(Counter(sip={"default_expires": 1800}).register(None, BOB)) == [1800]


@pytest.mark.requirement("SIP-REG-05", "OB-REG-09")
@pytest.mark.parametrize("asked", [1, 30, 59])
def test_too_brief_is_423_with_the_minimum(asked: int) -> None:
    counter = Counter()
    for contact, header in ((BOB, asked), (f"{BOB};expires={asked}", 3600)):
        answer = counter.register(None, contact, expires=header)
        assert (answer.status, answer["Min-Expires"]) == (423, "60")
    assert counter.location.count == 0


@pytest.mark.requirement("SIP-REG-05", "OB-REG-09")
def test_zero_and_an_hour_are_never_too_brief() -> None:
    counter = Counter(sip={"min_expires": 7200, "max_expires": 7200, "default_expires": 7200})
    assert expires_of(counter.register(None, BOB, expires=3600)) == [3600]
    assert counter.register(None, BOB, expires=3599).status == 423
    assert counter.register(None, BOB, expires=0).status == 200
    assert counter.listed() == []


# ------------------------------------------------------------------------------------------ which binding, which order


@pytest.mark.requirement("SIP-REG-06", "OB-REG-10")
@pytest.mark.parametrize(
    ("known", "again", "same"),
    [
        ("sip:a@h.example;x=1;transport=tcp", "sip:a@H.example;transport=TCP;x=1", True),
        ("sip:a@h.example;x=1", "SIP:a@h.example;X=1", True),
        ("sip:a@h.example", "sip:%61@h.example;x=1", True),
        ("sip:a@h.example", "sip:A@h.example", False),
        ("sip:a@h.example", "sip:a@h.example:5060", False),
        ("sip:a@h.example", "sip:a@h.example;transport=udp", False),
        ("sip:a@h.example", "sip:h.example", False),
        ("sip:a@h.example;x=1", "sip:a@h.example;x=2", False),
    ],
)
def test_bindings_are_found_by_uri_comparison(known: str, again: str, same: bool) -> None:
    counter = Counter()
    counter.register(None, f"<{known}>")
    assert counter.register(None, f"<{again}>").status == 200
    shown = [value.partition(">")[0][1:] for value in counter.listed()]
    assert shown == ([again] if same else [known, again])


@pytest.mark.requirement("SIP-REG-06", "OB-REG-11")
@pytest.mark.parametrize("contact", [BOB, flow_contact()], ids=["plain", "outbound"])
def test_the_same_call_id_needs_a_higher_cseq(contact: str) -> None:
    counter = Counter()
    first = counter.wire()
    assert counter.register(first, contact, call_id="one", cseq=5).status == 200
    kept = vars_of(counter.bindings()[0])
    counter.clock.advance(10)
    other = counter.wire(remote=("198.51.100.8", 5070))
    for cseq, expires in ((4, 600), (5, 600), (5, 0), (1, 0)):
        assert counter.register(other, contact, call_id="one", cseq=cseq, expires=expires).status == 400
        assert [vars_of(binding) for binding in counter.bindings()] == [kept]
        assert counter.bindings()[0].connection is first
    assert counter.register(other, contact, call_id="two", cseq=1).status == 200
    (binding,) = counter.bindings()
    assert (binding.call_id, binding.cseq, binding.connection) == (b"two", 1, other)


@pytest.mark.requirement("OB-REG-11")
def test_a_retransmission_is_answered_by_the_transaction() -> None:
    counter = Counter()
    wire = counter.wire(Transport.UDP)
    data = register(BOB, transport="UDP", expires=600)
    counter.framing.receive_datagram(wire, data, counter.clock.now)
    (first,) = wire.take()
    counter.clock.advance(3)
    counter.framing.receive_datagram(wire, data, counter.clock.now)
    assert wire.take() == [first]
    assert expires_of(counter.register(wire)) == [597]


@pytest.mark.requirement("SIP-REG-07", "OB-REG-05")
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ("<sip:c@192.0.2.3>;q=7", 400),
        ("<http://192.0.2.3>", 400),
        ("<sip:c@192.0.2.3>;expires=5", 423),
        ('<sip:c@192.0.2.3>;reg-id=0;+sip.instance="<urn:x:1>"', 400),
        ("<sip:old@192.0.2.9>", 400),
        ("<sip:c@192.0.2.3", 400),
    ],
)
def test_all_contacts_or_none(bad: str, status: int) -> None:
    counter = Counter()
    counter.register(None, "<sip:old@192.0.2.9>;q=0.5", call_id="one", cseq=7)
    before = counter.listed()
    refused = counter.register(
        None,
        "<sip:a@192.0.2.1>",
        "<sip:old@192.0.2.9>;expires=0",
        bad,
        call_id="one" if "old" in bad else "two",
        cseq=7,
    )
    assert refused.status == status
    assert counter.listed() == before


@pytest.mark.requirement("SIP-REG-07")
def test_a_contact_named_twice_is_one_binding_and_the_later_value_counts() -> None:
    counter = Counter()
    counter.register(None, "<sip:a@h.example>;q=0.1, <sip:a@H.example;x=1>;q=0.2;expires=300")
    assert counter.listed() == ["<sip:a@H.example;x=1>;q=0.2;expires=300"]
    counter.register(None, "<sip:a@h.example>;expires=0", "<sip:a@h.example>;q=0.3")
    assert counter.listed() == ["<sip:a@h.example>;q=0.3;expires=3600"]
    counter.register(None, "<sip:a@h.example>;q=0.3", "<sip:a@h.example>;expires=0")
    assert counter.listed() == []


# ------------------------------------------------------------------------------------------ the answer


@pytest.mark.requirement("SIP-REG-08", "OB-REG-12")
def test_the_answer_lists_every_binding_as_it_stands() -> None:
    counter = Counter()
    counter.register(None, '<sip:a@192.0.2.1>;q=0.333;audio;Methods="INVITE,BYE"', expires=600)
    counter.advance(10)
    answer = counter.register(None, flow_contact(7) + ";q=1.0", supported=OUTBOUND)
    assert answer.all("Contact") == [
        '<sip:a@192.0.2.1>;q=0.333;audio;methods="INVITE,BYE";expires=590',
        flow_contact(7) + ";q=1.0;expires=3600",
    ]
    assert parsedate_to_datetime(answer["Date"]).tzinfo is not None
    assert answer.get("Record-Route") is None
    assert header_parameter(answer["To"], "tag")
    counter.advance(590)
    assert expires_of(counter.register(None)) == [3010]


@pytest.mark.requirement("SIP-REG-07", "SIP-REG-08", "OB-REG-13")
def test_record_route_is_ignored_and_nothing_is_answered_with_6xx() -> None:
    counter = Counter()
    answer = counter.register(None, BOB, extra=[("Record-Route", "<sip:p.example;lr>")])
    assert (answer.status, answer.get("Record-Route")) == (200, None)
    odd = ["<sip:a@h>;q=2", "*", "<tel:1>", "<sip:bob@example.com>", "<sip:a@h>;expires=1", flow_contact("x"), "<", ""]
    statuses = {counter.register(None, contact).status for contact in odd}
    assert statuses <= set(range(200, 600))
    assert statuses >= {400, 423}


@pytest.mark.requirement("SIP-REG-09")
@pytest.mark.parametrize(
    ("contact", "shown"),
    [
        ("sip:+19725552222@gw1.example.net;unknownparam", "<sip:+19725552222@gw1.example.net>;unknownparam"),
        ("<sip:+19725552222@gw1.example.net;unknownparam>", "<sip:+19725552222@gw1.example.net;unknownparam>"),
        (
            "<sip:user@example.net?Route=%3Csip:sip.example.net%3E>",
            "<sip:user@example.net?Route=%3Csip:sip.example.net%3E>",
        ),
        ('"B" <sip:b@h;u=1?H=2>;p="x;y,z>";f', '<sip:b@h;u=1?H=2>;p="x;y,z>";f'),
    ],
    ids=["cparam01", "cparam02", "regescrt", "all"],
)
def test_rfc4475_3_3_12_parts_of_a_contact_stay_where_they_were(contact: str, shown: str) -> None:
    answer = Counter().register(None, contact)
    assert answer.all("Contact") == [f"{shown};expires=3600"]


@pytest.mark.requirement("SIP-REG-10")
@pytest.mark.parametrize("q", ["1.5", "2", "0.3333", "-0.1", ".5", "abc", "1.001", "", "0,5", "00.5", "0.5x"])
def test_a_q_that_is_none(q: str) -> None:
    counter = Counter()
    assert counter.register(None, f"<sip:a@h>;q={q}").status == 400
    assert counter.location.count == 0


@pytest.mark.requirement("SIP-REG-10")
@pytest.mark.parametrize(
    ("q", "thousandths"),
    [("0.333", 333), ("1", 1000), ("1.000", 1000), ("0", 0), ("0.5", 500), ("0.", 0), (None, 1000)],
)
def test_a_q_is_kept_and_counts_in_thousandths(q: str | None, thousandths: int) -> None:
    counter = Counter()
    contact = "<sip:a@h>" + ("" if q is None else f";q={q}")
    assert counter.register(None, contact).all("Contact") == [f"{contact};expires=3600"]
    assert counter.bindings()[0].q == thousandths


# ------------------------------------------------------------------------------------------ limits


@pytest.mark.requirement("SIP-REG-11")
def test_there_is_a_most_of_bindings_and_those_there_stay() -> None:
    counter = Counter()
    contacts = [f"<sip:bob@192.0.2.{number}>" for number in range(11)]
    assert [counter.register(None, contact).status for contact in contacts] == [200] * 10 + [403]
    assert counter.register(None, contacts[3], contacts[10]).status == 403
    assert len(counter.listed()) == 10
    assert counter.register(None, contacts[3]).status == 200
    assert counter.register(None, contacts[3] + ";expires=0", contacts[10]).status == 200
    assert len(counter.listed()) == 10


@pytest.mark.requirement("OB-LIM-01")
def test_devices_and_their_flows_are_counted_apart() -> None:
    counter = Counter(limits={"bindings_per_aor": 1})

    def registered(reg_id: int, instance: str = INSTANCE, **options: object) -> int:
        return counter.register(None, flow_contact(reg_id, instance=instance), supported=OUTBOUND, **options).status

    assert [registered(reg_id) for reg_id in range(1, 6)] == [200] * 4 + [403]
    assert registered(2) == 200
    refused = counter.register(None, flow_contact(1, instance="urn:x:2"), supported=OUTBOUND)
    assert refused.start_line == "SIP/2.0 403 Too many contacts"
    assert counter.register(None, BOB).status == 403
    assert len(counter.listed()) == 4
    assert registered(2, expires=0) == 200
    assert registered(5) == 200
    assert counter.register(None, "*", expires=0).status == 200
    assert registered(1, "urn:x:2") == 200
    assert registered(1, "urn:x:2") == 200


@pytest.mark.requirement("OB-LIM-01")
def test_whoever_is_there_may_come_back_also_where_the_limit_is_lower_by_now() -> None:
    shelf = Shelf()

    def register_over_an_edge(counter: Counter, reg_id: int, instance: str) -> int:
        contact = flow_contact(reg_id, instance=instance)
        return counter.register(counter.wire(remote=PROXY), contact, supported=OUTBOUND, hops=2, path=[PATH]).status

    before = Counter(shelf=shelf, sip=EDGES)
    assert [register_over_an_edge(before, 1, f"urn:x:{number}") for number in range(3)] == [200] * 3
    after = Counter(shelf=shelf, sip=EDGES, limits={"bindings_per_aor": 2})
    keeper = after.stack.keeper
    assert isinstance(keeper, BindingKeeper)
    assert keeper.restore(after.location) == (3, 0)
    assert register_over_an_edge(after, 1, "urn:x:2") == 200
    assert register_over_an_edge(after, 2, "urn:x:2") == 200
    assert register_over_an_edge(after, 1, "urn:x:3") == 403


@pytest.mark.requirement("OB-LIM-03", "SIP-REG-11")
@pytest.mark.parametrize(
    "options",
    [
        {"path": [f"<sip:p{n}.example;lr>" for n in range(11)]},
        {"path": [f"<sip:{'p' * 1020}@p.example;lr;ob>", f"<sip:{'p' * 1020}@p.example;lr;ob>"]},
        {"contact": f"<sip:{'b' * 1020}@h.example>"},
        {"contact": flow_contact(instance="urn:x:" + "1" * 256)},
        {"contact": ", ".join(f"<sip:b@192.0.2.{n}>" for n in range(11))},
    ],
    ids=["paths", "path octets", "contact octets", "instance octets", "contacts"],
)
def test_above_a_bound_it_is_400_and_nothing_is_cut(options: dict[str, object]) -> None:
    counter = Counter(sip=EDGES, limits={"bindings_per_aor": 100})
    contact = str(options.pop("contact", BOB))
    wire = counter.wire(remote=PROXY)
    assert counter.register(wire, contact, hops=2, **options).status == 400
    assert counter.location.count == 0
    fewer = [f"<sip:p{n}.example;lr;ob>" for n in range(10)]
    assert counter.register(wire, BOB, hops=2, path=fewer).status == 200
    assert counter.bindings()[0].path == tuple(value.encode() for value in fewer)


@pytest.mark.requirement("SIP-REG-11")
@pytest.mark.parametrize(
    "contact", ["sip:bob@example.com", "sip:bob@edge.example:5060", "sip:x@EXAMPLE.com;transport=tcp"]
)
def test_a_contact_that_points_at_us_is_refused(contact: str) -> None:
    counter = Counter()
    assert counter.register(None, f"<{contact}>").status == 400
    assert counter.register(None, f"<{contact}>", expires=0).status == 200
    assert counter.register(None, "<sip:bob@example.com.other.example>").status == 200


@pytest.mark.requirement("SIP-REG-12")
def test_sips_everywhere_or_nowhere() -> None:
    counter = Counter(sip=EDGES)
    contact = "<sips:bob@h.example>"
    edge = counter.wire(remote=PROXY)
    secure = {"uri": "sips:example.com", "to": "<sips:bob@example.com>"}
    assert counter.register(None, contact).status == 400
    assert counter.register(None, contact, "<sip:bob@192.0.2.1>", **secure).status == 400
    assert counter.register(edge, contact, hops=2, path=["<sips:e1;lr;ob>", "<sip:e2;lr;ob>"], **secure).status == 400
    assert counter.location.count == 0
    assert counter.register(edge, contact, hops=2, path=["<sips:e1;lr;ob>"], **secure).status == 200
    assert counter.register(None, "<sip:bob@192.0.2.1>", **secure).status == 200
    # One record for sip and sips; a later sip contact takes the place of its sips twin.
    assert len(counter.listed()) == 2
    assert counter.register(None, "<sip:bob@h.example>").status == 200
    assert sorted(value.partition(">")[0] for value in counter.listed()) == ["<sip:bob@192.0.2.1", "<sip:bob@h.example"]


# ------------------------------------------------------------------------------------------ Path


@pytest.mark.requirement("OB-REG-14")
def test_path_is_kept_with_its_binding_and_copied_back() -> None:
    counter = Counter(sip=EDGES)
    edge = counter.wire(remote=PROXY)
    one, two = ["<sip:p9.example;lr>", "<sip:f1@e1.example;lr;ob>"], ["<sip:f2@e2.example;lr;ob>"]
    first = counter.register(edge, flow_contact(1), hops=2, path=one, supported=OUTBOUND)
    assert first.all("Path") == one
    second = counter.register(edge, flow_contact(2), hops=3, path=two, supported=OUTBOUND)
    assert len(second.all("Contact")) == 2
    assert second.all("Path") == two
    assert [binding.path for binding in counter.bindings()] == [tuple(p.encode() for p in path) for path in (one, two)]
    joined = counter.register(edge, flow_contact(1), hops=2, path=[", ".join(one)], supported=OUTBOUND)
    assert joined.values("Path") == one
    assert counter.bindings()[0].path == tuple(p.encode() for p in one)


@pytest.mark.requirement("OB-REG-15")
def test_path_from_a_client_that_does_not_know_it() -> None:
    lenient, strict = Counter(sip=EDGES), Counter(sip={**EDGES, "strict_path": True})
    kept = lenient.register(lenient.wire(remote=PROXY), BOB, hops=2, path=[PATH])
    assert (kept.status, kept.get("Path")) == (200, None)
    assert lenient.bindings()[0].path == (PATH.encode(),)
    edge = strict.wire(remote=PROXY)
    refused = strict.register(edge, BOB, hops=2, path=[PATH], supported="outbound")
    assert (refused.status, refused["Unsupported"]) == (420, "path")
    assert strict.listed() == []
    assert strict.register(edge, BOB, hops=2, path=[PATH], supported="path").status == 200


@pytest.mark.requirement("OB-REG-16")
def test_path_is_believed_from_edges_alone() -> None:
    counter = Counter(sip=EDGES)
    client, path = counter.wire(), ["<sip:198.51.100.9;lr;ob>"]
    answer = counter.register(client, BOB, path=path, supported=OUTBOUND)
    assert (answer.status, answer.get("Path")) == (200, None)
    (binding,) = counter.bindings()
    assert (binding.path, binding.connection) == ((), client)
    counter.register(client, BOB, path=path, hops=2, supported=OUTBOUND)
    assert counter.bindings()[0].path == ()


# ------------------------------------------------------------------------------------------ outbound


@pytest.mark.requirement("OB-RIN-01", "OB-RIN-12")
def test_a_direct_client_needs_no_path() -> None:
    counter = Counter()
    wire = counter.wire()
    answer = counter.register(wire, flow_contact(), supported=OUTBOUND)
    assert (answer["Require"], answer["Flow-Timer"]) == ("outbound", "120")
    (binding,) = counter.bindings()
    assert (binding.connection, binding.reg_id, binding.instance) == (wire, 1, INSTANCE.encode())


@pytest.mark.requirement("OB-RIN-02")
def test_439_where_the_first_hop_lacks_outbound() -> None:
    counter = Counter(sip=EDGES)
    edge = counter.wire(remote=PROXY)
    for path in ([], ["<sip:p.example;lr>"]):
        refused = counter.register(edge, flow_contact(), hops=2, path=path, supported=OUTBOUND)
        assert (refused.status, refused["Supported"]) == (439, "path, outbound")
        assert counter.location.count == 0
        plain = counter.register(edge, flow_contact(), hops=2, path=path, supported="path")
        assert (plain.status, plain.get("Require")) == (200, None)
        assert "reg-id" not in plain["Contact"]
        assert INSTANCE in plain["Contact"]
        counter.register(edge, "*", expires=0, hops=2)
    # Never otherwise: not without a reg-id, and not for a client that stands right before us.
    assert counter.register(edge, BOB, hops=2, supported=OUTBOUND).status == 200
    assert counter.register(None, flow_contact(), supported=OUTBOUND).status == 200


@pytest.mark.requirement("OB-RIN-03")
@pytest.mark.parametrize(
    ("position", "path", "applies"),
    [
        ("last", ["<sip:p9.example;lr>", "<sip:f1@e1.example;lr;ob>"], True),
        ("last", ["<sip:p9.example;lr;ob>", "<sip:f1@e1.example;lr>"], False),
        ("first", ["<sip:p9.example;lr;ob>", "<sip:f1@e1.example;lr>"], True),
        ("first", ["<sip:p9.example;lr>", "<sip:f1@e1.example;lr;ob>"], False),
        ("any", ["<sip:a.example;lr>", "<sip:p9.example;lr;ob>", "<sip:f1@e1.example;lr>"], True),
        ("any", ["<sip:a.example;lr>"], False),
    ],
)
def test_which_path_value_must_say_ob(position: str, path: list[str], applies: bool) -> None:
    counter = Counter(sip=EDGES, outbound={"ob_position": position})
    answer = counter.register(counter.wire(remote=PROXY), flow_contact(), hops=2, path=path, supported=OUTBOUND)
    assert (answer.status, answer.get("Require")) == ((200, "outbound") if applies else (439, None))
    assert answer.get("Flow-Timer") is None


@pytest.mark.requirement("OB-RIN-04")
def test_lenient_ignores_the_reg_id_instead_of_439() -> None:
    counter = Counter(sip=EDGES, outbound={"lenient": True})
    answer = counter.register(counter.wire(remote=PROXY), flow_contact(), hops=2, supported=OUTBOUND)
    assert (answer.status, answer.get("Require")) == (200, None)
    assert "reg-id" not in answer["Contact"]
    assert Counter().settings.outbound.lenient is False


@pytest.mark.requirement("OB-RIN-05")
def test_instance_without_reg_id_and_the_reverse() -> None:
    counter = Counter()
    ordinary = counter.register(None, f'{BOB};+sip.instance="<{INSTANCE}>"', supported=OUTBOUND)
    assert (ordinary.status, ordinary.get("Require"), counter.bindings()[0].reg_id) == (200, None, 0)
    ignored = counter.register(None, f"{BOB};reg-id=3", supported=OUTBOUND)
    assert (ignored.status, ignored.get("Require"), counter.bindings()[0].reg_id) == (200, None, 0)
    for reg_id in ("0", "2147483648", "x", "-1", "1x", "99999999999999999999", ""):
        assert counter.register(None, flow_contact(reg_id), supported=OUTBOUND).status == 400, reg_id
        assert counter.register(None, f"{BOB};reg-id={reg_id}", supported=OUTBOUND).status == 400, reg_id
    assert counter.register(None, f"{flow_contact()};reg-id=2", supported=OUTBOUND).status == 400
    assert counter.register(None, flow_contact(2147483647), supported=OUTBOUND).status == 200


@pytest.mark.requirement("OB-RIN-06")
def test_one_living_contact_where_one_has_a_reg_id() -> None:
    counter = Counter()
    other = "<sip:bob@192.0.2.1>"
    for contacts in ([flow_contact(1), flow_contact(2)], [flow_contact(1), other], [other, flow_contact(1)]):
        assert counter.register(None, *contacts, supported=OUTBOUND).status == 400
        assert counter.location.count == 0
    counter.register(None, other)
    answer = counter.register(None, flow_contact(1), f"{other};expires=0", supported=OUTBOUND)
    assert (answer.status, len(answer.all("Contact"))) == (200, 1)
    assert counter.bindings()[0].reg_id == 1
    two = ["<sip:bob@192.0.2.2>", "<sip:bob@192.0.2.3>"]
    assert counter.register(None, *two, f"{flow_contact(1)};expires=0", supported=OUTBOUND).status == 200
    assert [binding.reg_id for binding in counter.bindings()] == [0, 0]


@pytest.mark.requirement("OB-RIN-07")
def test_the_key_is_instance_and_reg_id_and_the_contact_follows() -> None:
    counter = Counter(sip=EDGES)
    counter.register(None, flow_contact(uri="sip:bob@192.0.2.1:5999") + ";audio", supported=OUTBOUND)
    edge = counter.wire(remote=PROXY)
    answer = counter.register(
        edge, flow_contact(uri="sip:other@192.0.2.2") + ";video;q=0.1", hops=2, path=[PATH], supported=OUTBOUND
    )
    assert answer.all("Contact") == [flow_contact(uri="sip:other@192.0.2.2") + ";video;q=0.1;expires=3600"]
    (binding,) = counter.bindings()
    assert (binding.contact, binding.path, binding.connection) == (b"sip:other@192.0.2.2", (PATH.encode(),), None)


@pytest.mark.requirement("OB-RIN-08")
def test_flows_of_one_instance_live_side_by_side() -> None:
    counter = Counter()
    wires = {reg_id: counter.wire(remote=("198.51.100.7", 6000 + reg_id)) for reg_id in (1, 2)}
    for reg_id, wire in wires.items():
        counter.register(wire, flow_contact(reg_id), call_id=f"c{reg_id}", cseq=9, supported=OUTBOUND)
    assert counter.register(wires[1], flow_contact(1), call_id="new", cseq=1, supported=OUTBOUND).status == 200
    assert [(b.reg_id, b.connection) for b in counter.bindings()] == list(wires.items())
    wires[1].fail("reset")
    assert [(b.reg_id, b.connection) for b in counter.bindings()] == [(2, wires[2])]
    assert counter.register(None, flow_contact(2), expires=0, supported=OUTBOUND).status == 200
    assert counter.listed() == []


@pytest.mark.requirement("OB-RIN-09")
def test_instances_compare_as_urns() -> None:
    counter = Counter()
    counter.register(None, flow_contact(), supported=OUTBOUND)
    counter.register(None, flow_contact(instance=INSTANCE.upper()), supported=OUTBOUND)
    assert len(counter.listed()) == 1
    for different in ("urn:uuid:6f1c2a58-0000-4000-8000-00000000abce", "urn:oui:ABC", "urn:oui:abc"):
        counter.register(None, flow_contact(instance=different), supported=OUTBOUND)
    assert len(counter.listed()) == 4


@pytest.mark.requirement("OB-RIN-10")
def test_outbound_and_ordinary_bindings_coexist() -> None:
    counter = Counter()
    counter.register(None, flow_contact(), supported=OUTBOUND)
    answer = counter.register(None, BOB, supported=OUTBOUND)
    assert len(answer.all("Contact")) == 2
    assert sorted(binding.reg_id for binding in counter.bindings()) == [0, 1]


@pytest.mark.requirement("OB-RIN-11")
@pytest.mark.parametrize(
    ("contacts", "options", "required"),
    [
        ([flow_contact()], {"supported": OUTBOUND}, True),
        ([flow_contact()], {"supported": "Outbound"}, True),
        ([flow_contact()], {"supported": OUTBOUND, "expires": 0}, True),
        ([flow_contact()], {"supported": "path"}, False),
        ([flow_contact()], {}, False),
        ([], {"supported": OUTBOUND}, False),
        (["*"], {"supported": OUTBOUND, "expires": 0}, False),
        ([BOB], {"supported": OUTBOUND}, False),
        ([f"{BOB};reg-id=1"], {"supported": OUTBOUND}, False),
        ([flow_contact()], {"supported": "path", "hops": 2}, False),
    ],
)
def test_require_outbound_exactly_where_it_was_done(
    contacts: list[str], options: dict[str, object], required: bool
) -> None:
    counter = Counter()
    counter.register(None, flow_contact(), supported=OUTBOUND)
    answer = counter.register(None, *contacts, **options)
    assert answer.status == 200
    assert answer.get("Require") == ("outbound" if required else None)
    assert answer.get("Flow-Timer") == ("120" if required else None)


@pytest.mark.requirement("OB-RIN-12")
def test_a_registration_over_another_flow_moves_the_binding() -> None:
    counter = Counter()
    old, new = counter.wire(), counter.wire(remote=("198.51.100.7", 6000))
    counter.register(old, flow_contact(), call_id="c", cseq=1, supported=OUTBOUND, expires=600)
    counter.advance(100)
    answer = counter.register(new, flow_contact(), call_id="c", cseq=2, supported=OUTBOUND, expires=600)
    assert expires_of(answer) == [600]
    assert [(b.connection, b.flow) for b in counter.bindings()] == [(new, new.token)]
    assert (old.registered, new.registered) == (0, 1)
    old.fail("reset")
    assert len(counter.bindings()) == 1


@pytest.mark.requirement("OB-RIN-13")
def test_outbound_may_be_required() -> None:
    counter = Counter(sip=EDGES, outbound={"required": True, "lenient": True})
    for wire, contact, options in (
        (None, BOB, {}),
        (None, f"{BOB};reg-id=1", {"supported": OUTBOUND}),
        (counter.wire(remote=PROXY), flow_contact(), {"hops": 2, "supported": OUTBOUND}),
    ):
        refused = counter.register(wire, contact, **options)
        assert (refused.status, refused["Require"]) == (421, "outbound")
        assert counter.location.count == 0
    assert counter.register(None, flow_contact(), supported=OUTBOUND).status == 200
    assert counter.register(None).status == 200


def test_the_own_path_of_a_direct_client_names_its_flow() -> None:
    counter = Counter()
    wire = counter.wire(Transport.WSS)
    answer = counter.register(wire, flow_contact(), supported=OUTBOUND)
    assert wire.token is not None
    assert re.fullmatch(rf"<sip:{wire.token.decode()}@edge\.example:5060;transport=ws;lr;ob>", answer["Path"])


@pytest.mark.requirement("OB-SR-01")
def test_rfc3608_the_service_route_is_that_of_the_configuration() -> None:
    routes = ("sip:home.example.com;transport=tcp;lr", "sip:feature@home2.example.com;lr")
    counter = Counter(sip={"service_route": routes})
    granted = counter.register(None, BOB)
    fetched = counter.register(None)
    other = counter.register(None, "<sip:carol@192.0.2.7>", user="carol")
    for answer in (granted, fetched, other):
        assert answer.all("Service-Route") == [f"<{uri}>" for uri in routes]
    assert counter.register(None, "<sip:x@192.0.2.7>;q=7").get("Service-Route") is None
    assert Counter().register(None, BOB).get("Service-Route") is None
