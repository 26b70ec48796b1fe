"""Whole lives of search on real servers: every ordered pair of index stores, and sources that move meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.layer import DataLayer, make_backends
from datalayer.migrators.plan import Until
from datalayer.settings import parse_settings
from tests.integration.live import create_schemas
from tests.pairs import cases
from tests.servers import Servers
from tests.unit.index_world import coordinator, in_step

pytestmark = pytest.mark.servers
Place = Callable[[str], str]
INDEXES = ("memory", "sqlite", "postgres", "opensearch")
ROOMS = 5
HOLD_MS = 20_000.0
"""A busy machine is no reason to fail: how long holds are is another test's affair."""


@pytest.fixture
def place(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The URL of an empty place of a kind."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})

    def url(kind: str) -> str:
        name = f"search_{uuid4().hex[:12]}"
        if kind == "postgres":
            return servers.postgres(1)[0].create_database(name)
        if kind == "cassandra":
            return servers.cassandra().create_keyspace(name)
        if kind == "opensearch":
            return servers.opensearch().url_of(name.replace("_", "-"))
        return "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/{name}.sqlite"

    return url


class Writers:
    """Writers of messages and users, with no pause worth the name; what they met."""

    def __init__(self, layer: DataLayer) -> None:
        self.layer = layer
        self.rooms = [uuid4() for _ in range(ROOMS)]
        self.stopped = False
        self.writes = 0

    async def write(self, number: int) -> None:
        """Until it is stopped. Raises what a call raises: nothing may."""
        chance = random.Random(number)
        mine: list[tuple[UUID, UUID]] = []
        sender = await self.layer.users.create(username=f"u{uuid4().hex[:12]}", display_name="Nobody Yet")
        while not self.stopped:
            draw = chance.random()
            if draw < 0.6 or not mine:
                body = f"word{self.writes} of writer{number}"
                message = await self.layer.messages.append(chance.choice(self.rooms), sender_id=sender.id, body=body)
                mine.append((message.conversation_id, message.id))
            elif draw < 0.8:
                await self.layer.messages.edit(*chance.choice(mine), body=f"edited{self.writes}")
            elif draw < 0.95:
                await self.layer.messages.delete(*mine.pop(chance.randrange(len(mine))))
            else:
                await self.layer.users.update(sender.id, display_name=f"Name{self.writes} Changed")
            self.writes += 1
            await asyncio.sleep(0.01)


@asynccontextmanager
async def writing(layer: DataLayer) -> AsyncIterator[Writers]:
    """Two writers meanwhile; their errors are raised at the end."""
    writers = Writers(layer)
    tasks = [asyncio.create_task(writers.write(number)) for number in range(2)]
    try:
        yield writers
    finally:
        writers.stopped = True
        await asyncio.gather(*tasks)


async def opened_settings(urls: dict[str, str], control: str, **routes: str) -> Any:
    settings = parse_settings(
        {
            "backends": {name: {"url": url} for name, url in urls.items()},
            "routes": {"messages": "main", "users": "main", **routes},
            "control": {"url": control},
        }
    )
    await create_schemas(settings)
    return settings


@pytest.mark.life_cycle("search")
@pytest.mark.parametrize(("source", "target"), cases(INDEXES, itself={"opensearch"}))
async def test_an_index_goes_over_and_back_and_over_under_traffic(place: Place, source: str, target: str) -> None:
    """Every ordered pair; of one kind, the first way is a rebuild where it is, and the second to another place."""
    urls = {"main": place("sqlite"), "a": place(source), "b": place(target)}
    settings = await opened_settings(urls, place("sqlite"), search="a")
    async with DataLayer.open(settings) as layer, writing(layer) as writers:
        if source == target:
            await coordinator(layer, "search", Until.COMPLETE).migrate("a")
            await coordinator(layer, "search").purge()
        await coordinator(layer, "search", Until.VERIFIED).migrate("b")
        assert (await coordinator(layer, "search").verify())["clean"]
        await coordinator(layer, "search").cutover()
        await coordinator(layer, "search").rollback()
        await coordinator(layer, "search").cancel()
        await coordinator(layer, "search", Until.COMPLETE).migrate("b")
        await coordinator(layer, "search").purge()
        writers.stopped = True
        await asyncio.sleep(0.01)
        await in_step(layer.places)
        assert layer.places.routing_of("search").authority.backend == "b"
        assert writers.writes > 20
        await found_as_written(layer, writers.rooms)


async def found_as_written(layer: DataLayer, rooms: list[UUID]) -> None:
    """Every message that is there is found by its own words."""
    seen = 0
    for room in rooms:
        page = await layer.messages.history(room, limit=8)
        for message in page.items:
            hits = await layer.search.messages(f'"{message.body}"', conversations=[room], limit=50)
            assert message.id in {hit.message.id for hit in hits.items}, message
            seen += 1
    assert seen > 0


@pytest.mark.parametrize(("source", "target"), [("postgres", "cassandra"), ("cassandra", "postgres")])
async def test_an_index_follows_messages_between_sql_and_cassandra(place: Place, source: str, target: str) -> None:
    urls = {"main": place("sqlite"), "a": place(source), "b": place(target), "index": place("opensearch")}
    settings = await opened_settings(urls, place("postgres"), messages="a", search="index")
    async with DataLayer.open(settings) as layer, writing(layer) as writers:
        await asyncio.sleep(0.2)
        await coordinator(layer, "messages", max_hold_ms=HOLD_MS).migrate("b")
        await coordinator(layer, "search", Until.COMPLETE).migrate("index")
        await coordinator(layer, "messages", max_hold_ms=HOLD_MS).rollback()
        await coordinator(layer, "messages", Until.COMPLETE, max_hold_ms=HOLD_MS).migrate("b")
        await coordinator(layer, "messages", max_hold_ms=HOLD_MS).purge()
        writers.stopped = True
        await asyncio.sleep(0.01)
        await in_step(layer.places)
        await found_as_written(layer, writers.rooms)


def test_every_kind_of_index_store_is_paired(place: Place) -> None:
    """A product that holds search and is not in the list above would never have been moved to."""
    kinds = {"memory": "memory://", "sqlite": place("sqlite"), "postgres": "postgresql://h/d"}
    kinds |= {"opensearch": "opensearch+http://h:9200", "cassandra": "cassandra://h/k"}
    document = {"backends": {name: {"url": url} for name, url in kinds.items()}, "control": {"url": place("sqlite")}}
    backends = make_backends(parse_settings(document), SystemClock())
    assert {name for name, backend in backends.items() if backend.refuses("search") is None} == set(INDEXES)
