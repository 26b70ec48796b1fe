"""What a transactional store promises of its guard: the journal misses nothing, the fence lets nothing through."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

from datalayer.domains.catalogue import Attach, Describe, Detach
from datalayer.domains.conversations import CreateConversation, DeleteConversation, UpdateConversation
from datalayer.domains.listings import Show
from datalayer.domains.messages import Append, Delete, Edit
from datalayer.domains.record import FINAL_LEAD
from datalayer.domains.registry import DOMAINS
from datalayer.domains.sessions import CreateSession, RevokeSession, TouchSession
from datalayer.domains.users import CreateUser, DeleteUser, UpdateUser
from datalayer.errors import Fenced, LostLease, MigrationError, Quarantine, StaleRoute
from datalayer.stores.base import Token
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.port import by_key, fetched, scanned, seen
from datalayer.testing.contract.values import LONE_SURROGATE, Maker

if TYPE_CHECKING:
    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import Guard

LOCK_S = 5.0
LONG_S = 120.0
MINUTE_US, HOUR_US = 60_000_000, 3_600_000_000
_FIRST = 1_900_000_000_000_000
_LATER = itertools.count(_FIRST)
"""Versions of memberships, each newer than what is shown."""


async def dirty_records(guard: Guard) -> dict[Key, Record]:
    """All of a journal, as compared."""
    return {record.ident: seen(record) for record in await guard.journal.pending(10_000)}


class GuardSuite:
    """Journal, fence, seal, open, replayer's apply, repair, tokens; ``domain`` may be set to another."""

    domain: ClassVar[str] = "messages"

    async def _guarded(self, fixture: StoreFixture, *, sealed: bool = False) -> tuple[Any, Guard, Maker]:
        store = await fixture.fresh(self.domain)
        guard = self._guard(fixture, store)
        await guard.install(self._token(fixture, store), sealed=sealed)
        return store, guard, Maker(fixture)

    def _guard(self, fixture: StoreFixture, store: Any) -> Guard:
        """The guard of the migration that has the place's own number."""
        guard: Guard = store.guard(fixture.attempt_of(store))
        return guard

    def _token(self, fixture: StoreFixture, store: Any, step: int = 0) -> Token:
        # Rising from place to place: a database that has seen a higher one refuses it.
        attempt = fixture.attempt_of(store)
        return Token(f"m{attempt}", self.domain, attempt, attempt * 100 + step)

    def _new(self, maker: Maker) -> Any:
        if self.domain == "messages":
            return Append(maker.id(), maker.id(), maker.id(), "hi")
        if self.domain == "users":
            return CreateUser(maker.id(), maker.id().hex, maker.id().hex)
        if self.domain == "listings":
            return Show(maker.id(), maker.id(), 1)
        if self.domain == "catalogue":
            upload = maker.id(maker.now_us)
            return Attach(maker.id(), maker.id(), upload, maker.sha256(), 3, "files:0", "image/png")
        if self.domain == "sessions":
            return CreateSession(maker.id(), maker.id(), maker.random.randbytes(16), MINUTE_US, 1000 * HOUR_US)
        return CreateConversation(maker.id(), "new", "group", ((maker.id(), "owner"), (maker.id(), "member")))

    def _change(self, maker: Maker, entity: Any, text: str = "changed") -> Any:
        if self.domain == "messages":
            return Edit(entity.conversation_id, entity.id, text)
        if self.domain == "users":
            return UpdateUser(entity.id, (("display_name", text), ("username", maker.id().hex)))
        if self.domain == "listings":
            return Show(entity.user_id, entity.conversation_id, next(_LATER), role=text)
        if self.domain == "catalogue":
            return Describe(entity.owner_id, entity.id, (("filename", text),))
        if self.domain == "sessions":
            return self._touch(entity)
        return UpdateConversation(entity.id, (("title", text),))

    def _removal(self, entity: Any) -> Any:
        if self.domain == "messages":
            return Delete(entity.conversation_id, entity.id)
        if self.domain == "listings":
            return Show(entity.user_id, entity.conversation_id, next(_LATER), ended=True)
        if self.domain == "catalogue":
            return Detach(entity.owner_id, entity.id, 1)
        if self.domain == "sessions":
            return RevokeSession(entity.user_id, entity.id)
        return DeleteUser(entity.id) if self.domain == "users" else DeleteConversation(entity.id)

    def _touch(self, session: Any) -> TouchSession:
        """A touch that lets it live longer than any before."""
        longer_us = HOUR_US + (next(_LATER) - _FIRST) * MINUTE_US
        return TouchSession(session.user_id, session.id, session.proof, longer_us)

    # journal
    async def test_journal_sees_every_later_write_and_none_before(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        guard = self._guard(fixture, store)
        early, doomed = [await store.execute(self._new(maker), fixture.deadline()) for _ in range(2)]
        await guard.install(self._token(fixture, store), sealed=False)
        assert await guard.journal.backlog() == 0
        assert await dirty_records(guard) == {}
        later: dict[Key, Record] = {}
        created = [(await store.execute(self._new(maker), fixture.deadline())) for _ in range(3)]
        changed = await store.execute(self._change(maker, early.entity), fixture.deadline())
        removed = await store.execute(self._removal(created[1].entity), fixture.deadline())
        gone = await store.execute(self._removal(doomed.entity), fixture.deadline())
        for done in (*created, changed, removed, gone):
            later |= by_key(done.records)
        assert await dirty_records(guard) == later
        assert await guard.journal.backlog() == len(later)
        await guard.journal.settle(await guard.journal.pending(1000))
        assert await guard.journal.backlog() == 0, "an entry is not at the version of its record"

    async def test_journal_names_no_key_of_a_write_that_was_refused_or_changed_nothing(
        self, fixture: StoreFixture
    ) -> None:
        store, guard, maker = await self._guarded(fixture)
        new = self._new(maker)
        done = await store.execute(new, fixture.deadline())
        await guard.journal.settle(done.records)
        await store.execute(new, fixture.deadline())
        absent = self._removal_of_absent(maker)
        if absent is not None:
            await refused(LookupError, store.execute(absent, fixture.deadline()))
        assert await dirty_records(guard) == {}

    def _removal_of_absent(self, maker: Maker) -> Any:
        if self.domain == "listings":
            return None  # nothing is refused there
        if self.domain == "sessions":
            return self._touch(DOMAINS[self.domain].to_entity(maker.main(self.domain)))
        return self._removal(DOMAINS[self.domain].to_entity(maker.main(self.domain)))

    async def test_install_under_writers_misses_no_write_that_began_later(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        peer = await fixture.peer(store)
        guard = self._guard(fixture, store)
        installed, stop = asyncio.Event(), asyncio.Event()
        later: list[Record] = []

        async def write(client: Any) -> None:
            while not stop.is_set():
                began_later = installed.is_set()
                done = await client.execute(self._new(maker), fixture.deadline())
                if began_later:
                    later.extend(done.records)

        async def guarded() -> None:
            await asyncio.sleep(0.02)
            await guard.install(self._token(fixture, store), sealed=False)
            installed.set()
            await fixture.until(_at_least(later, 10), "ten writes under the journal")
            stop.set()

        await asyncio.gather(guarded(), write(store), write(peer), write(peer))
        assert by_key(later).items() <= (await dirty_records(guard)).items()

    async def test_journal_holds_one_entry_for_a_key_however_often_it_is_written(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        entity = (await store.execute(self._new(maker), fixture.deadline())).entity
        await guard.journal.settle(await guard.journal.pending(100))
        last = entity
        for at in range(8):
            change = UpdateUser(entity.id, (("status", f"{at}"),)) if self.domain == "users" else None
            done = await store.execute(change or self._change(maker, entity, f"{at}"), fixture.deadline())
            last = done.entity
        assert await guard.journal.backlog() == 1
        assert [record.version for record in await guard.journal.pending(100)] == [last.version]

    async def test_settle_keeps_a_key_that_was_written_since(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        first = await store.execute(self._new(maker), fixture.deadline())
        taken = await guard.journal.pending(100)
        assert by_key(taken) == by_key(first.records)
        second = await store.execute(self._removal(first.entity), fixture.deadline())
        await guard.journal.settle(taken)
        assert await dirty_records(guard) == by_key(second.records)
        newer = [record._replace(version=record.version + 1) for record in second.records]
        await guard.journal.settle(newer)
        assert await guard.journal.backlog() == len(second.records), "settled a version that was never written"
        await guard.journal.settle(second.records)
        assert await guard.journal.backlog() == 0
        await guard.journal.settle(second.records)

    async def test_pending_is_bounded_and_its_parts_cover_the_journal(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        written: dict[Key, Record] = {}
        for _ in range(20):
            written |= by_key((await store.execute(self._new(maker), fixture.deadline())).records)
        assert len(await guard.journal.pending(7)) == 7
        parts = [await guard.journal.pending(1000, part=(number, 3)) for number in range(3)]
        assert by_key(record for part in parts for record in part) == written
        assert max(len(part) for part in parts) < len(written), "one replayer gets everything"

    async def test_pending_reaches_every_key_when_pages_are_settled(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        written: dict[Key, Record] = {}
        for _ in range(15):
            written |= by_key((await store.execute(self._new(maker), fixture.deadline())).records)
        met: dict[Key, Record] = {}
        for _ in range(100):
            page = await guard.journal.pending(4)
            if not page:
                break
            met |= by_key(page)
            await guard.journal.settle(page)
        assert met == written
        assert await guard.journal.backlog() == 0

    async def test_dirty_is_asked_by_routing_key_and_by_key(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        done = await store.execute(self._new(maker), fixture.deadline())
        other = maker.of(self.domain)
        for record in done.records:
            assert await guard.journal.dirty([other.routing, record.routing])
            assert await guard.journal.dirty([record.routing], [other.ident, record.ident])
            neighbour = (record.kind, record.routing + other.key[16:])
            if neighbour not in by_key(done.records):
                assert not await guard.journal.dirty([record.routing], [neighbour])
        assert not await guard.journal.dirty([other.routing])
        assert not await guard.journal.dirty([])
        await guard.journal.settle(done.records)
        assert not await guard.journal.dirty([record.routing for record in done.records])

    async def test_a_missing_journal_is_a_stale_route_and_never_clean(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        routing = maker.of(self.domain).routing
        await guard.remove(self._token(fixture, store), keep_fence=False)
        for journal in (guard.journal, store.guard(next(fixture.attempts)).journal):
            await refused(StaleRoute, journal.dirty([routing]))
            await refused(StaleRoute, journal.dirty([routing], [maker.of(self.domain).ident]))
            await refused(StaleRoute, journal.pending(10))
            await refused(StaleRoute, journal.backlog())

    async def test_install_again_keeps_journal_and_fence(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        done = await store.execute(self._new(maker), fixture.deadline())
        token = self._token(fixture, store)
        await guard.install(token, sealed=False)
        assert await dirty_records(guard) == by_key(done.records)
        await guard.fence(token, 1, LONG_S, LOCK_S)
        await guard.seal(token, 1)
        await guard.install(token, sealed=False)
        assert (await guard.state()).fence == "sealed"
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))

    async def test_two_clients_see_one_journal(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        peer = await fixture.peer(store)
        done = await peer.execute(self._new(maker), fixture.deadline())
        assert await dirty_records(guard) == by_key(done.records)
        await self._guard(fixture, peer).journal.settle(done.records)
        assert await guard.journal.backlog() == 0

    # the replayer's apply
    async def test_apply_of_the_replayer_is_gated_and_not_journalled(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        records = [maker.of(self.domain) for _ in range(10)]
        newer = [maker.next_versions(record, 3)[at % 3] for at, record in enumerate(records)]
        await guard.apply(newer)
        await guard.apply(records)
        await guard.apply([*newer[:3], *records[:3]])
        assert await fetched(store, by_key(records)) == by_key(newer)
        assert await guard.journal.backlog() == 0
        assert await guard.journal.foreign_writers() == []

    async def test_apply_of_the_replayer_passes_the_fence(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture, sealed=True)
        records = [maker.of(self.domain) for _ in range(5)]
        await guard.apply(records)
        assert await fetched(store, by_key(records)) == by_key(records)
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))

    async def test_apply_of_the_replayer_quarantines_and_lands_the_rest(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture, sealed=True)
        text = maker.with_text(self.domain, LONE_SURROGATE)
        good = [maker.of(self.domain) for _ in range(4)]
        error = await refused(Quarantine, guard.apply([*good[:2], text, *good[2:]]))
        assert set(error.rejected) == {text.ident}
        assert await fetched(store, by_key([*good, text])) == by_key(good)

    async def test_apply_of_an_ended_attempt_lands_nowhere(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        record = maker.of(self.domain)
        await guard.remove(self._token(fixture, store), keep_fence=False)
        await refused(StaleRoute, guard.apply([record]))
        await refused(StaleRoute, store.guard(next(fixture.attempts)).apply([record]))
        assert await store.fetch([record.ident]) == {}

    async def test_writes_meet_what_the_replayer_applied(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        record = maker.main(self.domain)._replace(version=maker.now_us + 30_000_000)
        await guard.apply([record])
        entity = DOMAINS[self.domain].to_entity(record)
        done = await store.execute(self._removal(entity), fixture.deadline())
        assert done.entity.version >= record.version + 2 + DOMAINS[self.domain].kinds[0].lead

    async def _second(self, fixture: StoreFixture, store: Any) -> Guard:
        """The guard of another attempt at the same place: a slot group moves while its domain has a way back."""
        second: Guard = store.guard(next(fixture.attempts))
        await second.install(self._token(fixture, store), sealed=False)
        return second

    async def test_apply_of_one_attempt_is_a_write_to_the_journal_of_another(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        other = await self._second(fixture, store)
        record = maker.main(self.domain)
        lead = DOMAINS[self.domain].kinds[0].lead
        gone = DOMAINS[self.domain].tombstone(record.kind, record.key, record.version + 2 + lead)
        for applied in (record, gone):
            await guard.apply([applied])
            assert (await store.fetch([record.ident]))[record.ident].version == applied.version, "it was lifted"
            found = await other.journal.pending(10)
            assert [(one.ident, one.version) for one in found] == [(record.ident, applied.version)]
            await other.journal.settle(found)
            await guard.apply([record])
            assert await other.journal.backlog() == 0, "it was not newer"
        assert await guard.journal.backlog() == 0
        for each in (guard, other):
            state = await each.state()
            assert (state.installed, state.tampered) == (True, False)

    async def test_apply_of_one_attempt_does_not_pass_the_fence_of_another(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        other = await self._second(fixture, store)
        record = maker.main(self.domain)
        await other.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
        await refused(StaleRoute, guard.apply([record]))
        assert await store.fetch([record.ident]) == {}
        await other.remove(self._token(fixture, store), keep_fence=False)
        await guard.apply([record])
        assert (await store.fetch([record.ident]))[record.ident].version == record.version

    # fence
    async def test_fence_refuses_every_write_and_leaves_nothing_of_it(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        peer = await fixture.peer(store)
        new = self._new(maker)
        done = await store.execute(new, fixture.deadline())
        await guard.journal.settle(done.records)
        before = by_key(await scanned(store, await store.plan_scan(1), 1000))
        await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
        state = await guard.state()
        assert (state.installed, state.fence, state.flip) == (True, "lapsing", 1)
        for client in (store, peer):
            for mutation in (self._new(maker), self._change(maker, done.entity), self._removal(done.entity)):
                await refused(Fenced, client.execute(mutation, fixture.deadline()))
        assert by_key(await scanned(store, await store.plan_scan(1), 1000)) == before
        assert await guard.journal.backlog() == 0
        found = await store.get(*self._get_key(done.entity), fixture.deadline())
        assert (found[0] if self.domain == "sessions" else found) == done.entity, "reads are not held"

    def _get_key(self, entity: Any) -> tuple[Any, ...]:
        if self.domain == "messages":
            return (entity.conversation_id, entity.id)
        if self.domain == "catalogue":
            return (entity.owner_id, entity.id)
        if self.domain == "sessions":
            return (entity.user_id, entity.id)
        return (entity.user_id, entity.conversation_id) if self.domain == "listings" else (entity.id,)

    async def test_fence_lapses_by_itself(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)

        async def accepted() -> bool:
            _, errors = await outcomes([store.execute(self._new(maker), fixture.deadline())])
            assert {type(error) for error in errors} <= {Fenced}
            return not errors

        # On a busy machine a short fence may be over before anybody meets it.
        for flip, lapse_s in enumerate((0.25, 1.0, 4.0), 1):
            await guard.fence(self._token(fixture, store), flip, lapse_s, LOCK_S)
            if not await accepted():
                break
        else:
            raise AssertionError("the fence refused nobody")

        await fixture.until(accepted, "the fence to lapse")
        assert (await guard.state()).fence == "open"
        assert await guard.journal.backlog() > 0, "the journal stays on"

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
            await fixture.until(_at_least(acknowledged, 10), "ten writes")
            await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
            stored = by_key(await scanned(store, await store.plan_scan(1), 1000))
            return stored, await dirty_records(guard)

        (stored, dirty), *_ = await asyncio.gather(fence(), write(store), write(peer), write(peer))
        assert by_key(acknowledged) == stored, "what is stored at the fence is what was acknowledged"
        assert dirty == stored, "and all of it is in the journal"
        assert by_key(await scanned(store, await store.plan_scan(1), 1000)) == stored

    async def test_seal_never_lapses_and_needs_a_live_fence_of_its_flip(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        token = self._token(fixture, store)
        await refused(MigrationError, guard.seal(token, 1))
        await guard.fence(token, 1, 0.05, LOCK_S)

        async def lapsed() -> bool:
            return (await guard.state()).fence == "open"

        await fixture.until(lapsed, "the fence to lapse")
        await refused(MigrationError, guard.seal(token, 1))
        await guard.fence(token, 2, LONG_S, LOCK_S)
        await refused(MigrationError, guard.seal(token, 1))
        await guard.seal(token, 2)
        await guard.seal(token, 2)
        state = await guard.state()
        assert (state.fence, state.flip) == ("sealed", 2)
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))

    async def test_a_lapsing_fence_of_a_sealed_place_does_not_weaken_it(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        token = self._token(fixture, store)
        await guard.fence(token, 1, 0.15, LOCK_S)
        await guard.seal(token, 1)
        await asyncio.sleep(0.3)
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))
        assert (await guard.state()).fence == "sealed"

    async def test_open_accepts_journalled_writes_and_may_be_repeated(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture, sealed=True)
        state = await guard.state()
        assert (state.installed, state.fence) == (True, "sealed")
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))
        await guard.open(1)
        await self._guard(fixture, await fixture.peer(store)).open(1)
        done = await store.execute(self._new(maker), fixture.deadline())
        assert await dirty_records(guard) == by_key(done.records)
        assert (await guard.state()).fence == "open"

    async def test_open_of_an_earlier_flip_leaves_a_later_fence(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        token = self._token(fixture, store)
        await guard.fence(token, 2, LONG_S, LOCK_S)
        await guard.seal(token, 2)
        await outcomes([guard.open(1)])
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))
        await guard.open(3)
        await store.execute(self._new(maker), fixture.deadline())

    async def test_remove_ends_the_journal_and_keeps_the_fence_when_asked(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        token = self._token(fixture, store)
        await guard.fence(token, 1, LONG_S, LOCK_S)
        await guard.seal(token, 1)
        await guard.remove(token, keep_fence=True)
        await guard.remove(token, keep_fence=True)
        await refused(Fenced, store.execute(self._new(maker), fixture.deadline()))
        assert not (await guard.state()).installed
        await guard.remove(token, keep_fence=False)
        await store.execute(self._new(maker), fixture.deadline())

    async def test_guards_of_two_places_do_not_meet(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        other = await fixture.fresh(self.domain)
        await guard.fence(self._token(fixture, store), 1, LONG_S, LOCK_S)
        await other.execute(self._new(maker), fixture.deadline())
        assert await guard.journal.backlog() == 0

    # tokens
    async def test_an_overtaken_coordinator_is_refused_at_every_step(self, fixture: StoreFixture) -> None:
        store, guard, _ = await self._guarded(fixture)
        old, new = self._token(fixture, store), self._token(fixture, store, 1)
        backend = await fixture.backend()
        await backend.raise_token(new)
        await backend.raise_token(new)
        await refused(LostLease, backend.raise_token(old))
        await refused(LostLease, guard.install(old, sealed=True))
        await refused(LostLease, guard.fence(old, 1, LONG_S, LOCK_S))
        await guard.fence(new, 1, LONG_S, LOCK_S)
        await refused(LostLease, guard.seal(old, 1))
        await refused(LostLease, guard.remove(old, keep_fence=False))
        state = await guard.state()
        assert (state.installed, state.fence) == (True, "lapsing")

    async def test_a_younger_step_of_an_earlier_attempt_overtakes_a_later_attempt(self, fixture: StoreFixture) -> None:
        store, guard, _ = await self._guarded(fixture)
        backend = await fixture.backend()
        first = self._token(fixture, store)
        later = Token("later", self.domain, first.attempt + 1, first.value + 1)
        purge = self._token(fixture, store, 2)
        await backend.raise_token(later)
        await backend.raise_token(purge)
        await guard.fence(purge, 1, LONG_S, LOCK_S)
        await refused(LostLease, backend.raise_token(later))

    # repair
    async def test_repair_lifts_what_is_stored_and_marks_it_dirty(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        live, dead = maker.main(self.domain), maker.main(self.domain)._replace(deleted=True)
        await guard.apply([live, dead])
        await guard.repair([live.ident, dead.ident], [], fixture.clock.now_us())
        lifted = await store.fetch([live.ident, dead.ident])
        assert lifted[live.ident].version > live.version
        assert lifted[live.ident].fields == live.fields
        assert lifted[dead.ident].version > dead.version
        assert lifted[dead.ident].deleted
        assert await dirty_records(guard) == by_key(lifted.values())

    async def test_repair_enters_a_ghost_as_a_tombstone_unless_it_exists(self, fixture: StoreFixture) -> None:
        store, guard, maker = await self._guarded(fixture)
        definition = DOMAINS[self.domain]
        present, ghost = maker.of(self.domain), maker.of(self.domain)
        await guard.apply([present])
        tombs = [definition.tombstone(one.kind, one.key, one.version + FINAL_LEAD) for one in (present, ghost)]
        await guard.repair([], tombs, fixture.clock.now_us())
        found = await dirty_records(guard)
        assert found[ghost.ident] == seen(tombs[1])
        assert present.ident not in found or not found[present.ident].deleted
        assert not (await store.fetch([present.ident]))[present.ident].deleted


def _at_least(records: list[Record], number: int) -> Any:
    async def enough() -> bool:
        return len(records) >= number

    return enough
