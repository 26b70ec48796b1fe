"""The outbox of one place for one index: a queue in buckets of time, so that it grows and shrinks with the cluster.

A write is entered before it is sent, at the write quorum: so an acknowledged record has its entry, whoever dies when, and a
batch over two tables (which the server logs on two more nodes, and refuses beyond 50 KiB) is not needed. An entry may then
name a version that never comes; its reader leaves it until it has waited for longer than any hint.

Entries carry their version as their timestamp, and are removed by a delete with the timestamp of what the index holds: it
takes what is older with it, a late hint of it included, and leaves what is newer alone.

A reader looks at the newest buckets each time. A bucket that was found empty is marked as drained, and looked at again at
growing intervals until it is older than the hint window: a writer that stood still may come late. Then its row goes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.errors import StaleRoute
from datalayer.stores.base import Entry
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cells import pack_bigint, pack_int

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        self._due: dict[int, int] = {}
        """When a drained bucket is looked at again."""

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
        now = self._clock.now_us()
        bucket = now // BUCKET_US
        if entries and bucket not in self._opened:
            await self._run("open", (pack_int(bucket),), write=True)
            self._opened[bucket] = None
            while len(self._opened) > KNOWN_MAX:
                del self._opened[next(iter(self._opened))]
        await self._each(self._enter(entry, bucket, now) for entry in entries)

    async def _enter(self, entry: Entry, bucket: int, now: int) -> None:
        place, ids = _position(bucket, entry.key)
        version = pack_bigint(entry.version)
        gone = b"\x01" if entry.gone else b"\x00"
        await self._run("enter", (*place, *ids, version, gone, pack_bigint(now), version), place, write=True)
        self._remember(entry.key, bucket)

    # --- the reader ---------------------------------------------------------------------------------------------------------

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Entry]:
        number, of = part
        found: dict[Key, _Waiting] = {}
        for bucket in await self._to_read():
            waiting = [one for one in await self._read(bucket, limit) if one.entry.key[-1] % of == number]
            for one in waiting:
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
        buckets = [bucket for bucket, drained in await self._buckets() if not drained]
        found: list[bool] = []

        async def look(bucket: int, key: bytes) -> None:
            place, ids = _position(bucket, key)
            found.append(bool(await self._run("find", (*place, *ids), place)))

        await self._each(look(bucket, key) for bucket in buckets for _, key in keys)
        return any(found)

    async def lag(self, limit: int) -> tuple[int, int | None]:
        waiting: dict[Key, int] = {}
        for bucket, drained in await self._buckets():
            if not drained:
                for one in await self._read(bucket, limit, mark=False):
                    waiting[one.entry.ident] = min(one.since, waiting.get(one.entry.ident, one.since))
            if len(waiting) >= limit:
                break
        return min(len(waiting), limit), min(waiting.values(), default=None)

    # --- buckets ------------------------------------------------------------------------------------------------------------

    async def _buckets(self) -> list[tuple[int, bool]]:
        """(bucket, whether it was found drained), oldest first."""
        return [(bucket, bool(drained)) for bucket, drained in await self._run("buckets", ())]

    async def _to_read(self) -> list[int]:
        now = self._clock.now_us()
        chosen = []
        for bucket, drained in await self._buckets():
            age = now - bucket * BUCKET_US
            if drained and age > OPEN_BUCKETS * BUCKET_US:
                if now < self._due.setdefault(bucket, now + age // 2):
                    continue
                self._due[bucket] = now + age // 2
            chosen.append(bucket)
        return chosen

    async def _read(self, bucket: int, limit: int, *, mark: bool = True) -> list[_Waiting]:
        waiting: list[_Waiting] = []

        async def read(shard: int) -> None:
            place = (pack_int(bucket), pack_int(shard))
            for conversation, id, version, gone, since in await self._run("read", (*place, pack_int(limit)), place):
                key = conversation.bytes + id.bytes
                if version is not None:
                    waiting.append(_Waiting(since, Entry("message", key, version, bool(gone))))
                    self._remember(key, bucket)

        await self._each(read(shard) for shard in range(SHARDS))
        age = self._clock.now_us() - bucket * BUCKET_US
        if mark and not waiting and age > OPEN_BUCKETS * BUCKET_US:
            await self._found_empty(bucket, age)
        return waiting

    async def _found_empty(self, bucket: int, age: int) -> None:
        if age <= HINT_WINDOW_US:
            await self._run("drained", (pack_int(bucket),), write=True)
            return
        await self._run("close_mark", (pack_int(bucket),), write=True)
        await self._run("close", (pack_int(bucket),), write=True)
        self._due.pop(bucket, None)

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
