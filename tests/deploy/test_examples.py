"""What the README has people type is there and works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.config import load_settings
from tests.conftest import ROOT, EdgeServerFactory
from tests.ua.wait import scaled

README = (ROOT / "README.md").read_text()


def test_the_readme_sends_a_file(edge_server: EdgeServerFactory, tmp_path: Path) -> None:
    added = re.findall(r"edge user add (\S+)@localhost --password (\S+)", README)
    assert dict(added).keys() == {"alice", "bob"}
    assert "python -m docs.examples.send_file README.md" in README
    server = edge_server({"domains": ["localhost"]}, users={f"{user}@localhost": password for user, password in added})
    done = subprocess.run(
        [sys.executable, "-m", "docs.examples.send_file", "README.md", f"127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=scaled(60),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bob has {len(README.encode())} octets, the same: True" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").rglob("*.toml")), ids=lambda path: path.name)
def test_example_configurations_can_be_used(path: Path) -> None:
    settings = load_settings(path)
    assert settings.domains == ("example.com",)
    assert settings.role == {"roles/edge.toml": "edge", "roles/registrar.toml": "registrar"}.get(
        str(path.relative_to(ROOT / "deploy")), "single"
    )


def test_pages_the_readme_leads_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
