"""Presence when its store fails: nodes that are down, connections that break, servers that hang, tables that are missing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from datalayer.errors import ConfigurationError, SchemaBehind, Unavailable
from datalayer.layer import DataLayer
from datalayer.settings import parse_settings
from datalayer.types import Presence, Transition
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers
ONLINE, OFFLINE, UNKNOWN = Presence.ONLINE, Presence.OFFLINE, Presence.UNKNOWN


@asynccontextmanager
async def opened(folder: Path, url: str) -> AsyncIterator[DataLayer]:
    document = {
        "backends": {"main": {"url": f"sqlite:///{folder}/main.sqlite"}, "soft": {"url": url}},
        "routes": {"presence": "soft"},
    }
    async with DataLayer.open(parse_settings(document, directory=folder)) as layer:
        yield layer


async def test_users_of_a_dead_node_are_unknown_and_those_of_others_answered(servers: Servers, tmp_path: Path) -> None:
    cluster = servers.fresh_redis_cluster("soft-node")
    async with opened(tmp_path, cluster.url) as layer:
        users = [uuid4() for _ in range(60)]
        await asyncio.gather(*(layer.presence.heartbeat(user, ttl=120) for user in users[:40]))
        store = layer.router("presence").route.authority
        places = {user: cluster.primary_of(store.key_of(user).decode("latin-1")) for user in users}
        dead = places[users[0]]
        for node in cluster.nodes:
            if node not in set(places.values()):
                node.kill9()  # replicas: nobody takes over
        dead.kill9()
        found = await layer.presence.online(users, timeout=5)
        for number, user in enumerate(users):
            here = UNKNOWN if places[user] is dead else (ONLINE if number < 40 else OFFLINE)
            if places[user] is dead or found[user] is not UNKNOWN:
                assert found[user] is here
        assert {found[user] for user in users if places[user] is not dead} == {ONLINE, OFFLINE}
        assert (await layer.health())["ready"]


async def test_a_server_that_hangs_leaves_all_unknown_by_the_deadline(servers: Servers, tmp_path: Path) -> None:
    url = servers.redis().create_database()
    with TcpProxy.before(url) as proxy:
        async with opened(tmp_path, proxy.url(url)) as layer:
            ann = uuid4()
            await layer.presence.heartbeat(ann)
            proxy.hang()
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await layer.presence.online([ann], timeout=0.3) == {ann: UNKNOWN}
            assert loop.time() - began < 2
            proxy.restore()
            proxy.drop()
            async with asyncio.timeout(10):
                while await layer.presence.online([ann]) != {ann: ONLINE}:
                    await asyncio.sleep(0.05)


async def test_a_beat_outlives_a_connection_that_breaks(servers: Servers, tmp_path: Path) -> None:
    url = servers.redis().create_database()
    with TcpProxy.before(url) as proxy:
        async with opened(tmp_path, proxy.url(url)) as layer:
            ann = uuid4()
            await layer.presence.heartbeat(ann)
            proxy.cut()
            with pytest.raises(Unavailable):
                await layer.presence.heartbeat(uuid4(), timeout=0.2)
            beating = asyncio.create_task(layer.presence.heartbeat(ann, status="again", timeout=10))
            await asyncio.sleep(0.2)
            proxy.restore()
            await beating
            (device,) = await layer.presence.devices(ann)
            assert device.status == "again"


async def test_what_changed_while_the_subscription_was_cut_is_told(servers: Servers, tmp_path: Path) -> None:
    url = servers.redis().create_database()
    with TcpProxy.before(url) as proxy:
        async with opened(tmp_path, proxy.url(url)) as layer, opened(tmp_path, url) as other:
            ann, bob = uuid4(), uuid4()
            told: asyncio.Queue[Transition] = asyncio.Queue()

            async def watch() -> None:
                known = dict.fromkeys([ann, bob], OFFLINE)
                async for transition in layer.presence.watch([ann, bob], known=known):
                    told.put_nowait(transition)

            async def next_told() -> tuple[UUID, Presence]:
                async with asyncio.timeout(20):
                    transition = await told.get()
                return transition.user_id, transition.presence

            watching = asyncio.create_task(watch())
            await other.presence.heartbeat(ann, ttl=120)
            assert await next_told() == (ann, ONLINE)
            proxy.cut()
            await other.presence.leave(ann)
            await other.presence.heartbeat(bob, ttl=120)
            proxy.restore()
            assert {await next_told(), await next_told()} == {(ann, OFFLINE), (bob, ONLINE)}
            await other.presence.leave(bob)
            assert await next_told() == (bob, OFFLINE)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_missing_tables_of_dynamodb_are_named_with_the_way_out(servers: Servers, tmp_path: Path) -> None:
    url = servers.dynamodb().url_of(f"t{uuid4().hex[:12]}")
    with pytest.raises(SchemaBehind, match="datalayer schema upgrade soft"):
        async with opened(tmp_path, url):
            pass


async def test_a_dynamodb_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"backend soft \(dynamodb.*cannot be reached"):
        async with opened(tmp_path, "dynamodb://key:secret@table?endpoint=http://127.0.0.1:9"):
            pass


async def test_dynamodb_holds_no_messages(tmp_path: Path) -> None:
    document = {
        "backends": {"main": {"url": "sqlite:///main.sqlite"}, "soft": {"url": "dynamodb://table"}},
        "routes": {"messages": "soft"},
    }
    with pytest.raises(ConfigurationError, match="dynamodb holds presence and typing, not messages"):
        async with DataLayer.open(parse_settings(document, directory=tmp_path)):
            pass
