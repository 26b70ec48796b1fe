"""Every suite on a real Postgres; the foreign program is a plain psycopg connection."""

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from datalayer.clock import SystemClock
from datalayer.control.base import Control
from datalayer.control.connect import open_control
from datalayer.domains.record import Key, Record
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.postgres.backend import create_backend
from datalayer.stores.postgres.partitions import Unit
from datalayer.stores.postgres.search import Method
from datalayer.stores.postgres.stores import PostgresMessages
from datalayer.testing.contract import (
    CatalogueExecuteSuite,
    CatalogueReadsSuite,
    ControlFixture,
    ControlSuite,
    ConversationExecuteSuite,
    ConversationReadsSuite,
    ForeignWriterSuite,
    IntentLogSuite,
    ListingExecuteSuite,
    ListingReadsSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    PortSuite,
    SearchReadsSuite,
    SessionExecuteSuite,
    SessionReadsSuite,
    StoreFixture,
    UserExecuteSuite,
    UserReadsSuite,
    WrittenOutboxSuite,
)
from tests.contract.plain_sql import Statement, deletion, upsert
from tests.servers import Servers

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def url(servers: Servers) -> str:
    return servers.postgres(1)[0].create_database(f"contract_{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


class _Program:
    """A program with a connection of its own."""

    name = "psql"

    def __init__(self, url: str, fixture: StoreFixture) -> None:
        self._url = url
        self._fixture = fixture

    async def upsert(self, store: Any, record: Record) -> None:
        await self._run(upsert(record, self._fixture.attempt_of(store), "%s", binary_ids=False))

    async def delete(self, store: Any, key: Key) -> None:
        await self._run(deletion(key, self._fixture.attempt_of(store), "%s", binary_ids=False))

    async def _run(self, statement: Statement) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, application_name=self.name) as connection:
            await connection.execute(statement[0].encode(), statement[1])


class _ToPartitions(_Program):
    """It writes into the partitions themselves."""

    async def upsert(self, store: Any, record: Record) -> None:
        statement = upsert(record, self._fixture.attempt_of(store), "%s", binary_ids=False)
        await self._run(await self._directly(store, record.key, statement))

    async def delete(self, store: Any, key: Key) -> None:
        statement = deletion(key, self._fixture.attempt_of(store), "%s", binary_ids=False)
        await self._run(await self._directly(store, key[1], statement))

    @staticmethod
    async def _directly(store: PostgresMessages, key: bytes, statement: Statement) -> Statement:
        id = uuid.UUID(bytes=key[16:])
        parts = [part for part, _ in await store.partitions.listed()]
        (part,) = (one for one in parts if (not one.low or one.low <= id) and (not one.high or id < one.high))
        table = store.relations["message"].table.name
        assert f" {table} " in statement[0], "control: the statement names the parent"
        return statement[0].replace(f" {table} ", f" {part.name} "), statement[1]


class _Postgres:
    period: Unit | None = None
    search: Method = "tsvector"
    program: type[_Program] = _Program

    @pytest.fixture
    async def fixture(self, seed: int, url: str, attempts: Iterator[int]) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            backend = create_backend(
                "main",
                BackendUrl.parse(url),
                pool_max=8,
                clock=SystemClock(),
                partition_messages=self.period,
                search=self.search,
            )
            await backend.open()
            await backend.ensure_schema(create=True)
            return backend

        async with StoreFixture(connect, attempts, seed=seed) as fixture:
            fixture.foreign = self.program(url, fixture)
            yield fixture


class _Control:
    @pytest.fixture
    async def fixture(self, seed: int, url: str) -> AsyncIterator[ControlFixture]:
        async def connect() -> Control:
            control = open_control(BackendUrl.parse(url), SystemClock())
            await control.open(create=True)
            return control

        async with ControlFixture(connect, seed=seed) as fixture:
            yield fixture


class TestMessagesPort(_Postgres, PortSuite):
    pass


class TestUsersPort(_Postgres, PortSuite):
    domain = "users"


class TestConversationsPort(_Postgres, PortSuite):
    domain = "conversations"


class TestListingsPort(_Postgres, PortSuite):
    domain = "listings"


class TestSearchPort(_Postgres, PortSuite):
    domain = "search"


class TestSearchReads(_Postgres, SearchReadsSuite):
    pass


class TestSearchByLike(_Postgres, SearchReadsSuite):
    search = "like"


class TestSearchByLikePort(_Postgres, PortSuite):
    domain = "search"
    search = "like"


class TestCataloguePort(_Postgres, PortSuite):
    domain = "catalogue"


class TestCatalogueReads(_Postgres, CatalogueReadsSuite):
    pass


class TestCatalogueExecute(_Postgres, CatalogueExecuteSuite):
    pass


class TestCatalogueGuard(_Postgres, ForeignWriterSuite):
    domain = "catalogue"


class TestListingReads(_Postgres, ListingReadsSuite):
    pass


class TestListingExecute(_Postgres, ListingExecuteSuite):
    pass


class TestListingGuard(_Postgres, ForeignWriterSuite):
    domain = "listings"


class TestMessageReads(_Postgres, MessageReadsSuite):
    pass


class TestUserReads(_Postgres, UserReadsSuite):
    pass


class TestConversationReads(_Postgres, ConversationReadsSuite):
    pass


class TestConversationExecute(_Postgres, ConversationExecuteSuite):
    pass


class TestConversationGuard(_Postgres, ForeignWriterSuite):
    domain = "conversations"


class TestMessageExecute(_Postgres, MessageExecuteSuite):
    pass


class TestUserExecute(_Postgres, UserExecuteSuite):
    pass


class TestMessageGuard(_Postgres, ForeignWriterSuite):
    pass


class _Partitioned(_Postgres):
    period = "month"


class TestPartitionedPort(_Partitioned, PortSuite):
    pass


class TestPartitionedReads(_Partitioned, MessageReadsSuite):
    pass


class TestPartitionedExecute(_Partitioned, MessageExecuteSuite):
    pass


class TestPartitionedGuard(_Partitioned, ForeignWriterSuite):
    pass


class TestPartitionedGuardDirectly(_Partitioned, ForeignWriterSuite):
    program = _ToPartitions


class TestUserGuard(_Postgres, ForeignWriterSuite):
    domain = "users"


class TestControl(_Control, ControlSuite):
    pass


class TestIntents(_Control, IntentLogSuite):
    pass


class TestMessagesOutbox(_Postgres, WrittenOutboxSuite):
    pass


class TestUsersOutbox(_Postgres, WrittenOutboxSuite):
    domain = "users"


class TestSessionsPort(_Postgres, PortSuite):
    domain = "sessions"


class TestSessionReads(_Postgres, SessionReadsSuite):
    pass


class TestSessionExecute(_Postgres, SessionExecuteSuite):
    pass


class TestSessionGuard(_Postgres, ForeignWriterSuite):
    domain = "sessions"
