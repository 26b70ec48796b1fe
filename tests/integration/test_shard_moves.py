"""Slot groups that come back to a shard where they were before, while the way home of their domain is open."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import Unavailable
from datalayer.layer import DataLayer
from datalayer.migrators import actions
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.migrators.rebalance import Load, Move
from datalayer.migrators.shards import Mover, sharding_of
from datalayer.routing.places import Places
from datalayer.settings import Settings, parse_settings
from tests.integration.live import create_schemas
from tests.servers import Servers

pytestmark = pytest.mark.servers
TARGET = MigrateOptions(until=Until.TARGET, yes=True)
USERS = 40


@pytest.fixture(params=["sqlite", "postgres"])
async def settings(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Settings:
    """One database, two shards beside it, two slot groups."""

    def url(name: str) -> str:
        if request.param == "postgres":
            return servers.postgres(1)[0].create_database(f"{name}_{uuid4().hex[:12]}")
        return f"sqlite:///{tmp_path}/{name}.sqlite"

    made = parse_settings(
        {
            "backends": {
                "one": {"url": url("one")},
                "shards": {"members": {"s0": url("s0"), "s1": url("s1")}, "slot_groups": 2},
            },
            "routes": {"messages": "one", "users": "one"},
            "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
        },
        directory=tmp_path,
    )
    await create_schemas(made)
    return made


@asynccontextmanager
async def on_shards(settings: Settings) -> AsyncIterator[tuple[DataLayer, Places]]:
    """An application whose users rest at `target` on the shards, and an operator's places."""
    async with DataLayer.open(settings) as layer, open_places(settings, SystemClock()) as places:
        for number in range(USERS):
            await layer.users.create(username=f"user{number}")
        await Coordinator(places, "users", holder="test", options=TARGET).migrate("shards")
        yield layer, places


async def move(places: Places, to: Callable[[str], str]) -> None:
    """Move every group to the shard that ``to`` names for the one where it is."""
    sharding = await sharding_of(places, "users")
    moves = [Move(Load(group, at, 0), to(at)) for group, at in sharding.shard_of.items()]
    await Mover(places, "users", holder="test").run(moves)


async def roll_back(layer: DataLayer, places: Places) -> None:
    """Everything that was written anywhere is in the one database again."""
    page = await layer.users.list(limit=USERS)
    for user in page.items:
        await layer.users.update(user.id, display_name="changed", expected_version=user.version)
    await Coordinator(places, "users", holder="test", options=TARGET).rollback()
    found = (await layer.users.list(limit=2 * USERS)).items
    assert (await places.control.routings())[1]["users"].authority.backend == "one"
    assert [user.display_name for user in found] == ["changed"] * USERS


async def test_a_group_may_come_back_to_a_shard_where_it_was_before_and_its_domain_home(settings: Settings) -> None:
    async with on_shards(settings) as (layer, places):
        for _ in range(2):
            await move(places, lambda at: "s1" if at == "s0" else "s0")
        await roll_back(layer, places)


async def test_a_group_may_go_where_a_cancelled_move_left_the_journal_of_its_domain(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: object) -> None:
        raise Unavailable("the shard does not answer")

    async with on_shards(settings) as (layer, places):
        sharding = await sharding_of(places, "users")
        group = sharding.map.groups[0]
        to = "shards/s1" if sharding.shard_of[group] == "s0" else "shards/s0"
        armed = MigrateOptions(until=Until.ARMED, yes=True)
        await Coordinator(places, group.name, holder="test", options=armed).migrate(to)
        with monkeypatch.context() as patched:
            patched.setattr(actions, "leave_domain", unreachable)
            await Coordinator(places, group.name, holder="test").cancel()
        await move(places, lambda at: "s1" if at == "s0" else "s0")
        await roll_back(layer, places)
