"""The schema of a SQLite file, for the schema tools.

The file's one writer is the lock: each script and each stamp is one transaction, and both may be repeated. IF [NOT]
EXISTS of a column, which SQLite does not know, is answered here, in the transaction that would change it.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from datalayer.errors import StaleRoute
from datalayer.schemas.metadata import LOG_TABLE, SCHEMA_TABLE
from datalayer.schemas.script import LogEntry
from datalayer.schemas.shapes import ColumnShape, IndexShape, TableShape, places_among, plain_default

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from datalayer.schemas.script import Dialect, Script
    from datalayer.stores.sql.database import SqlTransaction
    from datalayer.stores.sqlite.database import SqliteDatabase

_COLUMN: Final = re.compile(
    r"(ALTER TABLE \"?(\w+)\"? (ADD|DROP) COLUMN )IF (?:NOT )?EXISTS (\"?(\w+)\"?.*)", re.IGNORECASE | re.DOTALL
)
_COLUMNS: Final = 'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)'
_INDEXES: Final = 'SELECT name, "unique", origin FROM pragma_index_list(?)'
_LOG: Final = (
    f"SELECT revision, target, at_us, sha256, took_ms, library FROM {LOG_TABLE} ORDER BY at_us, revision, target"  # noqa: S608
)
_TO_LOG: Final = (
    f"INSERT INTO {LOG_TABLE} (revision, target, at_us, sha256, took_ms, library) "  # noqa: S608
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_HAS: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"


class SqliteSchema:
    """``SqlSchema`` and ``LockedSchema`` of a file."""

    dialect: Dialect = "sqlite"

    def __init__(self, database: SqliteDatabase) -> None:
        self.where = str(database.path)
        self._db = database

    async def rows(self) -> frozenset[str]:
        try:
            found = await self._db.fetch(f"SELECT version_num FROM {SCHEMA_TABLE}")  # noqa: S608
        except StaleRoute:
            return frozenset()
        return frozenset(str(row[0]) for row in found)

    async def adopted(self) -> bool:
        return False

    async def places(self) -> Mapping[str, Sequence[str]]:
        names = [str(row[0]) for row in await self._db.fetch("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {name: frozenset(str(row[0]) for row in await self._db.fetch(_COLUMNS, (name,))) for name in names}
        return places_among(columns)

    async def shapes(self, tables: Sequence[str]) -> Mapping[str, TableShape]:
        found = {}
        for table in tables:
            rows = await self._db.fetch(_COLUMNS, (table,))
            if not rows:
                continue
            columns = {
                str(name): ColumnShape(str(type_).lower(), not required, plain_default(default or ""))
                for name, type_, required, default, _ in rows
            }
            key = tuple(str(row[0]) for row in sorted(rows, key=lambda row: int(row[4])) if row[4])
            found[table] = TableShape(columns, key, await self._indexes(table))
        return found

    async def _indexes(self, table: str) -> dict[str, IndexShape]:
        found = {}
        for name, unique, origin in await self._db.fetch(_INDEXES, (table,)):
            if origin == "c":
                rows = await self._db.fetch("SELECT name FROM pragma_index_info(?) ORDER BY seqno", (name,))
                found[str(name)] = IndexShape(tuple(str(row[0]) for row in rows), bool(unique))
        return found

    async def log(self) -> Sequence[LogEntry]:
        try:
            return [LogEntry(*row) for row in await self._db.fetch(_LOG)]
        except StaleRoute:
            return []

    @asynccontextmanager
    async def locked(self, wait_s: float) -> AsyncIterator[SqliteSchema]:
        yield self

    async def run(self, script: Script) -> None:
        async with self._db.transaction() as tx:
            for step in script.steps:
                sql = await _needed(tx, step.sql)
                if sql is not None:
                    await tx.run(sql)

    async def stamp(self, statements: Sequence[str], entries: Sequence[LogEntry]) -> None:
        async with self._db.transaction() as tx:
            for sql in statements:
                await tx.run(sql)
            if await tx.run(_HAS, (LOG_TABLE,)):
                values = [(e.revision, e.target, e.at_us, e.sha256, e.took_ms, e.library) for e in entries]
                await tx.run_many(_TO_LOG, values)


async def _needed(tx: SqlTransaction, sql: str) -> str | None:
    """The statement as SQLite takes it; None when the column is there already, or already gone."""
    found = _COLUMN.fullmatch(sql)
    if found is None:
        return sql
    before, table, action, rest, column = found.groups()
    present = any(row[0] == column for row in await tx.run(_COLUMNS, (table,)))
    return None if present == (action.upper() == "ADD") else before + rest
