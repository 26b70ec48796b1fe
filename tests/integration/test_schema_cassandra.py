"""Numbered CQL on a real Cassandra: once each, one upgrader at a time, with checksums, for every place."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from datalayer.errors import PreconditionFailed, SchemaAhead, SchemaBehind
from datalayer.migrators.options import Silent
from datalayer.migrators.schema_plan import load_revisions
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions
from datalayer.migrators.schemas import SchemaState, inspect_schemas
from datalayer.schemas.cassandra import CqlFile, cql_file, numbered_files
from datalayer.schemas.script import Busy
from datalayer.settings import BackendUrl, parse_settings
from datalayer.stores.cassandra import schema as module
from datalayer.stores.cassandra.backend import CassandraBackend, create_backend
from datalayer.stores.cassandra.schema import CassandraSchema
from tests.integration.cassandra_backends import CLOCK, opened
from tests.servers import Servers

pytestmark = pytest.mark.servers
ADDS = cql_file(
    3, "0003_place_region.cql", "place", "ALTER TABLE {keyspace}.messages{suffix} ADD IF NOT EXISTS region text;"
)
MORE = cql_file(
    4, "0004_backend_notes.cql", "backend", "CREATE TABLE IF NOT EXISTS {keyspace}.notes (id int PRIMARY KEY);"
)
DROPS = cql_file(
    5, "0005_place_region_post.cql", "place", "ALTER TABLE {keyspace}.messages{suffix} DROP IF EXISTS region;"
)
NEXT = [*numbered_files(), ADDS, MORE, DROPS]


def schema_of(backend: CassandraBackend, files: list[CqlFile] | None = None) -> CassandraSchema:
    """The keyspace's schema as a version of the library with these files sees it."""
    return CassandraSchema(backend._session, backend._keyspace, 1, files)


@pytest.fixture
def url(servers: Servers) -> str:
    where, query = servers.cassandra().url.split("/?")
    return f"{where}/schema_{uuid.uuid4().hex[:8]}?{query}"


@pytest.fixture
async def backend(url: str) -> AsyncIterator[CassandraBackend]:
    async with opened(url) as backend:
        yield backend


async def columns(backend: CassandraBackend, table: str) -> set[str]:
    return set((await schema_of(backend)._columns()).get(table, {}))


async def test_every_place_is_brought_up_to_date_and_older_code_goes_on(backend: CassandraBackend) -> None:
    await backend.store("messages", 7).create()
    later = schema_of(backend, NEXT)
    with pytest.raises(SchemaBehind, match=r"needs 0004_backend_notes\.cql"):
        await later.check()
    assert await later.upgrade("pre") == ["0003_place_region.cql", "0004_backend_notes.cql"]
    assert await later.upgrade("pre") == []
    for table in ("messages", "messages_7"):
        assert "region" in await columns(backend, table)
    await later.check()
    await backend.ensure_schema(create=False)  # this version does not know 0003 and 0004, and that they only add
    assert [str(one) for one in await schema_of(backend).drift() if one.harmful] == []
    assert await later.upgrade("post") == ["0005_place_region_post.cql"]
    assert "region" not in await columns(backend, "messages_7")
    assert await later.drift() == []
    with pytest.raises(SchemaAhead, match="version 5"):
        await backend.ensure_schema(create=False)


async def test_what_takes_away_waits_for_what_adds(backend: CassandraBackend) -> None:
    with pytest.raises(PreconditionFailed, match=r"0003_place_region\.cql must run before 0005"):
        await schema_of(backend, NEXT).upgrade("post")


async def test_a_place_that_older_code_made_afterwards_is_brought_in_step(backend: CassandraBackend) -> None:
    files = NEXT[:-1]
    await schema_of(backend, files).upgrade()
    await backend.store("messages", 8).create()
    assert [str(one) for one in await schema_of(backend, files).drift()] == ["messages_8: column region is missing"]
    assert await schema_of(backend, files).upgrade() == ["messages_8"]
    assert await schema_of(backend, files).drift() == []


async def test_of_upgraders_at_once_one_works_and_the_others_are_told(backend: CassandraBackend) -> None:
    ends = await asyncio.gather(*(schema_of(backend, NEXT).upgrade() for _ in range(4)), return_exceptions=True)
    done = [end for end in ends if isinstance(end, list)]
    assert [name for end in done for name in end] == [one.name for one in NEXT[2:]]
    assert all(isinstance(end, list | Busy) for end in ends), ends


async def test_the_lock_of_an_upgrader_that_died_lapses(backend: CassandraBackend) -> None:
    dead = module._TAKE.replace(f"TTL {module.LOCK_TTL_S}", "TTL 2")
    assert (await schema_of(backend)._rows(dead, (b"a dead one",), write=True))[0][0]
    with pytest.raises(Busy, match="somebody else is changing the schema"):
        await schema_of(backend, NEXT).upgrade()
    async with asyncio.timeout(20):
        while True:
            try:
                assert len(await schema_of(backend, NEXT).upgrade()) == 3
                break
            except Busy:
                await asyncio.sleep(0.1)


async def test_an_upgrader_that_lost_its_lock_changes_nothing_more(backend: CassandraBackend) -> None:
    schema = schema_of(backend, NEXT)
    async with schema._locked() as renew:
        await renew()
        await schema._rows("DELETE FROM {keyspace}.datalayer_schema_lock WHERE name = 'schema' IF EXISTS", write=True)
        with pytest.raises(Busy, match="was lost"):
            await schema._apply(ADDS, "", renew)
    assert "region" not in await columns(backend, "messages")


async def test_a_file_that_was_changed_after_it_was_applied_is_refused_and_named(backend: CassandraBackend) -> None:
    changed = [replace(one, sha256="0" * 64) if one.number == 2 else one for one in NEXT]
    schema = schema_of(backend, changed)
    with pytest.raises(PreconditionFailed, match=r"0002_place_messages\.cql was applied with another text"):
        await schema.upgrade()
    told = [str(one) for one in await schema.drift()]
    assert told == ["datalayer_schema: 0002_place_messages.cql was applied with another text"]


async def test_a_keyspace_of_the_first_version_gets_checksums_from_now_on(url: str, backend: CassandraBackend) -> None:
    schema = schema_of(backend)
    for statement in (
        "DROP TABLE {keyspace}.datalayer_schema_lock",
        "DROP TABLE {keyspace}.datalayer_schema",
        "CREATE TABLE {keyspace}.datalayer_schema (part text, version int, PRIMARY KEY (part, version))",
    ):
        await schema._change(statement)
    again = create_backend("cassandra", BackendUrl.parse(url), pool_max=5, clock=CLOCK)
    await again.open()  # its statements are prepared anew
    try:
        for version in (1, 2):
            insert = "INSERT INTO {keyspace}.datalayer_schema (part, version) VALUES ('backend', ?)"
            await schema_of(again)._rows(insert, (version.to_bytes(4, "big"),), write=True)
        await again.ensure_schema(create=False)
        assert await schema_of(again).upgrade() == []
        assert {"sha256", "phase"} <= await columns(again, "datalayer_schema")
        assert len(await schema_of(again, NEXT).upgrade()) == 3
        rows = await schema_of(again)._applied()
        assert [rows[number].sha256 for number in (1, 2, 3)] == [None, None, ADDS.sha256]
    finally:
        await again.close()


async def test_drift_of_a_keyspace_is_named_by_table(backend: CassandraBackend) -> None:
    schema = schema_of(backend)
    assert await schema.drift() == []
    await schema._change("ALTER TABLE {keyspace}.messages ADD shoe text")
    await schema._change("DROP TABLE {keyspace}.message_buckets")
    await schema._change("ALTER TABLE {keyspace}.datalayer_token DROP attempt")
    told = {(str(one), one.harmful) for one in await schema.drift()}
    assert told == {
        ("messages: column shoe is unexpected", False),
        ("message_buckets: the table is missing", True),
        ("datalayer_token: column attempt is missing", True),
    }


async def test_the_command_line_s_way_to_a_keyspace(url: str, tmp_path: Any) -> None:
    backends = {"main": {"url": f"sqlite:///{tmp_path / 'main.sqlite'}"}, "cassandra": {"url": url}}
    settings = parse_settings({"backends": backends})

    async def state() -> SchemaState:
        return (await inspect_schemas(settings, CLOCK, only="cassandra"))[0]

    assert (await state()).state == "behind"
    ends = await Upgrade(settings, CLOCK, load_revisions(), Silent(), UpgradeOptions()).run()
    assert [(one.name, one.state) for one in ends] == [
        ("cassandra", "ready"),
        ("main", "ready"),
        ("(control)", "ready"),
    ]
    assert ends[0].done == ("0001_backend_state.cql", "0002_place_messages.cql")
    assert ((await state()).state, (await state()).revision) == ("ready", "2")
