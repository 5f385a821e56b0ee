"""Users, bindings and secrets in an SQL database, with one thread that writes and one that reads.

The writer gathers what arrives within a few milliseconds and commits it in one transaction (group commit): a disk that
makes a hundred transactions safe in a second then serves thousands of registrations. A batch the database refuses is
tried again change by change, so that a bad row fails alone. While the database is away, whoever waits gets the error,
and changes nobody waits for are kept and written when it is back.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.exc import SQLAlchemyError

from edge.auth.credentials import Credential
from edge.log import RateLimited
from edge.storage.base import (
    BindingChange,
    BindingRow,
    BindingStore,
    ChangeListener,
    FetchDone,
    PutBinding,
    SaveDone,
    StorageError,
)
from edge.storage.digests import credential_of
from edge.storage.health import logger
from edge.storage.schema import Database, binding, binding_id, build_upsert, is_outage, one_line, secret, subscriber
from edge.storage.worker import QUEUE_LIMIT, DatabaseThread

GATHER_S = 0.02
PRUNE_EVERY_S = 60.0
IDLE_S = 60.0
READ_BATCH = 256
WARN_EVERY_S = 10.0

_ROW_FIELDS = tuple(column.name for column in binding.c if column.name not in ("id", "aor", "binding_key"))
_row_values = attrgetter(*_ROW_FIELDS)

_Wanted = tuple[str, str, FetchDone]
_Write = tuple[Sequence[BindingChange], SaveDone | None]
_Changes = dict[tuple[str, str], BindingChange]


class SqlUserStore(DatabaseThread[_Wanted]):
    """Looks users up in `subscriber`, in a thread of its own. `realm` is for rows that hold a plain password alone."""

    def __init__(
        self, database: Database, loop: asyncio.AbstractEventLoop, limit: int = QUEUE_LIMIT, realm: str = ""
    ) -> None:
        self._realm = realm
        columns = [subscriber.c.password, subscriber.c.ha1]
        if database.has_sha256:
            columns.append(subscriber.c.ha1_sha256)
        self._select = select(*columns).where(
            subscriber.c.username == bindparam("wanted_username"), subscriber.c.domain == bindparam("wanted_domain")
        )
        super().__init__("users", database, loop, limit, gather_s=0.0)

    def fetch(self, username: str, domain: str, done: FetchDone) -> None:
        """Look a user up; `done` is called on the loop, or at once when the store is full or closed."""
        if not self._mailbox.offer((username, domain, done)):
            done(
                StorageError(
                    "the user store is closed" if self._mailbox.closed else "too many users are being looked up"
                )
            )

    def _handle(self, batch: list[_Wanted]) -> None:
        for start in range(0, len(batch), READ_BATCH):
            part = batch[start : start + READ_BATCH]
            self._courier.deliver(list(zip((done for _, _, done in part), self._answers(part), strict=True)))

    def _answers(self, part: list[_Wanted]) -> Sequence[Credential | Exception | None]:
        if self.health.retry_in > 0:
            return [StorageError(self.health.last_error)] * len(part)
        try:
            with self._database.engine.connect() as connection:
                answers = [self._answer(connection, username, domain) for username, domain, _ in part]
        except (SQLAlchemyError, OSError) as error:
            self.health.failed(one_line(error))
            return [StorageError(one_line(error))] * len(part)
        self.health.succeeded()
        return answers

    def _answer(self, connection: Connection, username: str, domain: str) -> Credential | Exception | None:
        try:
            row = connection.execute(self._select, {"wanted_username": username, "wanted_domain": domain}).first()
        except (SQLAlchemyError, ValueError) as error:
            if is_outage(error):
                raise
            connection.rollback()
            return StorageError(one_line(error))
        return None if row is None else credential_of(username, domain, *row, realm=self._realm)

    def _pause_s(self) -> float:
        return IDLE_S if self.health.healthy else self.health.retry_in

    def _keep_house(self) -> None:
        if not self.health.healthy and self.health.retry_in == 0:
            self._answers([("", "", lambda answer: None)])  # only to see whether it answers


class SqlBindingStore(DatabaseThread[_Write]):
    """Writes `binding` in a thread of its own, many changes to a transaction."""

    def __init__(
        self,
        database: Database,
        loop: asyncio.AbstractEventLoop,
        *,
        acknowledged: bool = True,
        limit: int = QUEUE_LIMIT,
    ) -> None:
        self.commits = 0
        self._acknowledged = acknowledged
        self._limit = limit
        self._kept: _Changes = {}  # written by nobody yet, awaited by nobody
        self._prune_at = time.monotonic() + PRUNE_EVERY_S
        self._warnings = RateLimited(WARN_EVERY_S)
        self._upsert = build_upsert(database.dialect, binding, ["id"], [*_ROW_FIELDS])
        self._delete = delete(binding).where(binding.c.id == bindparam("gone"))
        self._delete_expired = delete(binding).where(binding.c.expires_at <= bindparam("moment"))
        super().__init__("bindings", database, loop, limit, gather_s=GATHER_S)

    def load(self) -> list[BindingRow]:
        """Forget what has expired and return the rest; blocks, for use at start only."""
        columns = [binding.c.aor, binding.c.binding_key, *(binding.c[name] for name in _ROW_FIELDS)]
        try:
            with self._database.engine.begin() as connection:
                connection.execute(self._delete_expired, {"moment": time.time()})
                return [BindingRow(*row) for row in connection.execute(select(*columns))]
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(one_line(error)) from error

    def save(self, changes: Sequence[BindingChange], done: SaveDone | None) -> None:
        """Have changes written; see `BindingStore.save`."""
        if not self._mailbox.offer((changes, done if self._acknowledged else None)):
            if done is not None:
                done(StorageError("the storage is closed" if self._mailbox.closed else "the storage queue is full"))
        elif done is not None and not self._acknowledged:
            done(None)

    def _handle(self, batch: list[_Write]) -> None:
        if self.health.retry_in > 0:
            self._refuse(batch, StorageError(self.health.last_error))
            return
        try:
            self._commit(_collapse(self._kept, batch))
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the thread and the other rows live on
            self._handle_failure(batch, error)
        else:
            self._kept.clear()
            self.health.succeeded()
            self._courier.deliver([(done, None) for _, done in batch if done is not None])

    def _handle_failure(self, batch: list[_Write], error: Exception) -> None:
        if is_outage(error):
            self.health.failed(one_line(error))
            self._refuse(batch, StorageError(one_line(error)))
        else:
            self._write_singly([*(([change], None) for change in self._kept.values()), *batch])

    def _refuse(self, batch: list[_Write], error: StorageError) -> None:
        """Give the error to everyone who waits, and keep what nobody waits for, as far as there is room."""
        self._courier.deliver([(done, error) for _, done in batch if done is not None])
        self._kept = _collapse(self._kept, (write for write in batch if write[1] is None))
        while len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]

    def _write_singly(self, batch: list[_Write]) -> None:
        """Commit each write by itself: one of them holds what the database refuses."""
        self._kept = {}
        results: list[tuple[SaveDone, StorageError | None]] = []
        for index, (changes, done) in enumerate(batch):
            result = None
            try:
                self._commit(_collapse({}, [(changes, done)]))
            except Exception as error:  # noqa: BLE001 - as in _handle
                if is_outage(error):
                    self.health.failed(one_line(error))
                    self._refuse(batch[index:], StorageError(one_line(error)))
                    break
                result = StorageError(one_line(error))
                self._warn(one_line(error))
            if done is not None:
                results.append((done, result))
        else:
            self.health.succeeded()
        self._courier.deliver(results)

    def _warn(self, reason: str) -> None:
        if (held_back := self._warnings.allow("refused", time.monotonic())) is not None:
            logger.warning("storage row refused", reason=reason, held_back=held_back)

    def _commit(self, changes: _Changes) -> None:
        puts = [_to_columns(change.row) for change in changes.values() if isinstance(change, PutBinding)]
        gone = [{"gone": binding_id(*name)} for name, change in changes.items() if not isinstance(change, PutBinding)]
        with self._database.engine.begin() as connection:
            if gone:
                connection.execute(self._delete, gone)
            if puts:
                connection.execute(self._upsert, puts)
            if not changes:
                connection.execute(select(1))
        if changes:
            self.commits += 1

    def _pause_s(self) -> float:
        if not self.health.healthy:
            return self.health.retry_in
        return max(0.0, self._prune_at - time.monotonic())

    def _keep_house(self) -> None:
        if self.health.retry_in > 0:
            return
        if not self.health.healthy:
            self._handle([])
        elif time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S
            self._prune()

    def _prune(self) -> None:
        try:
            with self._database.engine.begin() as connection:
                connection.execute(self._delete_expired, {"moment": time.time()})
        except (SQLAlchemyError, OSError) as error:
            self.health.failed(one_line(error))

    def _finish(self) -> None:
        if self._kept:
            self._handle([])


class SqlSecretStore:
    """Keeps secrets in `secret`; blocks, for use at start only."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._upsert = build_upsert(database.dialect, secret, ["name"], ["value"])

    def get(self, name: str) -> bytes | None:
        """Return the secret, None where there is none."""
        try:
            with self._engine.connect() as connection:
                value = connection.scalar(select(secret.c.value).where(secret.c.name == name))
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(one_line(error)) from error
        return None if value is None else bytes(value)

    def put(self, name: str, value: bytes) -> None:
        """Keep a secret under this name, instead of an older one."""
        try:
            with self._engine.begin() as connection:
                connection.execute(self._upsert, [{"name": name, "value": value}])
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(one_line(error)) from error


class SqlStorage:
    """The three stores on one database; `bindings` may live elsewhere."""

    def __init__(self, database: Database, users: SqlUserStore, bindings: BindingStore) -> None:
        self.database = database
        self.users = users
        self.bindings = bindings
        self.secrets = SqlSecretStore(database)
        self._threads: list[SqlUserStore | SqlBindingStore] = [
            users,
            *([bindings] if isinstance(bindings, SqlBindingStore) else []),
        ]
        self._listener: ChangeListener = lambda healthy, reason: None
        self._told_healthy = True
        for thread in self._threads:
            thread.on_change = self._changed

    @property
    def healthy(self) -> bool:
        """Whether the last thing asked of the database worked."""
        return all(thread.health.healthy for thread in self._threads)

    @property
    def last_error(self) -> str:
        """The reason of a failure: of one that lasts before one that is over."""
        reasons = sorted((thread.health.healthy, thread.health.last_error) for thread in self._threads)
        return next((reason for _, reason in reasons if reason), "")

    @property
    def commits(self) -> int:
        """Transactions that changed bindings and were committed."""
        return self.bindings.commits if isinstance(self.bindings, SqlBindingStore) else 0

    def on_change(self, listener: ChangeListener) -> None:
        """Have `listener(healthy, reason)` called on the loop whenever `healthy` changes."""
        self._listener = listener

    def _changed(self) -> None:
        """One of the threads found its database gone or back."""
        if self.healthy is not self._told_healthy:
            self._told_healthy = self.healthy
            self._listener(self.healthy, "" if self.healthy else self.last_error)

    def close(self) -> None:
        """Write what waits, answer everyone, end the threads; blocks."""
        for thread in self._threads:
            thread.close()
        self.database.close()


def _collapse(earlier: _Changes, writes: Iterable[_Write]) -> _Changes:
    """Keep the last change of each row: the others would be overwritten in the same transaction."""
    changes = dict(earlier)
    for write, _ in writes:
        for change in write:
            name = (change.row.aor, change.row.key) if isinstance(change, PutBinding) else (change.aor, change.key)
            changes.pop(name, None)  # the last one also counts as the newest
            changes[name] = change
    return changes


def _to_columns(row: BindingRow) -> dict[str, Any]:
    columns = dict(zip(_ROW_FIELDS, _row_values(row), strict=True))
    return columns | {"id": binding_id(row.aor, row.key), "aor": row.aor, "binding_key": row.key}
