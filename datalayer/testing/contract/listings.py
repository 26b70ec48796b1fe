"""What a store promises of users' lists of conversations: what comes late, twice or in any order ends the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains import listings
from datalayer.domains.listings import Show
from datalayer.errors import DeadlineExceeded, StaleRoute
from datalayer.ids import id_time_us
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.model import Model
from datalayer.testing.contract.port import by_key, fetched
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from datalayer.types import Listed

PLACE: Final = "listings"
_PAGES_MAX: Final = 500


class ListingReadsSuite:
    """get, of_user."""

    async def test_get_finds_one_entry_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        hostile = maker.hostile(PLACE)
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = listings.to_listed(record)
            found = await store.get(expected.user_id, expected.conversation_id, fixture.deadline())
            assert found is not None, name
            assert (found.deleted, found.version) == (record.deleted, record.version)
            assert found == expected or record.deleted, name
        assert await store.get(maker.id(), maker.id(), fixture.deadline()) is None

    async def test_of_user_walks_the_live_ones_by_activity(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        user, other = maker.id(), maker.id()
        records = [maker.listed(user, last_activity=1000 + at // 3, deleted=at % 7 == 0) for at in range(45)]
        await store.apply([*records, *(maker.listed(other, UUID(bytes=one.key[16:])) for one in records)])
        live = [listings.to_listed(record) for record in records if not record.deleted]
        live.sort(key=lambda one: (one.last_activity_us, one.conversation_id), reverse=True)
        for limit in (1, 7, 1000):
            met: list[Listed] = []
            for _ in range(_PAGES_MAX):
                after = (met[-1].last_activity_us, met[-1].conversation_id) if met else None
                page = await store.of_user(user, limit, fixture.deadline(), after=after)
                assert len(page) == min(limit, len(live) - len(met)), "filled to the limit"
                met += page
                if len(met) == len(live):
                    break
            assert met == live
        assert await store.of_user(maker.id(), 5, fixture.deadline()) == []

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        await refused(DeadlineExceeded, store.get(maker.id(), maker.id(), fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.of_user(maker.id(), 5, fixture.deadline(-1.0)))


class ListingExecuteSuite:
    """Show."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh(PLACE), Maker(fixture), Model(PLACE)
        known = [(maker.id(), maker.id()) for _ in range(4)]
        for _ in range(120 * fixture.scale):
            await model.step(fixture, store, _mutation(maker, *fixture.random.choice(known)))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_what_comes_in_any_order_ends_the_same(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        first, second, third = maker.ids(3, from_us=maker.now_us - 5_000_000, step_us=1_000_000)
        entries = []
        for order in itertools.permutations(range(3)):
            at = (maker.id(), maker.id())
            await store.execute(Show(*at, 1, joined_at=5), fixture.deadline())
            steps = [
                Show(*at, 3, role="admin", joined_at=5, read_up_to=first, newest=first),
                Show(*at, 2, role="owner", joined_at=5, newest=second),
                Show(*at, 1, newest=third),
            ]
            for step in (*order, *order):
                await store.execute(steps[step], fixture.deadline())
            entries.append(await store.get(*at, fixture.deadline()))
        assert {(one.role, one.read_up_to, one.newest) for one in entries} == {("admin", first, third)}
        assert {one.last_activity_us for one in entries} == {id_time_us(third)}
        assert all(one.unread for one in entries)

    async def test_an_older_membership_brings_nothing_back(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        at = (maker.id(), maker.id())
        await store.execute(Show(*at, 5, newest=maker.id()), fixture.deadline())
        ended = await store.execute(Show(*at, 7, ended=True), fixture.deadline())
        assert ended.entity.deleted
        late = await store.execute(Show(*at, 6, newest=maker.id()), fixture.deadline())
        assert (late.records, late.entity) == ((), ended.entity)
        assert await store.of_user(at[0], 5, fixture.deadline()) == []
        again = await store.execute(Show(*at, 8, joined_at=9), fixture.deadline())
        assert (again.entity.deleted, again.entity.newest, again.entity.last_activity_us) == (False, None, 9)
        assert again.entity.version > ended.entity.version
        unknown = (maker.id(), maker.id())
        await store.execute(Show(*unknown, 7, ended=True), fixture.deadline())
        assert (await store.execute(Show(*unknown, 6), fixture.deadline())).entity.deleted

    async def test_activity_moves_forward_only(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        at = (maker.id(), maker.id())
        older, newer = maker.ids(2, from_us=maker.now_us - 5_000_000, step_us=1_000_000)
        await store.execute(Show(*at, 5, role="admin"), fixture.deadline())
        first = await store.execute(Show(*at, 4, newest=newer), fixture.deadline())
        assert (first.entity.role, first.entity.newest, len(first.records)) == ("admin", newer, 1)
        for late in (older, newer, None):
            done = await store.execute(Show(*at, 4, newest=late), fixture.deadline())
            assert (done.records, done.entity) == ((), first.entity)
        newest = await store.execute(Show(*at, 6, newest=older), fixture.deadline())
        assert (newest.entity.role, newest.entity.newest) == ("member", newer)

    async def test_racing_mutations_of_one_entry_all_count(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        for _ in range(5):
            at = (maker.id(), maker.id())
            ids = maker.ids(6, from_us=maker.now_us - 9_000_000, step_us=1_000_000)
            calls = [Show(*at, number + 1, role=f"{number}", newest=one) for number, one in enumerate(ids)]
            fixture.random.shuffle(calls)
            results, errors = await outcomes(
                [clients[number % 2].execute(call, fixture.deadline()) for number, call in enumerate(calls)]
            )
            assert not errors
            versions = [done.entity.version for done in results if done.records]
            assert len(set(versions)) == len(versions), "two writes took one version"
            found = await store.get(*at, fixture.deadline())
            assert (found.role, found.newest) == ("5", ids[-1])

    async def test_write_past_its_deadline_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        show = Show(maker.id(), maker.id(), 1)
        await refused(DeadlineExceeded, store.execute(show, fixture.deadline(-1.0)))
        assert await store.get(show.user_id, show.conversation_id, fixture.deadline()) is None

    async def test_write_to_a_dropped_place_says_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        at = (maker.id(), maker.id())
        await store.execute(Show(*at, 1), fixture.deadline())
        await store.drop()
        await refused(StaleRoute, store.execute(Show(*at, 2), fixture.deadline()))


def _mutation(maker: Maker, user: UUID, conversation: UUID) -> Show:
    random = maker.random
    ids: list[Any] = [None, maker.id()]
    return Show(
        user,
        conversation,
        random.randrange(1, 60),
        random.random() < 0.2,
        random.choice(("member", "admin")),
        random.randrange(1 << 50),
        random.choice(ids),
        random.choice(ids),
    )
