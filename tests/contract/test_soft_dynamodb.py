"""The soft stores in DynamoDB keep the promises."""

import uuid
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.dynamodb.backend import create_backend
from tests.contract.soft_suite import SoftFixture, SoftSuite, soon
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

    async def test_an_older_item_does_not_bring_the_end_of_its_key_nearer(self, fixture: SoftFixture) -> None:
        store: Any = await fixture.store()
        key, gone = fixture.key(), list[int]()
        for item, at in (("web", 0), ("phone", -86_400), ("tablet", 5)):
            await store.beat(fixture.beat(key, item, at), soon())
            found = await store._backend.call(
                "get_item", store._table, Key={"k": {"B": key.bytes}}, ConsistentRead=True
            )
            gone.append(int(found["Item"]["gone"]["N"]))
        assert (gone[1] - gone[0], gone[2] - gone[1]) == (0, 5)
