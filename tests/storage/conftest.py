"""Databases for the storage tests: SQLite files, and a PostgreSQL server of our own where its programs are installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from edge.config import Storage as StorageSettings
from edge.storage import open_storage
from edge.storage.base import BindingRow
from edge.storage.sql import SqlStorage
from tests.conftest import free_port
from tests.ua.wait import scaled, within


class Postgres:
    """A PostgreSQL server on a loopback port, with a folder of its own; `create` makes a fresh database."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="edge-postgres-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            account = pwd.getpwnam("postgres")
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        make = [programs / "initdb", "-D", self.folder / "data", "-U", "edge", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(make, check=True, capture_output=True, timeout=scaled(60), cwd=self.folder, **self._as)

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "port": self.port}
        command: list[str | Path] = [self._programs / "postgres", "-D", self.folder / "data"]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as)
        ready = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", str(int(scaled(30)))]
        while subprocess.run(ready, capture_output=True, check=False).returncode != 0:
            assert self._process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """End it at once, as a crash would for its clients."""
        assert self._process is not None
        self._process.send_signal(3)  # SIGQUIT: immediate shutdown
        self._process.wait(scaled(30))

    def create(self) -> str:
        self._count += 1
        name = f"edge{self._count}"
        url = f"postgresql://edge@127.0.0.1:{self.port}/"
        with psycopg.connect(f"{url}postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return url + name

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def start_postgres() -> Postgres:
    """Start a server of our own; skips where its programs are absent."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    programs = found[-1].parent if found else shutil.which("initdb")
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres(Path(programs) if found else Path(str(programs)).parent)
    server.start()
    return server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = start_postgres()
    yield server
    server.stop()
    server.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.interop)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").create())
    return f"sqlite:///{tmp_path}/edge.db"


Opener = Callable[..., SqlStorage]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Open storages by URL and further settings; they are closed after the test."""
    storages: list[SqlStorage] = []

    def opener(url: str, **settings: Any) -> SqlStorage:
        storage = open_storage(StorageSettings(url=url, **settings), asyncio.get_running_loop())
        assert isinstance(storage, SqlStorage)
        storages.append(storage)
        return storage

    yield opener
    for storage in storages:
        await within(asyncio.to_thread(storage.close), 30)


class Row:
    """Makes rows that expire in 2100, or as told."""

    def __call__(self, name: str = "alice", **changes: Any) -> BindingRow:
        row = BindingRow(
            aor=f"sip:{name}@example.com",
            key="<urn:uuid:1>/1",
            contact=f"<sip:{name}@192.0.2.1:5060;transport=tcp>".encode(),
            params=b';+sip.instance="<urn:uuid:1>";\xff\x00',
            path=b"<sip:token@edge.example;lr;ob>",
            call_id=b"a@192.0.2.1",
            cseq=2**32 - 1,
            instance=b"<urn:uuid:1>",
            reg_id=1,
            q=1000,
            expires_at=4102444800.5,
            flow=b"f1.token",
            refreshed_at=1700000000.25,
            user_agent=b"UA/1.0",
            epoch=2**31 - 1,
        )
        for key, value in changes.items():
            setattr(row, key, value)
        return row


@pytest.fixture
def row() -> Row:
    return Row()


class Answers:
    """Collects what a store answers; `answer` is the callback."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self._changed = asyncio.Event()

    def answer(self, value: Any) -> None:
        self.given.append(value)
        self._changed.set()

    async def get(self, count: int = 1) -> list[Any]:
        while len(self.given) < count:
            self._changed.clear()
            await within(self._changed.wait(), 20)
        return self.given


@pytest.fixture
async def answers() -> Answers:
    return Answers()
