"""The `edge` command in a folder of its own: within this process (`edge`), or as a process (`edge_process`)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from edge.cli import main
from tests.conftest import ROOT
from tests.ua.wait import scaled

Command = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """Our environment with the package importable and nothing that configures the command."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_")}
    return inherited | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `edge ARGUMENTS` in an empty folder; `stdin` is text, `env` adds to the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("EDGE_CONFIG", raising=False)

    def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            status = main(arguments)
        return subprocess.CompletedProcess(["edge", *arguments], status, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture
def edge_process(tmp_path: Path) -> Command:
    """The same as a process."""

    def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge.cli", *arguments],
            cwd=tmp_path,
            env=environment() | (env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=scaled(60),
            check=False,
        )

    return run
