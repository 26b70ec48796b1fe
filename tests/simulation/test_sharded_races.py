"""Orders of events over slot groups that a review thought of, each played out in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.plan import Until
from datalayer.migrators.status import status, why
from datalayer.stores.memory.faults import Call, Injection
from datalayer.testing.simulation.checks import watch_authorities
from datalayer.testing.simulation.sharded import SHARDS, ShardedWorld, judge_at_the_end, sharded_traffic

OPTIONS = MigrateOptions(until=Until.TARGET, yes=True, max_hold_ms=300.0)


class _At(Silent):
    """Does something when a coordinator comes to a point."""

    def __init__(self, point: str, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._point, self._act = point, act

    async def reach(self, name: str) -> None:
        if name == self._point:
            await self._act()


def test_a_look_at_a_rollback_does_not_open_groups_that_it_saw_before_and_after_the_seal() -> None:
    world = ShardedWorld(5, eager=False, assist=False)
    machine, wire = world.machine("why")
    looks: list[asyncio.Task[Any]] = []

    def late(call: Call) -> Injection | None:
        """What one shard is asked arrives when the fence is permanent, what the others are asked long before."""
        return Injection(request_s=0.5) if (call.server, call.name) == (f"{SHARDS}/s1", "guard.state") else None

    async def look() -> None:
        wire.plan = late
        places = world.places(machine, wire, world.clock)
        migration = world.control.migrations_of("users")[0]
        looks.append(world.loop.spawn(machine, why(places, migration), name="why"))
        await asyncio.sleep(0.1)

    async def main() -> None:
        traffic = sharded_traffic(world)
        watch_authorities(world)
        for _ in range(2):
            traffic.employ(await world.start())
        await asyncio.wait([world.command("out", OPTIONS, lambda c: c.migrate(SHARDS)).task])
        back = world.command("back", OPTIONS, Coordinator.rollback, failpoints=_At("fence.before", look))
        await asyncio.wait([back.task], timeout=60.0)
        assert back.task.exception() is None
        await world.elapse(3.0)
        assert "backend" not in [reason["reason"] for reason in looks[0].result()]
        traffic.stopped.set()
        await asyncio.wait([task for process in world.processes for task in process.tasks])
        await judge_at_the_end(world, traffic)

    world.run(main())


def test_status_and_why_know_the_slot_groups_of_the_domain_that_they_tell_of() -> None:
    world = ShardedWorld(6, eager=False, assist=False)

    async def main() -> None:
        await world.start()
        await asyncio.wait([world.command("out", OPTIONS, lambda c: c.migrate(SHARDS)).task])
        machine, wire = world.machine("look")
        migration = world.control.migrations_of("users")[0]
        told = await status(world.places(machine, wire, world.clock), migration)
        assert told["backlog"] == 0
        reasons = await why(world.places(machine, wire, world.clock), migration)
        assert [reason["reason"] for reason in reasons] == ["none"]

    world.run(main())
