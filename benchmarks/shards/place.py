"""Users on four shards, and the same users where peers find them. Shards are databases of one cluster."""

import asyncio
import hashlib
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.stage import Ground, create_schemas, settings_of
from datalayer.clock import SystemClock
from datalayer.domains.record import Record
from datalayer.domains.users import claim_keys, claim_record, to_record
from datalayer.ids import id_time_us, uuid7_at
from datalayer.layer import DataLayer
from datalayer.migrators.opening import open_places
from datalayer.migrators.shards import sharding_of
from datalayer.settings import Settings, load_settings
from datalayer.types import User

SHARDS = 4
GROUPS = 64
SLOTS = 4096
BATCH, IN_FLIGHT = 2000, 4
RECORDS_A_USER = 3
"""Its row, the claim of its name, the claim of its address."""


@dataclass(frozen=True, slots=True)
class Lies:
    """Where one slot group lies: the number of its shard, and the number that its tables carry."""

    slots: str
    shard: int
    table: int


@dataclass(frozen=True, slots=True)
class Sharded:
    """A deployment with users on shards."""

    folder: Path
    config: Path
    shards: tuple[str, ...]
    groups: int

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    async def lies(self) -> list[Lies]:
        """Every slot group, in the order of the slots."""
        async with open_places(self.settings, SystemClock(), claim=False) as places:
            sharding = await sharding_of(places, "users")
            return [
                Lies(group.slots, int(sharding.shard_of[group][1:]), places.routing_of(group.name).authority.attempt)
                for group in sharding.map.groups
            ]


def people(count: int, seed: int = 5, *, before_us: int | None = None) -> list[User]:
    """Users made up, the same ones each time but for the hour in which they were created."""
    chance = random.Random(seed)
    now = SystemClock().now_us() if before_us is None else before_us
    found = []
    for number in range(count):
        ident = uuid7_at(now - 3_600_000_000 + number * 3_600 * 10**6 // count, chance.getrandbits(62))
        made = id_time_us(ident)
        name = f"user-{seed}-{number}"
        attributes = {"locale": "en", "plan": "free"}
        found.append(
            User(ident, name, f"{name}@example.org", f"User {number}", "active", made, False, made, attributes)
        )
    return found


def records(users: Sequence[User]) -> list[Record]:
    """Rows and claims of users, by slot: a batch then lands in few slot groups."""
    found = []
    for user in users:
        found.append(to_record(user))
        found += [claim_record(key, user.id, user.version) for key in claim_keys(user.username, user.email)]
    return sorted(found, key=lambda record: slot(record.key[:16]))


def slot(routing_key: bytes) -> int:
    """As a service would write it that has no shard layer: the peers' own arithmetic."""
    return int.from_bytes(hashlib.sha256(routing_key).digest()[:2]) >> 4


async def sharded(ground: Ground, *, shards: int = SHARDS, groups: int = GROUPS, all_on: int | None = None) -> Sharded:
    """Empty shards and a control store, with their schema and their slot groups - on the first ``all_on`` shards."""
    folder = Path(tempfile.mkdtemp(dir=ground.folder))
    urls = tuple(ground.database() for _ in range(shards))
    members = ", ".join(f's{number} = "{url}"' for number, url in enumerate(urls))
    used = shards if all_on is None else all_on
    weights = ", ".join(f"s{number} = {int(number < used)}" for number in range(shards))
    config = folder / "datalayer.toml"
    config.write_text(
        f"[backends.shards]\nmembers = {{ {members} }}\nweights = {{ {weights} }}\nslot_groups = {groups}\n"
        f'[backends.main]\nurl = "{ground.database()}"\n[routes]\nusers = "shards"\nmessages = "main"\n'
        f'[control]\nurl = "{ground.database()}"\n'
    )
    place = Sharded(folder, config, urls, groups)
    await create_schemas(place.settings)
    async with DataLayer.open(place.settings):
        return place


async def fill(place: Sharded, users: Sequence[User]) -> None:
    """Store users on the shards as a migration does."""
    async with open_places(place.settings, SystemClock(), claim=False) as places:
        await sharding_of(places, "users")
        await _apply(places.store("users", places.routing_of("users").authority), records(users))


async def unsharded(ground: Ground, users: Sequence[User]) -> Settings:
    """One database with the same users."""
    url = ground.database()
    settings = settings_of({"main": url}, url)
    await create_schemas(settings)
    async with DataLayer.open(settings) as layer:
        places = layer.places
        await _apply(places.store("users", places.routing_of("users").authority), records(users))
    return settings


async def _apply(store: Any, rows: Sequence[Record]) -> None:
    ready = asyncio.Semaphore(IN_FLIGHT)
    async with asyncio.TaskGroup() as tasks:

        async def one(batch: Sequence[Record]) -> None:
            async with ready:
                await store.apply(batch)

        for at in range(0, len(rows), BATCH):
            tasks.create_task(one(rows[at : at + BATCH]))


def ids_of(users: Sequence[User]) -> list[UUID]:
    return [user.id for user in users]
