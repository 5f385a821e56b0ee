"""The table: ids, limits, deadlines, counters."""

from __future__ import annotations

import asyncio

import pytest

from edge.connections import Transport, format_address
from tests.connections.conftest import MakeWorld, Recorder, limits
from tests.ua.wait import eventually


async def test_ids_are_never_used_again_and_names_lead_back(world: MakeWorld) -> None:
    here = world()
    seen = set()
    for _ in range(5):
        connection, _ = await here.open(Recorder())
        assert connection.id not in seen
        seen.add(connection.id)
        assert connection.name == f"0-12345678-{connection.id}"
        assert here.table.by_name(connection.name) is connection
        connection.fail("test")
        assert here.table.by_name(connection.name) is None
    connection, _ = await here.open(Recorder())
    for wrong in (f"1-12345678-{connection.id}", f"0-87654321-{connection.id}", str(connection.id), "", "0-12345678-x"):
        assert here.table.by_name(wrong) is None


async def test_limits_for_each_source_and_in_total(world: MakeWorld) -> None:
    table = world(connections=4, connections_per_source=2).table
    table._trusted = lambda source: source == "192.0.2.9"
    assert [table.admit("192.0.2.1") for _ in range(3)] == ["", "", "source_limit"]
    assert [table.admit("192.0.2.9") for _ in range(3)] == [""] * 3
    table.pending = 4
    assert table.admit("192.0.2.2") == table.admit("192.0.2.9") == "connection_limit"
    table.pending = 0
    table.dismiss("192.0.2.1")
    assert table.admit("192.0.2.1") == ""
    for _ in range(5):
        table.dismiss("192.0.2.1")
    assert table.admit("192.0.2.1") == ""  # nobody gets into credit


async def test_a_balancers_stream_is_counted_for_its_client(world: MakeWorld) -> None:
    table = world(connections_per_source=1).table
    assert [table.admit("192.0.2.9", limited=False) for _ in range(3)] == [""] * 3
    assert table.move("192.0.2.9", "203.0.113.1") == ""
    assert table.move("192.0.2.9", "203.0.113.1") == "source_limit"
    assert table.move("192.0.2.9", "203.0.113.2") == ""
    table.dismiss("203.0.113.1")
    assert table.move("192.0.2.9", "203.0.113.1") == ""


async def test_the_end_of_a_connection_makes_room_for_its_source(world: MakeWorld) -> None:
    here = world(connections_per_source=2)
    first, _ = await here.open(Recorder())
    await here.open(Recorder())
    assert here.table.admit("192.0.2.1") == "source_limit"
    first.close("done")
    assert here.table.admit("192.0.2.1") == ""


async def test_other_limits_hold_from_now_on(world: MakeWorld) -> None:
    here = world(send_queue=1000)
    before, _ = await here.open(Recorder())
    here.table.reconfigure(limits(connections_per_source=1, send_queue=2000))
    assert here.table.admit("192.0.2.1") == "source_limit"
    assert (before.queue_limit, before.closed) == (1000, False)


async def test_one_who_says_nothing_whole_is_closed_and_keepalives_do_not_help(world: MakeWorld) -> None:
    here = world(first_message_timeout=0.6)
    silent, wire = await here.open(recorder := Recorder())
    spoke, _ = await here.open(Recorder())
    spoke.first_message = True
    dialled, _ = await here.open(Recorder())
    dialled.outgoing = True
    while not silent.closed:
        await wire.send(b"\r\n")
        await asyncio.sleep(0.05)
    assert recorder.lost == ["no_message"]
    assert not spoke.closed
    assert not dialled.closed
    assert here.table.closed_by_reason == {"no_message": 1}


async def test_one_who_is_idle_is_closed_and_one_who_speaks_is_not(world: MakeWorld) -> None:
    here = world(first_message_timeout=0.3, idle_timeout=0.8)
    idle, _ = await here.open(recorder := Recorder())
    busy, wire = await here.open(Recorder())
    idle.first_message = busy.first_message = True
    while not idle.closed:
        await wire.send(b"x")
        await asyncio.sleep(0.05)
    assert recorder.lost == ["idle"]
    assert not busy.closed


async def test_one_who_only_takes_octets_is_not_idle_until_there_are_none(world: MakeWorld) -> None:
    here = world(first_message_timeout=0.3, idle_timeout=0.8)
    idle, _ = await here.open(recorder := Recorder())
    taker, wire = await here.open(took := Recorder())
    idle.first_message = taker.first_message = True
    idle.send(b"once")
    while not idle.closed:
        taker.send(b"x")
        await asyncio.sleep(0.05)
    assert recorder.lost == ["idle"]
    assert not taker.closed
    while not taker.closed:
        await asyncio.sleep(0.05)
    assert took.lost == ["idle"]
    assert (await wire.read()).startswith(b"xxx")


async def test_live_and_opened_follow_the_transport(world: MakeWorld) -> None:
    here = world()
    connection, _ = await here.open(Recorder())
    table = here.table
    assert (table.live[Transport.TCP], table.opened[Transport.TCP]) == (1, 1)
    table.change_transport(connection, Transport.WS)
    assert (table.live[Transport.TCP], table.live[Transport.WS], table.opened[Transport.WS]) == (0, 1, 1)
    assert table.streams == 1
    connection.fail("test")
    assert table.live == [0] * 5
    assert (table.streams, table.ends) == (0, 1)


async def test_all_streams_close_at_the_end(world: MakeWorld) -> None:
    here = world()
    wires = [(await here.open(Recorder()))[1] for _ in range(3)]
    here.table.close_all("shutdown")
    for wire in wires:
        assert await wire.read() == b""
    assert here.table.closed_by_reason == {"shutdown": 3}


async def test_a_handler_that_closes_others_while_it_is_told_of_an_end(world: MakeWorld) -> None:
    here = world()

    class Chain(Recorder):
        def handle_lost(self, connection: object, reason: str, now: float) -> None:
            super().handle_lost(connection, reason, now)  # type: ignore[arg-type]
            for other in list(here.table.connections.values()):
                other.close("chain")

    for _ in range(4):
        await here.open(Chain())
    next(iter(here.table.connections.values())).fail("first")
    assert here.table.connections == {}
    assert here.table.closed_by_reason == {"chain": 3}
    await eventually(lambda: here.table.streams == 0)


@pytest.mark.parametrize(
    ("address", "text"), [(("192.0.2.1", 5060), "192.0.2.1:5060"), (("2001:db8::1", 5060), "[2001:db8::1]:5060")]
)
def test_addresses_as_text(address: tuple[str, int], text: str) -> None:
    assert format_address(address) == text


async def test_a_connection_that_ended_is_not_watched_any_more(world: MakeWorld) -> None:
    here = world()
    for end in ("close", "fail"):
        connection, wire = await here.open(Recorder())
        connection.send(b"hello")
        assert await wire.read() == b"hello"
        assert here.table._watched == {connection}
        connection.send(b"and goodbye")
        getattr(connection, end)("test")
        await asyncio.sleep(0)  # the turn in which all that was queued leaves
        assert here.table._watched == set()
