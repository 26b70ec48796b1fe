"""The Port of every SQL store: tables, scan, fetch, apply. Messages and users add their reads and mutations.

What products do differently - sampling a table's keys, guessing its size, guarding it - is asked of ``SqlProduct``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from datalayer.errors import InvalidArgument, Quarantine, SchemaBehind, StaleRoute
from datalayer.stores.base import ScanPage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import sqlalchemy as sa

    from datalayer.clock import Clock
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.stores.base import Guard
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase, SqlTransaction
    from datalayer.stores.sql.relation import Relation

SAMPLES_PER_RANGE: Final = 16
# How a batch fails with a record in it that cannot be made a row, or a row that the driver refuses. A mistake of ours
# among them comes up again when the records are looked at one by one.
_UNFIT: Final = (InvalidArgument, AttributeError, LookupError, TypeError, ValueError, struct.error)


class Undo(Exception):
    """Raised inside a transaction by its own owner to roll it back; never leaves this package."""


class SqlProduct(Protocol):
    """What differs between SQL products, beyond the dialect."""

    dialect: Dialect
    codec: RowCodec
    clock: Clock

    async def sample(self, db: SqlDatabase, relation: Relation, n: int) -> list[Row]:
        """About ``n`` whole rows spread evenly over the table, cheaply; fewer where there are fewer."""
        ...

    async def estimate(self, db: SqlDatabase, table: sa.Table) -> int:
        """About how many rows the table has, cheaply."""
        ...

    def guard(self, store: SqlStore, attempt: int) -> Guard:
        """Journal and fence of a store for an attempt."""
        ...


class SqlStore:
    """A domain's tables at a place of a SQL database."""

    domain: ClassVar[str]

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int, relations: Sequence[Relation]) -> None:
        self.db = db
        self.product = product
        self.attempt = attempt
        self._guards: dict[int, Guard] = {}
        """By attempt: to put a guard's statements together takes longer than a hold has."""
        self.relations: dict[str, Relation] = {one.kind.name: one for one in relations}
        self.kinds: Sequence[Kind] = tuple(one.kind for one in relations)

    def guard(self, attempt: int) -> Guard:
        if attempt not in self._guards:
            self._guards[attempt] = self.product.guard(self, attempt)
        return self._guards[attempt]

    async def create(self) -> None:
        async with self.db.transaction() as tx:
            for relation in self.relations.values():
                for ddl in relation.creation():
                    await tx.run(ddl)

    async def drop(self) -> None:
        async with self.db.transaction() as tx:
            for relation in self.relations.values():
                await tx.run(relation.removal())

    async def empty(self) -> bool:
        try:
            for relation in self.relations.values():
                if await self.db.fetch(relation.any):
                    return False
        except StaleRoute as error:
            table = next(iter(self.relations.values())).name
            raise SchemaBehind(f"the table {table} does not exist") from error
        return True

    async def estimate(self) -> int:
        return sum([await self.product.estimate(self.db, one.table) for one in self.relations.values()])

    def check(self, record: Record) -> str | None:
        relation = self.relations.get(record.kind)
        if relation is None:
            return f"this store holds no records of the kind {record.kind}"
        try:
            relation.to_row(record)
        except ValueError as error:
            return str(error)
        return None

    # --- scan ------------------------------------------------------------------------------------------------------

    async def plan_scan(self, n: int) -> list[str]:
        ranges: list[str] = []
        for name, relation in self.relations.items():
            last = await self.db.fetch(relation.last)
            if not last:
                continue
            high = relation.to_record(last[0]).key
            sampled = await self.product.sample(self.db, relation, n * SAMPLES_PER_RANGE) if n > 1 else []
            cuts = _cuts([relation.to_record(row).key for row in sampled], high, relation.order, n)
            ranges += [f"{name}:{low.hex()}:{top.hex()}" for low, top in zip([b"", *cuts], [*cuts, high], strict=True)]
        return ranges

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        name, low, high = range_.split(":")
        relation = self.relations[name]
        start = low if after is None else after
        bound = relation.position(bytes.fromhex(high))
        if start:
            position = relation.position(bytes.fromhex(start))
            rows = await self.db.fetch(relation.scan_after, (*bound, *position, limit))
        else:
            rows = await self.db.fetch(relation.scan_first, (*bound, limit))
        to_record = relation.to_record
        records = [to_record(row) for row in rows]
        return ScanPage(records, records[-1].key.hex() if records else after, len(records) < limit)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        for name, relation in self.relations.items():
            items = [relation.item(key) for kind, key in keys if kind == name]
            for sql, params in relation.look_up.calls(items) if items else ():
                for row in await self.db.fetch(sql, params):
                    record = relation.to_record(row)
                    found[name, record.key] = record
        return found

    # --- apply -----------------------------------------------------------------------------------------------------

    async def apply(self, records: Sequence[Record]) -> None:
        await self.apply_through(self._apply_all, records)

    async def apply_through(
        self, apply_all: Callable[[Sequence[Record]], Awaitable[None]], records: Sequence[Record]
    ) -> None:
        """Apply what can be stored in one transaction by ``apply_all``, which is ``apply_in`` with what surrounds it.

        Records are looked at one by one only once they have failed as a whole, which hardly ever happens: a look costs
        as much as the row. What the driver refuses beyond that (InvalidArgument) is found by halving; Quarantine names
        all that were refused.
        """
        try:
            await apply_all(records)
        except _UNFIT:
            await self._apply_checked(apply_all, records)

    async def _apply_checked(
        self, apply_all: Callable[[Sequence[Record]], Awaitable[None]], records: Sequence[Record]
    ) -> None:
        rejected = {record.ident: why for record in records if (why := self.check(record)) is not None}
        good = [record for record in records if record.ident not in rejected] if rejected else records
        await self._apply_halving(apply_all, good, rejected)
        if rejected:
            raise Quarantine(rejected)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        """Store each record that is newer than what is stored, within a transaction of the caller."""
        for relation, rows in self.batches(records):
            await tx.run_many(relation.upsert, rows)

    def batches(self, records: Iterable[Record]) -> list[tuple[Relation, list[Row]]]:
        """The rows of records, by their tables."""
        rows: dict[str, list[Row]] = {}
        for record in records:
            rows.setdefault(record.kind, []).append(self.relations[record.kind].to_row(record))
        return [(self.relations[name], batch) for name, batch in rows.items()]

    async def _apply_all(self, records: Sequence[Record]) -> None:
        async with self.db.transaction() as tx:
            await self.apply_in(tx, records)

    async def _apply_halving(
        self,
        apply_all: Callable[[Sequence[Record]], Awaitable[None]],
        records: Sequence[Record],
        rejected: dict[Key, str],
    ) -> None:
        if not records:
            return
        try:
            await apply_all(records)
        except InvalidArgument as error:
            if len(records) == 1:
                rejected[records[0].ident] = error.message
                return
            half = len(records) // 2
            await self._apply_halving(apply_all, records[:half], rejected)
            await self._apply_halving(apply_all, records[half:], rejected)


def _cuts(keys: list[bytes], high: bytes, order: Callable[[bytes], Any], n: int) -> list[bytes]:
    """At most n - 1 keys that part the sampled ones evenly, strictly rising, all below ``high``."""
    below = sorted({key for key in keys if order(key) < order(high)}, key=order)
    if n < 2 or not below:
        return []
    picked = sorted({len(below) * at // n for at in range(1, n)})
    return [below[at] for at in picked]
