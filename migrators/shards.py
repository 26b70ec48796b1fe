"""Shards as an operator sees them: what lies where, and moving slot groups between them.

A group moves by the migration that moves a whole domain, run to its end. Whoever moves groups holds the domain's own
lease meanwhile, so that the domain as a whole stays where it is. Killed anywhere and run again, moves that were begun
are finished first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, InvalidArgument, NotFinished, PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.lease import held_lease
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.plan import Until
from datalayer.migrators.rebalance import Load, Move
from datalayer.routing.regionrecord import check_routing
from datalayer.routing.shards import parse_group
from datalayer.routing.together import each
from datalayer.stores.base import Sized
from datalayer.stores.sharded import ShardedBackend, member_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.control.base import Migration
    from datalayer.migrators.options import Failpoints, Reporter
    from datalayer.routing.places import Places
    from datalayer.routing.shards import Group, ShardMap

_SILENT: Final = Silent()
SPLIT: Final = "split"


@dataclass(frozen=True, slots=True)
class Sharding:
    """A domain that lies on shards: its backend, its groups, and where each is."""

    domain: str
    backend: ShardedBackend
    map: ShardMap
    shard_of: dict[Group, str]
    """Member by group."""


@dataclass(slots=True)
class Moved:
    """What a run of moves has done."""

    groups: list[str] = field(default_factory=list)
    holds_ms: list[float] = field(default_factory=list)
    rows: int = 0


async def sharding_of(places: Places, domain: str) -> Sharding:
    """Where a domain's slot groups lie now. PreconditionFailed when it does not lie on shards."""
    _, routings = await places.control.routings()
    places.learn(routings)
    routing = routings.get(domain)
    if routing is None:
        raise PreconditionFailed(f"{domain} has no place yet", hint="open the application once")
    backend = places.backend(routing.authority)
    if not isinstance(backend, ShardedBackend):
        raise PreconditionFailed(
            f"{domain} is on backend {backend.name!r}, which has no shards",
            hint=f"datalayer migrate {domain} --to a backend with members",
        )
    found = places.shard_map(domain, routing.authority.attempt)
    if found is None:
        raise PreconditionFailed(f"the slot groups of {domain} are not complete in the control store")
    await check_routing(places, routing)
    shard_of = {g: routings[g.name].authority.backend.partition("/")[2] for g in found.groups}
    return Sharding(domain, backend, found, shard_of)


async def loads(places: Places, sharding: Sharding, *, watch_s: float = 0.0) -> list[Load]:
    """What each slot group weighs now, by the shards' own estimates; with ``watch_s`` also how much it is used, as seen
    for that many seconds.
    """

    async def weigh(group: Group) -> Load:
        store = await at(group)
        size = await store.size() if isinstance(store, Sized) else 0
        return Load(group, sharding.shard_of[group], await store.estimate(), size)

    async def at(group: Group) -> Any:
        place = places.routing_of(group.name).authority
        await places.ensure_open(place)
        return places.store(sharding.domain, place)

    async def calls(group: Group) -> int:
        store = await at(group)
        return await store.calls() if isinstance(store, Sized) else 0

    groups = sharding.map.groups
    if not watch_s:
        return await each(groups, weigh)
    before, began = await each(groups, calls), places.clock.monotonic()
    await asyncio.sleep(watch_s)
    after, seconds = await each(groups, calls), places.clock.monotonic() - began
    found = await each(groups, weigh)
    return [
        replace(load, calls=max(0, last - first) / seconds)
        for load, first, last in zip(found, before, after, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What moves will cost, going by the moves of this domain's groups so far; None before the first."""

    rows: int
    size: int
    seconds: float | None
    hold_ms: float | None


async def estimate(places: Places, domain: str, moves: Sequence[Move], parallel: int = 1) -> Estimate:
    """Rows and bytes of the moves; time and hold of each by the medians of up to 50 completed ones."""
    took: list[float] = []
    rates: list[float] = []
    holds: list[float] = []
    for migration in await places.control.migrations():
        group = parse_group(migration.domain)
        if group is None or group.domain != domain or "completed" not in migration.milestones or len(took) == 50:
            continue
        copied = await places.control.document(migration.id, "backfill") or {"rows": 0, "seconds": 0}
        held = await places.control.document(migration.id, "holds") or {"holds": []}
        took.append((migration.updated_us - migration.started_us) / 1e6 - copied["seconds"])
        rates.append(copied["rows"] / max(copied["seconds"], 1e-3))
        holds += [entry["ms"] for entry in held["holds"]]
    rows, size = sum(m.load.rows for m in moves), sum(m.load.size for m in moves)
    if not took or not holds:
        return Estimate(rows, size, None, None)
    seconds = len(moves) * median(took) + rows / max(median(rates), 1.0)
    return Estimate(rows, size, seconds / parallel, median(holds))


def groups_of_slots(sharding: Sharding, slots: str) -> list[Group]:
    """The groups of ``0-63`` or ``0-63,128-191``. InvalidArgument unless the ranges are whole groups, each named once."""
    chosen: list[Group] = []
    for part in slots.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise InvalidArgument(f"{part!r} is no range of slots", hint="for example 0-63, or 0-63,128-191")
        low, high = int(first), int(last or first)
        inside = [g for g in sharding.map.groups if low <= g.first and g.last <= high]
        if not inside or inside[0].first != low or inside[-1].last != high:
            size = len(sharding.map.groups[0])
            raise InvalidArgument(
                f"slots {part.strip()} are not whole slot groups of {sharding.domain}",
                hint=f"they hold {size} slots each: 0-{size - 1}, {size}-{2 * size - 1}, and so on",
            )
        if set(inside) & set(chosen):
            raise InvalidArgument(f"slots {part.strip()} are named twice")
        chosen += inside
    return chosen


def check_shard(sharding: Sharding, name: str) -> str:
    """The name of a shard of this domain's backend, or InvalidArgument."""
    if name not in sharding.backend.weights:
        names = ", ".join(sorted(sharding.backend.weights))
        raise InvalidArgument(f"{name!r} is no shard of backend {sharding.backend.name!r}", hint=f"one of: {names}")
    return name


def check_region(sharding: Sharding, group: Group, to: str) -> None:
    """InvalidArgument when a group of users would leave its region."""
    if sharding.domain != "users" or not sharding.backend.regions:
        return
    regions = sharding.backend.regions
    own = regions[sharding.shard_of[group]]
    if regions[to] != own:
        raise InvalidArgument(
            f"slots {group.slots} of users belong to region {own!r}, and shard {to!r} is in {regions[to]!r}",
            hint="the region of a slot never changes; datalayer users move-region moves a user",
        )


async def unfinished(places: Places, domain: str) -> list[Migration]:
    """Moves of this domain's groups that were begun and have not ended, oldest first."""
    found = []
    for migration in await places.control.migrations():
        group = parse_group(migration.domain)
        if group is not None and group.domain == domain and not migration.finished:
            found.append(migration)
    return found[::-1]


async def with_begun(places: Places, domain: str, found: Sequence[Load]) -> list[Load]:
    """Loads as they will lie when the moves that were begun are finished: what a plan of further ones goes by."""
    to = {m.domain: m.target.backend.partition("/")[2] for m in await unfinished(places, domain)}
    return [replace(load, shard=to.get(load.group.name, load.shard)) for load in found]


@dataclass(frozen=True, slots=True)
class Split:
    """Which groups one split moves, by name: half of what was there when it began, however often it is begun again."""

    shard: str
    to: str
    groups: frozenset[str]


async def begun_split(places: Places, sharding: Sharding, shard: str, to: str) -> Split | None:
    """The split of these two shards that was begun and did not come to its end, if it was the last that moved groups."""
    found = await places.control.document(sharding.domain, SPLIT)
    if not found or (found["shard"], found["to"]) != (shard, to):
        return None
    groups = frozenset(found["groups"]) & {group.name for group in sharding.map.groups}
    return Split(shard, to, groups) if groups else None


class Mover:
    """Moves slot groups of one domain."""

    def __init__(
        self,
        places: Places,
        domain: str,
        *,
        holder: str,
        options: MigrateOptions | None = None,
        parallel: int = 1,
        purge: bool = False,
        reporter: Reporter = _SILENT,
        failpoints: Failpoints = _SILENT,
    ) -> None:
        if not 1 <= parallel <= 16:
            raise InvalidArgument(f"parallel is {parallel}; it must be from 1 to 16")
        self._places = places
        self._domain = domain
        self._holder = holder
        self._options = replace(options or MigrateOptions(), until=Until.COMPLETE, yes=True).checked()
        self._parallel = parallel
        self._purge = purge
        self._reporter = reporter
        self._failpoints = failpoints
        self.moved = Moved()

    async def run(self, moves: Sequence[Move], split: Split | None = None) -> Moved:
        """Finish what was begun, then make these moves; each is complete when the next of its worker begins. ``split``:
        the one that these moves are of, which is remembered until it is done.

        Raises what a migration raises; NotFinished names the first group that could not be moved, after the others
        under way have ended. Running it again goes on.
        """
        control, clock = self._places.control, self._places.clock
        async with held_lease(control, clock, self._domain, self._holder, self._reporter.note) as value:
            sharding = await sharding_of(self._places, self._domain)
            for move in moves:
                check_region(sharding, move.load.group, move.to)
            await self._remember(split)
            begun = [(m.domain, m.target.backend) for m in await unfinished(self._places, self._domain)]
            await self._all(begun, value)
            _, routings = await control.routings()
            self._places.learn(routings)
            wanted = [(m.load.group.name, member_name(sharding.backend.name, m.to)) for m in moves]
            there = {name for name, to in wanted if routings[name].authority.backend == to}
            await self._all([(name, to) for name, to in wanted if name not in there], value)
            for name in there - {name for name, _ in begun} if self._purge else ():
                await self._purge_again(name, value)
            if split is not None:
                await self._remember(None)
        return self.moved

    async def _remember(self, split: Split | None) -> None:
        """The split under way; none where other moves change what half of a shard is."""
        control = self._places.control
        if split is not None:
            told = {"shard": split.shard, "to": split.to, "groups": sorted(split.groups)}
            await control.put_document(self._domain, SPLIT, told)
        elif await control.document(self._domain, SPLIT):
            await control.put_document(self._domain, SPLIT, {})

    async def _all(self, work: Sequence[tuple[str, str]], domain_lease: int) -> None:
        left = list(work)[::-1]
        errors: list[DatalayerError] = []

        async def worker() -> None:
            while left and not errors:
                name, to = left.pop()
                try:
                    await self._move(name, to, domain_lease)
                except DatalayerError as error:
                    errors.append(error)

        await asyncio.gather(*(worker() for _ in range(min(self._parallel, len(left)))))
        if errors and errors[0].retryable and not isinstance(errors[0], NotFinished):
            raise NotFinished(f"a move of {self._domain} stopped: {errors[0].message}") from errors[0]
        if errors:
            raise errors[0]

    async def _move(self, name: str, to: str, domain_lease: int) -> None:
        group = parse_group(name)
        assert group is not None, "only slot groups are moved here"
        coordinator = self._coordinator(name, domain_lease)
        migration = await coordinator.migrate(to)
        if "completed" not in migration.milestones:
            raise NotFinished(f"slots {group.slots} are not at {to!r} yet: the phase is {migration.phase}")
        await self._note(migration)
        if self._purge:
            await coordinator.purge(migration.id)

    async def _purge_again(self, name: str, domain_lease: int) -> None:
        """A run that was killed between a group's last step and the purge left the old tables behind."""
        done = [m for m in await self._places.control.migrations(name) if "completed" in m.milestones]
        if done and "purged" not in done[0].milestones:
            await self._coordinator(name, domain_lease).purge(done[0].id)

    def _coordinator(self, name: str, domain_lease: int) -> Coordinator:
        return Coordinator(
            self._places,
            name,
            holder=self._holder,
            options=self._options,
            reporter=self._reporter,
            failpoints=self._failpoints,
            domain_lease=domain_lease,
        )

    async def _note(self, migration: Migration) -> None:
        self.moved.groups.append(migration.domain)
        holds: dict[str, Any] = await self._places.control.document(migration.id, "holds") or {"holds": []}
        self.moved.holds_ms += [entry["ms"] for entry in holds["holds"]]
        backfill = await self._places.control.document(migration.id, "backfill") or {"rows": 0}
        self.moved.rows += int(backfill["rows"])
