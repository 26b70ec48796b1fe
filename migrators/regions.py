"""Which users do not lie in their region, and what brings them there: moves that died on their way are finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.users import home_region
from datalayer.errors import PreconditionFailed
from datalayer.routing.regional import RegionalUsers

if TYPE_CHECKING:
    from datalayer.routing.places import Places

PAGE: Final = 1000
CALL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Outside:
    """One live row of a user in another region than the user's."""

    user: str
    region: str
    lies_in: str
    shard: str


async def outside(places: Places) -> list[Outside]:
    """Every row that lies outside its user's region, read from all shards.

    PreconditionFailed where users are not served from shards with regions.
    """
    users = regional_users(places)
    found = []
    for group in users.map.groups:
        store = await users.store(group)
        own, shard = users.regions.of_group(group), places.routing_of(group.name).authority.backend
        for range_ in await store.plan_scan(1):
            after, done = None, False
            while not done:
                records, after, done = await store.scan(range_, after, PAGE)
                for record in records:
                    region = home_region(record) if record.kind == "user" and not record.deleted else None
                    if region not in {None, own}:
                        found.append(Outside(str(UUID(bytes=record.key)), str(region), own, shard))
    return found


async def finish(places: Places, found: list[Outside]) -> None:
    """Finish the moves behind these rows. Repeating it is harmless."""
    users = regional_users(places)
    for one in found:
        deadline = Deadline(places.clock, CALL_S)
        lies = await users.records.settled(UUID(one.user).bytes, deadline)
        if lies is not None:
            await users.records.clear(lies, deadline)


def regional_users(places: Places) -> RegionalUsers:
    """The users' store where they are served now."""
    store = places.store("users", places.routing_of("users").authority)
    if not isinstance(store, RegionalUsers):
        raise PreconditionFailed(
            "users are not served from shards with regions", hint="[backends.NAME] regions, docs/how-to/regions.md"
        )
    return store
