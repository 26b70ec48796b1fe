"""The suites of search on a real OpenSearch."""

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.opensearch.backend import create_backend
from datalayer.testing.contract import PortSuite, SearchReadsSuite, StoreFixture
from tests.servers import Servers

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def url(servers: Servers) -> BackendUrl:
    return BackendUrl.parse(servers.opensearch().url_of(f"contract-{uuid.uuid4().hex[:8]}"))


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


class _OpenSearch:
    @pytest.fixture
    async def fixture(self, seed: int, url: BackendUrl, attempts: Iterator[int]) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            backend = create_backend("search", url, pool_max=8, clock=SystemClock())
            await backend.open()
            return backend

        async with StoreFixture(connect, attempts, seed=seed) as fixture:
            yield fixture


class TestSearchPort(_OpenSearch, PortSuite):
    domain = "search"


class TestSearchReads(_OpenSearch, SearchReadsSuite):
    pass
