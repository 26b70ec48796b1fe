"""What is Cassandra's own in the messages store: buckets, the order of two writes, rings, batches and limits.

The contract suites hold for this store as for every other; here is what they cannot know.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from cassandra.query import BatchStatement

from datalayer.domains.messages import to_message
from datalayer.domains.record import Record
from datalayer.errors import Quarantine, Unavailable
from datalayer.stores.cassandra import bulk, cells, cluster, history, scan
from datalayer.stores.cassandra.backend import CassandraBackend
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.messages import CassandraMessages
from datalayer.types import Message
from tests.integration.cassandra_backends import (
    START_US,
    conversation_of,
    deleted,
    message,
    new_place,
    opened,
    within,
)
from tests.integration.murmur_twins import twin_conversation
from tests.integration.replicated import until
from tests.servers import Servers

pytestmark = pytest.mark.servers

BUCKET_US = cells.BUCKET_MS * 1000


@pytest.fixture(scope="module")
def url(servers: Servers) -> str:
    return servers.cassandra().create_keyspace(f"messages_{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return iter(range(1, 1000))


@pytest.fixture
async def backend(url: str) -> AsyncIterator[CassandraBackend]:
    async with opened(url) as backend:
        yield backend


@pytest.fixture
async def store(backend: CassandraBackend, attempts: Iterator[int]) -> AsyncIterator[CassandraMessages]:
    store = await new_place(backend, next(attempts))
    yield store
    await store.drop()


class HistoryModel:
    """A dict of records, and what history would say of it."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}

    def put(self, records: list[Record]) -> None:
        for record in records:
            stored = self.records.get(record.key)
            if stored is None or stored.version < record.version:
                self.records[record.key] = record

    def history(
        self, conversation: UUID, limit: int, *, after: UUID | None, oldest_first: bool, include_deleted: bool
    ) -> list[Message]:
        found = [to_message(r) for key, r in self.records.items() if key[:16] == conversation.bytes]
        found = [m for m in found if include_deleted or not m.deleted]
        found.sort(key=lambda m: m.id.bytes, reverse=not oldest_first)
        if after is not None:
            found = [m for m in found if (m.id.bytes > after.bytes) is oldest_first and m.id != after]
        return found[:limit]


def rooms(rng: random.Random) -> dict[UUID, list[Record]]:
    """Conversations of every shape: eight messages over years, one message in each of many buckets, dense ones."""
    shapes = {
        "thin": [START_US + rng.randrange(70) * BUCKET_US + rng.randrange(BUCKET_US) for _ in range(8)],
        "one a bucket": [START_US + n * BUCKET_US for n in range(history.BUCKETS_PAGE + 30)],
        "dense": [START_US + n * 1000 for n in range(300)],
        "uneven": [START_US + rng.randrange(6) ** 2 * BUCKET_US + rng.randrange(BUCKET_US) for _ in range(200)],
        "single": [START_US],
    }
    made = {conversation_of(rng): times for times in shapes.values()}
    return {room: [message(room, at, rng, body=f"at {at}") for at in times] for room, times in made.items()}


async def test_history_equals_a_model_over_any_shape_of_buckets(store: CassandraMessages) -> None:
    rng = random.Random(20)
    model = HistoryModel()
    talk = rooms(rng)
    written = [record for records in talk.values() for record in records]
    gone = [deleted(record) for record in rng.sample(written, len(written) // 4)]
    for records in (written, gone):
        await store.apply(records)
        model.put(records)
    for _ in range(150):
        room = rng.choice(list(talk))
        after = None if rng.random() < 0.3 else UUID(bytes=rng.choice(talk[room]).key[16:])
        flags = {"oldest_first": rng.random() < 0.5, "include_deleted": rng.random() < 0.3}
        limit = rng.choice([1, 2, 7, 50, 1000])
        expected = model.history(room, limit, after=after, **flags)
        assert await store.history(room, limit, within(20), after=after, **flags) == expected
    # The control: the model notices when a bucket is not known to the table.
    room, records = next((room, records) for room, records in talk.items() if len(records) == 1)
    place = store._place
    lost = await place.session.prepare(f"DELETE FROM {place._buckets} WHERE conversation_id = ?")
    await place.session.run(bound(lost, (room.bytes,)), write=True)
    assert await store.history(room, 5, within(5), include_deleted=True) == []
    assert model.history(room, 5, after=None, oldest_first=False, include_deleted=True) != []


async def test_history_of_a_thin_conversation_reads_its_buckets_only(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(21)
    room = conversation_of(rng)
    await store.apply([message(room, START_US + years * 12 * BUCKET_US, rng) for years in range(8)])
    asked = await _requests(store, monkeypatch, lambda: store.history(room, 50, within(5)))
    assert len(asked) == 1 + 8
    dense = conversation_of(rng)
    await store.apply([message(dense, START_US + n * BUCKET_US // 40, rng) for n in range(400)])
    asked = await _requests(store, monkeypatch, lambda: store.history(dense, 50, within(5)))
    assert len(asked) <= 1 + 3


async def test_bucket_is_confirmed_before_its_first_record_is_sent(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(22)
    session = store._session
    begin = session.begin

    async def no_records(statement: Any, *, write: bool, **rest: Any) -> Any:
        inserts = [getattr(statement, "values", None), *getattr(statement, "_statements_and_parameters", [])]
        if any(len(one) == 5 or len(one[-1]) == 5 for one in inserts if one):
            raise Unavailable("the process died here")
        return await begin(statement, write=write, **rest)

    for number in (1, 300):
        room = conversation_of(rng)
        records = [message(room, START_US + n * BUCKET_US, rng) for n in range(number)]
        with monkeypatch.context() as patch:
            patch.setattr(session, "begin", no_records)
            with pytest.raises(Unavailable):
                await store.apply(records)
        assert await store.fetch([record.ident for record in records]) == {}
        # A writer without any memory of the crash, and without another bucket row, is seen by history.
        monkeypatch.setattr(store._writer, "_known", {cells.partition_of(r.key): None for r in records[:10]})
        await store.apply(records[:10])
        assert len(await store.history(room, 50, within(5))) == min(number, 10)


async def test_memory_of_buckets_ends_with_the_node_that_confirmed_them(
    store: CassandraMessages, backend: CassandraBackend
) -> None:
    rng = random.Random(23)
    room = conversation_of(rng)
    await store.apply([message(room, START_US, rng)])
    place = store._place
    lost = await place.session.prepare(f"TRUNCATE {place._buckets}")
    await place.session.run(bound(lost, ()), write=True)
    await store.apply([message(room, START_US + 1, rng)])
    assert await store.history(room, 5, within(5)) == []  # the control: this is what the memory would hide
    backend._session.on_down()
    await store.apply([message(room, START_US + 2, rng)])
    assert len(await store.history(room, 5, within(5))) == 3


async def test_memory_of_buckets_is_bounded(store: CassandraMessages, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(24)
    monkeypatch.setattr(bulk, "KNOWN_BUCKETS_MAX", 50)
    rooms = [conversation_of(rng) for _ in range(120)]
    await store.apply([message(room, START_US, rng) for room in rooms])
    assert len(store._writer._known) == 50
    for room in rooms:
        assert len(await store.history(room, 5, within(5))) == 1


async def test_scan_pages_stay_small_in_a_large_partition(store: CassandraMessages) -> None:
    rng = random.Random(25)
    room = conversation_of(rng)
    written = [message(room, START_US + n, rng, body="x" * 20_000) for n in range(1200)]
    for at in range(0, len(written), 200):
        await store.apply(written[at : at + 200])
    assert len({cells.partition_of(record.key) for record in written}) == 1
    found: list[Record] = []
    pages = 0
    (whole,) = await store.plan_scan(1)
    after, done = None, False
    while not done:
        page = await store.scan(whole, after, 1000)
        found += page.records
        after, done, pages = page.after, page.done, pages + 1
        assert sum(len(cells.encode(record)) for record in page.records) <= scan.PAGE_BYTES + 21_000
    assert sorted(found) == sorted(written)
    assert pages >= 6  # the control: 24 MB do not pass in fewer


async def test_partitions_of_one_token_are_all_scanned(store: CassandraMessages) -> None:
    rng = random.Random(26)
    room = conversation_of(rng)
    first = message(room, START_US, rng)
    rooms = [room, *(twin_conversation(cells.routing_key(cells.partition_of(first.key)), rng) for _ in range(3))]
    written = [message(one, START_US + n, rng) for one in rooms for n in range(5)]
    await store.apply(written)
    for limit in (1, 2, 5, 7, 100):
        found: list[Record] = []
        tokens: set[str] = set()
        for range_ in await store.plan_scan(2):
            after, done = None, False
            while not done:
                page = await store.scan(range_, after, limit)
                found += page.records
                after, done = page.after, page.done
                tokens |= {after.split(":")[0]} if after else set()
        assert sorted(found) == sorted(written)
        assert len(tokens) == 1, "the control: all four partitions share their token"


async def test_batch_that_the_server_refuses_is_halved_until_all_have_landed(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(27)
    monkeypatch.setattr(bulk, "BATCH_BYTES_MAX", 64 << 20)
    room = conversation_of(rng)
    written = [message(room, START_US + n, rng, body="x" * (2 << 20)) for n in range(7)]
    asked = await _requests(store, monkeypatch, lambda: store.apply(written))
    assert len(asked) > 2  # the control: it did not pass in one piece
    assert set((await store.fetch([r.ident for r in written])).values()) == set(written)


async def test_record_that_only_the_server_refuses_is_named_and_the_others_land(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(28)
    monkeypatch.setattr(cells, "CELL_BYTES_MAX", 64 << 20)
    room = conversation_of(rng)
    large = message(room, START_US, rng, body="x" * (9 << 20))
    others = [message(room, START_US + n, rng) for n in range(1, 20)]
    assert store.check(large) is None  # the control: our own limit would have named it
    with pytest.raises(Quarantine) as caught:
        await store.apply([*others[:10], large, *others[10:]])
    assert list(caught.value.rejected) == [large.ident]
    with pytest.raises(Quarantine):
        await store.apply([large])
    assert set(await store.fetch([r.ident for r in [large, *others]])) == {r.ident for r in others}


@pytest.mark.parametrize("driver_s_own", [False, True])
async def test_small_writes_wait_for_a_socket_that_is_full_of_large_ones(
    store: CassandraMessages, servers: Servers, monkeypatch: pytest.MonkeyPatch, driver_s_own: bool
) -> None:
    rng = random.Random(29)
    monkeypatch.setattr(cells, "CELL_BYTES_MAX", 64 << 20)
    room = conversation_of(rng)
    node = servers.cassandra()
    await store.apply([message(room, START_US, rng)])  # its bucket is known: a request for each record from now on
    connections = [pool._connection for pool in store._session._session._pools.values()]
    if driver_s_own:  # the control: the driver would refuse them
        monkeypatch.delattr(cluster._Connection, "_socket_writable")
        for connection in connections:
            connection._socket_writable = True
    small = [message(room, START_US + 10 + n, rng) for n in range(50)]
    node.pause()
    try:
        large = [
            asyncio.create_task(store.apply([message(room, START_US + n, rng, body="x" * (9 << 20))])) for n in range(4)
        ]
        sizes = [-1]
        await until(lambda: _is_still(connections, sizes))
        writes = [asyncio.create_task(store.apply([record])) for record in small]
        await asyncio.wait(writes, timeout=0.5)
    finally:
        node.resume()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    refused = await asyncio.gather(*large, return_exceptions=True)
    if driver_s_own:
        assert any(isinstance(answer, Unavailable) for answer in answers)
        return
    assert all(isinstance(answer, Quarantine) for answer in refused)
    assert answers == [None] * len(small)
    assert set((await store.fetch([r.ident for r in small])).values()) == set(small)


def _is_still(connections: list[Any], sizes: list[int]) -> bool:
    """Whether something is queued, and as much as at the last look: the kernel takes nothing more."""
    sizes.append(sum(len(piece) for connection in connections for piece in list(connection.deque)))
    return 0 < sizes[-1] == sizes[-2]


async def test_remainders_of_small_partitions_share_requests_within_what_the_server_takes_silently(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(32)
    rooms = [conversation_of(rng) for _ in range(60)]
    written = [message(room, START_US + n, rng) for room in rooms for n in range(2)]
    large = [message(conversation_of(rng), START_US, rng, body="x" * 5000) for _ in range(3)]
    asked = await _requests(store, monkeypatch, lambda: store.apply([*written, *large]))
    puts = [one for one in asked if not _is_bucket(one)]
    assert len(puts) < len(rooms) / 4 + len(large)
    for statement in puts:
        rows = _rows_of(statement)
        partitions = {(row[0], row[1]) for row in rows}
        assert len(partitions) <= bulk.SHARED_PARTITIONS_MAX
        assert len(partitions) == 1 or sum(len(row[3]) + bulk.ROW_BYTES for row in rows) <= bulk.SHARED_BYTES_MAX
    assert set((await store.fetch([r.ident for r in [*written, *large]])).values()) == {*written, *large}
    # the control: where the replicas are not known, each partition travels alone
    monkeypatch.setattr(store._session, "replicas", lambda *_: None)
    asked = await _requests(store, monkeypatch, lambda: store.apply([*written, *large]))
    assert len([one for one in asked if not _is_bucket(one)]) == len(rooms) + len(large)


async def test_partitions_of_different_replicas_never_share_a_request(
    store: CassandraMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(33)
    rooms = [conversation_of(rng) for _ in range(40)]
    written = [message(room, START_US + n, rng) for room in rooms for n in range(2)]

    def parity(_: str, key: bytes) -> frozenset[int]:
        return frozenset({key[2] % 2})

    monkeypatch.setattr(store._session, "replicas", parity)
    asked = await _requests(store, monkeypatch, lambda: store.apply(written))
    puts = [_rows_of(one) for one in asked if not _is_bucket(one)]
    assert max(len({row[0] for row in rows}) for rows in puts) > 1  # the control: some are shared
    assert all(len({row[0][0] % 2 for row in rows}) == 1 for rows in puts)


async def test_bulk_apply_leaves_the_event_loop_free(store: CassandraMessages) -> None:
    rng = random.Random(29)
    written = [message(conversation_of(rng), START_US + n, rng, body="x" * 700) for n in range(50)]
    room = conversation_of(rng)
    written += [message(room, START_US + n, rng, body="x" * 700) for n in range(4000)]
    turns = 0
    done = asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await store.apply(written)
    done.set()
    await counting
    assert turns >= 40  # at least one turn for each hundred rows


async def test_message_of_a_cell_equals_the_record_s_message(store: CassandraMessages) -> None:
    rng = random.Random(30)
    room = conversation_of(rng)
    plain = message(room, START_US, rng, body='quotes " and \\ and \x01 and \U0001f600')
    fields = (plain.fields[0], plain.fields[1], "image", b"\x07" * 16, b"\x08" * 32, 12345, '{"a":[1,null,"b"]}')
    for record in (plain, plain._replace(fields=fields), deleted(plain)):
        cell = cells.encode(record).decode()
        assert cells.message_of(room, UUID(bytes=record.key[16:]), cell) == to_message(record)
        assert cells.decode(record.key[:16], record.key[16:], cell) == record


async def test_estimate_is_right_within_a_factor(store: CassandraMessages) -> None:
    rng = random.Random(31)
    assert await store.estimate() == 0
    rooms = [conversation_of(rng) for _ in range(400)]
    await store.apply([message(room, START_US + n, rng) for room in rooms[:100] for n in range(2)])
    assert await store.estimate() == 200
    await store.apply([message(room, START_US + n, rng) for room in rooms for n in range(20)])
    assert 4000 <= await store.estimate() <= 16_000


async def _requests(store: CassandraMessages, monkeypatch: pytest.MonkeyPatch, call: Any) -> list[Any]:
    """The statements that a call sends."""
    asked: list[Any] = []
    begin = store._session.begin

    async def noted(statement: Any, **rest: Any) -> Any:
        asked.append(statement)
        return await begin(statement, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(store._session, "begin", noted)
        await call()
    return asked


def _rows_of(statement: Any) -> list[Any]:
    """The serialised rows of one insert or batch."""
    if isinstance(statement, BatchStatement):
        return [values for _, _, values in statement._statements_and_parameters]
    return [statement.values]


def _is_bucket(statement: Any) -> bool:
    """Whether a request writes rows of the table of buckets."""
    return len(_rows_of(statement)[0]) == 2
