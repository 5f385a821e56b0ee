"""The database: its tables, how it is opened, and where the three kinds of SQL differ.

`subscriber` is the table Kamailio and OpenSIPS operators already have, with `ha1_sha256` added where we create it. One
that exists is used as it is; without that column only MD5 credentials are there. The other tables are ours.
"""

import hashlib
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Dialect,
    Double,
    Engine,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from edge.storage.base import StorageError, UnusableUrlError

SCHEMA_NAME = "edge"
SCHEMA_VERSION = 2
ANSWER_WITHIN_S = 15  # a database that is silent this long has gone away
LONG_STRING = 4096


class Octets(LargeBinary):
    """Bytes as they are: every driver we use takes `bytes`, and wrapping eight in a row costs more than the row."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> None:
        """Pass values through."""


metadata = MetaData()

subscriber = Table(
    "subscriber",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("username", String(64), nullable=False, server_default=""),
    Column("domain", String(64), nullable=False, server_default=""),
    Column("password", String(64), nullable=False, server_default=""),
    Column("ha1", String(128), nullable=False, server_default=""),
    Column("ha1b", String(128), nullable=False, server_default=""),
    Column("ha1_sha256", String(64), nullable=True),
    UniqueConstraint("username", "domain", name="subscriber_account_idx"),
)

binding = Table(
    "binding",
    metadata,
    Column("id", String(64), primary_key=True),  # binding_id(): names may be long, and differ in case alone
    Column("aor", Text, nullable=False),
    Column("binding_key", Text, nullable=False),
    Column("contact", Octets(LONG_STRING), nullable=False),
    Column("params", Octets(LONG_STRING), nullable=False),
    Column("path", Octets(LONG_STRING), nullable=False),
    Column("call_id", Octets(LONG_STRING), nullable=False),
    Column("cseq", BigInteger, nullable=False),
    Column("instance", Octets(LONG_STRING), nullable=False),
    Column("reg_id", BigInteger, nullable=False),
    Column("q", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("flow", Octets(LONG_STRING), nullable=False),
    Column("refreshed_at", Double, nullable=False),
    Column("user_agent", Octets(LONG_STRING), nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default="0"),  # since version 2
    sqlite_with_rowid=False,
)

secret = Table(
    "secret",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Octets(LONG_STRING), nullable=False),
)

schema_version = Table(
    "edge_schema",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("version", Integer, nullable=False),
)

_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 5.0},
    "psycopg": {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * ANSWER_WITHIN_S,
    },
    "pymysql": {"connect_timeout": 5, "read_timeout": ANSWER_WITHIN_S, "write_timeout": ANSWER_WITHIN_S},
}


def binding_id(aor: str, key: str) -> str:
    """Name a row of `binding` in 64 hexadecimal digits."""
    return hashlib.sha256(f"{aor}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()


def one_line(error: BaseException) -> str:
    """Say what went wrong in one line, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def is_outage(error: BaseException) -> bool:
    """Tell a database that does not answer from one that refuses what it was given."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError | OSError) or bool(
        getattr(error, "connection_invalidated", False)
    )


def build_upsert(dialect: str, table: Table, keys: list[str], values: list[str]) -> Insert:
    """Build an INSERT of keys and values which replaces the values where the keys are already there."""
    if dialect == "mysql":
        ours = mysql.insert(table)
        return ours.on_duplicate_key_update({name: ours.inserted[name] for name in values})
    theirs = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    return theirs.on_conflict_do_update(index_elements=keys, set_={name: theirs.excluded[name] for name in values})


def open_engine(url: str) -> Engine:
    """Make the engine of a database for others' tables, without connecting.

    Raises:
        UnusableUrlError: nothing can ever be reached with this URL.
    """
    return _create_engine(url, durable=True)


class Database:
    """An opened database with its tables in place.

    Raises:
        StorageError: the URL, the driver, the server or the schema cannot be used.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        self.engine = _create_engine(url, durable=durable)
        try:
            self._prepare()
            columns = {column["name"] for column in inspect(self.engine).get_columns(subscriber.name)}
        except (SQLAlchemyError, OSError) as error:
            self.engine.dispose()
            raise StorageError(one_line(error)) from error
        self.has_sha256 = subscriber.c.ha1_sha256.name in columns

    @property
    def dialect(self) -> str:
        """`sqlite`, `postgresql` or `mysql`."""
        return self.engine.dialect.name

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _prepare(self) -> None:
        """Create what is missing; a second process may be doing the same."""
        with suppress(SQLAlchemyError):
            metadata.create_all(self.engine)
        metadata.create_all(self.engine)
        version = schema_version.c
        with self.engine.begin() as connection:
            found = connection.scalar(select(version.version).where(version.name == SCHEMA_NAME))
            if found == 1:
                self._add_epoch(connection)
            if found is None or found < SCHEMA_VERSION:
                statement = build_upsert(self.dialect, schema_version, ["name"], ["version"])
                connection.execute(statement, [{"name": SCHEMA_NAME, "version": SCHEMA_VERSION}])
        if found is not None and found > SCHEMA_VERSION:
            raise StorageError(f"the tables are of version {found}, this program knows {SCHEMA_VERSION}")

    @staticmethod
    def _add_epoch(connection: Connection) -> None:
        """Bring tables of version 1 to version 2."""
        if all(column["name"] != binding.c.epoch.name for column in inspect(connection).get_columns(binding.name)):
            connection.exec_driver_sql("ALTER TABLE binding ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0")


def probe(url: str) -> str:
    """Connect without creating or changing anything; return a line for people, without the password.

    Raises:
        StorageError: the server would not get further at its start.
    """
    if url == "memory:":
        return "in memory, nothing is kept"
    parsed = _parse_url(url)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        return f"{shown} ({_probe_sqlite(parsed)})"
    engine = _create_engine(url, durable=True)
    try:
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
    except (SQLAlchemyError, OSError) as error:
        raise StorageError(one_line(error)) from error
    finally:
        engine.dispose()
    return f"{shown} ({'connected' if subscriber.name in tables else 'connected, tables are made at the first start'})"


def _probe_sqlite(url: URL) -> str:
    path = Path(str(url.database))
    if path.exists():
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            with closing(connection):
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{path}: {error}") from error
        return "there"
    if not os.access(path.absolute().parent, os.W_OK):
        raise StorageError(f"{path} is not there, and its folder cannot be written")
    return "made at the first start"


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text)
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        url.get_dialect()
    except (ArgumentError, ValueError) as error:
        raise UnusableUrlError("not a usable URL") from error
    if url.drivername.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise UnusableUrlError('an SQLite URL names a file; to keep nothing, write "memory:"')
    return url


def _create_engine(text: str, *, durable: bool) -> Engine:
    url = _parse_url(text)
    try:
        if url.get_backend_name() == "sqlite":
            _create_private_file(url)
        arguments = _CONNECT_ARGUMENTS.get(url.get_driver_name(), _CONNECT_ARGUMENTS.get(url.get_backend_name(), {}))
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=url.get_backend_name() != "sqlite")
    except ImportError as error:
        raise UnusableUrlError(f"the driver for this URL is not installed: {error.name}") from error
    except SQLAlchemyError as error:
        raise UnusableUrlError(f"not a usable URL: {one_line(error)}") from error
    except OSError as error:
        raise UnusableUrlError(f"{error.filename}: {error.strerror}") from error
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine, "FULL" if durable else "NORMAL")
    return engine


def _create_private_file(url: URL) -> None:
    """Make the file readable by nobody else before credentials go into it."""
    if "uri" not in url.query:
        with suppress(FileExistsError):
            os.close(os.open(Path(str(url.database)), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _tune_sqlite(engine: Engine, synchronous: str) -> None:
    def configure(connection: Any, record: object) -> None:  # noqa: ARG001 - the event's signature
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    event.listen(engine, "connect", configure)
