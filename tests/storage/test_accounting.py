"""Accounting in an SQL table, SQLite and PostgreSQL, with the database away at the start and in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from edge.accounting.ledger import Ledger
from edge.accounting.opening import open_ledger
from edge.config import Accounting
from edge.storage.schema import open_engine
from tests.storage.conftest import Postgres
from tests.ua.wait import eventually

VALUES = (1.0, "alice@example.com", "sip:a@b", "added", 3600, "0-1-1", "<urn:x>", 1)


def rows(url: str) -> list[dict[str, Any]]:
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text("SELECT * FROM accounting ORDER BY id"))]
    finally:
        engine.dispose()


async def close(ledger: Ledger) -> None:
    await asyncio.get_running_loop().run_in_executor(None, ledger.close)


def opened(url: str, **settings: Any) -> Ledger:
    ledger = open_ledger(Accounting(url=url, interval=0.01, **settings), "edge.toml", asyncio.get_running_loop())
    assert ledger is not None
    return ledger


async def test_records_are_rows_of_the_table(url: str) -> None:
    ledger = opened(url)
    ledger.write("registration", VALUES)
    ledger.write("session", ("5e55", "nul\0byte", "0-1-2", 1.0, 3.5, "eof", 2, 2**40))
    ledger.write("message", ())  # not asked for
    await close(ledger)
    one, two = rows(url)
    assert (one["kind"], one["aor"], one["reason"], one["expires"]) == ("registration", VALUES[1], "added", 3600)
    assert (two["username"], two["octets"], two["duration"]) == ("nulbyte", 2**40, 2.5)
    assert ledger.counts()[0]["session"] == 1
    assert ledger.waiting == 0


@pytest.mark.interop
async def test_a_database_that_is_away_holds_nobody_up_and_gets_everything_once(postgres: Postgres) -> None:
    url = postgres.create()
    told: list[bool] = []
    postgres.stop()
    try:
        ledger = opened(url, queue=3)
        ledger.on_change(lambda healthy, reason: told.append(healthy))
        for _ in range(5):
            ledger.write("registration", VALUES)
        await eventually(lambda: told == [False], 10)
        assert (ledger.counts()[1]["queue"], ledger.waiting) == (2, 3)
    finally:
        postgres.start()
    await eventually(lambda: not ledger.waiting, 30)
    assert told == [False, True]
    await close(ledger)
    assert len(rows(url)) == 3
