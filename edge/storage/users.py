"""The operator's side of `subscriber`: add, import, remove and list users, also while the server runs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.exc import SQLAlchemyError

from edge.errors import EdgeError
from edge.settings import is_host
from edge.storage.base import StorageError
from edge.storage.digests import hash_password
from edge.storage.schema import Database, build_upsert, one_line, subscriber

LONGEST_NAME = 64  # the columns of an existing Kamailio table

_USER = re.compile(r"(?P<username>[^@:\s\x00-\x1f\x7f]+)@(?P<domain>\[[0-9A-Fa-f:.]+\]|[^@:\s]+)")
_LINE = re.compile(rf"{_USER.pattern}:(?P<password>.+)")


@dataclass(frozen=True, slots=True)
class User:
    """Whom a password is for; the domain is in lower case."""

    username: str
    domain: str

    def __str__(self) -> str:
        return f"{self.username}@{self.domain}"


class UserError(EdgeError):
    """What the operator gave is not a user, or not a list of users; `reasons` has a line for each mistake."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


def parse_user(text: str) -> User:
    """Read `user@domain`.

    Raises:
        UserError: it is something else, or longer than the table's columns.
    """
    found = _USER.fullmatch(text)
    if found is None:
        raise UserError([f'"{text}" is not user@domain'])
    return _check_user(found["username"], found["domain"])


def parse_import(data: bytes) -> list[tuple[User, str]]:
    """Read lines of `user@domain:password` in UTF-8; empty lines and lines that start with `#` are skipped.

    A password may hold any character but a line end.

    Raises:
        UserError: with a reason for every bad line, each beginning with its number.
    """
    users: dict[User, tuple[int, str]] = {}
    reasons = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            user, password = _parse_line(line)
        except UserError as error:
            reasons.append(f"line {number}: {error}")
            continue
        if user in users:
            reasons.append(f"line {number}: {user} is already on line {users[user][0]}")
        users[user] = number, password
    if reasons:
        raise UserError(reasons)
    return [(user, password) for user, (_, password) in users.items()]


class UserTable:
    """Changes `subscriber` in the caller's thread.

    `realm` is what digests are made with; empty means each user's own domain.

    Raises:
        StorageError: from every method, when the database refuses.
    """

    def __init__(self, database: Database, realm: str = "") -> None:
        self._database = database
        self._realm = realm
        values = ["password", "ha1", "ha1b"] + ["ha1_sha256"] * database.has_sha256
        self._columns = ("username", "domain", *values)
        self._upsert = build_upsert(database.dialect, subscriber, ["username", "domain"], values)

    def add(self, users: Iterable[tuple[User, str]]) -> None:
        """Write users with their passwords in one transaction; those who exist get the new password."""
        rows = [self._to_columns(user, password) for user, password in users]
        try:
            with self._database.engine.begin() as connection:
                if rows:
                    connection.execute(self._upsert, rows)
        except SQLAlchemyError as error:
            raise StorageError(one_line(error)) from error

    def exists(self, user: User) -> bool:
        """Tell whether the user is there."""
        return user in self._select(_is(user))

    def remove(self, user: User) -> bool:
        """Delete a user; False when there was none."""
        try:
            with self._database.engine.begin() as connection:
                return connection.execute(delete(subscriber).where(_is(user))).rowcount > 0
        except SQLAlchemyError as error:
            raise StorageError(one_line(error)) from error

    def everybody(self) -> list[User]:
        """Return everybody, ordered by domain and name."""
        return sorted(self._select(), key=lambda user: (user.domain, user.username))

    def _select(self, *conditions: ColumnElement[bool]) -> list[User]:
        statement = select(subscriber.c.username, subscriber.c.domain).where(*conditions)
        try:
            with self._database.engine.connect() as connection:
                return [User(*row) for row in connection.execute(statement)]
        except SQLAlchemyError as error:
            raise StorageError(one_line(error)) from error

    def _to_columns(self, user: User, password: str) -> dict[str, str]:
        hashes = hash_password(user.username, user.domain, self._realm or user.domain, password)
        columns = {"username": user.username, "domain": user.domain, "password": "", **hashes}
        return {name: columns[name] for name in self._columns}


def _is(user: User) -> ColumnElement[bool]:
    return and_(subscriber.c.username == user.username, subscriber.c.domain == user.domain)


def _parse_line(line: bytes) -> tuple[User, str]:
    try:
        found = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError:
        raise UserError(["not UTF-8"]) from None
    if found is None:
        raise UserError(["not user@domain:password"])
    return _check_user(found["username"], found["domain"]), found["password"]


def _check_user(username: str, domain: str) -> User:
    if not is_host(domain.removeprefix("[").removesuffix("]")):
        raise UserError([f'"{domain}" is not a host name'])
    if max(len(username), len(domain)) > LONGEST_NAME:
        raise UserError([f"user name and domain may have {LONGEST_NAME} characters each"])
    return User(username, domain.lower())
