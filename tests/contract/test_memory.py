"""Every suite on the in-memory product, in both of its classes."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from datalayer.clock import SystemClock
from datalayer.stores.base import AuthorityClass, Backend
from datalayer.stores.memory import MemoryBackend, MemoryServer
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
    OutboxSuite,
    PortSuite,
    SearchReadsSuite,
    SessionExecuteSuite,
    SessionReadsSuite,
    StoreFixture,
    UserExecuteSuite,
    UserReadsSuite,
    WrittenOutboxSuite,
)
from tests.contract.memory_program import Program


class _Memory:
    authority: ClassVar[AuthorityClass] = "transactional"

    @pytest.fixture
    async def fixture(self, seed: int) -> AsyncIterator[StoreFixture]:
        server = MemoryServer("memory", SystemClock(), authority_class=self.authority)

        async def connect() -> Backend:
            backend = MemoryBackend(server)
            await backend.open()
            return backend

        async with StoreFixture(connect, seed=seed, foreign=Program(server)) as fixture:
            yield fixture


class TestMessagesPort(_Memory, PortSuite):
    pass


class TestUsersPort(_Memory, PortSuite):
    domain = "users"


class TestLastWriterMessagesPort(_Memory, PortSuite):
    authority = "last_writer"


class TestLastWriterUsersPort(_Memory, PortSuite):
    domain = "users"
    authority = "last_writer"


class TestConversationsPort(_Memory, PortSuite):
    domain = "conversations"


class TestListingsPort(_Memory, PortSuite):
    domain = "listings"


class TestSearchPort(_Memory, PortSuite):
    domain = "search"


class TestSearchReads(_Memory, SearchReadsSuite):
    pass


class TestCataloguePort(_Memory, PortSuite):
    domain = "catalogue"


class TestCatalogueReads(_Memory, CatalogueReadsSuite):
    pass


class TestCatalogueExecute(_Memory, CatalogueExecuteSuite):
    pass


class TestCatalogueGuard(_Memory, ForeignWriterSuite):
    domain = "catalogue"


class TestListingReads(_Memory, ListingReadsSuite):
    pass


class TestListingExecute(_Memory, ListingExecuteSuite):
    pass


class TestListingGuard(_Memory, ForeignWriterSuite):
    domain = "listings"


class TestMessageReads(_Memory, MessageReadsSuite):
    pass


class TestUserReads(_Memory, UserReadsSuite):
    pass


class TestLastWriterMessageReads(_Memory, MessageReadsSuite):
    authority = "last_writer"


class TestLastWriterUserReads(_Memory, UserReadsSuite):
    authority = "last_writer"


class TestConversationReads(_Memory, ConversationReadsSuite):
    pass


class TestConversationExecute(_Memory, ConversationExecuteSuite):
    pass


class TestConversationGuard(_Memory, ForeignWriterSuite):
    domain = "conversations"


class TestMessageExecute(_Memory, MessageExecuteSuite):
    pass


class TestUserExecute(_Memory, UserExecuteSuite):
    pass


class TestMessageGuard(_Memory, ForeignWriterSuite):
    pass


class TestUserGuard(_Memory, ForeignWriterSuite):
    domain = "users"


class TestMessagesOutbox(_Memory, WrittenOutboxSuite):
    pass


class TestUsersOutbox(_Memory, WrittenOutboxSuite):
    domain = "users"


class TestLastWriterMessagesOutbox(_Memory, OutboxSuite):
    authority = "last_writer"


class TestSessionsPort(_Memory, PortSuite):
    domain = "sessions"


class TestSessionReads(_Memory, SessionReadsSuite):
    pass


class TestSessionExecute(_Memory, SessionExecuteSuite):
    pass


class TestSessionGuard(_Memory, ForeignWriterSuite):
    domain = "sessions"


class TestLastWriterSessionsPort(_Memory, PortSuite):
    domain = "sessions"
    authority = "last_writer"


class TestLastWriterSessionReads(_Memory, SessionReadsSuite):
    authority = "last_writer"
