"""A Cassandra that dies, hangs or is cut off: errors of the right class, and service again without a restart of ours."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from datalayer.domains.messages import to_message
from datalayer.domains.record import Record
from datalayer.errors import DatalayerError, DeadlineExceeded, OutcomeUnknown, Unavailable
from datalayer.stores.cassandra import session as sessions
from datalayer.stores.cassandra.backend import CassandraBackend
from datalayer.stores.cassandra.messages import CassandraMessages
from tests.integration.cassandra_backends import START_US, conversation_of, message, opened, within
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers

BACK_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def url(servers: Servers) -> str:
    return servers.cassandra().create_keyspace(f"outage_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def proxy(url: str) -> Iterator[TcpProxy]:
    with TcpProxy.before(url) as proxy:
        yield proxy


@pytest.fixture
async def backend(url: str, proxy: TcpProxy) -> AsyncIterator[CassandraBackend]:
    async with opened(proxy.url(url)) as backend:
        yield backend


@pytest.fixture
async def store(backend: CassandraBackend) -> CassandraMessages:
    store = backend.store("messages", 0)
    rng = random.Random()
    await store.apply([message(conversation_of(rng), START_US, rng)])  # every statement is prepared
    return store


async def _answers(store: CassandraMessages, record: Record, seconds: float) -> float:
    """How long until a write succeeds."""
    started = time.monotonic()
    while True:
        try:
            await store.apply([record])
            return time.monotonic() - started
        except (Unavailable, OutcomeUnknown):
            assert time.monotonic() - started < seconds, "not usable again in time"
            await asyncio.sleep(0.02)


async def test_killed_and_restarted_node_is_usable_again_and_kept_what_it_confirmed(servers: Servers, url: str) -> None:
    node = servers.cassandra()
    rng = random.Random(40)
    room = conversation_of(rng)
    confirmed: list[Record] = []
    failures: list[tuple[str, DatalayerError]] = []
    stopped = asyncio.Event()

    async def write(store: CassandraMessages) -> None:
        while not stopped.is_set():
            record = message(room, START_US + len(confirmed) * 1000 + rng.randrange(1000), rng)
            try:
                await store.apply([record])
                confirmed.append(record)
            except DatalayerError as error:
                failures.append(("write", error))
                await asyncio.sleep(0.01)

    async def read(store: CassandraMessages) -> None:
        while not stopped.is_set():
            try:
                await store.history(room, 10, within(5))
            except DatalayerError as error:
                failures.append(("read", error))
                await asyncio.sleep(0.01)

    async with opened(url) as backend:
        store = backend.store("messages", 0)
        tasks = [asyncio.create_task(work(store)) for work in (write, write, write, read)]
        await _until(lambda: len(confirmed) > 100)
        await asyncio.to_thread(node.kill9)
        await _until(lambda: len(failures) > 100)
        before = len(confirmed)
        await asyncio.to_thread(node.start)
        assert await _answers(store, message(room, START_US, rng), BACK_WITHIN_S) <= BACK_WITHIN_S
        await _until(lambda: len(confirmed) > before + 50)
        stopped.set()
        await asyncio.gather(*tasks)
        found = await store.fetch([record.ident for record in confirmed])
        assert set(found.values()) == set(confirmed)
    kinds = {(what, type(error)) for what, error in failures}
    assert kinds <= {("write", Unavailable), ("write", OutcomeUnknown), ("read", Unavailable)}
    assert {("write", Unavailable), ("read", Unavailable)} <= kinds


async def test_write_whose_answer_is_lost_is_unknown_and_may_be_repeated(
    store: CassandraMessages, proxy: TcpProxy
) -> None:
    rng = random.Random(41)
    room = conversation_of(rng)
    await store.apply([message(room, START_US, rng)])
    record = message(room, START_US + 1, rng)
    proxy.hang_replies()
    sent = asyncio.create_task(store.apply([record]))
    await asyncio.sleep(0.2)
    proxy.drop()
    with pytest.raises(OutcomeUnknown):
        await sent
    proxy.restore()
    await _answers(store, record, BACK_WITHIN_S)
    assert await store.fetch([record.ident]) == {record.ident: record}
    assert len(await store.history(room, 10, within(5))) == 2


async def test_write_to_a_node_known_to_be_down_is_not_applied(store: CassandraMessages, proxy: TcpProxy) -> None:
    rng = random.Random(42)
    proxy.cut()
    errors: list[DatalayerError] = []
    while not errors or not isinstance(errors[-1], Unavailable):
        with pytest.raises((Unavailable, OutcomeUnknown)) as caught:
            await store.apply([message(conversation_of(rng), START_US, rng)])
        errors.append(caught.value)
        assert len(errors) < 100
    record = message(conversation_of(rng), START_US, rng)
    with pytest.raises(Unavailable, match="does not answer"):
        await store.apply([record])
    proxy.restore()
    await _answers(store, message(conversation_of(rng), START_US, rng), BACK_WITHIN_S)
    assert await store.fetch([record.ident]) == {}


async def test_reads_of_a_hanging_node_end_by_their_deadline(store: CassandraMessages, proxy: TcpProxy) -> None:
    rng = random.Random(43)
    record = message(conversation_of(rng), START_US, rng)
    await store.apply([record])
    proxy.hang()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await store.get(to_message(record).conversation_id, to_message(record).id, within(0.5))
    assert 0.45 <= time.monotonic() - started <= 0.65
    proxy.restore()
    await _answers(store, record, BACK_WITHIN_S)


async def test_cancelled_and_late_calls_give_their_slots_back(
    url: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "REQUEST_TIMEOUT_S", 0.5)
    rng = random.Random(44)
    async with opened(proxy.url(url)) as backend:
        store = backend.store("messages", 0)
        session = backend._session
        session._in_flight_max = 5
        record = message(conversation_of(rng), START_US, rng)
        await store.apply([record])
        proxy.hang()
        calls = [asyncio.create_task(store.fetch([record.ident])) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert session._in_flight == 5
        for call in calls[::2]:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in ended} == {asyncio.CancelledError, DeadlineExceeded}
        proxy.restore()
        await _answers(store, record, BACK_WITHIN_S)
        many = await asyncio.gather(*(store.fetch([record.ident]) for _ in range(50)))
        assert all(one == {record.ident: record} for one in many)
        assert (session._in_flight, len(session._waiting)) == (0, 0)


async def test_a_failing_bulk_apply_says_so_once_and_ends_the_same_when_repeated(
    store: CassandraMessages, proxy: TcpProxy
) -> None:
    rng = random.Random(45)
    rooms = [conversation_of(rng) for _ in range(60)]
    written = [message(room, START_US + n, rng, body="x" * 500) for room in rooms for n in range(50)]
    proxy.delay(0.02)
    sent = asyncio.create_task(store.apply(written))
    await asyncio.sleep(0.15)
    proxy.drop()
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await sent
    proxy.restore()
    await _answers(store, written[0], BACK_WITHIN_S)
    await store.apply(written)
    assert set((await store.fetch([r.ident for r in written])).values()) == set(written)


async def _until(reached: object) -> None:
    assert callable(reached)
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, "the scene was not reached"
        await asyncio.sleep(0.01)
