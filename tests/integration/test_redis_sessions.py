"""Sessions in Redis beyond the contract: scans over failovers, records that Redis drops, ties, ended attempts."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.record import EXPIRY_GRACE_US, FINAL_LEAD, Record, encode_cell
from datalayer.domains.sessions import SESSION
from datalayer.errors import OutcomeUnknown, StaleRoute, Unavailable
from datalayer.layer import DataLayer
from datalayer.migrators.plan import Until
from datalayer.routing.marks import mark_again
from datalayer.settings import Settings, parse_settings
from datalayer.stores.redis.scripts import command
from tests.integration.live import coordinator_of
from tests.integration.redis_backends import opened, prefixed, within
from tests.servers import Servers

pytestmark = pytest.mark.servers
CLOCK = SystemClock()
HOUR_US = 3_600_000_000


def session(rng: random.Random, *, expires_us: int | None = None, user: UUID | None = None) -> Record:
    now_us = CLOCK.now_us()
    until = now_us + HOUR_US if expires_us is None else expires_us
    owner = rng.randbytes(16) if user is None else user.bytes
    fields = (rng.randbytes(16), now_us, now_us, max(until, now_us + HOUR_US), until, "{}")
    return Record("session", owner + rng.randbytes(16), now_us, False, fields)


@asynccontextmanager
async def place_at(url: str) -> AsyncIterator[Any]:
    """A place on a server of its own, or in a database of its own."""
    async with opened(url) as backend:
        store = backend.store("sessions", 3)
        await store.create()
        yield store


@pytest.fixture
async def store(servers: Servers) -> AsyncIterator[Any]:
    async with place_at(servers.redis().create_database()) as store:
        yield store


async def test_redis_drops_what_expired_an_hour_ago_by_itself(store: Any) -> None:
    rng = random.Random(1)
    now_us = CLOCK.now_us()
    soon = session(rng, expires_us=now_us - EXPIRY_GRACE_US + 300_000)
    kept = session(rng, expires_us=now_us - EXPIRY_GRACE_US + 60_000_000)
    await store.apply([soon, kept])
    async with asyncio.timeout(10):
        while soon.ident in await store.fetch([soon.ident]):
            await asyncio.sleep(0.02)
    assert list(await store.fetch([kept.ident])) == [kept.ident]
    assert await store.estimate() == 2, "its entry in the index stays"
    assert (await store.scan("0-4095", None, 10)).records == [kept]
    assert await store.purge(0, 100) == (2, 1)
    assert await store.estimate() == 1
    await store.apply([soon._replace(version=soon.version + 2, fields=kept.fields)])
    assert await store.estimate() == 2, "and comes again with a record"


async def test_equal_versions_are_decided_by_bytes_and_not_by_the_servers_language(servers: Servers) -> None:
    rng = random.Random(2)
    async with place_at(servers.redis().create_database()) as store:
        for low, high in (("a", "b"), ("B", "a"), ("z", "ä"), ("Z", "_"), ("a", "aa"), ("9", "A")):
            base = session(rng)
            pair = [base._replace(fields=(*base.fields[:5], f'{{"t":"{text}"}}')) for text in (low, high)]
            wins = max(pair, key=lambda one: encode_cell(SESSION, one).encode())
            for order in (pair, pair[::-1]):
                one = session(rng)
                keyed = [record._replace(key=one.key) for record in order]
                await store.apply(keyed)
                found = (await store.fetch([one.ident]))[one.ident]
                assert found.fields == wins.fields, (low, high)


async def test_a_write_of_an_ended_attempt_lands_nowhere(servers: Servers) -> None:
    url = servers.redis().create_database()
    rng = random.Random(3)
    async with opened(url) as backend, opened(url) as late:
        store, writer = backend.store("sessions", 5), late.store("sessions", 5)
        await store.create()
        await store.apply([session(rng) for _ in range(500)])
        await store.drop()
        with pytest.raises(StaleRoute):
            await writer.apply([session(rng) for _ in range(3)])
        assert await backend._session.run(command("DBSIZE"), write=False) == 0


async def test_a_scan_goes_on_over_failovers_and_misses_nothing(servers: Servers) -> None:
    cluster = servers.fresh_redis_cluster("scan-fails-over")
    rng = random.Random(4)
    records = [session(rng) for _ in range(800)]
    async with place_at(f"{prefixed(cluster.url)}&wait_replicas=1") as store:
        await store.apply(records)
        found: list[Record] = []
        killed: list[Any] = []
        for range_ in await store.plan_scan(4):
            after, done, pages = None, False, 0
            while not done:
                if pages == 2 and len(killed) < 2:
                    primary = next(node for node in cluster.nodes[:3] if node not in killed)
                    killed.append(primary)
                    primary.kill9()
                    cluster.await_failover(primary)
                page = await _again(partial(store.scan, range_, after, 40))
                found += page.records
                after, done, pages = page.after, page.done, pages + 1
        assert len(killed) == 2
        assert sorted(record.key for record in found) == sorted(record.key for record in records)


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    """An answer; the first call after a failover may still ask the server that is gone."""
    for _ in range(50):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.1)
    return await call()


async def test_a_revoke_that_a_replica_has_survives_a_failover(servers: Servers) -> None:
    cluster = servers.fresh_redis_cluster("revoke-fails-over")
    rng = random.Random(5)
    async with place_at(f"{prefixed(cluster.url)}&wait_replicas=1") as store:
        records = [session(rng) for _ in range(200)]
        await store.apply(records)
        tombs = [one._replace(version=one.version + FINAL_LEAD, deleted=True) for one in records]
        acknowledged: list[Record] = []
        over = asyncio.Event()

        async def revoke() -> None:
            for tomb in tombs:
                if over.is_set():
                    return
                try:
                    await store.apply([tomb])
                except (Unavailable, OutcomeUnknown):
                    continue
                acknowledged.append(tomb)

        revoking = asyncio.create_task(revoke())
        async with asyncio.timeout(20):
            while len(acknowledged) < 60:
                await asyncio.sleep(0.005)
        primary = cluster.primary_of("{000}")
        await asyncio.to_thread(primary.kill9)
        await asyncio.to_thread(cluster.await_failover, primary)
        over.set()  # the new primary has no replica yet
        await revoking
        held = await _again(partial(store.fetch, [one.ident for one in acknowledged]))
        assert [one for one in acknowledged if not held[one.ident].deleted] == []
        assert len(acknowledged) >= 60


async def test_get_is_one_command_to_one_server(store: Any) -> None:
    user = uuid4()
    one = session(random.Random(6), user=user)
    await store.apply([one])
    calls: list[int] = []
    inner = store._session.batch

    async def counted(calls_: Any, **named: Any) -> Any:
        calls.append(len(calls_))
        return await inner(calls_, **named)

    store._session.batch = counted
    found, cut = await store.get(user, UUID(bytes=one.key[16:]), within(5))
    assert found is not None
    assert (cut, calls) == (None, [1])


def settings_on(url: str, folder: Path) -> Settings:
    here = f"here{uuid4().hex[:8]}"
    urls = {"a": url, "main": f"sqlite:///{folder}/main.sqlite", here: "memory://"}
    return parse_settings(
        {
            "backends": {name: {"url": one} for name, one in urls.items()},
            "routes": {"sessions": "a", "presence": here, "users": "main", "messages": "main"},
            "control": {"url": f"sqlite:///{folder}/control.sqlite"},
        },
        directory=folder,
    )


async def lose_marks(store: Any) -> None:
    """As a failover right after they were made."""
    calls = [command("DEL", store._names.of_slot(slot, b"place")) for slot in range(0, 4096, 2)]
    await store._session.batch(calls, write=True)


async def marks(store: Any) -> int:
    calls = [command("EXISTS", store._names.of_slot(slot, b"place")) for slot in range(4096)]
    return sum(await store._session.batch(calls, write=False))


async def test_marks_that_a_failover_lost_are_written_again_and_nobody_sees_an_error(
    servers: Servers, tmp_path: Path
) -> None:
    settings = settings_on(servers.redis().create_database(), tmp_path)
    async with DataLayer.open(settings) as layer:
        tokens = [(await layer.sessions.create(uuid4())).token or "" for _ in range(20)]
        store = layer.router("sessions").route.authority
        await lose_marks(store)
        assert None not in [await layer.sessions.get(token, timeout=10) for token in tokens]
        assert await marks(store) == 4096
        await lose_marks(store)
        await layer.sessions.revoke(tokens[0], timeout=10)
        for _ in range(8):
            await layer.sessions.create(uuid4(), timeout=10)
        await lose_marks(store)
    async with DataLayer.open(settings) as layer:
        assert await marks(layer.router("sessions").route.authority) == 4096, "looked at when it is opened"


async def test_marks_of_a_place_that_was_left_are_not_written_again(servers: Servers, tmp_path: Path) -> None:
    settings = settings_on(servers.redis().create_database(), tmp_path)
    async with DataLayer.open(settings) as layer:
        token = (await layer.sessions.create(uuid4())).token or ""
        old = layer.router("sessions").routing
        store = layer.router("sessions").route.authority
        async with coordinator_of(settings, "sessions", until=Until.COMPLETE) as coordinator:
            migration = await coordinator.migrate("main")
            assert await mark_again(layer.places, old) == 0, "the control store names another place"
            await lose_marks(store)
            assert await mark_again(layer.places, old) == 0
            await coordinator.purge(migration.id)
        assert await mark_again(layer.places, old) == await marks(store) == 0
        assert await layer.sessions.get(token) is not None


@pytest.mark.parametrize("change", [{"role": "retired"}, {"epoch": 9}, {"deployment": "another"}])
async def test_marks_are_not_written_again_where_the_server_says_otherwise(
    servers: Servers, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = settings_on(servers.redis().create_database(), tmp_path)
    async with DataLayer.open(settings) as layer:
        routing, backend = layer.router("sessions").routing, layer.backends["a"]
        row = (await backend.read_meta())["sessions", 0]
        await lose_marks(layer.router("sessions").route.authority)
        await backend.write_meta(replace(row, **change))
        assert await mark_again(layer.places, routing) == 0
        await backend.write_meta(replace(row, epoch=row.epoch))
        assert await mark_again(layer.places, routing) == (0 if "epoch" in change else 2048)
