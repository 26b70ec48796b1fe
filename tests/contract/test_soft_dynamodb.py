"""The soft stores in DynamoDB keep the promises."""

import uuid
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.dynamodb.backend import create_backend
from tests.contract.soft_suite import SoftFixture, SoftSuite
from tests.servers import Servers

pytestmark = pytest.mark.servers


class TestDynamoDB(SoftSuite):
    @pytest.fixture
    async def fixture(self, servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[SoftFixture]:
        url = BackendUrl.parse(servers.dynamodb().url_of(f"t{uuid.uuid4().hex[:12]}"))

        async def connect() -> Any:
            backend = create_backend("dynamo", url, pool_max=16, clock=SystemClock())
            await backend.open()
            return backend

        made = SoftFixture(connect, zlib.crc32(request.node.name.encode()))
        yield made
        await made.close()
