"""Whole lives over slot groups: the domain goes onto shards and home again, groups move, claims are swept, in any order
and under every disaster; then everything must come to rest and be right.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import NotFinished, PreconditionFailed
from datalayer.migrators.options import MigrateOptions
from datalayer.testing.simulation.life import COMMANDS, Life, Plan
from datalayer.testing.simulation.sharded import (
    MEMBERS,
    SHARDS,
    SINGLE,
    ShardedWorld,
    judge_at_the_end,
    sharded_traffic,
)
from datalayer.testing.simulation.world import Pair

if TYPE_CHECKING:
    from datalayer.migrators.shards import Sharding
    from datalayer.routing.shards import Group
    from datalayer.testing.simulation.world import Command

FINISH_TRIES: Final = 6


class ShardedLife(Life):
    """One run of one seed."""

    def __init__(self, seed: int, domain: str | None = None, *, commands: int = COMMANDS) -> None:
        rng = random.Random(f"sharded/{seed}")
        self._domain = domain or rng.choice(("users", "users", "messages"))
        self._begins = rng.choice((SINGLE, SHARDS))
        self._regional = self._domain == "users" and rng.random() < 0.5
        super().__init__(seed, Pair(domain=self._domain), commands=commands)

    def _planned(self, seed: int, pair: Pair | None) -> Plan:
        # A foreign program knows one table by name: of groups it is the contract suites' business.
        return replace(super()._planned(seed, pair), foreign=False)

    def _make_world(self, seed: int) -> ShardedWorld:
        plan = self.plan
        return ShardedWorld(
            seed,
            self._domain,
            begins=self._begins,
            regional=self._regional,
            eager=plan.eager,
            assist=plan.assist,
            pushes=plan.pushes,
        )

    @property
    def _sharded(self) -> ShardedWorld:
        assert isinstance(self.world, ShardedWorld), "made above"
        return self.world

    def _make_traffic(self) -> Any:
        return sharded_traffic(self._sharded)

    def _breakable(self) -> tuple[str, ...]:
        return ("c", "c", SINGLE, *(f"{SHARDS}/{member}" for member in MEMBERS))

    def _command(self, rng: random.Random) -> Command:
        draw = rng.random()
        on_shards = self.world.control.routes[self._domain].authority.backend == SHARDS
        if draw < (0.45 if on_shards else 0.05):
            return self._move(rng)
        if draw < 0.55 and self._domain == "users":
            self.note("sweep")
            self.world.hits["command sweep"] += 1
            return self._sharded.sweep()
        return super()._command(rng)

    def _move(self, rng: random.Random) -> Command:
        parallel, number, purge = rng.choice((1, 3)), rng.randrange(1, 4), rng.random() < 0.3
        to = [rng.choice(MEMBERS) for _ in range(number)]
        self.note(f"move {number} groups, {parallel} at once, to {to}")
        self.world.hits["command move"] += 1
        options = MigrateOptions(
            workers=rng.choice((1, 2)),
            max_hold_ms=rng.choice((30.0, 300.0, 1000.0)),
            ack_timeout_s=rng.choice((1.0, 6.0)),
        )
        picks = random.Random(rng.random())

        def choose(sharding: Sharding) -> list[tuple[Group, str]]:
            chosen = zip(picks.sample(list(sharding.map.groups), number), to, strict=True)
            regions = sharding.backend.regions
            return [(g, to) for g, to in chosen if regions.get(to) == regions.get(sharding.shard_of[g])]

        return self._sharded.move(choose, options, parallel=parallel, purge=purge)

    def _target(self) -> str:
        """Away from where the domain rests (or to the present target)."""
        for migration in self.world.control.migrations_of(self._domain):
            if not migration.finished:
                return migration.target.backend
        at = self.world.control.routes[self._domain].authority.backend
        return SHARDS if at == SINGLE else SINGLE

    async def _finish(self) -> None:
        """Moves that were begun come to their end first; then the domain's own migration."""
        if any(not m.finished and m.domain != self._domain for m in self.world.control.migrations.values()):
            await self._finish_moves()
        await super()._finish()

    async def _finish_moves(self) -> None:
        last: Any = None
        for _ in range(FINISH_TRIES):
            self.note("finish the moves")
            command = self._sharded.move(lambda _: [], MigrateOptions(ack_timeout_s=20.0), parallel=2)
            await asyncio.wait([command.task], timeout=200.0)
            if not command.task.done():
                self.world.broken("I10", f"the moves do not end: {self._where()}")
                return
            self._judge(command)
            last = command.task.exception()
            if last is None:
                self.world.hits["moves finished"] += 1
                return
            if isinstance(last, PreconditionFailed) and not isinstance(last, NotFinished):
                break
        self.world.broken("I10", f"the moves cannot be finished: {last!r}, {self._where()}")

    async def _judge_all(self) -> None:
        for process in self.world.processes:
            for task in process.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    self.world.broken("errors", f"{task.get_name()} met {task.exception()!r}")
        await judge_at_the_end(self._sharded, self.traffic)


__all__ = ["ShardedLife"]
