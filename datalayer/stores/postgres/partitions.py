"""Messages by time: the table of a place, partitioned by ranges of the id, whose first 48 bits are its time.

A place has one partition for each period (month, week, day) from the oldest to some time ahead, and two open ends: one
for whatever is older, one for whatever is newer. There is no DEFAULT partition: with one, Postgres reads every partition
of a conversation for its newest page instead of the newest alone, and an id of a time for which nobody made a partition
would keep that partition from being made. So no write is ever refused for want of a partition.

Whoever writes makes what is missing: for the ids of a batch, or for the next periods at a process's first append of a
period. An end is split in one short transaction that has the whole table alone; the few rows in it that belong into the
new partitions are moved while these are detached, so no trigger fires and nothing has changed for anybody. It is given
up, without harm, when the lock is not had in time or the end has grown too large: then rows stay in the end.

Detaching takes all partitions that end before a time out of the table at once, and keeps them as tables of their own.
Guards: a change is made under ``live_guards``, gives the new partitions the statement triggers of their parent, and
renews the fingerprints of guards that were sound before. Detaching is refused while there is a guard.
"""

# ruff: noqa: S608 - every name in these texts comes from the catalogue or is made from constants and numbers

from __future__ import annotations

import itertools
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID

from datalayer.errors import PreconditionFailed, StaleRoute, Unavailable
from datalayer.stores.postgres.barrier import Barrier
from datalayer.stores.postgres.guard import live_guards
from datalayer.stores.sql.statement import create_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import sqlalchemy as sa

    from datalayer.clock import Clock
    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction
    from datalayer.stores.sql.store import SqlStore

Unit = Literal["month", "week", "day"]
AHEAD: Final[dict[Unit, int]] = {"month": 3, "week": 6, "day": 14}
"""Periods made ahead of the one that it is now."""
OLDEST_MS: Final = 1_262_304_000_000
"""2010: what is older than that is no time of a message, and stays in the open end."""
PARTS_MAX: Final = 240
"""A query that names a conversation alone locks each partition and its index: more would fill the server's lock table."""
SPLIT_BYTES_MAX: Final = 64 << 20
"""An end that has grown beyond this is not split any more: it would be read while everybody waits."""
BULK_WAIT_S: Final = 10.0
APPEND_WAIT_S: Final = 1.0
RETRY_S: Final = 60.0
_TIME_BITS: Final = 80
_NO_ID: Final = b"\xff" * 16
_BOUNDS: Final = re.compile(r"FROM \((.+)\) TO \((.+)\)")
_ON_TABLE: Final = re.compile(r" ON .+? FOR EACH STATEMENT ")
_PARTS: Final = """
SELECT p.oid::regclass::text, pg_get_expr(p.relpartbound, p.oid) FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
WHERE i.inhparent = to_regclass(%s)::oid AND NOT i.inhdetachpending"""
_TRIGGERS: Final = """
SELECT tgrelid::regclass::text, tgname::text, pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger
WHERE tgrelid IN (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n) AND tgname ~ '^datalayer_' AND (tgtype & 1) = 0
ORDER BY tgrelid, tgname"""
_TAKEN: Final = "SELECT n FROM unnest(%s::text[]) n WHERE to_regclass(n) IS NOT NULL"
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """One partition, from ``low`` to below ``high``; None: open."""

    name: str
    low: UUID | None
    high: UUID | None


# --- periods ---------------------------------------------------------------------------------------------------------


def start_of(unit: Unit, ms: int) -> int:
    """When the period began that this instant lies in (UTC; weeks begin on Monday); all in ms since 1970."""
    day = datetime.fromtimestamp(ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "month":
        day = day.replace(day=1)
    elif unit == "week":
        day -= timedelta(days=day.weekday())
    return int(day.timestamp()) * 1000


def next_start(unit: Unit, ms: int) -> int:
    """When the period after it begins."""
    days = {"month": 31, "week": 7, "day": 1}[unit]
    return start_of(unit, start_of(unit, ms) + days * 86_400_000)


def lowest_id(ms: int) -> UUID:
    """The lowest id of an instant."""
    return UUID(int=ms << _TIME_BITS)


def time_of(id: UUID) -> int:
    """The time of an id, or of a bound, in ms."""
    return id.int >> _TIME_BITS


def create_partitioned(table: sa.Table, unit: Unit, now_ms: int) -> list[str]:
    """DDL that makes a place's table, where it is absent, with partitions for now and ahead."""
    head, *indexes = create_table("postgresql", table)
    bounds = [start_of(unit, now_ms)]
    while len(bounds) <= AHEAD[unit] + 1:
        bounds.append(next_start(unit, bounds[-1]))
    ends = [None, *bounds, None]
    parts = [
        f"CREATE TABLE {_name(table.name, low, high)} PARTITION OF {table.name} {_values(low, high)}"
        for low, high in itertools.pairwise(ends)
    ]
    return [f"{head} PARTITION BY RANGE (id)", *indexes, *parts]


def _name(table: str, low: int | None, high: int | None) -> str:
    if low is None:
        return f"{table}_older"
    return f"{table}_newer" if high is None else f"{table}_from_{_day(low)}"


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y%m%d")


def _values(low: int | None, high: int | None) -> str:
    first = "MINVALUE" if low is None else f"'{lowest_id(low)}'"
    last = "MAXVALUE" if high is None else f"'{lowest_id(high)}'"
    return f"FOR VALUES FROM ({first}) TO ({last})"


def _bound(text: str) -> UUID | None:
    return None if text in {"MINVALUE", "MAXVALUE"} else UUID(text.strip("'"))


# --- one place -------------------------------------------------------------------------------------------------------


class Partitions:
    """The partitions of one place. ``unit`` None: none are made; what there is can still be looked at and detached."""

    def __init__(self, db: PostgresDatabase, store: SqlStore, unit: Unit | None, clock: Clock) -> None:
        self._db = db
        self._store = store
        self._unit = unit
        self._clock = clock
        self._table: sa.Table = next(iter(store.relations.values())).table
        self._barrier = Barrier(db, (self._table.name,), alone=True)
        self._low = _NO_ID
        self._high = b""
        self._again_at = 0.0
        """Ids from ``_low`` to below ``_high`` need no look; after a look that did not help there is none for a while."""

    async def create(self) -> None:
        """Make the place, partitioned, where it is absent; idempotent."""
        assert self._unit is not None, "a place without a unit is a plain table"
        async with self._db.transaction() as tx:
            # CREATE IF NOT EXISTS of two sessions at once fails in the catalogue
            await tx.run("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"datalayer {self._table.name}",))
            if not await tx.run(_TAKEN, ([self._table.name],)):
                await tx.run_script(create_partitioned(self._table, self._unit, self._now_ms()))

    async def cover(self, ids: Iterable[bytes], wait_s: float = BULK_WAIT_S) -> None:
        """Make the partitions that these ids need, and those ahead. Raises nothing that a write need not raise itself:
        where it cannot be done the rows land in an open end.
        """
        if self._unit is None:
            return
        outside = [id for id in ids if not self._low <= id < self._high]
        if not outside or self._clock.monotonic() < self._again_at:
            return
        now_ms = self._now_ms()
        ahead = now_ms
        for _ in range(AHEAD[self._unit]):
            ahead = next_start(self._unit, ahead)
        times = [ms for id in outside if OLDEST_MS <= (ms := int.from_bytes(id[:6])) <= ahead]
        if not times:
            return  # not a look that did not help: the next ids may need one
        self._again_at = self._clock.monotonic() + RETRY_S
        try:
            parts = await self._split_ends(min(times), ahead, wait_s)
        except (Unavailable, PreconditionFailed, StaleRoute) as error:
            _log.warning("partitions of %s are not made now: %s", self._table.name, error.message)
            return
        if parts:
            self._low = (parts[0].high or lowest_id(0)).bytes
            self._high = lowest_id(next_start(self._unit, now_ms)).bytes
            if min(times) >= int.from_bytes(self._low[:6]):
                self._again_at = 0.0
        else:
            self._low, self._high = b"", _NO_ID  # a plain table, or partitioned by somebody else's plan

    async def listed(self) -> list[tuple[Part, int]]:
        """The partitions by time with their bytes; none of a plain table."""
        parts = await self._parts(self._db.fetch)
        sizes = await self._db.fetch(
            "SELECT pg_total_relation_size(n::regclass) FROM unnest(%s::text[]) WITH ORDINALITY u(n, at) ORDER BY at",
            ([part.name for part in parts],),
        )
        return [(part, int(row[0])) for part, row in zip(parts, sizes, strict=True)]

    async def stuck(self) -> list[str]:
        """The open ends that hold too much to be split: no partition is made there any more."""
        parts = await self._parts(self._db.fetch)
        return await self._too_large(self._db.fetch, [part for part in parts if part.low is None or part.high is None])

    async def detach(self, before_ms: int, wait_s: float) -> list[str]:
        """Take every partition out whose every id is older; their names as tables from now on, oldest first.

        One transaction: all of them or none, and a repeat finds none. PreconditionFailed while a guard is on, and
        where the table is not partitioned by time; Unavailable, naming who is in the way, in ``wait_s``.
        """
        gone: list[str] = []

        async def step(tx: PostgresTransaction) -> None:
            gone.clear()
            if await live_guards(tx, self._db, self._store):
                raise PreconditionFailed(
                    f"{self._table.name} of {self._db.where} is being moved: nothing can be detached meanwhile",
                    hint="complete or cancel the migration first: datalayer migrations status",
                )
            parts = await self._parts(tx.run)
            if not parts:
                raise PreconditionFailed(f"{self._table.name} of {self._db.where} is not partitioned by time")
            old = [part for part in parts if part.high is not None and part.high <= lowest_id(before_ms)]
            rows = await tx.run(f"SELECT EXISTS (SELECT FROM {parts[0].name})") if old else [(False,)]
            if len(old) > 1 or rows[0][0]:
                await self._barrier.lock(tx)
                if await self._parts(tx.run) != parts:
                    raise Unavailable(f"the partitions of {self._table.name} have changed just now", hint="try again")
                gone.extend(await self._take_out(tx, old))

        await self._barrier.run(step, wait_s)
        return gone

    # --- splitting an end --------------------------------------------------------------------------------------------

    async def _split_ends(self, oldest: int, ahead: int, wait_s: float) -> list[Part]:
        parts = await self._parts(self._db.fetch)
        if not parts or not await self._wanted(self._db.fetch, parts, oldest, ahead):
            return parts

        async def step(tx: PostgresTransaction) -> None:
            guards = await live_guards(tx, self._db, self._store)
            await self._barrier.lock(tx)
            sound = [guard for guard in guards if await guard.sound(tx)]
            found = await self._parts(tx.run)
            for end, bounds in await self._wanted(tx.run, found, oldest, ahead) if found else ():
                await self._split(tx, end, bounds)
            for guard in sound:
                await guard.remember(tx)

        await self._barrier.run(step, wait_s)
        return await self._parts(self._db.fetch)

    async def _wanted(self, run: Any, parts: Sequence[Part], oldest: int, ahead: int) -> list[tuple[Part, list[int]]]:
        """The ends to split, each with the bounds of its new partitions, the one that it has already among them."""
        assert self._unit is not None, "asked by cover alone"
        first, last = parts[0], parts[-1]
        assert first.high is not None, "a partitioned place has two open ends"
        assert last.low is not None, "a partitioned place has two open ends"
        room = PARTS_MAX - len(parts)
        up = [time_of(last.low)]
        while up[-1] <= ahead and len(up) <= room:
            up.append(next_start(self._unit, up[-1]))
        down = [time_of(first.high)]
        while oldest < down[0] and len(up) + len(down) <= room:
            down.insert(0, start_of(self._unit, down[0] - 1))
        found = [(end, bounds) for end, bounds in ((last, up), (first, down)) if len(bounds) > 1]
        large = await self._too_large(run, [end for end, _ in found])
        if large:
            _log.warning("%s holds more than %d MB: it is not split any more", large[0], SPLIT_BYTES_MAX >> 20)
        return [(end, bounds) for end, bounds in found if end.name not in large]

    async def _too_large(self, run: Any, ends: Sequence[Part]) -> list[str]:
        sizes = await run(
            "SELECT n, pg_table_size(n::regclass) FROM unnest(%s::text[]) n", ([end.name for end in ends],)
        )
        return [str(name) for name, size in sizes if size > SPLIT_BYTES_MAX]

    async def _split(self, tx: PostgresTransaction, end: Part, bounds: Sequence[int]) -> None:
        """Make partitions between the bounds, which lie next to each other; what is left of the end remains open.

        Everybody waits meanwhile: what there is to ask is asked first, and all is done in one round trip.
        """
        table = self._table.name
        inside = f"id >= '{lowest_id(bounds[0])}' AND id < '{lowest_id(bounds[-1])}'"
        names = await self._free_names(tx, [_name(table, low, high) for low, high in itertools.pairwise(bounds)])
        made = [(name, low, high) for name, (low, high) in zip(names, itertools.pairwise(bounds), strict=True)]
        rows = (await tx.run(f"SELECT EXISTS (SELECT FROM {end.name} WHERE {inside})"))[0][0]
        script = await self._detached(tx, [end.name])
        script += [f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)" for name in names]
        if rows:
            script += [
                f"INSERT INTO {name} SELECT * FROM {end.name} WHERE id >= '{lowest_id(low)}' AND id < '{lowest_id(high)}'"
                for name, low, high in made
            ]
            script.append(f"DELETE FROM {end.name} WHERE {inside}")
        left = (None, bounds[0]) if end.low is None else (bounds[-1], None)
        await tx.run_script([*script, *await self._attached(tx, [*made, (end.name, *left)])])

    async def _attached(
        self, tx: PostgresTransaction, parts: Iterable[tuple[str, int | None, int | None]]
    ) -> list[str]:
        """DDL that attaches tables. Row triggers come with it; the statement triggers that are on are copied."""
        on = [row for row in await tx.run(_TRIGGERS, ([self._table.name],)) if row[3] != "D"]
        script = []
        for name, low, high in parts:
            script.append(f"ALTER TABLE {self._table.name} ATTACH PARTITION {name} {_values(low, high)}")
            for _, trigger, text, _ in on:
                script.append(_ON_TABLE.sub(lambda _, name=name: f" ON {name} FOR EACH STATEMENT ", text, count=1))  # type: ignore[misc]
                script.append(f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}")
        return script

    async def _detached(self, tx: PostgresTransaction, names: Sequence[str]) -> list[str]:
        """DDL that makes partitions tables without any trigger of ours."""
        script = [f"ALTER TABLE {self._table.name} DETACH PARTITION {name}" for name in names]
        found = await tx.run(_TRIGGERS, (list(names),))
        return [*script, *(f"DROP TRIGGER {trigger} ON {name}" for name, trigger, _, _ in found)]

    # --- detaching ---------------------------------------------------------------------------------------------------

    async def _take_out(self, tx: PostgresTransaction, old: Sequence[Part]) -> list[str]:
        table, first = self._table.name, old[0]
        assert first.high is not None, "only what ends is old"
        assert old[-1].high is not None, "only what ends is old"
        stays = not (await tx.run(f"SELECT EXISTS (SELECT FROM {first.name})"))[0][0]
        script = await self._detached(tx, [part.name for part in old])
        leave = old[1:] if stays else old
        days = [
            f"before_{_day(time_of(first.high))}" if part.low is None else _day(time_of(part.low)) for part in leave
        ]
        gone = await self._free_names(tx, [f"{table}_detached_{day}" for day in days])
        script += [f"ALTER TABLE {part.name} RENAME TO {name}" for part, name in zip(leave, gone, strict=True)]
        if not stays:
            script.append(f"CREATE TABLE {first.name} (LIKE {table} INCLUDING ALL)")
        await tx.run_script([*script, *await self._attached(tx, [(first.name, None, time_of(old[-1].high))])])
        return gone

    async def _free_names(self, tx: PostgresTransaction, wanted: Sequence[str]) -> list[str]:
        """These names, each with a number where something has it."""
        found: list[str] = []
        taken = {str(row[0]) for row in await tx.run(_TAKEN, (list(wanted),))}
        for name in wanted:
            free, number = name, 1
            while free in taken:
                number += 1
                free = f"{name}_{number}"
                taken |= {str(row[0]) for row in await tx.run(_TAKEN, ([free],))}
            found.append(free)
        return found

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _parts(self, run: Any) -> list[Part]:
        """The partitions by time; [] unless the table is one of ours: two open ends, and no gap between them."""
        found = []
        for name, text in await run(_PARTS, (self._table.name,)):
            bounds = _BOUNDS.search(str(text))
            if bounds is None:
                return []
            found.append(Part(str(name), *map(_bound, bounds.groups())))
        found.sort(key=lambda part: part.low.int if part.low else -1)
        whole = len(found) > 1 and found[0].low is None and found[-1].high is None
        joined = all(one.high == two.low for one, two in itertools.pairwise(found))
        return found if whole and joined else []

    def _now_ms(self) -> int:
        return self._clock.now_us() // 1000
