"""A mover of slot groups meets an operator who moves the whole domain."""

import asyncio
from typing import Any, Literal

from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.route import Phase
from datalayer.stores.memory.faults import Call
from datalayer.testing.simulation.checks import watch_authorities
from datalayer.testing.simulation.sharded import (
    MEMBERS,
    SHARDS,
    SINGLE,
    ShardedWorld,
    judge_at_the_end,
    sharded_traffic,
)

OPTIONS = MigrateOptions(until=Until.TARGET, yes=True, max_hold_ms=300.0)


class _WhenVerifying:
    """Does something once a rollback has looked whether any group moves, and gives it time."""

    def __init__(self, act: Any) -> None:
        self._act = act

    async def reach(self, name: str) -> None:
        if name == "verify.before" and self._act is not None:
            act, self._act = self._act, None
            act()
            await asyncio.sleep(0.4)


def _move(world: ShardedWorld) -> Any:
    return world.move(lambda sharding: [(sharding.map.groups[0], MEMBERS[1])], OPTIONS, parallel=1)


async def _asleep(world: ShardedWorld) -> Any:
    """A mover that sleeps past its leases right before it enters a group's migration."""
    mover = _move(world)

    def sleep_there(call: Call) -> None:
        if call.name == "control.start_migration" and not mover.task.done():
            world.loop.pause(mover.machine)

    mover.wire.plan = sleep_there
    await world.elapse(8.0)
    assert mover.machine.paused
    mover.wire.plan = None
    return mover


def take_over(mover_is: Literal["asleep", "new"]) -> list[str]:
    """Roll a domain back that rests at target; the mover wakes, or begins, when nobody looks any more. How it ended."""
    world = ShardedWorld(5, eager=False, assist=False)
    movers: list[Any] = []

    async def main() -> None:
        traffic = sharded_traffic(world)
        watch_authorities(world)
        for _ in range(2):
            traffic.employ(await world.start())
        await asyncio.wait([world.command("out", OPTIONS, lambda c: c.migrate(SHARDS)).task])
        if mover_is == "asleep":
            movers.append(await _asleep(world))
            act: Any = lambda: world.loop.resume(movers[0].machine)  # noqa: E731 - one of two
        else:
            act = lambda: movers.append(_move(world))  # noqa: E731 - one of two
        back = world.command("back", OPTIONS, Coordinator.rollback, failpoints=_WhenVerifying(act))
        await asyncio.wait([back.task], timeout=60.0)
        assert back.task.exception() is None
        await asyncio.wait([movers[0].task], timeout=60.0)
        assert [m.domain for m in world.control.migrations.values()] == ["users"], "a group moves as well"
        traffic.stopped.set()
        await asyncio.wait([task for process in world.processes for task in process.tasks])
        await judge_at_the_end(world, traffic)

    world.run(main())
    return [type(mover.task.exception()).__name__ for mover in movers]


def send_home_half_moved() -> str:
    """Move a domain whose mover died in the middle of a group. How that ended."""
    world = ShardedWorld(6, begins=SHARDS, eager=False, assist=False)

    async def main() -> str:
        traffic = sharded_traffic(world)
        for _ in range(2):
            traffic.employ(await world.start())
        mover = _move(world)

        def die_there(call: Call) -> None:
            if call.name == "control.plan_chunks":
                mover.wire.die()

        mover.wire.plan = die_there
        await world.elapse(8.0)
        assert mover.wire.dying
        home = world.command("home", OPTIONS, lambda c: c.migrate(SINGLE))
        await asyncio.wait([home.task], timeout=60.0)
        begun = [migration.domain for migration in world.control.migrations.values()]
        assert begun == ["users/0/0-1023"], "the domain moves as well"
        return type(home.task.exception()).__name__

    return str(world.run(main()))


def wake_when_armed() -> None:
    """A process sleeps from before its domain leaves for shards until reads go there; its readers must not notice."""
    world = ShardedWorld(7, eager=False, assist=False)

    async def main() -> None:
        traffic = sharded_traffic(world, pause_s=0.002)
        await traffic.lay_down(await world.start())
        sleeper = await world.start()
        traffic.employ(sleeper)
        world.loop.pause(sleeper.machine)
        out = world.command("out", OPTIONS, lambda c: c.migrate(SHARDS))
        await world.elapse(3.0)
        assert world.control.routes["users"].phase is Phase.ARMED
        # Far from the shards: it takes long to look at them.
        sleeper.wire.profile.delay_s = 0.05
        world.loop.resume(sleeper.machine)
        await asyncio.wait([out.task], timeout=60.0)
        assert out.task.exception() is None
        traffic.stopped.set()
        await asyncio.wait(sleeper.tasks)
        assert world.history.permanent == [], world.history.permanent[:3]
        await judge_at_the_end(world, traffic)

    world.run(main())
