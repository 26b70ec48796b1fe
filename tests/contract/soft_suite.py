"""What every store of presence and typing promises: the rule of `domains.soft.admit`, answers by node, hints."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.soft import ITEMS_MAX, LATE_US, Beat, Entry, admit, end_of
from datalayer.stores.soft import SoftStore

CLOCK = SystemClock()
HINTS_S = 20.0


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline(CLOCK, seconds)


@dataclass
class SoftFixture:
    """Clients of one server, and places that no other test uses."""

    connect: Callable[[], Awaitable[Any]]
    seed: int = 0
    attempts: Any = field(default_factory=lambda: count(random.randrange(10, 1 << 20)))
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _stores: list[SoftStore] = field(default_factory=list)
    _clients: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = CLOCK.now_us()

    async def client(self) -> Any:
        backend = await self.connect()
        self._clients.append(backend)
        return backend

    async def store(self, domain: str = "presence", attempt: int | None = None, backend: Any = None) -> SoftStore:
        """A place, made; dropped at the end."""
        backend = backend or await self.client()
        store: SoftStore = backend.store(domain, next(self.attempts) if attempt is None else attempt)
        await store.create()
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.drop()
        for backend in self._clients:
            await backend.close()

    def key(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def beat(self, key: UUID, item: str = "web", at: float = 0.0, ttl: float | None = 45.0, status: str = "") -> Beat:
        """A beat ``at`` seconds from now; without ttl a leave."""
        version = self.now + int(at * 1e6)
        return Beat(key, item, version, 0 if ttl is None else version + int(ttl * 1e6), status)


def as_map(entry: Entry | None) -> dict[str, Beat]:
    assert entry is not None
    return {beat.item: beat for beat in entry}


class Ear:
    """Listens to some keys."""

    def __init__(self, keys: Collection[UUID]) -> None:
        self.keys = set(keys)
        self.hints: defaultdict[UUID, int] = defaultdict(int)
        self.heard = asyncio.Event()
        self.ready = asyncio.Event()
        self._more = asyncio.Event()

    def hint(self, key: UUID) -> None:
        self.hints[key] += 1
        self.heard.set()

    def connected(self) -> None:
        self.ready.set()

    async def changed(self) -> None:
        await self._more.wait()
        self._more.clear()

    def add(self, key: UUID) -> None:
        self.keys.add(key)
        self.ready.clear()
        self._more.set()

    async def hears(self, key: UUID) -> None:
        async with asyncio.timeout(HINTS_S):
            while key not in self.hints:
                self.heard.clear()
                await self.heard.wait()


class SoftSuite:
    """Subclasses give ``fixture``."""

    async def test_any_order_any_number_of_times_ends_as_the_rule_says(self, fixture: SoftFixture) -> None:
        store = await fixture.store()
        keys = [fixture.key() for _ in range(4)]
        beats = []
        for _ in range(40):
            key, item = fixture.random.choice(keys), fixture.random.choice(["web", "phone", "tablet"])
            ttl = fixture.random.choice([None, 1.0, 30.0, 45.0])
            beats.append(
                fixture.beat(key, item, fixture.random.randrange(20), ttl, fixture.random.choice(["", "away"]))
            )
        expected: dict[UUID, Entry] = {}
        for beat in beats:
            expected[beat.key] = admit(expected.get(beat.key, ()), beat) or expected[beat.key]
        for beat in [*beats, *fixture.random.sample(beats, len(beats))]:
            await store.beat(beat, soon())
        found = await store.entries(keys, soon())
        assert {key: as_map(found[key]) for key in keys} == {key: as_map(expected.get(key, ())) for key in keys}
        ends = await store.ends(keys, soon())
        assert ends == {key: end_of(expected.get(key, ())) for key in keys}

    async def test_of_equal_versions_the_later_end_stays(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        for ttl in (10.0, 30.0, 20.0):
            await store.beat(fixture.beat(key, ttl=ttl), soon())
        assert await store.ends([key], soon()) == {key: fixture.now + 30_000_000}

    async def test_a_late_beat_does_not_bring_back_who_has_left(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        await store.beat(fixture.beat(key, at=1), soon())
        await store.beat(fixture.beat(key, at=3, ttl=None), soon())
        await store.beat(fixture.beat(key, at=2), soon())
        assert await store.ends([key], soon()) == {key: 0}
        await store.beat(fixture.beat(key, at=4), soon())
        assert await store.ends([key], soon()) == {key: fixture.now + 49_000_000}

    async def test_who_is_unknown_has_no_end_and_no_items(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        assert await store.ends([key], soon()) == {key: 0}
        assert await store.entries([key], soon()) == {key: ()}

    async def test_items_that_ended_long_ago_are_forgotten_but_the_newest(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        late_s = LATE_US / 1e6
        await store.beat(fixture.beat(key, "old", at=-2 * late_s, ttl=1), soon())
        await store.beat(fixture.beat(key, "left", at=-late_s - 9, ttl=None), soon())
        assert set(as_map((await store.entries([key], soon()))[key])) == {"old", "left"}
        await store.beat(fixture.beat(key, "new"), soon())
        assert set(as_map((await store.entries([key], soon()))[key])) == {"new"}

    async def test_beyond_a_hundred_items_the_oldest_give_way(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        for number in range(ITEMS_MAX + 3):
            await store.beat(fixture.beat(key, f"d{number}", at=number / 100), soon())
        found = as_map((await store.entries([key], soon()))[key])
        assert set(found) == {f"d{number}" for number in range(3, ITEMS_MAX + 3)}

    async def test_names_and_texts_come_back(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        names = ["a", "Ännes Handy", "📱", "x" * 64, "a:b{c}", "0", "#", " "]
        for name in names:
            await store.beat(fixture.beat(key, name, status=name), soon())
        found = as_map((await store.entries([key], soon()))[key])
        assert {name: beat.status for name, beat in found.items()} == {name: name for name in names}

    async def test_thousands_are_answered_in_one_call(self, fixture: SoftFixture) -> None:
        store = await fixture.store()
        keys = [fixture.key() for _ in range(2500)]
        await store.apply([fixture.beat(key) for key in keys[::5]])
        found = await store.ends(keys, soon())
        assert list(found) == keys
        assert [key for key, end in found.items() if end] == keys[::5]

    async def test_apply_keeps_what_is_newer(self, fixture: SoftFixture) -> None:
        store, key = await fixture.store(), fixture.key()
        await store.beat(fixture.beat(key, at=5), soon())
        for _ in range(2):
            await store.apply([fixture.beat(key, at=6), fixture.beat(key, "phone", at=1), fixture.beat(key, at=1)])
        found = as_map((await store.entries([key], soon()))[key])
        assert {item: beat.version - fixture.now for item, beat in found.items()} == {
            "web": 6_000_000,
            "phone": 1_000_000,
        }

    async def test_concurrent_beats_of_two_clients_leave_the_newest(self, fixture: SoftFixture) -> None:
        attempt = next(fixture.attempts)
        one, two = await fixture.store(attempt=attempt), await fixture.store(attempt=attempt)
        key = fixture.key()
        beats = [fixture.beat(key, at=number / 10) for number in range(20)]
        await asyncio.gather(*((one, two)[n % 2].beat(beat, soon()) for n, beat in enumerate(reversed(beats))))
        assert await one.ends([key], soon()) == await two.ends([key], soon()) == {key: beats[-1].expires_us}

    async def test_a_scan_gives_every_key(self, fixture: SoftFixture) -> None:
        store = await fixture.store()
        assert await store.empty()
        beats = {
            (beat.key, beat.item): beat
            for key in [fixture.key() for _ in range(60)]
            for beat in self._two(fixture, key)
        }
        await store.apply(list(beats.values()))
        found: dict[tuple[UUID, str], Beat] = {}
        after: str | None = None
        while True:
            page = await store.scan(after, 7)
            found |= {(beat.key, beat.item): beat for beat in page.beats}
            after = page.after
            if after is None:
                break
        assert found == beats
        assert not await store.empty()

    def _two(self, fixture: SoftFixture, key: UUID) -> list[Beat]:
        return [fixture.beat(key), fixture.beat(key, "phone", status="away")]

    async def test_places_and_domains_are_apart_and_go_alone(self, fixture: SoftFixture) -> None:
        backend, key = await fixture.client(), fixture.key()
        one, two = await fixture.store(backend=backend), await fixture.store(backend=backend)
        typing = await fixture.store("typing", backend=backend)
        for number, store in enumerate((one, two, typing)):
            await store.beat(fixture.beat(key, at=number), soon())
        await one.drop()
        await one.drop()
        assert await two.ends([key], soon()) == {key: fixture.now + 46_000_000}
        assert await typing.ends([key], soon()) == {key: fixture.now + 47_000_000}

    async def test_who_listens_is_told_where_to_look(self, fixture: SoftFixture) -> None:
        attempt = next(fixture.attempts)
        here, there = await fixture.store(attempt=attempt), await fixture.store(attempt=attempt)
        if not here.pushes:
            return
        ann, bob, cid = fixture.key(), fixture.key(), fixture.key()
        ear = Ear([ann])
        listening = asyncio.create_task(here.listen(ear))
        try:
            async with asyncio.timeout(HINTS_S):
                await ear.ready.wait()
            await there.beat(fixture.beat(ann, at=0), soon())
            await ear.hears(ann)
            ear.add(bob)
            if here.reach == "network":
                async with asyncio.timeout(HINTS_S):
                    await ear.ready.wait()
            ear.hints.clear()
            await there.beat(fixture.beat(ann, at=1), soon())
            await there.beat(fixture.beat(cid), soon())
            await there.beat(fixture.beat(bob, at=1), soon())
            await ear.hears(bob)
            assert ear.hints[ann] == 0, "a renewal is no change"
            await there.beat(fixture.beat(bob, at=2, ttl=None), soon())
            ear.hints.clear()
            await there.beat(fixture.beat(ann, at=2, ttl=None), soon())
            await ear.hears(ann)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
