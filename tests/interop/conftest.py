"""Starts programs for the tests of this folder, ends them, and shows their logs where a test failed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.interop.capture import Capture, can_capture
from tests.interop.programs import Program

_STARTED = pytest.StashKey[list[Program]]()
_SERVERS = pytest.StashKey[list[EdgeServer]]()

StartProgram = Callable[..., Program]

LOOPBACK = ["127.0.0.0/8"]
USERS = {f"{name}@example.com": f"{name}-secret" for name in ("alice", "bob", "carol", "dave")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what every program printed behind the message of a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"{program.name}", program.report()) for program in item.stash.get(_STARTED, [])]
        report.sections += [("edge", server.log_text()[-6000:]) for server in item.stash.get(_SERVERS, [])]
    return report


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartProgram]:
    """Start programs: `start("sipp", [arguments])`, each in a folder of its own, ended after the test, newest first."""
    programs: list[Program] = []
    request.node.stash[_STARTED] = programs

    def make(name: str, arguments: list[Any], directory: Path | None = None, **options: Any) -> Program:
        program = Program(name, arguments, directory or tmp_path / f"{len(programs)}-{name}", **options)
        programs.append(program)
        return program

    yield make
    for program in reversed(programs):
        program.stop()


@pytest.fixture
def edge(request: pytest.FixtureRequest, edge_server: EdgeServerFactory) -> Callable[..., EdgeServer]:
    """Start a server with `USERS` that may send to loopback addresses; sections given are merged into that."""
    servers: list[EdgeServer] = []
    request.node.stash[_SERVERS] = servers

    def make(*, port: int | None = None, **sections: Any) -> EdgeServer:
        config: dict[str, Any] = {
            "sip": {"allow_targets": LOOPBACK},
            "msrp": {"allow_targets": LOOPBACK, "require_tls": False},
            "limits": {"trusted": LOOPBACK},
        }
        for name, values in sections.items():
            config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
        server = edge_server(config, USERS, port=port)
        servers.append(server)
        return server

    return make


@pytest.fixture
def capture(start: StartProgram, tmp_path: Path) -> Callable[[str], Capture]:
    """Capture what passes the loopback interface from now on: `capture("tcp port 5070")`."""
    if not can_capture():
        pytest.skip("dumpcap and tshark are not installed, or may not capture")

    def make(filter_text: str) -> Capture:
        path, mark_port = tmp_path / "wire.pcap", free_port()
        wanted = f"({filter_text}) or udp port {mark_port}"
        return Capture(
            start("dumpcap", ["dumpcap", "-P", "-q", "-i", "lo", "-B", "256", "-f", wanted, "-w", path]),
            path,
            mark_port,
        )

    return make
