"""Migrations that share a Postgres database: of two domains at once, and of one domain one after the other."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append
from datalayer.errors import StaleRoute
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.settings import Settings
from datalayer.stores.base import Token
from datalayer.stores.sql.messages import append_record
from tests.integration.live import create_schemas, settings_of
from tests.integration.postgres_places import CLOCK, IDS, database, program
from tests.servers import Servers

pytestmark = pytest.mark.servers


@pytest.fixture
def urls(servers: Servers) -> Iterator[list[str]]:
    with database(servers, "beside") as one, database(servers, "beside") as two, database(servers, "beside") as three:
        yield [one, two, three]


@pytest.fixture
async def settings(urls: list[str]) -> Settings:
    found = settings_of({"a": urls[0], "b": urls[1]}, messages="a", users="a", control=urls[2])
    await create_schemas(found)
    return found


async def test_a_second_domain_s_guard_leaves_the_first_one_s_sound(settings: Settings) -> None:
    async with open_places(settings, CLOCK) as places:
        tokens = {domain: Token("m", domain, 70, 7000) for domain in ("users", "messages")}
        source = places.backends["a"]
        guards = {domain: source.store(domain, 0).guard(70) for domain in tokens}
        await guards["users"].install(tokens["users"], sealed=False)
        await guards["messages"].install(tokens["messages"], sealed=False)
        assert not (await guards["users"].state()).tampered
        await guards["users"].fence(tokens["users"], 1, 20.0, 5.0)
        await guards["users"].seal(tokens["users"], 1)
        for domain, guard in guards.items():
            await guard.remove(tokens[domain], keep_fence=False)


async def test_what_a_domain_left_is_purged_while_its_way_back_is_under_way(settings: Settings) -> None:
    async def coordinate(until: Until, to: str | None) -> None:
        options = MigrateOptions(until=until, yes=True, foreign_writers="refuse")
        async with open_places(settings, SystemClock()) as places:
            coordinator = Coordinator(places, "messages", holder=uuid4().hex, options=options, patience_s=5.0)
            await (coordinator.purge() if to is None else coordinator.migrate(to))

    conversation, ann = uuid4(), uuid4()
    async with DataLayer.open(settings) as layer:
        message = await layer.messages.append(conversation, sender_id=ann, body="hi")
        await coordinate(Until.COMPLETE, "b")
        await coordinate(Until.VERIFIED, "a")
        await coordinate(Until.COMPLETE, None)
        await layer.messages.edit(conversation, message.id, body="still here")
    async with DataLayer.open(settings) as layer:  # users are still there: the database is in use
        await coordinate(Until.COMPLETE, "a")
        found = await layer.messages.get(conversation, message.id)
        assert found is not None
        assert found.body == "still here"


async def test_applies_side_by_side_share_no_row_lock_and_none_lands_behind_the_end(
    settings: Settings, urls: list[str]
) -> None:
    token = Token("m", "messages", 71, 7100)
    async with open_places(settings, CLOCK) as places:
        store = places.backends["b"].store("messages", 71)
        await store.create()
        guard = store.guard(71)
        await guard.install(token, sealed=True)
        async with program(urls[1], isolation="READ_COMMITTED") as watcher:
            await watcher.execute("SELECT 1 FROM datalayer_fence WHERE attempt = 71 FOR UPDATE")
            async with asyncio.timeout(5):  # with a lock of the fence's row it would wait for the watcher
                await guard.apply([append_record(Append(uuid4(), IDS.uuid7(), uuid4(), "hi"))])
        async with program(urls[1], isolation="READ_COMMITTED") as slow:  # an apply that has not committed yet
            await slow.execute(
                "SELECT pg_advisory_xact_lock_shared(hashtextextended('datalayer_apply_messages_71', 0))"
            )
            ending = asyncio.ensure_future(guard.remove(token, keep_fence=False))
            await asyncio.sleep(0.3)
            assert not ending.done()
        await ending
        with pytest.raises(StaleRoute):
            await guard.apply([append_record(Append(uuid4(), IDS.uuid7(), uuid4(), "late"))])
        await store.drop()
