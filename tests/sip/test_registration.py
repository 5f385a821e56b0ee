"""REGISTER with storage behind it: stored, then applied, then answered; in turn; nothing lost when storage fails."""

from __future__ import annotations

from typing import Any

import pytest

from edge.connections import Transport
from edge.sip.keeper import BindingKeeper
from tests.sip.registering import BOB, FAILURE, Counter, Shelf, flow_contact, register
from tests.sip.rig import Wire
from tests.ua.sip_message import Response

HERE = "<sip:bob@198.51.100.7:5070>"


def stored(counter: Counter) -> list[tuple[str, str, int]]:
    shelf = counter.storage.bindings
    assert isinstance(shelf, Shelf)
    return [(row.aor, row.contact.decode(), row.cseq) for row in shelf.rows.values()]


def in_memory(counter: Counter) -> list[tuple[str, str, int]]:
    location = counter.location
    found = [binding for aor in location.aors() for binding in location.bindings(aor)]
    return [(b.aor.decode(), b.contact.decode(), b.cseq) for b in found]


def holding(counter: Counter) -> Shelf:
    """Let every save wait from now on."""
    shelf = counter.storage.bindings
    assert isinstance(shelf, Shelf)
    shelf.held = []
    return shelf


def later(counter: Counter, wire: Wire, *contacts: str, **options: Any) -> None:
    assert counter.give(wire, register(*contacts, transport=wire.transport.name, **options)) == []


def statuses(answers: list[Response]) -> list[int]:
    return [answer.status for answer in answers]


def test_the_200_waits_for_the_commit_and_so_does_the_binding() -> None:
    counter = Counter(shelf=Shelf())
    shelf, wire = holding(counter), counter.wire()
    later(counter, wire, BOB)
    assert (counter.location.count, counter.names().count("registration.changed"), wire.registered) == (0, 0, 0)
    shelf.release()
    assert statuses(counter.answers(wire)) == [200]
    assert in_memory(counter) == stored(counter) != []


@pytest.mark.requirement("SIP-REG-07", "OB-REG-05")
def test_a_failure_of_the_storage_is_500_and_changes_nothing() -> None:
    counter = Counter(shelf=Shelf())
    wire = counter.wire()
    counter.register(wire, BOB, "<sip:bob@192.0.2.8>;q=0.1", cseq=1, call_id="c")
    before = [vars_of(b) for b in counter.bindings()]
    assert len(before) == 2
    shelf = counter.storage.bindings
    assert isinstance(shelf, Shelf)
    rows = dict(shelf.rows)
    shelf.error = FAILURE
    for contacts, options in (
        ((BOB,), {"expires": 60}),
        ((BOB, "<sip:bob@192.0.2.9>"), {}),
        ((BOB,), {"expires": 0}),
        (("*",), {"expires": 0}),
        ((flow_contact(),), {"supported": "outbound"}),
    ):
        assert counter.register(wire, *contacts, **options).status == 500
        assert ([vars_of(b) for b in counter.bindings()], shelf.rows) == (before, rows)
    assert counter.register(wire).status == 200
    shelf.error = None
    assert counter.register(wire, BOB, expires=60).status == 200
    assert counter.core.access.waiting == set()


def vars_of(binding: object) -> list[object]:
    names = ("aor", "contact", "parameters", "call_id", "cseq", "expires_at", "connection", "flow", "reg_id")
    return [getattr(binding, name) for name in names]


@pytest.mark.requirement("SIP-REG-07", "OB-REG-05")
def test_requests_for_one_aor_are_taken_in_order_and_others_need_not_wait() -> None:
    counter = Counter(shelf=Shelf())
    shelf, wire, other = holding(counter), counter.wire(), counter.wire()
    later(counter, wire, HERE, call_id="c", cseq=1)
    later(counter, wire, HERE, call_id="c", cseq=3, expires=700)
    later(counter, wire, HERE, call_id="c", cseq=2, expires=60)
    later(counter, wire)
    later(counter, wire, "*", call_id="c", cseq=4, expires=0)
    later(counter, other, BOB, user="alice")
    assert shelf.held is not None
    assert len(shelf.held) == 2  # one for each AOR
    shelf.held.pop()()
    assert statuses(counter.answers(other)) == [200]
    shelf.release()
    answers = counter.answers(wire)
    assert [(answer.cseq.sequence, answer.status) for answer in answers[:3]] == [(1, 200), (3, 200), (2, 400)]
    assert [len(answer.all("Contact")) for answer in answers[3:]] == [1, 0]
    assert in_memory(counter) == stored(counter) == [("alice@example.com", BOB[1:-1], in_memory(counter)[0][2])]


def test_who_waits_has_a_bound() -> None:
    counter = Counter(shelf=Shelf())
    shelf, wire = holding(counter), counter.wire()
    for number in range(17):
        later(counter, wire, f"<sip:bob@192.0.2.{number % 3}>")
    refused = counter.register(wire, BOB)
    assert (refused.status, int(refused["Retry-After"]) > 0) == (500, True)  # 503 would tell an edge to leave us alone
    shelf.release()
    assert statuses(counter.answers(wire)) == [200] * 17
    assert counter.core.access.waiting == set()


@pytest.mark.requirement("OB-REG-11")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_repeats_are_absorbed_while_the_storage_works(transport: Transport) -> None:
    counter = Counter(shelf=Shelf())
    shelf, wire = holding(counter), counter.wire(transport)
    first = register(HERE, transport=transport.name, call_id="c", cseq=1)
    queued = register(HERE, transport=transport.name, call_id="c", cseq=2)
    for data in (first, first, queued, queued, first):
        assert counter.give(wire, data) == []
    shelf.release()
    assert [(a.status, a.cseq.sequence) for a in counter.answers(wire)] == [(200, 1), (200, 2)]
    assert counter.core.transactions.retransmissions_absorbed == 3
    assert counter.core.access.waiting == set()


def test_a_refresh_that_is_being_stored_is_not_lost_to_its_own_expiry() -> None:
    counter = Counter(shelf=Shelf())
    wire = counter.wire(Transport.UDP)
    counter.register(wire, HERE, expires=60, call_id="c", cseq=1)
    counter.advance(59)
    shelf = holding(counter)
    later(counter, wire, HERE, expires=60, call_id="c", cseq=2)
    counter.advance(2)
    assert counter.location.count == 0
    shelf.release()
    assert statuses(counter.answers(wire)) == [200]
    assert in_memory(counter) == stored(counter) == [("bob@example.com", HERE[1:-1], 2)]
    assert [event.change for event in counter.events if event.name == "registration.changed"] == [
        "added", "expired", "added",
    ]  # fmt: skip
    assert wire.registered == 1
    counter.advance(61)
    assert in_memory(counter) == stored(counter) == []


@pytest.mark.parametrize("ends", ["before the commit", "after it"])
def test_a_binding_whose_connection_ends_leaves_the_storage_too(ends: str) -> None:
    counter = Counter(shelf=Shelf())
    shelf, wire = holding(counter), counter.wire()
    later(counter, wire, BOB)
    if ends == "before the commit":
        wire.fail("reset")
    shelf.release()
    wire.fail("reset")
    assert in_memory(counter) == stored(counter) == []


def test_a_contact_spelled_otherwise_takes_the_row_of_the_other() -> None:
    counter = Counter(shelf=Shelf())
    for contact in ("<sip:bob@H.example;x=1>", "<sip:bob@h.example>", "<sips:bob@h.example>"):
        secure = {"uri": "sips:example.com"} if "sips" in contact else {}
        assert counter.register(None, contact, **secure).status == 200
        assert [row[1] for row in stored(counter)] == [contact[1:-1]]


def test_every_change_of_memory_is_one_of_the_storage() -> None:
    counter = Counter(shelf=Shelf(), sip={"trusted_edges": ("198.51.100.200",)})
    wire, edge = counter.wire(), counter.wire(remote=("198.51.100.200", 5060))
    steps: list[tuple[Wire, tuple[str, ...], dict[str, Any]]] = [
        (wire, (BOB,), {}),
        (wire, (flow_contact(1),), {"supported": "outbound"}),
        (edge, (flow_contact(2),), {"supported": "outbound, path", "hops": 2, "path": ["<sip:t@e;lr;ob>"]}),
        (wire, (BOB + ";expires=0", "<sip:b@192.0.2.4>;q=0.5"), {}),
        (wire, (flow_contact(1),), {"supported": "outbound", "expires": 0}),
        (wire, ("*",), {"expires": 0}),
    ]
    for source, contacts, options in steps:
        assert counter.register(source, *contacts, **options).status == 200
        assert sorted(in_memory(counter)) == sorted(stored(counter))


# ------------------------------------------------------------------------------------------ restart


def restarted(counter: Counter, shelf: Shelf) -> Counter:
    """Another process with the same storage and token keys."""
    other = Counter(shelf=shelf, clock=counter.clock, boot=0x6710A3C1, seed=6)
    keeper = other.stack.keeper
    assert isinstance(keeper, BindingKeeper)
    other.restored = keeper.restore(other.location)  # type: ignore[attr-defined]
    return other


@pytest.mark.requirement("OB-REG-17")
def test_after_a_restart_bindings_of_streams_are_gone_and_nobody_is_dialled() -> None:
    shelf = Shelf()
    counter = Counter(shelf=shelf)
    for number in range(10):
        counter.register(counter.wire(remote=("198.51.100.7", 6000 + number)), flow_contact(), user=f"u{number}")
    assert len(shelf.rows) == 10
    after = restarted(counter, shelf)
    assert after.restored == (0, 10)  # type: ignore[attr-defined]
    assert (after.location.count, shelf.rows, after.asked, len(after.table.connections)) == (0, {}, [], 0)


def test_after_a_restart_what_has_an_address_or_a_path_lives_on() -> None:
    shelf = Shelf()
    counter = Counter(shelf=shelf, sip={"trusted_edges": ("198.51.100.200",)})
    udp, edge = counter.wire(Transport.UDP), counter.wire(remote=("198.51.100.200", 5060))
    path = ["<sip:a@e1.example;lr>", '"Edge, second" <sip:b@e2.example;lr;ob>']
    counter.register(udp, HERE + ';q=0.5;+sip.instance="<urn:uuid:1>"', expires=600)
    counter.register(udp, "<sip:carol@192.0.2.33>", user="carol")
    counter.register(edge, flow_contact(3), user="dave", supported="outbound, path", hops=2, path=path)
    shown = {user: counter.listed(user) for user in ("bob", "carol", "dave")}
    after = restarted(counter, shelf)
    assert after.restored == (3, 0)  # type: ignore[attr-defined]
    assert {user: after.listed(user) for user in shown} == shown
    (bob,), (carol,), (dave,) = (after.bindings(f"{user}@example.com".encode()) for user in shown)
    assert bob.connection is not None
    assert (bob.connection.remote, bob.connection.registered) == (("198.51.100.7", 5070), 1)
    assert (carol.connection, carol.flow) == (None, b"")
    assert (dave.path, dave.reg_id) == (tuple(value.encode() for value in path), 3)
    # Order is kept over the restart, and so is the time each has left.
    assert after.register(None, HERE, call_id=bob.call_id.decode(), cseq=bob.cseq).status == 400
    after.advance(601)
    assert after.bindings() == []
    assert sorted(key[0] for key in shelf.rows) == ["carol@example.com", "dave@example.com"]
