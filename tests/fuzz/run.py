"""Fuzz what reads SIP and MSRP with atheris, guided by coverage, for EDGE_FUZZ_SECONDS (default 60).

    python -m tests.fuzz.run [options of libFuzzer]

An input that breaks something is left in tests/fuzz/found, where the ordinary tests replay it from then on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edge.sip", "edge.msrp", "edge.wsframes", "edge.demux", "edge.auth"]):
    from tests.fuzz.targets import FOUND, seeds, try_octets


def main() -> None:
    """Write the seeds down and go on until the time is over or something breaks."""
    FOUND.mkdir(exist_ok=True)
    seconds = os.environ.get("EDGE_FUZZ_SECONDS", "60")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / f"{number:04}").write_bytes(seed)
        limits = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=5", f"-artifact_prefix={FOUND}/"]
        atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], corpus], try_octets)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
