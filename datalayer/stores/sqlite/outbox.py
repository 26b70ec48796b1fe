"""The outbox of one place for one index in SQLite: triggers and tables, made and dropped in one transaction each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.domains.movement import INDEXED
from datalayer.errors import StaleRoute
from datalayer.stores.sql.outbox import SqlOutbox
from datalayer.stores.sql.statement import create_table, drop_table
from datalayer.stores.sqlite.triggers import outbox_prefix, outbox_triggers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from datalayer.stores.base import Entry
    from datalayer.stores.sqlite.store import SqlitePlace

_TRIGGERS: Final = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, length(?1)) = ?1"


class SqliteOutbox(SqlOutbox):
    """The Outbox of one SQLite place."""

    def __init__(self, place: SqlitePlace, index: int) -> None:
        super().__init__(place, index)
        self._sqlite = place.sqlite
        self._triggers = outbox_triggers(place.domain, place.attempt, index)
        self._prefix = outbox_prefix(place.domain, place.attempt, index)
        self._followed = [place.relations[kind].name for kind in INDEXED[place.domain]]

    async def install(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if len(self._standing(connection)) == len(self._triggers):
                return
            for name in self._followed:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchall():
                    raise StaleRoute(f"there is no table {name}")
            for table in self._tables.all:
                for ddl in create_table("sqlite", table):
                    connection.execute(ddl)
            for sql in self._triggers:
                connection.execute(sql)

        await self._sqlite.write(work)

    async def remove(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for name in self._standing(connection):
                connection.execute(f'DROP TRIGGER "{name}"')
            for table in self._tables.all:
                connection.execute(drop_table("sqlite", table))

        await self._sqlite.write(work)

    async def installed(self) -> bool:
        return await self._sqlite.read(lambda connection: len(self._standing(connection)) == len(self._triggers))

    async def enter(self, entries: Sequence[Entry]) -> None:
        now = self._clock.now_us()
        await self._many(self._sql.enter, [(*entry[:4], entry.since or now) for entry in entries])

    async def settle(self, entries: Sequence[Entry]) -> None:
        await self._many(self._sql.settle, [(entry.kind, entry.key, entry.version) for entry in entries])

    async def _many(self, sql: str, values: Sequence[tuple[object, ...]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(sql, values)

        if values:
            await self._sqlite.write(work)

    def _standing(self, connection: sqlite3.Connection) -> list[str]:
        return [row[0] for row in connection.execute(_TRIGGERS, (self._prefix,)).fetchall()]


async def outboxes_at(place: SqlitePlace) -> list[int]:
    """The indexes that have an outbox on a place's tables."""
    start = outbox_prefix(place.domain, place.attempt, "")[:-1]
    names = [str(row[0]) for row in await place.sqlite.fetch(_TRIGGERS, (start,))]
    return sorted({int(name.removeprefix(start).partition("_")[0]) for name in names})
