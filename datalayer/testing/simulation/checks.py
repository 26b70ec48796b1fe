"""What must hold of the stores themselves: one authority at any instant (I6), equal sides when quiet (I5)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.movement import Movement, movement_of
from datalayer.domains.record import digest
from datalayer.domains.registry import DOMAINS
from datalayer.domains.users import home_region
from datalayer.routing.route import Phase
from datalayer.routing.shards import base_domain

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.domains.record import Key, Record
    from datalayer.routing.route import Place, Routing
    from datalayer.testing.simulation.world import World

QUIET_S: Final = 0.1
QUIET_ROUNDS: Final = 200


def accepts(world: World, routing: Routing, place: Place, side: str) -> bool:
    """Whether an ordinary write at a place, or at any part of it, would be taken now."""
    domain = base_domain(routing.domain)
    tables = [table for table, _ in world.tables(domain, place, routing.attempt)]
    if world.servers[tables[0].backend].authority_class == "transactional":
        return any(takes_writes(world, domain, table) for table in tables)
    log = world.control.log(f"{routing.domain}/{routing.attempt}/{side}")
    return log.installed and log.fence_now(world.clock.monotonic()) == "open"


def takes_writes(world: World, domain: str, table: Place) -> bool:
    """Whether the tables of one place in one transactional server take writes now."""
    sides = world.servers[table.backend]._sides.get((domain, table.attempt), {})  # noqa: SLF001 - a white-box oracle
    now = world.clock.monotonic()
    return all(side.fence_now(now) == "open" for side in sides.values())


def one_authority(world: World) -> None:
    """I6 now: while a migration of the domain or of a slot group lives, never do both sides take writes."""
    for name, routing in world.control.routes.items():
        if base_domain(name) != world.pair.domain or routing.at_rest or routing.target is None:
            continue
        if movement_of(name) is not Movement.RECORDS:
            continue  # written to both sides
        both = accepts(world, routing, routing.source, "source") and accepts(world, routing, routing.target, "target")
        if both:
            world.broken("I6", f"both sides of {name} take writes in {routing.phase}, epoch {routing.epoch}")


def watch_authorities(world: World) -> None:
    """Check I6 after every change of a fence or gate and after every publication, from now on."""
    from datalayer.control.memory_log import MemoryLog  # noqa: PLC0415 - names used once

    for server in world.servers.values():
        for name in ("install", "fence", "seal", "open", "remove"):
            _after(server, name, lambda: one_authority(world))
    _after(world.control, "publish", lambda: one_authority(world))
    make: Callable[[str], MemoryLog] = world.control.log

    def log(name: str) -> MemoryLog:
        found = make(name)
        if not getattr(found, "watched", False):
            for method in ("install", "fence", "seal", "open", "remove"):
                _after(found, method, lambda: one_authority(world))
            found.watched = True  # type: ignore[attr-defined]
        return found

    world.control.log = log  # type: ignore[method-assign]


def _after(thing: Any, name: str, check: Callable[[], None]) -> None:
    method = getattr(thing, name)

    def checked(*args: Any, **named: Any) -> Any:
        result = method(*args, **named)
        check()
        return result

    setattr(thing, name, checked)


def records_at(world: World, domain: str, place: Place) -> dict[Key, Record]:
    """Everything stored at a place; of users in regions each where it lies."""
    found: dict[Key, Record] = {}
    leaving: dict[Key, Record] = {}
    for part, _ in world.tables(domain, place, 0):
        table = world.servers[part.backend].tables.get((domain, part.attempt))
        region = world.regions.get(part.backend)
        for key, record in {} if table is None else table.records.items():
            if region is None or key[0] != "user" or home_region(record) in {None, region}:
                found[key] = record
            elif not record.deleted:
                leaving[key] = record
    return {**leaving, **found}


def differences(domain: str, authority: dict[Key, Record], mirror: dict[Key, Record]) -> list[str]:
    """Where two sides differ, deleted being the same as absent."""
    kinds = {kind.name: kind for kind in DOMAINS[domain].kinds}

    def live(records: dict[Key, Record]) -> dict[Key, int]:
        return {key: digest(kinds[r.kind], r) for key, r in records.items() if not r.deleted}

    ours, theirs = live(authority), live(mirror)
    return [
        f"{key[0]} {key[1].hex()[-12:]}: authority {_brief(authority.get(key))}, mirror {_brief(mirror.get(key))}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def backlog(world: World, routing: Routing) -> int:
    """How many keys the authority's journal holds."""
    side = "source" if routing.authority == routing.source else "target"
    domain = base_domain(routing.domain)
    tables = world.tables(domain, routing.authority, routing.attempt)
    if world.servers[tables[0][0].backend].authority_class == "transactional":
        return sum(
            len(world.servers[part.backend].side((domain, part.attempt), number).journal) for part, number in tables
        )
    return len(world.control.log(f"{routing.domain}/{routing.attempt}/{side}").intents)


async def sides_agree(world: World, traffic: Any) -> None:
    """I1, I2, I5 at the end: drain what is left (any replayer may), then compare everything with everything."""
    domain = world.pair.domain
    routing = world.control.routes[domain]
    if routing.mirror is not None:
        await drain_side(world, routing)
    routing = world.control.routes[domain]
    authority = records_at(world, domain, routing.authority)
    traffic.settle(authority)
    world.hits[f"rests at {routing.phase}"] += 1
    migration = next((m for m in world.control.migrations_of(domain) if m.attempt == routing.attempt), None)
    copied = migration is not None and "backfilled" in migration.milestones
    if routing.mirror is None or not (copied or routing.phase not in (Phase.DUAL, Phase.SOURCE)):
        return
    world.hits["sides compared"] += 1
    for line in differences(domain, authority, records_at(world, domain, routing.mirror)):
        world.broken("I5", f"{routing.phase}: {line}")


async def drain_side(world: World, routing: Routing) -> None:
    """Replay until the authority's journal is empty, as any process may."""
    from datalayer.routing.replay import Replayer  # noqa: PLC0415 - names used once

    machine, wire = world.machine("drain")
    places = world.places(machine, wire, world.clock)
    places.learn(world.control.routes)
    replayer = Replayer(places, routing, "drain")
    for _ in range(QUIET_ROUNDS):
        await replayer.step()
        await asyncio.sleep(QUIET_S)
        now = world.control.routes[routing.domain]
        if now.epoch != routing.epoch:
            return
        if backlog(world, now) == 0:
            return
    world.broken("I10", f"the journal does not become empty in {routing.phase}: {backlog(world, routing)}")


def _brief(record: Record | None) -> str:
    if record is None:
        return "absent"
    return f"{'deleted ' if record.deleted else ''}{record.version}"
