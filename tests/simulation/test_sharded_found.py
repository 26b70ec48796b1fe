"""What the programmes over slot groups found, each in the one run that shows it."""

import asyncio
from typing import Any

import pytest

from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.stores.memory.faults import Call, Fault
from datalayer.testing.simulation.checks import watch_authorities
from datalayer.testing.simulation.matrix import Case, Point, number
from datalayer.testing.simulation.sharded import MEMBERS, SHARDS, ShardedWorld, judge_at_the_end, sharded_traffic
from datalayer.testing.simulation.sharded_matrix import ShardedMatrix
from datalayer.testing.simulation.world import Pair

USERS = Pair(domain="users")


def _point(journey: str, action: str, call: str = "") -> Point:
    points = number(USERS, journey, ShardedMatrix).points
    return next(p for p in points if p.action == action and p.call.endswith(call))


@pytest.mark.parametrize("action", ["await_fleet", "retire_source", "remove_reverse"])
def test_a_group_whose_mover_died_after_it_published_complete_is_finished_by_the_next_run(action: str) -> None:
    journey = "move and purge, home"
    point = _point(journey, action)
    assert ShardedMatrix(USERS, journey, Case(USERS, journey, point, Fault.CRASH_BEFORE)).run().struck_at is not None


def test_old_tables_are_dropped_by_the_next_run_when_a_mover_died_before_its_purge() -> None:
    journey = "move and purge, home"
    point = _point(journey, "purge_source")
    assert ShardedMatrix(USERS, journey, Case(USERS, journey, point, Fault.CRASH_BEFORE)).run().struck_at is not None


class _WhenVerifying:
    """Wakes a mover when a rollback has looked whether anything moves, and gives it time."""

    def __init__(self, world: ShardedWorld, mover: Any) -> None:
        self._world, self._mover = world, mover

    async def reach(self, name: str) -> None:
        if name == "verify.before" and self._mover.machine.paused:
            self._world.loop.resume(self._mover.machine)
            await asyncio.sleep(0.4)


def test_a_mover_that_slept_begins_no_group_after_somebody_took_its_domain_over() -> None:
    world = ShardedWorld(5, eager=False, assist=False)
    options = MigrateOptions(until=Until.TARGET, yes=True, max_hold_ms=300.0)

    async def main() -> None:
        traffic = sharded_traffic(world)
        watch_authorities(world)
        for _ in range(2):
            traffic.employ(await world.start())
        await asyncio.wait([world.command("out", options, lambda c: c.migrate(SHARDS)).task])
        mover = world.move(lambda sharding: [(sharding.map.groups[0], MEMBERS[1])], options, parallel=1)

        def sleep_there(call: Call) -> None:
            if call.name == "control.start_migration" and not mover.task.done():
                world.loop.pause(mover.machine)

        mover.wire.plan = sleep_there
        await world.elapse(8.0)
        assert mover.machine.paused
        mover.wire.plan = None
        back = world.command("back", options, Coordinator.rollback, failpoints=_WhenVerifying(world, mover))
        await asyncio.wait([back.task, mover.task], timeout=60.0)
        assert back.task.exception() is None
        assert type(mover.task.exception()).__name__ == "LostLease"
        assert [m.domain for m in world.control.migrations.values()] == ["users"]
        traffic.stopped.set()
        await asyncio.wait([task for process in world.processes for task in process.tasks])
        await judge_at_the_end(world, traffic)

    world.run(main())
