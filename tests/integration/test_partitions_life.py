"""Whole lives of messages in places partitioned by time: over and back, between shards, an index built, and kills."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append
from datalayer.ids import uuid7_at
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.migrators.rebalance import Load, Move
from datalayer.migrators.shards import Mover, sharding_of
from datalayer.routing.places import Places
from datalayer.settings import Settings, load_settings, parse_settings
from datalayer.stores.postgres.partitions import lowest_id
from tests.integration.live import create_schemas, life_cycle, traffic
from tests.integration.postgres_places import database, place, soon
from tests.integration.schema_ground import ask, opened, revision_folder, upgraded
from tests.servers import Servers

pytestmark = pytest.mark.servers
MONTHS = tuple(datetime(2024, 9 + n, 1, tzinfo=UTC) for n in range(4))
ANCIENT = datetime(2005, 5, 5, tzinfo=UTC)
"""Before any time that a partition is made for."""
EACH = 25
BODY_INDEX = '''"""Messages are found by their sender."""
from datalayer.schemas.steps import build_index
revision, down_revision, branch_labels, depends_on = "0903_pre", "0006_pre", None, None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "messages":
        build_index(table, "sender_id")
'''
PARTS = """
SELECT t.relname::text, p.relname::text FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
JOIN pg_class t ON t.oid = i.inhparent WHERE t.relkind = 'p' ORDER BY 1, 2"""
INDEXES = """
SELECT x.indrelid::regclass::text, x.indisvalid, x.indexrelid IN (SELECT inhrelid FROM pg_inherits)
FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE c.relname ~ 'sender_id' AND x.indrelid IN (
  SELECT '{0}'::regclass UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = '{0}'::regclass)"""
"""Of a table and its partitions: where it is, whether it is valid, and joined to the parent's."""
ROWS = "SELECT tableoid::regclass::text, count(*) FROM {} GROUP BY 1"


def _id(at: datetime, n: int) -> UUID:
    return uuid7_at(int(at.timestamp() * 1e6) + n * 1_000_000, n)


async def remember(settings: Settings) -> dict[UUID, list[tuple[UUID, str]]]:
    """Messages of some months long ago, and of a year before all partitions; by conversation, oldest first."""
    rooms = [uuid4() for _ in range(5)]
    found: dict[UUID, list[tuple[UUID, str]]] = {room: [] for room in rooms}
    async with DataLayer.open(settings) as layer:
        for at in (ANCIENT, *MONTHS):
            for n in range(EACH):
                room = rooms[n % len(rooms)]
                message = await layer.messages.append(room, sender_id=room, body=f"{at:%Y-%m} {n}", id=_id(at, n))
                found[room].append((message.id, message.body))
    return found


async def told(settings: Settings, rooms: dict[UUID, list[tuple[UUID, str]]]) -> dict[UUID, list[tuple[UUID, str]]]:
    """What the histories of these conversations say."""
    async with DataLayer.open(settings) as layer:
        pages = {room: await layer.messages.history(room, limit=1000, oldest_first=True) for room in rooms}
    return {room: [(one.id, one.body) for one in page.items] for room, page in pages.items()}


def partitioned(url: str) -> dict[str, dict[str, int]]:
    """Rows in each partition, by table, of every partitioned table of messages."""
    tables = {str(table) for table, _ in ask(url, PARTS) if str(table).startswith("messages") and "pkey" not in table}
    return {table: {str(part): int(rows) for part, rows in ask(url, ROWS.format(table))} for table in tables}


def assert_by_month(url: str) -> None:
    """Old rows lie in the partitions of their months, and only what is older than all of them in the open end."""
    tables = partitioned(url)
    assert tables
    for table, rows in tables.items():
        assert rows.get(f"{table}_older", 0) <= EACH, rows
        assert f"{table}_newer" not in rows, rows
    for at in MONTHS:
        total = sum(rows.get(f"{table}_from_{at:%Y%m%d}", 0) for table, rows in tables.items())
        assert total in {EACH * number for number in range(1, len(tables) + 1)}, tables


# --- over and back ---------------------------------------------------------------------------------------------------


async def test_sqlite_to_a_partitioned_postgres_and_back_under_traffic(servers: Servers, tmp_path: Path) -> None:
    with database(servers, "lives") as url:
        settings = parse_settings(
            {
                "backends": {
                    "a": {"url": f"sqlite:///{tmp_path}/a.sqlite"},
                    "b": {"url": url, "partition_messages": "month"},
                },
                "routes": {"messages": "a", "users": "a"},
                "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
            },
            directory=tmp_path,
        )
        await create_schemas(settings)
        before = await remember(settings)
        async with traffic(settings) as live:
            holds = await life_cycle(settings, target="b", live=live)
        assert len(holds) == 3
        assert live.errors == []
        assert min(live.writes, live.reads) > 100
        assert_by_month(url)
        assert await told(settings, before) == before


@asynccontextmanager
async def sharded(servers: Servers, folder: Path) -> AsyncIterator[tuple[Path, Settings, list[str]]]:
    """One plain database and two shards with partitions, in four slot groups; in a file, too."""
    with database(servers, "one") as one, database(servers, "s0") as s0, database(servers, "s1") as s1:
        config = folder / "datalayer.toml"
        config.write_text(
            f"""
[backends.one]
url = "{one}"
[backends.shards]
members = {{ s0 = "{s0}", s1 = "{s1}" }}
slot_groups = 4
partition_messages = "month"
[routes]
messages = "one"
users = "one"
[control]
url = "sqlite:///{folder}/control.sqlite"
"""
        )
        settings = load_settings(config, environ={})
        await create_schemas(settings)
        yield config, settings, [s0, s1]


async def _to_other_shards(places: Places) -> None:
    sharding = await sharding_of(places, "messages")
    moves = [Move(Load(group, at, 0), "s1" if at == "s0" else "s0") for group, at in sharding.shard_of.items()]
    await Mover(places, "messages", holder="test", parallel=2).run(moves)


async def test_partitioned_slot_groups_move_between_shards_and_home_under_traffic(
    servers: Servers, tmp_path: Path
) -> None:
    async with sharded(servers, tmp_path) as (_, settings, urls), open_places(settings, SystemClock()) as places:
        before = await remember(settings)
        target = MigrateOptions(until=Until.TARGET, yes=True)
        async with traffic(settings) as live:
            coordinator = Coordinator(places, "messages", holder="test", options=target)
            await coordinator.migrate("shards")
            await _to_other_shards(places)
            for url in urls:
                assert_by_month(url)
            assert await told(settings, before) == before
            await coordinator.rollback()
        assert live.errors == []
        assert min(live.writes, live.reads) > 100
        assert (await places.control.routings())[1]["messages"].authority.backend == "one"
        assert await told(settings, before) == before


# --- an index --------------------------------------------------------------------------------------------------------


async def test_an_index_is_built_on_every_partition_of_every_slot_group_while_people_write(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharded(servers, tmp_path) as (_, settings, urls):
        async with open_places(settings, SystemClock()) as places:
            before = await remember(settings)
            complete = MigrateOptions(until=Until.COMPLETE, yes=True)
            await Coordinator(places, "messages", holder="test", options=complete).migrate("shards")
        folder = revision_folder(tmp_path, monkeypatch, BODY_INDEX)
        async with traffic(settings) as live:
            states = await upgraded(settings, folder)
            assert {(one.state, one.detail) for one in states} == {("ready", "")}
        assert live.errors == []
        for url in urls:
            for table, rows in partitioned(url).items():
                built = {str(one): (valid, joined) for one, valid, joined in ask(url, INDEXES.format(table))}
                assert built.pop(table) == (True, False)
                assert set(built) >= set(rows) - {table}
                assert set(built.values()) == {(True, True)}
        assert await told(settings, before) == before


# --- kills -----------------------------------------------------------------------------------------------------------


TABLES = "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relname ~ '^messages' ORDER BY 1"
IDS = "SELECT id FROM {} ORDER BY id"


def everything(url: str) -> tuple[list[str], list[UUID], list[UUID]]:
    """All tables of messages, the ids that readers find, and those in tables that were partitions."""
    tables = [str(row[0]) for row in ask(url, TABLES)]
    apart = [str(row[0]) for table in tables if "_detached_" in table for row in ask(url, IDS.format(table))]
    return tables, [row[0] for row in ask(url, IDS.format("messages"))], sorted(UUID(one) for one in apart)


async def test_a_detach_that_is_killed_at_any_statement_has_done_all_or_nothing_and_the_next_one_ends_it(
    servers: Servers,
) -> None:
    before_ms = int(MONTHS[2].timestamp() * 1000)
    with database(servers, "killed") as url:
        async with place(url, partition_messages="month") as here:
            for at in (ANCIENT, *MONTHS):
                for n in range(3):
                    await here.messages.execute(Append(here.conversation, _id(at, n), UUID(int=1), "old"), soon())
        whole = everything(url)
        assert (len(whole[1]), whole[2]) == (15, [])
        command = [sys.executable, "-m", "tests.integration.detach_killed", url, str(before_ms)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for nth in count(1):
            process.stdin.write(f"{nth}\n".encode())
            ended = int(await process.stdout.readline())
            seen.append(everything(url))
            if ended == 0:
                break
            assert ended == -9
        process.stdin.close()
        assert await process.wait() == 0
        done = seen[-1]
        assert nth > 8, "control: it died at many statements"
        assert seen.count(whole) > 8
        assert all(one in (whole, done) for one in seen), "a half of it was seen"
        assert [table for table in done[0] if "_detached_" in table] == [
            "messages_detached_20240901",
            "messages_detached_20241001",
            "messages_detached_before_20240901",
        ]
        assert (len(done[1]), len(done[2])) == (6, 9)
        assert sorted(done[1] + done[2]) == whole[1], "nothing is lost"
        async with opened(url) as backend:
            assert await backend.store("messages", 0).partitions.detach(before_ms, 5.0) == []


def detach_command(config: Path, failpoints: str = "") -> tuple[int, list[str]]:
    """Run the command; how it ended, and which tables it detached."""
    words = ["messages", "detach", "--before", f"{MONTHS[2]:%Y-%m}", "--yes", "--config", str(config), "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "datalayer.cli.demo.staged", *words],
        env={**os.environ, "DATALAYER_FAILPOINTS": failpoints},
        capture_output=True,
        text=True,
        check=False,
    )
    told_: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1]) if ended.stdout else {}
    return ended.returncode, [one["table"] for one in told_.get("detached", ())]


async def test_a_command_that_is_killed_between_slot_groups_is_finished_by_the_same_command(
    servers: Servers, tmp_path: Path
) -> None:
    async with sharded(servers, tmp_path) as (config, settings, urls):
        async with open_places(settings, SystemClock()) as places:
            before = await remember(settings)
            complete = MigrateOptions(until=Until.COMPLETE, yes=True)
            await Coordinator(places, "messages", holder="test", options=complete).migrate("shards")
            groups = (await sharding_of(places, "messages")).map.groups
            third = (await places.control.routings())[1][groups[2].name].authority
        assert detach_command(config, f"detach.{third.backend}.{third.attempt}.before=kill") == (-9, [])
        half = [table for url in urls for table in everything(url)[0] if "_detached_" in table]
        assert half, "control: it was killed half way"
        code, rest = detach_command(config)
        assert code == 0
        assert rest
        assert detach_command(config) == (0, [])
        gone = [table for url in urls for table in everything(url)[0] if "_detached_" in table]
        assert sorted(gone) == sorted(half + rest)
        apart = {one for url in urls for one in everything(url)[2]}
        young = {
            room: [one for one in page if one[0] > lowest_id(int(MONTHS[2].timestamp() * 1000))]
            for room, page in before.items()
        }
        assert await told(settings, before) == young
        assert apart == {one for page in before.values() for one, _ in page} - {
            one for page in young.values() for one, _ in page
        }
