"""deploy/systemd/edge.service: what systemd itself says of it, and the promises the server makes to it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.ua.wait import scaled

UNIT = ROOT / "deploy" / "systemd" / "edge.service"


def settings(name: str) -> list[str]:
    """The values of every line `name=value` of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    unit = tmp_path / "edge.service"
    # The program is not installed where the tests run; everything else is checked as it stands.
    unit.write_text(UNIT.read_text().replace("/opt/edge/.venv/bin/edge", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_reload_checks_first_and_then_sends_hangup() -> None:
    check, hangup = settings("ExecReload")
    assert check == "/opt/edge/.venv/bin/edge check --config /etc/edge/edge.toml"
    assert hangup == "/bin/kill -HUP $MAINPID"


def test_stop_leaves_time_to_drain_and_bad_configuration_is_not_retried() -> None:
    assert settings("KillSignal") == ["SIGTERM"]
    assert int(settings("TimeoutStopSec")[0]) > 10
    assert settings("RestartPreventExitStatus") == ["2"]


def test_unit_may_bind_low_ports_and_nothing_more() -> None:
    assert settings("CapabilityBoundingSet") == settings("AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
    assert settings("StateDirectory") == ["edge"]
    assert settings("WorkingDirectory") == ["/var/lib/edge"]
