"""Send a file from alice to bob through the MSRP relay of a running server, and say whether it arrived.

    .venv/bin/python -m docs.examples.send_file FILE [HOST:PORT]

Both ends are the simulated endpoints of the test suite (`tests/ua`), written from the RFCs: each logs in with AUTH over
TLS and gets its Use-Path, alice sends to the path of bob, and bob puts the chunks together. A certificate that the
server made itself is not checked.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.ua.msrp import MsrpEndpoint

PASSWORDS = {"alice": "wonderland", "bob": "builder"}


async def send_file(body: bytes, relay: tuple[str, int]) -> bool:
    """Send `body` from alice to bob; True when bob has got the same octets."""
    async with (
        MsrpEndpoint("alice", PASSWORDS["alice"], relay=relay, transport="tls") as alice,
        MsrpEndpoint("bob", PASSWORDS["bob"], relay=relay, transport="tls") as bob,
    ):
        await alice.auth()
        await bob.auth()
        print("path to bob:", *alice.use_path, *bob.path)
        sent = await alice.send(alice.use_path + bob.path, body, "application/octet-stream", chunk_size=2048)
        print("answers:", *sent.statuses)
        if not sent.ok:
            return False
        received = await bob.next_message()
    print("bob has", len(received.data), "octets, the same:", received.data == body)
    return bytes(received.data) == body


def main() -> int:
    """Read the arguments; the exit status is 0 when the file arrived."""
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    host, _, port = (sys.argv[2] if len(sys.argv) == 3 else "127.0.0.1:5060").rpartition(":")
    return 0 if asyncio.run(send_file(Path(sys.argv[1]).read_bytes(), (host, int(port)))) else 1


if __name__ == "__main__":
    sys.exit(main())
