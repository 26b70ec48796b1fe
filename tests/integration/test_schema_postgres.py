"""Schema upgrades on a real Postgres: under traffic, killed, in each other's way, and what has drifted."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from datalayer.domains.users import CreateUser
from datalayer.errors import SchemaBehind
from datalayer.ids import IdSource
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions
from datalayer.migrators.schemas import SchemaState, inspect_schemas
from datalayer.schemas import history, render
from datalayer.schemas.history import History
from datalayer.schemas.render import Revisions
from datalayer.schemas.script import Step
from datalayer.stores.base import MetaRow
from tests.integration.postgres_places import database, program, soon
from tests.integration.schema_ground import (
    CLOCK,
    OWNER_INDEX,
    REGION,
    ask,
    make_old,
    one_backend,
    opened,
    revision_folder,
    upgraded_main,
)
from tests.servers import Servers
from tests.unit.test_schema_lint import SAFE, UNSAFE

pytestmark = pytest.mark.servers
NO_FILE = ("TABLESPACE", "CLUSTER")
"""What needs a tablespace, or an index of a name, that these tests do not have."""
REWRITES = [sql for sql, rule in UNSAFE if rule == "rewrite" and not any(word in sql for word in NO_FILE)]
BUILD_WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%'"
    " AND wait_event_type = 'Lock'"
)


@pytest.fixture
def url(servers: Servers) -> Iterator[str]:
    with database(servers, "schema") as found:
        yield found


@pytest.fixture
def owner_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a further revision, which this version then knows: an index on every claims table."""
    return revision_folder(tmp_path, monkeypatch, OWNER_INDEX)


async def state_of(url: str) -> SchemaState:
    return (await inspect_schemas(one_backend(url), CLOCK, only="main"))[0]


@asynccontextmanager
async def reading(url: str, table: str) -> AsyncIterator[None]:
    """A long transaction that has read a table: changes of it, and builds of an index, wait for its end."""
    async with program(url, isolation="REPEATABLE_READ") as connection:
        await connection.execute(f"SELECT count(*) FROM {table}".encode())
        yield
        await connection.rollback()


async def until_build_waits(url: str) -> int:
    while not (found := ask(url, BUILD_WAITS)):
        await asyncio.sleep(0.02)
    return int(found[0][0])


def indexes(url: str) -> dict[str, bool]:
    """Whether it is valid, by the name of each index on an owner."""
    rows = ask(
        url, "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indexrelid::regclass::text ~ 'owner'"
    )
    return {str(name): bool(valid) for name, valid in rows}


async def test_the_revisions_make_what_the_library_makes(servers: Servers, url: str) -> None:
    state = await upgraded_main(url)
    assert (state.state, state.done, state.drift) == (
        "ready",
        ("0001", "0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre"),
        (),
    )
    with database(servers, "schema") as other:
        async with opened(other) as backend:
            await backend.ensure_schema(create=True)
            await backend.ensure_schema(create=False)
            wanted = await backend.sql_schema().rows()
        made = await state_of(other)
        assert (made.state, made.drift) == ("ready", ())
    async with opened(url) as backend:
        await backend.ensure_schema(create=False)
        assert await backend.sql_schema().rows() == wanted


@pytest.mark.parametrize("stamped", [False, True])
async def test_a_database_of_the_first_version_is_refused_until_it_is_brought_up_to_date(
    url: str, stamped: bool
) -> None:
    make_old(url, stamped=stamped)
    async with opened(url) as backend:
        with pytest.raises(SchemaBehind, match="datalayer schema upgrade"):
            await backend.ensure_schema(create=False)
        assert (await state_of(url)).state == "behind"
        # a purge has dropped the plain table of a domain that moved away: nobody makes it again
        await backend.write_meta(MetaRow("messages", 0, "d", "retired", 1))
        await backend.store("messages", 0).drop()
    state = await upgraded_main(url)
    assert (state.state, state.done, state.revision) == (
        "ready",
        ("0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre"),
        "0007_pre",
    )
    assert ask(url, "SELECT to_regclass('messages')") == [(None,)]
    assert [row[0] for row in ask(url, "SELECT revision FROM datalayer_schema_log")] == [
        "0002_pre",
        "0003_pre",
        "0004_pre",
        "0005_pre",
        "0006_pre",
        "0007_pre",
    ]
    assert (await upgraded_main(url)).done == ()


async def test_every_attempt_gets_its_index_while_writers_go_on(url: str, owner_index: Path) -> None:
    make_old(url)
    async with opened(url) as backend:
        stores = [backend.store("users", attempt) for attempt in (0, 7, 1_000_028_672)]
        for store in stores:
            await store.create()
        ids = IdSource(CLOCK)
        async with reading(url, "claims_7"):
            upgrade = asyncio.create_task(upgraded_main(url, owner_index))
            await until_build_waits(url)
            for store in stores:  # the build waits for the reader, and nobody waits for the build
                name = f"ann{store.attempt}"
                mutation = CreateUser(ids.uuid7(), name, f"{name}@example.org", "Ann", "active", "{}")
                await asyncio.wait_for(store.execute(mutation, soon()), 2)
        state = await upgrade
    assert (state.state, state.done) == (
        "ready",
        ("0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre", "0903_pre"),
    )
    assert indexes(url) == {f"{table}_owner": True for table in ("claims", "claims_7", "claims_1000028672")}
    targets = ask(url, "SELECT target FROM datalayer_schema_log WHERE revision = '0903_pre' ORDER BY at_us")
    assert [row[0] for row in targets] == ["claims", "claims_7", "claims_1000028672"]


async def test_a_table_of_somebody_else_is_left_alone(url: str, owner_index: Path) -> None:
    make_old(url)
    ask(url, "CREATE TABLE claims_2024 (id int PRIMARY KEY, owner uuid)")
    assert (await upgraded_main(url, owner_index)).state == "ready"
    assert set(indexes(url)) == {"claims_owner"}


async def test_a_build_that_was_killed_is_dropped_and_built_again(url: str, owner_index: Path) -> None:
    make_old(url)
    async with reading(url, "claims"):
        upgrade = asyncio.create_task(upgraded_main(url, owner_index))
        pid = await until_build_waits(url)
        ask(url, f"SELECT pg_terminate_backend({pid})")
        state = await upgrade
        assert state.state == "unreachable"
        assert state.done == ("0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre")
    assert indexes(url) == {"claims_owner": False}
    assert "0903_pre" in (await state_of(url)).detail
    state = await upgraded_main(url, owner_index)
    assert (state.state, state.done) == ("ready", ("0903_pre",))
    assert indexes(url) == {"claims_owner": True}


async def test_an_upgrade_that_is_cancelled_ends_its_build(url: str, owner_index: Path) -> None:
    make_old(url)
    async with reading(url, "claims"):
        upgrade = asyncio.create_task(upgraded_main(url, owner_index))
        await until_build_waits(url)
        upgrade.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upgrade
        while ask(url, BUILD_WAITS):
            await asyncio.sleep(0.02)
        assert (await upgraded_main(url, owner_index, phase="post")).state != "busy", "the lock went with the session"
    assert (await upgraded_main(url, owner_index)).state == "ready"
    assert indexes(url) == {"claims_owner": True}


async def test_a_lock_that_is_not_had_is_asked_for_again_and_keeps_nobody_waiting(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(url)
    await upgraded_main(url)
    folder = revision_folder(tmp_path, monkeypatch, REGION)
    monkeypatch.setattr(render, "_SET_TIMEOUT", Step("SET LOCAL lock_timeout = '100ms'"))
    monkeypatch.setattr("datalayer.migrators.schema_upgrade.PAUSE_S", 0.02)
    async with reading(url, "users"), opened(url) as backend:
        upgrade = asyncio.create_task(upgraded_main(url, folder))
        slowest = 0.0
        while not upgrade.done():
            began = CLOCK.monotonic()
            await backend.store("users", 0).page(10, soon())
            slowest = max(slowest, CLOCK.monotonic() - began)
            await asyncio.sleep(0.005)
        state = await upgrade
        assert state.state == "busy"
        assert "users of postgres 'main'" in state.detail
        assert slowest < 1.0, "a reader waits for one try at most"
    assert (await upgraded_main(url, folder)).state == "ready"
    assert ask(url, "SELECT count(*) FROM pg_attribute WHERE attname = 'country' AND attrelid = 'users'::regclass") == [
        (1,)
    ]


async def test_two_upgrades_at_once_do_each_step_once(url: str, owner_index: Path) -> None:
    make_old(url)
    states = await asyncio.gather(*(upgraded_main(url, owner_index) for _ in range(4)))
    assert {state.state for state in states} == {"ready"}
    assert sorted(one for state in states for one in state.done) == [
        "0002_pre",
        "0003_pre",
        "0004_pre",
        "0005_pre",
        "0006_pre",
        "0007_pre",
        "0903_pre",
    ]
    logged = ask(url, "SELECT revision, count(*) FROM datalayer_schema_log GROUP BY 1 ORDER BY 1")
    assert logged == [
        ("0002_pre", 1),
        ("0003_pre", 1),
        ("0004_pre", 1),
        ("0005_pre", 1),
        ("0006_pre", 1),
        ("0007_pre", 1),
        ("0903_pre", 1),
    ]


async def test_a_place_that_is_purged_meanwhile_is_left_out(url: str, owner_index: Path) -> None:
    make_old(url)
    async with opened(url) as backend:
        gone, stays = backend.store("users", 7), backend.store("users", 8)
        await gone.create()
        await stays.create()

        class Purge:
            async def reach(self, name: str) -> None:
                if "0903_pre" in name:
                    await gone.drop()

        upgrade = Upgrade(one_backend(url), CLOCK, Revisions(owner_index), Purge(), UpgradeOptions(only="main"))
        assert (await upgrade.run())[0].state == "ready"
    assert set(indexes(url)) == {"claims_owner", "claims_8_owner"}


async def test_who_holds_the_lock_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(url)
    monkeypatch.setattr("datalayer.migrators.schema_upgrade.LOCK_WAIT_S", 0.2)
    with psycopg.connect(url, autocommit=True, application_name="a colleague") as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('datalayer_schema', 0))")
        state = await upgraded_main(url)
        assert state.state == "busy"
        assert f"a colleague (pid {other.info.backend_pid}) is changing the schema" in state.detail
    assert (await upgraded_main(url)).state == "ready"


async def test_behind_a_pooler_a_direct_address_is_asked_for(url: str) -> None:
    state = await upgraded_main(f"{url}?pgbouncer=true")
    assert state.state == "failed"
    assert "direct=HOST:PORT" in state.detail
    host = url.rpartition("@")[2].partition("/")[0]
    assert (await upgraded_main(f"{url}?pgbouncer=true&direct={host}")).state == "ready"


async def test_the_library_refuses_what_it_needs_and_does_not_find(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(url, stamped=True)
    monkeypatch.setattr(history, "THIS", History(history.THIS.pre, (), "0002_pre"))
    async with opened(url) as backend:
        with pytest.raises(SchemaBehind, match="datalayer schema upgrade"):
            await backend.ensure_schema(create=True)
        assert (await upgraded_main(url)).state == "ready"
        await backend.ensure_schema(create=False)


async def test_drift_is_named_by_table(url: str) -> None:
    await upgraded_main(url)
    async with opened(url) as backend:
        await backend.store("users", 7).create()
    changes = (
        "ALTER TABLE users_7 DROP COLUMN display_name",
        "ALTER TABLE users_7 ALTER COLUMN username TYPE varchar(40)",
        "ALTER TABLE users_7 ALTER COLUMN email SET NOT NULL",
        "ALTER TABLE users_7 ALTER COLUMN status SET DEFAULT 'new'",
        "ALTER TABLE users ADD COLUMN shoe text",
        "ALTER TABLE users ADD COLUMN hat text NOT NULL",
        "CREATE UNIQUE INDEX users_mail ON users (lower(email), id)",
        "CREATE INDEX users_hat ON users (hat)",
        "DROP TABLE datalayer_token",
        'ALTER TABLE claims_7 ALTER COLUMN value TYPE text COLLATE "default"',
    )
    for change in changes:
        ask(url, change)
    state = await state_of(url)
    assert state.state == "drifted"
    assert {(str(one), one.harmful) for one in state.drift} == {
        ("users_7: column display_name is missing", True),
        ("users_7: column username is of type character varying(40), not text", True),
        ("users_7: column email may not be NULL", True),
        ("users_7: column status defaults to 'new', not 'active'", True),
        ("users: column shoe is unexpected", False),
        ("users: column hat is unexpected and must be given a value", True),
        ("users: unique index users_mail on (lower(email), id) is unexpected", True),
        ("users: index users_hat on (hat) is unexpected", False),
        ("datalayer_token: the table is missing", True),
        ("claims_7: column value has the collation of the database, not C", True),
    }


@pytest.mark.parametrize(
    ("statement", "rewrites"), [*((sql, True) for sql in REWRITES), *((sql, False) for sql in SAFE)]
)
def test_the_linter_is_right_about_what_is_written_anew(url: str, statement: str, rewrites: bool) -> None:
    ask(url, "CREATE TABLE b (id uuid PRIMARY KEY)")
    ask(url, "CREATE TABLE users (id uuid PRIMARY KEY, email text, status text, a uuid, b int)")
    ask(url, "CREATE UNIQUE INDEX users_email ON users (email)")
    ask(url, "INSERT INTO users (id, email) SELECT gen_random_uuid(), 'ann' || n FROM generate_series(1, 100) n")
    before = ask(url, "SELECT relfilenode FROM pg_class WHERE relname = 'users'")
    ask(url, statement)
    assert (ask(url, "SELECT relfilenode FROM pg_class WHERE relname = 'users'") != before) is rewrites
