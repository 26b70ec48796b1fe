"""What a guard promises of programs that do not know the library: their writes are journalled, fenced and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from datalayer.domains.registry import DOMAINS
from datalayer.testing.contract.fixture import StoreFixture, refused
from datalayer.testing.contract.guard import LOCK_S, LONG_S, GuardSuite, dirty_records
from datalayer.testing.contract.port import by_key, fetched, seen

if TYPE_CHECKING:
    from datalayer.testing.contract.fixture import Foreign


class ForeignWriterSuite(GuardSuite):
    """Runs with a fixture whose ``foreign`` is set; GuardSuite's own tests come with it."""

    domain: ClassVar[str] = "messages"

    async def test_foreign_insert_is_journalled_and_its_program_is_named(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        assert await guard.journal.foreign_writers() == []
        for kind in DOMAINS[self.domain].kinds:
            record = maker.of(self.domain, kind.name)
            await _foreign(fixture).upsert(store, record)
            dirty = await dirty_records(guard)
            assert record.ident in dirty
            found = dirty[record.ident]
            assert found == (await fetched(store, [record.ident]))[record.ident]
            assert found.version >= record.version
        assert await guard.journal.foreign_writers() == [_foreign(fixture).name]

    async def test_foreign_update_that_keeps_the_version_is_lifted(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        record = maker.main(self.domain)
        await guard.apply([record])
        changed = maker.next_versions(record, 2)[0]._replace(version=record.version)
        await _foreign(fixture).upsert(store, changed)
        stored = (await store.fetch([record.ident]))[record.ident]
        assert stored.fields == changed.fields
        assert stored.version >= record.version + 2
        assert await dirty_records(guard) == by_key([stored])

    async def test_foreign_delete_becomes_a_final_tombstone_in_the_journal(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        for kind in DOMAINS[self.domain].kinds:
            record = maker.of(self.domain, kind.name)
            await guard.apply([record])
            await _foreign(fixture).delete(store, record.ident)
            dirty = await dirty_records(guard)
            assert record.ident in dirty
            found = dirty[record.ident]
            assert found.deleted
            assert found.version >= record.version + 2 + kind.lead
            assert await guard.journal.dirty([record.routing])
            assert record.ident not in await fetched(store, [record.ident]) or found.deleted
            await guard.journal.settle([found])
            assert await guard.journal.backlog() == 0

    async def test_an_older_record_does_not_bring_back_what_a_foreign_program_deleted(
        self, fixture: StoreFixture
    ) -> None:
        store, guard, maker = await self._guarded(fixture)
        record = maker.main(self.domain)
        await guard.apply([record])
        await _foreign(fixture).delete(store, record.ident)
        dirty = await dirty_records(guard)
        assert record.ident in dirty
        tomb = dirty[record.ident]
        await guard.journal.settle([tomb])
        await guard.apply([record, record._replace(version=tomb.version - 1)])
        found = await fetched(store, [record.ident])
        assert found.get(record.ident) in (None, seen(tomb)), "a late apply made a ghost"

    async def test_fence_refuses_foreign_programs_too(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        record, new = maker.main(self.domain), maker.main(self.domain)
        await guard.apply([record])
        await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
        # A driver's own error, whatever it is.
        await refused(Exception, _foreign(fixture).upsert(store, new))
        await refused(Exception, _foreign(fixture).upsert(store, maker.next_versions(record, 2)[0]))
        await refused(Exception, _foreign(fixture).delete(store, record.ident))
        assert await fetched(store, by_key([record, new])) == by_key([record])
        assert await guard.journal.backlog() == 0

    async def test_a_removed_guard_lets_foreign_programs_be(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        await guard.remove(self._token(fixture, store), keep_fence=False)
        record = maker.main(self.domain)
        await _foreign(fixture).upsert(store, record)
        assert (await store.fetch([record.ident]))[record.ident].version >= record.version
        await _foreign(fixture).delete(store, record.ident)
        assert await store.fetch([record.ident]) == {}
        assert not (await guard.state()).installed


def _foreign(fixture: StoreFixture) -> Foreign:
    assert fixture.foreign is not None, "this suite needs a fixture with a foreign program"
    return fixture.foreign
