"""What every test folder shares.

- `requirement` marks: checked for their form, written into the JUnit properties.
- A skipped test marked `interop` fails when CI is set.
- A test that leaves a task, a socket or one of our timers behind fails.
- `edge_server` starts the real server as a process of its own.

Waits have deadlines, multiplied by the environment variable EDGE_TEST_TIMEOUT_SCALE: see `tests/ua/wait.py`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import edge
from tests.ua.wait import eventually_blocking, scaled

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_FOLDER = str(Path(edge.__file__).parents[1])  # of the sources, or of what was compiled and installed
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
REQUIREMENT_ID = re.compile(r"[A-Z]+-[A-Z0-9]+-\d+[a-z]?")

# Below the ports the kernel hands out for outgoing connections, so nobody takes one between the choice and its use.
PORTS = range(10240, 32000)


# ------------------------------------------------------------------------------------------ marks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a requirement mark without an id, or with one no table could have; pass the ids on to reports."""
    for item in items:
        for mark in item.iter_markers("requirement"):
            if not mark.args or mark.kwargs:
                raise pytest.UsageError(f"{item.nodeid}: requirement takes ids and nothing else")
            for row in mark.args:
                if not isinstance(row, str) or not REQUIREMENT_ID.fullmatch(row):
                    raise pytest.UsageError(f"{item.nodeid}: not a requirement id: {row!r}")
                item.user_properties.append(("requirement", row))


def pytest_collection_finish() -> None:
    """What is alive now stays for the whole run: keep it out of the collections after each test."""
    gc.collect()
    gc.freeze()


def _fail_for_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"an interop test was skipped, and CI is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of an interop test into a failure when CI is set."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("interop"):
        _fail_for_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module of tests/interop that skips itself as a whole."""
    report = yield
    if IN_CI and report.skipped and "interop" in collector.path.parts:
        _fail_for_skip(report)
    return report


# ------------------------------------------------------------------------------------------ leaks


def _is_ours(handle: asyncio.TimerHandle) -> bool:
    """Whether a timer runs code of this repository; a library's own timers are its business."""
    callback: Any = getattr(handle, "_callback", None)
    while isinstance(callback, functools.partial):
        callback = callback.func
    module = getattr(callback, "__module__", None) or type(getattr(callback, "__self__", None)).__module__
    return module.split(".")[0] in ("edge", "tests")


def _left_behind(loop: asyncio.AbstractEventLoop, known: set[asyncio.Task[Any]]) -> list[str]:
    """What still is alive on a loop: tasks, and on asyncio's own loops also sockets and timers."""
    left = [f"task {task!r}" for task in asyncio.all_tasks(loop) - known if not task.done()]
    selector = getattr(loop, "_selector", None)
    if selector is not None and selector.get_map() is not None:
        inner: Any = loop
        wakeup, transports = inner._ssock.fileno(), inner._transports
        left += [f"socket {transports.get(fd) or fd!r}" for fd in selector.get_map() if fd != wakeup]
    for timer in getattr(loop, "_scheduled", ()):
        if not timer.cancelled() and _is_ours(timer):
            left.append(f"timer {timer!r}")
    return left


@pytest.fixture
async def _loop_is_left_clean() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    known = asyncio.all_tasks(loop)
    yield
    if (task := asyncio.current_task()) is not None:
        known.add(task)
    # What was cancelled or closed in the last turn needs a few more to be gone; TLS says goodbye over the wire.
    deadline = loop.time() + scaled(1.0)
    while (left := _left_behind(loop, known)) and loop.time() < deadline:
        await asyncio.sleep(0.005)
    if left:
        pytest.fail("left behind by the test:\n  " + "\n  ".join(left))


def _is_async(request: pytest.FixtureRequest) -> bool:
    return inspect.iscoroutinefunction(getattr(request, "function", None))


@pytest.fixture(autouse=True)
def _garbage_is_collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the loop is closed: an unclosed socket or transport warns when it is collected, and that is an error."""
    yield
    if _is_async(request):
        gc.collect()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(_garbage_is_collected: None, request: pytest.FixtureRequest) -> None:
    """Around every other fixture of an async test, so that what those close in time is no leak."""
    if _is_async(request):
        request.getfixturevalue("_loop_is_left_clean")


# ------------------------------------------------------------------------------------------ ports


def free_port(ports: Sequence[int] = PORTS, host: str = "127.0.0.1") -> int:
    """A port of `host` that is free for UDP and TCP alike."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(200):
        port = random.choice(ports)
        with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family, socket.SOCK_STREAM) as tcp:
            try:
                udp.bind((host, port))
                tcp.bind((host, port))
            except OSError:
                continue
            return port
    pytest.fail(f"no port of {host} is free for UDP and TCP")


# ------------------------------------------------------------------------------------------ the server


class Metrics:
    """One scrape of /metrics."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.families = {
            family.name for family in families
        }  # counters without `_total`; also those without a sample yet
        self.samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` (with `_total` where it is a counter) whose labels include `labels`."""
        wanted = labels.items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())

    def names(self) -> set[str]:
        """The names of all samples."""
        return {s.name for s in self.samples}


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def to_toml(settings: Mapping[str, Any]) -> str:
    """Write settings as TOML: one line for a plain key, a table for a section, an array of tables for [[listen]]."""
    plain, tables = [], []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{key}]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in value.items()))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                tables.append(f"\n[[{key}]]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in entry.items()))
        else:
            plain.append(f"{key} = {_toml_value(value)}\n")
    return "".join(plain + tables)


class EdgeServer:
    """A server process in a folder of its own.

    `port` is the first listener's on 127.0.0.1, UDP and TCP; `admin_url` has no slash at its end; `directory` is the
    process's working folder and holds edge.toml, edge.db, server.log and the certificate the server made.
    `expect_traceback` is for the test that provokes one on purpose (an operator's hook that raises).
    """

    def __init__(
        self, directory: Path, config: str | Mapping[str, Any], *, port: int | None = None, loop: str | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.admin_port = free_port()
        self.config_path = directory / "edge.toml"
        self.log_path = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.expect_traceback = False
        self._environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_FOLDER, str(ROOT)]))
        if loop is not None:
            self._environment["EDGE_LOOP"] = loop
        self.write_config(config)

    def write_config(self, config: str | Mapping[str, Any]) -> None:
        """Write edge.toml from TOML or a mapping; what it leaves out of address, storage and admin is filled in.

        `$PORT`, `$ADMIN_PORT` and `$DIR` in a TOML text are replaced. Everything else keeps the server's own defaults.
        """
        if isinstance(config, str):
            for mark, value in (("$PORT", self.port), ("$ADMIN_PORT", self.admin_port), ("$DIR", self.directory)):
                config = config.replace(mark, str(value))
            config = tomllib.loads(config)
        settings: dict[str, Any] = {"domains": ["example.com"], "listen": [{"bind": f"127.0.0.1:{self.port}"}]}
        settings |= {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
        settings.setdefault("storage", {}).setdefault("url", f"sqlite:///{self.directory}/edge.db")
        settings.setdefault("admin", {}).setdefault("bind", f"127.0.0.1:{self.admin_port}")
        self.admin_url = f"http://{settings['admin']['bind']}"
        self._admin_token = settings["admin"].get("token", "")
        self.config_path.write_text(to_toml(settings))

    def run(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `edge ARGUMENTS` in the server's folder and return what it printed; with `check` it must exit 0."""
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", *arguments],
            cwd=self.directory,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=scaled(60),
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"edge {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def add_user(self, address: str, password: str) -> None:
        """Add one user (`alice@example.com`) with the command."""
        self.run("user", "add", address, "--password-stdin", "--config", str(self.config_path), stdin=f"{password}\n")

    def import_users(self, users: Mapping[str, str]) -> None:
        """Add many users, address → password, with one command."""
        path = self.directory / "users.txt"
        path.write_text("".join(f"{address}:{password}\n" for address, password in users.items()))
        self.run("user", "import", str(path), "--config", str(self.config_path))

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge.cli", "serve", "--config", str(self.config_path)],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually_blocking(self._ready_or_dead, 30, what="200 from /readyz")
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode} at its start:\n{self.log_text()}")

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.admin_status("/readyz") == 200

    def admin_status(self, path: str) -> int:
        """The status of a GET to the admin listener; 0 while nobody answers there."""
        try:
            with self._get(path) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def admin_get(self, path: str) -> str:
        """The body of a GET to the admin listener."""
        with self._get(path) as response:
            return str(response.read().decode())

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._admin_token}"} if self._admin_token else {}
        request = urllib.request.Request(self.admin_url + path, headers=headers)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=scaled(5))

    def metrics(self) -> Metrics:
        """Scrape /metrics now."""
        return Metrics(self.admin_get("/metrics"))

    def log_text(self) -> str:
        """Everything the process printed so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, wait for the end, and return the exit status; fail the test if it does not end in time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(scaled(timeout))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not end within {scaled(timeout):g} s of SIGTERM:\n{self.log_text()[-4000:]}")

    def restart(self) -> None:
        """Stop and start again: same folder, same ports."""
        self.stop()
        self.start()

    def finish(self) -> None:
        """End the process without waiting for a drain, and fail the test if the log holds a traceback."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                self.stop()  # the second SIGTERM stops at once
        if "Traceback (most recent call last)" in (text := self.log_text()) and not self.expect_traceback:
            pytest.fail(f"the server's log holds a traceback:\n{text[-8000:]}")


EdgeServerFactory = Callable[..., EdgeServer]


@pytest.fixture
def edge_server(tmp_path: Path) -> Iterator[EdgeServerFactory]:
    """Start real servers: `edge_server(config, users={"alice@example.com": "secret"}, loop="asyncio", port=5070)`.

    `config` is TOML or a mapping and may be left out; `users` are imported before the start; `loop` names the event loop
    of the process ("uvloop", "asyncio"; default: the server's own choice); `started=False` leaves the start to the test.
    """
    servers: list[EdgeServer] = []

    def make(
        config: str | Mapping[str, Any] = "",
        users: Mapping[str, str] | None = None,
        *,
        loop: str | None = None,
        port: int | None = None,
        started: bool = True,
    ) -> EdgeServer:
        server = EdgeServer(tmp_path / f"edge-{len(servers)}", config, port=port, loop=loop)
        servers.append(server)
        if users:
            server.import_users(users)
        if started:
            server.start()
        return server

    yield make
    failures = []
    for server in servers:
        try:
            server.finish()
        except pytest.fail.Exception as failure:
            failures.append(str(failure))
    if failures:
        pytest.fail("\n".join(failures))
