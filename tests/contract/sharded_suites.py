"""What the suites' promises become over slot groups: the one place that says where one cannot hold, and why.

Every promise of the suites holds over groups but for one. A user's row and its claims lie in groups of their own, and
there is no transaction over groups (docs/adr/0012): a create or rename is claims, then row, then released claims. Who
looks from outside while a change is under way, or after a fence stopped one half way, sees a claim whose row was not
written. So "what is stored at the fence is what was acknowledged" is true of rows, and of claims one way only: a claim
more than were acknowledged is an orphan, which its owner's retry takes over, the next who wants the name frees, or a
sweep does.
"""

import asyncio
from typing import Any, ClassVar

from datalayer.domains import users
from datalayer.domains.record import Key, Record
from datalayer.domains.users import CreateUser, UpdateUser
from datalayer.errors import AlreadyExists, Conflict, Fenced, NotFound, StaleRoute
from datalayer.routing.shardguard import ShardedGuard
from datalayer.testing.contract import ForeignWriterSuite, Maker, StoreFixture, UserReadsSuite, outcomes, refused
from datalayer.testing.contract.guard import LOCK_S, LONG_S, dirty_records
from datalayer.testing.contract.port import by_key, scanned

STARVED_ROUNDS = 5


class _ShardedGuardSuite(ForeignWriterSuite):
    """What is promised over groups beyond the suite."""

    async def test_a_busy_group_keeps_no_other_from_being_replayed(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        written: list[Record] = []
        while len({store.map.group_of(record.key) for record in written}) < 2:
            written += (await store.execute(self._new(maker), fixture.deadline())).records
        first = min((store.map.group_of(record.key) for record in written), key=lambda group: group.first)
        rare = {r.ident for r in written if store.map.group_of(r.key) != first}
        for _ in range(STARVED_ROUNDS * len(rare)):
            busy: list[Record] = []
            while len(busy) < 4:
                records = (await store.execute(self._new(maker), fixture.deadline())).records
                busy += [r for r in records if store.map.group_of(r.key) == first]
                await guard.journal.settle([r for r in records if r not in busy])
            page = await guard.journal.pending(4)
            assert len(page) == 4
            rare -= {record.ident for record in page}
            await guard.journal.settle(page)
            if not rare:
                return
        raise AssertionError(f"{len(rare)} keys were not reached in {STARVED_ROUNDS * len(rare)} rounds")

    async def test_every_group_is_fenced_sealed_and_opened(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        entities: dict[Any, Any] = {}
        while len(entities) < len(store.map.groups):
            done = await store.execute(self._new(maker), fixture.deadline())
            entities[store.map.group_of(done.records[0].key)] = done.entity
        token = self._token(fixture, store)
        for act, more in ((guard.fence, (LONG_S, LOCK_S)), (guard.seal, ())):
            await act(token, 1, *more)
            changes = [store.execute(self._change(maker, one), fixture.deadline()) for one in entities.values()]
            results, errors = await outcomes(changes)
            assert (results, {type(error) for error in errors}) == ([], {Fenced})
        await guard.open(1)
        for entity in entities.values():
            await store.execute(self._change(maker, entity), fixture.deadline())

    async def test_the_journal_of_a_keys_own_group_is_asked(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        assert isinstance(guard, ShardedGuard)
        dirty: dict[Any, Record] = {}
        while len(dirty) < len(store.map.groups):
            done = await store.execute(self._new(maker), fixture.deadline())
            dirty |= {store.map.group_of(record.key): record for record in done.records}
        for record in dirty.values():
            assert await guard.journal.dirty([record.routing])
            assert await guard.journal.dirty([record.routing], [record.ident])
        token = self._token(fixture, store)
        for group, record in dirty.items():
            # One group's journal after the other is gone, while those that come later in turn are still there.
            await (await guard.of(group)).remove(token, keep_fence=False)
            await refused(StaleRoute, guard.journal.dirty([record.routing]))
            await refused(StaleRoute, guard.journal.dirty([record.routing], [record.ident]))
            await refused(StaleRoute, guard.journal.pending(10))


class ShardedUserReadsSuite(UserReadsSuite):
    """Fan-out reads."""

    async def test_a_page_is_filled_though_most_users_lie_in_one_group(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        group = store.map.groups[0]
        records = [maker.user() for _ in range(60)]
        records += [r for r in (maker.user() for _ in range(2000)) if store.map.group_of(r.key) == group][:150]
        await store.apply(records)
        expected = sorted(users.to_user(record).id for record in records)
        for limit in (40, 100, 1000):
            met: list[Any] = []
            while True:
                page = await store.page(limit, fixture.deadline(), after=met[-1] if met else None)
                met += [user.id for user in page]
                if len(page) < limit:
                    break
            assert met == expected


class ShardedMessageGuardSuite(_ShardedGuardSuite):
    """Messages: a conversation lies in one group, so every promise holds as it stands."""

    domain: ClassVar[str] = "messages"


class ShardedConversationGuardSuite(_ShardedGuardSuite):
    """Conversations: one lies in one group, with its members."""

    domain: ClassVar[str] = "conversations"


class ShardedListingGuardSuite(_ShardedGuardSuite):
    """Users' lists: one lies in one group."""

    domain: ClassVar[str] = "listings"


class ShardedCatalogueGuardSuite(_ShardedGuardSuite):
    """The catalogue of media: an owner's part lies in one group."""

    domain: ClassVar[str] = "catalogue"


class ShardedSessionGuardSuite(_ShardedGuardSuite):
    """Sessions: those of a user lie in one group, the cut with them."""

    domain: ClassVar[str] = "sessions"


class ShardedUserGuardSuite(_ShardedGuardSuite):
    """Users."""

    domain: ClassVar[str] = "users"

    async def test_what_is_refused_by_rows_of_a_fenced_place_is_refused_by_its_fence(
        self, fixture: StoreFixture
    ) -> None:
        # Whoever has an old route would else be told "absent" or "taken" by a side that is sealed and stale.
        store, guard, maker = await self._guarded(fixture)
        create = self._new(maker)
        stored = (await store.execute(create, fixture.deadline())).entity
        gone = (await store.execute(self._new(maker), fixture.deadline())).entity
        await store.execute(self._removal(gone), fixture.deadline())
        taken = CreateUser(maker.id(), stored.username)
        renamed = UpdateUser(maker.id(), (("username", maker.id().hex),))
        other = UpdateUser(stored.id, (("username", maker.id().hex),), expected_version=1)
        unchanged = (create, self._removal(gone))
        for mutation, error in ((taken, AlreadyExists), (renamed, NotFound), (other, Conflict)):
            await refused(error, store.execute(mutation, fixture.deadline()))
        for mutation in unchanged:
            assert (await store.execute(mutation, fixture.deadline())).records == ()
        await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
        for mutation in (taken, renamed, other, *unchanged):
            await refused(Fenced, store.execute(mutation, fixture.deadline()))

    async def test_no_write_is_acknowledged_after_the_fence_under_writers(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        peer = await fixture.peer(store)
        acknowledged: list[Record] = []

        async def write(client: Any) -> None:
            for _ in range(5_000):
                results, errors = await outcomes([client.execute(self._new(maker), fixture.deadline())])
                if errors:
                    assert [type(error) for error in errors] == [Fenced]
                    return
                acknowledged.extend(results[0].records)

        async def fence() -> tuple[dict[Key, Record], dict[Key, Record]]:
            async def ten() -> bool:
                return len(acknowledged) >= 10

            await fixture.until(ten, "ten writes")
            await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
            stored = by_key(await scanned(store, await store.plan_scan(1), 1000))
            return stored, await dirty_records(guard)

        (stored, dirty), *_ = await asyncio.gather(fence(), write(store), write(peer), write(peer))
        told = by_key(acknowledged)
        assert told.items() <= stored.items(), "what was acknowledged is stored"
        # A claim that was released again, or whose create the fence stopped; never a row.
        assert {kind for kind, _ in stored.keys() - told.keys()} <= {"claim"}
        for key in stored.keys() - told.keys():
            owner = stored[key].fields
            assert not owner or ("user", owner[0]) not in stored, "the claim of a row that was not acknowledged"
        assert dirty == stored, "and all of it is in the journal"
        assert by_key(await scanned(store, await store.plan_scan(1), 1000)) == stored
