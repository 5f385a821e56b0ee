"""The fuzz targets without the fuzzer: every seed once, then seeds cut, glued and changed at random.

`EDGE_FUZZ_SECONDS` lets it go on for longer than the few thousand inputs of an ordinary run.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.fuzz.targets import TARGETS, seeds, try_octets

_DICTIONARY = [
    b"\r\n", b"\r\n ", b"\r\n\r\n", b"\0", b"\\", b'"', b"<", b">", b";", b",", b"@", b"%00", b"%", b"?", b":::", b"[", b"]", b"*",
    b"SIP/2.0", b";lr", b";ob", b";rport", b";received=", b";branch=z9hG4bK", b";tag=", b"Route: <sip:edge.example;lr>\r\n",
    b"Via: SIP/2.0/UDP h\r\n", b"l: 0\r\n", b"Contact: *\r\n", b"Expires: 0\r\n", b"4294967296", b"-1", b"REGISTER", b"INVITE", b"ACK",
    b"CANCEL", b"sip:bob@example.com", b"sips:", b"tel:", b"Max-Breadth: 1\r\n", b"Max-Forwards: 0\r\n", b"Require: x\r\n",
    b"Supported: path, outbound\r\n", b';reg-id=1;+sip.instance="<urn:x:1>"', b";expires=0", b";q=inf", b";maddr=", b"\xff", b"\xd9\xa1",
]  # fmt: skip


def mutate(source: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change an input in a few places."""
    for _ in range(source.randint(1, 5)):
        at = source.randint(2, max(2, len(data)))
        until = min(len(data), at + source.choice((0, 0, 1, 2, 8, 60)))
        piece = source.choice(
            (
                source.choice(_DICTIONARY),
                source.randbytes(source.randint(0, 4)),
                b"",
                data[at : at + 40],
                others[0][at : at + 80],
            )
        )
        data = data[:at] + piece + data[until:]
    return data[:8192]


@pytest.mark.requirement("SIP-DOS-01", "MSRP-SEC-10")
def test_every_seed_is_taken() -> None:
    for seed in seeds():
        try_octets(seed)


@pytest.mark.requirement("SIP-DOS-01", "MSRP-SEC-10")
@pytest.mark.parametrize("target", range(len(TARGETS)), ids=[target.__name__ for target in TARGETS])
def test_random_changes_of_seeds_are_taken(target: int) -> None:
    source = random.Random(target)
    known = [seed for seed in seeds() if seed[0] % len(TARGETS) == target]
    end = time.monotonic() + float(os.environ.get("EDGE_FUZZ_SECONDS", "0")) / len(TARGETS)
    left = 400
    while left > 0 or time.monotonic() < end:
        left -= 1
        data = mutate(source, source.choice(known), [source.choice(known)])
        try:
            try_octets(data)
        except BaseException:
            print(data)  # so that it can be put into tests/fuzz/found
            raise
