"""Chat and files through the relay, alone and with Kamailio's as the second one, and what tshark says of the octets."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.capture import LARGEST_FRAME, Capture, WireFrame, check_msrp, cut_frames, read_streams
from tests.interop.conftest import StartProgram
from tests.interop.programs import needs
from tests.ua.msrp import HashSink, MsrpEndpoint
from tests.ua.msrp_frame import Frame

pytestmark = [pytest.mark.interop, needs("dumpcap", "tshark")]

FILE_OCTETS = 10 * 1024 * 1024
CHAT = ["hello", "grüße, €", "two\r\n\r\nlines\r\n------ and one too few"]


def endpoint(name: str, port: int) -> MsrpEndpoint:
    return MsrpEndpoint(name, f"{name}-secret", relay=("127.0.0.1", port))


async def chat(one: MsrpEndpoint, other: MsrpEndpoint) -> None:
    """Each line both ways, each answered, reported as received, and in order."""
    for sender, receiver in ((one, other), (other, one)):
        for line in CHAT:
            sent = await sender.send([*sender.use_path, *receiver.path], line.encode(), success_report="yes")
            assert sent.ok, sent.responses
            message = await receiver.next_message()
            assert (bytes(message.data).decode(), message.content_type) == (line, "text/plain")
            report = await sender.next_report()
            assert (report["Message-ID"], report["Status"].split()[:2]) == (message.message_id, ["000", "200"])


def text_file() -> bytes:
    """10 MiB of numbered lines."""
    return b"".join(b"line %d\r\n" % number for number in range(FILE_OCTETS // 8))[:FILE_OCTETS]


def binary_file() -> bytes:
    """10 MiB of anything."""
    return random.Random(4975).randbytes(FILE_OCTETS)


async def send_file(
    sender: MsrpEndpoint, receiver: MsrpEndpoint, body: bytes, content_type: str, chunk_size: int | None
) -> None:
    """Send it; the receiver counts and hashes."""
    receiver.sink = HashSink
    path = [*sender.use_path, *receiver.path]
    sent, message = await asyncio.gather(
        sender.send(path, body, content_type, chunk_size=chunk_size, success_report="yes", seconds=60),
        receiver.next_message(60),
    )
    receiver.sink = None
    assert sent.ok, [response.status for response in sent.responses if response.status != 200]
    assert (message.octets, message.complete, message.overlap) == (FILE_OCTETS, True, 0)
    assert message.sha256 == hashlib.sha256(body).hexdigest()
    assert (await sender.next_report()).get("Byte-Range") == f"1-{FILE_OCTETS}/{FILE_OCTETS}"


def dissected(capture: Capture, directory: Path) -> list[WireFrame]:
    """Have tshark look at every frame that fits into a packet, and return all of them."""
    frames = [frame for stream, data in read_streams(capture.stop()).items() for frame in cut_frames(stream, data)]
    capture.path.unlink()
    check_msrp([frame for frame in frames if len(frame.raw) <= LARGEST_FRAME], directory / "frames.pcap")
    (directory / "frames.pcap").unlink()
    return frames


def sends(frames: list[WireFrame]) -> list[int]:
    """The sizes of the SENDs among these."""
    return [len(frame.raw) for frame in frames if frame.what == "SEND"]


def relays_of(frame: Frame) -> list[int]:
    """The ports of the relays a frame has passed, the nearest first."""
    return [int(uri.split(":")[2].split("/")[0]) for uri in frame.from_path[:-1]]


async def test_chat_and_files_both_ways_between_two_clients_of_the_relay(
    edge: Callable[..., EdgeServer], capture: Callable[[str], Capture], tmp_path: Path
) -> None:
    server = edge(msrp={"max_chunk_size": 32768})
    wire = capture(f"tcp port {server.port}")
    async with endpoint("alice", server.port) as alice, endpoint("bob", server.port) as bob:
        await alice.auth()
        await bob.auth()
        await chat(alice, bob)
        # One chunk of 10 MiB, which the relay cuts; then one of 20,000 octets after the other.
        await send_file(alice, bob, text_file(), "text/plain", chunk_size=None)
        await send_file(bob, alice, binary_file(), "application/octet-stream", chunk_size=20_000)
    ours = [f for f in await asyncio.to_thread(dissected, wire, tmp_path) if f.stream[0] == server.port]
    assert 2 * FILE_OCTETS < sum(sends(ours)) < 2.1 * FILE_OCTETS
    assert max(sends(ours)) < 33_500
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
        assert alice.link is not None
        to_alice = server.port, alice.link.local[1]
        await bob.auth()
        await chat(*((alice, bob) if first == "alice" else (bob, alice)))
        await send_file(alice, bob, binary_file(), "application/octet-stream", chunk_size=None)
        await send_file(bob, alice, text_file(), "text/plain", chunk_size=8000)
        assert {tuple(relays_of(frame)) for frame in bob.received("SEND")} == {(kamailio, server.port)}
        assert {tuple(relays_of(frame)) for frame in alice.received("SEND")} == {(server.port, kamailio)}
    frames = await asyncio.to_thread(dissected, wire, tmp_path)
    from_us = [f for f in frames if f.stream[0] == server.port and f.stream != to_alice]
    to_kamailio = sends([f for f in frames if f.stream[1] == kamailio] + from_us)
    assert sum(to_kamailio) > 2 * FILE_OCTETS  # one file from the server, the other from Bob
    assert max(to_kamailio) < 10_000


def start_kamailio(start: StartProgram, directory: Path, port: int, edge_port: int) -> None:
    """Start Kamailio as a relay."""
    config = directory / "kamailio.cfg"
    text = (Path(__file__).parent / "kamailio_msrp.cfg").read_text()
    config.write_text(text.replace("@PORT@", str(port)).replace("@EDGE@", str(edge_port)))
    arguments = ["kamailio", "-DD", "-E", "-f", config, "-P", directory / "kamailio.pid", "-Y", directory, "-m", "64"]
    start("kamailio", arguments).wait_ready(port)
