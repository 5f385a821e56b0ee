"""When what is sent leaves: at the end of the read that caused it, or with what others send in a crowded turn."""

from __future__ import annotations

from edge.connections import Connection
from edge.stream import StreamConnection
from tests.connections.conftest import MakeWorld, Recorder, Wire
from tests.ua.wait import eventually


class Counting:
    """A transport that notes what it is given."""

    def __init__(self, connection: StreamConnection) -> None:
        self.writes: list[bytes] = []
        self._inner = connection._transport
        connection._transport = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._inner.write(data)  # type: ignore[union-attr]


class Crowd:
    """Some connections whose octets all go to one."""

    def __init__(self, target: StreamConnection, wire: Wire) -> None:
        self.target = target
        self.wire = wire
        self.out = Counting(target)
        self.feeders: list[tuple[StreamConnection, Wire]] = []

    async def turn(self) -> list[bytes]:
        """Let every one of them be read in one turn of the loop; returns what was written."""
        self.out.writes.clear()
        for number, (_, wire) in enumerate(self.feeders):
            wire.socket.send(b"%02d" % number)
        await eventually(lambda: sum(map(len, self.out.writes)) == 2 * len(self.feeders))
        await self.wire.read()
        return list(self.out.writes)

    async def be_noticed(self) -> None:
        """Go on until they are known to be many."""
        for _ in range(20):
            if len(await self.turn()) == 1:
                return
        raise AssertionError("20 crowded turns, and still a write for each read")


async def crowd(make: MakeWorld, size: int) -> Crowd:
    world = make()
    target, wire = await world.open(Recorder())
    made = Crowd(target, wire)

    def feed(connection: Connection, data: bytes) -> None:
        target.send(data)

    for _ in range(size):
        recorder = Recorder()
        recorder.on_data = feed
        made.feeders.append(await world.open(recorder))
    return made


async def test_what_several_connections_send_to_one_in_a_turn_leaves_in_one_write(world: MakeWorld) -> None:
    many = await crowd(world, 6)
    await many.be_noticed()
    assert await many.turn() == [b"000102030405"]
    assert await many.turn() == [b"000102030405"]


async def test_what_a_lone_read_causes_leaves_with_it(world: MakeWorld) -> None:
    lone = await crowd(world, 1)
    (feeder, _) = lone.feeders[0]
    feeder.data_received(b"now")
    assert lone.out.writes == [b"now"]


async def test_a_crowd_that_is_gone_keeps_nobody_waiting(world: MakeWorld) -> None:
    many = await crowd(world, 6)
    await many.be_noticed()
    (feeder, wire) = many.feeders[0]
    many.out.writes.clear()
    wire.socket.send(b"one")
    await eventually(lambda: many.out.writes == [b"one"])
    feeder.data_received(b"two")
    assert many.out.writes == [b"one", b"two"]


async def test_what_a_large_read_causes_does_not_wait_for_a_crowd(world: MakeWorld) -> None:
    many = await crowd(world, 6)
    await many.be_noticed()
    (feeder, _) = many.feeders[0]
    many.out.writes.clear()
    feeder.data_received(b"small")
    assert many.out.writes == []
    feeder.data_received(b"x" * 8193)
    assert b"".join(many.out.writes) == b"small" + b"x" * 8193


async def test_a_connection_that_closes_in_a_crowd_sends_what_it_had(world: MakeWorld) -> None:
    many = await crowd(world, 6)
    await many.be_noticed()
    many.feeders[0][0].data_received(b"the last")
    many.target.close("done")
    assert await many.wire.read_to_end() == b"the last"
