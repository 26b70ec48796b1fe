"""Presence beside bare redis-py pipelines that send the same commands: heartbeats 500 at a time, and who of 2,000 is there."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from benchmarks.figures import Aim
from benchmarks.peers.bare_redis import BarePresence
from benchmarks.slices import Call, beside, interleaved
from benchmarks.stage import Ground, settings_of
from datalayer.layer import DataLayer
from datalayer.types import Presence

AT_ONCE = 500
ASKED = 2000
ANSWERS = 5
TTL_S = 45.0
AIM = Aim(1.2, at_least=False)
BARE = "redis-py pipelines"
SLICES_PER_ROUND = 3
Say = Callable[[str], None]


async def measure(ground: Ground, users: int, rounds: int, say: Say) -> dict[str, Any]:
    """Beats and answers of both. A call is one beat, and one answer."""
    users = max(ASKED, users // AT_ONCE * AT_ONCE)
    url = ground.redis()
    settings = settings_of({"main": ground.sqlite(), "redis": url}, ground.sqlite(), presence="redis")
    everybody = [uuid4() for _ in range(users)]
    parts = [everybody[at : at + AT_ONCE] for at in range(0, users, AT_ONCE)]
    slices = rounds * SLICES_PER_ROUND
    async with DataLayer.open(settings) as layer:
        bare = BarePresence(url, layer.router("presence").route.authority)
        beat, asked = layer.presence.heartbeat, everybody[:ASKED]

        async def ours(number: int) -> None:
            await asyncio.gather(*(beat(user, device="web", ttl=TTL_S) for user in parts[number]))

        async def online(_: int) -> object:
            return await layer.presence.online(asked)

        async def bare_online(_: int) -> object:
            return await bare.online(asked)

        await ours(0)  # the server knows the script
        await _same_answers(layer, bare, asked[:AT_ONCE])
        beats: list[Call] = [ours, lambda number: bare.beat(parts[number], TTL_S)]
        found = await interleaved(beats, len(parts), 1, slices)
        say("presence: beats measured")
        answers = await interleaved([online, bare_online], ANSWERS, 1, slices)
        say("presence: answers measured")
        await bare.close()
    each = [[one.part(AT_ONCE) for one in side] for side in found]
    calls = [_told("heartbeat", beside(*each)), _told(f"online({ASKED})", beside(*answers))]
    return {"users": users, "beats_at_once": AT_ONCE, "slices": slices, "calls": calls}


def _told(call: str, figures: dict[str, Any]) -> dict[str, Any]:
    about = {"call": call, "tasks": 1, "bare": BARE}
    return figures | about | {"aim": str(AIM), "met": AIM.met(figures["ratio"]["median"])}


async def _same_answers(layer: DataLayer, bare: BarePresence, asked: Any) -> None:
    others = [uuid4() for _ in asked]
    ours = await layer.presence.online([*asked, *others])
    theirs = await bare.online([*asked, *others])
    assert {user: said is Presence.ONLINE for user, said in ours.items()} == theirs, "both sides know the same users"
    assert sum(theirs.values()) == len(asked), "those who have beaten are there, and nobody else"
