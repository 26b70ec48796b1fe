"""What the guard in SQLite makes of programs that write the file without the library."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datalayer.domains.messages import Append
from datalayer.domains.record import FINAL_LEAD
from datalayer.stores.sqlite.faults import FENCED, REPLACED
from datalayer.stores.sqlite.triggers import FOREIGN_NAME
from tests.unit.sqlite_world import CLOCK, IDS, TOKEN, World, dirty, world

INSERT = "INTO messages (conversation_id, id, sender_id, body) VALUES (?, ?, ?, ?)"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def keys(*more: object) -> tuple[object, ...]:
    return (IDS.uuid7().bytes, IDS.uuid7().bytes, IDS.uuid7().bytes, *more)


async def test_foreign_insert_without_a_version_gets_the_clock_and_is_journalled_with_it(w: World) -> None:
    guard = await w.guarded()
    before = CLOCK.now_us() - 2_000
    w.foreign(f"INSERT {INSERT}", keys("theirs"))
    (record,) = await dirty(guard)
    assert record.version >= before
    assert record.fields[1] == "theirs"
    assert w.foreign("SELECT version FROM messages") == [(record.version,)]
    assert await guard.journal.foreign_writers() == [FOREIGN_NAME]


async def test_the_librarys_own_writes_are_not_taken_for_foreign(w: World) -> None:
    guard = await w.guarded()
    await w.append()
    assert await guard.journal.foreign_writers() == []
    assert await guard.journal.backlog() == 1


@pytest.mark.parametrize("recursive", [False, True])
async def test_foreign_insert_or_replace_of_a_stored_row_is_refused_and_changes_nothing(
    w: World, recursive: bool
) -> None:
    guard = await w.guarded()
    message = await w.append("ours")
    await guard.journal.settle(await dirty(guard))
    stored = w.row(message)
    ids = (message.conversation_id.bytes, message.id.bytes, message.sender_id.bytes, "theirs")
    for verb in ("INSERT OR REPLACE", "REPLACE"):
        with pytest.raises(sqlite3.IntegrityError, match=REPLACED):
            w.foreign(f"{verb} {INSERT}", ids, recursive=recursive)
    assert w.row(message) == stored
    assert await dirty(guard) == []


@pytest.mark.parametrize("recursive", [False, True])
async def test_foreign_insert_or_replace_of_a_new_row_is_an_insert(w: World, recursive: bool) -> None:
    guard = await w.guarded()
    row = keys("new")
    w.foreign(f"INSERT OR REPLACE {INSERT}", row, recursive=recursive)
    w.foreign("DELETE FROM messages", recursive=recursive)
    # the journal has an entry of this key by now: an outer OR REPLACE governs the triggers' inserts too
    w.foreign(f"INSERT OR REPLACE {INSERT}", row, recursive=recursive)
    (record,) = await dirty(guard)
    assert (record.deleted, record.fields[1]) == (False, "new")
    assert record.version > FINAL_LEAD + CLOCK.now_us() - 60_000_000, "an insert over a hard delete outranks it"
    assert await guard.journal.backlog() == 1


async def test_foreign_insert_or_ignore_and_upsert_are_told_from_replace(w: World) -> None:
    guard = await w.guarded()
    message = await w.append("ours")
    await guard.journal.settle(await dirty(guard))
    ids = (message.conversation_id.bytes, message.id.bytes, message.sender_id.bytes, "theirs")
    w.foreign(f"INSERT OR IGNORE {INSERT}", ids)
    assert await dirty(guard) == []
    w.foreign(f"INSERT {INSERT} ON CONFLICT DO UPDATE SET body = excluded.body", ids)
    (record,) = await dirty(guard)
    assert record.fields[1] == "theirs"
    assert record.version >= message.version + 2


async def test_foreign_update_or_replace_onto_another_row_is_refused(w: World) -> None:
    guard = await w.guarded()
    one, two = await w.append("one"), await w.append("two")
    await guard.journal.settle(await dirty(guard))
    values = (two.conversation_id.bytes, two.id.bytes, one.id.bytes)
    with pytest.raises(sqlite3.IntegrityError, match=REPLACED):
        w.foreign("UPDATE OR REPLACE messages SET conversation_id = ?, id = ? WHERE id = ?", values)
    assert (w.row(one)[0], w.row(two)[0]) == ("one", "two")
    assert await dirty(guard) == []


@pytest.mark.parametrize("recursive", [False, True])
async def test_foreign_change_of_a_key_is_a_tombstone_and_an_insert(w: World, recursive: bool) -> None:
    guard = await w.guarded()
    message = await w.append("moved")
    fresh = IDS.uuid7()
    w.foreign("UPDATE messages SET id = ? WHERE id = ?", (fresh.bytes, message.id.bytes), recursive=recursive)
    found = {record.key[16:]: record for record in await dirty(guard)}
    assert set(found) == {fresh.bytes, message.id.bytes}
    assert found[message.id.bytes].deleted
    assert found[message.id.bytes].version >= message.version + 2 + FINAL_LEAD
    assert found[fresh.bytes].fields[1] == "moved"


@pytest.mark.parametrize("recursive", [False, True])
async def test_foreign_soft_delete_gets_the_lead_of_a_tombstone_once(w: World, recursive: bool) -> None:
    guard = await w.guarded()
    message = await w.append()
    w.foreign("UPDATE messages SET deleted = 1, body = ''", recursive=recursive)
    (record,) = await dirty(guard)
    assert record.deleted
    assert message.version + FINAL_LEAD < record.version < CLOCK.now_us() + 2 * FINAL_LEAD - 60_000_000
    assert w.row(message) == ("", record.version, 1)


async def test_the_librarys_append_over_a_foreign_hard_delete_outranks_its_tombstone(w: World) -> None:
    guard = await w.guarded()
    message = await w.append("first")
    w.foreign("DELETE FROM messages")
    (tomb,) = await dirty(guard)
    again = Append(message.conversation_id, message.id, message.sender_id, "first")
    await w.store.execute(again, w.deadline())
    (record,) = await dirty(guard)
    assert not record.deleted
    assert record.version > tomb.version


async def test_fence_refuses_every_form_of_foreign_write(w: World) -> None:
    guard = await w.guarded()
    message = await w.append("kept")
    await guard.journal.settle(await dirty(guard))
    await guard.fence(TOKEN, 1, 60, 5)
    ids = (message.conversation_id.bytes, message.id.bytes, message.sender_id.bytes, "theirs")
    forms: list[tuple[str, tuple[object, ...]]] = [
        (f"INSERT {INSERT}", keys("new")),
        (f"INSERT OR IGNORE {INSERT}", keys("new")),
        (f"INSERT OR REPLACE {INSERT}", ids),
        (f"INSERT {INSERT} ON CONFLICT DO NOTHING", ids),
        (f"INSERT {INSERT} ON CONFLICT DO UPDATE SET body = excluded.body", ids),
        ("UPDATE messages SET body = 'x'", ()),
        ("UPDATE OR IGNORE messages SET body = 'x'", ()),
        ("UPDATE OR ROLLBACK messages SET body = 'x'", ()),
        ("DELETE FROM messages", ()),
    ]
    for sql, params in forms:
        with pytest.raises(sqlite3.IntegrityError, match=FENCED):
            w.foreign(sql, params)
    assert w.foreign("SELECT body FROM messages") == [("kept",)]
    assert await dirty(guard) == []


async def test_a_transaction_begun_before_the_fence_cannot_write_after_it(w: World) -> None:
    guard = await w.guarded()
    message = await w.append("old")
    writer = sqlite3.connect(w.path, isolation_level=None)
    writer.execute("BEGIN")
    assert writer.execute("SELECT body FROM messages").fetchall() == [("old",)]
    await guard.fence(TOKEN, 1, 60, 5)
    with pytest.raises(sqlite3.OperationalError) as refused:
        writer.execute("UPDATE messages SET body = 'late'")
    assert refused.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
    writer.close()
    assert w.row(message)[0] == "old"


async def test_tampering_with_the_guard_is_seen(w: World) -> None:
    guard = await w.guarded()
    assert not (await guard.state()).tampered
    triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'messages'"
    (name, sql), *_ = w.foreign(f"{triggers} AND name LIKE '%insert%'")
    w.foreign(f"DROP TRIGGER {name}")
    assert (await guard.state()).tampered
    w.foreign(sql)
    assert (await guard.state()).tampered, "dropped and made again: what was written between is not journalled"


async def test_another_migrations_guard_is_no_tampering(w: World) -> None:
    guard = await w.guarded()
    users = w.backend.store("users", 0)
    await users.guard(2).install(TOKEN.__class__("m2", "users", 2, 1), sealed=False)
    await w.backend.store("messages", 5).create()
    assert not (await guard.state()).tampered


async def test_dropping_the_table_with_its_triggers_is_tampering(w: World) -> None:
    guard = await w.guarded()
    w.foreign("ALTER TABLE messages RENAME TO aside")
    w.foreign("CREATE TABLE messages AS SELECT * FROM aside")
    assert (await guard.state()).tampered
