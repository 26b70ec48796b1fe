"""Worlds in which a domain lies on slot groups over members, and what must hold of the groups."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.users import claim_key, to_user
from datalayer.errors import AlreadyExists, DatalayerError
from datalayer.migrators.options import Silent
from datalayer.migrators.rebalance import Load, Move
from datalayer.migrators.shards import Mover, sharding_of
from datalayer.migrators.sweep import sweep_claims
from datalayer.routing.claims import GRACE_US
from datalayer.routing.route import Place
from datalayer.routing.shards import parse_group, shard_map
from datalayer.stores.memory.server import MemoryServer
from datalayer.stores.sharded import ShardedBackend, member_name
from datalayer.testing.simulation.checks import differences, drain_side, records_at, sides_agree, takes_writes
from datalayer.testing.simulation.traffic import MessageTraffic
from datalayer.testing.simulation.users import UserTraffic
from datalayer.testing.simulation.world import Pair, World

if TYPE_CHECKING:
    import random

    from datalayer.domains.record import Record
    from datalayer.migrators.options import MigrateOptions
    from datalayer.migrators.sweep import Swept
    from datalayer.routing.shards import Group
    from datalayer.testing.simulation.world import Command, Process

SHARDS: Final = "shards"
SINGLE: Final = "s"
MEMBERS: Final = ("s0", "s1", "s2")
SHARD_REGIONS: Final = {"s0": "eu", "s1": "us", "s2": "us"}
GROUPS: Final = 4
SWEEPS: Final = 5


class ShardedWorld(World):
    """One server ``s`` beside a sharded backend of three members; the domain begins on either."""

    def __init__(
        self, seed: int, domain: str = "users", *, begins: str = SINGLE, regional: bool = False, **options: Any
    ) -> None:
        self.begins = begins
        self._shard_regions = SHARD_REGIONS if regional else {}
        self.regions = {member_name(SHARDS, shard): region for shard, region in self._shard_regions.items()}
        super().__init__(seed, Pair(domain=domain), **options)

    def _make_servers(self) -> dict[str, MemoryServer]:
        names = (SINGLE, "u", *(member_name(SHARDS, member) for member in MEMBERS))
        return {name: MemoryServer(name, self.clock) for name in names}

    def _config(self) -> dict[str, Any]:
        shards: dict[str, Any] = {"members": dict.fromkeys(MEMBERS, "memory://"), "slot_groups": GROUPS}
        shards |= {"regions": self._shard_regions} if self._shard_regions else {}
        backends = {SINGLE: {"url": "memory://"}, "u": {"url": "memory://"}, SHARDS: shards}
        return {"backends": backends, "routes": {"messages": "u", "users": "u", self.pair.domain: self.begins}}

    def backends(self, machine: Any, wire: Any) -> dict[str, Any]:
        """The clients of one machine: of each server, and of all members together."""
        found = super().backends(machine, wire)
        members = {name: client for name, client in found.items() if name.startswith(f"{SHARDS}/")}
        return {**found, SHARDS: ShardedBackend(SHARDS, members, groups=GROUPS, regions=self._shard_regions)}

    def tables(self, domain: str, place: Place, attempt: int) -> list[tuple[Place, int]]:
        """Of a sharded place each group's tables at its authority."""
        if place.backend != SHARDS:
            return [(place, attempt)]
        groups = shard_map(domain, place.attempt, self.control.routes)
        assert groups is not None, "whoever looks at a sharded place looks after it was made"
        return [(self.control.routes[g.name].authority, g.numbered(attempt)) for g in groups.groups]

    def groups(self) -> list[Group]:
        """The groups of every place there ever was."""
        found = (parse_group(name) for name in self.control.routes)
        return [group for group in found if group is not None and group.domain == self.pair.domain]

    def move(self, choose: Any, options: MigrateOptions, *, parallel: int, purge: bool = False, **more: Any) -> Command:
        """Start a Mover of slot groups on a machine of its own; ``choose(sharding)`` says what goes where."""
        machine, wire = self.machine("mover")
        places = self.places(machine, wire, self.machine_clock())
        chosen = replace(options, assume_dead=(*options.assume_dead, *self.dead))

        async def run() -> Any:
            sharding = await sharding_of(places, self.pair.domain)
            moves = [Move(Load(group, sharding.shard_of[group], 0), to) for group, to in choose(sharding)]
            mover = Mover(
                places, self.pair.domain, holder=machine.name, options=chosen, parallel=parallel, purge=purge, **more
            )
            return await mover.run(moves)

        return self.run_command(machine, wire, run())

    def sweep(self) -> Command:
        """Start a sweep of claims on a machine of its own."""
        machine, wire = self.machine("sweep")
        places = self.places(machine, wire, self.machine_clock())
        return self.run_command(machine, wire, sweep_claims(places, Silent()))


class ShardedUserTraffic(UserTraffic):
    """Users whose claims lie in other groups than their rows: an orphan is no violation before a sweep."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world, **options)
        self.swept = False
        # An orphan is judged by changing its owner's row: the same user at a higher version.
        self.history.repairs = True

    def _refuse(self, write: Any, error: DatalayerError, name: str | None) -> None:
        if isinstance(error, AlreadyExists) and error.field == "id":
            # Its create was given up while its caller was away: it never happened, and never will.
            self.world.hits["a create was given up"] += 1
            write.outcome = error.outcome
            return
        super()._refuse(write, error, name)

    async def _read(self, process: Process, rng: random.Random, who: str) -> None:
        if rng.random() < 0.85:
            await super()._read(process, rng, who)
            return
        try:
            await self._walk(process, who, rng.choice((3, 1000)))
        except DatalayerError as error:
            if not error.retryable:
                self.history.permanent.append(f"{who}'s list: {type(error).__name__}: {error.message}")

    async def _walk(self, process: Process, who: str, limit: int) -> None:
        """All users page by page: each once, in order, and none left out that was there before and stayed."""
        keys = list(self.history.keys)
        before = self.history.before(keys)
        met: dict[Any, Any] = {}
        cursor = None
        order: list[Any] = []
        for _ in range(1000):
            page = await process.layer.users.list(limit=limit, cursor=cursor)
            order += [user.id for user in page.items]
            met |= {user.id: user for user in page.items}
            cursor = page.next_cursor
            if cursor is None:
                break
        if order != sorted(set(order)):
            self.history.broken("I4", f"{who} listed users twice or out of order")
        self.world.hits["users listed"] += 1
        for item in before:
            user = met.get(item.key[0])
            self.history.saw(item, user and user.version, user and user.display_name, who)

    def settle(self, records: dict[tuple[str, bytes], Record]) -> None:
        """As for one database once a sweep was made; before that claims without users may be there."""
        if not self.swept:
            live = {r.key: to_user(r) for r in records.values() if r.kind == "user" and not r.deleted}
            wanted = {claim_key("username", user.username) for user in live.values()}
            orphans = {i for i, r in records.items() if i[0] == "claim" and not r.deleted and i[1] not in wanted}
            self.world.hits["orphan claims"] += len(orphans)
            records = {ident: record for ident, record in records.items() if ident not in orphans}
        super().settle(records)


def sharded_traffic(world: ShardedWorld, **options: Any) -> MessageTraffic | ShardedUserTraffic:
    """The traffic of the domain that is sharded."""
    made = MessageTraffic if world.pair.domain == "messages" else ShardedUserTraffic
    return made(world, **options)


async def judge_at_the_end(world: ShardedWorld, traffic: Any) -> None:
    """All that must hold when traffic has ended and nobody is at work; at rest, also after a sweep."""
    await sides_agree(world, traffic)
    await _group_sides_agree(world)
    one_member_serves_each_group(world)
    routing = world.control.routes[world.pair.domain]
    if world.pair.domain != "users" or not routing.at_rest:
        return
    await world.elapse(GRACE_US / 1e6 + 1.0)
    first = await _swept(world)
    if first is None:
        return
    world.hits["orphans freed"] += first.freed
    traffic.swept = True
    traffic.settle(records_at(world, "users", routing.authority))
    again = await _swept(world)
    if again is not None and (again.freed, again.young) != (0, 0):
        world.broken("claims", f"a second sweep found {again}")


async def _swept(world: ShardedWorld) -> Swept | None:
    """One sweep, tried again after what passes; a violation when it fails all the same."""
    error: BaseException | None = None
    for _ in range(SWEEPS):
        command = world.sweep()
        await asyncio.wait([command.task], timeout=60.0)
        error = command.task.exception() if command.task.done() else TimeoutError("it does not end")
        if error is None:
            found: Swept = command.task.result()
            return found
    world.broken("claims", f"a sweep at rest fails: {error!r}")
    return None


async def _group_sides_agree(world: ShardedWorld) -> None:
    """I5 of each slot group that is under way: its journal empties, then its two sides are equal."""
    for group in world.groups():
        routing = world.control.routes[group.name]
        if routing.mirror is None:
            continue
        await drain_side(world, routing)
        routing = world.control.routes[group.name]
        migration = next(m for m in world.control.migrations_of(group.name) if m.attempt == routing.attempt)
        if routing.mirror is None or "backfilled" not in migration.milestones:
            continue
        world.hits["sides of a group compared"] += 1
        ours, theirs = (records_at(world, group.domain, place) for place in (routing.authority, routing.mirror))
        for line in differences(group.domain, ours, theirs):
            world.broken("I5", f"{group.name} in {routing.phase}: {line}")


def one_member_serves_each_group(world: ShardedWorld) -> None:
    """Of all tables that ever held a group exactly one takes writes, if the domain lies there; else none does."""
    domain = world.pair.domain
    routing = world.control.routes[domain]
    # A copy that was made and never sealed is nobody's: no routing has ever named it.
    known = {routing.source, routing.target}
    known |= {m.source for m in world.control.migrations_of(domain) if "completed" in m.milestones}
    for group in world.groups():
        if Place(SHARDS, group.attempt) not in known:
            continue
        mine = world.control.routes[group.name]
        places = {mine.authority}
        for migration in world.control.migrations_of(group.name):
            places.add(migration.source)
            # A copy that was made and never sealed is nobody's: no routing has ever named it.
            if mine.attempt == migration.attempt and mine.target is not None:
                places.add(migration.target)
        there = [p for p in places if (domain, p.attempt) in world.servers[p.backend].tables]
        taking = [place for place in there if takes_writes(world, domain, place)]
        rules = routing.authority == Place(SHARDS, group.attempt)
        expected = [mine.authority] if rules else []
        if there and taking != expected:
            world.broken("I6", f"{group.name}: {taking} take writes, but {expected} should")
    single = routing.authority
    if single.backend != SHARDS and not takes_writes(world, domain, single):
        world.broken("I6", f"{single} rules {domain} and takes no writes")


__all__ = [
    "GROUPS",
    "MEMBERS",
    "SHARDS",
    "SINGLE",
    "ShardedUserTraffic",
    "ShardedWorld",
    "judge_at_the_end",
    "one_member_serves_each_group",
    "sharded_traffic",
]
