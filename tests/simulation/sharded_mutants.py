"""Mistakes planted in the sharding code, each with the programme that must notice it.

``matrix``: cases of some journeys of the sharded crash matrix; ``lives``: whole lives; ``quiet``: a journey without any
fault, in which no caller may see an error; ``sleeper`` and ``new mover``: a mover that wakes or begins while somebody
rolls its domain back; ``half moved``: a domain sent home when its mover has died;
``late reader``: a process that wakes when reads go to the shards (takeover).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from datalayer.control import memory_server
from datalayer.control.base import coordinator_lease
from datalayer.migrators import coordinator, hold, run, shards
from datalayer.migrators.lease import held_lease
from datalayer.migrators.plan import PLAN, Action, Stage
from datalayer.routing.router import Router
from datalayer.routing.shardguard import ShardedGuard
from datalayer.routing.shards import parse_group
from datalayer.routing.watchdog import Watchdog
from datalayer.stores.base import GuardState

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    name: str
    patch: Patch
    killed_by: Literal["matrix", "lives", "quiet", "sleeper", "new mover", "half moved", "late reader"]
    journeys: tuple[str, ...] = ()
    at: str = ""
    """Cases of the matrix at this action or call only."""


def _states_of(self: ShardedGuard) -> Any:
    async def states() -> list[GuardState]:
        return [await (await self.of(group)).state() for group in self.groups()]

    return states()


def sealed_though_one_group_is_open(patch: pytest.MonkeyPatch) -> None:
    async def state(self: ShardedGuard) -> GuardState:
        states = await _states_of(self)
        fences = {one.fence for one in states}
        fence = "sealed" if "sealed" in fences else "lapsing" if "lapsing" in fences else "open"
        return GuardState(all(s.installed for s in states), fence, max(s.flip for s in states))  # type: ignore[arg-type]

    patch.setattr(ShardedGuard, "state", state)


def half_sealed_stays_sealed(patch: pytest.MonkeyPatch) -> None:
    async def state(self: ShardedGuard) -> GuardState:
        states = await _states_of(self)
        fences = {one.fence for one in states}
        fence = "open" if "open" in fences else "lapsing" if "lapsing" in fences else "sealed"
        return GuardState(all(s.installed for s in states), fence, max(s.flip for s in states))  # type: ignore[arg-type]

    patch.setattr(ShardedGuard, "state", state)


def domain_before_its_groups(patch: pytest.MonkeyPatch) -> None:
    inner = Watchdog._meet_groups

    def domains_first(self: Watchdog, routings: Any) -> list[str]:
        groups = inner(self, routings)
        return [*(name for name in self._routers if parse_group(name) is None), *groups]

    patch.setattr(Watchdog, "_meet_groups", domains_first)


def groups_met_after_the_domain(patch: pytest.MonkeyPatch) -> None:
    inner = Watchdog._meet_groups

    def later(self: Watchdog, routings: Any) -> list[str]:
        asyncio.get_running_loop().call_later(0.05, inner, self, routings)
        return []

    patch.setattr(Watchdog, "_meet_groups", later)


def a_nested_router_never_gives_up(patch: pytest.MonkeyPatch) -> None:
    inner = Router.__init__

    def init(self: Router, *args: Any, nested: bool = False) -> None:
        inner(self, *args, nested=nested and False)

    patch.setattr(Router, "__init__", init)


def moves_without_the_lease_of_the_domain(patch: pytest.MonkeyPatch) -> None:
    """Whoever moves groups takes the domain's token from the control store without holding the lease."""

    @asynccontextmanager
    async def peeked(control: Any, clock: Any, domain: str, holder: str, note: Any) -> AsyncIterator[int]:
        lease = control.server._leases.get(coordinator_lease(domain))
        if lease is None or not lease.holder:
            async with held_lease(control, clock, domain, holder, note) as value:
                yield value
        else:
            yield lease.token

    patch.setattr(shards, "held_lease", peeked)


def the_lease_of_the_domain_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    inner = memory_server.MemoryControlServer.start_migration

    def start(self: Any, token: Any, migration: Any, actor: str, *, within: Any = None) -> Any:
        del within
        return inner(self, token, migration, actor)

    patch.setattr(memory_server.MemoryControlServer, "start_migration", start)


def a_domain_starts_while_a_group_moves(patch: pytest.MonkeyPatch) -> None:
    async def at_rest(_: Any, routings: Any) -> None:
        del routings

    patch.setattr(coordinator.Coordinator, "_check_groups_at_rest", at_rest)
    patch.setattr(memory_server, "rivals", lambda domain: (domain, "\x00"))


def the_journal_of_the_domain_is_not_handed_over(patch: pytest.MonkeyPatch) -> None:
    async def nothing(_: Any) -> int:
        return 0

    patch.setattr(hold, "drain_around", nothing)


def no_journal_of_the_domain_at_the_new_place(patch: pytest.MonkeyPatch) -> None:
    async def skipped(_: Any) -> str:
        return "not needed"

    patch.setitem(run.HANDLERS, Action.JOIN_DOMAIN, skipped)


def the_journal_of_the_domain_joins_after_the_flip(patch: pytest.MonkeyPatch) -> None:
    inner = run.HANDLERS[Action.OPEN_OTHER]

    async def open_other(work: Any) -> str:
        done = await inner(work)
        await asyncio.sleep(0.05)
        if work.around is not None:
            place = work.routing.authority
            await work.around.guard(work, place).install(work.around.token, sealed=False)
        return done

    patch.setitem(PLAN, Stage.ARM, tuple(a for a in PLAN[Stage.ARM] if a is not Action.JOIN_DOMAIN))
    patch.setitem(run.HANDLERS, Action.OPEN_OTHER, open_other)


def what_was_begun_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    async def none(_places: Any, _domain: str) -> list[Any]:
        return []

    patch.setattr(shards, "unfinished", none)


HANDED = ("out, move, back",)
MUTANTS = [
    Mutant(
        "sealed though one group is open",
        sealed_though_one_group_is_open,
        "matrix",
        ("out, back, out, complete",),
        "fence_for_good",
    ),
    Mutant("half sealed stays sealed", half_sealed_stays_sealed, "matrix", ("out, back, out, complete",), "guard.seal"),
    Mutant("the domain's route before its groups'", domain_before_its_groups, "late reader"),
    Mutant("groups met after the domain", groups_met_after_the_domain, "quiet", ("out",)),
    Mutant("a nested router never gives up", a_nested_router_never_gives_up, "quiet", HANDED),
    Mutant("moves without the lease of the domain", moves_without_the_lease_of_the_domain, "new mover"),
    Mutant("the lease of the domain is not compared", the_lease_of_the_domain_is_not_compared, "sleeper"),
    Mutant("a domain starts while a group moves", a_domain_starts_while_a_group_moves, "half moved"),
    Mutant("the domain's journal is not handed over", the_journal_of_the_domain_is_not_handed_over, "matrix", HANDED),
    Mutant("no journal of the domain at the new place", no_journal_of_the_domain_at_the_new_place, "quiet", HANDED),
    Mutant(
        "the domain's journal joins after the flip", the_journal_of_the_domain_joins_after_the_flip, "quiet", HANDED
    ),
    Mutant(
        "what was begun is passed over",
        what_was_begun_is_passed_over,
        "matrix",
        ("move and purge, home",),
        "await_fleet",
    ),
]

__all__ = ["MUTANTS", "Mutant"]
