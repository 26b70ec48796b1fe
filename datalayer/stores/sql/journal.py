"""The journal that triggers write: one row per dirty key, coalesced, in the writer's own transaction.

Replayers read keys without locks (duplicates are harmless), apply the records to the other side, and settle by the
version of the record applied: a key that changed meanwhile stays dirty. The object remembers where ``pending`` stopped
and goes on there, so that keys which cannot be settled (quarantined ones) never starve the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from datalayer.domains.registry import DOMAINS
from datalayer.errors import MigrationError
from datalayer.schemas.metadata import journal_tables
from datalayer.stores.sql.statement import LookUp, first, last_byte, limited, statement
from datalayer.stores.sql.texts import numbered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.sql.database import Dialect
    from datalayer.stores.sql.store import SqlStore


class TriggerJournal:
    """The Journal of one side of one attempt. Every method raises StaleRoute when its tables are gone."""

    def __init__(self, store: SqlStore, attempt: int) -> None:
        self._store = store
        self._db = store.db
        self._sql = journal_statements(store, attempt)
        self._after: dict[tuple[int, int], tuple[str, bytes]] = {}

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        keys = await self._keys(limit, part)
        if not keys:
            return []
        # Rows before tombstones: a key that is absent now has its tombstone already, both in one transaction.
        found = await self._store.fetch(keys)
        absent = [key for key in keys if key not in found]
        if absent:
            found.update(await self.tombstones(absent))
        lost = [key for key in absent if key not in found]
        if lost:
            kind, key = lost[0]
            raise MigrationError(
                f"the journal names {kind} {key.hex()}, which was removed without a tombstone",
                hint="the guard was changed by another program: cancel the migration and start it again",
            )
        return [found[key] for key in keys]

    async def settle(self, seen: Sequence[Record]) -> None:
        items = [(record.kind, record.key, record.version) for record in seen]
        calls = list(self._sql.settle.calls(items)) if items else []
        for sql, params in calls:
            await self._db.run(sql, params)

    async def backlog(self) -> int:
        rows = await self._db.fetch(self._sql.backlog)
        return int(rows[0][0])

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        calls = self._sql.dirty_routing.calls(routings) if keys is None else self._sql.dirty_key.calls(keys)
        for sql, params in calls:
            if await self._db.fetch(sql, params):
                return True
        return False

    async def foreign_writers(self) -> list[str]:
        return [str(row[0]) for row in await self._db.fetch(self._sql.foreign)]

    async def tombstones(self, keys: Sequence[Key]) -> dict[Key, Record]:
        """The tombstones that foreign hard deletes of these keys left."""
        make = DOMAINS[self._store.domain].tombstone
        found: dict[Key, Record] = {}
        for sql, params in self._sql.tombs.calls(keys):
            for kind, raw, version in await self._db.fetch(sql, params):
                key = bytes(raw)
                found[kind, key] = make(kind, key, version)
        return found

    async def _keys(self, limit: int, part: tuple[int, int]) -> list[Key]:
        start = self._after.pop(part, None)
        rows = await self._rows(limit, part, start)
        if start is not None and len(rows) < limit:
            seen = {(kind, key) for kind, key in rows}
            again = await self._rows(limit - len(rows), part, None)
            rows += [row for row in again if row not in seen]
        elif len(rows) == limit:
            self._after[part] = rows[-1]
        return list(rows)

    async def _rows(self, limit: int, part: tuple[int, int], after: tuple[str, bytes] | None) -> list[Key]:
        number, parts = part
        sql = self._sql.pending[after is not None, parts > 1]
        params: list[Any] = [*(after or ()), *((parts, number) if parts > 1 else ()), limit]
        return [(kind, bytes(key)) for kind, key in await self._db.fetch(sql, params)]


UNSYNCED: Final = sa.text("(SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL")
"""A settle need not wait for the disk: one that a crash of the server forgets leaves a key dirty that was clean."""


def journal_statements(store: SqlStore, attempt: int) -> JournalStatements:
    """Those of a store's journal for an attempt."""
    return numbered(JournalStatements, store.product.dialect, store.domain, number=attempt)


class JournalStatements:
    """The texts of one journal."""

    def __init__(self, dialect: Dialect, domain: str, attempt: int) -> None:
        journal, tombs, foreign = journal_tables(domain, attempt).all
        keys: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
        one = first(dialect, sa.select(sa.literal_column("1")).select_from(journal))
        self.dirty_routing = LookUp(dialect, one.where(journal.c.routing.in_(keys)), "keys", None)
        found = sa.select(tombs.c.kind, tombs.c.key, tombs.c.version)
        kinds = [kind.name for kind in DOMAINS[domain].kinds]
        self.dirty_key = KeyLookUp(dialect, one, journal, kinds)
        self.tombs = KeyLookUp(dialect, found, tombs, kinds)
        self.backlog = statement(dialect, sa.select(sa.func.count()).select_from(journal)).sql
        self.foreign = statement(dialect, sa.select(foreign.c.name).order_by(foreign.c.name)).sql
        triple = sa.tuple_(journal.c.kind, journal.c.key, journal.c.version)
        settled: sa.ColumnElement[bool] = triple.in_(keys)
        if dialect == "postgresql":
            # in key order and without waiting, so that two replayers and a writer never wait for each other
            locked = sa.select(journal.c.kind, journal.c.key, journal.c.version).where(settled)
            locked = locked.order_by(journal.c.kind, journal.c.key).with_for_update(skip_locked=True)
            settled = sa.and_(triple.in_(locked), UNSYNCED)
        self.settle = LookUp(dialect, sa.delete(journal).where(settled), "keys", (None, None, None))
        pair = sa.tuple_(journal.c.kind, journal.c.key)
        low = sa.tuple_(
            sa.bindparam("after_kind", type_=journal.c.kind.type), sa.bindparam("after_key", type_=journal.c.key.type)
        )
        number, parts = (sa.bindparam(name, type_=sa.Integer) for name in ("number", "parts"))
        self.pending: dict[tuple[bool, bool], str] = {}
        for after in (False, True):
            for parted in (False, True):
                core = sa.select(journal.c.kind, journal.c.key).order_by(journal.c.kind, journal.c.key)
                core = core.where(pair > low) if after else core
                core = core.where(last_byte(journal.c.key) % parts == number) if parted else core
                names = (["after_kind", "after_key"] if after else []) + (["parts", "number"] if parted else [])
                self.pending[after, parted] = statement(dialect, limited(dialect, core), *names, "limit").sql


class KeyLookUp:
    """A look-up by (kind, key), kind by kind: for pairs of a text and bytes SQLite uses one column of the index only."""

    def __init__(self, dialect: Dialect, core: sa.Select[Any], table: sa.Table, kinds: Sequence[str]) -> None:
        keys: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
        self._by_kind = {}
        for kind in kinds:
            at = core.where(table.c.kind == sa.literal_column(f"'{kind}'"), table.c.key.in_(keys))
            self._by_kind[kind] = LookUp(dialect, at, "keys", None)

    def calls(self, keys: Sequence[Key]) -> Iterator[tuple[str, list[Any]]]:
        """(text, parameters) of each chunk of the keys."""
        for kind, look_up in self._by_kind.items():
            mine = [key for name, key in keys if name == kind]
            if mine:
                yield from look_up.calls(mine)
