"""The crash matrix over slot groups: a domain goes onto shards, back, over again and home; groups move between members.

Every call of a command is numbered as for one database, so there is a fault before and after each step of each group:
half of the groups made, armed, fenced, sealed, opened, retired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from datalayer.errors import PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.shards import parse_group
from datalayer.testing.simulation.matrix import Matrix
from datalayer.testing.simulation.sharded import (
    MEMBERS,
    SHARDS,
    SINGLE,
    ShardedWorld,
    judge_at_the_end,
    sharded_traffic,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.migrators.options import Failpoints
    from datalayer.migrators.shards import Sharding
    from datalayer.routing.shards import Group
    from datalayer.testing.simulation.world import Command, Pair

SHARDED_JOURNEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "out": ("target",),
    "out, back, out, complete": ("target", "back", "target", "complete"),
    "armed, cancel": ("armed", "cancel"),
    "out, complete, move, home": ("target", "complete", "move", "home"),
    "out, move, back": ("target", "move", "back"),
    "out, move three at once, complete": ("target", "move three", "complete"),
    "move": ("move",),
    "move three at once": ("move three",),
    "move and purge, home": ("move and purge", "home", "purge"),
}
_ENDS: Final = {"target": "target", "back": "dual", "complete": "complete", "cancel": "source", "armed": "armed"}


class ShardedMatrix(Matrix):
    """Runs one case from nothing to its judgement."""

    journeys: ClassVar[Mapping[str, tuple[str, ...]]] = SHARDED_JOURNEYS

    def _make_world(self, pair: Pair, *, assist: bool) -> ShardedWorld:
        begins = SHARDS if self._steps[0].startswith("move") else SINGLE
        return ShardedWorld(1, pair.domain, begins=begins, eager=False, assist=assist)

    @property
    def failpoints(self) -> Failpoints:
        """What the engine's named places reach."""
        return self.numbered

    def _make_traffic(self) -> Any:
        assert isinstance(self.world, ShardedWorld), "made above"
        return sharded_traffic(self.world, pause_s=0.05)

    async def _judge(self) -> None:
        assert isinstance(self.world, ShardedWorld), "made above"
        for process in self.world.processes:
            for task in process.tasks:
                if task.done() and task.exception() is not None:
                    self.world.broken("errors", f"{task.get_name()} met {task.exception()!r}")
        await judge_at_the_end(self.world, self._traffic)

    def _command(self, step: str) -> Command:
        assert isinstance(self.world, ShardedWorld), "made above"
        until = {"armed": Until.ARMED, "home": Until.COMPLETE}.get(step, Until.TARGET)
        options = MigrateOptions(until=until, yes=True, workers=1, max_hold_ms=300.0, ack_timeout_s=10.0)
        acts: dict[str, Any] = {
            "target": lambda c: c.migrate(SHARDS),
            "armed": lambda c: c.migrate(SHARDS),
            "home": lambda c: c.migrate(SINGLE),
            "back": Coordinator.rollback,
            "complete": Coordinator.complete,
            "cancel": Coordinator.cancel,
            "purge": Coordinator.purge,
        }
        if step in acts:
            command = self.world.command(step, options, acts[step], failpoints=self.failpoints, patience_s=20.0)
        else:
            parallel = 3 if step == "move three" else 1
            choose = _three if step == "move three" else _two
            purge = step == "move and purge"
            command = self.world.move(choose, options, parallel=parallel, purge=purge, failpoints=self.failpoints)
        self.numbered.attach(command)
        return command

    def _done_already(self, step: str, error: PreconditionFailed) -> bool:
        if step == "home" and f"is on backend {SINGLE!r} already" in str(error):
            return True
        return super()._done_already(step, error)

    def _arrived(self) -> None:
        world, step = self.world, self._steps[-1]
        routes = world.control.routes
        phase = str(routes[world.pair.domain].phase)
        if step in _ENDS and phase != _ENDS[step]:
            world.broken("I7", f"after {self._steps} the phase is {phase}")
        if step in ("home", "purge") and (phase, routes[world.pair.domain].authority.backend) != ("complete", SINGLE):
            world.broken("I7", f"after {self._steps} {world.pair.domain} is {routes[world.pair.domain]}")
        if "move" in self._steps or "move three" in self._steps:
            assert isinstance(world, ShardedWorld), "made above"
            moved = [routes[group.name] for group in world.groups() if routes[group.name].target is not None]
            at_rest = [routing for routing in moved if routing.at_rest]
            if len(moved) != (3 if "move three" in self._steps else 2) or at_rest != moved:
                world.broken("I7", f"after {self._steps} the moved groups are {moved}")

        if "move and purge" in self._steps:
            done = [m for m in world.control.migrations.values() if parse_group(m.domain) is not None]
            if len(done) != 2 or any("purged" not in migration.milestones for migration in done):
                world.broken("I7", f"after {self._steps} old tables are left of {done}")


def _two(sharding: Sharding) -> list[tuple[Group, str]]:
    return _to_the_next(sharding)[:2]


def _three(sharding: Sharding) -> list[tuple[Group, str]]:
    return _to_the_next(sharding)[:3]


def _to_the_next(sharding: Sharding) -> list[tuple[Group, str]]:
    """Each group's next member after the one where it was laid first: the same in a resume."""
    return [(group, MEMBERS[(at + 1) % len(MEMBERS)]) for at, group in enumerate(sharding.map.groups)]


__all__ = ["SHARDED_JOURNEYS", "ShardedMatrix"]
