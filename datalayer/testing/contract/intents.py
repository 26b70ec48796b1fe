"""What the control store promises of intents: gate and journal of an authority without transactions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from datalayer.control.base import AdmitState
from datalayer.domains.record import FINAL_LEAD
from datalayer.errors import DatalayerError, LostLease, MigrationError, StaleRoute
from datalayer.testing.contract.control_fixture import ControlFixture
from datalayer.testing.contract.fixture import outcomes, refused
from datalayer.testing.contract.guard import LOCK_S, LONG_S
from datalayer.testing.contract.port import by_key
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from datalayer.control.base import Admitted, Control, IntentLog
    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import Token

TASKS = 12


async def admitted(log: IntentLog, record: Record, *, lead: int = 0) -> Record:
    """The record as the gate admitted it."""
    answer = await log.admit(record, lead=lead, create=False, deadline=None)
    assert answer.state is AdmitState.ADMITTED
    assert answer.record is not None
    return answer.record


class IntentLogSuite:
    """Run it on a ControlFixture."""

    async def _open(self, fixture: ControlFixture, *, sealed: bool = False) -> tuple[Control, IntentLog, Token, Maker]:
        control = await fixture.control()
        token = await fixture.token(control, fixture.name("domain"))
        log = control.intents(token.domain, token.attempt, "target")
        await log.install(token, sealed=sealed)
        return control, log, token, Maker(fixture)

    # admit
    async def test_an_admitted_record_is_in_the_journal_with_every_value(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        hostile = maker.hostile("messages")
        for record in hostile.values():
            assert await admitted(log, record) == record
        found = {record.ident: record for record in await log.journal.pending(1000)}
        for name, record in hostile.items():
            assert repr(found[record.ident]) == repr(record), name
        assert await log.journal.backlog() == len(hostile)

    async def test_nothing_is_admitted_without_a_gate(self, fixture: ControlFixture) -> None:
        control, log, token, maker = await self._open(fixture)
        for other in (
            control.intents(token.domain, token.attempt + 1, "target"),
            control.intents(token.domain, token.attempt, "source"),
        ):
            for create in (True, False):
                answer = await other.admit(maker.message(), lead=0, create=create, deadline=None)
                assert answer.state is AdmitState.STALE
        assert await log.journal.backlog() == 0

    async def test_version_is_above_pending_and_floor_by_the_lead(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        record = maker.message()
        assert (await admitted(log, record)).version == record.version
        assert (await admitted(log, record)).version == record.version + 2
        later = record._replace(version=record.version + 100)
        assert (await admitted(log, later)).version == record.version + 100
        floor = record.version + 1000
        await log.set_floor(floor)
        await log.set_floor(floor - 500)
        assert (await admitted(log, record)).version == floor + 2
        tomb = record._replace(version=record.version + FINAL_LEAD, deleted=True)
        assert (await admitted(log, tomb, lead=FINAL_LEAD)).version == floor + 4 + FINAL_LEAD
        other = maker.message(version=5)
        assert (await admitted(log, other)).version == floor + 2

    async def test_an_append_keeps_its_version_and_meets_a_pending_one(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        await log.set_floor(maker.now_us + 1_000_000)
        record = maker.message()
        first = await log.admit(record, lead=0, create=True, deadline=None)
        assert first == (AdmitState.ADMITTED, record)
        again = await log.admit(record._replace(fields=maker.message().fields), lead=0, create=True, deadline=None)
        assert again == (AdmitState.EXISTS, record)
        edited = await admitted(log, maker.next_versions(record, 2)[0])
        assert await log.admit(record, lead=0, create=True, deadline=None) == (AdmitState.EXISTS, edited)
        assert await log.journal.pending(10) == [edited]

    async def test_nothing_but_a_delete_follows_a_pending_delete(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        record = maker.message()
        tomb = await admitted(log, record._replace(deleted=True, version=record.version + FINAL_LEAD), lead=FINAL_LEAD)
        edit = maker.next_versions(record, 2)[0]
        answer = await log.admit(edit._replace(version=tomb.version + 10), lead=0, create=False, deadline=None)
        assert answer.state is AdmitState.DELETED
        append = await log.admit(record, lead=0, create=True, deadline=None)
        assert append.state in (AdmitState.EXISTS, AdmitState.DELETED)
        again = await log.admit(tomb, lead=FINAL_LEAD, create=False, deadline=None)
        assert again.state in (AdmitState.ADMITTED, AdmitState.DELETED)
        pending = await log.journal.pending(10)
        assert [one.deleted for one in pending] == [True]
        assert pending[0].version >= tomb.version

    async def test_concurrent_admissions_of_a_key_take_different_versions(self, fixture: ControlFixture) -> None:
        control, log, token, maker = await self._open(fixture)
        logs = [log, (await fixture.control()).intents(token.domain, token.attempt, "target")]
        record = maker.message()
        bodies = [maker.message(version=record.version, body=f"{at}")._replace(key=record.key) for at in range(TASKS)]
        results, errors = await outcomes([admitted(logs[at % 2], one) for at, one in enumerate(bodies)])
        assert not errors
        by_version = {one.version: one for one in results}
        assert len(by_version) == TASKS
        assert await log.journal.pending(10) == [by_version[max(by_version)]]
        assert control is not None

    async def test_concurrent_appends_of_a_key_are_admitted_once(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture)
        logs = [log, (await fixture.control()).intents(token.domain, token.attempt, "target")]
        record = maker.message()
        results, errors = await outcomes(
            [logs[at % 2].admit(record, lead=0, create=True, deadline=None) for at in range(TASKS)]
        )
        assert not errors
        states = sorted(str(answer.state) for answer in results)
        assert states == ["admitted"] + ["exists"] * (TASKS - 1)

    # journal
    async def test_journal_holds_the_newest_intent_of_each_key(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        record = maker.message()
        last = record
        for version in maker.next_versions(record, 6)[:-1]:
            last = await admitted(log, version)
        assert await log.journal.pending(10) == [last]
        assert await log.journal.backlog() == 1

    async def test_settle_keeps_a_key_with_a_newer_intent(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        record = maker.message()
        first = await admitted(log, record)
        second = await admitted(log, record)
        await log.journal.settle([first])
        assert await log.journal.pending(10) == [second]
        await log.journal.settle([second._replace(version=second.version + 1)])
        assert await log.journal.backlog() == 1
        await log.journal.settle([second])
        assert await log.journal.backlog() == 0

    async def test_pending_parts_cover_the_journal_and_settled_pages_reach_all(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        written = by_key([await admitted(log, maker.message()) for _ in range(30)])
        parts = [await log.journal.pending(100, part=(number, 3)) for number in range(3)]
        assert by_key(record for part in parts for record in part) == written
        assert max(len(part) for part in parts) < len(written)
        met: dict[Key, Record] = {}
        for _ in range(100):
            page = await log.journal.pending(7)
            assert len(page) <= 7
            if not page:
                break
            met |= by_key(page)
            await log.journal.settle(page)
        assert met == written

    async def test_dirty_is_asked_by_routing_key_and_by_key(self, fixture: ControlFixture) -> None:
        _, log, _, maker = await self._open(fixture)
        record, other = await admitted(log, maker.message()), maker.message()
        neighbour = (record.kind, record.routing + other.key[16:])
        assert await log.journal.dirty([other.routing, record.routing])
        assert await log.journal.dirty([record.routing], [neighbour, record.ident])
        assert not await log.journal.dirty([record.routing], [neighbour])
        assert not await log.journal.dirty([other.routing])
        await log.journal.settle([record])
        assert not await log.journal.dirty([record.routing])

    async def test_a_missing_journal_is_a_stale_route_and_never_clean(self, fixture: ControlFixture) -> None:
        control, log, token, maker = await self._open(fixture)
        await log.remove(token, keep_fence=False)
        for journal in (log.journal, control.intents(token.domain, token.attempt + 1, "source").journal):
            await refused(StaleRoute, journal.dirty([maker.message().routing]))
            await refused(StaleRoute, journal.dirty([maker.message().routing], [maker.message().ident]))
            await refused(StaleRoute, journal.pending(10))
            await refused(StaleRoute, journal.backlog())

    # gate
    async def test_fence_refuses_everything_and_lapses(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture)
        await log.fence(token, 1, 0.25, LOCK_S)
        state = await log.state()
        assert (state.installed, state.fence, state.flip) == (True, "lapsing", 1)
        for create in (True, False):
            answer = await log.admit(maker.message(), lead=0, create=create, deadline=None)
            assert answer.state is AdmitState.FENCED
        assert await log.journal.backlog() == 0

        async def accepted() -> bool:
            answer = await log.admit(maker.message(), lead=0, create=False, deadline=None)
            assert answer.state in (AdmitState.FENCED, AdmitState.ADMITTED)
            return answer.state is AdmitState.ADMITTED

        await fixture.until(accepted, "the gate to open by itself")
        await refused(MigrationError, log.seal(token, 1))

    async def test_nothing_is_admitted_after_the_fence_under_writers(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture)
        peer = (await fixture.control()).intents(token.domain, token.attempt, "target")
        acknowledged: list[Record] = []

        async def write(client: IntentLog) -> None:
            for _ in range(5_000):
                answer: Admitted = await client.admit(maker.message(), lead=0, create=True, deadline=None)
                if answer.state is not AdmitState.ADMITTED:
                    assert answer.state is AdmitState.FENCED
                    return
                assert answer.record is not None
                acknowledged.append(answer.record)

        async def fence() -> list[Record]:
            async def enough() -> bool:
                return len(acknowledged) >= 10

            await fixture.until(enough, "ten admissions")
            await log.fence(token, 1, LONG_S, LOCK_S)
            return await log.journal.pending(100_000)

        pending, *_ = await asyncio.gather(fence(), write(log), write(peer), write(peer))
        assert by_key(pending) == by_key(acknowledged)

    async def test_seal_and_open_follow_the_number_of_the_flip(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture)
        await refused(MigrationError, log.seal(token, 1))
        await log.fence(token, 2, LONG_S, LOCK_S)
        await refused(MigrationError, log.seal(token, 1))
        await log.seal(token, 2)
        await log.seal(token, 2)
        assert (await log.state()).fence == "sealed"
        await outcomes([log.open(1)])
        answer = await log.admit(maker.message(), lead=0, create=False, deadline=None)
        assert answer.state is AdmitState.FENCED
        await log.open(3)
        await log.open(3)
        await admitted(log, maker.message())

    async def test_a_gate_installed_sealed_opens_when_told(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture, sealed=True)
        answer = await log.admit(maker.message(), lead=0, create=False, deadline=None)
        assert answer.state is AdmitState.FENCED
        await log.open(1)
        record = await admitted(log, maker.message())
        await log.install(token, sealed=True)
        assert (await log.state()).fence == "open"
        assert await log.journal.pending(10) == [record]

    async def test_remove_forgets_and_keeps_the_gate_shut_when_asked(self, fixture: ControlFixture) -> None:
        _, log, token, maker = await self._open(fixture)
        await admitted(log, maker.message())
        await log.fence(token, 1, LONG_S, LOCK_S)
        await log.seal(token, 1)
        for keep_fence in (True, True, False, False):
            await log.remove(token, keep_fence=keep_fence)
            answer = await log.admit(maker.message(), lead=0, create=False, deadline=None)
            assert answer.state in (AdmitState.FENCED, AdmitState.STALE)
            assert not (await log.state()).installed
        await refused(DatalayerError, log.set_floor(5))

    async def test_an_overtaken_coordinator_is_refused_at_every_step(self, fixture: ControlFixture) -> None:
        control = await fixture.control()
        old, new = await fixture.overtaken(control, fixture.name("domain"))
        log = control.intents(new.domain, new.attempt, "target")
        await refused(LostLease, log.install(old, sealed=False))
        await log.install(new, sealed=False)
        await refused(LostLease, log.fence(old, 1, LONG_S, LOCK_S))
        await log.fence(new, 1, LONG_S, LOCK_S)
        await refused(LostLease, log.seal(old, 1))
        await refused(LostLease, log.remove(old, keep_fence=False))
        state = await log.state()
        assert (state.installed, state.fence) == (True, "lapsing")
