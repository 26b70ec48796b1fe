"""Orders of events over slot groups that a review thought of, each played out in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from datalayer.control.memory import MemoryControl
from datalayer.errors import DeadlineExceeded, PreconditionFailed
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators import around
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.plan import Until
from datalayer.migrators.shards import Sharding
from datalayer.migrators.status import status, why
from datalayer.routing.shards import Group
from datalayer.stores.memory.faults import Call, Fault, Injection
from datalayer.stores.sharded import ShardedBackend
from datalayer.testing.simulation.checks import watch_authorities
from datalayer.testing.simulation.sharded import (
    MEMBERS,
    SHARDS,
    SINGLE,
    ShardedWorld,
    judge_at_the_end,
    sharded_traffic,
)
from datalayer.testing.simulation.traffic import MessageTraffic
from datalayer.testing.simulation.world import Process

OPTIONS = MigrateOptions(until=Until.TARGET, yes=True, max_hold_ms=300.0)


class _ManyGroups(ShardedWorld):
    """As many groups as a configuration that names no number has."""

    def backends(self, machine: Any, wire: Any) -> dict[str, Any]:
        found = super().backends(machine, wire)
        return {**found, SHARDS: ShardedBackend(SHARDS, found[SHARDS].members, groups=64)}


def _to(place: str) -> Callable[[Coordinator], Coroutine[Any, Any, Any]]:
    return lambda coordinator: coordinator.migrate(place)


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


def _serves_all(process: Process) -> bool:
    return all(router.serves for router in process.layer.places.group_routers.values())


def test_groups_of_a_shard_that_was_down_are_served_though_the_control_store_failed_when_it_came_back() -> None:
    world = ShardedWorld(7, begins=SHARDS, eager=False, assist=False)
    shard = world.servers[f"{SHARDS}/s1"]

    async def main() -> None:
        await world.start()
        shard.up = False
        late = await world.start()
        assert not _serves_all(late)

        def fail_once(call: Call) -> Injection | None:
            if call.name != "control.routings":
                return None
            late.wire.plan = None
            shard.up = True
            return Injection(Fault.ERROR)

        late.wire.plan = fail_once
        await world.elapse(10.0)
        assert _serves_all(late)

    world.run(main())


def test_a_shard_that_hangs_is_waited_for_once_a_look_and_not_once_for_each_of_its_groups() -> None:
    world = _ManyGroups(8, begins=SHARDS, eager=False, assist=False)
    wait_s = 5.0

    async def main() -> None:
        await world.start()
        machine, wire = world.machine("late")
        wire.plan = lambda call: Injection(Fault.HANG) if call.server == f"{SHARDS}/s1" else None
        control = MemoryControl(world.control, client=machine.name, inject=wire)
        layer = DataLayer(
            world.settings,
            control,
            world.backends(machine, wire),
            clock=world.clock,
            options=LayerOptions(assist=False),
            seed=1,
        )
        began = world.clock.monotonic()
        await world.loop.spawn(machine, layer.start())
        assert (
            world.clock.monotonic() - began < 2.5 * wait_s
        )  # its first group, and the domain's own look at all shards
        served = [router.serves for router in layer.places.group_routers.values()]
        assert 0 < sum(served) < len(served)
        await world.loop.spawn(machine, layer.close())

    world.run(main())


def test_a_process_needs_no_shard_whose_users_have_gone_home() -> None:
    world = ShardedWorld(9, eager=False, assist=False)
    home = replace(OPTIONS, until=Until.COMPLETE)

    async def main() -> None:
        first = await world.start()
        ann = await first.layer.users.create(username="ann")
        for options, to in ((home, SHARDS), (home, SINGLE)):
            command = world.command("go", options, _to(to))
            await asyncio.wait([command.task])
            assert command.task.exception() is None
        machine, wire = world.machine("new")
        backends = {n: b for n, b in world.backends(machine, wire).items() if n.partition("/")[0] != SHARDS}
        control = MemoryControl(world.control, client=machine.name, inject=wire)
        layer = DataLayer(world.settings, control, backends, clock=world.clock, options=LayerOptions(), seed=1)
        await world.loop.spawn(machine, layer.start())
        assert (await layer.users.get(ann.id)) is not None
        await world.loop.spawn(machine, layer.close())

    world.run(main())


@pytest.mark.parametrize("until", [Until.TARGET, Until.COMPLETE])
def test_a_group_does_not_move_by_hand_while_its_domain_is_served_elsewhere(until: Until) -> None:
    world = ShardedWorld(10, begins=SHARDS, eager=False, assist=False)

    async def main() -> None:
        watch_authorities(world)
        process = await world.start()
        await process.layer.users.create(username="ann")
        await asyncio.wait([world.command("home", replace(OPTIONS, until=until), _to(SINGLE)).task])
        group = world.groups()[0]
        machine, wire = world.machine("hand")
        places = world.places(machine, wire, world.clock)
        at = world.control.routes[group.name].authority.backend
        to = next(name for name in sorted(places.backends) if "/" in name and name != at)
        coordinator = Coordinator(places, group.name, holder=machine.name, options=OPTIONS)
        command = world.run_command(machine, wire, coordinator.migrate(to))
        await asyncio.wait([command.task], timeout=60.0)
        assert isinstance(command.task.exception(), PreconditionFailed)
        assert world.control.migrations_of(group.name) == []

    world.run(main())


def test_a_busy_group_moves_though_its_domain_s_journal_is_never_found_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "ROUNDS", 30)
    world = ShardedWorld(11, "messages", eager=False, assist=False)

    async def main() -> None:
        process = await world.start()
        traffic = sharded_traffic(world, pause_s=0.004)
        assert isinstance(traffic, MessageTraffic)
        room = traffic.rooms[0]
        out = world.command("out", OPTIONS, _to(SHARDS))
        await asyncio.wait([out.task])
        assert out.task.exception() is None

        def its_group(sharding: Sharding) -> list[tuple[Group, str]]:
            group = sharding.map.group_of(room.bytes)
            return [(group, next(m for m in MEMBERS if m != sharding.shard_of[group]))]

        async def write_on() -> None:
            while not traffic.stopped.is_set():
                await traffic.append(process, room, "busy", rng=world.rng)
                await asyncio.sleep(0.004)

        process.tasks.append(world.loop.spawn(process.machine, write_on()))
        mover = world.move(its_group, replace(OPTIONS, max_hold_ms=3000.0), parallel=1)
        mover.wire.profile.delay_s = 0.02
        await asyncio.wait([mover.task], timeout=120.0)
        traffic.stopped.set()
        assert mover.task.exception() is None
        await asyncio.wait([task for process in world.processes for task in process.tasks])
        await judge_at_the_end(world, traffic)

    world.run(main())


def test_a_shard_that_hangs_keeps_nobody_beyond_his_deadline() -> None:
    world = ShardedWorld(12, begins=SHARDS, eager=False, assist=False)

    async def main() -> None:
        process = await world.start()
        process.wire.plan = lambda call: Injection(Fault.HANG) if call.server.startswith(SHARDS) else None
        began = world.clock.monotonic()
        with pytest.raises(DeadlineExceeded):
            await process.layer.users.create(username="ann", timeout=1.0)
        assert world.clock.monotonic() - began < 1.1

    world.run(main())


def test_a_journal_that_does_not_answer_keeps_no_reader_beyond_his_deadline() -> None:
    world = ShardedWorld(13, begins=SHARDS, eager=False, assist=False)

    async def main() -> None:
        process = await world.start()
        ann = await process.layer.users.create(username="ann")
        armed = replace(OPTIONS, until=Until.ARMED)
        await asyncio.wait([world.command("home", armed, _to(SINGLE)).task])
        process.wire.plan = lambda call: Injection(Fault.HANG) if call.name == "journal.dirty" else None
        began = world.clock.monotonic()
        with pytest.raises(DeadlineExceeded):
            await process.layer.users.get(ann.id, timeout=1.0)
        assert world.clock.monotonic() - began < 1.1

    world.run(main())


def test_what_its_domain_s_source_cannot_store_stops_a_group_before_leases_bind() -> None:
    world = ShardedWorld(14, eager=False)

    async def main() -> None:
        process = await world.start()
        ann = await process.layer.users.create(username="ann")
        await asyncio.wait([world.command("out", OPTIONS, _to(SHARDS)).task])
        world.servers[SINGLE].refuse = lambda record: "too bad" if "bad" in record.fields else None
        await process.layer.users.update(ann.id, display_name="bad")

        def its_group(sharding: Sharding) -> list[tuple[Group, str]]:
            group = sharding.map.group_of(ann.id.bytes)
            return [(group, next(m for m in MEMBERS if m != sharding.shard_of[group]))]

        mover = world.move(its_group, OPTIONS, parallel=1)
        await asyncio.wait([mover.task], timeout=60.0)
        refused = mover.task.exception()
        assert isinstance(refused, PreconditionFailed)
        assert "'s', where the way back of users-1 leads: too bad" in str(refused)
        assert world.control.migrations["users-2"].phase == "dual"
        await process.layer.users.update(ann.id, display_name="good")
        mover = world.move(its_group, OPTIONS, parallel=1)
        await asyncio.wait([mover.task], timeout=60.0)
        assert mover.task.exception() is None

    world.run(main())
