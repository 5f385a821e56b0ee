"""A short run of what `make chaos` does for ten minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.chaos import accounting
from tests.chaos.world import Life
from tests.conftest import IN_CI, PACKAGE_FOLDER, ROOT
from tests.ua.wait import scaled

SECONDS = "20"


def can_make_namespaces() -> bool:
    """Try it: root in a container may not."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nft") is None:
        return False
    name = f"edge-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, timeout=20).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)
    return made


@pytest.mark.slow
@pytest.mark.requirement("OB-FAIL-08")
def test_rfc5626_every_call_flow_and_event_is_accounted_for_while_edges_and_registrar_are_killed_and_cut_off() -> None:
    if not IN_CI and not can_make_namespaces():
        pytest.skip("needs root, ip, nft, and the right to make network namespaces")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([PACKAGE_FOLDER, str(ROOT)]))
    command = [sys.executable, "-m", "tests.chaos.run", "--seconds", SECONDS, "--brief"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=scaled(400))
        finally:
            process.terminate()  # it removes its namespaces
    assert process.returncode == 0, output
    assert output.endswith("all accounted for\n")
    steady = re.search(r"^calls: (\d+), of which nothing was in the way of (\d+)$", output, re.MULTILINE)
    assert steady is not None, output
    assert int(steady[2]) > 0, output


# -- the account itself: it must see what is not there, and what is there twice


def told(*events: tuple[str, str], first: int = 1) -> Life:
    """A process that told of these (event, flow)."""
    process = subprocess.Popen(["true"])
    process.wait()
    life = Life("edge1", 0, process)
    for number, (name, flow) in enumerate(events, first):
        kind, _, after = name.partition(" ")
        life.events.append((0.0, {"event": kind, "flow": flow, "id": f"boot-{number}", "after": after}))
    return life


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([("flow.up", "1"), ("flow.failed", "1")], 0),
        ([("flow.up", "1"), ("flow.suspect", "1"), ("flow.recovered suspect", "1"), ("flow.failed", "1")], 0),
        ([("flow.up", "1"), ("flow.failed", "1"), ("flow.recovered failed", "1"), ("flow.failed", "1")], 0),
        ([("flow.up", "1"), ("flow.failed", "1"), ("flow.recovered suspect", "1")], 1),
        ([("flow.up", "1"), ("flow.failed", "1"), ("flow.failed", "1")], 1),
        ([("flow.up", "1"), ("flow.up", "1"), ("flow.failed", "1")], 1),
        ([("flow.failed", "1")], 1),
        ([("flow.replaced", "1")], 1),
    ],
)
def test_the_account_sees_what_is_told_twice_and_what_never_was(events: list[tuple[str, str]], wrong: int) -> None:
    assert len(accounting.flows_of(told(*events))[1]) == wrong


def test_the_account_sees_a_gap() -> None:
    assert accounting.check_events(told(("flow.up", "1"))) == []
    assert accounting.check_events(told(("flow.up", "1"), first=2)) == ["edge1.0: ids are not in a row"]
