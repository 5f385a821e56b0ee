"""Chat and files through the relay, alone and with Kamailio's as the second one, and what tshark says of the octets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.capture import LARGEST_SEGMENT, Capture
from tests.interop.conftest import StartProgram
from tests.interop.messaging import (
    FILE_OCTETS,
    binary_file,
    chat,
    chat_and_files,
    endpoint,
    send_file,
    start_kamailio,
    text_file,
)
from tests.interop.msrp_wire import judge, sends
from tests.interop.programs import needs
from tests.ua.msrp_frame import Frame

pytestmark = [pytest.mark.interop, needs("dumpcap", "tshark")]


def relays_of(frame: Frame) -> list[int]:
    """The ports of the relays a frame has passed, the nearest first."""
    return [int(uri.split(":")[2].split("/")[0]) for uri in frame.from_path[:-1]]


async def test_chat_and_files_both_ways_between_two_clients_of_the_relay(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture], tmp_path: Path
) -> None:
    server = edge(msrp={"max_chunk_size": 32768})
    wire = capture(f"tcp port {server.port}")
    async with endpoint("alice", server.port) as alice, endpoint("bob", server.port) as bob:
        # One chunk of 10 MiB, which the relay cuts; then one of 20,000 octets after the other.
        await chat_and_files(alice, bob, text=(alice, None), binary=(bob, 20_000))
    ours = [f for f in await asyncio.to_thread(judge, wire, tmp_path) if f.stream[0] == server.port]
    assert 2 * FILE_OCTETS < sum(sends(ours)) < 2.1 * FILE_OCTETS
    assert max(sends(ours)) < 33_500
    assert {frame.what for frame in ours} == {"200", "401", "SEND", "REPORT"}


async def test_chat_and_files_both_ways_through_two_relays(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture], tmp_path: Path
) -> None:
    near, far = edge(), edge()
    wire = capture(f"tcp port {near.port} or tcp port {far.port}")
    async with endpoint("alice", near.port) as alice, endpoint("bob", far.port) as bob:
        await chat_and_files(alice, bob, text=(bob, 100_000), binary=(alice, None))
        assert {tuple(relays_of(frame)) for frame in bob.received("SEND")} == {(far.port, near.port)}
        assert {tuple(relays_of(frame)) for frame in alice.received("SEND")} == {(near.port, far.port)}
        clients = alice.active_link.local[1], bob.active_link.local[1]
    relayed = sends([f for f in await asyncio.to_thread(judge, wire, tmp_path) if f.stream[0] not in clients])
    assert 4 * FILE_OCTETS < sum(relayed) < 4.1 * FILE_OCTETS
    assert LARGEST_SEGMENT < max(relayed) < 66_500  # by the default size of chunks, and too much for a packet


async def test_chat_and_files_both_ways_between_a_client_over_websocket_and_one_over_tcp(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture], tmp_path: Path
) -> None:
    server = edge()
    wire = capture(f"tcp port {server.port}")
    async with endpoint("alice", server.port, "ws") as alice, endpoint("bob", server.port) as bob:
        await chat_and_files(alice, bob, text=(bob, None), binary=(alice, 500_000))
        to_alice, to_bob = ((server.port, who.active_link.local[1]) for who in (alice, bob))
    frames = await asyncio.to_thread(judge, wire, tmp_path)
    for stream in (to_alice, to_bob):
        ours = [frame for frame in frames if frame.stream == stream]
        assert sum(sends(ours)) > FILE_OCTETS
        assert {frame.what for frame in ours} == {"200", "401", "SEND", "REPORT"}


@needs("kamailio")
@pytest.mark.parametrize("first", ["alice", "bob"])  # who opens the connection between the relays, ours or Kamailio
async def test_chat_and_files_both_ways_with_kamailio_as_the_second_relay(
    edge: Callable[..., EdgeServer], start: StartProgram, capture: Callable[[str], Capture], tmp_path: Path, first: str
) -> None:
    kamailio = free_port()
    server = edge(msrp={"chunk_sizes": {f"127.0.0.1:{kamailio}": 8192}})  # Kamailio takes frames of about 10 kB
    start_kamailio(start, tmp_path, kamailio, server.port)
    wire = capture(f"tcp port {server.port} or tcp port {kamailio}")
    async with endpoint("alice", server.port) as alice, endpoint("bob", kamailio) as bob:
        bob.algorithms = ("MD5",)
        await alice.auth()
        to_alice = server.port, alice.active_link.local[1]
        await bob.auth()
        await chat(*((alice, bob) if first == "alice" else (bob, alice)))
        await send_file(alice, bob, binary_file(), "application/octet-stream", chunk_size=None)
        await send_file(bob, alice, text_file(), "text/plain", chunk_size=8000)
        assert {tuple(relays_of(frame)) for frame in bob.received("SEND")} == {(kamailio, server.port)}
        assert {tuple(relays_of(frame)) for frame in alice.received("SEND")} == {(server.port, kamailio)}
    frames = await asyncio.to_thread(judge, wire, tmp_path)
    from_us = [f for f in frames if f.stream[0] == server.port and f.stream != to_alice]
    to_kamailio = sends([f for f in frames if f.stream[1] == kamailio] + from_us)
    assert sum(to_kamailio) > 2 * FILE_OCTETS  # one file from the server, the other from Bob
    assert max(to_kamailio) < 10_000
