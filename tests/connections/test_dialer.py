"""Dials that are given up while they come up, on the loop that production runs on."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

import pytest

from edge.connections import Transport
from edge.dialer import Dialer
from tests.connections.conftest import Recorder, make_world
from tests.ua.wait import eventually

uvloop = pytest.importorskip("uvloop")

# Turns of the loop, from the check of the address on: a connection to this machine is up after one or two, and the
# other end closes it a few later.
TURNS = (1, 2, 3, 4, 5, 8) * 10


class Others:
    """Somebody who opens a socket in each turn of the loop, under whatever number is free then."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self.busy = True
        self._open()

    def _open(self) -> None:
        if self.busy and len(self._sockets) < 100:
            self._sockets.append(socket.socket())
            asyncio.get_running_loop().call_soon(self._open)

    def close(self) -> list[int]:
        """Close all of them; returns the numbers of those that somebody else has closed."""
        self.busy = False
        numbers, lost = [one.detach() for one in self._sockets], []
        for number in numbers:
            try:
                os.close(number)
            except OSError:
                lost.append(number)
        return lost + [number for number in set(numbers) if numbers.count(number) > 1]


async def _give_up(dialer: Dialer, address: tuple[str, int], turns: int) -> list[int]:
    """Dial, close after so many turns of the loop, and let everything end; returns what was closed of others."""
    recorder, loop = Recorder(), asyncio.get_running_loop()
    others: list[Others] = []

    def close_in(left: int) -> None:
        if left:
            loop.call_soon(close_in, left - 1)
        else:
            connection.close("unused")

    def check(found: str) -> bool:
        close_in(turns)
        others.append(Others())
        return True

    connection = dialer.connect(Transport.TCP, *address, recorder, check_address=check)
    await eventually(lambda: not dialer._tasks and recorder.lost)
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    return others[0].close()


def test_a_dial_given_up_at_any_moment_closes_no_descriptor_but_its_own() -> None:
    """A descriptor closed twice is somebody else's the second time: that of a connection opened in between."""

    async def run() -> tuple[list[int], list[str]]:
        said: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(str(context)))
        here = make_world()
        dialer = Dialer(here.table, lambda: None)  # type: ignore[arg-type,return-value]
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        closed = [number for turns in TURNS for number in await _give_up(dialer, address, turns)]
        server.close()
        await server.wait_closed()
        await dialer.close()
        await here.close()
        return closed, said

    closed, said = uvloop.run(run())
    assert closed == []
    assert said == []
