"""Every suite on a SQLite file; the foreign program is a plain sqlite3 connection."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.record import Key, Record
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.sqlite.backend import create_backend
from datalayer.testing.contract import (
    CatalogueExecuteSuite,
    CatalogueReadsSuite,
    ConversationExecuteSuite,
    ConversationReadsSuite,
    ForeignWriterSuite,
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
from tests.conftest import TIER
from tests.contract.plain_sql import deletion, upsert


class _Program:
    """A program with a connection of its own."""

    name = "a program other than datalayer"
    """All that a SQLite file can tell of who writes it."""

    def __init__(self, path: Path, fixture: StoreFixture) -> None:
        self._path = path
        self._fixture = fixture

    async def upsert(self, store: Any, record: Record) -> None:
        await asyncio.to_thread(self._run, *upsert(record, self._fixture.attempt_of(store), "?"))

    async def delete(self, store: Any, key: Key) -> None:
        await asyncio.to_thread(self._run, *deletion(key, self._fixture.attempt_of(store), "?"))

    def _run(self, statement: str, values: list[Any]) -> None:
        connection = sqlite3.connect(self._path, timeout=5.0)
        try:
            with connection:
                connection.execute(statement, values)
        finally:
            connection.close()


class _Sqlite:
    @pytest.fixture
    async def fixture(self, seed: int, memory_path: Path) -> AsyncIterator[StoreFixture]:
        path = memory_path / "contract.db"

        async def connect() -> Backend:
            backend = create_backend("main", BackendUrl.parse(f"sqlite:///{path}"), pool_max=4, clock=SystemClock())
            await backend.open()
            await backend.ensure_schema(create=True)
            return backend

        async with StoreFixture(connect, seed=seed) as fixture:
            fixture.foreign = _Program(path, fixture)
            yield fixture


class _LongSqlite(_Sqlite):
    __test__ = TIER != "check"
    """What files say of one domain's port and guard they say of another's: the rest is for `make test`."""


class TestMessagesPort(_Sqlite, PortSuite):
    pass


class TestUsersPort(_Sqlite, PortSuite):
    domain = "users"


class TestConversationsPort(_LongSqlite, PortSuite):
    domain = "conversations"


class TestListingsPort(_LongSqlite, PortSuite):
    domain = "listings"


class TestSearchPort(_LongSqlite, PortSuite):
    domain = "search"


class TestSearchReads(_Sqlite, SearchReadsSuite):
    pass


class TestSearchReadsOfFrequentWords(_Sqlite, SearchReadsSuite):
    """Every word is one that many messages hold; ``rooms``: up to so many conversations each row is asked by itself."""

    rooms = 64

    @pytest.fixture(autouse=True)
    def frequent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datalayer.stores.sqlite.search.FEW", 0)
        monkeypatch.setattr("datalayer.stores.sqlite.search.ROOMS", self.rooms)


class TestSearchReadsOfManyRooms(TestSearchReadsOfFrequentWords):
    rooms = 0


class TestCataloguePort(_LongSqlite, PortSuite):
    domain = "catalogue"


class TestCatalogueReads(_Sqlite, CatalogueReadsSuite):
    pass


class TestCatalogueExecute(_Sqlite, CatalogueExecuteSuite):
    pass


class TestCatalogueGuard(_LongSqlite, ForeignWriterSuite):
    domain = "catalogue"


class TestListingReads(_Sqlite, ListingReadsSuite):
    pass


class TestListingExecute(_Sqlite, ListingExecuteSuite):
    pass


class TestListingGuard(_LongSqlite, ForeignWriterSuite):
    domain = "listings"


class TestMessageReads(_Sqlite, MessageReadsSuite):
    pass


class TestUserReads(_Sqlite, UserReadsSuite):
    pass


class TestConversationReads(_Sqlite, ConversationReadsSuite):
    pass


class TestConversationExecute(_Sqlite, ConversationExecuteSuite):
    pass


class TestConversationGuard(_LongSqlite, ForeignWriterSuite):
    domain = "conversations"


class TestMessageExecute(_Sqlite, MessageExecuteSuite):
    pass


class TestUserExecute(_Sqlite, UserExecuteSuite):
    pass


class TestMessageGuard(_Sqlite, ForeignWriterSuite):
    pass


class TestUserGuard(_Sqlite, ForeignWriterSuite):
    domain = "users"


class TestMessagesOutbox(_Sqlite, WrittenOutboxSuite):
    pass


class TestUsersOutbox(_Sqlite, WrittenOutboxSuite):
    domain = "users"


class TestSessionsPort(_LongSqlite, PortSuite):
    domain = "sessions"


class TestSessionReads(_Sqlite, SessionReadsSuite):
    pass


class TestSessionExecute(_Sqlite, SessionExecuteSuite):
    pass


class TestSessionGuard(_LongSqlite, ForeignWriterSuite):
    domain = "sessions"
