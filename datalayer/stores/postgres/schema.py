"""The schema of a Postgres database, for the schema tools: what is there, and running what a revision says.

One session does it all and holds an advisory lock meanwhile: whoever kills it leaves either nothing, or a server
process that still builds an index - and still holds the lock, so that nobody begins the same build beside it. The lock
is asked for again and again instead of waited for: a session that waits holds a snapshot, and an index that is built
CONCURRENTLY would wait for it for ever.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, MigrationError, PreconditionFailed, StaleRoute
from datalayer.schemas.metadata import LOG_TABLE, SCHEMA_TABLE, first_tables
from datalayer.schemas.script import Busy, LogEntry
from datalayer.schemas.shapes import PLACE_NAME, ColumnShape, IndexShape, TableShape, places_among, plain_default
from datalayer.stores.postgres.database import BEGIN, PostgresTransaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from datalayer.schemas.script import Dialect, Script, Step
    from datalayer.stores.postgres.connection import DeadlineConnection
    from datalayer.stores.postgres.database import PostgresDatabase

BLOCK_S: Final = 120.0
"""What one transaction of a schema change may take: all of its statements wait for locks and change the catalogue only."""
BUILD_S: Final = 86_400.0
"""What a statement outside of a transaction may take: an index of a large table, while writers go on."""
POLL_S: Final = 0.1
ROLLBACK_S: Final = 2.0
SCHEMA_LOCK: Final = "hashtextextended('datalayer_schema', 0)"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_INDEX: Final = re.compile(
    r"(create (?:unique )?index) concurrently (?:if not exists )?\"?([a-z_][a-z0-9_]*)\"? on \"?([a-z_][a-z0-9_]*)\"?",
    re.IGNORECASE,
)
_PARTS: Final = """
SELECT c.relname::text, c.relname || substr(%s, length(%s) + 1) AS index, EXISTS (
  SELECT FROM pg_index x JOIN pg_inherits a ON a.inhrelid = x.indexrelid AND a.inhparent = to_regclass(%s)::oid
  WHERE x.indrelid = c.oid)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(%s)::oid ORDER BY c.relname"""
"""The partitions of a table, what an index of the parent is called there, and whether it is joined to the parent's."""
_PRESENT: Final = "SELECT n FROM unnest(%s::text[]) n WHERE to_regclass(n) IS NOT NULL"
_PURGED: Final = "SELECT domain FROM datalayer_meta WHERE attempt = 0 AND role = 'retired'"
_TABLES_OF: Final = {"messages": ("messages",), "users": ("users", "claims")}
_COLUMNS: Final = """
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
  coalesce(pg_get_expr(d.adbin, d.adrelid), ''),
  CASE WHEN a.attcollation IN (0, t.typcollation) THEN '' ELSE coalesce(l.collname, '')::text END
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid) AND (c.relname = ANY (%s::text[]) OR c.relname ~ %s)
ORDER BY c.relname, a.attnum"""
_INDEXES: Final = """
SELECT c.relname::text, i.relname::text, x.indisprimary, x.indisunique, x.indisvalid, ARRAY(
  SELECT pg_get_indexdef(x.indexrelid, n, true) FROM generate_series(1, x.indnkeyatts::int) n ORDER BY n)
FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
WHERE pg_table_is_visible(c.oid) AND c.relname = ANY (%s::text[])"""
_HOLDER: Final = f"""
SELECT coalesce(s.application_name, '') || ' (pid ' || l.pid || ')' FROM pg_locks l JOIN pg_stat_activity s USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((l.classid::bigint << 32) | l.objid::bigint) = {SCHEMA_LOCK} LIMIT 1"""  # noqa: S608 - our own constant
_BUILDING: Final = "SELECT pid FROM pg_stat_progress_create_index WHERE index_relid = to_regclass(%s)::oid"
_LOG: Final = (
    f"SELECT revision, target, at_us, sha256, took_ms, library FROM {LOG_TABLE} ORDER BY at_us, revision, target"  # noqa: S608
)
_TO_LOG: Final = (
    f"INSERT INTO {LOG_TABLE} (revision, target, at_us, sha256, took_ms, library) "  # noqa: S608
    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)


class PostgresSchema:
    """``SqlSchema`` of a database."""

    dialect: Dialect = "postgresql"

    def __init__(self, db: PostgresDatabase, first_places: Callable[[], list[str]] = list) -> None:
        """``first_places``: DDL of the places of a new database that are not made as the first revision says."""
        self.where = db.where
        self._first_places = first_places
        self._db = db

    async def rows(self) -> frozenset[str]:
        try:
            found = await self._db.fetch(f"SELECT version_num FROM {SCHEMA_TABLE}")  # noqa: S608
        except StaleRoute:
            return frozenset()
        return frozenset(str(row[0]) for row in found)

    async def adopted(self) -> bool:
        wanted = {table.name for table in first_tables()}
        there = {str(row[0]) for row in await self._db.fetch(_PRESENT, (list(wanted),))}
        if "datalayer_meta" not in there:
            return False
        purged = {table for row in await self._db.fetch(_PURGED) for table in _TABLES_OF.get(str(row[0]), ())}
        return wanted - there <= purged

    async def places(self) -> Mapping[str, Sequence[str]]:
        columns: dict[str, set[str]] = {}
        for table, column, *_ in await self._db.fetch(_COLUMNS, ([], f"^({PLACE_NAME.pattern})$")):
            columns.setdefault(str(table), set()).add(str(column))
        return places_among({table: frozenset(names) for table, names in columns.items()})

    async def shapes(self, tables: Sequence[str]) -> Mapping[str, TableShape]:
        columns: dict[str, dict[str, ColumnShape]] = {}
        for table, column, type_, nullable, default, collation in await self._db.fetch(_COLUMNS, (list(tables), "^$")):
            shape = ColumnShape(str(type_), bool(nullable), plain_default(str(default)), str(collation))
            columns.setdefault(str(table), {})[str(column)] = shape
        keys: dict[str, tuple[str, ...]] = {}
        indexes: dict[str, dict[str, IndexShape]] = {}
        for table, index, primary, unique, valid, names in await self._db.fetch(_INDEXES, (list(tables),)):
            plain = tuple(str(name).strip('"') for name in names)
            if primary:
                keys[str(table)] = plain
            else:
                indexes.setdefault(str(table), {})[str(index)] = IndexShape(plain, bool(unique), bool(valid))
        return {
            table: TableShape(found, keys.get(table, ()), indexes.get(table, {})) for table, found in columns.items()
        }

    async def log(self) -> Sequence[LogEntry]:
        try:
            return [LogEntry(*row) for row in await self._db.fetch(_LOG)]
        except StaleRoute:
            return []

    @asynccontextmanager
    async def locked(self, wait_s: float) -> AsyncIterator[_Locked]:
        connection = await self._db.dedicated()
        if connection is None:
            raise PreconditionFailed(
                f"{self.where} is behind PgBouncer: a schema change needs a session of its own",
                hint="add direct=HOST:PORT to its URL",
            )
        try:
            locked = _Locked(connection, self.where)
            await locked.take(wait_s)
            await locked.begin(self._first_places())
            yield locked
        finally:
            # the lock ends with its session, also behind a statement that has to be cancelled
            connection.discard()


class _Locked:
    """``LockedSchema`` over one session."""

    def __init__(self, connection: DeadlineConnection, where: str) -> None:
        self._connection = connection
        self._session = PostgresTransaction(connection, where)
        self._where = where

    async def take(self, wait_s: float) -> None:
        """Take the one lock of this database's schema. Busy when it is not had in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while not (await self._one(f"SELECT pg_try_advisory_lock({SCHEMA_LOCK})"))[0][0]:
            if loop.time() >= until:
                holder = await self._one(_HOLDER)
                name = holder[0][0] if holder else "another session"
                raise Busy(f"{name} is changing the schema of {self._where}", hint="repeat it when that has ended")
            await asyncio.sleep(POLL_S)

    async def begin(self, first_places: Sequence[str]) -> None:
        """In a database without a schema, make these first: the first revision leaves what it finds as it is."""
        if first_places and not await self._one(_PRESENT, (["datalayer_meta", "messages"],)):
            await self._transaction([(sql, ()) for sql in first_places])

    async def run(self, script: Script) -> None:
        for block in script.blocks:
            try:
                if block[0].alone:
                    await self._alone(block[0])
                else:
                    await self._transaction([(step.sql, ()) for step in block])
            except DatalayerError as error:
                if getattr(error.__cause__, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                    raise Busy(f"{script.target or 'a table'} of {self._where} is in use: no lock in time") from error
                raise

    async def stamp(self, statements: Sequence[str], entries: Sequence[LogEntry]) -> None:
        calls: list[tuple[str, tuple[Any, ...]]] = [(sql, ()) for sql in statements]
        if await self._one(_PRESENT, ([LOG_TABLE],)):
            calls += [
                (_TO_LOG, (one.revision, one.target, one.at_us, one.sha256, one.took_ms, one.library))
                for one in entries
            ]
        await self._transaction(calls)

    async def _alone(self, step: Step) -> None:
        index = _INDEX.match(step.sql)
        if index is None:
            await self._one(step.sql, for_s=BUILD_S)
            return
        name = index[2]
        if await self._one("SELECT 1 FROM pg_class WHERE oid = to_regclass(%s)::oid AND relkind = 'p'", (index[3],)):
            await self._by_partition(step.sql, index)
        else:
            await self._build(step.sql, name)

    async def _by_partition(self, sql: str, index: re.Match[str]) -> None:
        """An index of a partitioned table, which Postgres builds CONCURRENTLY on single partitions only.

        The parent's comes first, not valid yet: partitions made from then on have theirs from the beginning.
        """
        create, name, table = index.groups()
        rest = sql[index.end() :]
        await self._one(f'{create} IF NOT EXISTS "{name}" ON ONLY "{table}"{rest}')
        for part, mine, joined in await self._one(_PARTS, (name, table, name, table)):
            if not joined:
                await self._build(f'{create} CONCURRENTLY IF NOT EXISTS "{mine}" ON "{part}"{rest}', mine)
                await self._one(f'ALTER INDEX "{name}" ATTACH PARTITION "{mine}"')
        if await self._valid(name) is False:
            raise MigrationError(f"index {name} of {self._where} is not valid: a partition has come or gone meanwhile")

    async def _build(self, sql: str, name: str) -> None:
        if await self._valid(name) is False:
            builders = await self._one(_BUILDING, (name,))
            if builders:
                raise Busy(f"index {name} of {self._where} is being built by pid {builders[0][0]}")
            await self._one(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"', for_s=BUILD_S)
        await self._one(sql, for_s=BUILD_S)
        if await self._valid(name) is False:
            raise MigrationError(f"index {name} of {self._where} was built and is invalid: look into the server's log")

    async def _valid(self, index: str) -> bool | None:
        rows = await self._one("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)::oid", (index,))
        return bool(rows[0][0]) if rows else None

    async def _transaction(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        self._connection.until = asyncio.get_running_loop().time() + BLOCK_S
        await self._session.run(BEGIN)
        try:
            for sql, params in calls:
                await self._session.run(sql, params)
            await self._session.commit()
        except DatalayerError:
            self._connection.until = asyncio.get_running_loop().time() + ROLLBACK_S
            with suppress(DatalayerError):  # the error that leaves the block says more
                await self._session.run("ROLLBACK")
            raise

    async def _one(self, sql: str, params: Sequence[Any] = (), *, for_s: float = BLOCK_S) -> list[tuple[Any, ...]]:
        self._connection.until = asyncio.get_running_loop().time() + for_s
        return await self._session.run(sql, params)
