"""Which users do not lie in their region, and what brings them there: moves that died on their way are finished."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.users import home_region
from datalayer.errors import Conflict, PreconditionFailed
from datalayer.migrators.lease import held_lease
from datalayer.routing import regionrecord
from datalayer.routing.claims import RACES_MAX
from datalayer.routing.regional import RegionalUsers
from datalayer.routing.regionrecord import DOCUMENT, USERS, check, configured, document_of, recorded
from datalayer.routing.shards import base_domain, share_out
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from datalayer.routing.places import Places
    from datalayer.stores.base import Backend

PAGE: Final = 1000
CALL_S: Final = 30.0
GONE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outside:
    """One live row of a user where the user does not lie: in another region, or left over by somebody who died."""

    user: str
    region: str
    lies_in: str
    shard: str


def check_shares(backend: Backend, domain: str) -> None:
    """As ``regionrecord.check_shares``, before anything is made."""
    if domain == USERS and isinstance(backend, ShardedBackend):
        regionrecord.check_shares(backend, share_out(backend.groups, backend.weights))


async def outside(places: Places) -> list[Outside]:
    """Every row that lies outside its user's region, read from all shards.

    PreconditionFailed where users are not served from shards with regions.
    """
    users = regional_users(places)
    found: list[Outside] = []
    for group in users.map.groups:
        store = await users.store(group)
        own, shard = users.regions.of_group(group), places.routing_of(group.name).authority.backend
        for range_ in await store.plan_scan(1):
            after, done = None, False
            while not done:
                records, after, done = await store.scan(range_, after, PAGE)
                live = [record for record in records if record.kind == "user" and not record.deleted]
                away = [r for r in live if home_region(r) in {None, own} and users.regions.home(r.key) != group]
                leads = await users.records.located([r.ident for r in away], Deadline(places.clock, CALL_S))
                stray = {r.key for r in away if r.ident not in leads or leads[r.ident].group != group}
                for record in live:
                    region = home_region(record)
                    if region not in {None, own} or record.key in stray:
                        found.append(Outside(str(UUID(bytes=record.key)), region or "", own, shard))
    return found


async def adopt(places: Places, holder: str) -> None:
    """Write the configured regions down of a place of users that was made without any, so that it may be opened with
    them; where they are written already, nothing.

    PreconditionFailed while another process is open, for it would take pointers for deleted users, and while users are
    being moved. RoutingMismatch where other regions are written down.
    """
    _, routings = await places.control.routings()
    places.learn(routings)
    place = routings[USERS].authority if USERS in routings else None
    found = None if place is None else places.shard_map(USERS, place.attempt)
    if place is None or found is None or not (mine := configured(places, found.groups)):
        return
    async with held_lease(places.control, places.clock, USERS, holder, _silent):
        theirs = await recorded(places, place.attempt)
        if theirs:
            check(place.backend, theirs, mine)
            return
        others = [one for one in await places.control.processes() if one.seen_ago_s < GONE_S]
        if others and theirs is None:
            return  # a place from before anything was written down: they may all know the regions
        if others:
            names = ", ".join(f"{one.name} {one.host}:{one.pid}" for one in others[:5])
            raise PreconditionFailed(
                f"{len(others)} process(es) may not know the regions: {names}",
                hint=f"stop every process first; one that was killed counts as gone after {GONE_S:.0f} s",
            )
        for migration in await places.control.migrations():
            if base_domain(migration.domain) == USERS and not migration.finished:
                raise PreconditionFailed(
                    f"migration {migration.id} of {migration.domain} has not ended",
                    hint="datalayer migrations complete or cancel",
                )
        await places.control.put_document(document_of(place.attempt), DOCUMENT, mine)
        await places.control.audit(holder, "regions", f"written down for users of attempt {place.attempt}")


def _silent(_: str) -> None:
    """Nothing is told: it is short."""


async def finish(places: Places, found: list[Outside]) -> None:
    """Finish the moves behind these rows. Repeating it is harmless."""
    users = regional_users(places)
    for one in found:
        deadline = Deadline(places.clock, CALL_S)
        for _ in range(RACES_MAX):
            lies = await users.records.settled(UUID(one.user).bytes, deadline)
            if lies is None:
                break
            with suppress(Conflict):  # the user changed meanwhile
                await users.records.clear(lies, deadline)
                break


def regional_users(places: Places) -> RegionalUsers:
    """The users' store where they are served now."""
    store = places.store("users", places.routing_of("users").authority)
    if not isinstance(store, RegionalUsers):
        raise PreconditionFailed(
            "users are not served from shards with regions", hint="[backends.NAME] regions, docs/how-to/regions.md"
        )
    return store
