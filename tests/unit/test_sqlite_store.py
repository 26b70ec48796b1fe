"""What the SQLite stores promise beyond the contract suites."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from datalayer.domains.messages import Append, Delete, Edit, appended, to_record
from datalayer.domains.users import CreateUser, UpdateUser
from datalayer.errors import Fenced, LostLease, NotFound, Quarantine, SchemaAhead, SchemaBehind
from datalayer.schemas import metadata
from datalayer.stores.base import MetaRow, Token
from datalayer.stores.sql.build import message_of, uuid_of
from datalayer.stores.sql.messages import append_record
from datalayer.stores.sqlite.backend import SqliteBackend
from datalayer.types import Message
from tests.unit.sqlite_world import CLOCK, IDS, TOKEN, World, guard_of, world


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_a_write_by_an_old_route_is_fenced_and_not_refused_by_stale_rows(w: World) -> None:
    """What lives on the other side by now is absent here: "not found" would be a lie."""
    guard = await w.guarded()
    absent = IDS.uuid7(), IDS.uuid7()
    with pytest.raises(NotFound):
        await w.store.execute(Edit(*absent, "x"), w.deadline())
    await guard.fence(TOKEN, 1, 60, 5)
    await guard.seal(TOKEN, 1)
    for mutation in (Edit(*absent, "x"), Delete(*absent)):
        with pytest.raises(Fenced):
            await w.store.execute(mutation, w.deadline())
    assert await w.store.empty(), "the look for a fence leaves nothing"
    assert await guard.journal.backlog() == 0


async def test_an_old_expected_version_or_taken_name_is_fenced_too(w: World) -> None:
    users = w.backend.store("users", 0)
    ann = (await users.execute(CreateUser(IDS.uuid7(), "ann"), w.deadline())).entity  # type: ignore[attr-defined]
    guard = guard_of(users)
    token = Token("m1", "users", 1, 1)
    await guard.install(token, sealed=False)
    await guard.fence(token, 1, 60, 5)
    for mutation in (
        UpdateUser(ann.id, (("status", "away"),), expected_version=ann.version - 1),
        UpdateUser(IDS.uuid7(), (("status", "away"),)),
        CreateUser(IDS.uuid7(), "ann"),
    ):
        with pytest.raises(Fenced):
            await users.execute(mutation, w.deadline())  # type: ignore[attr-defined]


async def test_ranges_part_the_table_about_evenly_and_hold_every_record_once(w: World) -> None:
    rooms = [IDS.uuid7() for _ in range(40)]
    records = [append_record(Append(rooms[at % 40], IDS.uuid7(), rooms[0], "x")) for at in range(4000)]
    await w.store.apply(records)
    ranges = await w.store.plan_scan(8)
    sizes = []
    seen = []
    for range_ in ranges:
        page = await w.store.scan(range_, None, 10_000)
        assert page.done
        sizes.append(len(page.records))
        seen += page.records
    assert sorted(seen) == sorted(records)
    assert len(ranges) == 8
    assert max(sizes) < 3 * min(sizes)


async def test_what_the_driver_refuses_is_found_among_many(w: World) -> None:
    records = [append_record(Append(IDS.uuid7(), IDS.uuid7(), IDS.uuid7(), "x")) for _ in range(50)]
    odd = records[17]._replace(fields=(*records[17].fields[:5], 1 << 70, "{}"))
    with pytest.raises(Quarantine) as refused:
        await w.store.apply([*records[:17], odd, *records[18:]])
    assert list(refused.value.rejected) == [odd.ident]
    assert await w.store.estimate() == 49


async def test_dropping_a_place_takes_its_guard_along(w: World) -> None:
    place = w.backend.store("messages", 3)
    await place.create()
    guard = guard_of(place)
    await guard.install(TOKEN, sealed=True)
    await place.drop()
    await place.drop()
    assert not (await guard.state()).installed
    await place.create()
    await guard.install(TOKEN, sealed=False)
    assert (await guard.state()).fence == "open"


async def test_an_attempt_guards_one_place(w: World) -> None:
    await w.guarded()
    other = w.backend.store("messages", 4)
    await other.create()
    with pytest.raises(Exception, match="guards another place"):
        await guard_of(other).install(TOKEN, sealed=True)


async def test_a_later_coordinator_outranks_an_earlier_one_whatever_its_attempt(w: World) -> None:
    await w.backend.raise_token(Token("m2", "messages", 2, 9))
    await w.backend.raise_token(Token("m1", "messages", 1, 10))  # the purge of an earlier attempt
    with pytest.raises(LostLease):
        await w.backend.raise_token(Token("m2", "messages", 2, 9))
    with pytest.raises(LostLease):
        await w.guarded()
    await w.backend.raise_token(Token("m1", "users", 1, 1))


async def test_meta_rows_keep_the_highest_epoch(w: World) -> None:
    late, early = MetaRow("messages", 0, "d", "retired", 5), MetaRow("messages", 0, "d", "authority", 4)
    await w.backend.write_meta(late)
    await w.backend.write_meta(early)
    assert await w.backend.read_meta() == {("messages", 0): late}


async def test_a_schema_of_another_revision_is_refused(w: World) -> None:
    await w.backend.ensure_schema(create=False)
    w.foreign("UPDATE datalayer_schema SET version_num = '9999'")
    with pytest.raises(SchemaAhead, match="9999"):
        await w.backend.ensure_schema(create=True)
    w.foreign("DELETE FROM datalayer_schema")
    with pytest.raises(SchemaBehind):
        await w.backend.ensure_schema(create=False)


async def test_a_file_without_a_schema_is_behind_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE theirs (a)")
    backend = SqliteBackend("main", path, clock=CLOCK)
    await backend.open()
    with pytest.raises(SchemaBehind, match="no datalayer schema"):
        await backend.ensure_schema(create=False)
    await backend.close()
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_a_write_is_in_the_file_when_it_is_acknowledged(w: World) -> None:
    message = await w.append("kept")
    assert w.row(message) == ("kept", message.version, 0)


def test_values_built_by_slots_are_what_their_constructors_make() -> None:
    ids = [IDS.uuid7() for _ in range(4)]
    assert [uuid_of(one.bytes) for one in ids] == ids
    assert {hash(uuid_of(one.bytes)) for one in ids} == {hash(one) for one in ids}
    assert str(uuid_of(UUID(int=0).bytes)) == str(UUID(int=0))
    assert uuid_of(ids[0].bytes).is_safe is ids[0].is_safe
    made = message_of(ids[0], ids[1], ids[2], "b", "k", ids[3], (ids[3],), 7, True, 8, {"a": 1})
    assert made == Message(ids[0], ids[1], ids[2], "b", "k", ids[3], (ids[3],), 7, True, 8, {"a": 1})
    assert repr(made) == repr(Message(ids[0], ids[1], ids[2], "b", "k", ids[3], (ids[3],), 7, True, 8, {"a": 1}))


def test_an_append_has_the_record_of_its_entity() -> None:
    append = Append(IDS.uuid7(), IDS.uuid7(), IDS.uuid7(), "b", "k", IDS.uuid7(), (IDS.uuid7(),), '{"a":1}')
    assert append_record(append) == to_record(appended(append))


def test_columns_are_those_of_the_tables() -> None:
    for table, columns in (
        (metadata.messages_table(2), metadata.MESSAGE_COLUMNS),
        (metadata.users_table(2), metadata.USER_COLUMNS),
        (metadata.claims_table(2), metadata.CLAIM_COLUMNS),
    ):
        assert tuple(column.name for column in table.columns) == columns
        assert table.name.endswith("_2")
