"""The suites of messages on a real Cassandra."""

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.cassandra.backend import create_backend
from datalayer.testing.contract import MessageReadsSuite, OutboxSuite, PortSuite, StoreFixture
from tests.servers import Servers

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def url(servers: Servers) -> BackendUrl:
    return BackendUrl.parse(servers.cassandra().create_keyspace(f"contract_{uuid.uuid4().hex[:8]}"))


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


class _Cassandra:
    @pytest.fixture
    async def fixture(self, seed: int, url: BackendUrl, attempts: Iterator[int]) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            backend = create_backend("cassandra", url, pool_max=10, clock=SystemClock())
            await backend.open()
            return backend

        async with StoreFixture(connect, attempts, seed=seed) as fixture:
            yield fixture


class TestMessagesPort(_Cassandra, PortSuite):
    pass


class TestMessageReads(_Cassandra, MessageReadsSuite):
    pass


class TestMessagesOutbox(_Cassandra, OutboxSuite):
    pass
