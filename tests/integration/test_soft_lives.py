"""Presence and typing go over and back and over on real stores, every pair of products, while users beat."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.schema_plan import load_revisions
from datalayer.migrators.schema_upgrade import Upgrade
from datalayer.settings import Settings, parse_settings
from datalayer.types import Presence
from tests.integration.redis_backends import prefixed
from tests.pairs import cases
from tests.servers import Servers

pytestmark = pytest.mark.servers
KINDS = ("memory", "redis", "cluster", "dynamodb")
TTL_S = 1.5
USERS = 12
TYPISTS = 4


@pytest.fixture
def place(servers: Servers) -> Callable[[str], str]:
    def url(kind: str) -> str:
        if kind == "redis":
            return servers.redis().create_database()
        if kind == "cluster":
            return prefixed(servers.redis_cluster().url)
        return "memory://" if kind == "memory" else servers.dynamodb().url_of(f"t{uuid4().hex[:12]}")

    return url


async def settings_for(folder: Path, place: Callable[[str], str], source: str, target: str) -> Settings:
    name = uuid4().hex[:8]
    document = {
        "backends": {
            "main": {"url": f"sqlite:///{folder}/main.sqlite"},
            f"a{name}": {"url": place(source)},
            f"b{name}": {"url": place(target)},
        },
        "routes": {"presence": f"a{name}", "typing": f"a{name}"},
    }
    settings = parse_settings(document, directory=folder)
    states = await Upgrade(settings, SystemClock(), load_revisions(), Silent()).run()
    assert all(state.state == "ready" for state in states), states
    return settings


class Crowd:
    """Users who beat and type all the time, through two processes' layers; whoever is called away is wrong."""

    def __init__(self, layers: list[DataLayer]) -> None:
        self.layers = layers
        self.users = [uuid4() for _ in range(USERS)]
        self.room = uuid4()
        self.ends: dict[UUID, float] = {}
        """Until when each user's last acknowledged beat lasts: on a busy machine some come late."""
        self.wrong: list[str] = []
        self.beats = self.looks = 0
        self.stopped = False

    async def beat_once(self) -> None:
        await asyncio.gather(*(self._beat(number, user) for number, user in enumerate(self.users)))

    async def _beat(self, number: int, user: UUID) -> None:
        layer, began = self.layers[number % len(self.layers)], time.monotonic()
        await layer.presence.heartbeat(user, device="web", ttl=TTL_S)
        if number < TYPISTS:
            await layer.typing.start(self.room, user, ttl=TTL_S)
        self.ends[user] = began + TTL_S
        self.beats += 1

    async def beat_on(self) -> None:
        while not self.stopped:
            await self.beat_once()
            await asyncio.sleep(0.1)

    async def look_on(self) -> None:
        while not self.stopped:
            for layer in self.layers:
                ends = dict(self.ends)
                found = await layer.presence.online(self.users)
                phase = layer.router("presence").routing.phase
                for user in self._sure(ends):
                    if found[user] is not Presence.ONLINE:
                        self.wrong.append(f"{user} is {found[user]} in {phase}")
                ends = dict(self.ends)
                who = await layer.typing.who(self.room)
                phase = layer.router("typing").routing.phase
                for user in set(self._sure(ends)) & set(self.users[:TYPISTS]) - set(who):
                    self.wrong.append(f"{user} does not type in {phase}")
            await asyncio.sleep(0.05)

    def _sure(self, ends: dict[UUID, float]) -> list[UUID]:
        """Whose beats had been acknowledged before a read and last still."""
        now = time.monotonic()
        sure = [user for user, end in ends.items() if end > now]
        self.looks += len(sure)
        return sure


async def life(settings: Settings, domain: str, target: str) -> None:
    options = MigrateOptions(yes=True, lifetime_s=TTL_S)
    async with open_places(settings, SystemClock()) as places:
        coordinator = Coordinator(places, domain, holder=f"test-{domain}", options=options)
        await coordinator.migrate(target)
        await coordinator.rollback()
        await coordinator.migrate(target)
        assert (await coordinator.verify())["clean"]
        assert (await coordinator.repair())["clean"]
        await coordinator.complete()
        await coordinator.purge()


@pytest.mark.life_cycle("presence", "typing")
@pytest.mark.parametrize(("source", "target"), cases(KINDS, itself=()))
async def test_nobody_who_beats_is_called_away_by_a_move(
    tmp_path: Path, place: Callable[[str], str], source: str, target: str
) -> None:
    settings = await settings_for(tmp_path, place, source, target)
    to = next(name for name in settings.backends if name.startswith("b"))
    async with DataLayer.open(settings) as one, DataLayer.open(settings) as two:
        gone = uuid4()
        await one.presence.heartbeat(gone, device="web", ttl=TTL_S)
        seen = await one.presence.last_seen([gone])
        crowd = Crowd([one, two])
        await crowd.beat_once()
        tasks = [asyncio.create_task(work) for work in (crowd.beat_on(), crowd.look_on())]
        await asyncio.gather(life(settings, "presence", to), life(settings, "typing", to))
        crowd.stopped = True
        await asyncio.gather(*tasks)
        assert crowd.wrong == []
        assert min(crowd.beats, crowd.looks) > 100
        assert await two.presence.last_seen([gone]) == (seen if "memory" not in (source, target) else {})
        async for transition in two.presence.watch([crowd.users[0]], known={crowd.users[0]: Presence.ONLINE}):
            assert (transition.user_id, transition.presence) == (crowd.users[0], Presence.OFFLINE)
            break
