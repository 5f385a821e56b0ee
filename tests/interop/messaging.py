"""Chats and files between two endpoints, and Kamailio as a relay: what tests of MSRP with strangers have in common."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

from tests.interop.conftest import StartProgram
from tests.ua.msrp import HashSink, MsrpEndpoint

FILE_OCTETS = 10 * 1024 * 1024
CHAT = ["hello", "grüße, €", "two\r\n\r\nlines\r\n------ and one too few"]


def endpoint(name: str, port: int, transport: str = "tcp") -> MsrpEndpoint:
    """A user of `tests.interop.conftest` as client of the relay on a port, not connected yet."""
    return MsrpEndpoint(name, f"{name}-secret", relay=("127.0.0.1", port), transport=transport)


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


async def chat_and_files(
    alice: MsrpEndpoint,
    bob: MsrpEndpoint,
    *,
    text: tuple[MsrpEndpoint, int | None],
    binary: tuple[MsrpEndpoint, int | None],
) -> None:
    """Enrol both, let them chat, and send the two files: who sends each, and in chunks of how many octets."""
    await alice.auth()
    await bob.auth()
    await chat(alice, bob)
    for (sender, chunk_size), body, content_type in (
        (text, text_file(), "text/plain"),
        (binary, binary_file(), "application/octet-stream"),
    ):
        receiver = bob if sender is alice else alice
        await send_file(sender, receiver, body, content_type, chunk_size=chunk_size)


def start_kamailio(start: StartProgram, directory: Path, port: int, edge_port: int) -> None:
    """Start Kamailio as a relay."""
    config = directory / "kamailio.cfg"
    text = (Path(__file__).parent / "kamailio_msrp.cfg").read_text()
    config.write_text(text.replace("@PORT@", str(port)).replace("@EDGE@", str(edge_port)))
    arguments = ["kamailio", "-DD", "-E", "-f", config, "-P", directory / "kamailio.pid", "-Y", directory, "-m", "64"]
    start("kamailio", arguments).wait_ready(port)
