"""Bindings over a restart: what was acknowledged is there, and nothing waits for the disk on the loop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, text

from edge.storage import sql
from edge.storage.base import PutBinding, RemoveBinding, StorageError
from edge.storage.schema import Database
from edge.storage.sql import SqlBindingStore, SqlStorage
from tests.conftest import ROOT
from tests.storage.conftest import Answers, Opener, Postgres, Row
from tests.ua.wait import eventually, scaled


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other connection from writing for a while."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def count_commits(storage: SqlStorage) -> list[int]:
    commits: list[int] = []
    event.listen(storage.database.engine, "commit", lambda connection: commits.append(1))
    return commits


async def test_what_was_saved_is_loaded_again(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    first, second = row("alice"), row("bob", key="sip:bob@192.0.2.9", reg_id=0, q=333)
    storage = opened(url)
    storage.bindings.save([PutBinding(first), PutBinding(second)], answers.answer)
    assert await answers.get() == [None]
    assert sorted(opened(url).bindings.load(), key=lambda item: item.aor) == [first, second]


async def test_a_row_is_replaced_and_removed_by_its_names(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    storage.bindings.save([PutBinding(row("alice")), PutBinding(row("alice", key="2"))], answers.answer)
    await answers.get(1)
    storage.bindings.save([PutBinding(row("alice", cseq=7))], answers.answer)
    storage.bindings.save([RemoveBinding("sip:alice@example.com", "2")], answers.answer)
    storage.bindings.save([RemoveBinding("sip:alice@example.com", "never there")], answers.answer)
    assert await answers.get(4) == [None] * 4
    assert storage.bindings.load() == [row("alice", cseq=7)]


async def test_the_last_change_of_a_row_wins(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    remove = RemoveBinding("sip:alice@example.com", row().key)
    storage.bindings.save([PutBinding(row()), remove, PutBinding(row(cseq=5))], answers.answer)
    storage.bindings.save([PutBinding(row("bob"))], None)
    storage.bindings.save([RemoveBinding("sip:bob@example.com", row().key)], answers.answer)
    await answers.get(2)
    assert storage.bindings.load() == [row(cseq=5)]


async def test_names_that_differ_only_in_case_are_two_rows(
    url: str, opened: Opener, row: Row, answers: Answers
) -> None:
    storage = opened(url)
    storage.bindings.save([PutBinding(row(key="sip:A@h")), PutBinding(row(key="sip:a@h" + "x" * 2000))], answers.answer)
    assert await answers.get() == [None]
    assert len(storage.bindings.load()) == 2


async def test_answers_come_on_the_loop_and_not_before_save_returns(
    url: str, opened: Opener, row: Row, answers: Answers
) -> None:
    threads = []
    storage = opened(url)
    storage.bindings.save(
        [PutBinding(row())], lambda error: (threads.append(threading.get_ident()), answers.answer(error))
    )
    assert answers.given == []
    await answers.get()
    assert threads == [threading.get_ident()]


async def test_what_waits_is_committed_together(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    commits = count_commits(storage)
    for number in range(1000):
        storage.bindings.save([PutBinding(row(f"user{number}"))], answers.answer)
    assert set(await answers.get(1000)) == {None}
    assert len(commits) <= 50
    assert len(storage.bindings.load()) == 1000


async def test_an_acknowledged_save_waits_for_its_commit(
    tmp_path: Path, opened: Opener, row: Row, answers: Answers
) -> None:
    storage = opened(f"sqlite:///{tmp_path}/edge.db")
    with locked(tmp_path / "edge.db"):
        storage.bindings.save([PutBinding(row())], answers.answer)
        await eventually(lambda: len(storage.bindings._mailbox) == 0)
        assert answers.given == []
    assert await answers.get() == [None]


async def test_a_relaxed_save_is_answered_at_once_and_written_later(
    tmp_path: Path, opened: Opener, row: Row, answers: Answers
) -> None:
    storage = opened(f"sqlite:///{tmp_path}/edge.db", durability="relaxed")
    with locked(tmp_path / "edge.db"):
        storage.bindings.save([PutBinding(row())], answers.answer)
        assert answers.given == [None]
        with closing(sqlite3.connect(tmp_path / "edge.db")) as reader:
            assert reader.execute("SELECT count(*) FROM binding").fetchone() == (0,)
    await eventually(lambda: storage.bindings.load() == [row()])


async def test_a_full_queue_answers_with_an_error_at_once(tmp_path: Path, row: Row, answers: Answers) -> None:
    database = Database(f"sqlite:///{tmp_path}/edge.db")
    store = SqlBindingStore(database, asyncio.get_running_loop(), limit=3)
    with locked(tmp_path / "edge.db"):
        store.save([PutBinding(row("first"))], answers.answer)
        await eventually(lambda: len(store._mailbox) == 0)
        for number in range(3):
            store.save([PutBinding(row(f"user{number}"))], answers.answer)
        assert answers.given == []
        store.save([PutBinding(row("too many"))], answers.answer)
        assert [str(error) for error in answers.given] == ["the storage queue is full"]
    assert (await answers.get(5))[1:] == [None] * 4
    await asyncio.to_thread(store.close)
    database.close()


async def test_a_closed_store_answers_with_an_error(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    storage.close()
    storage.bindings.save([PutBinding(row())], answers.answer)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert [type(error) for error in answers.given] == [StorageError, StorageError]


async def test_close_writes_what_waits(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    for number in range(100):
        storage.bindings.save([PutBinding(row(f"user{number}"))], answers.answer)
    storage.close()
    assert await answers.get(100) == [None] * 100
    assert len(opened(url).bindings.load()) == 100


async def test_a_row_the_database_refuses_fails_alone(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage, bad = opened(url), Answers()
    for number in range(10):
        storage.bindings.save([PutBinding(row(f"user{number}"))], answers.answer)
        if number == 5:
            storage.bindings.save([PutBinding(row("good twin")), PutBinding(row("bad", cseq=2**70))], bad.answer)
            storage.bindings.save([PutBinding(row("worse", contact=None))], None)
    assert await answers.get(10) == [None] * 10
    assert isinstance((await bad.get())[0], StorageError)
    assert {item.aor for item in storage.bindings.load()} == {f"sip:user{number}@example.com" for number in range(10)}
    assert storage.healthy


async def test_expired_rows_are_gone_after_a_start(url: str, opened: Opener, row: Row, answers: Answers) -> None:
    storage = opened(url)
    storage.bindings.save([PutBinding(row("old", expires_at=time.time() - 1)), PutBinding(row("new"))], answers.answer)
    await answers.get()
    assert opened(url).bindings.load() == [row("new")]
    with storage.database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM binding")) == 1


async def test_expired_rows_are_pruned_while_running(
    url: str, opened: Opener, row: Row, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "PRUNE_EVERY_S", 0.05)
    storage = opened(url)
    storage.bindings.save([PutBinding(row("old", expires_at=time.time() - 1))], answers.answer)
    await answers.get()

    def rows() -> int:
        with storage.database.engine.connect() as connection:
            return int(connection.scalar(text("SELECT count(*) FROM binding")) or 0)

    await eventually(lambda: rows() == 0)


async def test_an_outage_is_answered_seen_and_survived(
    tmp_path: Path, opened: Opener, row: Row, answers: Answers
) -> None:
    storage = opened(f"sqlite:///{tmp_path}/edge.db")
    assert (storage.healthy, storage.last_error) == (True, "")
    with storage.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE binding RENAME TO elsewhere"))
    storage.bindings.save([PutBinding(row("waited for"))], answers.answer)
    storage.bindings.save([PutBinding(row("not waited for"))], None)
    assert "no such table: binding" in str((await answers.get())[0])
    assert not storage.healthy
    assert "no such table" in storage.last_error
    with storage.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO binding"))
    await eventually(lambda: storage.healthy, 20)
    await eventually(lambda: storage.bindings.load() == [row("not waited for")], 20)


@pytest.mark.interop
async def test_a_database_server_that_goes_away_and_comes_back(
    postgres: Postgres, opened: Opener, row: Row, answers: Answers
) -> None:
    storage = opened(postgres.create())
    storage.bindings.save([PutBinding(row("before"))], answers.answer)
    assert await answers.get(1) == [None]
    postgres.stop()
    storage.bindings.save([PutBinding(row("during"))], answers.answer)
    storage.bindings.save([RemoveBinding("sip:before@example.com", row().key)], None)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert [type(answer) for answer in (await answers.get(3))[1:]] == [StorageError, StorageError]
    assert not storage.healthy
    assert storage.last_error
    postgres.start()
    await eventually(lambda: storage.healthy, 30)
    storage.bindings.save([PutBinding(row("after"))], answers.answer)
    assert (await answers.get(4))[3] is None
    assert [item.aor for item in storage.bindings.load()] == ["sip:after@example.com"]


WRITER = """
import asyncio, itertools, sys
from edge.config import Storage
from edge.storage import open_storage
from edge.storage.base import PutBinding
from tests.storage.conftest import Row

async def main() -> None:
    storage = open_storage(Storage(url=sys.argv[1]), asyncio.get_running_loop())
    def save(number: int) -> None:
        def done(error: Exception | None) -> None:
            assert error is None
            print(number, flush=True)
            save(next(numbers))
        storage.bindings.save([PutBinding(Row()(f"user{number}"))], done)
    numbers = itertools.count()
    for _ in range(20):
        save(next(numbers))
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_every_acknowledged_binding_survives_kill_9(url: str, opened: Opener) -> None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(scaled(60), process.kill)
        watchdog.start()
        acknowledged = [process.stdout.readline() for _ in range(300)]
        process.kill()
        acknowledged += process.stdout.readlines()
        watchdog.cancel()
    numbers = {line.strip() for line in acknowledged if line.endswith("\n")}
    assert len(numbers) >= 300
    assert {f"sip:user{number}@example.com" for number in numbers} <= {item.aor for item in opened(url).bindings.load()}


async def test_answers_to_a_loop_that_is_closed_are_dropped(tmp_path: Path, row: Row, answers: Answers) -> None:
    database = Database(f"sqlite:///{tmp_path}/edge.db")
    loop = asyncio.new_event_loop()
    store = SqlBindingStore(database, loop)
    loop.close()
    store.save([PutBinding(row())], answers.answer)
    store.close()
    assert answers.given == []
    assert store.load() == [row()]
    database.close()
