"""Every suite on slot groups over several members, in memory and in SQLite files."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Key, Record
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.sqlite.backend import create_backend
from datalayer.testing.contract import (
    CatalogueExecuteSuite,
    CatalogueReadsSuite,
    ConversationExecuteSuite,
    ConversationReadsSuite,
    ListingExecuteSuite,
    ListingReadsSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    PortSuite,
    SessionExecuteSuite,
    SessionReadsSuite,
    StoreFixture,
    UserExecuteSuite,
)
from tests.conftest import TIER
from tests.contract.plain_sql import Statement, deletion, upsert
from tests.contract.sharded_place import ShardedClient, place_of
from tests.contract.sharded_suites import (
    ShardedCatalogueGuardSuite,
    ShardedConversationGuardSuite,
    ShardedListingGuardSuite,
    ShardedMessageGuardSuite,
    ShardedSessionGuardSuite,
    ShardedUserGuardSuite,
    ShardedUserReadsSuite,
)


class _MemoryProgram:
    """A program that writes the servers' tables without a client."""

    name = "psql"

    def __init__(self, servers: dict[str, MemoryServer]) -> None:
        self._servers = servers

    async def upsert(self, store: Any, record: Record) -> None:
        place = place_of(store, record.ident)
        server = self._servers[place.backend.partition("/")[2]]
        server.foreign_write((store.domain, place.attempt), record, program=self.name)

    async def delete(self, store: Any, key: Key) -> None:
        place = place_of(store, key)
        server = self._servers[place.backend.partition("/")[2]]
        server.foreign_delete((store.domain, place.attempt), key, program=self.name)


class _Memory:
    @pytest.fixture
    async def fixture(self, seed: int) -> AsyncIterator[StoreFixture]:
        clock = SystemClock()
        control = MemoryControlServer("control", clock)
        servers = {name: MemoryServer(name, clock) for name in ("s0", "s1", "s2")}

        async def connect() -> Backend:
            members = {name: MemoryBackend(server) for name, server in servers.items()}
            client = ShardedClient(members, control, clock, groups=8)
            await client.open()
            return client

        async with StoreFixture(connect, seed=seed, foreign=_MemoryProgram(servers)) as fixture:
            yield fixture


class _SqliteProgram:
    """A program with connections of its own."""

    name = "a program other than datalayer"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def upsert(self, store: Any, record: Record) -> None:
        place = place_of(store, record.ident)
        await asyncio.to_thread(self._run, place.backend, upsert(record, place.attempt, "?"))

    async def delete(self, store: Any, key: Key) -> None:
        place = place_of(store, key)
        await asyncio.to_thread(self._run, place.backend, deletion(key, place.attempt, "?"))

    def _run(self, member: str, statement: Statement) -> None:
        connection = sqlite3.connect(self._folder / f"{member.partition('/')[2]}.db", timeout=5.0)
        try:
            with connection:
                connection.execute(*statement)
        finally:
            connection.close()


class _Sqlite:
    @pytest.fixture
    async def fixture(self, seed: int, memory_path: Path) -> AsyncIterator[StoreFixture]:
        clock = SystemClock()
        control = MemoryControlServer("control", clock)

        async def connect() -> Backend:
            members = {}
            for name in ("s0", "s1"):
                url = BackendUrl.parse(f"sqlite:///{memory_path}/{name}.db")
                members[name] = create_backend(f"shards/{name}", url, pool_max=2, clock=clock)
            client = ShardedClient(members, control, clock, groups=4)
            await client.open()
            return client

        async with StoreFixture(connect, seed=seed, foreign=_SqliteProgram(memory_path)) as fixture:
            yield fixture


class _LongSqlite(_Sqlite):
    __test__ = TIER != "check"
    """Files take twenty seconds in all: one suite of them in `make check`, the others in `make test`."""


class TestMessagesPort(_Memory, PortSuite):
    pass


class TestUsersPort(_Memory, PortSuite):
    domain = "users"


class TestConversationsPort(_Memory, PortSuite):
    domain = "conversations"


class TestListingsPort(_Memory, PortSuite):
    domain = "listings"


class TestCataloguePort(_Memory, PortSuite):
    domain = "catalogue"


class TestCatalogueReads(_Memory, CatalogueReadsSuite):
    pass


class TestCatalogueExecute(_Memory, CatalogueExecuteSuite):
    pass


class TestCatalogueGuard(_Memory, ShardedCatalogueGuardSuite):
    pass


class TestConversationReads(_Memory, ConversationReadsSuite):
    pass


class TestListingReads(_Memory, ListingReadsSuite):
    pass


class TestConversationExecute(_Memory, ConversationExecuteSuite):
    pass


class TestListingExecute(_Memory, ListingExecuteSuite):
    pass


class TestConversationGuard(_Memory, ShardedConversationGuardSuite):
    pass


class TestListingGuard(_Memory, ShardedListingGuardSuite):
    pass


class TestMessageReads(_Memory, MessageReadsSuite):
    pass


class TestUserReads(_Memory, ShardedUserReadsSuite):
    pass


class TestMessageExecute(_Memory, MessageExecuteSuite):
    pass


class TestUserExecute(_Memory, UserExecuteSuite):
    pass


class TestMessageGuard(_Memory, ShardedMessageGuardSuite):
    pass


class TestUserGuard(_Memory, ShardedUserGuardSuite):
    pass


class TestSqliteMessagesPort(_LongSqlite, PortSuite):
    pass


class TestSqliteUsersPort(_LongSqlite, PortSuite):
    domain = "users"


class TestSqliteConversationsPort(_LongSqlite, PortSuite):
    domain = "conversations"


class TestSqliteListingsPort(_LongSqlite, PortSuite):
    domain = "listings"


class TestSqliteCataloguePort(_LongSqlite, PortSuite):
    domain = "catalogue"


class TestSqliteCatalogueReads(_LongSqlite, CatalogueReadsSuite):
    pass


class TestSqliteCatalogueExecute(_LongSqlite, CatalogueExecuteSuite):
    pass


class TestSqliteCatalogueGuard(_LongSqlite, ShardedCatalogueGuardSuite):
    pass


class TestSqliteConversationReads(_LongSqlite, ConversationReadsSuite):
    pass


class TestSqliteListingReads(_LongSqlite, ListingReadsSuite):
    pass


class TestSqliteConversationExecute(_LongSqlite, ConversationExecuteSuite):
    pass


class TestSqliteListingExecute(_LongSqlite, ListingExecuteSuite):
    pass


class TestSqliteConversationGuard(_LongSqlite, ShardedConversationGuardSuite):
    pass


class TestSqliteListingGuard(_LongSqlite, ShardedListingGuardSuite):
    pass


class TestSqliteMessageReads(_LongSqlite, MessageReadsSuite):
    pass


class TestSqliteUserReads(_Sqlite, ShardedUserReadsSuite):
    pass


class TestSqliteMessageExecute(_LongSqlite, MessageExecuteSuite):
    pass


class TestSqliteUserExecute(_LongSqlite, UserExecuteSuite):
    pass


class TestSqliteMessageGuard(_LongSqlite, ShardedMessageGuardSuite):
    pass


class TestSqliteUserGuard(_LongSqlite, ShardedUserGuardSuite):
    pass


class TestSessionsPort(_Memory, PortSuite):
    domain = "sessions"


class TestSessionReads(_Memory, SessionReadsSuite):
    pass


class TestSessionExecute(_Memory, SessionExecuteSuite):
    pass


class TestSessionGuard(_Memory, ShardedSessionGuardSuite):
    domain = "sessions"
