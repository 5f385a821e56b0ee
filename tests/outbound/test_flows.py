"""Tokens to connections and back, states, heirs and events: outbound.md sections 2, 6 and 7."""

import random
from typing import Any

import pytest

from edge.connections import Connection, Transport
from edge.events import FlowFailed, FlowRecovered, FlowReplaced, FlowSuspect, FlowUp
from edge.outbound.flows import FlowFault, FlowState
from edge.outbound.token import FlowId, TokenKeys, pack_address
from tests.outbound.links import BOOT, KEY, Links

OTHER_KEY = bytes(range(0x40, 0x60))


@pytest.fixture
def links() -> Links:
    return Links()


def resolve(links: Links, token: bytes) -> Connection | FlowFault:
    return links.flows.resolve(token, links.clock.now)


# -- token and connection


@pytest.mark.requirement("OB-TOK-01")
def test_rfc5626_5_1_one_token_for_one_flow_and_back(links: Links) -> None:
    connections = [links.open(transport) for transport in Transport for _ in range(3)]
    tokens = [links.flows.token_of(connection) for connection in connections]
    assert len(set(tokens)) == len(connections)
    links.advance(100)
    for connection, token in zip(connections, tokens, strict=True):
        links.speak(connection)
        links.register(connection, aor=b"sip:u%d@calm.example" % connection.id)
        assert links.flows.token_of(connection) == token
        assert resolve(links, token) is connection


@pytest.mark.requirement("OB-TOK-02")
def test_the_same_addresses_later_are_another_flow(links: Links) -> None:
    first = links.open()
    token = links.flows.token_of(first)
    links.lose(first)
    second = links.open()
    assert second.remote == first.remote
    assert links.flows.token_of(second) != token
    assert resolve(links, token) is FlowFault.GONE
    assert resolve(links, links.flows.token_of(second)) is second


def test_a_token_says_where_a_udp_flow_comes_from(links: Links) -> None:
    connection = links.open(Transport.UDP, ("2001:db8:77::9", 5062))
    flow = TokenKeys([KEY]).unseal(links.flows.token_of(connection))
    assert flow == FlowId(Transport.UDP, 3, 11, BOOT, connection.id, 1, pack_address("2001:db8:77::9"), 5062)


def test_what_names_no_flow_says_why(links: Links) -> None:
    token = links.flows.token_of(links.open())
    assert resolve(links, b"lb1") is FlowFault.NOT_A_TOKEN
    changed = token[:-5] + (b"A" if token[-5:-4] != b"A" else b"B") + token[-4:]
    assert resolve(links, changed) is FlowFault.FORGED
    assert resolve(links, TokenKeys([OTHER_KEY]).seal(FlowId(Transport.TCP, 3, 11, BOOT, 1))) is FlowFault.GONE
    assert (links.flows.forged, links.flows.gone) == (1, 1)


@pytest.mark.requirement("OB-TOK-13")
@pytest.mark.parametrize(
    "flow",
    [
        FlowId(Transport.TCP, 3, 11, BOOT - 1, 1),
        FlowId(Transport.TCP, 2, 11, BOOT, 1),
        FlowId(Transport.TCP, 3, 12, BOOT, 1),
        FlowId(Transport.TLS, 3, 11, BOOT, 1),
        FlowId(Transport.TCP, 3, 11, BOOT, 99),
        FlowId(Transport.UDP, 3, 11, BOOT - 1, 1, 1, bytes([127, 0, 0, 1]), 5060),
    ],
)
def test_a_token_of_another_process_worker_node_or_kind_is_gone(links: Links, flow: FlowId) -> None:
    assert links.open().id == 1
    assert resolve(links, TokenKeys([KEY]).seal(flow)) is FlowFault.GONE


@pytest.mark.requirement("OB-TOK-08")
def test_keys_rotate_without_loss(links: Links) -> None:
    connection = links.open()
    old = links.flows.token_of(connection)
    links.flows.replace_keys(TokenKeys([OTHER_KEY, KEY]))
    assert resolve(links, old) is connection
    assert links.flows.token_of(connection) == old
    links.flows.replace_keys(TokenKeys([OTHER_KEY]))
    assert resolve(links, old) is FlowFault.GONE
    new = links.flows.token_of(connection)
    assert new != old
    assert resolve(links, new) is connection


@pytest.mark.requirement("OB-TOK-03")
def test_a_token_says_which_connection_of_which_process_it_is_for_and_of_udp_the_address(links: Links) -> None:
    keys = TokenKeys([KEY])
    stream, datagram = links.open(), links.open(Transport.UDP)
    flow = FlowId(Transport.TCP, 3, 11, BOOT, stream.id)
    assert keys.unseal(links.flows.token_of(stream)) == flow
    flow = FlowId(Transport.UDP, 3, 11, BOOT, datagram.id, 1, bytes([203, 0, 113, 77]), 40112)
    assert keys.unseal(links.flows.token_of(datagram)) == flow


@pytest.mark.requirement("OB-TOK-09")
def test_a_udp_token_of_an_earlier_process_is_tried_once() -> None:
    asked: list[Any] = []

    def revive(listener: int, remote: tuple[str, int]) -> Connection | None:
        asked.append((listener, remote))
        return flow

    links = Links(revive=revive)
    flow = links.open(Transport.UDP)
    token = TokenKeys([KEY]).seal(FlowId(Transport.UDP, 3, 11, BOOT - 9, 5, 2, bytes([203, 0, 113, 77]), 40112))
    assert resolve(links, token) is flow
    assert asked == [(2, ("203.0.113.77", 40112))]
    assert links.flows.state_of(flow, links.clock.now) is FlowState.SUSPECT
    assert resolve(links, token) is FlowFault.GONE
    links.advance(1)
    links.speak(flow)
    assert resolve(links, token) is flow
    assert links.flows.state_of(flow, links.clock.now) is FlowState.UP
    stream = TokenKeys([KEY]).seal(FlowId(Transport.TCP, 3, 11, BOOT - 9, 5))
    assert resolve(links, stream) is FlowFault.GONE


# -- up and failed


@pytest.mark.requirement("OB-FAIL-07")
def test_a_flow_comes_up_once_and_fails_once_and_says_what_was_lost(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.register(connection)
    links.flows.register(connection, b"sip:team@calm.example", b"", 0, 60, links.clock.now)
    assert links.names() == ["flow.up"]
    up = links.events[0]
    assert isinstance(up, FlowUp)
    assert up.registrations == (
        {"aor": "sip:tove@calm.example", "instance": "urn:uuid:6f1c2a58", "reg_id": 1, "expires_s": 600},
    )
    links.advance(20)
    links.speak(connection)
    links.advance(10)
    connection.uses = 2
    links.lose(connection, "reset")
    assert links.names() == ["flow.up", "flow.failed"]
    failed = links.events[1]
    assert isinstance(failed, FlowFailed)
    assert failed.flow == up.flow == connection.name
    assert (failed.transport, failed.remote, failed.local) == ("tcp", "203.0.113.77:40112", "192.0.2.11:5060")
    assert (failed.reason, failed.age_s, failed.silent_s, failed.pending) == ("reset", 30, 10, 2)
    assert [(r["aor"], r["instance"], r["reg_id"]) for r in failed.registrations] == [
        ("sip:tove@calm.example", "urn:uuid:6f1c2a58", 1),
        ("sip:team@calm.example", "", 0),
    ]


def test_a_connection_without_registration_is_no_flow(links: Links) -> None:
    connection = links.open()
    links.flows.token_of(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    links.advance(40)
    links.lose(connection)
    assert links.events == []


@pytest.mark.requirement("OB-FAIL-10")
@pytest.mark.parametrize("how", ["expiry", "removal"])
def test_the_end_of_a_registration_leaves_its_flow_alone(links: Links, how: str) -> None:
    connection = links.open()
    token = links.flows.token_of(connection)
    links.register(connection, expires=60)
    assert connection.registered == 1
    if how == "expiry":
        links.advance(61)
    else:
        links.flows.unregister(connection, b"sip:tove@calm.example", b"urn:uuid:6f1c2a58", 1)
    assert connection.registered == 0
    assert not connection.closed
    assert resolve(links, token) is connection
    assert links.names() == ["flow.up"]
    links.lose(connection, "eof", failed=False)
    assert links.names() == ["flow.up", "flow.failed"]


def test_a_refresh_moves_the_expiry(links: Links) -> None:
    connection = links.open()
    links.register(connection, expires=60)
    links.advance(50)
    links.register(connection, expires=60)
    links.advance(50)
    assert connection.registered == 1
    links.advance(11)
    assert connection.registered == 0
    links.flows.unregister(connection, b"sip:nobody@calm.example", b"", 0)
    links.flows.unregister(links.open(), b"sip:nobody@calm.example", b"", 0)


@pytest.mark.requirement("OB-FAIL-08")
def test_1000_flows_that_end_at_random_fail_once_each(links: Links) -> None:
    dice = random.Random(5626)
    connections = [links.open(dice.choice((Transport.WS, Transport.WSS, Transport.UDP))) for _ in range(1000)]
    for connection in connections:
        links.register(connection, aor=b"sip:u%d@calm.example" % connection.id)
        if dice.random() < 0.5:
            links.flows.set_flow_timer(connection, 10, links.clock.now)
    dice.shuffle(connections)
    for connection in connections:
        links.lose(connection, dice.choice(("reset", "eof", "ping_timeout")), failed=dice.random() < 0.5)
        links.lose(connection, "again")
        if dice.random() < 0.1:
            links.advance(1)
    links.advance(40)
    failed = [event.flow for event in links.events if isinstance(event, FlowFailed)]
    up = [event.flow for event in links.events if isinstance(event, FlowUp)]
    assert len(failed) == len(set(failed)) == 1000
    assert sorted(failed) == sorted(up)


def test_nothing_is_left_of_10000_connections(links: Links) -> None:
    for number in range(10000):
        connection = links.open()
        links.register(connection, aor=b"sip:u%d@calm.example" % (number % 7), expires=60)
        links.lose(connection)
    assert len(links.flows) == 0
    links.advance(61)
    assert not links.flows._index
    assert not links.flows._heirs
    assert links.wheel.count == 0


# -- the clock


@pytest.mark.requirement("OB-KA-13")
def test_rfc5626_5_4_a_silent_stream_is_suspect_then_failed_and_comes_back() -> None:
    links = Links(grace=5)
    connection = links.open(Transport.TLS)
    token = links.flows.token_of(connection)
    links.register(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    links.advance(14.5)
    assert resolve(links, token) is connection  # who asks has it looked at the clock, too
    assert links.names() == ["flow.up"]
    links.advance(0.5)
    assert links.names()[1:] == ["flow.suspect"]
    assert resolve(links, token) is connection
    links.advance(10)
    assert resolve(links, token) is FlowFault.GONE
    assert links.names()[2:] == ["flow.failed"]
    assert isinstance(links.events[2], FlowFailed)
    assert (links.events[2].reason, links.events[2].silent_s) == ("silent", 25)
    assert not connection.closed
    links.advance(30)
    links.speak(connection)
    links.advance(2)
    assert links.names()[3:] == ["flow.recovered"]
    assert resolve(links, token) is connection


@pytest.mark.requirement("OB-KA-13")
def test_a_flow_that_was_told_no_timer_has_no_clock(links: Links) -> None:
    connection = links.open()
    links.register(connection, expires=5000)
    links.advance(4000)
    assert links.names() == ["flow.up"]
    assert resolve(links, links.flows.token_of(connection)) is connection


@pytest.mark.requirement("OB-KA-13")
def test_a_client_that_pings_in_time_is_never_suspect(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.flows.set_flow_timer(connection, 15, links.clock.now)
    for _ in range(20):
        links.advance(19.5)  # baresip 1.0.0 over TCP: up to T plus 4.5 seconds
        links.speak(connection)
    assert links.names() == ["flow.up"]


def test_a_suspect_flow_recovers_at_once_for_who_asks(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    links.advance(20)
    links.speak(connection)
    assert links.flows.state_of(connection, links.clock.now) is FlowState.UP
    assert [type(event) for event in links.events] == [FlowUp, FlowSuspect, FlowRecovered]
    assert isinstance(links.events[2], FlowRecovered)
    assert links.events[2].after == "suspect"


def test_a_stream_that_failed_for_its_silence_does_not_fail_again_when_it_closes(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    links.advance(31)
    links.lose(connection, "idle", failed=False)
    assert links.names() == ["flow.up", "flow.suspect", "flow.failed"]


@pytest.mark.requirement("OB-FAIL-08", "OB-KA-13")
def test_a_stream_that_recovered_from_its_silence_is_up_again_and_its_next_end_is_told(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    for _ in range(3):
        links.advance(31)
        links.speak(connection)
        links.advance(2)
    links.lose(connection)
    once = ["flow.suspect", "flow.failed", "flow.recovered"]
    assert links.names() == ["flow.up", *once * 3, "flow.failed"]
    assert [event.after for event in links.events if isinstance(event, FlowRecovered)] == ["failed"] * 3
    assert [event.reason for event in links.events if isinstance(event, FlowFailed)] == ["silent"] * 3 + ["reset"]


@pytest.mark.requirement("OB-FAIL-08")
def test_a_stream_that_spoke_again_and_ended_before_anybody_saw_it_has_failed_once(links: Links) -> None:
    connection = links.open()
    links.register(connection)
    links.flows.set_flow_timer(connection, 10, links.clock.now)
    links.advance(31)
    links.speak(connection)
    links.lose(connection)
    assert links.names() == ["flow.up", "flow.suspect", "flow.failed"]
    links.advance(600)
    assert len(links.flows) == 0


@pytest.mark.requirement("OB-FAIL-08")
def test_a_flow_whose_clock_had_run_out_before_it_registered_is_up_and_fails_once(links: Links) -> None:
    connection = links.open()
    links.flows.set_flow_timer(connection, 10, links.clock.now)  # for a dialog (RFC 6223)
    links.advance(31)
    assert links.names() == []
    links.speak(connection)
    links.register(connection)
    links.lose(connection)
    assert links.names() == ["flow.up", "flow.failed"]


@pytest.mark.requirement("OB-FAIL-02")
def test_rfc5626_5_3_1_a_udp_flow_that_missed_its_keepalives_is_not_active() -> None:
    links = Links(grace=5)
    connection = links.open(Transport.UDP)
    token = links.flows.token_of(connection)
    links.register(connection)
    links.flows.set_flow_timer(connection, 20, links.clock.now)
    links.advance(44)
    assert resolve(links, token) is connection
    links.advance(2)
    assert resolve(links, token) is FlowFault.GONE
    assert connection.closed
    assert links.names() == ["flow.up", "flow.suspect", "flow.failed"]
    assert len(links.flows) == 0


def test_a_udp_flow_without_timer_lives_by_its_traffic_or_its_registration(links: Links) -> None:
    silent, registered = links.open(Transport.UDP), links.open(Transport.UDP)
    links.register(registered, expires=600)
    links.advance(181)
    assert links.flows.state_of(silent, links.clock.now) is FlowState.DEAD
    assert links.flows.state_of(registered, links.clock.now) is FlowState.UP
    links.advance(420)
    assert links.flows.state_of(registered, links.clock.now) is FlowState.DEAD


def test_a_udp_flow_whose_send_failed_is_not_active(links: Links) -> None:
    connection = links.open(Transport.UDP)
    token = links.flows.token_of(connection)
    links.register(connection)
    connection.fail("unreachable")
    assert resolve(links, token) is FlowFault.GONE
    assert links.names() == ["flow.up", "flow.failed"]


# -- heirs


@pytest.mark.requirement("OB-FAIL-14")
def test_who_comes_back_gets_what_is_addressed_to_the_old_token(links: Links) -> None:
    old = links.open()
    token = links.flows.token_of(old)
    links.register(old)
    links.lose(old)
    assert resolve(links, token) is FlowFault.GONE
    links.advance(20)
    new = links.open(remote=("203.0.113.77", 40113))
    assert resolve(links, token) is FlowFault.GONE
    links.register(new)
    assert resolve(links, token) is new
    replaced = links.events[-2]
    assert isinstance(replaced, FlowReplaced)
    assert (replaced.flow, replaced.heir) == (old.name, new.name)
    assert replaced.registrations[0]["reg_id"] == 1
    assert links.names() == ["flow.up", "flow.failed", "flow.replaced", "flow.up"]


@pytest.mark.requirement("OB-FAIL-14")
@pytest.mark.parametrize(
    "aor, instance, reg_id",
    [
        (b"sip:iris@calm.example", b"urn:uuid:6f1c2a58", 1),
        (b"sip:tove@calm.example", b"urn:uuid:b2d90e17", 1),
        (b"sip:tove@calm.example", b"urn:uuid:6f1c2a58", 2),
        (b"sip:tove@calm.example", b"", 0),
    ],
)
def test_only_the_same_aor_instance_and_reg_id_make_an_heir(
    links: Links, aor: bytes, instance: bytes, reg_id: int
) -> None:
    old = links.open()
    token = links.flows.token_of(old)
    links.register(old)
    links.lose(old)
    links.flows.register(links.open(), aor, instance, reg_id, 600, links.clock.now)
    assert resolve(links, token) is FlowFault.GONE


def test_nat_rebinding_leads_to_the_new_port_though_the_old_flow_is_not_dead_yet(links: Links) -> None:
    old = links.open(Transport.UDP)
    token = links.flows.token_of(old)
    links.register(old)
    new = links.open(Transport.UDP, ("203.0.113.77", 50000))
    assert resolve(links, token) is old
    links.register(new)
    assert resolve(links, token) is new
    assert (old.registered, new.registered) == (0, 1)


def test_a_connection_that_carries_others_keeps_its_token_while_it_lives(links: Links) -> None:
    old = links.open()
    token = links.flows.token_of(old)
    links.register(old)
    links.register(old, aor=b"sip:iris@calm.example")
    new = links.open()
    links.register(new)
    assert resolve(links, token) is old
    links.lose(old)
    assert resolve(links, token) is new


def test_heirs_of_heirs_are_found_and_forgotten(links: Links) -> None:
    tokens, connection = [], links.open()
    for _ in range(40):
        links.register(connection, expires=60)
        tokens.append(links.flows.token_of(connection))
        links.lose(connection)
        connection = links.open()
    links.register(connection, expires=60)
    assert all(resolve(links, token) is connection for token in tokens[-16:])
    assert resolve(links, tokens[0]) is FlowFault.GONE
    assert len(links.flows._heirs) == 16
    links.lose(connection)
    links.advance(61)
    assert not links.flows._heirs
    assert not links.flows._index


def test_back_and_forth_between_two_connections(links: Links) -> None:
    first, second = links.open(), links.open()
    tokens = [links.flows.token_of(first), links.flows.token_of(second)]
    for connection in (first, second, first, second, first):
        links.register(connection)
        assert [resolve(links, token) for token in tokens] == [connection, connection] or connection is first
    assert resolve(links, tokens[0]) is first
    assert resolve(links, tokens[1]) is first
    links.lose(first)
    assert resolve(links, tokens[0]) is FlowFault.GONE
    assert len(links.flows._heirs) <= 2


def test_a_flow_costs_little_memory(links: Links) -> None:
    import tracemalloc

    connections = [links.open() for _ in range(1000)]
    keys = [(b"sip:u%d@calm.example" % c.id, b"urn:uuid:%032d" % c.id) for c in connections]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for connection, (aor, instance) in zip(connections, keys, strict=True):
        links.flows.token_of(connection)
        links.flows.register(connection, aor, instance, 1, 3600, links.clock.now)
        links.flows.set_flow_timer(connection, 120, links.clock.now)
        links.events.clear()
    used = (tracemalloc.get_traced_memory()[0] - before) / 1000
    tracemalloc.stop()
    assert used < 1024
