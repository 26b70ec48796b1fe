"""Presence against bare redis-py pipelines that send the same commands, in turns on one server.

    python -m benchmarks.presence [--users 20000] [--rounds 5]

Prints medians of microseconds a heartbeat and milliseconds an answer for 2,000 users, of wall clock and of this
process's own time, and library / bare. Both send the same script calls, 500 at a time, and the same MGETs; both make the
keys and read the ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from redis.asyncio import Redis

from datalayer.domains.soft import Beat
from datalayer.layer import DataLayer
from datalayer.settings import parse_settings
from tests.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

AT_ONCE: Final = 500
ASKED: Final = 2000
TTL_S: Final = 45.0
PAGE: Final = 1000


async def timed(work: Callable[[list[UUID]], Awaitable[None]], users: list[UUID]) -> tuple[float, float]:
    """Seconds by the clock, and of this process."""
    wall, own = time.perf_counter(), time.process_time()
    await work(users)
    return time.perf_counter() - wall, time.process_time() - own


def parts(users: list[UUID], size: int) -> list[list[UUID]]:
    """The users, so many at a time."""
    return [users[at : at + size] for at in range(0, len(users), size)]


class Bare:
    """What a program without the library would do."""

    def __init__(self, url: str, store: Any) -> None:
        self.client = Redis.from_url(url)
        self._key = store.key_of
        self._sha = store.call_of(Beat(uuid4(), "web", 0, 0), publish=True).arguments[1]

    async def beat(self, users: list[UUID]) -> None:
        """Every user once."""
        for some in parts(users, AT_ONCE):
            pipeline = self.client.pipeline(transaction=False)
            now = time.time_ns() // 1000
            for user in some:
                end = now + int(TTL_S * 1e6)
                pipeline.execute_command("EVALSHA", self._sha, 1, self._key(user), "web", now, end, "", "1")
            await pipeline.execute()

    async def online(self, users: list[UUID]) -> None:
        """Who of them is there."""
        now = time.time_ns() // 1000
        for some in parts(users, PAGE):
            values: list[Any] = await self.client.mget([self._key(user) for user in some])
            for value in values:
                assert int(value[: value.index(b"\x1e")]) > now


class Library:
    """The same through a DataLayer."""

    def __init__(self, layer: DataLayer) -> None:
        self._presence = layer.presence

    async def beat(self, users: list[UUID]) -> None:
        """Every user once."""
        for some in parts(users, AT_ONCE):
            await asyncio.gather(*(self._presence.heartbeat(user, device="web", ttl=TTL_S) for user in some))

    async def online(self, users: list[UUID]) -> None:
        """Who of them is there."""
        await self._presence.online(users)


async def compare(url: str, users: int, rounds: int) -> dict[str, Any]:
    """Medians of both, and their ratios."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        document = {
            "backends": {"main": {"url": "sqlite:///main.sqlite"}, "redis": {"url": url}},
            "routes": {"presence": "redis"},
        }
        async with DataLayer.open(parse_settings(document, directory=Path(folder))) as layer:
            bare, library = Bare(url, layer.router("presence").route.authority), Library(layer)
            everybody = [uuid4() for _ in range(users)]
            await library.beat(everybody)  # the server knows the script, both have connections
            await bare.beat(everybody)
            for _ in range(rounds):
                one: Bare | Library
                for name, one in (("bare", bare), ("library", library)):
                    found.setdefault(f"{name} beat", []).append(await timed(one.beat, everybody))
                    found.setdefault(f"{name} online", []).append(await timed(one.online, everybody[:ASKED]))
            await bare.client.aclose()
    return summary(found, users)


def summary(found: dict[str, list[tuple[float, float]]], users: int) -> dict[str, Any]:
    """Medians a beat (us) and an answer (ms)."""
    told: dict[str, Any] = {"users": users}
    for index, clock in enumerate(("wall", "own")):
        for what, unit in (("beat", 1e6 / users), ("online", 1e3)):
            bare, library = (
                statistics.median(one[index] for one in found[f"{name} {what}"]) for name in ("bare", "library")
            )
            told[f"{what}_{clock}"] = {
                "bare": round(bare * unit, 2),
                "library": round(library * unit, 2),
                "ratio": round(library / bare, 2),
            }
    return told


def main() -> None:
    """Run it on a server of its own."""
    parser = argparse.ArgumentParser(description="presence against bare redis-py pipelines")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with Servers() as servers:
        url = servers.redis().create_database()
        sys.stdout.write(json.dumps(asyncio.run(compare(url, chosen.users, chosen.rounds)), indent=2) + "\n")


if __name__ == "__main__":
    main()
