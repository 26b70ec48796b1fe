"""The outbox of one place for one index: a queue in buckets of time, so that it grows and shrinks with the cluster.

A write is entered before it is sent, at the write quorum: so an acknowledged record has its entry, whoever dies when, and a
batch over two tables (which the server logs on two more nodes, and refuses beyond 50 KiB) is not needed. An entry may then
name a version that never comes; its reader clears it when it has waited for longer than any hint (routing/indexer.py).

Entries carry their version as their timestamp, and are removed by a delete with the timestamp of what the index holds: it
takes what is older with it, a late hint of it included, and leaves what is newer alone.

A reader looks at the newest buckets each time. A bucket that was found empty is marked as drained, and looked at when a reader
first meets it and then at growing intervals, until it is older than the hint window: then its row goes. Whoever finds an entry
there takes the mark off again. A writer that stood still enters again, in a bucket that every reader looks at. Buckets are
those of the cluster's clock: a machine whose own is wrong by hours would write where nobody looks, or close what is in use.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.errors import StaleRoute, Unavailable
from datalayer.stores.base import Entry
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cells import pack_bigint, pack_int

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from datalayer.clock import Clock
    from datalayer.domains.record import Key
    from datalayer.stores.cassandra.session import CassandraSession

BUCKET_US: Final = 10_000_000
OPEN_BUCKETS: Final = 4
"""The newest buckets, and those of clocks that are ahead: looked at each time."""
SHARDS: Final = 8
HINT_WINDOW_US: Final = 4 * 3600 * 1_000_000
"""Longer than max_hint_window (3 h by default)."""
AT_ONCE: Final = 32
BUCKETS_AT_ONCE: Final = 4
ENTER_TRIES: Final = 3
KNOWN_MAX: Final = 1_000
REMEMBERED_MAX: Final = 100_000
_PREFIX: Final = "datalayer_outbox_"
_CREATE: Final = (
    (
        "CREATE TABLE IF NOT EXISTS {table} (bucket int, shard int, conversation_id uuid, id uuid, version bigint, "
        "gone boolean, since bigint, PRIMARY KEY ((bucket, shard), conversation_id, id)) WITH gc_grace_seconds = 86400"
    ),
    (
        "CREATE TABLE IF NOT EXISTS {table}_buckets (part int, bucket int, drained boolean, PRIMARY KEY (part, bucket)) "
        "WITH gc_grace_seconds = 86400"
    ),
)
_CQL: Final = {
    # No cell but its key: one fixed timestamp makes every repeat equal.
    "open": "INSERT INTO {table}_buckets (part, bucket) VALUES (0, ?) USING TIMESTAMP 1",
    "drained": "UPDATE {table}_buckets SET drained = true WHERE part = 0 AND bucket = ?",
    "close": "DELETE FROM {table}_buckets USING TIMESTAMP 1 WHERE part = 0 AND bucket = ?",
    "close_mark": "DELETE drained FROM {table}_buckets WHERE part = 0 AND bucket = ?",
    "time": "SELECT toUnixTimestamp(now()) FROM system.local",
    "buckets": "SELECT bucket, drained FROM {table}_buckets WHERE part = 0",
    "enter": "INSERT INTO {table} (bucket, shard, conversation_id, id, version, gone, since) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "USING TIMESTAMP ?",
    "read": "SELECT conversation_id, id, version, gone, since FROM {table} WHERE bucket = ? AND shard = ? LIMIT ?",
    "find": "SELECT version FROM {table} WHERE bucket = ? AND shard = ? AND conversation_id = ? AND id = ?",
    "settle": "DELETE FROM {table} USING TIMESTAMP ? WHERE bucket = ? AND shard = ? AND conversation_id = ? AND id = ?",
}


class _Waiting(NamedTuple):
    since: int
    entry: Entry


class CassandraOutbox:
    """The Outbox of one place. The object remembers in which buckets it met a key."""

    def __init__(self, session: CassandraSession, keyspace: str, clock: Clock, place: int, index: int) -> None:
        self._session = session
        self._keyspace = keyspace
        self._clock = clock
        self._name = f"{_PREFIX}{place}_{index}"
        self._table = f'"{keyspace}".{self._name}'
        self._statements: dict[str, Any] | None = None
        self._opened: dict[int, None] = {}
        self._met: dict[bytes, set[int]] = {}
        self._drained: set[int] = set()
        self._due: dict[int, int] = {}
        """When a drained bucket is looked at again; one that was not met before, now."""
        self._ahead_us: int | None = None
        """How much the cluster's clock is ahead of this machine's."""
        self._asked_us = 0

    # --- making and removing it ---------------------------------------------------------------------------------------------

    async def install(self) -> None:
        for cql in _CREATE:
            await self._session.change_schema(cql.format(table=self._table))

    async def remove(self) -> None:
        self._statements = None
        for table in (self._table, f"{self._table}_buckets"):
            await self._session.change_schema(f"DROP TABLE IF EXISTS {table}")
        for cql in _CQL.values():
            self._session.forget(cql.format(table=self._table))

    async def installed(self) -> bool:
        tables = (self._name, f"{self._name}_buckets")
        return all([await self._session.has_table(self._keyspace, table) for table in tables])

    # --- writers ------------------------------------------------------------------------------------------------------------

    async def enter(self, entries: Sequence[Entry]) -> None:
        for _ in range(ENTER_TRIES if entries else 0):
            bucket = await self._enter_now(entries)
            if await self._now_us() < (bucket + OPEN_BUCKETS - 1) * BUCKET_US:
                return
        if entries:
            raise Unavailable(f"{self._session.where}: entries of a search index take longer than their bucket is open")

    async def _enter_now(self, entries: Sequence[Entry]) -> int:
        """Enter in the present bucket; which it is."""
        now = await self._now_us()
        bucket = now // BUCKET_US
        if bucket not in self._opened:
            await self._run("open", (pack_int(bucket),), write=True)
            self._opened[bucket] = None
            while len(self._opened) > KNOWN_MAX:
                del self._opened[next(iter(self._opened))]
        await self._each(self._enter(entry, bucket, entry.since or now) for entry in entries)
        return bucket

    async def _enter(self, entry: Entry, bucket: int, since: int) -> None:
        place, ids = _position(bucket, entry.key)
        version = pack_bigint(entry.version)
        gone = b"\x01" if entry.gone else b"\x00"
        await self._run("enter", (*place, *ids, version, gone, pack_bigint(since), version), place, write=True)
        self._remember(entry.key, bucket)

    # --- the reader ---------------------------------------------------------------------------------------------------------

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1), every: bool = False) -> list[Entry]:
        number, of = part
        found: dict[Key, _Waiting] = {}
        async for waiting in self._walk(await self._to_read(every=every), limit):
            for one in waiting:
                if one.entry.key[-1] % of != number:
                    continue
                known = found.get(one.entry.ident)
                if known is None or known.entry.version < one.entry.version:
                    found[one.entry.ident] = one if known is None else _Waiting(known.since, one.entry)
            if len(found) >= limit:
                break
        return [one.entry for one in sorted(found.values())[:limit]]

    async def settle(self, entries: Sequence[Entry]) -> None:
        await self._each(
            self._settle(entry, bucket) for entry in entries for bucket in sorted(self._met.pop(entry.key, ()))
        )

    async def _settle(self, entry: Entry, bucket: int) -> None:
        place, ids = _position(bucket, entry.key)
        await self._run("settle", (pack_bigint(entry.version), *place, *ids), place, write=True)

    async def holds(self, keys: Sequence[Key]) -> bool:
        found: list[bool] = []
        shards = {key[-1] % SHARDS for _, key in keys}

        async def look(bucket: int, key: bytes) -> None:
            place, ids = _position(bucket, key)
            found.append(bool(await self._run("find", (*place, *ids), place)))

        async def late(bucket: int, shard: int) -> None:
            place = (pack_int(bucket), pack_int(shard))
            if await self._run("read", (*place, pack_int(1)), place):
                for key in (key for _, key in keys if key[-1] % SHARDS == shard):
                    await look(bucket, key)

        buckets = await self._buckets()
        await self._each(look(bucket, key) for bucket, drained in buckets if not drained for _, key in keys)
        if not any(found):
            await self._each(late(bucket, shard) for bucket, drained in buckets if drained for shard in shards)
        return any(found)

    async def lag(self, limit: int) -> tuple[int, int | None]:
        waiting: dict[Key, int] = {}
        async for found in self._walk(await self._to_read(), limit, mark=False):
            for one in found:
                waiting[one.entry.ident] = min(one.since, waiting.get(one.entry.ident, one.since))
            if len(waiting) >= limit:
                break
        return min(len(waiting), limit), min(waiting.values(), default=None)

    # --- buckets ------------------------------------------------------------------------------------------------------------

    async def _buckets(self) -> list[tuple[int, bool]]:
        """(bucket, whether it was found drained), oldest first."""
        found = [(bucket, bool(drained)) for bucket, drained in await self._run("buckets", ())]
        self._drained = {bucket for bucket, drained in found if drained}
        return found

    async def _to_read(self, *, every: bool = False) -> list[int]:
        now = await self._now_us()
        old = now - OPEN_BUCKETS * BUCKET_US
        return [
            bucket
            for bucket, drained in await self._buckets()
            if every or not drained or bucket * BUCKET_US >= old or now >= self._due.get(bucket, 0)
        ]

    async def _walk(self, buckets: Sequence[int], limit: int, *, mark: bool = True) -> AsyncIterator[list[_Waiting]]:
        """What waits in these buckets, some of them at a time."""
        for at in range(0, len(buckets), BUCKETS_AT_ONCE):
            some = buckets[at : at + BUCKETS_AT_ONCE]
            found = await asyncio.gather(*(self._read(bucket, limit, mark=mark) for bucket in some))
            yield [one for waiting in found for one in waiting]

    async def _read(self, bucket: int, limit: int, *, mark: bool) -> list[_Waiting]:
        waiting: list[_Waiting] = []

        async def read(shard: int) -> None:
            place = (pack_int(bucket), pack_int(shard))
            for conversation, id, version, gone, since in await self._run("read", (*place, pack_int(limit)), place):
                key = conversation.bytes + id.bytes
                if version is not None:
                    waiting.append(_Waiting(since, Entry("message", key, version, bool(gone), since)))
                    self._remember(key, bucket)

        await self._each(read(shard) for shard in range(SHARDS))
        now = await self._now_us()
        age = now - bucket * BUCKET_US
        if waiting:
            self._due.pop(bucket, None)
            if bucket in self._drained:
                await self._run("close_mark", (pack_int(bucket),), write=True)
        elif age > OPEN_BUCKETS * BUCKET_US:
            self._due[bucket] = now + age // 2
            if mark:
                await self._found_empty(bucket, age)
        return waiting

    async def _found_empty(self, bucket: int, age: int) -> None:
        if age <= HINT_WINDOW_US:
            if bucket not in self._drained:
                await self._run("drained", (pack_int(bucket),), write=True)
            return
        await self._run("close_mark", (pack_int(bucket),), write=True)
        await self._run("close", (pack_int(bucket),), write=True)
        self._due.pop(bucket, None)

    async def _now_us(self) -> int:
        """The cluster's clock: asked once in a bucket's time, and carried on by this machine's."""
        own = self._clock.now_us()
        if self._ahead_us is None or not 0 <= own - self._asked_us < BUCKET_US:
            ((now_ms,),) = await self._run("time", ())
            self._ahead_us, self._asked_us = now_ms * 1_000 - own, own
        return own + self._ahead_us

    # --- parts --------------------------------------------------------------------------------------------------------------

    def _remember(self, key: bytes, bucket: int) -> None:
        self._met.setdefault(key, set()).add(bucket)
        while len(self._met) > REMEMBERED_MAX:
            del self._met[next(iter(self._met))]  # it is met again

    async def _each(self, calls: Iterable[Any]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(call: Any) -> None:
            async with room:
                await call

        await asyncio.gather(*(one(call) for call in calls))

    async def _run(
        self, name: str, values: tuple[bytes, ...], place: tuple[bytes, bytes] | None = None, *, write: bool = False
    ) -> list[tuple[Any, ...]]:
        statements = self._statements or await self._prepare()
        routing = None if place is None else b"".join(b"\x00\x04" + part + b"\x00" for part in place)
        return await self._session.run(bound(statements[name], values, routing), write=write)

    async def _prepare(self) -> dict[str, Any]:
        if not await self.installed():
            raise StaleRoute(f"{self._session.where}: there is no table {self._name}")
        texts = [cql.format(table=self._table) for cql in _CQL.values()]
        prepared = await asyncio.gather(*(self._session.prepare(text) for text in texts))
        self._statements = dict(zip(_CQL, prepared, strict=True))
        return self._statements


def _position(bucket: int, key: bytes) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """(partition, clustering key) of a key in a bucket."""
    return (pack_int(bucket), pack_int(key[-1] % SHARDS)), (key[:16], key[16:])


async def outboxes_at(session: CassandraSession, keyspace: str, place: int) -> list[int]:
    """The indexes that have an outbox of a place."""
    statement = await session.prepare("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?")
    rows = await session.run(bound(statement, (keyspace.encode(),)), write=False)
    start = f"{_PREFIX}{place}_"
    numbers = {str(row[0]).removeprefix(start) for row in rows if str(row[0]).startswith(start)}
    return sorted(int(number) for number in numbers if number.isdigit())
