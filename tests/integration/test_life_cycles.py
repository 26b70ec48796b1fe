"""Whole life cycles on real servers: over, back, over again, verified, complete - quiet and under traffic."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.errors import AlreadyExists, NotFound, PreconditionFailed
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.routing import route as routes
from datalayer.settings import Settings
from tests.integration.live import coordinator_of, create_schemas, life_cycle, preload, settings_of, traffic
from tests.integration.talk import talk
from tests.servers import Servers

pytestmark = pytest.mark.servers
Place = Callable[[str], str]


@pytest.fixture
def place(servers: Servers, tmp_path: Path) -> Place:
    """The URL of an empty place of a kind."""

    def url(kind: str) -> str:
        name = f"life_{uuid4().hex[:12]}"
        if kind == "postgres":
            return servers.postgres(1)[0].create_database(name)
        if kind == "cassandra":
            return servers.cassandra().create_keyspace(name)
        return f"sqlite:///{tmp_path}/{name}.sqlite"

    return url


async def settings_for(place: Place, source: str, target: str, control: str) -> Settings:
    urls = {"a": place(source), "b": place(target), "side": place(control)}
    settings = settings_of(urls, messages="a", users="side", control=place(control))
    await create_schemas(settings)
    return settings


@pytest.mark.parametrize(
    ("source", "target", "control"),
    [
        ("sqlite", "sqlite", "sqlite"),
        ("sqlite", "postgres", "sqlite"),
        ("postgres", "sqlite", "postgres"),
        ("postgres", "postgres", "postgres"),
        ("postgres", "cassandra", "postgres"),
        ("cassandra", "postgres", "postgres"),
        ("sqlite", "cassandra", "sqlite"),
    ],
)
async def test_messages_go_over_and_back_and_over_under_traffic(
    place: Place, source: str, target: str, control: str
) -> None:
    settings = await settings_for(place, source, target, control)
    await preload(settings, 1001)
    async with traffic(settings) as live:
        holds = await life_cycle(settings, target="b", live=live)
    assert len(holds) == 3
    assert live.errors == []
    assert min(live.writes, live.reads) > 100


@pytest.mark.parametrize("rows", [0, 1, 101])
@pytest.mark.parametrize(("source", "target"), [("postgres", "cassandra"), ("cassandra", "postgres")])
async def test_a_quiet_life_cycle_copies_exactly_what_is_there(
    place: Place, source: str, target: str, rows: int
) -> None:
    settings = await settings_for(place, source, target, "postgres")
    await preload(settings, rows)
    await life_cycle(settings, target="b", live=None)
    async with coordinator_of(settings) as coordinator:
        store = coordinator.places.store("messages", (await _placed(coordinator)))
        found = 0
        for range_ in await store.plan_scan(3):
            after, done = None, False
            while not done:
                page = await store.scan(range_, after, 50)
                found, after, done = found + len(page.records), page.after, page.done
    assert found == rows


async def _placed(coordinator: Coordinator) -> routes.Place:
    _, routings = await coordinator.places.control.routings()
    await coordinator.places.ensure_open(routings["messages"].authority)
    return routings["messages"].authority


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres")]
)
async def test_users_and_their_unique_names_go_over_and_back(place: Place, source: str, target: str) -> None:
    urls = {"a": place(source), "b": place(target)}
    settings = settings_of(urls, messages="a", users="a", control=place(source))
    await create_schemas(settings)
    async with DataLayer.open(settings) as layer:
        people = [await layer.users.create(username=f"user{n}", email=f"u{n}@example.org") for n in range(40)]
        moving = asyncio.Event()

        async def churn() -> int:
            rounds = 0
            while not moving.is_set():
                first, second = people[rounds % 20].id, people[20 + rounds % 20].id
                await layer.users.update(first, username=f"tmp{rounds}")
                await layer.users.update(second, username=f"user{rounds % 20}")
                await layer.users.update(first, username=f"user{20 + rounds % 20}")
                await layer.users.update(second, username=f"other{rounds % 20}")
                await layer.users.update(first, username=f"user{rounds % 20}")
                await layer.users.update(second, username=f"user{20 + rounds % 20}")
                with pytest.raises(AlreadyExists):
                    await layer.users.create(username=f"USER{rounds % 20}")
                rounds += 1
            return rounds

        async with coordinator_of(settings, "users") as coordinator:
            busy = asyncio.create_task(churn())
            await coordinator.migrate("b")
            await coordinator.rollback()
            await coordinator.migrate("b")
            moving.set()
            assert await busy > 3
            verdict = await coordinator.verify()
            assert verdict["clean"], verdict
            await coordinator.complete()
        for number, person in enumerate(people):
            found = await layer.users.get_by_username(f"User{number}")
            assert found is not None
            assert found.id == person.id
        await layer.users.delete(people[0].id)
        assert await layer.users.get_by_username("user0") is None
        again = await layer.users.create(username="user0")
        assert again.id != people[0].id
        with pytest.raises(NotFound):
            await layer.users.update(people[0].id, display_name="ghost")


async def test_users_are_refused_by_a_store_without_compare_and_set(place: Place) -> None:
    settings = await settings_for(place, "postgres", "cassandra", "postgres")
    async with DataLayer.open(settings):
        pass
    async with coordinator_of(settings, "users") as coordinator:
        with pytest.raises(PreconditionFailed, match="compare-and-set"):
            await coordinator.migrate("b")


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres")]
)
@pytest.mark.parametrize("domain", ["conversations", "listings"])
async def test_conversations_and_their_lists_go_over_and_back(
    place: Place, source: str, target: str, domain: str
) -> None:
    urls = {"a": place(source), "b": place(target)}
    settings = settings_of(urls, messages="a", users="a", control=place(source))
    await create_schemas(settings)
    async with DataLayer.open(settings) as layer, talk(layer) as talking:
        async with coordinator_of(settings, domain) as coordinator:
            await coordinator.migrate("b")
            await coordinator.rollback()
            await coordinator.migrate("b")
            await talking.stop()
            verdict = await coordinator.verify()
            assert verdict["clean"], verdict
            await coordinator.complete()
        await talking.audit()
