"""The buckets of Cassandra's outbox, over rows in a dictionary: what comes late is found by whoever must find it."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.errors import Unavailable
from datalayer.stores.base import Entry
from datalayer.stores.cassandra.cells import pack_bigint
from datalayer.stores.cassandra.outbox import BUCKET_US, HINT_WINDOW_US, OPEN_BUCKETS, CassandraOutbox, _position

NOON_US = 1_790_000_000_000_000
HOUR_US = 3_600_000_000


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: int = NOON_US) -> None:
        self.now = now

    def now_us(self) -> int:
        return self.now


class Tables:
    """The two tables of an outbox, as far as its statements go, and the servers' clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.buckets: dict[int, dict[str, bool | None]] = {}
        self.rows: dict[tuple[int, int, bytes, bytes], tuple[int, bool, int]] = {}
        self.asked: list[str] = []

    def run(self, name: str, values: tuple[bytes, ...]) -> list[tuple[Any, ...]]:
        self.asked.append(name)
        numbers = [int.from_bytes(value, "big", signed=True) for value in values]
        answers: dict[str, Any] = {
            "time": lambda: [(self.clock.now // 1000,)],
            "open": lambda: self.buckets.setdefault(numbers[0], {"drained": None}),
            "drained": lambda: self.buckets.setdefault(numbers[0], {}).update(drained=True),
            "close_mark": lambda: self.buckets.get(numbers[0], {}).update(drained=None),
            "close": lambda: self.buckets.pop(numbers[0], None),
            "buckets": lambda: sorted((bucket, cells["drained"]) for bucket, cells in self.buckets.items()),
            "enter": lambda: self.rows.update(
                {self._at(numbers, values): (numbers[4], values[5] == b"\x01", numbers[6])}
            ),
            "read": lambda: self._read(*numbers),
            "find": lambda: [(1,)] if self._at(numbers, values) in self.rows else [],
            "settle": lambda: self.rows.pop((numbers[1], numbers[2], values[3], values[4]), None),
        }
        found = answers[name]()
        return found if isinstance(found, list) else []

    def _at(self, numbers: list[int], values: tuple[bytes, ...]) -> tuple[int, int, bytes, bytes]:
        return numbers[0], numbers[1], values[2], values[3]

    def _read(self, bucket: int, shard: int, limit: int) -> list[tuple[Any, ...]]:
        mine = [(key, row) for key, row in self.rows.items() if key[:2] == (bucket, shard)]
        return [(UUID(bytes=key[2]), UUID(bytes=key[3]), *row) for key, row in mine][:limit]


class Box(CassandraOutbox):
    """The outbox of one process."""

    def __init__(self, tables: Tables, clock: Clock | None = None) -> None:
        super().__init__(Nowhere(), "k", clock or tables.clock, 0, 0)  # type: ignore[arg-type]
        self.tables = tables
        self.after_enter: Any = None

    async def _run(self, name: str, values: Any, place: Any = None, *, write: bool = False) -> list[tuple[Any, ...]]:
        del place, write
        found = self.tables.run(name, values)
        if name == "enter" and self.after_enter is not None:
            self.after_enter()
        return found


class Nowhere:
    where = "cassandra"


def entry(version: int = NOON_US) -> Entry:
    return Entry("message", uuid4().bytes + uuid4().bytes, version)


async def drained(tables: Tables) -> Box:
    """The outbox of an indexer that has found a bucket empty and marked it."""
    box = Box(tables)
    first = entry()
    await Box(tables).enter([first])
    assert [one.ident for one in await box.pending(10)] == [first.ident]
    await box.settle([first])
    tables.clock.now += 60_000_000
    assert await box.pending(10) == []
    assert [cells["drained"] for cells in tables.buckets.values()] == [True]
    return box


def put_late(tables: Tables) -> Entry:
    """A row that lands in the drained bucket, as that of a writer that stood still between two of its requests."""
    late = entry()
    position, ids = _position(min(tables.buckets), late.key)
    tables.run("enter", (*position, *ids, pack_bigint(late.version), b"\x00", pack_bigint(NOON_US)))
    return late


async def test_what_came_late_is_found_by_a_process_that_has_just_begun() -> None:
    tables = Tables()
    await drained(tables)
    late = put_late(tables)
    assert await Box(tables).holds([late.ident])
    assert await Box(tables).lag(10) == (1, NOON_US)
    tables.buckets[min(tables.buckets)]["drained"] = True
    assert [one.ident for one in await Box(tables).pending(10)] == [late.ident]


async def test_what_came_late_is_handed_over_by_the_process_that_looked_a_moment_before() -> None:
    tables = Tables()
    indexer = await drained(tables)
    late = put_late(tables)
    assert await indexer.pending(10) == [], "it is not due yet"
    assert [one.ident for one in await indexer.pending(10, every=True)] == [late.ident]


async def test_whoever_finds_an_entry_in_a_drained_bucket_shows_it_to_all() -> None:
    tables = Tables()
    indexer = await drained(tables)
    late = put_late(tables)
    assert await Box(tables).lag(10) == (1, NOON_US)
    for _ in range(3):
        assert [one.ident for one in await indexer.pending(10)] == [late.ident]


async def test_drained_buckets_cost_little_and_are_looked_at_again() -> None:
    tables = Tables()
    indexer = await drained(tables)
    tables.asked.clear()
    for _ in range(5):
        await indexer.pending(10)
    assert "read" not in tables.asked
    late = put_late(tables)
    tables.clock.now += 60_000_000
    assert [one.ident for one in await indexer.pending(10)] == [late.ident]


async def test_a_writer_that_stood_still_enters_again_where_every_reader_looks() -> None:
    tables = Tables()
    writer, one = Box(tables), entry()

    def stand_still() -> None:
        writer.after_enter = None
        tables.clock.now += OPEN_BUCKETS * BUCKET_US

    writer.after_enter = stand_still
    await writer.enter([one])
    assert {key[0] for key in tables.rows} == {NOON_US // BUCKET_US, NOON_US // BUCKET_US + OPEN_BUCKETS}
    indexer = Box(tables)
    assert [found.ident for found in await indexer.pending(10)] == [one.ident]
    await indexer.settle([one])
    assert tables.rows == {}


async def test_a_writer_that_never_gets_through_in_time_says_so() -> None:
    tables = Tables()
    writer = Box(tables)

    def stand_still() -> None:
        tables.clock.now += OPEN_BUCKETS * BUCKET_US

    writer.after_enter = stand_still
    with pytest.raises(Unavailable, match="take longer than their bucket is open"):
        await writer.enter([entry()])


@pytest.mark.parametrize("off_us", [-5 * HOUR_US, 5 * HOUR_US])
async def test_machines_whose_clocks_are_wrong_by_hours_write_and_close_by_the_clusters(off_us: int) -> None:
    tables = Tables()
    wrong = Clock(NOON_US + off_us)
    one = entry()
    await Box(tables, wrong).enter([one])
    assert list(tables.buckets) == [NOON_US // BUCKET_US]
    reader = Box(tables, wrong)
    (found,) = await reader.pending(10)
    assert (found.ident, found.since) == (one.ident, NOON_US)
    await reader.settle([found])
    await reader.pending(10)
    assert list(tables.buckets) == [NOON_US // BUCKET_US], "a bucket in use is not closed"


async def test_a_bucket_that_is_empty_and_older_than_any_hint_goes() -> None:
    tables = Tables()
    indexer = await drained(tables)
    tables.clock.now = NOON_US + HINT_WINDOW_US + BUCKET_US
    await indexer.pending(10)
    assert tables.buckets == {}
