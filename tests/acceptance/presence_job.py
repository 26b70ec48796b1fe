"""100,000 users beat every 15 seconds from one process into a Redis cluster; then one of its primaries is killed.

    python -m tests.acceptance.presence_job [--users 100000] [--every 15] [--seconds 20]

Prints what a beat costs this process and the servers, how long online(2,000) takes, how long the failover lasts, and
whom any answer called offline whose last acknowledged beat still lasted: nobody may be.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer
from datalayer.settings import parse_settings
from datalayer.stores.redis.demands import parse_info
from datalayer.stores.redis.scripts import command
from datalayer.types import Presence
from tests.acceptance.kept import working_folder
from tests.servers import Servers

TICK_S = 0.05
ASKED = 2000
LOOK_EVERY_S = 0.1
WAITING_S = 6.0
"""So many seconds' beats may be under way: a failover holds up those of a third of the users."""


@dataclass
class Crowd:
    """The users of the job, what was acknowledged of them, and what answers said."""

    layer: DataLayer
    users: list[UUID]
    every_s: float
    acked: dict[UUID, float] = field(default_factory=dict)
    """When the last acknowledged beat of each was given."""
    beats: int = 0
    refused: int = 0
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    looks_ms: list[float] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unknown_at: float = 0.0
    """When an answer last had somebody who was unknown."""
    stopped: bool = False

    @property
    def ttl_s(self) -> float:
        return 3 * self.every_s

    async def beat_on(self) -> None:
        """Everybody in turn, at an even rate."""
        began, given = time.monotonic(), 0
        rate = len(self.users) / self.every_s
        while not self.stopped:
            due = int((time.monotonic() - began) * rate)
            if len(self.under_way) > WAITING_S * rate:
                # This process does not keep up: what is late is left out, and the rate that is printed says so.
                given = due
            for number in range(given, due):
                task = asyncio.create_task(self._beat(self.users[number % len(self.users)]))
                self.under_way.add(task)
                task.add_done_callback(self.under_way.discard)
            given = due
            await asyncio.sleep(TICK_S)

    async def _beat(self, user: UUID) -> None:
        given = time.monotonic()
        try:
            await self.layer.presence.heartbeat(user, device="web", ttl=self.ttl_s)
        except DatalayerError:
            self.refused += 1
            return
        self.beats += 1
        self.acked[user] = max(given, self.acked.get(user, 0.0))

    async def look_on(self) -> None:
        """Ask for some of them, and judge each answer."""
        chance = random.Random(1)
        while not self.stopped:
            await self._look(chance.sample(self.users, min(ASKED, len(self.users))))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, some: list[UUID]) -> None:
        acked = {user: self.acked[user] for user in some if user in self.acked}
        began = time.monotonic()
        found = await self.layer.presence.online(some)
        ended = time.monotonic()
        self.looks_ms.append((ended - began) * 1000)
        for user, given in acked.items():
            self.said[found[user]] += 1
            if found[user] is Presence.OFFLINE and given + self.ttl_s > ended:
                self.wrong.append(str(user))
            if found[user] is Presence.UNKNOWN:
                self.unknown_at = ended

    async def end(self) -> None:
        self.stopped = True
        await asyncio.gather(*self.under_way)


async def commands_of(layer: DataLayer) -> int:
    """How many commands the primaries have run so far."""
    session = layer.backends["redis"]._session  # type: ignore[attr-defined]
    replies = await session.of_primaries(command("INFO", "stats"))
    return sum(int(parse_info(reply)["total_commands_processed"]) for reply in replies.values())


def percentile(values: list[float], share: float) -> float | None:
    """None where nothing was measured: this process was too busy to ask."""
    return None if not values else round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 1)


async def at_rest(crowd: Crowd, seconds: float) -> dict[str, Any]:
    """What a beat and a look cost while everything is well."""
    crowd.looks_ms.clear()
    beats, commands = crowd.beats, await commands_of(crowd.layer)
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    took, used = time.monotonic() - began, time.process_time() - cpu
    beats, commands = crowd.beats - beats, await commands_of(crowd.layer) - commands
    return {
        "beats_per_s": round(beats / took),
        "cpu_share": round(used / took, 3),
        "cpu_us_per_beat_looks_included": round(used / max(beats, 1) * 1e6, 1),
        "redis_commands_per_s": round(commands / took),
        "online_ids": min(ASKED, len(crowd.users)),
        "online_p50_ms": percentile(crowd.looks_ms, 0.5),
        "online_p99_ms": percentile(crowd.looks_ms, 0.99),
        "refused": crowd.refused,
    }


async def failover(crowd: Crowd, cluster: Any, seconds: float) -> dict[str, Any]:
    """kill -9 of the primary of one user; how long that user's beats and everybody's answers take to come back."""
    store = crowd.layer.router("presence").route.authority
    one = crowd.users[0]
    gone = cluster.primary_of(store.key_of(one).decode("latin-1"))
    crowd.looks_ms.clear()
    refused = crowd.refused
    gone.kill9()
    killed = time.monotonic()
    while True:
        try:
            await crowd.layer.presence.heartbeat(one, device="web", ttl=crowd.ttl_s)
            break
        except DatalayerError:
            continue
    beaten = time.monotonic() - killed
    await asyncio.sleep(seconds)
    return {
        "first_beat_after_kill_s": round(beaten, 2),
        "last_unknown_after_kill_s": round(max(0.0, crowd.unknown_at - killed), 2),
        "beats_refused": crowd.refused - refused,
        "slowest_look_ms": percentile(crowd.looks_ms, 1.0),
    }


async def job(servers: Servers, users: int, every_s: float, seconds: float) -> dict[str, Any]:
    """The whole of it; what was found."""
    cluster = servers.fresh_redis_cluster(f"presence-{uuid4().hex[:6]}")
    with working_folder() as folder:
        document = {
            "backends": {"main": {"url": "sqlite:///main.sqlite"}, "redis": {"url": cluster.url}},
            "routes": {"presence": "redis"},
        }
        async with DataLayer.open(parse_settings(document, directory=folder)) as layer:
            crowd = Crowd(layer, [uuid4() for _ in range(users)], every_s)
            tasks = [asyncio.create_task(crowd.beat_on()), asyncio.create_task(crowd.look_on())]
            await asyncio.sleep(every_s)
            found = {"users": users, "every_s": every_s, **await at_rest(crowd, seconds)}
            found |= await failover(crowd, cluster, seconds)
            await crowd.end()
            await asyncio.gather(*tasks)
    answers = {str(presence): number for presence, number in crowd.said.items()}
    return found | {"answers": answers, "called_offline_who_beat": len(crowd.wrong)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--every", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    chosen = parser.parse_args()
    with Servers() as servers:
        found = asyncio.run(job(servers, chosen.users, chosen.every, chosen.seconds))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 1 if found["called_offline_who_beat"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
