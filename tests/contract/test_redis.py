"""The suites of sessions on a real Redis, alone and as a cluster."""

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.registry import DOMAINS
from datalayer.routing.lastwriter import LastWriterAuthority
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.redis.backend import RedisBackend
from datalayer.testing.contract import PortSuite, SessionExecuteSuite, SessionReadsSuite, StoreFixture
from tests.servers import Servers

pytestmark = pytest.mark.servers
NUMBERS = itertools.count(1)


class _Authority(RedisBackend):
    """Its stores run mutations, as an open DataLayer has them do at rest."""

    def store(self, domain: str, attempt: int) -> Any:
        store = super().store(domain, attempt)
        store.execute = LastWriterAuthority(
            store, DOMAINS[domain], SystemClock(), process_number=next(NUMBERS), intents=None, check=None
        ).execute
        return store


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


@pytest.fixture(scope="module")
def server_url(servers: Servers) -> str:
    return servers.redis().create_database()


@pytest.fixture(scope="module")
def cluster_url(servers: Servers) -> str:
    return f"{servers.redis_cluster().url}/?prefix=contract-{uuid.uuid4().hex[:8]}"


class _Redis:
    @pytest.fixture
    async def fixture(self, seed: int, url: str, attempts: Iterator[int]) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            backend = _Authority("redis", BackendUrl.parse(url), in_flight_max=10, clock=SystemClock())
            await backend.open()
            return backend

        async with StoreFixture(connect, attempts, seed=seed) as fixture:
            yield fixture


class _Server(_Redis):
    @pytest.fixture
    def url(self, server_url: str) -> str:
        return server_url


class _Cluster(_Redis):
    @pytest.fixture
    def url(self, cluster_url: str) -> str:
        return cluster_url


class TestSessionsPort(_Server, PortSuite):
    domain = "sessions"


class TestSessionReads(_Server, SessionReadsSuite):
    pass


class TestSessionExecute(_Server, SessionExecuteSuite):
    exact = False


class TestClusterSessionsPort(_Cluster, PortSuite):
    domain = "sessions"


class TestClusterSessionReads(_Cluster, SessionReadsSuite):
    pass


class TestClusterSessionExecute(_Cluster, SessionExecuteSuite):
    exact = False
