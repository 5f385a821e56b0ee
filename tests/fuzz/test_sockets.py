"""The running server takes whatever comes over a socket."""

from __future__ import annotations

import os
import random

import pytest

from tests.conftest import EdgeServerFactory
from tests.fuzz import sockets
from tests.server.agents import LOOPBACK, USERS

FRAMES = 6000


@pytest.mark.requirement("MSRP-SEC-10")
async def test_mutated_frames_do_nothing_to_the_server_and_nothing_but_what_they_may_to_others(
    edge_server: EdgeServerFactory,
) -> None:
    """`EDGE_FUZZ_FRAMES` frames, 6,000 by default; `EDGE_FUZZ_SEED` repeats them."""
    seed = int(os.environ.get("EDGE_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    frames = int(os.environ.get("EDGE_FUZZ_FRAMES", "0")) or FRAMES
    print(f"EDGE_FUZZ_SEED={seed} EDGE_FUZZ_FRAMES={frames}")
    # What the next hop has not answered is kept so long; a second, so that it is gone before memory is looked at.
    msrp = {"require_tls": False, "report_timeout": 1, "allow_targets": [f"{sockets.FAR_HOST}/32"]}
    server = edge_server(
        {"msrp": msrp, "limits": {"trusted": LOOPBACK}}, {**USERS, "frank@example.com": "frank-secret"}
    )
    print(await sockets.run(server, seed, frames))
