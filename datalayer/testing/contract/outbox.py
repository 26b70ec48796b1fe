"""What a store promises of its outboxes: an index that drains one misses nothing, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from datalayer.domains.movement import INDEXED
from datalayer.errors import StaleRoute
from datalayer.stores.base import Entry, Token
from datalayer.testing.contract.fixture import StoreFixture, refused
from datalayer.testing.contract.guard import GuardSuite
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import Outbox

INDEX = 7


async def entered(outbox: Outbox) -> dict[Key, Entry]:
    """All that an outbox holds, but for since when."""
    return {entry.ident: entry._replace(since=0) for entry in await outbox.pending(10_000)}


def entry_of(record: Record) -> Entry:
    """What a write of a record enters."""
    return Entry(record.kind, record.key, record.version)


class OutboxSuite:
    """An outbox by itself: enter, pending, settle, lag, install, remove; ``domain`` may be users."""

    domain: ClassVar[str] = "messages"

    async def _followed(self, fixture: StoreFixture) -> tuple[Any, Outbox, Maker]:
        store = await fixture.fresh(self.domain)
        outbox: Outbox = store.outbox(INDEX)
        await outbox.install()
        return store, outbox, Maker(fixture)

    async def test_an_outbox_is_off_until_it_is_installed_and_after_it_was_removed(self, fixture: StoreFixture) -> None:
        store = await fixture.fresh(self.domain)
        outbox: Outbox = store.outbox(INDEX)
        for _ in range(2):
            assert not await outbox.installed()
            assert await store.outboxes() == []
            await refused(StaleRoute, outbox.pending(10))
            await refused(StaleRoute, outbox.lag(10))
            await outbox.remove()
        await outbox.install()
        await outbox.install()
        assert await outbox.installed()
        assert await store.outboxes() == [INDEX]
        assert await entered(outbox) == {}
        assert await outbox.lag(10) == (0, None)
        await outbox.remove()
        assert not await outbox.installed()
        assert await store.outboxes() == []
        await refused(StaleRoute, outbox.pending(10))

    async def test_of_two_versions_entered_the_later_stays(self, fixture: StoreFixture) -> None:
        _, outbox, maker = await self._followed(fixture)
        record = maker.main(self.domain)
        older, newer = (entry_of(record)._replace(version=record.version + more) for more in (2, 4))
        await outbox.enter([newer])
        await outbox.enter([older])
        assert await entered(outbox) == {record.ident: newer}
        await outbox.enter([newer._replace(version=record.version + 6, gone=True)])
        assert await entered(outbox) == {record.ident: newer._replace(version=record.version + 6, gone=True)}

    async def test_settling_clears_what_the_index_holds_and_nothing_newer(self, fixture: StoreFixture) -> None:
        _, outbox, maker = await self._followed(fixture)
        entries = [entry_of(maker.main(self.domain)) for _ in range(4)]
        await outbox.enter(entries)
        at, above, below, absent = entries
        await outbox.settle([at, above._replace(version=above.version + 5), below._replace(version=below.version - 1)])
        assert await entered(outbox) == {entry.ident: entry for entry in (below, absent)}
        await outbox.settle([entry_of(maker.main(self.domain))])
        await outbox.settle([])
        assert await entered(outbox) == {entry.ident: entry for entry in (below, absent)}
        assert await outbox.holds([at.ident, above.ident, absent.ident])
        assert not await outbox.holds([at.ident, above.ident])
        assert not await outbox.holds([])

    async def test_pending_gives_every_key_once_over_any_number_of_parts(self, fixture: StoreFixture) -> None:
        _, outbox, maker = await self._followed(fixture)
        entries = {entry.ident: entry for entry in (entry_of(maker.main(self.domain)) for _ in range(40))}
        await outbox.enter(list(entries.values()))
        for parts in (1, 3):
            found = [entry for number in range(parts) for entry in await outbox.pending(100, part=(number, parts))]
            assert len(found) == len(entries)
            assert {entry.ident: entry._replace(since=0) for entry in found} == entries
        assert len(await outbox.pending(7)) == 7

    async def test_what_waits_longest_comes_first_and_lag_says_since_when(self, fixture: StoreFixture) -> None:
        _, outbox, maker = await self._followed(fixture)
        began = fixture.clock.now_us()
        first, second = (entry_of(maker.main(self.domain)) for _ in range(2))
        await outbox.enter([first])
        await self._later(fixture, outbox)
        await outbox.enter([second])
        number, since = await outbox.lag(10)
        assert number == 2
        assert since is not None
        assert began - 2_000_000 <= since <= fixture.clock.now_us() + 2_000_000
        assert [entry._replace(since=0) for entry in await outbox.pending(1)] == [first]
        assert await outbox.lag(1) == (1, since)
        await outbox.enter([first._replace(version=first.version + 2)])
        await outbox.settle([first._replace(version=first.version + 2)])
        number, later = await outbox.lag(10)
        assert number == 1
        assert later is not None
        assert later > since

    async def test_an_entry_says_since_when_it_waits_and_takes_that_along(self, fixture: StoreFixture) -> None:
        _, outbox, maker = await self._followed(fixture)
        long_ago = fixture.clock.now_us() - 5 * 3600 * 1_000_000
        handed, plain = (entry_of(maker.main(self.domain)) for _ in range(2))
        await outbox.enter([plain, handed._replace(since=long_ago)])
        found = {entry.ident: entry.since for entry in await outbox.pending(10, every=True)}
        assert found[handed.ident] == long_ago
        assert abs(found[plain.ident] - fixture.clock.now_us()) < 60_000_000
        assert await outbox.lag(10) == (2, long_ago)

    async def _later(self, fixture: StoreFixture, outbox: Outbox) -> None:
        """Until the next entry is younger by the store's own clock."""
        _, since = await outbox.lag(10)
        assert since is not None

        async def passed() -> bool:
            return fixture.clock.now_us() > max(since, began) + 5_000

        began = fixture.clock.now_us()
        await fixture.until(passed, "some milliseconds")


class WrittenOutboxSuite(OutboxSuite):
    """Of a transactional store: what is written is entered in the same transaction. OutboxSuite comes with it."""

    _kinds: Any = GuardSuite

    async def test_every_write_is_entered_and_the_applies_of_a_replayer_are_not(self, fixture: StoreFixture) -> None:
        store, outbox, maker = await self._followed(fixture)
        guards = GuardSuite()
        guards.domain = self.domain  # type: ignore[misc]
        attempt = fixture.attempt_of(store)
        guard = store.guard(attempt)
        token = Token(f"m{attempt}", self.domain, attempt, attempt * 100 + 1)
        await guard.install(token, sealed=False)
        brought = maker.main(self.domain)
        await guard.apply([brought])
        assert await entered(outbox) == {}
        made = await store.execute(guards._new(maker), fixture.deadline())  # noqa: SLF001 - the guard suite's own data
        expected = {r.ident: entry_of(r) for r in made.records if r.kind in INDEXED[self.domain]}
        assert await entered(outbox) == expected
        changed = await store.execute(guards._change(maker, made.entity), fixture.deadline())  # noqa: SLF001 - as above
        expected |= {r.ident: entry_of(r) for r in changed.records if r.kind in INDEXED[self.domain]}
        assert await entered(outbox) == expected
        plain = maker.main(self.domain)
        await store.apply([plain])
        assert await entered(outbox) == expected | {plain.ident: entry_of(plain)}

    async def test_entries_name_versions_that_the_store_holds_while_many_write(self, fixture: StoreFixture) -> None:
        store, outbox, maker = await self._followed(fixture)
        records = [maker.main(self.domain) for _ in range(12)]
        later = [version for record in records for version in maker.next_versions(record, 3)]
        await asyncio.gather(*(store.apply([record]) for record in (*records, *later)))
        found = await entered(outbox)
        stored = await store.fetch([record.ident for record in records])
        assert {key: entry.version for key, entry in found.items()} == {k: r.version for k, r in stored.items()}

    async def test_a_key_that_changes_again_has_waited_since_it_was_entered_first(self, fixture: StoreFixture) -> None:
        store, outbox, maker = await self._followed(fixture)
        record = maker.main(self.domain)
        await store.apply([record])
        since = (await outbox.lag(10))[1]
        await self._later(fixture, outbox)
        await store.apply(maker.next_versions(record, 3))
        assert await outbox.lag(10) == (1, since)

    async def test_each_index_has_an_outbox_of_its_own(self, fixture: StoreFixture) -> None:
        store, outbox, maker = await self._followed(fixture)
        other: Outbox = store.outbox(INDEX + 1)
        first = maker.main(self.domain)
        await store.apply([first])
        await other.install()
        assert await store.outboxes() == [INDEX, INDEX + 1]
        assert await entered(other) == {}
        second = maker.main(self.domain)
        await store.apply([second])
        await other.settle([entry_of(first), entry_of(second)])
        assert await entered(outbox) == {r.ident: entry_of(r) for r in (first, second)}
        assert await entered(other) == {}

    async def test_a_foreign_program_is_followed_too(self, fixture: StoreFixture) -> None:
        store, outbox, maker = await self._followed(fixture)
        assert fixture.foreign is not None, "this suite needs a fixture with a foreign program"
        record = maker.main(self.domain)
        await fixture.foreign.upsert(store, record)
        found = (await store.fetch([record.ident]))[record.ident]
        assert await entered(outbox) == {record.ident: entry_of(found)}
        await outbox.settle([entry_of(found)])
        await fixture.foreign.upsert(store, maker.next_versions(found, 2)[0]._replace(version=found.version))
        lifted = (await store.fetch([record.ident]))[record.ident]
        assert lifted.version > found.version, "an index would not take it"
        assert await entered(outbox) == {record.ident: entry_of(lifted)}
        await fixture.foreign.delete(store, record.ident)
        gone = (await entered(outbox))[record.ident]
        assert gone.gone
        assert gone.version > lifted.version
        await outbox.settle([gone])
        await fixture.foreign.upsert(store, record)
        again = (await store.fetch([record.ident]))[record.ident]
        assert again.version > gone.version, "the index would keep the tombstone"
        assert await entered(outbox) == {record.ident: entry_of(again)}

    async def test_a_place_that_is_dropped_leaves_no_outbox(self, fixture: StoreFixture) -> None:
        store, outbox, _ = await self._followed(fixture)
        await store.drop()
        assert not await outbox.installed()
        await refused(StaleRoute, outbox.pending(10))
        await store.create()
        assert await store.outboxes() == []
