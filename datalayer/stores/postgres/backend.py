"""The Postgres backend: one database, the stores in it, and what it says of itself."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import ConfigurationError, PreconditionFailed, SchemaBehind, StaleRoute, Unavailable
from datalayer.schemas import history, metadata
from datalayer.schemas.search import create_search, search_tables
from datalayer.stores.base import MetaRow
from datalayer.stores.postgres.database import PostgresDatabase
from datalayer.stores.postgres.guard import PostgresGuard
from datalayer.stores.postgres.partitions import create_partitioned
from datalayer.stores.postgres.replicas import LogEnd, PostgresReplica, ReplicaDatabase, place_of, share_out
from datalayer.stores.postgres.rows import PostgresCodec
from datalayer.stores.postgres.schema import SCHEMA_LOCK, PostgresSchema
from datalayer.stores.postgres.search import Method, PostgresSearch
from datalayer.stores.postgres.stores import (
    PostgresCatalogue,
    PostgresConversations,
    PostgresListings,
    PostgresMessages,
    PostgresSessions,
    PostgresUsers,
)
from datalayer.stores.postgres.token import take_token
from datalayer.stores.sql.statement import create_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sqlalchemy as sa

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, Guard, Token
    from datalayer.stores.postgres.partitions import Unit
    from datalayer.stores.replicated import LogPosition
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase
    from datalayer.stores.sql.relation import Relation
    from datalayer.stores.sql.store import SqlStore

OLDEST_SERVER: Final = 140000
"""CREATE OR REPLACE TRIGGER came with version 14."""

_ESTIMATE: Final = """
SELECT c.oid::regclass::text, CASE WHEN pg_relation_size(c.oid) = 0 THEN 0 WHEN c.reltuples < 0 OR c.relpages = 0 THEN -1
  ELSE (c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::int))::bigint END
FROM pg_class c WHERE c.oid = to_regclass(%s)
  OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass(%s)::oid)"""


_ROWS: Final = PostgresCodec()


class PostgresProduct:
    """What Postgres does in its own way."""

    dialect: Dialect = "postgresql"
    codec: RowCodec = _ROWS

    def __init__(
        self,
        db: PostgresDatabase,
        clock: Clock,
        partition_messages: Unit | None = None,
        search: Method = "tsvector",
    ) -> None:
        self.clock = clock
        self.partition_messages = partition_messages
        self.search = search
        self._db = db

    async def sample(self, db: SqlDatabase, relation: Relation, n: int) -> list[Row]:
        total = max(await self.estimate(db, relation.table), 1)
        # pages are taken whole, so more than asked is asked for
        percent = min(100.0, 100.0 * 4 * n / total)
        select, _, _ = relation.scan_first.partition("\nWHERE")
        sql = f"{select} TABLESAMPLE SYSTEM ({percent:f}) REPEATABLE (1)" if percent < 100 else select
        return await db.fetch(f"SELECT * FROM ({sql}) s ORDER BY random() LIMIT %s", (n,))  # noqa: S608

    async def estimate(self, db: SqlDatabase, table: sa.Table) -> int:
        parts = await db.fetch(_ESTIMATE, (table.name, table.name)) or [(table.name, -1)]
        total = sum(int(guess) for _, guess in parts if guess >= 0)
        for name in (name for name, guess in parts if guess < 0):
            total += int((await db.fetch(f"SELECT count(*) FROM {name}"))[0][0])  # noqa: S608
        return total

    def guard(self, store: SqlStore, attempt: int) -> Guard:
        return PostgresGuard(self._db, store, attempt)


class PostgresBackend:
    """One Postgres database."""

    product: str = "postgresql"
    authority_class: AuthorityClass = "transactional"

    def __init__(
        self,
        name: str,
        db: PostgresDatabase,
        clock: Clock,
        replicas: Sequence[PostgresReplica] = (),
        *,
        partition_messages: Unit | None = None,
        search: Method = "tsvector",
    ) -> None:
        self.name = name
        self.db = db
        self.replicas = replicas
        self._product = PostgresProduct(db, clock, partition_messages, search)
        self._log = LogEnd(db)

    async def open(self) -> None:
        rows = await self.db.fetch(
            "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('server_encoding'), "
            "current_schema()"
        )
        version, standby, encoding, schema = rows[0]
        if version < OLDEST_SERVER:
            raise PreconditionFailed(f"{self.db.where} is version {version // 10000}; 14 or later is needed")
        if encoding != "UTF8":
            raise PreconditionFailed(f"{self.db.where} stores text as {encoding}; UTF8 is needed")
        if schema is None:
            raise PreconditionFailed(f"{self.db.where}: no schema of the search_path exists")
        if standby:
            raise Unavailable(f"{self.db.where} is a standby")

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()
        await self.db.close()

    async def ping(self, deadline: Deadline) -> None:
        await self.db.fetch("SELECT 1", deadline=deadline)

    async def position(self, deadline: Deadline) -> LogPosition:
        return await self._log.ask(deadline)

    def refuses(self, domain: str) -> str | None:
        return None if domain in _STORES else f"Postgres holds {', '.join(_STORES)}, not {domain}"

    def store(self, domain: str, attempt: int) -> Any:
        assert self.refuses(domain) is None, "routing asks refuses() first"
        return _store(self.db, self._product, domain, attempt)

    def sql_schema(self) -> PostgresSchema:
        """The way to this database's schema, for the schema tools."""
        return PostgresSchema(self.db, self._first_places)

    async def ensure_schema(self, *, create: bool) -> None:
        tables = (*metadata.serving_tables(), *search_tables())
        if create:
            await self._create_missing()
        if rows := await self.sql_schema().rows():
            history.THIS.check(rows, f"backend {self.name!r}")
        wanted = {table.name: {column.name for column in table.columns} for table in tables}
        found = await self.db.fetch(
            "SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE c.oid = ANY (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n) "
            "AND a.attnum > 0 AND NOT a.attisdropped",
            (list(wanted),),
        )
        missing = [name for name in wanted if not wanted[name] <= {column for table, column in found if table == name}]
        if missing and metadata.meta_table().name not in missing:
            purged = await self._purged_tables()
            missing = [name for name in missing if name not in purged]
        if missing:
            raise SchemaBehind(
                f"the schema of backend {self.name!r} is behind: {', '.join(missing)} missing or incomplete",
                hint="datalayer schema upgrade",
            )

    async def _create_missing(self) -> None:
        """Make the tables that are not there. A table that is there is a revision's affair: it may be large."""
        async with self.db.transaction() as tx:
            # CREATE IF NOT EXISTS of two sessions at once fails in the catalogue
            await tx.run(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
            tables = {table.name: table for table in (metadata.schema_table(), *metadata.base_tables())}
            absent = await tx.run("SELECT n FROM unnest(%s::text[]) n WHERE to_regclass(n) IS NULL", (list(tables),))
            made = [str(row[0]) for row in absent]
            new = metadata.meta_table().name in made
            for name in made:
                # without its row, a database from before the rows were written is still told from a new one
                if new or name not in {metadata.SCHEMA_TABLE, metadata.LOG_TABLE}:
                    for ddl in self._ddl(tables[name]):
                        await tx.run(ddl)
            for ddl in create_search("postgresql", words=self._product.search == "tsvector"):
                await tx.run(ddl)
            if new:
                for revision in history.THIS.heads:
                    stamp = f"INSERT INTO {metadata.SCHEMA_TABLE} (version_num) VALUES (%s) ON CONFLICT DO NOTHING"  # noqa: S608
                    await tx.run(stamp, (revision,))

    def _ddl(self, table: sa.Table) -> list[str]:
        unit = self._product.partition_messages
        if unit is None or table.name != "messages":
            return create_table("postgresql", table)
        return create_partitioned(table, unit, self._product.clock.now_us() // 1000)

    def _first_places(self) -> list[str]:
        """DDL of the tables of a new database that are not made as the first revision says."""
        return self._ddl(metadata.messages_table()) if self._product.partition_messages else []

    async def _purged_tables(self) -> set[str]:
        """The plain tables of domains whose data has moved away: a purge has dropped them, and nothing asks for them."""
        meta = await self.read_meta()
        gone = {domain for (domain, attempt), row in meta.items() if attempt == 0 and row.role == "retired"}
        return {relation.name for domain in gone for relation in self.store(domain, 0).relations.values()}

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        try:
            rows = await self.db.fetch("SELECT domain, attempt, deployment, role, epoch FROM datalayer_meta")
        except StaleRoute as error:
            raise self._no_schema() from error
        return {(row[0], row[1]): MetaRow(*row) for row in rows}

    async def write_meta(self, row: MetaRow) -> None:
        await self.db.run(
            "INSERT INTO datalayer_meta AS m (domain, attempt, deployment, role, epoch) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (domain, attempt) DO UPDATE SET deployment = excluded.deployment, role = excluded.role, "
            "epoch = excluded.epoch WHERE excluded.epoch >= m.epoch",
            (row.domain, row.attempt, row.deployment, row.role, row.epoch),
        )

    async def raise_token(self, token: Token) -> None:
        async with self.db.transaction() as tx:
            await take_token(tx, token)

    def _no_schema(self) -> SchemaBehind:
        return SchemaBehind(f"backend {self.name!r} has no datalayer schema", hint="datalayer schema upgrade")


def _store(db: PostgresDatabase, product: PostgresProduct, domain: str, attempt: int) -> SqlStore:
    return _STORES[domain](db, product, attempt)


def _messages(db: PostgresDatabase, product: PostgresProduct, attempt: int) -> SqlStore:
    return PostgresMessages(db, product, attempt, partition=product.partition_messages)


def _search(db: PostgresDatabase, product: PostgresProduct, attempt: int) -> SqlStore:
    return PostgresSearch(db, product, attempt, method=product.search)


_STORES: Final[dict[str, Callable[[PostgresDatabase, PostgresProduct, int], SqlStore]]] = {
    "messages": _messages,
    "users": PostgresUsers,
    "conversations": PostgresConversations,
    "listings": PostgresListings,
    "sessions": PostgresSessions,
    "search": _search,
    "catalogue": PostgresCatalogue,
}


def create_backend(
    name: str,
    url: BackendUrl,
    *,
    pool_max: int,
    clock: Clock,
    replicas: Sequence[BackendUrl] = (),
    partition_messages: Unit | None = None,
    search: Method = "tsvector",
) -> PostgresBackend:
    """A backend of a ``postgresql://`` URL, not yet opened. ``pool_max`` is shared with its replicas.

    ``partition_messages``: places of messages made from now on are partitioned by time. ``search``: how words are found;
    with "like" without an index of words.

    ConfigurationError for a replica behind a pooler.
    """
    process = f"{socket.gethostname()}:{os.getpid()}"
    mine, each = share_out(pool_max, len(replicas))

    def replica(url: BackendUrl) -> PostgresReplica:
        place = place_of(url)
        if url.options.get("pgbouncer"):
            raise ConfigurationError(
                f"the replica at {place} of backend {name!r} is behind a pooler, which hides what server answers",
                hint="give the replica's own address, without pgbouncer=true",
            )
        db = ReplicaDatabase(url, name=f"{name} replica", process=process, pool_max=each)
        product = PostgresProduct(db, clock, search=search)
        return PostgresReplica(db, place, each, lambda domain, attempt: _store(db, product, domain, attempt))

    db = PostgresDatabase(url, name=name, process=process, pool_max=mine)
    read = [replica(one) for one in replicas]
    return PostgresBackend(name, db, clock, read, partition_messages=partition_messages, search=search)
