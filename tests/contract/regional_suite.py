"""What regions promise beyond the suites: rows of a user end in one place, and pointers are nobody's records."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from datalayer.domains.record import Key, Record
from datalayer.domains.users import CreateUser, UpdateUser, tombstone
from datalayer.stores.base import Token
from datalayer.testing.contract import Maker, StoreFixture
from datalayer.testing.contract.port import scanned


async def _rows(store: Any, key: Key) -> list[Record]:
    """What lies anywhere of a user, pointers left out."""
    found = []
    for group in store.groups_of(key[1]):
        row = (await (await store.store(group)).fetch([key])).get(key)
        if row is not None and not store.regions.points(row, group):
            found.append(row)
    return found


def _lives(maker: Maker) -> list[Record]:
    """One user, who moves, moves back, and is deleted by a program that knows nothing of regions."""
    first = maker.user(region="eu")
    moves = [
        first._replace(version=first.version + n, fields=(*first.fields[:-1], r)) for n, r in ((3, "us"), (6, None))
    ]
    end = tombstone("user", first.key, first.version + 9)
    return [first, *moves, end]


class RegionSuite:
    """What only regions promise."""

    async def test_versions_of_several_regions_end_as_one_row_in_any_order(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        for order in itertools.permutations(range(4)):
            versions = _lives(maker)
            for at in order:
                await store.apply([versions[at]])
            assert await _rows(store, versions[0].ident) == [versions[-1]], order
            assert await store.fetch([versions[0].ident]) == {versions[0].ident: versions[-1]}

    async def test_versions_of_several_regions_end_as_one_row_whoever_is_faster(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        peers = [store, *[await fixture.peer(store) for _ in range(3)]]
        for peer in peers:
            _delay(peer, fixture.random)
        for number in range(150):
            versions = _lives(maker)[: 3 + number % 2]
            await asyncio.gather(*(peer.apply([one]) for peer, one in zip(peers, versions, strict=False)))
            assert await _rows(store, versions[0].ident) == [versions[-1]]

    async def test_a_fence_after_the_first_step_of_a_move_is_no_conflict_with_it(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        attempt = fixture.attempt_of(store)
        guard, token = store.guard(attempt), Token(f"m{attempt}", "users", attempt, attempt * 100)
        await guard.install(token, sealed=False)
        ann = (await store.execute(CreateUser(maker.id(), "ann"), fixture.deadline())).entity
        inner, steps = store.records.swap_at, itertools.count(1)

        async def swap_at(*args: Any) -> Record:
            done: Record = await inner(*args)
            if next(steps) == 1:
                await guard.fence(token, 1, 0.3, 5.0)
            return done

        store.records.swap_at = swap_at
        region = "us" if store.region_of(ann.id) == "eu" else "eu"
        move = UpdateUser(ann.id, (("region", region),), ann.version)
        moved = (await store.execute(move, fixture.deadline())).entity
        assert next(steps) > 3, "control: it had more to do than the first step"
        assert moved.region == region
        assert moved == await store.get(ann.id, fixture.deadline())
        assert [row.version for row in await _rows(store, ("user", ann.id.bytes))] == [moved.version]

    async def test_the_journal_and_the_scan_know_no_pointers(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        attempt = fixture.attempt_of(store)
        guard = store.guard(attempt)
        await guard.install(Token(f"m{attempt}", "users", attempt, attempt * 100), sealed=False)
        made = [await store.execute(CreateUser(maker.id(), maker.id().hex), fixture.deadline()) for _ in range(12)]
        for at, done in enumerate(made):
            for region in ("us", "eu", "us", "eu")[: 1 + at % 4]:
                await store.execute(UpdateUser(done.entity.id, (("region", region),)), fixture.deadline())
        mirror: dict[Key, Record] = {}
        for _ in range(200):
            page = await guard.journal.pending(5)
            mirror |= {one.ident: one for one in page}
            await guard.journal.settle(page)
        assert await guard.journal.backlog() == 0
        stored = await store.fetch(list(mirror))
        assert mirror == stored
        users = [one for one in mirror.values() if one.kind == "user"]
        assert len(users) == 12
        assert not any(one.deleted for one in users)
        assert max(one.version for one in users) < fixture.clock.now_us() + 60_000_000, "a pointer is no final delete"
        scanned_ = await scanned(store, await store.plan_scan(1), 5)
        assert {one.ident: one for one in scanned_} == stored
        assert len(scanned_) == len(stored)

    async def test_a_scan_by_homes_gives_everybody_once_whoever_moves_meanwhile(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        ids = [maker.id() for _ in range(24)]
        for id_ in ids:
            await store.execute(CreateUser(id_, id_.hex), fixture.deadline())
        everybody = Counter(id_.bytes for id_ in ids)
        assert await self._met(fixture, store, ids, store.scan_homes) == everybody
        assert await self._met(fixture, store, ids, store.scan) != everybody, "control: where users lie is no order"

    async def _met(self, fixture: StoreFixture, store: Any, ids: Sequence[UUID], scan: Any) -> Counter[bytes]:
        """How often each user is met in a scan between whose pages users move."""
        met: Counter[bytes] = Counter()
        for range_ in await store.plan_scan(1):
            after, done = None, False
            while not done:
                for id_ in fixture.random.sample(ids, 6):
                    region = fixture.random.choice(("eu", "us"))
                    await store.execute(UpdateUser(id_, (("region", region),)), fixture.deadline())
                page = await scan(range_, after, 4)
                met.update(record.key for record in page.records if record.kind == "user")
                after, done = page.after, page.done
        return met


def _delay(store: Any, lots: random.Random) -> None:
    """Let others come between any two of a store's calls."""
    inner = store.store

    async def delayed(group: Any) -> Any:
        for _ in range(lots.choice((0, 0, 1, 3, 12))):
            await asyncio.sleep(0)
        return await inner(group)

    store.store = delayed
