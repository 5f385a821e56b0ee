"""Opening a storage: which stores come of which settings, and what is said when that fails."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from edge.auth.credentials import Credential
from edge.config import Storage as StorageSettings
from edge.storage import open_storage
from edge.storage.base import PutBinding, RemoveBinding, StorageError
from edge.storage.memory import MemoryBindingStore, MemoryStorage
from edge.storage.schema import Database, binding, build_upsert, probe, subscriber
from tests.conftest import free_port
from tests.storage.conftest import Answers, Opener, Row


async def test_everything_in_memory(row: Row, answers: Answers) -> None:
    storage = open_storage(StorageSettings(url="memory:"), asyncio.get_running_loop())
    assert isinstance(storage, MemoryStorage)
    storage.users.put("alice", "example.com", Credential(b"0" * 32, None))
    storage.users.fetch("alice", "example.com", answers.answer)
    storage.users.fetch("bob", "example.com", answers.answer)
    storage.bindings.save([PutBinding(row()), RemoveBinding("a", "b")], answers.answer)
    storage.bindings.save([PutBinding(row())], None)
    assert answers.given == [Credential(b"0" * 32, None), None, None]
    assert storage.bindings.load() == []
    storage.secrets.put("key", b"\x00\xff")
    assert (storage.secrets.get("key"), storage.secrets.get("other")) == (b"\x00\xff", None)
    assert (storage.healthy, storage.last_error) == (True, "")
    storage.close()


async def test_bindings_in_memory_beside_users_in_sql(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url, location="memory:")
    assert isinstance(storage.bindings, MemoryBindingStore)
    storage.bindings.save([PutBinding(row())], answers.answer)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert await answers.get(2) == [None, None]
    assert opened(url).bindings.load() == []


async def test_secrets_are_found_again(url: str, opened: Opener) -> None:
    first = opened(url)
    assert first.secrets.get("token") is None
    first.secrets.put("token", b"old")
    first.secrets.put("token", b"\x00\xff")
    assert opened(url).secrets.get("token") == b"\x00\xff"


async def test_an_sqlite_file_is_private_durable_and_shared(tmp_path: Path, opened: Opener) -> None:
    storage = opened(f"sqlite:///{tmp_path}/edge.db")
    assert (tmp_path / "edge.db").stat().st_mode & 0o777 == 0o600
    with storage.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    relaxed = opened(f"sqlite:///{tmp_path}/edge.db", durability="relaxed")
    with relaxed.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


async def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path, opened: Opener) -> None:
    opened(f"sqlite:///{tmp_path}/edge.db").close()
    with closing(sqlite3.connect(tmp_path / "edge.db")) as connection, connection:
        connection.execute("UPDATE edge_schema SET version = 99")
    with pytest.raises(StorageError, match="the tables are of version 99, this program knows 2"):
        Database(f"sqlite:///{tmp_path}/edge.db")


async def test_tables_of_version_1_are_brought_up_to_date(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    first = opened(url)
    first.bindings.save([PutBinding(row())], answers.answer)
    assert await answers.get() == [None]
    with first.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE binding DROP COLUMN epoch")
        connection.exec_driver_sql("UPDATE edge_schema SET version = 1")
    for _ in range(2):
        assert opened(url).bindings.load() == [row(epoch=0)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("sqlite:///{folder}/none/edge.db", "No such file or directory"),
        ("sqlite://", 'an SQLite URL names a file; to keep nothing, write "memory:"'),
        ("sqlite+nodriver:///{folder}/edge.db", "not a usable URL"),
        ("postgresql+nodriver://u:hunter2@127.0.0.1/x", "not a usable URL"),
        ("postgresql://u:hunter2@127.0.0.1:notaport/x", "not a usable URL"),
        ("postgresql://u:hunter2@127.0.0.1:{port}/x", "Connection refused"),
        ("mysql://u:hunter2@127.0.0.1:{port}/x", "Connection refused"),
        ("sqlite:///{folder}/text", "file is not a database"),
    ],
)
def test_a_database_that_cannot_be_opened_says_why_in_one_line(bad: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, however long this text may become " * 10)
    url = bad.format(folder=tmp_path, port=free_port())
    with pytest.raises(StorageError) as caught:
        Database(url)
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/edge.db"
    assert probe(url).endswith("edge.db (made at the first start)")
    assert list(tmp_path.iterdir()) == []
    Database(url).close()
    before = (tmp_path / "edge.db").read_bytes()
    assert probe(url).endswith("edge.db (there)")
    assert (tmp_path / "edge.db").read_bytes() == before
    assert probe("memory:") == "in memory, nothing is kept"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("sqlite:///{folder}/none/edge.db", "is not there, and its folder cannot be written"),
        ("sqlite:///{folder}/text", "file is not a database"),
        ("postgresql://u:hunter2@127.0.0.1:{port}/x", "Connection refused"),
    ],
)
def test_a_probe_says_what_a_start_would_say(bad: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, however long this text may become " * 10)
    with pytest.raises(StorageError, match=reason):
        probe(bad.format(folder=tmp_path, port=free_port()))


@pytest.mark.interop
def test_a_probe_of_a_server_hides_the_password(postgres: object) -> None:
    url = postgres.create().replace("edge@", "edge:hunter2@")  # type: ignore[attr-defined]
    assert "hunter2" not in probe(url)
    assert probe(url).endswith("(connected, tables are made at the first start)")
    Database(url).close()
    assert probe(url).endswith("(connected)")


def test_mysql_gets_its_own_sql() -> None:
    upsert = build_upsert("mysql", binding, ["id"], ["contact"])
    assert "ON DUPLICATE KEY UPDATE contact = " in str(upsert.compile(dialect=mysql.dialect()))
    made = str(CreateTable(binding).compile(dialect=mysql.dialect()))
    assert "expires_at DOUBLE" in made  # FLOAT has 24 bits there: minutes off
    assert "contact BLOB" in made
    assert "UNIQUE (username, domain)" in str(CreateTable(subscriber).compile(dialect=mysql.dialect()))
