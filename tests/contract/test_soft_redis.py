"""The soft stores in a Redis server and in a cluster keep the promises."""

import zlib
from collections.abc import AsyncIterator

import pytest

from tests.contract.soft_suite import SoftFixture, SoftSuite
from tests.integration.redis_backends import prefixed, unopened
from tests.servers import Servers

pytestmark = pytest.mark.servers


def fixture_of(url: str, name: str) -> SoftFixture:
    async def connect():  # type: ignore[no-untyped-def] # noqa: ANN202 - a backend
        backend = unopened(url)
        await backend.open()
        return backend

    return SoftFixture(connect, zlib.crc32(name.encode()))


class TestServer(SoftSuite):
    @pytest.fixture
    async def fixture(self, servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[SoftFixture]:
        made = fixture_of(servers.redis().create_database(), request.node.name)
        yield made
        await made.close()


class TestCluster(SoftSuite):
    @pytest.fixture
    async def fixture(self, servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[SoftFixture]:
        made = fixture_of(prefixed(servers.redis_cluster().url), request.node.name)
        yield made
        await made.close()
