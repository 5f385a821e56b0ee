"""The checks of tests/conftest.py themselves: each must turn red for what it is there to catch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port, to_toml
from tests.ua.wait import scaled

CASES = """
import asyncio, os, socket, sys
import pytest

async def test_clean():
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    task = asyncio.create_task(asyncio.sleep(60))
    server.close()
    task.cancel()

kept = []

async def test_task_left():
    kept.append(asyncio.create_task(asyncio.sleep(60)))

async def test_listener_left():
    kept.append(await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0))

def on_time():
    pass

on_time.__module__ = "edge.timers"

async def test_timer_left():
    asyncio.get_running_loop().call_later(60, on_time)

async def test_udp_left():
    await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))

async def test_after_udp_left():
    "Takes the warning about the transport that the traceback of the one before kept alive."

def test_socket_left():
    socket.socket()

@pytest.mark.interop
def test_interop_skipped():
    pytest.skip("no such program")

def test_plain_skip():
    pytest.skip("not here")

ROWS = ("SIP-MSG-01", "OB-TOK-02b")

@pytest.mark.requirement(*ROWS)
def test_claim():
    pass
"""


def run_cases(directory: Path, source: str, **environment: str) -> tuple[int, dict[str, str], str]:
    """Run `source` as a test module beside a copy of the conftest; outcome by test name."""
    shutil.copy(ROOT / "tests" / "conftest.py", directory / "conftest.py")
    (directory / "test_cases.py").write_text(source)
    shutil.copy(ROOT / "pyproject.toml", directory)
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    variables |= {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", "test_cases.py"],
        cwd=directory,
        env=variables,
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    outcomes: dict[str, str] = {}
    report = directory / "report.xml"
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        worst = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
        if outcomes.get(case.attrib["name"], "passed") == "passed":
            outcomes[case.attrib["name"]] = worst
    return done.returncode, outcomes, done.stdout + done.stderr


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    _, outcomes, output = run_cases(tmp_path, CASES, EDGE_TEST_TIMEOUT_SCALE="0.1")
    del outcomes["test_after_udp_left"]
    assert outcomes == {
        "test_clean": "passed",
        "test_task_left": "error",
        "test_listener_left": "error",
        "test_udp_left": "error",
        "test_timer_left": "error",
        "test_socket_left": "failure",
        "test_interop_skipped": "skipped",
        "test_plain_skip": "skipped",
        "test_claim": "passed",
    }, output
    for what in ("task <Task", "socket <_SelectorDatagramTransport", "timer <TimerHandle"):
        assert re.search(rf"left behind by the test:\nE +{what}", output), output
    assert (tmp_path / "report.xml").read_text().count('name="requirement"') == 2


def test_skipped_interop_test_fails_with_ci_set(tmp_path: Path) -> None:
    _, outcomes, output = run_cases(tmp_path, CASES, CI="true", EDGE_TEST_TIMEOUT_SCALE="0.1")
    assert outcomes["test_interop_skipped"] == "failure", output
    assert outcomes["test_plain_skip"] == "skipped", output


def test_interop_module_that_skips_itself_fails_with_ci_set(tmp_path: Path) -> None:
    directory = tmp_path / "interop"
    directory.mkdir()
    source = "import pytest\npytest.importorskip('no_such_module_here')\n"
    assert run_cases(directory, source, CI="true")[0] != 0
    assert "no_such_module_here" in run_cases(directory, source, CI="true")[2]


@pytest.mark.parametrize("mark", ["", "'sip-msg-1'", "'SIP-MSG'", "7"])
def test_malformed_requirement_mark_is_refused(tmp_path: Path, mark: str) -> None:
    source = f"import pytest\n@pytest.mark.requirement({mark})\ndef test_x():\n    pass\n"
    status, _, output = run_cases(tmp_path, source)
    assert status == pytest.ExitCode.USAGE_ERROR, output


def test_settings_are_written_as_toml() -> None:
    settings = {
        "domains": ["example.com"],
        "listen": [{"bind": "[::1]:5060", "transports": ["udp"]}, {"bind": "127.0.0.1:5062"}],
        "auth": {"required": False, "nonce_lifetime": 1.5},
        "policy": {"module": 'a"b\\ü'},
        "tables": [{"inner": {"x": [1, {"y": 2}]}}],
    }
    assert tomllib.loads(to_toml(settings)) == settings


def test_free_port_is_free_for_both() -> None:
    assert free_port() in range(10240, 32000)
    assert free_port(range(5100, 9900), host="::1") in range(5100, 9900)
