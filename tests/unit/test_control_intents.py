"""What the gate and the journal of intents promise in every control store."""

import asyncio
import os

import pytest

from datalayer.control.base import AdmitState, Control
from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.errors import MigrationError, StaleRoute
from tests.unit.test_control_contract import MemoryStore, SqliteStore, Store, gate, record


class IntentContract:
    """Claims about the gate and the journal of intents."""

    async def test_versions_of_one_key_rise_strictly_under_eight_tasks(self, store: Store) -> None:
        clients = [await store.connect() for _ in range(2)]
        await gate(clients[0])
        key = os.urandom(32)

        async def write(client: Control) -> list[int]:
            log = client.intents("messages", 1, "target")
            versions = []
            for _ in range(10):
                admitted = await log.admit(record(100, key=key), lead=0, create=False, deadline=None)
                assert admitted.state is AdmitState.ADMITTED
                assert admitted.record is not None
                versions.append(admitted.record.version)
            return versions

        written = await asyncio.gather(*(write(clients[at % 2]) for at in range(8)))
        assert all(versions == sorted(set(versions)) for versions in written)
        assert sorted(version for versions in written for version in versions) == list(range(100, 260, 2))
        assert [r.version for r in await clients[0].intents("messages", 1, "target").journal.pending(10)] == [258]

    async def test_no_intent_is_admitted_after_fence_returned(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        token, log = await gate(one)
        writing = two.intents("messages", 1, "target")
        stop = asyncio.Event()
        admitted: list[Record] = []

        async def write() -> None:
            while not stop.is_set():
                answer = await writing.admit(record(), lead=0, create=False, deadline=None)
                if answer.state is AdmitState.ADMITTED:
                    assert answer.record is not None
                    admitted.append(answer.record)

        tasks = [asyncio.create_task(write()) for _ in range(8)]
        for flip in range(1, 6):
            while len(admitted) < flip * 8:
                await asyncio.sleep(0.001)
            await log.fence(token, flip, 60.0, 5.0)
            there = await log.journal.backlog()
            answers = await asyncio.gather(
                *(writing.admit(record(), lead=0, create=False, deadline=None) for _ in range(20))
            )
            assert {answer.state for answer in answers} == {AdmitState.FENCED}
            assert await log.journal.backlog() == there, "an intent was admitted after the fence"
            await log.open(flip)
        stop.set()
        await asyncio.gather(*tasks)
        assert await log.journal.backlog() == len(admitted)

    async def test_a_pending_intent_holds_the_full_payload(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        fields = (
            b"\x00" * 16,
            "NUL-free ☃ 𝄞 \\ \" '",
            "text",
            os.urandom(16),
            os.urandom(32),
            -(1 << 62),
            '{"n":1e22}',
        )
        written = Record("message", os.urandom(32), 1 << 62, True, fields)
        answer = await log.admit(written, lead=0, create=False, deadline=None)
        assert answer.record == written
        assert await log.journal.pending(5) == [written]

    async def test_an_allotted_version_is_above_floor_and_pending(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        await log.set_floor(1000)
        await log.set_floor(500)
        first = await log.admit(record(100, key=b"k" * 32), lead=0, create=False, deadline=None)
        assert first.record is not None
        assert first.record.version == 1002
        second = await log.admit(record(5000, key=b"k" * 32), lead=0, create=False, deadline=None)
        assert second.record is not None
        assert second.record.version == 5000
        final = await log.admit(record(100, key=b"k" * 32, deleted=True), lead=FINAL_LEAD, create=False, deadline=None)
        assert final.record is not None
        assert final.record.version == 5002 + FINAL_LEAD

    async def test_a_second_delete_does_not_add_its_lead_again(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        gone = record(100 + FINAL_LEAD, key=b"k" * 32, deleted=True)
        await log.admit(gone, lead=FINAL_LEAD, create=False, deadline=None)
        again = await log.admit(gone, lead=FINAL_LEAD, create=False, deadline=None)
        assert again.record is not None
        assert again.record.version == 102 + FINAL_LEAD

    async def test_nothing_but_a_delete_follows_a_pending_delete(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        gone = record(100, key=b"k" * 32, deleted=True)
        await log.admit(gone, lead=0, create=False, deadline=None)
        edit = await log.admit(record(900, key=b"k" * 32), lead=0, create=False, deadline=None)
        assert (edit.state, edit.record) == (AdmitState.DELETED, gone)
        assert await log.journal.pending(5) == [gone]

    async def test_an_append_keeps_its_version_and_finds_what_is_pending(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        await log.set_floor(1000)
        first = record(100, key=b"k" * 32)
        answer = await log.admit(first, lead=0, create=True, deadline=None)
        assert (answer.state, answer.record) == (AdmitState.ADMITTED, first)
        again = await log.admit(record(100, key=b"k" * 32, body="other"), lead=0, create=True, deadline=None)
        assert (again.state, again.record) == (AdmitState.EXISTS, first)

    async def test_without_a_gate_a_writer_is_told_that_its_route_is_old(self, store: Store) -> None:
        control = await store.connect()
        log = control.intents("messages", 7, "target")
        answer = await log.admit(record(), lead=0, create=False, deadline=None)
        assert answer.state is AdmitState.STALE
        assert not (await log.state()).installed
        with pytest.raises(MigrationError):
            await log.open(1)

    @pytest.mark.parametrize("keep_fence", [False, True])
    async def test_a_missing_journal_is_never_clean(self, store: Store, keep_fence: bool) -> None:
        control = await store.connect()
        token, log = await gate(control)
        await log.admit(record(key=b"k" * 32), lead=0, create=False, deadline=None)
        assert await log.journal.dirty([b"k" * 16])
        assert not await log.journal.dirty([b"x" * 16])
        await log.remove(token, keep_fence=keep_fence)
        await log.remove(token, keep_fence=keep_fence)
        for call in (log.journal.dirty([b"x" * 16]), log.journal.backlog(), log.journal.pending(5)):
            with pytest.raises(StaleRoute):
                await call
        assert (await log.admit(record(), lead=0, create=False, deadline=None)).state is AdmitState.STALE
        assert (await log.state()).fence == ("sealed" if keep_fence else "open")

    async def test_dirty_tells_keys_and_routings_apart(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        await log.admit(record(key=b"r" * 16 + b"a" * 16), lead=0, create=False, deadline=None)
        other = ("message", b"r" * 16 + b"b" * 16)
        assert await log.journal.dirty([b"x" * 16, b"r" * 16])
        assert await log.journal.dirty([], [other, ("message", b"r" * 16 + b"a" * 16)])
        assert not await log.journal.dirty([b"r" * 16], [other])
        assert not await log.journal.dirty([])

    async def test_settle_clears_only_the_version_applied(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        first = record(100, key=b"k" * 32)
        await log.admit(first, lead=0, create=False, deadline=None)
        await log.admit(first, lead=0, create=False, deadline=None)
        other = record(100)
        await log.admit(other, lead=0, create=False, deadline=None)
        await log.journal.settle([first, other])
        assert [r.version for r in await log.journal.pending(5)] == [102]
        await log.journal.settle([])
        await log.journal.settle(await log.journal.pending(5))
        assert await log.journal.backlog() == 0

    async def test_parts_share_the_journal_and_miss_nothing(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        written = [record() for _ in range(40)]
        for one in written:
            await log.admit(one, lead=0, create=False, deadline=None)
        parts = [await log.journal.pending(100, part=(at, 3)) for at in range(3)]
        assert all(parts)
        assert sorted(r.key for part in parts for r in part) == sorted(r.key for r in written)

    async def test_keys_that_cannot_be_settled_do_not_hide_the_others(self, store: Store) -> None:
        control = await store.connect()
        _, log = await gate(control)
        written = [record() for _ in range(10)]
        for one in written:
            await log.admit(one, lead=0, create=False, deadline=None)
        seen: set[bytes] = set()
        for _ in range(5):
            page = await log.journal.pending(3)
            assert len(page) == 3
            seen |= {r.key for r in page}
        assert seen == {r.key for r in written}

    async def test_a_lapsing_fence_opens_by_itself_and_cannot_be_sealed_then(self, store: Store) -> None:
        control = await store.connect()
        token, log = await gate(control)
        await log.fence(token, 1, 10.0, 1.0)
        assert (await log.state()).fence == "lapsing"
        assert (await log.admit(record(), lead=0, create=False, deadline=None)).state is AdmitState.FENCED
        await store.pass_time(20.0)
        assert (await log.state()).fence == "open"
        with pytest.raises(MigrationError):
            await log.seal(token, 1)
        assert (await log.admit(record(), lead=0, create=False, deadline=None)).state is AdmitState.ADMITTED

    async def test_a_seal_does_not_lapse_and_belongs_to_its_flip(self, store: Store) -> None:
        control = await store.connect()
        token, log = await gate(control)
        await log.fence(token, 1, 30.0, 1.0)
        with pytest.raises(MigrationError):
            await log.seal(token, 2)
        await log.seal(token, 1)
        await log.seal(token, 1)
        await store.pass_time(40.0)
        await log.fence(token, 1, 5.0, 1.0)  # a seal is never weakened
        await store.pass_time(10.0)
        assert (await log.state()).fence == "sealed"

    async def test_a_late_open_of_an_earlier_flip_does_not_undo_a_fence(self, store: Store) -> None:
        control = await store.connect()
        token, log = await gate(control, sealed=True)
        assert (await log.state()).fence == "sealed"
        await log.open(1)
        assert (await log.state()).fence == "open"
        await log.fence(token, 2, 60.0, 1.0)
        await log.open(1)
        assert (await log.state()).fence == "lapsing"
        await log.install(token, sealed=False)  # idempotent: what is there stays
        assert (await log.state()).flip == 2
        with pytest.raises(MigrationError):
            await log.fence(token, 1, 60.0, 1.0)
        await log.open(2)
        assert (await log.state()).fence == "open"

    async def test_attempts_and_sides_have_journals_of_their_own(self, store: Store) -> None:
        control = await store.connect()
        token, log = await gate(control)
        await log.admit(record(), lead=0, create=False, deadline=None)
        for other in (control.intents("messages", 2, "target"), control.intents("messages", 1, "source")):
            await other.install(token, sealed=False)
            assert await other.journal.backlog() == 0
        assert await log.journal.backlog() == 1
        assert await log.journal.foreign_writers() == []


class TestMemory(MemoryStore, IntentContract):
    pass


class TestSqlite(SqliteStore, IntentContract):
    pass
