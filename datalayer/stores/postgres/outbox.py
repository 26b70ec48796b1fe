"""The outbox of one place for one index in Postgres: the journal's row triggers under other names, let past by every replayer.

Versions are lifted and hard deletes leave their tombstones as under a guard, for an index takes what is newer and nothing
else. TRUNCATE is refused, for it fires no row trigger. Ending is as of a guard, too: the triggers are switched off, the
tables dropped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from datalayer.domains.movement import INDEXED
from datalayer.errors import StaleRoute
from datalayer.schemas.metadata import outbox_tables
from datalayer.stores.postgres.barrier import Barrier
from datalayer.stores.postgres.guard import GUARD_LOCK, INSTALL_TIMEOUT_S, layout_of
from datalayer.stores.postgres.triggers import CLOCK, GuardText
from datalayer.stores.sql.outbox import SqlOutbox
from datalayer.stores.sql.statement import create_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction
    from datalayer.stores.sql.store import SqlStore

_STANDING: Final = """
SELECT count(*) FROM pg_trigger t WHERE t.tgname = ANY (%s::text[]) AND t.tgenabled = 'A'
  AND t.tgrelid = ANY (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n)"""
_NAMED: Final = r"""
SELECT DISTINCT substring(t.tgname FROM '^datalayer_x_note_(\d+)$')::int FROM pg_trigger t
WHERE t.tgrelid = ANY (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n) AND t.tgname ~ '^datalayer_x_note_\d+$'
  AND t.tgenabled <> 'D'"""


class OutboxText(GuardText):
    """Every statement of one outbox."""

    def __init__(
        self, domain: str, place: int, index: int, schema: str, parts: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(domain, place, index, schema, parts)
        tables = outbox_tables(domain, place, index)
        self.journal, self.tombs = (table.name for table in tables.all)
        self._journal_ddl = [ddl for table in tables.all for ddl in create_table("postgresql", table)]
        label = f"{domain}_{place}_{index}"
        self.truncate_function = f"datalayer_outbox_truncate_{label}"
        self.refuse_function = ""
        self.tables = tuple(
            replace(
                table,
                lift=f"datalayer_outbox_lift_{label}_{table.kind}",
                note=f"datalayer_outbox_note_{label}_{table.kind}",
            )
            for table in self.tables
            if table.kind in INDEXED[domain]
        )
        self._passes_not = "coalesce(current_setting('datalayer.pass', true), '') = ''"

    def journal_triggers(self) -> tuple[str, str, str]:
        # behind those of a guard, which lift first; and not of the names that its fingerprint holds
        return (
            f"datalayer_x_lift_{self.attempt}",
            f"datalayer_x_note_{self.attempt}",
            f"datalayer_x_truncate_{self.attempt}",
        )

    def _entry(self, kind: str, *, gone: bool) -> str:
        return (
            f"INSERT INTO {self.journal} (kind, key, version, gone, since) "  # noqa: S608 - our own names
            f"VALUES ({kind}, changed, stamp, {str(gone).lower()}, {CLOCK}) "
            f"ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version, gone = {str(gone).lower()};"
        )

    def _foreign(self) -> str:
        return ""


class PostgresOutbox(SqlOutbox):
    """The Outbox of one Postgres place."""

    def __init__(self, db: PostgresDatabase, store: SqlStore, index: int) -> None:
        super().__init__(store, index)
        self._postgres = db
        self._index = index
        self._text = OutboxText(store.domain, store.attempt, index, "public")
        self._names = tuple(table.name for table in self._text.tables)
        self._barrier = Barrier(db, self._names)

    async def install(self) -> None:
        async def step(tx: PostgresTransaction) -> None:
            await tx.run(GUARD_LOCK)
            if await self._standing(tx):
                return
            for ddl in (await self._texts(tx)).prepare():
                await tx.run(ddl)
            await self._barrier.lock(tx)
            await tx.run_script(list((await self._texts(tx)).install()))

        await self._barrier.run(step, INSTALL_TIMEOUT_S)

    async def remove(self) -> None:
        async def step(tx: PostgresTransaction) -> None:
            await tx.run(GUARD_LOCK)
            present = await tx.run(
                "SELECT n FROM unnest(%s::text[]) n WHERE to_regclass(n) IS NULL", (list(self._names),)
            )
            if not present:
                await self._barrier.lock(tx)
                await tx.run_script([self._text.switched_off(self._text.journal_triggers())])
            names = ", ".join(table.name for table in self._tables.all)
            await tx.run(f"DROP TABLE IF EXISTS {names}")

        await self._barrier.run(step, INSTALL_TIMEOUT_S)

    async def installed(self) -> bool:
        params = (list(self._text.journal_triggers()), list(self._names))
        rows = await self._db.fetch(_STANDING, params)
        return int(rows[0][0]) == 3 * len(self._names)

    async def _standing(self, tx: PostgresTransaction) -> bool:
        rows = await tx.run("SELECT to_regclass(%s) IS NOT NULL", (self._tables.outbox.name,))
        if not rows[0][0]:
            return False
        if await self.installed():
            return True
        raise StaleRoute(
            f"the outbox of index {self._index} was taken off {self._names[0]} for good, or by another program"
        )

    async def _texts(self, tx: PostgresTransaction) -> OutboxText:
        schema, parts = await layout_of(tx, self._names)
        return OutboxText(self._store.domain, self._store.attempt, self._index, schema, parts)


async def outboxes_at(store: SqlStore) -> list[int]:
    """The indexes that have an outbox on a store's tables."""
    names = [relation.name for relation in store.relations.values()]
    return sorted(int(row[0]) for row in await store.db.fetch(_NAMED, (names,)))
