"""Who may log in: the table Kamailio operators have, and ours."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from edge.auth.credentials import Credential
from edge.storage import sql
from edge.storage.base import StorageError
from edge.storage.schema import Database
from edge.storage.sql import SqlUserStore
from edge.storage.users import User, UserError, UserTable, parse_import, parse_user
from tests.storage.conftest import Answers, Opener

# The table as Kamailio 5.6 makes it, for SQLite.
KAMAILIO = """
CREATE TABLE subscriber (
    id INTEGER PRIMARY KEY NOT NULL,
    username VARCHAR(64) DEFAULT '' NOT NULL,
    domain VARCHAR(64) DEFAULT '' NOT NULL,
    password VARCHAR(64) DEFAULT '' NOT NULL,
    ha1 VARCHAR(128) DEFAULT '' NOT NULL,
    ha1b VARCHAR(128) DEFAULT '' NOT NULL,
    CONSTRAINT subscriber_account_idx UNIQUE (username, domain)
)
"""


def md5(value: str) -> str:
    return hashlib.md5(value.encode()).hexdigest()


def sha256(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def credential(user: str, password: str) -> Credential:
    name, domain = user.split("@")
    plain = f"{name}:{domain}:{password}"
    return Credential(md5(plain).encode(), sha256(plain).encode())


async def test_a_user_is_found_with_both_hashes_and_a_stranger_is_not(
    url: str, opened: Opener, answers: Answers
) -> None:
    storage = opened(url)
    UserTable(storage.database).add([(User("alice", "example.com"), "säcret")])
    threads = []
    storage.users.fetch(
        "alice", "example.com", lambda value: (threads.append(threading.get_ident()), answers.answer(value))
    )
    assert answers.given == []
    assert await answers.get(1) == [credential("alice@example.com", "säcret")]
    assert threads == [threading.get_ident()]
    for name, domain in [
        ("bob", "example.com"),
        ("alice", "example.net"),
        ("' OR 1=1 --", "example.com"),
        ("a\udcff", "x"),
    ]:
        storage.users.fetch(name, domain, answers.answer)
    *found, odd = (await answers.get(5))[1:]
    assert found == [None, None, None]
    assert odd is None or isinstance(odd, StorageError)
    assert storage.healthy


async def test_only_hashes_are_kept(url: str, opened: Opener) -> None:
    database = opened(url).database
    UserTable(database).add([(User("alice", "example.com"), "secret")])
    with database.engine.connect() as connection:
        kept = connection.execute(text("SELECT password, ha1, ha1b, ha1_sha256 FROM subscriber")).one()
    assert tuple(kept) == (
        "",
        md5("alice:example.com:secret"),
        md5("alice@example.com:example.com:secret"),
        sha256("alice:example.com:secret"),
    )


async def test_a_configured_realm_goes_into_the_hashes(url: str, opened: Opener, answers: Answers) -> None:
    storage = opened(url)
    UserTable(storage.database, "our realm").add([(User("alice", "example.com"), "secret")])
    storage.users.fetch("alice", "example.com", answers.answer)
    assert (await answers.get())[0].ha1 == md5("alice:our realm:secret").encode()


async def test_adding_again_replaces_the_password(url: str, opened: Opener, answers: Answers) -> None:
    storage = opened(url)
    table = UserTable(storage.database)
    alice = User("alice", "example.com")
    assert not table.exists(alice)
    table.add([(alice, "one")])
    table.add([(alice, "two"), (User("bob", "example.com"), "three")])
    assert table.exists(alice)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert await answers.get() == [credential("alice@example.com", "two")]
    assert [str(user) for user in table.everybody()] == ["alice@example.com", "bob@example.com"]
    assert table.remove(alice)
    assert not table.remove(alice)
    assert [str(user) for user in table.everybody()] == ["bob@example.com"]


async def test_a_kamailio_table_works_with_md5_alone(tmp_path: Path, opened: Opener, answers: Answers) -> None:
    with closing(sqlite3.connect(tmp_path / "k.db")) as connection, connection:
        connection.execute(KAMAILIO)
        insert = "INSERT INTO subscriber (username, domain, password, ha1) VALUES (?, ?, ?, ?)"
        connection.execute(insert, ("alice", "example.com", "", md5("alice:example.com:x").upper()))
        connection.execute(insert, ("plain", "example.com", "secret", ""))
        connection.execute(insert, ("broken", "example.com", "", "not a hash"))
    storage = opened(f"sqlite:///{tmp_path}/k.db")
    assert not storage.database.has_sha256
    UserTable(storage.database).add([(User("bob", "example.com"), "new")])
    for name in ("alice", "plain", "broken", "bob"):
        storage.users.fetch(name, "example.com", answers.answer)
    assert await answers.get(4) == [
        Credential(md5("alice:example.com:x").encode(), None),
        credential("plain@example.com", "secret"),
        Credential(None, None),
        Credential(md5("bob:example.com:new").encode(), None),
    ]


async def test_users_are_added_while_a_server_has_the_database_open(url: str, opened: Opener, answers: Answers) -> None:
    storage, other = opened(url), opened(url)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert await answers.get(1) == [None]
    UserTable(other.database).add([(User("alice", "example.com"), "secret")])
    storage.users.fetch("alice", "example.com", answers.answer)
    assert (await answers.get(2))[1] == credential("alice@example.com", "secret")


async def test_many_look_ups_are_all_answered_in_order(url: str, opened: Opener, answers: Answers) -> None:
    storage = opened(url)
    UserTable(storage.database).add([(User(f"u{number}", "example.com"), str(number)) for number in range(1000)])
    for number in range(1000):
        storage.users.fetch(f"u{number}", "example.com", answers.answer)
    assert await answers.get(1000) == [credential(f"u{number}@example.com", str(number)) for number in range(1000)]


async def test_look_ups_fail_fast_while_the_table_is_away_and_work_again(
    tmp_path: Path, opened: Opener, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "IDLE_S", 0.05)
    storage = opened(f"sqlite:///{tmp_path}/edge.db")
    with storage.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE subscriber RENAME TO elsewhere"))
    storage.users.fetch("alice", "example.com", answers.answer)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert [type(value) for value in await answers.get(2)] == [StorageError, StorageError]
    assert not storage.healthy
    with storage.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO subscriber"))
    while not storage.healthy:
        await asyncio.sleep(0)
    storage.users.fetch("alice", "example.com", answers.answer)
    assert (await answers.get(3))[2] is None


async def test_a_full_queue_of_look_ups_answers_at_once(tmp_path: Path, answers: Answers) -> None:
    database = Database(f"sqlite:///{tmp_path}/edge.db")
    store = SqlUserStore(database, asyncio.get_running_loop(), limit=0)
    store.fetch("alice", "example.com", answers.answer)
    assert [str(error) for error in answers.given] == ["too many users are being looked up"]
    store.close()
    database.close()


def test_import_lines() -> None:
    data = b"alice@Example.com:se:cr@t \r\n\n# a comment\nbob@[2001:db8::1]:\xc3\xa4\n"
    assert parse_import(data) == [
        (User("alice", "example.com"), "se:cr@t "),
        (User("bob", "[2001:db8::1]"), "ä"),
    ]


def test_every_bad_import_line_is_named() -> None:
    data = (
        b"good@a.example:x\nno-domain:x\na@b.example:\n\xff@b.example:x\ngood@A.example:y\nu@-:x\n"
        + b"u" * 65
        + b"@b.c:x"
    )
    with pytest.raises(UserError) as caught:
        parse_import(data)
    assert caught.value.reasons == [
        "line 2: not user@domain:password",
        "line 3: not user@domain:password",
        "line 4: not UTF-8",
        "line 5: good@a.example is already on line 1",
        'line 6: "-" is not a host name',
        "line 7: user name and domain may have 64 characters each",
    ]


@pytest.mark.parametrize(
    "value", ["alice", "@example.com", "alice@", "a:b@example.com", "a b@example.com", "a@b@c", "a\n@b"]
)
def test_not_a_user(value: str) -> None:
    with pytest.raises(UserError):
        parse_user(value)
