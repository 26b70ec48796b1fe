"""Every suite on slot groups over three real Postgres databases: users in `make test`, messages in `make deep`.

A place is four groups of tables, and their statements are put together for each client: a test takes a second or two.
"""

import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Key, Record
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.postgres.backend import create_backend
from datalayer.testing.contract import (
    MessageExecuteSuite,
    MessageReadsSuite,
    PortSuite,
    StoreFixture,
    UserExecuteSuite,
)
from tests.contract.plain_sql import Statement, deletion, upsert
from tests.contract.regional_suite import RegionSuite
from tests.contract.sharded_place import ShardedClient, place_of
from tests.contract.sharded_suites import ShardedMessageGuardSuite, ShardedUserGuardSuite, ShardedUserReadsSuite
from tests.servers import PostgresServer, Servers

pytestmark = pytest.mark.servers


class _Ground:
    """Databases, and a control store that knows of the places in them: those with regions have another than those without."""

    def __init__(self, server: PostgresServer, regions: dict[str, str]) -> None:
        self.regions = regions
        self.urls = {
            name: server.create_database(f"contract_{name}_{uuid.uuid4().hex[:8]}") for name in ("s0", "s1", "s2")
        }
        self.control = MemoryControlServer("control", SystemClock())
        self.attempts = itertools.count(2)


@pytest.fixture(scope="module")
def plain(servers: Servers) -> _Ground:
    return _Ground(servers.postgres(1)[0], {})


@pytest.fixture(scope="module")
def regional(servers: Servers) -> _Ground:
    return _Ground(servers.postgres(1)[0], {"s0": "eu", "s1": "us", "s2": "us"})


class _Program:
    """A program with connections of its own."""

    name = "psql"

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls

    async def upsert(self, store: Any, record: Record) -> None:
        place = place_of(store, record.ident)
        await self._run(place.backend, upsert(record, place.attempt, "%s", binary_ids=False))

    async def delete(self, store: Any, key: Key) -> None:
        place = place_of(store, key)
        await self._run(place.backend, deletion(key, place.attempt, "%s", binary_ids=False))

    async def _run(self, member: str, statement: Statement) -> None:
        url = self._urls[member.partition("/")[2]]
        async with await psycopg.AsyncConnection.connect(url, application_name=self.name) as connection:
            await connection.execute(statement[0].encode(), statement[1])


async def _fixtures(ground: _Ground, seed: int) -> AsyncIterator[StoreFixture]:
    clock = SystemClock()

    async def connect() -> Backend:
        members = {
            name: create_backend(f"shards/{name}", BackendUrl.parse(url), pool_max=6, clock=clock)
            for name, url in ground.urls.items()
        }
        for member in members.values():
            await member.open()
            await member.ensure_schema(create=True)
        client = ShardedClient(members, ground.control, clock, groups=4, regions=ground.regions)
        await client.open()
        return client

    foreign, regions = _Program(ground.urls), sorted(set(ground.regions.values()))
    async with StoreFixture(connect, ground.attempts, seed=seed, foreign=foreign, regions=regions) as fixture:
        yield fixture


class _Postgres:
    @pytest.fixture
    async def fixture(self, seed: int, plain: _Ground) -> AsyncIterator[StoreFixture]:
        async for fixture in _fixtures(plain, seed):
            yield fixture


class _Regional:
    @pytest.fixture
    async def fixture(self, seed: int, regional: _Ground) -> AsyncIterator[StoreFixture]:
        async for fixture in _fixtures(regional, seed):
            yield fixture


@pytest.mark.deep
class TestMessagesPort(_Postgres, PortSuite):
    pass


class TestUsersPort(_Postgres, PortSuite):
    domain = "users"


@pytest.mark.deep
class TestMessageReads(_Postgres, MessageReadsSuite):
    pass


class TestUserReads(_Postgres, ShardedUserReadsSuite):
    pass


@pytest.mark.deep
class TestMessageExecute(_Postgres, MessageExecuteSuite):
    pass


class TestUserExecute(_Postgres, UserExecuteSuite):
    pass


@pytest.mark.deep
class TestMessageGuard(_Postgres, ShardedMessageGuardSuite):
    pass


class TestUserGuard(_Postgres, ShardedUserGuardSuite):
    pass


class TestRegions(_Regional, RegionSuite):
    pass


class TestRegionalReads(_Regional, ShardedUserReadsSuite):
    pass


@pytest.mark.deep
class TestRegionalPort(_Regional, PortSuite):
    domain = "users"


@pytest.mark.deep
class TestRegionalExecute(_Regional, UserExecuteSuite):
    pass
