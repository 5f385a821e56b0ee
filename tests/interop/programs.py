"""Child processes with a log, a deadline and an end: what the interop tests drive other people's programs with."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.ua.wait import eventually_blocking, scaled

_SHOWN = 6000  # octets at the end of a log that go into the report of a failed test


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test, with the reason, where one of these programs is not installed."""
    missing = [name for name in names if find_program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def find_program(name: str) -> str | None:
    """The path of a program, also where Debian puts servers (`/usr/sbin` is not in every user's PATH)."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


class Program:
    """One process. Its output goes to `log_path`; `log_text` is what it said so far. Every `*.log` in its folder is shown.

    The process leads a group of its own, which ends as a whole: Kamailio and HAProxy have children.
    """

    def __init__(
        self, name: str, arguments: Sequence[str | Path], directory: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.directory = directory
        self.log_path = directory / f"{name}.log"
        path = find_program(str(arguments[0]))
        assert path is not None, f"{arguments[0]} is not installed"
        self.command = [path, *map(str, arguments[1:])]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=directory,
                env={**os.environ, "LC_ALL": "C", "HOME": str(directory), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log_text(self) -> str:
        """Everything the process printed so far."""
        return self.log_path.read_text(errors="replace")

    def report(self) -> str:
        """The command, how it ended, and the end of its logs."""
        status = self.process.poll()
        state = "running" if status is None else f"exit {status}"
        written = [path for path in sorted(self.directory.glob("*.log")) if path != self.log_path]
        others = "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-_SHOWN:]}" for path in written)
        return f"$ {' '.join(self.command)}\n[{state}]\n{self.log_text()[-_SHOWN:]}{others}"

    def wait_for(self, predicate: Callable[[], object], seconds: float = 10.0, *, what: str) -> None:
        """Poll until the predicate is true; fail at once when the process has ended before."""
        eventually_blocking(
            lambda: predicate() or self.process.poll() is not None, seconds, what=f"{self.name}: {what}"
        )
        if not predicate():
            pytest.fail(f"{self.name} ended before {what}\n{self.report()}")

    def wait_ready(self, port: int, host: str = "127.0.0.1") -> None:
        """Wait until it accepts TCP connections."""
        self.wait_for(lambda: accepts(port, host), what=f"listening on port {port}")

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end in {scaled(seconds):g} s\n{self.report()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process and its children; kill what does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(scaled(5))
            except subprocess.TimeoutExpired:
                self._kill()
        self._kill()
        self.process.wait()

    def _kill(self) -> None:
        """SIGKILL to whatever is left of the group, which only holds what this process started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def udp_bound(port: int) -> bool:
    """Whether somebody on this machine holds a UDP socket on that port."""
    ports = [line.split()[1].rpartition(":")[2] for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return f"{port:04X}" in ports


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
