"""Two versions of the code and one database: the store suites pass for the older one on the schema of the newer one, and
for the newer one before what only the older one used is taken away.

The newer version is played: 0903_pre gives users a country, with an index, and messages a language; 0904_post drops the
nickname that users had in the older one. Its tables are declared so; its statements leave the new columns to their
defaults. The older version is played by the tables and the history of 0001, with that nickname.
"""

import asyncio
import itertools
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from datalayer.domains.users import CreateUser
from datalayer.errors import SchemaAhead, SchemaBehind
from datalayer.ids import IdSource
from datalayer.schemas import history, metadata
from datalayer.schemas.history import History
from datalayer.schemas.render import Revisions
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.postgres.backend import create_backend
from datalayer.stores.postgres.schema import PostgresSchema
from datalayer.stores.sql.store import SqlStore
from datalayer.stores.sql.texts import once
from datalayer.testing.contract import (
    ForeignWriterSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    PortSuite,
    StoreFixture,
    UserExecuteSuite,
    UserReadsSuite,
)
from tests.contract.test_postgres import _Program
from tests.integration.postgres_places import soon
from tests.integration.schema_ground import CLOCK, REGION, ask, make_old, opened, upgraded_main
from tests.servers import Servers

pytestmark = pytest.mark.servers
NO_NICKNAME = '''"""Users have no nickname any more."""
from alembic import op
revision, down_revision, branch_labels, depends_on = "0904_post", None, ("post",), None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "users":
        op.drop_column(table, "nickname", if_exists=True)
'''
OLD = History(("0001", "0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre"), (), "0001")
NEW = History(
    ("0001", "0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre", "0903_pre"),
    ("0904_post",),
    "0903_pre",
)
_USERS: Any = metadata.users_table
_MESSAGES: Any = metadata.messages_table


@lru_cache
def older_users(attempt: int = 0) -> sa.Table:
    table: sa.Table = _USERS.__wrapped__(attempt)
    table.append_column(sa.Column("nickname", sa.Text, nullable=False, server_default=""))
    return table


@lru_cache
def newer_users(attempt: int = 0) -> sa.Table:
    table: sa.Table = _USERS.__wrapped__(attempt)
    table.append_column(sa.Column("country", sa.Text, nullable=False, server_default="eu"))
    sa.Index(f"{table.name}_country", table.c.country)
    return table


@lru_cache
def newer_messages(attempt: int = 0) -> sa.Table:
    table: sa.Table = _MESSAGES.__wrapped__(attempt)
    table.append_column(sa.Column("language", sa.Text))
    return table


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    (folder / "r0903.py").write_text(REGION)
    (folder / "r0904.py").write_text(NO_NICKNAME)
    return folder


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The statements of another version of the tables are nobody's after the test."""
    yield
    once.cache_clear()


def play_older(monkeypatch: pytest.MonkeyPatch) -> None:
    once.cache_clear()
    monkeypatch.setattr(history, "THIS", OLD)
    monkeypatch.setattr(metadata, "users_table", older_users)


def play_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    once.cache_clear()
    monkeypatch.setattr(history, "THIS", NEW)
    monkeypatch.setattr(metadata, "users_table", newer_users)
    monkeypatch.setattr(metadata, "messages_table", newer_messages)


def between(servers: Servers, revisions: Path) -> str:
    """A database that the older version made and that was upgraded by --phase pre of the newer one."""
    url = servers.postgres(1)[0].create_database(f"skew_{uuid.uuid4().hex[:8]}")
    make_old(url)
    ask(url, "ALTER TABLE users ADD COLUMN nickname text NOT NULL DEFAULT ''")
    with pytest.MonkeyPatch.context() as monkeypatch, ThreadPoolExecutor(1) as thread:
        play_newer(monkeypatch)
        state = thread.submit(lambda: asyncio.run(upgraded_main(url, revisions, phase="pre"))).result()
    assert (state.state, state.revision) == ("ready", "0903_pre")
    return url


@pytest.fixture(scope="module")
def url(servers: Servers, revisions: Path) -> str:
    return between(servers, revisions)


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


def shape(url: str, table: str) -> set[str]:
    rows = ask(url, f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0")
    return {str(row[0]) for row in rows}


class _Skewed:
    @pytest.fixture
    def seed(self, request: pytest.FixtureRequest) -> int:
        return zlib.crc32(request.node.nodeid.encode())

    @pytest.fixture
    async def fixture(self, seed: int, url: str, attempts: Iterator[int], play: None) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            backend = create_backend("main", BackendUrl.parse(url), pool_max=8, clock=CLOCK)
            await backend.open()
            await backend.ensure_schema(create=False)
            return backend

        async with StoreFixture(connect, attempts, seed=seed) as fixture:
            fixture.foreign = _Program(url, fixture)
            yield fixture


class _Older(_Skewed):
    """Older code; the places that it makes are brought in step at once, as `schema upgrade` does."""

    @pytest.fixture
    def play(self, monkeypatch: pytest.MonkeyPatch, revisions: Path) -> None:
        play_older(monkeypatch)
        make, files = SqlStore.create, Revisions(revisions)

        async def make_in_step(store: SqlStore) -> None:
            await make(store)
            db: Any = store.db
            async with PostgresSchema(db).locked(20) as locked:
                for relation in store.relations.values():
                    base = relation.table.name.partition("_")[0]
                    for script in files.place_scripts(["0903_pre"], "postgresql", base, relation.table.name):
                        await locked.run(script)

        monkeypatch.setattr(SqlStore, "create", make_in_step)


class _Newer(_Skewed):
    """Newer code; the plain tables still have the nickname, those that it makes have never had one."""

    @pytest.fixture
    def play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        play_newer(monkeypatch)


class TestPlacesOfOlderCode(_Older):
    async def test_they_have_what_both_versions_want(self, fixture: StoreFixture, url: str) -> None:
        users, messages = await fixture.fresh("users"), await fixture.fresh("messages")
        assert {"nickname", "country"} <= shape(url, f"users_{fixture.attempt_of(users)}")
        assert "language" in shape(url, f"messages_{fixture.attempt_of(messages)}")


class TestPlacesOfNewerCode(_Newer):
    async def test_they_never_had_what_post_takes_away(self, fixture: StoreFixture, url: str) -> None:
        users = await fixture.fresh("users")
        assert {"nickname", "country"} & shape(url, f"users_{fixture.attempt_of(users)}") == {"country"}


class TestOlderMessagesPort(_Older, PortSuite):
    pass


class TestOlderUsersPort(_Older, PortSuite):
    domain = "users"


class TestOlderMessageReads(_Older, MessageReadsSuite):
    pass


class TestOlderUserReads(_Older, UserReadsSuite):
    pass


class TestOlderMessageExecute(_Older, MessageExecuteSuite):
    pass


class TestOlderUserExecute(_Older, UserExecuteSuite):
    pass


class TestOlderUserGuard(_Older, ForeignWriterSuite):
    domain = "users"


class TestNewerMessagesPort(_Newer, PortSuite):
    pass


class TestNewerUsersPort(_Newer, PortSuite):
    domain = "users"


class TestNewerMessageReads(_Newer, MessageReadsSuite):
    pass


class TestNewerUserReads(_Newer, UserReadsSuite):
    pass


class TestNewerMessageExecute(_Newer, MessageExecuteSuite):
    pass


class TestNewerUserExecute(_Newer, UserExecuteSuite):
    pass


class TestNewerUserGuard(_Newer, ForeignWriterSuite):
    domain = "users"


async def create_user(url: str, name: str) -> None:
    async with opened(url) as backend:
        await backend.ensure_schema(create=False)
        mutation = CreateUser(IdSource(CLOCK).uuid7(), name, f"{name}@example.org", name, "active", "{}")
        await backend.store("users", 0).execute(mutation, soon())


async def test_both_versions_write_one_table_until_post_and_only_the_newer_one_after_it(
    servers: Servers, revisions: Path
) -> None:
    url = between(servers, revisions)
    assert {"country", "nickname"} <= shape(url, "users")
    with pytest.MonkeyPatch.context() as monkeypatch:
        play_older(monkeypatch)
        await create_user(url, "ann")
    with pytest.MonkeyPatch.context() as monkeypatch:
        play_newer(monkeypatch)
        await create_user(url, "bob")
        assert (await upgraded_main(url, revisions)).state == "ready"
        assert "nickname" not in shape(url, "users")
        await create_user(url, "cid")
    with pytest.MonkeyPatch.context() as monkeypatch:
        play_older(monkeypatch)
        with pytest.raises(SchemaAhead, match="0904_post"):
            await create_user(url, "dan")
    assert ask(url, "SELECT username FROM users ORDER BY 1") == [("ann",), ("bob",), ("cid",)]


async def test_newer_code_refuses_a_schema_from_before_pre(servers: Servers) -> None:
    url = servers.postgres(1)[0].create_database(f"skew_{uuid.uuid4().hex[:8]}")
    make_old(url, stamped=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        play_newer(monkeypatch)
        with pytest.raises(SchemaBehind, match="0001, not 0903_pre"):
            await create_user(url, "ann")


async def test_a_drop_in_a_pre_revision_would_turn_the_suites_red(url: str) -> None:
    # The control: what the linter refuses as contract-in-pre is what older code cannot bear.
    async with opened(url) as backend:
        store = backend.store("users", 999)
        await store.create()
        ask(url, "ALTER TABLE users_999 DROP COLUMN display_name")
        mutation = CreateUser(IdSource(CLOCK).uuid7(), "ann", None, "Ann", "active", "{}")
        with pytest.raises(SchemaBehind, match="display_name"):
            await store.execute(mutation, soon())
        await store.drop()
