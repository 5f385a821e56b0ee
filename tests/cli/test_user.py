"""`edge user`: who may log in."""

from __future__ import annotations

import hashlib
import os
import pty
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Command, environment
from tests.ua.wait import eventually_blocking, scaled


def rows(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    with closing(sqlite3.connect(tmp_path / "edge.db")) as connection:
        found = connection.execute("SELECT username || '@' || domain, password, ha1, ha1b, ha1_sha256 FROM subscriber")
        return {user: tuple(rest) for user, *rest in found}


def hashes(user: str, password: str, realm: str | None = None) -> tuple[str, ...]:
    name, domain = user.split("@")
    realm = realm or domain
    return (
        "",
        hashlib.md5(f"{name}:{realm}:{password}".encode()).hexdigest(),
        hashlib.md5(f"{user}:{realm}:{password}".encode()).hexdigest(),
        hashlib.sha256(f"{name}:{realm}:{password}".encode()).hexdigest(),
    )


def test_a_user_is_added_updated_listed_and_removed(edge: Command, tmp_path: Path) -> None:
    done = edge("user", "add", "alice@localhost", "--password", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alice@localhost added\n", "")
    assert rows(tmp_path) == {"alice@localhost": hashes("alice@localhost", "one")}
    done = edge("user", "add", "alice@LOCALHOST", "--password-stdin", stdin="two words \r\nignored\n")
    assert (done.returncode, done.stdout) == (0, "alice@localhost has a new password\n")
    assert rows(tmp_path) == {"alice@localhost": hashes("alice@localhost", "two words ")}
    edge("user", "add", "bob@localhost", "--password", "x")
    assert edge("user", "list").stdout == "alice@localhost\nbob@localhost\n"
    done = edge("user", "remove", "alice@localhost")
    assert (done.returncode, done.stdout) == (0, "alice@localhost removed\n")
    done = edge("user", "remove", "alice@localhost")
    assert (done.returncode, done.stderr) == (1, "edge: alice@localhost: no such user\n")
    assert edge("user", "list").stdout == "bob@localhost\n"


def test_the_configured_realm_and_database_are_used(edge: Command, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text('domains = ["example.com"]\n[auth]\nrealm = "ours"')
    done = edge("user", "add", "alice@example.com", "--password", "x", "--config", "edge.toml")
    assert done.stderr == ""
    assert rows(tmp_path) == {"alice@example.com": hashes("alice@example.com", "x", "ours")}


def test_a_user_of_a_domain_not_served_here_is_added_with_a_warning(edge: Command) -> None:
    done = edge("user", "add", "alice@other.example", "--password", "x")
    assert done.returncode == 0
    assert done.stderr == "edge: warning: other.example is not among the domains served here\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        (["alice"], "", '"alice" is not user@domain'),
        (["alice@-", "--password", "x"], "", '"-" is not a host name'),
        (["alice@localhost"], "secret\n", "no terminal to ask for the password; give --password-stdin"),
        (["alice@localhost", "--password-stdin"], "\n", "the password is empty"),
        (["alice@localhost", "--password", ""], "", "the password is empty"),
        (
            ["alice@localhost", "--password", "x", "--password-stdin"],
            "",
            "give --password or --password-stdin, not both",
        ),
    ],
)
def test_what_cannot_be_added(edge: Command, tmp_path: Path, arguments: list[str], stdin: str, reason: str) -> None:
    done = edge("user", "add", *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (2, f"edge: {reason}\n")
    assert rows(tmp_path) == {}


def ask(tmp_path: Path, *answers: str) -> tuple[int, str]:
    """Add a user on a terminal and type the answers; returns the exit status and what the terminal showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edge.cli", "user", "add", "alice@localhost"]
    shown = b""
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        os.set_blocking(ours, False)

        def read() -> bytes:
            nonlocal shown
            try:
                shown += os.read(ours, 4096)
            except (BlockingIOError, OSError):  # nothing yet; or the other end is closed
                pass
            return shown

        for prompt, answer in zip((b"Password: ", b"Again: "), answers, strict=True):
            eventually_blocking(lambda prompt=prompt: prompt in read(), 30)
            time.sleep(0)  # the prompt is printed after echo was switched off
            os.write(ours, answer.encode() + b"\n")
        eventually_blocking(lambda: (read(), process.poll() is not None)[1], 30)
        read()
    os.close(ours)
    return process.wait(scaled(1)), shown.decode()


def test_on_a_terminal_it_asks_and_does_not_show(tmp_path: Path) -> None:
    status, shown = ask(tmp_path, "typed secret", "typed secret")
    assert status == 0
    assert "alice@localhost added" in shown
    assert "typed secret" not in shown
    assert rows(tmp_path) == {"alice@localhost": hashes("alice@localhost", "typed secret")}


def test_on_a_terminal_a_typing_mistake_is_noticed(tmp_path: Path) -> None:
    status, shown = ask(tmp_path, "typed secret", "typed sacret")
    assert status == 2
    assert "edge: the two passwords differ" in shown
    assert rows(tmp_path) == {}


def test_twelve_thousand_users_are_imported_at_once(edge: Command, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("".join(f"user{number}@localhost:pw:{number}\n" for number in range(12_000)))
    edge("user", "add", "user7@localhost", "--password", "old")
    edge("user", "add", "other@localhost", "--password", "kept")
    done = edge("user", "import", "users")
    assert (done.returncode, done.stdout, done.stderr) == (0, "12000 users imported\n", "")
    found = rows(tmp_path)
    assert len(found) == 12_001
    assert found["user7@localhost"] == hashes("user7@localhost", "pw:7")
    assert found["other@localhost"] == hashes("other@localhost", "kept")
    assert edge("user", "list").stdout.count("\n") == 12_001


def test_import_reads_standard_input(edge: Command, tmp_path: Path) -> None:
    assert edge("user", "import", "-", stdin="# users\nalice@localhost:ä\n").stdout == "1 users imported\n"
    assert rows(tmp_path) == {"alice@localhost": hashes("alice@localhost", "ä")}


def test_bad_import_lines_are_named_and_nothing_is_imported(edge: Command, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("alice@localhost:secret\nbob:secret\n\ncarol@localhost\n")
    done = edge("user", "import", "users")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "edge: users: line 2: not user@domain:password",
        "edge: users: line 4: not user@domain:password",
        "edge: users: nothing imported, lines to correct: 2",
    ]
    assert "secret" not in done.stderr
    assert rows(tmp_path) == {}


def test_an_import_file_that_is_not_there(edge: Command) -> None:
    done = edge("user", "import", "none")
    assert (done.returncode, done.stderr) == (1, "edge: none: No such file or directory\n")


def test_users_are_changed_while_somebody_reads(edge: Command, tmp_path: Path) -> None:
    edge("user", "list")
    with closing(sqlite3.connect(tmp_path / "edge.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM subscriber").fetchone() == (0,)
        assert edge("user", "add", "alice@localhost", "--password", "x").returncode == 0
        assert reader.execute("SELECT count(*) FROM subscriber").fetchone() == (0,)
    assert set(rows(tmp_path)) == {"alice@localhost"}


def test_users_in_memory_cannot_be_changed_from_outside(edge: Command, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text('[storage]\nurl = "memory:"')
    done = edge("user", "list", "--config", "edge.toml")
    assert done.returncode == 2
    assert done.stderr == "edge: edge.toml: storage.url: users in memory cannot be changed from outside\n"


def test_a_list_cut_short_by_its_reader_is_no_error(edge: Command, tmp_path: Path) -> None:
    edge("user", "import", "-", stdin="".join(f"user{number}@localhost:x\n" for number in range(12_000)))
    done = subprocess.run(
        f"{sys.executable} -m edge.cli user list | head -n 1",
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("user0@localhost\n", "")
