"""The domains' stores on SQLite: the shared SQL stores, with applies as one hop to the writer's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.schemas.metadata import journal_tables
from datalayer.stores.sql.catalogue import SqlCatalogue
from datalayer.stores.sql.conversations import SqlConversations
from datalayer.stores.sql.listings import SqlListings
from datalayer.stores.sql.messages import SqlMessages
from datalayer.stores.sql.sessions import SqlSessions
from datalayer.stores.sql.statement import drop_table
from datalayer.stores.sql.store import SqlStore
from datalayer.stores.sql.users import SqlUsers
from datalayer.stores.sqlite.database import SqliteDatabase
from datalayer.stores.sqlite.guard import SqliteGuard
from datalayer.stores.sqlite.outbox import SqliteOutbox, outboxes_at
from datalayer.stores.sqlite.rows import SqliteRows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import sqlalchemy as sa

    from datalayer.clock import Clock
    from datalayer.domains.record import Record
    from datalayer.stores.base import Guard
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase
    from datalayer.stores.sql.relation import Relation


class SqlitePlace(SqlStore):
    """What SQLite adds to a store of the shared SQL code."""

    @property
    def sqlite(self) -> SqliteDatabase:
        """The database, with what only SQLite's can do."""
        assert isinstance(self.db, SqliteDatabase), "a SQLite place lies in a SQLite database"
        return self.db

    def outbox(self, index: int) -> SqliteOutbox:
        """What an index has not taken in yet of this place."""
        return SqliteOutbox(self, index)

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here."""
        return await outboxes_at(self)

    async def drop(self) -> None:
        """Drop the tables, and with them every guard and outbox of this place."""
        for index in await self.outboxes():
            await self.outbox(index).remove()

        def work(connection: sqlite3.Connection) -> None:
            mine = (self.domain, self.attempt)
            for relation in self.relations.values():
                connection.execute(relation.removal())
            guards = "FROM datalayer_guard WHERE domain = ? AND place = ?"
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'datalayer_guard'").fetchall():
                return
            for (attempt,) in connection.execute(f"SELECT attempt {guards}", mine).fetchall():
                for table in journal_tables(self.domain, attempt).all:
                    connection.execute(drop_table("sqlite", table))
            connection.execute(f"DELETE {guards}", mine)

        await self.sqlite.write(work)

    async def _apply_all(self, records: Sequence[Record]) -> None:
        batches = self.batches(records)

        def work(connection: sqlite3.Connection) -> None:
            for relation, rows in batches:
                connection.executemany(relation.upsert, rows)

        await self.sqlite.write(work)


class SqliteMessages(SqlitePlace, SqlMessages):
    """Messages in SQLite."""


class SqliteUsers(SqlitePlace, SqlUsers):
    """Users and their claims in SQLite."""


class SqliteConversations(SqlitePlace, SqlConversations):
    """Conversations and their members in SQLite."""


class SqliteListings(SqlitePlace, SqlListings):
    """Users' lists of conversations in SQLite."""


class SqliteCatalogue(SqlitePlace, SqlCatalogue):
    """The catalogue of media in SQLite."""


class SqliteSessions(SqlitePlace, SqlSessions):
    """Sessions in SQLite."""


_ROWS: Final = SqliteRows()


class SqliteProduct:
    """``SqlProduct`` of SQLite."""

    dialect: Dialect = "sqlite"
    codec: RowCodec = _ROWS

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sample(self, db: SqlDatabase, relation: Relation, n: int) -> list[Row]:
        """Rows at even steps of the row number, which follows the order of insertion, not of the keys."""
        table = relation.name
        steps = "WITH RECURSIVE step(at) AS (VALUES (1) UNION ALL SELECT at + 1 FROM step WHERE at < ?)"
        at = f"(SELECT at * (SELECT max(rowid) FROM {table}) / ? FROM step)"  # noqa: S608 - a name of the schema
        sql = f"{steps} SELECT {', '.join(relation.columns)} FROM {table} WHERE rowid IN {at}"  # noqa: S608 - as above
        return await db.fetch(sql, (n, n))

    async def estimate(self, db: SqlDatabase, table: sa.Table) -> int:
        """The highest row number: exact unless rows were removed."""
        rows = await db.fetch(f"SELECT max(rowid) FROM {table.name}")  # noqa: S608 - a name of the schema
        return int(rows[0][0] or 0)

    def guard(self, store: SqlStore, attempt: int) -> Guard:
        assert isinstance(store, SqlitePlace), "a SQLite guard guards a SQLite place"
        return SqliteGuard(store, attempt)
