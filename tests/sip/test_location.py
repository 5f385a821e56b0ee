"""Bindings in memory: their expiry, their connections, and what is told when they end."""

from __future__ import annotations

import random

import pytest

from edge.connections import Transport
from edge.sip.location import Binding, Location
from edge.timers import TimerWheel
from tests.sip.registering import BOB, Counter, flow_contact
from tests.ua.clock import FakeClock


def binding(
    aor: bytes = b"bob@example.com", contact: bytes = b"sip:bob@192.0.2.1", expires_at: float = 1600.0
) -> Binding:
    made = Binding()
    made.aor, made.contact, made.expires_at = aor, contact, expires_at
    made.parameters = made.call_id = made.instance = made.flow = made.user_agent = b""
    made.cseq = made.reg_id = 0
    made.q, made.path, made.refreshed_at, made.connection = 1000, (), 1000.0, None
    return made


class Shelves:
    """A location on a wheel of its own."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.wheel = TimerWheel(self.clock.now, tick_s=0.5)
        self.location = Location(self.wheel)
        self.expired: list[Binding] = []
        self.lost: list[Binding] = []
        self.location.on_expired = self.expired.append
        self.location.on_lost = self.lost.append

    def advance(self, to: float) -> None:
        self.clock.advance(to - self.clock.now)
        self.wheel.advance(self.clock.now)


def test_a_binding_expires_by_its_time_and_not_before() -> None:
    shelves, one = Shelves(), binding()
    shelves.location.put(one, None)
    shelves.advance(1599.5)
    assert (shelves.location.bindings(one.aor), shelves.location.count) == ([one], 1)
    shelves.advance(1600.0)
    assert (shelves.location.bindings(one.aor), shelves.location.count, shelves.expired) == ([], 0, [one])
    assert shelves.location.aors() == []
    assert shelves.wheel.count == 0


def test_what_was_refreshed_lives_on_and_what_was_shortened_ends_sooner() -> None:
    shelves, longer, shorter = Shelves(), binding(contact=b"sip:a@h"), binding(contact=b"sip:b@h")
    for one in (longer, shorter):
        shelves.location.put(one, None)
    longer.expires_at = 2200.0  # as a refresh does: the timer finds out by itself
    shorter.expires_at = 1100.0
    shelves.location.put(shorter, None)
    shelves.advance(1100.0)
    assert shelves.expired == [shorter]
    shelves.advance(1700.0)
    assert shelves.location.bindings(longer.aor) == [longer]
    shelves.advance(2200.0)
    assert shelves.expired == [shorter, longer]


def test_the_end_of_a_connection_takes_its_bindings_of_every_aor_once() -> None:
    shelves, counter = Shelves(), Counter()
    one, other = counter.wire(), counter.wire()
    mine = [binding(b"a@x", b"sip:1@h"), binding(b"b@x", b"sip:2@h")]
    moved, free = binding(b"a@x", b"sip:3@h"), binding(b"a@x", b"sip:4@h")
    for item in (*mine, moved):
        shelves.location.put(item, one)
    shelves.location.put(free, None)
    shelves.location.put(moved, other)
    assert shelves.location.on_connection(one) == mine
    assert shelves.location.on_connection(other) == [moved]
    shelves.location.handle_lost(one)
    shelves.location.handle_lost(one)
    assert (shelves.lost, shelves.expired) == (mine, [])
    assert shelves.location.bindings(b"a@x") == [moved, free]
    assert shelves.location.on_connection(one) == []
    shelves.advance(1600.0)
    assert sorted(item.contact for item in shelves.expired) == [b"sip:3@h", b"sip:4@h"]


def test_what_is_gone_is_removed_once() -> None:
    shelves, one = Shelves(), binding()
    assert not shelves.location.remove(one)
    shelves.location.put(one, None)
    assert shelves.location.remove(one)
    assert not shelves.location.remove(one)
    shelves.location.expire(one)
    assert (shelves.expired, shelves.location.count) == ([], 0)


def test_keys_of_outbound_and_ordinary_bindings_never_meet() -> None:
    plain, flow = binding(contact=b"sip:a@h:1"), binding()
    flow.instance, flow.reg_id = b"sip:a@h", 1
    assert plain.key != flow.key
    flow.contact = b"sip:other@h"
    assert flow.key == b"<sip:a@h>1"


def test_the_count_is_that_of_the_lists_whatever_happens() -> None:
    source, shelves, counter = random.Random(3), Shelves(), Counter()
    wires = [counter.wire() for _ in range(4)]
    pool = [binding(b"%d@x" % (n % 7), b"sip:%d@h" % n, 1e9) for n in range(40)]
    for _ in range(2000):
        item = source.choice(pool)
        match source.randrange(4):
            case 0 | 1:
                shelves.location.put(item, source.choice([*wires, None]))
            case 2:
                shelves.location.remove(item)
            case 3 if source.random() < 0.1:
                shelves.location.handle_lost(source.choice(wires))
        lists = [one for aor in shelves.location.aors() for one in shelves.location.bindings(aor)]
        assert len(lists) == len(set(map(id, lists))) == shelves.location.count
        for wire in wires:
            linked = shelves.location.on_connection(wire)
            assert {id(one) for one in linked} == {id(one) for one in lists if one.connection is wire}


# ------------------------------------------------------------------------------------------ counted once


def test_a_binding_is_counted_once_on_its_connection() -> None:
    counter = Counter()
    one, other = counter.wire(), counter.wire(remote=("198.51.100.7", 6000))
    counter.register(one, flow_contact(1), supported="outbound")
    assert one.registered == 1
    counter.register(one, flow_contact(1), supported="outbound")
    counter.register(one, flow_contact(2), supported="outbound")
    assert one.registered == 2
    counter.register(other, flow_contact(2), supported="outbound")
    assert (one.registered, other.registered) == (1, 1)
    counter.register(one, flow_contact(1), expires=0, supported="outbound")
    assert (one.registered, other.registered) == (0, 1)
    counter.advance(3600.5)
    assert (other.registered, counter.location.count) == (0, 0)


@pytest.mark.parametrize("transport", [Transport.WS, Transport.TCP])
def test_a_plain_contact_that_moves_is_counted_where_it_is(transport: Transport) -> None:
    counter = Counter()
    one, other = counter.wire(transport), counter.wire(transport, ("198.51.100.7", 6000))
    contact = "<sip:bob@df7jal23ls0d.invalid;transport=ws>"
    counter.register(one, contact)
    counter.register(other, contact)
    assert (one.registered, other.registered) == (0, 1)
    one.fail("reset")
    assert counter.bindings()[0].connection is other
    other.fail("reset")
    assert counter.bindings() == []
    assert (one.registered, other.registered) == (0, 0)


def test_two_plain_contacts_of_one_connection_keep_it_until_both_are_gone() -> None:
    counter = Counter()
    wire = counter.wire(Transport.UDP)
    here = "<sip:bob@198.51.100.7:5070{}>"
    counter.register(wire, here.format(";line=1"), here.format(";line=2"))
    counter.register(wire, here.format(";line=1") + ";expires=0")
    assert wire.registered == 1
    counter.register(wire, "*", expires=0)
    assert wire.registered == 0


def test_a_udp_contact_elsewhere_is_not_tied_to_the_flow() -> None:
    counter = Counter()
    wire = counter.wire(Transport.UDP)
    counter.register(wire, BOB, "<sip:bob@192.0.2.44>")
    assert [(b.connection, bool(b.flow)) for b in counter.bindings()] == [(wire, True), (None, False)]
    wire.close("idle")
    assert [b.contact for b in counter.bindings()] == [b"sip:bob@192.0.2.44"]
