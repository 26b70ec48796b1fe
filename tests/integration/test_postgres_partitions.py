"""Messages partitioned by time on a real Postgres: nothing escapes journal or fence, and old partitions detach."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from datalayer.cli.app import app
from datalayer.domains.messages import Append
from datalayer.domains.record import Record
from datalayer.errors import PreconditionFailed, Unavailable
from datalayer.ids import uuid7_at
from datalayer.layer import DataLayer
from datalayer.stores.postgres.partitions import Part, lowest_id, next_start, start_of
from tests.integration.postgres_places import (
    ATTEMPT,
    FENCED,
    IDS,
    TOKEN,
    Place,
    database,
    place,
    program,
    soon,
)
from tests.servers import Servers

pytestmark = pytest.mark.servers
INTO = "INSERT INTO {} (conversation_id, id, sender_id, body) VALUES (%s, %s, %s, %s)"


@pytest.fixture(scope="module")
def url(servers: Servers) -> Iterator[str]:
    with database(servers, "parts") as found:
        yield found


@pytest.fixture
async def here(url: str) -> AsyncIterator[Place]:
    async with place(url, partition_messages="month") as found:
        yield found


async def parts(here: Place) -> list[Part]:
    return [part for part, _ in await here.messages.partitions.listed()]


async def now_part(here: Place) -> str:
    id = IDS.uuid7()
    (found,) = (p for p in await parts(here) if p.low and p.low <= id and p.high and id < p.high)
    return found.name


def ms(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000


async def append_at(here: Place, at_ms: int) -> uuid.UUID:
    id = uuid7_at(at_ms * 1000, 5)
    await here.messages.execute(Append(here.conversation, id, uuid.UUID(int=1), "old"), soon())
    return id


async def refused(url: str, sql: str, params: tuple[object, ...] = ()) -> str:
    async with program(url) as connection:
        with pytest.raises(psycopg.Error) as caught:
            await connection.execute(sql.encode(), params)
        return str(caught.value.sqlstate)


# --- journal and fence -----------------------------------------------------------------------------------------------


async def test_a_partition_can_be_neither_truncated_nor_written_past_the_journal(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    part = await now_part(here)
    row = here.row()
    async with program(here.url) as connection:
        await connection.execute(INTO.format(part).encode(), row)
    assert set(await here.journalled()) == {row[1]}
    assert await refused(here.url, f"TRUNCATE {part}") == "DLF02"
    assert await refused(here.url, "TRUNCATE messages") == "DLF02"


@pytest.mark.parametrize("sql", ["UPDATE {} SET body = 'x' WHERE false", "DELETE FROM {} WHERE false"])
async def test_a_statement_on_a_partition_that_meets_no_row_is_refused_too(here: Place, sql: str) -> None:
    await here.guard.install(TOKEN, sealed=False)
    part = await now_part(here)
    async with program(here.url) as connection:
        await connection.execute(sql.format(part).encode())
    await here.guard.fence(TOKEN, 1, 20.0, 5.0)
    assert await refused(here.url, sql.format(part)) == FENCED
    await here.guard.seal(TOKEN, 1)
    assert await refused(here.url, sql.format(part)) == FENCED
    assert await refused(here.url, INTO.format(part), here.row()) == FENCED


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE messages DETACH PARTITION {}",
        "ALTER TABLE messages DETACH PARTITION {} CONCURRENTLY",
        "DROP TABLE {}",
        "ALTER TABLE {} DISABLE TRIGGER datalayer_c_note_7",
        "ALTER TABLE messages DETACH PARTITION {0}; ALTER TABLE messages ATTACH PARTITION {0} {1}",
    ],
)
async def test_whoever_takes_a_partition_out_is_seen(here: Place, sql: str) -> None:
    await here.guard.install(TOKEN, sealed=False)
    assert not (await here.guard.state()).tampered, "control"
    name = await now_part(here)
    (part,) = (one for one in await parts(here) if one.name == name)
    values = f"FOR VALUES FROM ('{part.low}') TO ('{part.high}')"
    async with program(here.url) as connection:
        for one in sql.format(name, values).split("; "):
            await connection.execute(one.encode())
    assert (await here.guard.state()).tampered


async def test_partitions_made_under_a_guard_carry_it_and_leave_it_sound(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=True)
    old = _copied(here, ms(2024, 3))
    before = await parts(here)
    await here.guard.apply([old])
    made = [one for one in await parts(here) if one not in before and one.low]
    assert made, "control: the batch needed partitions"
    assert not (await here.guard.state()).tampered
    for one in made:
        assert await refused(here.url, f"DELETE FROM {one.name} WHERE false") == FENCED
        assert await refused(here.url, f"TRUNCATE {one.name}") == "DLF02"
    assert await here.journalled() == {}


async def test_a_guard_that_was_tampered_with_stays_so_when_partitions_are_made(here: Place) -> None:
    await here.guard.install(TOKEN, sealed=False)
    async with program(here.url) as connection:
        await connection.execute(f"ALTER TABLE messages DISABLE TRIGGER datalayer_c_note_{ATTEMPT}".encode())
    before = await parts(here)
    await append_at(here, ms(2025, 1))
    assert await parts(here) != before, "control"
    assert (await here.guard.state()).tampered


def _copied(here: Place, at_ms: int) -> Record:
    """A record as a backfill brings it."""
    id = uuid7_at(at_ms * 1000, 9)
    return Record(
        "message",
        here.conversation.bytes + id.bytes,
        at_ms * 1000,
        False,
        (bytes(16), "b", "text", None, b"", None, "{}"),
    )


# --- making partitions -----------------------------------------------------------------------------------------------


async def test_rows_that_fell_into_the_open_end_move_into_the_partition_made_for_them(here: Place) -> None:
    first = (await parts(here))[0]
    assert first.low is None
    row = here.row(uuid7_at(ms(2025, 5) * 1000, 1))
    async with program(here.url) as connection:
        await connection.execute(INTO.format("messages").encode(), row)
    await here.guard.install(TOKEN, sealed=False)
    id = await append_at(here, ms(2025, 3))
    found = await here.backend.db.fetch("SELECT tableoid::regclass::text, id FROM messages ORDER BY id")
    assert [tuple(one) for one in found] == [("messages_from_20250301", id), ("messages_from_20250501", row[1])]
    assert set(await here.journalled()) == {id}, "a row that only moved has not changed"


async def test_ids_of_no_message_s_time_stay_in_the_open_ends(here: Place) -> None:
    before = await parts(here)
    for id in (uuid.UUID(int=5), uuid.UUID("ffffffff-ffff-4fff-bfff-ffffffffffff")):
        async with program(here.url) as connection:
            await connection.execute(INTO.format("messages").encode(), here.row(id))
        await here.messages.partitions.cover([id.bytes])
    assert await parts(here) == before


async def test_a_write_does_not_wait_for_a_partition_that_cannot_be_made(here: Place) -> None:
    async with program(here.url, isolation="READ_COMMITTED") as reader:
        await reader.execute("SELECT count(*) FROM messages")
        before = await parts(here)
        id = await append_at(here, ms(2025, 2))
        assert await parts(here) == before
    assert set(await here.stored()) == {id}


async def test_an_end_that_has_grown_too_large_is_not_split_and_named(
    here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datalayer.stores.postgres.partitions.SPLIT_BYTES_MAX", 8192)
    row = here.row(uuid7_at(ms(2025, 5) * 1000, 1))
    async with program(here.url) as connection:
        await connection.execute(INTO.format("messages").encode(), row)
    before = await parts(here)
    id = await append_at(here, ms(2025, 3))
    assert await parts(here) == before
    assert set(await here.stored()) == {id, row[1]}, "no write is refused"
    assert "messages_older holds more than 0 MB: it is not split any more" in caplog.text
    assert await here.messages.partitions.stuck() == ["messages_older"]


# --- detaching -------------------------------------------------------------------------------------------------------


async def test_detached_partitions_are_kept_as_tables_and_gone_for_readers(here: Place) -> None:
    oldest, old = await append_at(here, ms(2024, 11)), await append_at(here, ms(2025, 2))
    young = (await here.append()).key[16:]
    gone = await here.messages.partitions.detach(ms(2025, 3), 5.0)
    assert gone[0] == "messages_detached_20241101"
    assert len(gone) == 4
    assert [m.id.bytes for m in await here.messages.history(here.conversation, 10, soon())] == [young]
    rows = await here.backend.db.fetch("SELECT id FROM messages_detached_20241101")
    assert [row[0] for row in rows] == [oldest]
    assert await here.messages.get(here.conversation, old, soon()) is None
    assert await here.messages.partitions.detach(ms(2025, 3), 5.0) == [], "a repeat finds nothing"
    again = await append_at(here, ms(2024, 11) + 5)
    assert set(await here.stored()) >= {again}, "a late message of that time is not refused"


async def test_nothing_is_detached_while_a_guard_is_on(here: Place) -> None:
    await append_at(here, ms(2025, 2))
    await here.guard.install(TOKEN, sealed=False)
    before = await parts(here)
    with pytest.raises(PreconditionFailed, match="is being moved"):
        await here.messages.partitions.detach(ms(2025, 3), 5.0)
    assert await parts(here) == before
    await here.guard.remove(TOKEN, keep_fence=False)
    assert await here.messages.partitions.detach(ms(2025, 3), 5.0), "control: it was the guard"


async def test_a_reader_that_does_not_end_is_named_and_nothing_is_detached(here: Place) -> None:
    await append_at(here, ms(2025, 2))
    before = await parts(here)
    async with program(here.url, "report", isolation="READ_COMMITTED") as reader:
        await reader.execute("SELECT count(*) FROM messages")
        with pytest.raises(Unavailable, match="report"):
            await here.messages.partitions.detach(ms(2025, 3), 0.5)
    assert await parts(here) == before


async def test_size_and_estimate_count_all_partitions(here: Place) -> None:
    for month in (1, 2, 3):
        await append_at(here, ms(2025, month))
    await here.backend.db.run("ANALYZE messages")
    assert await here.messages.estimate() == 3
    assert await here.messages.size() > 3 * 8192


def test_periods_begin_where_a_calendar_says() -> None:
    at = int(datetime(2025, 1, 31, 13, tzinfo=UTC).timestamp()) * 1000  # a Friday
    assert start_of("month", at) == ms(2025, 1)
    assert next_start("month", at) == ms(2025, 2)
    assert datetime.fromtimestamp(start_of("week", at) / 1000, UTC).day == 27
    assert datetime.fromtimestamp(next_start("week", at) / 1000, UTC).day == 3
    assert next_start("day", at) == ms(2025, 2)
    assert lowest_id(at) <= uuid7_at(at * 1000, 0)


# --- the command -----------------------------------------------------------------------------------------------------


def _command(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    ended = subprocess.run(
        [sys.executable, "-m", "datalayer.cli", *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1])


def test_the_command_says_what_to_do_with_an_end_that_is_too_large(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(servers, "stuck") as url:
        config = tmp_path / "datalayer.toml"
        config.write_text(f'[backends.main]\nurl = "{url}"\npartition_messages = "month"\n')
        for words, told in (
            (["schema", "upgrade"], ""),
            (["messages", "partitions"], "messages_from_"),
            (["messages", "partitions"], "messages_newer on main is too large to be split"),
        ):
            ended = CliRunner().invoke(app, [*words, "--config", str(config)])
            assert (ended.exit_code, told in ended.output) == (0, True), ended.output
            if words[0] == "schema":
                asyncio.run(open_once(config))
            else:
                monkeypatch.setattr("datalayer.stores.postgres.partitions.SPLIT_BYTES_MAX", 0)


async def open_once(config: Path) -> None:
    async with DataLayer.open(config):
        pass


async def test_the_command_detaches_on_a_database_made_by_schema_upgrade_and_doctor_is_content(
    servers: Servers, tmp_path: Path
) -> None:
    with database(servers, "detach") as url:
        config = tmp_path / "datalayer.toml"
        config.write_text(f'[backends.main]\nurl = "{url}"\npartition_messages = "month"\n')
        assert _command(tmp_path, "schema", "upgrade")[0] == 0
        async with DataLayer.open(config) as layer:
            room = IDS.uuid7()
            await layer.messages.append(room, sender_id=room, body="old", id=uuid7_at(ms(2025, 1) * 1000, 1))
            await layer.messages.append(room, sender_id=room, body="young")
        code, told = _command(tmp_path, "messages", "partitions")
        assert code == 0
        assert "messages_from_20250101" in {one["name"] for one in told["partitions"]}
        assert _command(tmp_path, "messages", "detach", "--before", "2025-02")[0] == 3, "it was not confirmed"
        code, told = _command(tmp_path, "messages", "detach", "--before", "2025-02", "--yes")
        assert (code, told["detached"]) == (0, [{"backend": "main", "table": "messages_detached_20250101"}])
        assert _command(tmp_path, "messages", "detach", "--before", "2025-02", "--yes")[1]["detached"] == []
        assert _command(tmp_path, "doctor")[0] == 0
        assert _command(tmp_path, "schema", "status")[0] == 0
        async with DataLayer.open(config) as layer:
            assert [one.body for one in (await layer.messages.history(room)).items] == ["young"]
