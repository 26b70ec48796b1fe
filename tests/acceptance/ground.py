"""What scenarios on real servers stand on: a deployment of their own, Postgres with Cassandra as the target."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from tests.acceptance.fleet import Fleet, configuration
from tests.servers import Servers

MIGRATE = ("migrate", "messages", "--to", "cassandra", "--yes")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ground:
    """A fleet without workers yet, and the URL of the source's database."""

    fleet: Fleet
    postgres: str


@asynccontextmanager
async def ground(servers: Servers, directory: Path, *, messages: int) -> AsyncIterator[Ground]:
    """Schemas made, rooms filled; users, control store and the messages' source are one Postgres database."""
    name = f"ground_{uuid4().hex[:12]}"
    postgres = servers.postgres(1)[0].create_database(name)
    urls = {"main": postgres, "cassandra": servers.cassandra().create_keyspace(name)}
    config = configuration(urls, {"users": "main", "messages": "main"}, postgres)
    async with Fleet.open(directory / "fleet", config, messages=messages) as fleet:
        await fleet.command("schema", "upgrade")
        await fleet.stage.preload()
        yield Ground(fleet, postgres)


async def eventually(look: Callable[[], Awaitable[T | None]], *, seconds: float, what: str) -> T:
    """What ``look`` finds first; AssertionError when it finds nothing in time."""
    until = time.monotonic() + seconds
    while True:
        found = await look()
        if found is not None:
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.05)
