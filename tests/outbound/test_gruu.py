"""GRUUs: granted, called, and ended (RFC 5627)."""

from __future__ import annotations

import itertools
import re

import pytest

from edge.auth.credentials import Credential
from edge.sip.keeper import BindingKeeper
from edge.sip.location import Binding, Location
from edge.timers import TimerWheel
from tests.outbound.home import OTHER, PHONE, Home, path_of
from tests.sip.registering import INSTANCE, Counter, Shelf, flow_contact, register, with_credentials
from tests.sip.rig import Wire, answer, request
from tests.ua.sip_message import Response, header_parameter

BOB = Credential(ha1=b"0" * 32, ha1_sha256=None)
GRUU = "path, outbound, gruu"


@pytest.fixture
def home() -> Home:
    return Home()


def given(answered: Response, number: int = 0) -> tuple[str, str]:
    """The public and the temporary GRUU of a Contact of a 200."""
    contact = answered.all("Contact")[number]
    found = [header_parameter(contact, name) for name in ("pub-gruu", "temp-gruu")]
    assert None not in found, contact
    public, temporary = (str(value).strip('"') for value in found)
    return public, temporary


def reached(home: Home, uri: str, edge: str = "e1") -> int:
    """The status the caller gets for a MESSAGE, which the edge answers 200 if it gets it."""
    home.call("MESSAGE", uri)
    if home.sent(edge, "MESSAGE"):
        home.reply(edge, 200, "MESSAGE")
        home.to[edge].take()
    (status,) = home.caller.statuses("MESSAGE")
    home.caller.take()
    return status


@pytest.mark.requirement("OB-GRU-01")
def test_rfc5627_5_2_every_contact_of_the_instance_has_both_and_nobody_else(home: Home) -> None:
    home.rig.register("bob")
    home.register("e1", 1)
    answered = home.register("e2", 2, Supported=GRUU)
    plain, first, _ = answered.all("Contact")
    assert "gruu" not in plain
    assert 'pub-gruu="sip:bob@example.com;gr=urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"' in first
    assert given(answered, 1) == given(answered, 2)
    assert re.fullmatch(r"sip:tgruu\.[A-Za-z0-9_-]+@example\.com;gr", given(answered, 2)[1])
    for name in ("Require", "Supported"):
        assert "gruu" not in answered[name]
    assert "gruu" not in " ".join(home.register("e1", 1).all("Contact"))


@pytest.mark.requirement("OB-GRU-01")
def test_rfc5627_5_1_what_a_client_offers_is_not_taken(home: Home) -> None:
    offered = ';pub-gruu="sip:evil@example.org;gr=1";temp-gruu="sip:tgruu.x@example.org;gr"'
    answered = home.register("e1", 1, parameters=offered, Supported=GRUU)
    assert answered.all("Contact")[0].count("gruu=") == 2
    assert "example.org" not in answered.all("Contact")[0]
    assert "gruu" not in home.register("e1", 1, parameters=offered).all("Contact")[0]


@pytest.mark.requirement("OB-GRU-02")
def test_rfc5627_5_4_the_public_gruu_stays_the_same(home: Home) -> None:
    public, _ = given(home.register("e1", 1, Supported=GRUU))
    home.register("e1", 1, Supported=GRUU, Expires="0")
    assert home.reg_ids() == []
    assert given(home.register("e2", 1, Supported=GRUU))[0] == public
    assert given(Home().register("e1", 7, Supported=GRUU, call_id="another"))[0] == public
    assert reached(home, public, "e2") == 200


@pytest.mark.requirement("OB-GRU-03")
def test_rfc5627_3_2_temporary_gruus_stay_valid_while_a_contact_is_there(home: Home) -> None:
    options = {"call_id": "one", "Supported": GRUU}
    values = [given(home.register("e1", 1, **options))[1] for _ in range(3)]  # type: ignore[arg-type]
    home.register("e2", 2, call_id="two")
    assert len(set(values)) == 3
    home.register("e1", 1, **options, Expires="0")  # type: ignore[arg-type]
    assert [reached(home, value, "e2") for value in values] == [200, 200, 200]
    home.register("e2", 2, call_id="two", Expires="0")
    assert [reached(home, value) for value in values] == [404, 404, 404]
    home.register("e1", 1, **options)  # type: ignore[arg-type]
    assert [reached(home, value) for value in values] == [404, 404, 404]


@pytest.mark.requirement("OB-GRU-04", "OB-RIN-08")
def test_rfc5627_5_1_a_new_call_id_ends_earlier_temporary_gruus_and_no_binding(home: Home) -> None:
    home.register("e2", 2, call_id="two")
    _, old = given(home.register("e1", 1, call_id="one", Supported=GRUU), 1)
    _, new = given(home.register("e1", 1, call_id="other", Supported=GRUU), 1)
    assert (reached(home, old), reached(home, new), home.reg_ids()) == (404, 200, [1, 2])
    home.register("e1", 1, call_id="other", Expires="0")
    assert (reached(home, old, "e2"), reached(home, new, "e2")) == (404, 200)


@pytest.mark.requirement("OB-GRU-04")
def test_rfc5627_5_1_without_reg_id_the_call_id_counts_for_the_instance(home: Home) -> None:
    def come(call_id: str, host: str) -> str:
        contact = f'<sip:bob@{host}>;+sip.instance="<{PHONE}>"'
        headers = {"Contact": contact, "Supported": "gruu"}
        data = request(
            "REGISTER", "sip:example.com", user="bob", to="<sip:bob@example.com>", call_id=call_id, **headers
        )
        home.rig.give(wire, data)
        home.rig.advance(1)
        return given(wire.responses("REGISTER")[-1])[1]

    wire = home.rig.wire()
    old, new = come("one", "10.0.0.1"), come("two", "10.0.0.2")
    assert come("two", "10.0.0.3") != new
    wire.take()
    home.call("MESSAGE", old)
    assert (home.caller.statuses("MESSAGE"), wire.sent) == ([404], [])
    home.call("MESSAGE", new)
    assert wire.requests("MESSAGE")[0].uri == "sip:bob@10.0.0.3"


@pytest.mark.requirement("OB-GRU-05")
@pytest.mark.parametrize("call_id", [None, "the same for all"])
def test_rfc5627_5_1_temporary_gruus_have_nothing_in_common(home: Home, call_id: str | None) -> None:
    answers = [home.register("e1", 1, Supported=GRUU, call_id=call_id) for _ in range(300)]
    users = [given(answered)[1].partition("@")[0] for answered in answers]
    sealed = [user.removeprefix("sip:tgruu.") for user in users]
    assert len({len(text) for text in sealed}) == 1
    for place in range(len(sealed[0]) - 3):
        runs = [text[place : place + 4] for text in sealed]
        assert max(map(runs.count, set(runs))) < 5, place


@pytest.mark.requirement("OB-GRU-06")
@pytest.mark.parametrize(
    "contact",
    ["sip:bob@example.com", "sip:bob@EXAMPLE.com;transport=tcp", "sip:bob@example.com;gr=urn:uuid:1", "tel:+4912345",
     "sip:tgruu.abc@example.com;gr"],
)  # fmt: skip
def test_rfc5627_5_1_a_contact_is_neither_the_aor_nor_a_gruu(contact: str) -> None:
    counter = Counter()
    assert counter.register(None, flow_contact(1, contact), supported=GRUU).status == 403
    assert counter.listed() == []


@pytest.mark.requirement("OB-GRU-07")
def test_rfc5627_6_1_only_the_instance_is_reached_by_each_of_its_flows(home: Home) -> None:
    home.register("e2", 2)
    public, _ = given(home.register("e1", 1, Supported=GRUU))
    other = home.direct(1, instance=OTHER)
    home.call(uri=public)
    assert (len(home.sent("e1")), home.sent("e2"), other.sent) == (1, [], [])
    home.reply("e1", 430)
    assert home.sent("e2")[0].uri == "sip:bob@10.0.0.2:5062"
    home.reply("e2", 486)
    assert home.caller.statuses("INVITE") == [100, 486]
    assert other.sent == []


@pytest.mark.requirement("OB-GRU-07")
@pytest.mark.parametrize(
    ("gr", "status"),
    [("=nonsense", 404), ("", 404), ("=urn:x:", 404), ("=urn:uuid:00000000-0000-1000-8000-00000000ffff", 404)],
)
def test_rfc5627_6_1_what_is_no_gruu_of_ours_is_not_found(home: Home, gr: str, status: int) -> None:
    home.rig.storage.users.put("bob", "example.com", BOB)
    home.register("e1", 1)
    assert reached(home, f"sip:bob@example.com;gr{gr}") == status


@pytest.mark.requirement("OB-GRU-07")
def test_rfc5627_6_1_a_device_that_is_away_is_unavailable(home: Home) -> None:
    home.rig.storage.users.put("bob", "example.com", BOB)
    public, temporary = given(home.register("e1", 1, Supported=GRUU))
    home.register("e2", 1, instance=OTHER)
    home.register("e1", 1, Expires="0")
    assert (reached(home, public), reached(home, temporary)) == (480, 404)
    assert reached(home, public.replace("sip:bob@", "sip:eve@")) == 404  # it was never hers


@pytest.mark.requirement("OB-GRU-07")
def test_rfc5627_6_1_a_device_whose_connection_ended_with_the_process_before_is_away_and_not_unknown() -> None:
    shelf = Shelf()
    before = Counter(shelf=shelf, boot=1)
    assert before.register(None, flow_contact(1), supported=GRUU).status == 200
    after = Counter(shelf=shelf, boot=2)
    keeper = after.stack.keeper
    assert isinstance(keeper, BindingKeeper)
    assert keeper.restore(after.location) == (0, 1)
    assert after.location.has_departed(b"bob@example.com", INSTANCE.encode())


@pytest.mark.requirement("OB-GRU-07")
def test_who_was_there_is_remembered_within_a_bound() -> None:
    location = Location(TimerWheel(0.0))
    for number in range(65536 + 10):
        binding = Binding()
        binding.aor, binding.instance = b"bob@example.com", b"urn:x:%d" % number
        location.note_departed(binding)
    there = [location.has_departed(b"bob@example.com", b"urn:x:%d" % number) for number in (0, 9, 10, 65545)]
    assert there == [False, False, True, True]


@pytest.mark.requirement("OB-GRU-07")
def test_rfc5627_6_1_without_reg_id_the_newest_contact_and_then_the_others(home: Home) -> None:
    phones: list[Wire] = []
    for q in ("0.9", "0.1"):
        phones.append(home.rig.register("bob", parameters=f';q={q};+sip.instance="<{PHONE}>"'))
        home.rig.advance(1)
    home.call(uri=f"sip:bob@example.com;gr={PHONE}")
    assert [len(wire.requests("INVITE")) for wire in phones] == [0, 1]
    home.rig.give(phones[1], answer(phones[1].requests("INVITE")[0], 408))
    assert len(phones[0].requests("INVITE")) == 1


@pytest.mark.requirement("OB-GRU-07")
@pytest.mark.parametrize(("gr", "followed"), [(f";gr={PHONE}", False), ("", True)])
def test_rfc5627_6_1_a_redirection_by_the_device_is_not_followed(gr: str, followed: bool) -> None:
    home = Home(sip={"recurse": True})
    home.register("e1", 1)
    other = home.rig.wire()
    home.rig.roads["other.example"] = [other]
    home.call(uri=f"sip:bob@example.com{gr}")
    home.reply("e1", 302, extra=(("Contact", "<sip:bob@other.example>"),))
    assert (len(other.requests("INVITE")), home.caller.statuses("INVITE")) == (
        (1, [100]) if followed else (0, [100, 302])
    )


@pytest.mark.requirement("OB-GRU-08")
def test_rfc5627_6_1_a_token_of_ours_decides_and_the_gruu_becomes_the_contact(home: Home) -> None:
    flow = home.direct(1)
    newer = home.direct(2)
    token = home.rig.core.flows.token_of(flow).decode()
    gruu = f"sip:bob@example.com;gr={PHONE}"
    route = f"<sip:{token}@edge.example:5060;transport=tcp;lr>"
    home.rig.give(home.caller, request("BYE", gruu, to="<sip:bob@example.com>;tag=b", Route=route))
    (bye,) = flow.requests("BYE")
    assert (bye.uri, bye.all("Route"), newer.sent, home.rig.asked) == ("sip:bob@10.0.1.1:5062", [], [], [])


@pytest.mark.requirement("OB-GRU-08")
def test_rfc5627_6_1_where_a_route_is_left_no_path_is_added(home: Home) -> None:
    home.register("e1", 1)
    home.register("e2", 2)
    gruu = f"sip:bob@example.com;gr={PHONE}"
    route = f"<sip:edge.example:5060;transport=tcp;lr>, {path_of('e1', 1)}"
    home.rig.give(home.caller, request("BYE", gruu, to="<sip:bob@example.com>;tag=b", Route=route))
    (bye,) = home.sent("e1", "BYE")
    assert (bye.uri, bye.values("Route"), home.sent("e2", "BYE")) == ("sip:bob@10.0.0.1:5062", [path_of("e1", 1)], [])


@pytest.mark.requirement("OB-GRU-09")
def test_rfc5627_6_2_nobody_calls_under_the_gruu_of_another() -> None:
    counter = Counter(users={"bob@example.com": "b", "alice@example.com": "a"})
    wire = counter.wire()
    counter.asked.clear()

    def invite(contact: str) -> int:
        data = request("INVITE", "sip:x@other.example", user="alice", Contact=contact)
        (challenge,) = counter.give(wire, data)
        return [a.status for a in counter.give(wire, with_credentials(data, challenge, "alice", "a"))][-1]

    def temporary(user: str, password: str) -> str:
        phone = counter.wire()
        data = register(flow_contact(1), user=user, supported=GRUU)
        (challenge,) = counter.give(phone, data)
        return given(counter.give(phone, with_credentials(data, challenge, user, password))[-1])[1]

    assert invite(f"<sip:bob@example.com;gr={PHONE}>") == 403
    assert invite(f"<{temporary('bob', 'b')}>") == 403
    assert counter.asked == []
    assert invite(f"<sip:alice@example.com;gr={PHONE}>") == 480
    assert invite(f"<{temporary('alice', 'a')}>") == 480
    assert invite(f"<sip:bob@elsewhere.example;gr={PHONE}>") == 480


def test_temporary_gruus_outlive_a_restart_and_end_as_they_would_have() -> None:
    """Kept in the storage of the bindings, with the key."""
    shelf = Shelf()
    numbers = itertools.count(1)

    def start() -> Counter:
        counter = Counter(
            shelf=shelf, sip={"trusted_edges": ("192.0.2.0/24",)}, boot=0x6710A3C0 + next(numbers), seed=next(numbers)
        )
        keeper = counter.stack.keeper
        assert isinstance(keeper, BindingKeeper)
        keeper.restore(counter.location)
        return counter

    def come(counter: Counter, reg_id: int, call_id: str) -> str:
        edge = counter.wire(remote=("192.0.2.11", 5060))
        data = register(
            flow_contact(reg_id),
            supported=GRUU,
            hops=2,
            path=[path_of("e1", reg_id)],
            call_id=call_id,
            cseq=next(numbers),
        )
        return given(counter.ask(edge, data), -1)[1]

    def rings(counter: Counter, uri: str) -> bool:
        counter.asked.clear()
        counter.give(counter.wire(), request("MESSAGE", uri))
        return counter.asked != []

    counter = start()
    first = come(counter, 1, "one")
    come(counter, 2, "two")
    counter = start()
    assert rings(counter, first)
    second = come(counter, 1, "new")
    counter = start()
    assert (rings(counter, first), rings(counter, second)) == (False, True)
    assert {row.epoch for row in shelf.rows.values()} == {counter.bindings()[0].epoch}
