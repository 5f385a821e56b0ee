"""docs/policy.md: what it has people type works as it says, and the calls it names exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edge.policy
from edge.msrp.uri import MsrpUri
from edge.policy import AddressList, DomainList, FloodDetector, MethodRates, ScannerList
from tests.conftest import PACKAGE_FOLDER, ROOT, free_port
from tests.ua.wait import scaled

GUIDE = (ROOT / "docs" / "policy.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next of its level."""
    return GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_first_policy_can_be_typed_in(tmp_path: Path) -> None:
    text = section("A first policy")
    port, admin = free_port(), free_port()
    toml = blocks("toml", text)[0].replace(":5060", f":{port}") + f'\n[admin]\nbind = "127.0.0.1:{admin}"\n'
    (tmp_path / "edge.toml").write_text(toml)
    (tmp_path / "mypolicy.py").write_text(blocks("python", text)[0])
    shutil.copy(ROOT / "README.md", tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, arguments in (("edge", "-m edge.cli "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (folder / name).chmod(0o755)
    # Where people wait a moment, the test waits for what they wait for; and its ports are free ones.
    replaced = {
        "sleep 3": f"until curl -fs http://127.0.0.1:{admin}/readyz; do sleep 0.1; done",
        "sleep 1": "until grep -q 'configuration reloaded' server.log; do sleep 0.1; done",
        "--config edge.toml &": "--config edge.toml > server.log 2>&1 &",
        "send_file README.md": f"send_file README.md 127.0.0.1:{port}",
        ":9060": f":{admin}",
    }
    script = "trap 'kill $server' EXIT\n" + "".join(blocks("sh", text))
    for old, new in replaced.items():
        assert old in script
        script = script.replace(old, new)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{PACKAGE_FOLDER}:{ROOT}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert re.search(r"^answers:( 413)+$", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert f"bob has {len((ROOT / 'README.md').read_bytes())} octets, the same: True" in done.stdout
    assert re.search(r'^edge_policy_counts_total\{label="send"\} \d+', done.stdout, re.MULTILINE)


@pytest.mark.parametrize("code", [block for block in blocks("python", GUIDE) if "sip_edge" not in block])
def test_python_in_the_guide_can_be_loaded(code: str, tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").touch()
    names: dict[str, object] = {}
    exec(compile(code.replace("/etc/edge/blocked.txt", str(tmp_path / "blocked.txt")), "guide", "exec"), names)
    assert issubclass(names["MyPolicy"], edge.policy.Policy)  # type: ignore[arg-type]


def test_every_call_in_the_table_for_kamailio_exists() -> None:
    kinds = [getattr(edge.policy, name) for name in dir(edge.policy) if name[0].isupper()]
    kinds += [AddressList, DomainList, FloodDetector, MethodRates, ScannerList, MsrpUri]
    known = {name for kind in kinds for name in dir(kind)} | set(dir(edge.policy))
    rows = re.findall(r"^\| `?[^|]+ \| ([^|]+) \|$", section("From Kamailio, line by line"), re.MULTILINE)
    assert len(rows) > 30
    named = {
        word for row in rows for code in re.findall(r"`([^`]+)`", row) for word in re.findall(r"^([a-z_]+)\b", code)
    }
    outside = {
        "logging",
        "datetime",
        "domains",
        "limits",
        "sip",
        "outbound",
        "accounting",
        "auth",
        "hooks",
        "self",
        "async",
        "return",
    }
    assert named - known - outside == set()
