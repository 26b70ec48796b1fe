"""What a SQL database says of itself: its schema's revision, the domains it holds, the newest coordinators' tokens."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

import sqlalchemy as sa

from datalayer.errors import LostLease, SchemaBehind, StaleRoute
from datalayer.schemas import history
from datalayer.schemas.metadata import (
    META_COLUMNS,
    TOKEN_COLUMNS,
    base_tables,
    meta_table,
    schema_table,
    token_table,
)
from datalayer.stores.base import MetaRow, Role, Token
from datalayer.stores.sql.statement import create_table, insert, statement, values_of
from datalayer.stores.sql.texts import once

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.clock import Deadline
    from datalayer.stores.sql.database import Dialect, SqlDatabase, SqlTransaction


class SqlMeta:
    """Schema revision, meta rows and tokens of one database."""

    def __init__(
        self, db: SqlDatabase, *, extra_tables: Sequence[sa.Table] = (), extra_ddl: Sequence[str] = ()
    ) -> None:
        self._db = db
        self._extra_tables = extra_tables
        self._extra_ddl = extra_ddl
        self._sql = once(_Statements, db.dialect)

    async def ensure_schema(self, *, create: bool) -> None:
        """SchemaBehind or SchemaAhead unless this version can serve the schema; a missing one is made when told."""
        try:
            rows = await self._db.fetch(self._sql.revision)
        except StaleRoute as error:
            if not create:
                raise SchemaBehind("this database has no datalayer schema", hint=history.HINT) from error
            rows = []
        if rows:
            history.THIS.check([str(row[0]) for row in rows], "this database")
            return
        if not create:
            raise SchemaBehind("this database has no datalayer schema", hint=history.HINT)
        await self._create()

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        """All rows, by (domain, attempt)."""
        rows = await self._db.fetch(self._sql.read)
        found = [
            MetaRow(domain, attempt, owner, cast("Role", role), epoch) for domain, attempt, owner, role, epoch in rows
        ]
        return {(row.domain, row.attempt): row for row in found}

    async def write_meta(self, row: MetaRow) -> None:
        """Upsert unless the stored row has a higher epoch."""
        await self._db.run(self._sql.write, (row.domain, row.attempt, row.deployment, row.role, row.epoch))

    async def raise_token(self, token: Token, deadline: Deadline | None = None) -> None:
        """Record the token; LostLease when a higher one of the domain is there."""
        if not await self._db.run(self._sql.token, token_values(token), deadline=deadline):
            raise overtaken(token)

    async def hold_token(self, tx: SqlTransaction, token: Token) -> None:
        """Lock the domain's token row until the transaction ends; LostLease when it holds a higher one.

        The first act of every coordinator's transaction: a newer coordinator's token is never overtaken.
        """
        if not await tx.run(self._sql.token, token_values(token)):
            raise overtaken(token)

    async def _create(self) -> None:
        async with self._db.transaction() as tx:
            extra = (ddl for table in self._extra_tables for ddl in create_table(self._db.dialect, table))
            for ddl in (*once(_first_ddl, self._db.dialect), *extra, *self._extra_ddl):
                await tx.run(ddl)
            for revision in history.THIS.heads:
                await tx.run(self._sql.stamp, (revision,))


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        meta, schema = meta_table(), schema_table()
        self.revision = statement(dialect, sa.select(schema.c.version_num)).sql
        stamp = insert(dialect, schema).values(version_num=sa.bindparam("version_num")).on_conflict_do_nothing()
        self.stamp = statement(dialect, stamp, "version_num").sql
        self.read = statement(dialect, sa.select(*(meta.c[name] for name in META_COLUMNS))).sql
        self.write = statement(dialect, _upsert_meta(dialect, meta), *META_COLUMNS).sql
        self.token = raise_token_sql(dialect)


def _first_ddl(dialect: Dialect) -> tuple[str, ...]:
    return tuple(ddl for table in (schema_table(), *base_tables()) for ddl in create_table(dialect, table))


@cache
def raise_token_sql(dialect: Dialect) -> str:
    """Stores a token and locks its row; returns no row when a higher one of the domain is there."""
    return statement(dialect, _raise_token(dialect, token_table()), *TOKEN_COLUMNS).sql


def token_values(token: Token) -> tuple[str, str, int, int]:
    """The parameters of ``raise_token_sql``."""
    return (token.domain, token.migration, token.attempt, token.value)


def overtaken(token: Token) -> LostLease:
    """The error for a coordinator whose token is not the newest."""
    return LostLease(f"a newer coordinator than {token.value} of migration {token.migration} works on {token.domain}")


def _upsert_meta(dialect: Dialect, meta: sa.Table) -> sa.sql.expression.Executable:
    core = insert(dialect, meta).values(values_of(META_COLUMNS))
    upsert: sa.sql.expression.Executable = core.on_conflict_do_update(
        index_elements=["domain", "attempt"],
        set_={name: core.excluded[name] for name in META_COLUMNS[2:]},
        where=core.excluded.epoch >= meta.c.epoch,
    )
    return upsert


def _raise_token(dialect: Dialect, token: sa.Table) -> sa.sql.expression.Executable:
    """The value alone orders them: it comes from the one lease of the domain, whose number never falls.

    The attempt does not: a purge of an earlier attempt is younger than the steps of a later one.
    """
    core = insert(dialect, token).values(values_of(TOKEN_COLUMNS))
    upsert: sa.sql.expression.Executable = core.on_conflict_do_update(
        index_elements=["domain"],
        set_={name: core.excluded[name] for name in TOKEN_COLUMNS[1:]},
        where=core.excluded.value >= token.c.value,
    ).returning(token.c.value)
    return upsert
