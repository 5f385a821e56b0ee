"""Records as rows of the table `accounting` in an SQL database. A row that is written twice is there once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Double, MetaData, String, Table, Text
from sqlalchemy.exc import SQLAlchemyError

from edge.accounting.records import COLUMNS, NUMBERS, TIMES, Record
from edge.storage.schema import build_upsert, is_outage, open_engine

metadata = MetaData()
accounting = Table(
    "accounting",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    *(Column(name, Double if name in TIMES else BigInteger if name in NUMBERS else Text) for name in COLUMNS),
    Column("duration", Double),
)


class AccountTable:
    """The table in the database at `url`, made when it is missing. Connects when there is something to write.

    Raises:
        UnusableUrlError: nothing can ever be reached with this URL.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        names = [column.name for column in accounting.c]
        self._insert = build_upsert(self._engine.dialect.name, accounting, ["id"], names[1:])
        self._empty: dict[str, Any] = dict.fromkeys(names)
        self._is_made = False

    def write(self, records: Sequence[Record]) -> int:
        """Insert records; returns how many the database refuses for what they are.

        Raises:
            SQLAlchemyError: the database does not answer; nothing was written, or everything will be once more.
        """
        if not self._is_made:
            metadata.create_all(self._engine)
            self._is_made = True
        if not records:
            return 0
        rows = [self._row(record) for record in records]
        try:
            self._commit(rows)
        except SQLAlchemyError as error:
            if is_outage(error):
                raise
            return self._write_singly(rows)
        return 0

    def _write_singly(self, rows: list[dict[str, Any]]) -> int:
        refused = 0
        for row in rows:
            try:
                self._commit([row])
            except SQLAlchemyError as error:
                if is_outage(error):
                    raise
                refused += 1
        return refused

    def _commit(self, rows: list[dict[str, Any]]) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._insert, rows)

    def _row(self, record: Record) -> dict[str, Any]:
        values = {name: value.replace("\0", "") if isinstance(value, str) else value for name, value in record.items()}
        return self._empty | values

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
