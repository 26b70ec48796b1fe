"""Conversations and lists onto shards, from shard to shard, and home, while people talk."""

from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import PreconditionFailed
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.doctor import diagnose
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.migrators.rebalance import Load, Move
from datalayer.migrators.shards import Mover, sharding_of
from datalayer.settings import Settings, parse_settings
from tests.integration.live import create_schemas
from tests.integration.talk import talk
from tests.servers import Servers

pytestmark = pytest.mark.servers
COMPLETE = MigrateOptions(until=Until.COMPLETE, yes=True)


@pytest.fixture(params=["sqlite", "postgres"])
async def settings(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Settings:
    """One database, two shards beside it, four slot groups."""

    def url(name: str) -> str:
        if request.param == "postgres":
            return servers.postgres(1)[0].create_database(f"{name}_{uuid4().hex[:12]}")
        return f"sqlite:///{tmp_path}/{name}.sqlite"

    shards = {"members": {"s0": url("s0"), "s1": url("s1")}, "slot_groups": 4}
    made = parse_settings(
        {
            "backends": {"one": {"url": url("one")}, "shards": shards},
            "routes": {"messages": "one", "users": "one"},
            "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
        },
        directory=tmp_path,
    )
    await create_schemas(made)
    return made


@pytest.mark.parametrize("domain", ["conversations", "listings"])
async def test_they_go_onto_shards_between_shards_and_home(settings: Settings, domain: str) -> None:
    clock = SystemClock()
    async with DataLayer.open(settings) as layer, open_places(settings, clock) as places, talk(layer) as talking:
        await Coordinator(places, domain, holder="test", options=COMPLETE).migrate("shards")
        sharding = await sharding_of(places, domain)
        assert set(sharding.shard_of.values()) == {"s0", "s1"}
        moves = [Move(Load(group, at, 0), "s1") for group, at in sharding.shard_of.items() if at == "s0"]
        await Mover(places, domain, holder="test").run(moves)
        await talking.audit()
        findings = {one.check: one for one in await diagnose(settings, clock)}
        assert findings["listings"].detail == "users' lists show every conversation"
        await Coordinator(places, domain, holder="test", options=COMPLETE).migrate("one")
        await talking.audit()


async def test_what_belongs_together_is_found_over_all_groups(settings: Settings) -> None:
    async with open_places(settings, SystemClock()) as places:
        async with DataLayer.open(settings):
            pass
        for domain in ("conversations", "listings"):
            await Coordinator(places, domain, holder="test", options=COMPLETE).migrate("shards")
    async with DataLayer.open(settings) as layer, talk(layer) as talking:
        made = [await layer.conversations.create(members={uuid4(): "owner"}) for _ in range(20)]
        assert await layer.conversations.get_many([one.id for one in made]) == {one.id: one for one in made}
        await talking.audit()


async def test_cassandra_is_refused(servers: Servers, tmp_path: Path) -> None:
    url = servers.cassandra().create_keyspace(f"talk_{uuid4().hex[:12]}")
    settings = parse_settings(
        {"backends": {"main": {"url": f"sqlite:///{tmp_path}/main.sqlite"}, "cassandra": {"url": url}}},
        directory=tmp_path,
    )
    await create_schemas(settings)
    async with DataLayer.open(settings), open_places(settings, SystemClock()) as places:
        for domain in ("conversations", "listings"):
            with pytest.raises(PreconditionFailed, match="compare-and-set"):
                await Coordinator(places, domain, holder="test").migrate("cassandra")
