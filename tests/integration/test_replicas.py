"""A DataLayer over a replica that lags, fails and comes back, under load.

The oracle of own reads: a version acknowledged before the read began is not missed. It has a control that turns it red.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from datalayer.clock import SystemClock
from datalayer.errors import DatalayerError, InvalidToken
from datalayer.layer import DataLayer
from datalayer.migrators.doctor import Finding, diagnose
from datalayer.routing.consistency import decode_token
from datalayer.settings import Settings, parse_settings
from datalayer.types import Message, User
from tests.integration.live import coordinator_of, create_schemas
from tests.integration.replicated import by_replica, elsewhere, healthy, settings_for, until, until_healthy
from tests.servers import Servers
from tests.servers.interface import PostgresPair

pytestmark = pytest.mark.servers
PAUSE_S = 5.0
"""How long replay stands still: lag is what is tested."""
LATE_S = 0.4
"""When the next request of a caller comes, after the one that wrote."""


@pytest.fixture(scope="module")
def pair(servers: Servers) -> PostgresPair:
    return servers.fresh_postgres_pair("lagging")


@pytest.fixture
def url(pair: PostgresPair) -> Iterator[str]:
    name = f"layer_{uuid.uuid4().hex[:8]}"
    yield pair.primary.create_database(name)
    with psycopg.connect(pair.primary.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def settings(pair: PostgresPair, url: str) -> Settings:
    """An empty database on the primary, read at the replica too."""
    found = settings_for(url, pair.replica.url_of(url))
    await create_schemas(found)
    await asyncio.to_thread(pair.replica.await_caught_up)
    return found


# --- tokens and levels -----------------------------------------------------------------------------------------------


async def test_a_caller_reads_its_own_writes_here_and_with_a_token_elsewhere(
    settings: Settings, pair: PostgresPair
) -> None:
    async with DataLayer.open(settings) as here, DataLayer.open(settings) as there:
        await until_healthy(here)
        await until_healthy(there)
        pair.replica.pause_replay()
        try:
            with here.reading_after(None):
                ann = await here.users.create(username="ann")
                assert await here.users.get(ann.id) == ann
                assert await here.users.get_by_username("ANN") == ann
                token = await here.token()

            async def read() -> None:
                with there.reading("own_writes", max_lag_s=60):
                    assert await there.users.get(ann.id) is None, "the replica has not got it"
                    with there.reading_after(token):
                        assert await there.users.get(ann.id) == ann
                        assert set(decode_token(await there.token())) == {"users"}
                    assert await there.users.get(ann.id) == ann, "what the block demanded is demanded after it"

            await elsewhere(read())
        finally:
            pair.replica.resume_replay()
        await until_healthy(there)
        before = by_replica(there)

        async def read_again() -> None:
            with there.reading_after(token):
                assert await there.users.get(ann.id) == ann

        await elsewhere(read_again())
        assert by_replica(there) == before + 1
        with pytest.raises(InvalidToken), there.reading_after(token[:-3]):
            pass


async def test_children_and_siblings_of_a_task_are_the_same_caller_without_any_code(
    settings: Settings, pair: PostgresPair
) -> None:
    async with DataLayer.open(settings) as layer:
        await until_healthy(layer)
        pair.replica.pause_replay()
        try:
            made: list[User] = list(
                await asyncio.gather(*(asyncio.wait_for(layer.users.create(username=f"u{n}"), 5) for n in range(5)))
            )
            assert set(await layer.users.get_many(user.id for user in made)) == {user.id for user in made}
        finally:
            pair.replica.resume_replay()


async def test_a_process_without_replicas_gives_tokens_that_others_can_use(
    settings: Settings, pair: PostgresPair, url: str
) -> None:
    plain = settings_for(url)
    async with DataLayer.open(plain) as here, DataLayer.open(settings) as there:
        await until_healthy(there)
        pair.replica.pause_replay()
        try:
            bob = await here.users.create(username="bob")
            token = await here.token()

            async def read() -> None:
                with there.reading_after(token), there.reading("own_writes", max_lag_s=60):
                    assert await there.users.get(bob.id) == bob

            await elsewhere(read())
        finally:
            pair.replica.resume_replay()


async def test_health_shows_each_replica_and_one_that_is_down_leaves_the_layer_ready(
    settings: Settings, pair: PostgresPair
) -> None:
    async with DataLayer.open(settings) as layer:
        await until_healthy(layer)
        ann = await layer.users.create(username="ann")
        await asyncio.to_thread(pair.replica.kill9)
        try:
            assert await layer.users.get(ann.id) == ann
            await until(lambda: not layer.replicas()["main"][0]["ok"])
            health = await layer.health()
            assert health["ready"] is True
            assert health["replicas"]["main"][0]["reason"]
            assert await layer.users.get(ann.id) == ann
        finally:
            await asyncio.to_thread(pair.replica.start)
        await until_healthy(layer)
        before = by_replica(layer)
        assert await layer.users.get(ann.id) == ann
        assert by_replica(layer) > before


@dataclass
class Bursts:
    """One DataLayer that writes now and then and reads all the time: all of its writes are its own."""

    layer: DataLayer
    room: UUID = field(default_factory=uuid4)
    acked: dict[UUID, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    reads: int = 0
    stopped: bool = False

    async def write(self) -> None:
        draws = random.Random(1)
        while not self.stopped:
            for _ in range(3):
                if len(self.acked) < 20:
                    message = await self.layer.messages.append(self.room, sender_id=self.room, body="new")
                else:
                    message_id = draws.choice(list(self.acked))
                    message = await self.layer.messages.edit(self.room, message_id, body="edited")
                self.acked[message.id] = message.version
            await asyncio.sleep(0.4)

    async def read(self, number: int) -> None:
        draws = random.Random(number)
        while not self.stopped:
            await asyncio.sleep(0.005)
            if not self.acked:
                continue
            message_id = draws.choice(list(self.acked))
            version, routing = self.acked[message_id], self.layer.router("messages").routing
            if draws.random() < 0.7:
                found = await self.layer.messages.get(self.room, message_id)
            else:
                page = await self.layer.messages.history(self.room, limit=100)
                found = next((message for message in page.items if message.id == message_id), None)
            self.reads += 1
            if found is None or found.version < version:
                self.wrong.append(f"{message_id} {version} {found} {routing}")


async def test_no_read_is_stale_while_a_domain_moves_to_another_backend_and_back(
    settings: Settings, pair: PostgresPair, url: str
) -> None:
    name = f"other_{uuid.uuid4().hex[:8]}"
    other = pair.primary.create_database(name)
    backends = {
        "main": {"url": url, "replicas": [pair.replica.url_of(url)]},
        "other": {"url": other, "replicas": [pair.replica.url_of(other)]},
    }
    both = parse_settings({"backends": backends, "control": {"url": url}}, directory=Path.cwd())
    await create_schemas(both)
    async with DataLayer.open(both) as layer:
        bursts = Bursts(layer)
        tasks = [asyncio.create_task(bursts.write()), *(asyncio.create_task(bursts.read(n)) for n in range(4))]
        served = []
        for target in ("main", "other", "main"):
            if target != layer.router("messages").routing.authority.backend:
                async with coordinator_of(both) as coordinator:
                    await coordinator.migrate(target)
                    await coordinator.complete()
            before = by_replica(layer, target)
            async with asyncio.timeout(30):
                while by_replica(layer, target) < before + 20:
                    await asyncio.sleep(0.01)
            served.append(by_replica(layer, target) - before)
        bursts.stopped = True
        await asyncio.gather(*tasks)
    print(f"\nthere and back: {len(bursts.wrong)} stale of {bursts.reads} reads; at replicas while at rest {served}")
    assert bursts.wrong == []
    with psycopg.connect(pair.primary.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_doctor_says_how_far_behind_a_replica_is(settings: Settings, pair: PostgresPair) -> None:
    what = f"replica {pair.replica.url.rpartition('@')[2].partition('/')[0]} of main"

    async def found() -> Finding:
        (finding,) = [one for one in await diagnose(settings, SystemClock()) if one.check == what]
        return finding

    assert (await found()).ok
    pair.replica.pause_replay()
    try:
        async with DataLayer.open(settings) as layer:
            await layer.users.create(username="ann")
        behind = await found()
        assert not behind.ok
        assert "bytes" in behind.detail
    finally:
        pair.replica.resume_replay()
    await asyncio.to_thread(pair.replica.kill9)
    try:
        assert not (await found()).ok
    finally:
        await asyncio.to_thread(pair.replica.start)


# --- lag under load ------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Writers whose tokens travel to readers in other processes, at once and late, and readers who wrote nothing."""

    writing: DataLayer
    reading: DataLayer
    late: DataLayer
    other: DataLayer
    obey: bool = True
    """False is the control: the token is ignored."""
    own: int = 0
    stale: int = 0
    own_late: int = 0
    others: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def write_and_read_elsewhere(self, number: int) -> None:
        room, draws = uuid4(), random.Random(number)
        known: list[UUID] = []
        sent: deque[tuple[float, UUID, int, str]] = deque()
        while not self.stopped:
            with self.writing.reading_after(None):
                if len(known) < 10:
                    message = await self.writing.messages.append(room, sender_id=room, body="new")
                else:
                    message_id = known.pop(draws.randrange(10))
                    message = await self.writing.messages.edit(room, message_id, body="edited")
                known.append(message.id)
                token = await self.writing.token()
            found = await elsewhere(self._read(self.reading, room, message.id, token))
            self.own += 1
            self.stale += found is None or found.version < message.version
            sent.append((time.monotonic(), message.id, message.version, token))
            if time.monotonic() - sent[0][0] > LATE_S:
                _, message_id, version, token = sent.popleft()
                found = await elsewhere(self._read(self.late, room, message_id, token))
                self.own_late += 1
                self.stale += found is None or found.version < version
            await asyncio.sleep(0.005)

    async def _read(self, layer: DataLayer, room: UUID, message_id: UUID, token: str) -> Message | None:
        with layer.reading_after(token if self.obey else None), layer.reading("own_writes", max_lag_s=60):
            return await layer.messages.get(room, message_id)

    async def read_others(self, key: tuple[UUID, UUID]) -> None:
        while not self.stopped:
            with self.other.reading("replica", max_lag_s=60):
                assert await self.other.messages.get(*key) is not None
            self.others += 1
            await asyncio.sleep(0.005)

    async def counted(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DatalayerError as error:
            self.errors[type(error).__name__] += 1
            self.stopped = True


@contextlib.asynccontextmanager
async def under_load(settings: Settings, pair: PostgresPair, *, obey: bool) -> AsyncIterator[Load]:
    async with contextlib.AsyncExitStack() as stack:
        layers = [await stack.enter_async_context(DataLayer.open(settings)) for _ in range(4)]
        writing, reading, late, other = layers
        room = uuid4()
        old = await writing.messages.append(room, sender_id=room, body="old")
        await asyncio.to_thread(pair.replica.await_caught_up)
        for layer in layers[1:]:
            await until_healthy(layer)
        load = Load(writing, reading, late, other, obey)
        works = [load.write_and_read_elsewhere(n) for n in range(4)] + [
            load.read_others((room, old.id)) for _ in range(4)
        ]
        tasks = [asyncio.create_task(load.counted(work), context=Context()) for work in works]
        try:
            yield load
        finally:
            load.stopped = True
            await asyncio.gather(*tasks)
            await asyncio.to_thread(pair.replica.resume_replay)


async def test_replay_paused_under_load_leaves_no_own_read_stale_and_others_at_the_replica(
    settings: Settings, pair: PostgresPair
) -> None:
    async with under_load(settings, pair, obey=True) as load:
        began = counts(load)
        await asyncio.sleep(0.4)
        await until(lambda: counts(load)["late"] > began["late"] + 50)
        before = counts(load)
        await asyncio.to_thread(pair.replica.pause_replay)
        paused = counts(load)
        await asyncio.sleep(PAUSE_S)
        lag_s = load.reading.replicas()["main"][0]["lag_s"]
        at_end = counts(load)
        await asyncio.to_thread(pair.replica.resume_replay)
        healthy_s = await until(lambda: healthy(load.late))
        back_s = healthy_s + await until(lambda: counts(load)["late at replica"] > at_end["late at replica"])
        back = counts(load)
        await until(lambda: counts(load)["late"] > back["late"] + 50)
        after = counts(load)
        assert not load.stopped
    normal, pause, again = minus(before, began), minus(at_end, paused), minus(after, back)
    print(
        f"\nlag: replay paused {PAUSE_S} s: {load.stale} stale of {load.own + load.own_late} own reads with a token\n"
        f"  before {normal}\n  paused {pause}, lag shown at its end {lag_s} s\n  after  {again}\n"
        f"  within 1 s again {healthy_s:.3f} s after the pause, own reads at the replica again after {back_s:.3f} s"
    )
    assert load.errors == {}
    assert load.stale == 0
    assert pause["own"] + pause["late"] > 200
    assert PAUSE_S - 1 < lag_s < PAUSE_S + 2
    assert pause["others at replica"] >= pause["others"] - 8 > 200, "four readers may be between two counts"
    assert normal["late at replica"] > normal["late"] / 2
    assert again["late at replica"] > again["late"] / 2


def counts(load: Load) -> Counter[str]:
    return Counter(
        {
            "own": load.own,
            "own at replica": by_replica(load.reading),
            "late": load.own_late,
            "late at replica": by_replica(load.late),
            "others": load.others,
            "others at replica": by_replica(load.other),
        }
    )


def minus(end: Counter[str], begin: Counter[str]) -> dict[str, int]:
    return {name: end[name] - begin[name] for name in end}


async def test_a_token_that_is_ignored_finds_stale_reads(settings: Settings, pair: PostgresPair) -> None:
    async with under_load(settings, pair, obey=False) as load:
        await asyncio.to_thread(pair.replica.pause_replay)
        await until(lambda: load.stale > 20)


async def test_a_replica_killed_stopped_and_paused_by_turns_shows_nothing_stale(
    settings: Settings, pair: PostgresPair
) -> None:
    ways = [
        (pair.replica.kill9, pair.replica.start),
        (pair.replica.pause, pair.replica.resume),
        (pair.replica.pause_replay, pair.replica.resume_replay),
    ]
    draws, own_s = random.Random(uuid4().int), []
    async with under_load(settings, pair, obey=True) as load:
        for harm, mend in ways * 2:
            await asyncio.sleep(0.2 * draws.random())
            await asyncio.to_thread(harm)
            await asyncio.sleep(0.4 * draws.random())
            await asyncio.to_thread(mend)
            mended = counts(load)
            back_s = await until(lambda served=mended["late at replica"]: by_replica(load.late) > served)  # type: ignore[misc]
            own_s.append(round(back_s, 2))
        assert not load.stopped
    print(f"\nsix faults of a replica: {load.stale} stale, {dict(counts(load))}, own reads back after {own_s} s")
    assert load.errors == {}
    assert load.stale == 0


async def older_than(settings: Settings, pair: PostgresPair, *, max_lag_s: float, bound_s: float) -> tuple[int, int]:
    """(reads at the replica that missed a write of ``bound_s`` before they began, reads at the replica) in a pause."""
    async with DataLayer.open(settings) as writing, DataLayer.open(settings) as reading:
        room = uuid4()
        first = await writing.messages.append(room, sender_id=room, body="0")
        acked = deque([(time.monotonic(), first.version)])
        await asyncio.to_thread(pair.replica.await_caught_up)
        await until_healthy(reading)
        stopped = asyncio.Event()

        async def tick() -> None:
            while not stopped.is_set():
                message = await writing.messages.edit(room, first.id, body="more")
                acked.append((time.monotonic(), message.version))
                await asyncio.sleep(0.01)

        older, before = 0, by_replica(reading)
        ticking = asyncio.create_task(tick(), context=Context())
        for act in (pair.replica.resume_replay, pair.replica.pause_replay, pair.replica.resume_replay):
            await asyncio.to_thread(act)
            until_s = time.monotonic() + 3 * bound_s
            while (began := time.monotonic()) < until_s:
                due = max((version for at, version in acked if at <= began - bound_s), default=0)
                with reading.reading("replica", max_lag_s=max_lag_s):
                    found = await reading.messages.get(room, first.id)
                older += found is None or found.version < due
                await asyncio.sleep(0.005)
        stopped.set()
        await ticking
        return older, by_replica(reading) - before


async def test_the_bound_on_lag_is_kept_through_a_pause(settings: Settings, pair: PostgresPair) -> None:
    older, served = await older_than(settings, pair, max_lag_s=0.6, bound_s=0.6)
    print(f"\na bound of 0.6 s: {older} older of {served} reads at the replica")
    assert older == 0
    assert served > 50


async def test_a_wider_bound_shows_what_is_older(settings: Settings, pair: PostgresPair) -> None:
    older, _ = await older_than(settings, pair, max_lag_s=60, bound_s=0.6)
    assert older > 10


async def test_own_reads_go_back_to_the_replica_once_it_has_replayed_them(
    settings: Settings, pair: PostgresPair
) -> None:
    async with DataLayer.open(settings) as layer:
        await until_healthy(layer)
        ann = await layer.users.create(username="ann")
        before = by_replica(layer)

        async def read_until_the_replica_answers() -> None:
            while by_replica(layer) == before:
                assert await layer.users.get(ann.id) == ann
                await asyncio.sleep(0.002)

        began = time.monotonic()
        await asyncio.wait_for(read_until_the_replica_answers(), 10)
        print(f"\nown read at the replica {time.monotonic() - began:.3f} s after the write")
