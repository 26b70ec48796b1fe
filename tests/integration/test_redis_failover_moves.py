"""Sessions on their way to a Redis cluster whose primary dies, and with it what its replica did not get."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datalayer.errors import Unavailable
from datalayer.layer import DataLayer
from datalayer.migrators import lives
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.plan import Until
from datalayer.routing.route import Phase, Place
from datalayer.settings import Settings, parse_settings
from tests.integration.live import coordinator_of
from tests.integration.redis_backends import opened, prefixed, within
from tests.servers import Servers
from tests.servers.redis.cluster import LocalRedisCluster, members
from tests.servers.redis.server import LocalRedis

pytestmark = pytest.mark.servers
SESSIONS = 60


def settings_for(folder: Path, cluster_url: str) -> Settings:
    here = f"here{uuid4().hex[:8]}"
    urls = {"main": f"sqlite:///{folder}/main.sqlite", "b": cluster_url, here: "memory://"}
    return parse_settings(
        {
            "backends": {name: {"url": url} for name, url in urls.items()},
            "routes": {"sessions": "main", "presence": here},
            "control": {"url": f"sqlite:///{folder}/control.sqlite"},
        },
        directory=folder,
    )


def replica_of(cluster: LocalRedisCluster, primary: LocalRedis) -> LocalRedis:
    seen = members(primary)
    mine = next(one.id for one in seen if one.port == primary.port)
    port = next(one.port for one in seen if one.primary == mine)
    return next(node for node in cluster.nodes if node.port == port)


async def die_with_what_no_replica_got(cluster: LocalRedisCluster, primary: LocalRedis, replica: LocalRedis) -> None:
    """A dead replica comes back and takes over from its primary; a paused one would have the rest in its socket."""

    def die() -> None:
        primary.kill9()
        replica.start()
        cluster.await_failover(primary)

    await asyncio.to_thread(die)


async def drained(coordinator: Coordinator) -> None:
    """Wait until the replayers have brought and settled everything."""
    _, routings = await coordinator.places.control.routings()
    coordinator.places.learn(routings)
    await coordinator.places.ensure_open(routings["sessions"].authority)
    authority, _ = coordinator.places.sides(routings["sessions"])
    async with asyncio.timeout(20):
        while await authority.journal.backlog():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param(True, id="looks"),
        pytest.param(False, id="the control: does not look", marks=pytest.mark.deep),  # the fast one is simulated
    ],
)
async def test_revokes_that_a_failover_of_the_target_took_away_are_brought_again(
    servers: Servers, tmp_path: Path, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = servers.fresh_redis_cluster(f"move-{'looks' if looks else 'blind'}")
    settings = settings_for(tmp_path, prefixed(cluster.url))
    if not looks:

        async def durable(_work: Any, _place: Place) -> str:
            return ""

        monkeypatch.setattr(lives, "life_of", durable)
    async with DataLayer.open(settings) as layer:
        made = [(await layer.sessions.create(uuid4())).token for _ in range(SESSIONS)]
        tokens = [token for token in made if token is not None]
        async with coordinator_of(settings, "sessions", until=Until.VERIFIED) as coordinator:
            await coordinator.migrate("b")
        primary = cluster.primary_of("{000}")
        replica = replica_of(cluster, primary)
        await asyncio.to_thread(replica.kill9)
        revoked, kept = tokens[::2], tokens[1::2]
        for token in revoked:
            await layer.sessions.revoke(token)
        async with coordinator_of(settings, "sessions") as coordinator:
            await drained(coordinator)
            await die_with_what_no_replica_got(cluster, primary, replica)
            await coordinator.migrate("b")
        assert layer.router("sessions").routing.phase is Phase.TARGET
        shown = {token: await answered(partial(layer.sessions.get, token)) for token in tokens}
        accepted = [token for token in revoked if shown[token] is not None]
        missing = [token for token in kept if shown[token] is None]
    print(
        f"\n{len(revoked)} revoked, {len(accepted)} accepted after the flip; {len(kept)} kept, {len(missing)} missing"
    )
    assert missing == []
    assert (accepted == []) is looks


async def test_the_incarnation_of_a_cluster_changes_with_a_failover_and_with_nothing_else(servers: Servers) -> None:
    cluster = servers.fresh_redis_cluster("incarnation")
    async with opened(prefixed(cluster.url)) as backend:
        before = await backend.incarnation(within(5))
        store = backend.store("sessions", 1)
        await store.create()
        assert await backend.incarnation(within(5)) == before
        await asyncio.to_thread(cluster.nodes[4].kill9)
        await asyncio.to_thread(cluster.nodes[4].start)
        assert await backend.incarnation(within(5)) == before, "a replica came and went"
        primary = cluster.primary_of("{000}")
        await asyncio.to_thread(primary.kill9)
        await asyncio.to_thread(cluster.await_failover, primary)
        after = await answered(lambda: backend.incarnation(within(5)))
        assert after != before
        assert await backend.incarnation(within(5)) == after


async def test_the_incarnation_of_a_server_changes_when_it_starts_again(servers: Servers) -> None:
    server = servers.fresh_redis("incarnation-alone")
    async with opened(server.create_database()) as backend:
        before = await backend.incarnation(within(5))
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        assert await answered(lambda: backend.incarnation(within(5))) != before


async def answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """An answer; the first calls after a failover may still ask the server that is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.05)
