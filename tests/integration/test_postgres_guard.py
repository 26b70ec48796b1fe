"""Journal and fence on a real Postgres: the barrier, programs that do not know the library, tampering, locks."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Self

import psycopg
import pytest

from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.errors import Fenced, LostLease, MigrationError, PreconditionFailed, StaleRoute, Unavailable
from datalayer.settings import BackendUrl
from datalayer.stores.base import Token
from datalayer.stores.postgres.backend import create_backend
from datalayer.stores.sql.database import SqlTransaction
from tests.integration.postgres_places import (
    ATTEMPT,
    CLOCK,
    FENCED,
    IDS,
    INSERT,
    JOURNAL,
    TOKEN,
    TOMBS,
    Place,
    database,
    place,
    program,
    waiting,
)
from tests.servers import Servers

pytestmark = pytest.mark.servers
NOTE = f"datalayer_c_note_{ATTEMPT}"


@pytest.fixture(scope="module")
def url(servers: Servers) -> Iterator[str]:
    with database(servers, "guard") as found:
        yield found


@pytest.fixture
async def here(url: str) -> AsyncIterator[Place]:
    async with place(url) as found:
        yield found


class Writers:
    """Four tasks that insert by plain SQL until told to stop; every acknowledged id is kept, with what refused."""

    def __init__(self, here: Place) -> None:
        self._here = here
        self.acknowledged: set[uuid.UUID] = set()
        self.refused: list[str] = []
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write()) for _ in range(4)]
        await self.more(40)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def more(self, n: int) -> None:
        """Wait for n further acknowledgements or refusals."""
        goal = len(self.acknowledged) + len(self.refused) + n
        while len(self.acknowledged) + len(self.refused) < goal:
            await asyncio.sleep(0.002)

    async def _write(self) -> None:
        async with program(self._here.url, "legacy") as connection:
            while not self._stop:
                row = self._here.row()
                try:
                    await connection.execute(INSERT, row)
                except psycopg.Error as error:
                    self.refused.append(str(error.sqlstate))
                    await asyncio.sleep(0.002)
                else:
                    self.acknowledged.add(row[1])


async def refused(
    connection: psycopg.AsyncConnection[tuple[object, ...]], sql: str, params: tuple[object, ...] = ()
) -> str:
    """The SQLSTATE of a statement that must fail."""
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(sql.encode(), params)
    return str(caught.value.sqlstate)


# --- the barrier ---------------------------------------------------------------------------------------------------


async def test_every_insert_of_four_writers_is_journalled_or_was_there_before(here: Place) -> None:
    async with Writers(here) as writers:
        await here.guard.install(TOKEN, sealed=False)
        before = set(await here.stored())
        await writers.more(200)
    journalled = set(await here.journalled())
    assert writers.acknowledged - before, "control: there were writes after the barrier"
    assert before - journalled, "control: there were writes before it"
    assert writers.acknowledged - before - journalled == set()


async def test_no_insert_of_four_writers_is_acknowledged_after_the_fence(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with Writers(here) as writers:
        assert not writers.refused
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)
        there = set(await here.stored())
        await writers.more(100)
        assert set(await here.stored()) == there
        assert set(writers.refused) == {FENCED}
        await here.guard.open(1)
        refused_so_far = len(writers.refused)
        await writers.more(50)
    assert writers.acknowledged - there, "control: the same writers write again once it is open"
    assert len(writers.refused) - refused_so_far <= 4
    assert set(await here.stored()) == writers.acknowledged


async def test_a_repeatable_read_writer_that_began_before_the_fence_is_refused(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with (
        program(here.url, isolation="REPEATABLE_READ") as early,
        program(here.url, isolation="REPEATABLE_READ") as control,
    ):
        await control.execute("SELECT 1 FROM datalayer_fence")
        await control.execute(INSERT, here.row())
        await control.commit()
        state = await (await early.execute("SELECT fence FROM datalayer_fence")).fetchone()
        assert state == ("open",)
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)
        assert await (await early.execute("SELECT fence FROM datalayer_fence")).fetchone() == ("open",), "its snapshot"
        assert await refused(early, INSERT, here.row()) == FENCED


async def test_an_open_seal_of_an_old_snapshot_does_not_open_the_next_one(here: Place) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=True)
    await guard.open(1)
    async with program(here.url, isolation="REPEATABLE_READ") as early:
        await early.execute("SELECT fence, flip FROM datalayer_fence")
        await guard.fence(TOKEN, 2, 20.0, 5.0)
        await guard.seal(TOKEN, 2)
        assert await refused(early, INSERT, here.row()) == FENCED
    await guard.open(2)
    await here.append()


async def test_replica_role_neither_escapes_the_journal_nor_the_fence(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute("CREATE FUNCTION plain() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE; END'")
        await connection.execute("CREATE TRIGGER plain BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION plain()")
        await connection.execute("SET session_replication_role = replica")
        row = here.row()
        await connection.execute(INSERT, row)  # control: an ordinary trigger is bypassed
        assert set(await here.journalled()) == {row[1]}
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)
        assert await refused(connection, INSERT, here.row()) == FENCED


@pytest.mark.parametrize("sql", ["UPDATE messages SET body = 'x' WHERE false", "DELETE FROM messages WHERE false"])
async def test_a_statement_that_meets_no_row_is_refused_too(here: Place, sql: str) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute(sql.encode())
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)
        assert await refused(connection, sql) == FENCED


async def test_the_pass_ends_with_its_transaction(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=True)
    newer = record._replace(version=record.version + 10)
    await here.guard.apply([newer])
    for _ in range(16):  # every pooled connection
        with pytest.raises(Fenced):
            await here.append()
    assert (await here.messages.fetch([record.ident]))[record.ident] == newer
    assert await here.journalled() == {}


# --- programs that do not know the library -------------------------------------------------------------------------


async def test_a_row_deleted_and_inserted_again_by_hand_ends_above_its_tombstone(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute("DELETE FROM messages")
        (tomb,) = (await here.journalled()).values()
        assert tomb >= record.version + 2 + FINAL_LEAD
        (pending,) = await here.guard.journal.pending(10)
        assert (pending.deleted, pending.version, pending.key) == (True, tomb, record.key)
        await connection.execute(INSERT, here.row(uuid.UUID(bytes=record.key[16:])))
    (version,) = (await here.stored()).values()
    assert version > tomb
    assert set((await here.journalled()).values()) == {version}
    assert await here.guard.journal.foreign_writers() == ["psql"]


async def test_an_insert_that_waited_for_a_delete_by_hand_ends_above_its_tombstone(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url, isolation="READ_COMMITTED") as deleter, program(here.url) as inserter:
        await deleter.execute("DELETE FROM messages")
        row = here.row(uuid.UUID(bytes=record.key[16:]))
        task = asyncio.create_task(inserter.execute(INSERT, row))
        await waiting(here.url, inserter.info.backend_pid)
        await deleter.commit()
        await task
    tomb = (await here.backend.db.fetch(f"SELECT version FROM {TOMBS}"))[0][0]
    stored = await here.stored()
    assert stored[row[1]] > tomb
    assert await here.journalled() == stored


async def test_a_snapshot_that_cannot_see_the_delete_may_not_insert_below_its_tombstone(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url, isolation="REPEATABLE_READ") as early, program(here.url) as deleter:
        await early.execute("SELECT 1")
        await deleter.execute("DELETE FROM messages")
        await here.settle_all()
        again = here.row(uuid.UUID(bytes=record.key[16:]))
        assert await refused(early, INSERT, again) == "40001"
        await early.rollback()
        await early.execute(INSERT, again)  # control: a new snapshot sees it
        await early.commit()
    assert (await here.stored())[again[1]] > record.version + FINAL_LEAD


async def test_a_repeatable_read_writer_is_not_failed_by_a_journal_row_settled_since(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    record = await here.append()
    async with program(here.url, isolation="REPEATABLE_READ") as early:
        assert await (await early.execute(f"SELECT count(*) FROM {JOURNAL}".encode())).fetchone() == (1,)
        await here.settle_all()
        await early.execute("UPDATE messages SET body = 'later'")
        await early.commit()
    journalled = await here.journalled()
    assert journalled == await here.stored()
    assert next(iter(journalled.values())) > record.version
    async with program(here.url, isolation="REPEATABLE_READ") as control, program(here.url, "datalayer/x") as engine:
        await control.execute("SELECT 1")
        await engine.execute(f"UPDATE {JOURNAL} SET version = version")  # what the engine never does
        assert await refused(control, "UPDATE messages SET body = 'later'") == "40001"


async def test_a_repeatable_read_writer_is_not_failed_by_a_settle_in_progress(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    await here.append()
    async with (
        program(here.url, isolation="REPEATABLE_READ") as early,
        program(here.url, "datalayer/x", isolation="READ_COMMITTED") as engine,
    ):
        await early.execute("SELECT 1")
        await engine.execute(f"DELETE FROM {JOURNAL}".encode())
        task = asyncio.create_task(early.execute("UPDATE messages SET body = 'later'"))
        await waiting(here.url, early.info.backend_pid)
        await engine.commit()
        await task
        await early.commit()
    assert await here.journalled() == await here.stored()


async def test_a_changed_key_is_a_tombstone_and_an_insert(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=False)
    moved = IDS.uuid7()
    async with program(here.url) as connection:
        await connection.execute("UPDATE messages SET id = %s", (moved,))
    pending = {one.key[16:]: one for one in await here.guard.journal.pending(10)}
    assert pending[record.key[16:]].deleted
    assert pending[moved.bytes].version > record.version
    assert not pending[moved.bytes].deleted


async def test_a_delete_by_flag_gets_the_lead_of_a_final_version(here: Place) -> None:
    record = await here.append()
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute("UPDATE messages SET body = 'edited'")
        edited = (await here.stored())[uuid.UUID(bytes=record.key[16:])]
        assert record.version < edited < record.version + FINAL_LEAD, "control: an edit gets none"
        await connection.execute("UPDATE messages SET deleted = true")
    assert next(iter((await here.stored()).values())) >= edited + 2 + FINAL_LEAD


async def test_an_insert_without_a_version_gets_the_clock(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute(INSERT, here.row())
    (version,) = (await here.stored()).values()
    assert abs(version - CLOCK.now_us()) < 60_000_000


async def test_truncate_is_refused_while_the_journal_is_on(here: Place) -> None:
    await here.append()
    guard = here.guard
    await guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        assert await refused(connection, "TRUNCATE messages") == "DLF02"
        await guard.remove(TOKEN, keep_fence=False)
        await connection.execute("TRUNCATE messages")


async def test_a_first_write_of_one_program_does_not_wait_for_its_other_sessions(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url, isolation="READ_COMMITTED") as slow, program(here.url) as quick:
        await slow.execute(INSERT, here.row())
        async with asyncio.timeout(5):
            await quick.execute(INSERT, here.row())
        await slow.commit()
    assert await here.guard.journal.foreign_writers() == ["psql"]
    await here.append()
    assert await here.guard.journal.foreign_writers() == ["psql"], "control: the library is not foreign"


async def test_foreign_keys_over_the_border_and_partitions_are_refused(here: Place) -> None:
    async with program(here.url) as connection:
        await connection.execute("ALTER TABLE users ADD boss uuid REFERENCES users")
        users = here.backend.store("users", 0).guard(3)
        await users.install(Token("u", "users", 3, 1), sealed=False)  # control: inside the domain
        await connection.execute("ALTER TABLE messages ADD FOREIGN KEY (sender_id) REFERENCES users")
        with pytest.raises(PreconditionFailed, match="crosses the border"):
            await here.guard.install(TOKEN, sealed=False)
        await connection.execute("ALTER TABLE messages DROP CONSTRAINT messages_sender_id_fkey")
        await connection.execute("CREATE TABLE heir () INHERITS (messages)")
        with pytest.raises(PreconditionFailed, match="inherited"):
            await here.guard.install(TOKEN, sealed=False)


# --- lapse, seal, open ---------------------------------------------------------------------------------------------


async def test_a_lapsed_fence_lets_everybody_write_and_cannot_be_sealed(here: Place) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=False)
    await guard.fence(TOKEN, 1, 0.3, 5.0)
    with pytest.raises(Fenced):
        await here.append()
    while (await guard.state()).fence != "open":
        await asyncio.sleep(0.01)
    await here.append()
    with pytest.raises(MigrationError, match="lapsed"):
        await guard.seal(TOKEN, 1)
    await here.append()  # and the failed seal left no trigger
    await guard.fence(TOKEN, 2, 20.0, 5.0)
    await guard.seal(TOKEN, 2)  # control
    assert (await guard.state()).fence == "sealed"
    with pytest.raises(Fenced):
        await here.append()


async def test_opening_needs_no_lock_on_the_data(here: Place) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=True)
    async with program(here.url, isolation="READ_COMMITTED") as writer:
        await writer.execute("LOCK TABLE messages IN SHARE ROW EXCLUSIVE MODE")
        async with asyncio.timeout(5):
            await guard.open(1)
        with pytest.raises(Unavailable):  # control: a step that is DDL does
            await guard.fence(TOKEN, 2, 20.0, 0.5)
    await here.append()


async def test_steps_of_an_overtaken_coordinator_are_refused_and_change_nothing(here: Place) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=False)
    newer = Token("m1", "messages", ATTEMPT, TOKEN.value + 1)
    await here.backend.raise_token(newer)
    for step in (
        guard.install(TOKEN, sealed=False),
        guard.fence(TOKEN, 1, 20.0, 5.0),
        guard.seal(TOKEN, 1),
        guard.remove(TOKEN, keep_fence=False),
        here.backend.raise_token(TOKEN),
    ):
        with pytest.raises(LostLease):
            await step
    await here.append()
    assert await guard.journal.backlog() == 1
    await guard.fence(newer, 1, 20.0, 5.0)


async def test_a_guard_of_the_other_side_in_the_same_database_is_refused(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    other = here.backend.store("messages", ATTEMPT)
    await other.create()
    with pytest.raises(PreconditionFailed, match="one database"):
        await other.guard(ATTEMPT).install(TOKEN, sealed=True)


# --- tampering -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deed",
    [
        "ALTER TABLE messages DISABLE TRIGGER {note}",
        "DROP TRIGGER {note} ON messages",
        "DROP TRIGGER {note} ON messages; CREATE TRIGGER {note} AFTER INSERT ON messages FOR EACH ROW EXECUTE FUNCTION {f}()",
        "CREATE OR REPLACE FUNCTION {f}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "ALTER TABLE messages RENAME TO old; CREATE TABLE messages (LIKE old)",
    ],
)
async def test_a_guard_that_somebody_changed_is_not_built_upon(here: Place, deed: str) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=False)
    await guard.fence(TOKEN, 1, 0.05, 5.0)
    assert not (await guard.state()).tampered, "control: our own steps are not tampering"
    async with program(here.url) as connection:
        await connection.execute(deed.format(note=NOTE, f=f"datalayer_note_messages_{ATTEMPT}_message").encode())
    assert (await guard.state()).tampered
    for step in (guard.install(TOKEN, sealed=False), guard.fence(TOKEN, 2, 20.0, 5.0), guard.seal(TOKEN, 1)):
        with pytest.raises(MigrationError, match="cannot be trusted"):
            await step


async def test_guards_of_one_database_do_not_take_each_other_for_tampering(here: Place) -> None:
    guard, users, later = here.guard, here.backend.store("users", 0).guard(3), here.messages.guard(ATTEMPT + 1)
    await guard.install(TOKEN, sealed=False)
    user_token = Token("u", "users", 3, 1)
    await users.install(user_token, sealed=False)
    await users.fence(user_token, 1, 20.0, 5.0)
    await guard.remove(TOKEN, keep_fence=False)
    await later.install(Token("m2", "messages", ATTEMPT + 1, TOKEN.value + 1), sealed=True)
    for one in (users, later):
        state = await one.state()
        assert (state.installed, state.tampered) == (True, False)


async def test_the_fingerprint_names_the_cluster_and_its_timeline(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    db = here.backend.db
    (identity,) = (await db.fetch("SELECT system_identifier::text FROM pg_control_system()"))[0]
    stored = (await db.fetch("SELECT fingerprint FROM datalayer_fence"))[0][0]
    assert stored.endswith(f" {identity} 00000001")
    async with program(here.url) as connection:  # as after a failover
        await connection.execute(
            "UPDATE datalayer_fence SET fingerprint = replace(fingerprint, '00000001', '00000002')"
        )
    assert (await here.guard.state()).tampered


# --- who is in the way ---------------------------------------------------------------------------------------------


async def test_a_long_writer_is_named_and_others_write_on_meanwhile(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url, "night-job", isolation="READ_COMMITTED") as long, Writers(here) as writers:
        await long.execute(INSERT, here.row())
        done = len(writers.acknowledged)
        with pytest.raises(Unavailable) as caught:
            await here.guard.fence(TOKEN, 1, 20.0, 1.0)
        assert f"pid {long.info.backend_pid} (night-job" in str(caught.value)
        assert len(writers.acknowledged) > done
        assert not writers.refused
        await long.commit()
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)  # control


async def test_a_prepared_transaction_in_the_way_is_named(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        gid = f"left-behind-{uuid.uuid4().hex}"
        await connection.execute("BEGIN")
        await connection.execute(INSERT, here.row())
        await connection.execute(f"PREPARE TRANSACTION '{gid}'".encode())
        try:
            with pytest.raises(Unavailable, match=f"prepared transaction {gid}"):
                await here.guard.fence(TOKEN, 1, 20.0, 0.5)
        finally:
            await connection.execute(f"ROLLBACK PREPARED '{gid}'".encode())
        await here.guard.fence(TOKEN, 1, 20.0, 5.0)


async def test_a_dump_in_progress_stops_no_step_but_the_removal_of_the_journals_tables(here: Place) -> None:
    guard = here.guard
    await guard.install(TOKEN, sealed=False)
    await here.append()
    async with program(here.url, "pg_dump", isolation="REPEATABLE_READ") as dump:
        await dump.execute(f"LOCK TABLE messages, {JOURNAL}, {TOMBS} IN ACCESS SHARE MODE".encode())
        await guard.fence(TOKEN, 1, 20.0, 5.0)
        await guard.seal(TOKEN, 1)
        await guard.open(1)
        async with program(here.url, isolation="READ_COMMITTED") as control:
            await control.execute("SET LOCAL lock_timeout = 100")
            assert await refused(control, f"DROP TRIGGER {NOTE} ON messages") == "55P03"
        with pytest.raises(Unavailable, match="pg_dump"):
            await guard.remove(TOKEN, keep_fence=False)
        assert not (await guard.state()).installed
        record = await here.append()  # nothing is journalled any more
        for look in (guard.journal.dirty([record.routing]), guard.journal.backlog(), guard.journal.pending(10)):
            with pytest.raises(StaleRoute):
                await look
        with pytest.raises(StaleRoute):
            await guard.apply([record])
    await guard.remove(TOKEN, keep_fence=False)
    assert await here.backend.db.fetch("SELECT to_regclass(%s)", (JOURNAL,)) == [(None,)]


async def test_vacuum_in_progress_delays_a_fence_and_blocks_no_writer(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url, "vacuum", isolation="READ_COMMITTED") as vacuum, Writers(here) as writers:
        await vacuum.execute("LOCK TABLE messages IN SHARE UPDATE EXCLUSIVE MODE")  # what VACUUM holds
        task = asyncio.create_task(here.guard.fence(TOKEN, 1, 20.0, 20.0))
        await writers.more(100)
        assert not writers.refused
        assert not task.done()
        await vacuum.rollback()
        await task
        await writers.more(5)
        assert writers.refused


# --- apply ---------------------------------------------------------------------------------------------------------


async def test_applies_consult_the_tombstones_of_deletes_by_hand(here: Place) -> None:
    record, other = await here.append(), await here.append()
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute("DELETE FROM messages WHERE id = %s", (uuid.UUID(bytes=record.key[16:]),))
    tomb = (await here.journalled())[uuid.UUID(bytes=record.key[16:])]
    late = [one._replace(version=one.version + 1000) for one in (record, other)]
    await here.guard.apply(late)
    found = await here.messages.fetch([record.ident, other.ident])
    assert found == {other.ident: late[1]}
    await here.guard.apply([record._replace(version=tomb + 1)])
    assert record.ident in await here.messages.fetch([record.ident])


async def test_an_apply_in_flight_ends_before_the_attempt_does(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await here.append()
    newer = record._replace(version=record.version + 10)
    await here.guard.install(TOKEN, sealed=True)
    checked, go_on = asyncio.Event(), asyncio.Event()
    apply_in = here.messages.apply_in

    async def pausing(tx: SqlTransaction, records: Iterable[Record]) -> None:
        checked.set()
        await go_on.wait()
        await apply_in(tx, records)

    monkeypatch.setattr(here.messages, "apply_in", pausing)
    async with program(here.url, "datalayer/test") as admin:
        apply = asyncio.create_task(here.guard.apply([newer]))
        await checked.wait()  # it has seen the attempt alive, and has touched no row yet
        remove = asyncio.create_task(here.guard.remove(TOKEN, keep_fence=True))
        waiters = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(10):
            while await (await admin.execute(waiters.encode())).fetchone() != (1,):
                assert not remove.done()
                await asyncio.sleep(0.01)
        assert (await here.guard.state()).installed, "the mark waits for the apply"
        go_on.set()
        await asyncio.gather(apply, remove)
    with pytest.raises(StaleRoute):
        await here.guard.apply([newer._replace(version=newer.version + 10)])
    assert (await here.messages.fetch([record.ident]))[record.ident] == newer


async def test_a_guard_lives_through_a_restart_of_its_clients(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=True)
    other = create_backend("again", BackendUrl.parse(here.url), pool_max=2, clock=CLOCK)
    guard = other.store("messages", 0).guard(ATTEMPT)
    state = await guard.state()
    assert (state.installed, state.fence, state.tampered) == (True, "sealed", False)
    await guard.open(1)
    await other.close()
    await here.append()
