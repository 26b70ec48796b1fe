"""The outbox that triggers write: a row for each key that an index has not taken in, in the writer's own transaction.

Settling compares versions, not rows: an entry may be written before its record can be read (a store without transactions
does so), and stays until the index holds a record of that version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from datalayer.domains.movement import INDEXED
from datalayer.schemas.metadata import outbox_tables
from datalayer.stores.base import Entry
from datalayer.stores.sql.journal import UNSYNCED, KeyLookUp
from datalayer.stores.sql.statement import first, insert, last_byte, limited, statement
from datalayer.stores.sql.texts import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key
    from datalayer.stores.sql.database import Dialect
    from datalayer.stores.sql.store import SqlStore


class SqlOutbox:
    """``pending``, ``settle``, ``enter`` and ``lag`` of an Outbox; making and removing it is each product's own."""

    def __init__(self, store: SqlStore, index: int) -> None:
        self._store = store
        self._db = store.db
        self._clock = store.product.clock
        self._tables = outbox_tables(store.domain, store.attempt, index)
        self._sql = numbered(OutboxStatements, store.product.dialect, store.domain, index, number=store.attempt)

    async def enter(self, entries: Sequence[Entry]) -> None:
        if entries:
            now = self._clock.now_us()
            values = [(*entry[:4], entry.since or now) for entry in sorted(entries)]
            async with self._db.transaction() as tx:
                await tx.run_many(self._sql.enter, values)

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1), every: bool = False) -> list[Entry]:
        del every  # always
        number, parts = part
        params = [parts, number, limit] if parts > 1 else [limit]
        rows = await self._db.fetch(self._sql.pending[parts > 1], params)
        return [Entry(kind, bytes(key), version, bool(gone), since) for kind, key, version, gone, since in rows]

    async def settle(self, entries: Sequence[Entry]) -> None:
        if entries:
            values = [(entry.kind, entry.key, entry.version) for entry in sorted(entries)]
            async with self._db.transaction() as tx:
                await tx.run_many(self._sql.settle, values)

    async def holds(self, keys: Sequence[Key]) -> bool:
        for sql, params in self._sql.holds.calls(keys):
            if await self._db.fetch(sql, params):
                return True
        return False

    async def lag(self, limit: int) -> tuple[int, int | None]:
        rows = await self._db.fetch(self._sql.lag, [limit])
        return int(rows[0][0]), rows[0][1]


class OutboxStatements:
    """The texts of one outbox."""

    def __init__(self, dialect: Dialect, domain: str, index: int, place: int) -> None:
        outbox, kinds = outbox_tables(domain, place, index).outbox, INDEXED[domain]
        columns = ("kind", "key", "version", "gone", "since")
        core = insert(dialect, outbox).values({name: sa.bindparam(name) for name in columns})
        later = core.on_conflict_do_update(
            index_elements=["kind", "key"],
            set_={"version": core.excluded.version, "gone": core.excluded.gone},
            where=core.excluded.version > outbox.c.version,
        )
        self.enter = statement(dialect, later, *columns).sql
        kind, key, version = (sa.bindparam(f"of_{c.name}", type_=c.type) for c in list(outbox.c)[:3])
        cleared = sa.and_(outbox.c.kind == kind, outbox.c.key == key, outbox.c.version <= version)
        if dialect == "postgresql":
            cleared = sa.and_(cleared, UNSYNCED)
        self.settle = statement(dialect, sa.delete(outbox).where(cleared), "of_kind", "of_key", "of_version").sql
        self.pending: dict[bool, str] = {}
        number, parts = (sa.bindparam(name, type_=sa.Integer) for name in ("number", "parts"))
        for parted in (False, True):
            columns_of = (outbox.c[name] for name in columns)
            rows: sa.Select[Any] = sa.select(*columns_of).order_by(outbox.c.since)
            rows = rows.where(last_byte(outbox.c.key) % parts == number) if parted else rows
            names = ["parts", "number"] if parted else []
            self.pending[parted] = statement(dialect, limited(dialect, rows), *names, "limit").sql
        one = first(dialect, sa.select(sa.literal_column("1")).select_from(outbox))
        self.holds = KeyLookUp(dialect, one, outbox, kinds)
        some = limited(dialect, sa.select(outbox.c.since).order_by(outbox.c.since)).subquery()
        self.lag = statement(dialect, sa.select(sa.func.count(), sa.func.min(some.c.since)), "limit").sql
