"""Which region each slot group of users belongs to: written down when a place is made, compared by whoever opens it.

Pointers lead by names of regions, and a process that knows none takes a pointer for a deleted user. So the configuration
must say of every group what the control store says: a process that has other names, or none, serves no users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import PreconditionFailed, RoutingMismatch
from datalayer.routing.shards import parse_group
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing
    from datalayer.routing.shards import Group

USERS: Final = "users"
DOCUMENT: Final = "regions"


def configured(places: Places, groups: Iterable[Group]) -> dict[str, str]:
    """The region of each group's shard by the configuration, by slots; nothing of shards that have none."""
    found = {}
    for group in groups:
        whole, _, shard = places.routing_of(group.name).authority.backend.partition("/")
        backend = places.backends.get(whole)
        region = backend.regions.get(shard) if isinstance(backend, ShardedBackend) else None
        if region is not None:
            found[group.slots] = region
    return found


async def recorded(places: Places, attempt: int) -> dict[str, str] | None:
    """What was written down when the place of this attempt was made: region by slots, empty where it has none."""
    found = await places.control.document(document_of(attempt), DOCUMENT)
    if found is not None:
        places.region_records[attempt] = found
    return found


def check_shares(backend: ShardedBackend, shares: Iterable[str]) -> None:
    """PreconditionFailed where a region would get none of the slot groups of users, which would go to these shards: they
    are divided once, and its users could never lie there.
    """
    given = {backend.regions.get(shard) for shard in shares}
    for region in sorted(set(backend.regions.values()) - given):
        raise PreconditionFailed(
            f"no slots of backend {backend.name!r} would fall to region {region!r}",
            hint="give a shard of it a weight, or the backend more slot_groups",
        )


def document_of(attempt: int) -> str:
    """Under which name the control store keeps what is known of a place."""
    return f"{USERS}/{attempt}"


async def write_down(places: Places, place: Place) -> None:
    """Of a place whose groups were made just now; what is written already stays. Idempotent."""
    found = places.shard_map(USERS, place.attempt)
    assert found is not None, "the groups were made just now"
    mine = configured(places, found.groups)
    check(place.backend, await places.control.ensure_document(document_of(place.attempt), DOCUMENT, mine), mine)


async def check_routing(places: Places, routing: Routing) -> None:
    """RoutingMismatch where users, or a slot group of them, lie by other regions than the configuration names."""
    group = parse_group(routing.domain)
    if group is not None:
        # what is known of the place was read with its domain's routing: a group alone is worth no round trip
        theirs = places.region_records.get(group.attempt) if group.domain == USERS else None
        if theirs is not None:
            mine = configured(places, [group])
            there = {slots: region for slots, region in theirs.items() if slots == group.slots}
            check(routing.authority.backend.partition("/")[0], there, mine)
        return
    for place in (routing.authority, routing.mirror) if routing.domain == USERS else ():
        if place is not None and isinstance(places.backend(place), ShardedBackend):
            await check_place(places, place)


async def check_place(places: Places, place: Place) -> None:
    """RoutingMismatch where users at a sharded place lie by other regions than the configuration names."""
    found = places.shard_map(USERS, place.attempt)
    theirs = None if found is None else await recorded(places, place.attempt)
    if found is not None and theirs is not None:  # else it is being made, or was before anything was written down
        check(place.backend, theirs, configured(places, found.groups))


def check(backend: str, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """RoutingMismatch unless both name the same region for every group."""
    if theirs == mine:
        return
    names = ", ".join(sorted(set(theirs.values())))
    if not mine:
        raise RoutingMismatch(
            f"users on backend {backend!r} lie by regions ({names}), and this configuration names none",
            hint=f"give [backends.{backend}] the regions that the other processes have",
        )
    if not theirs:
        raise RoutingMismatch(
            f"users on backend {backend!r} were placed without regions, and this configuration names some",
            hint="stop every process, then: datalayer users check-regions --mend",
        )
    slots = next(slots for slots in {**theirs, **mine} if theirs.get(slots) != mine.get(slots))
    raise RoutingMismatch(
        f"slots {slots} of users on backend {backend!r} belong to region {theirs.get(slots)!r}, and this configuration "
        f"puts their shard into {mine.get(slots)!r}",
        hint=f"the regions of [backends.{backend}] keep their names, as the other processes have them",
    )
