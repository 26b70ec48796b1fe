"""Mistakes that the simulation found in the engine, each as the shortest story that shows it."""

import asyncio
from typing import Any

import pytest

from datalayer.errors import NotFinished, OutcomeUnknown, PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.route import Phase
from datalayer.stores.memory.faults import Call, Fault, Injection
from datalayer.testing.simulation.traffic import SENDER, MessageTraffic
from datalayer.testing.simulation.world import Pair, World


async def _run(world: World, act: Any, **options: Any) -> Any:
    command = world.command("operator", MigrateOptions(yes=True, **options), act, patience_s=5.0)
    return await command.task


async def _peopled(world: World, processes: int = 1) -> MessageTraffic:
    traffic = MessageTraffic(world)
    for _ in range(processes):
        await traffic.lay_down(await world.start())
    return traffic


def test_over_again_after_complete_moves_the_data_instead_of_retiring_its_only_place() -> None:
    world = World(1, Pair())

    async def story() -> None:
        await _peopled(world)
        await _run(world, lambda c: c.migrate("t"), until=Until.COMPLETE)
        await _run(world, lambda c: c.migrate("s"))
        routing = world.control.routes["messages"]
        assert (routing.phase, routing.attempt, routing.authority.backend) == (Phase.TARGET, 2, "s")

    world.run(story())


@pytest.mark.parametrize("act", [Coordinator.complete, Coordinator.rollback, Coordinator.cancel])
def test_a_migration_that_was_only_entered_after_a_complete_one_touches_nothing(act: Any) -> None:
    world = World(1, Pair("transactional", "last_writer"))

    async def story() -> None:
        traffic = await _peopled(world)
        await _run(world, lambda c: c.migrate("t"), until=Until.COMPLETE)
        before = world.control.routes["messages"]
        command = world.command("first", MigrateOptions(yes=True), lambda c: c.migrate("s"))
        command.wire.plan = lambda call: Injection(Fault.CRASH_BEFORE) if call.name == "create" else None
        await asyncio.wait([command.task], timeout=30.0)
        try:
            await _run(world, act)
        except PreconditionFailed:
            assert act is Coordinator.complete
        assert world.control.routes["messages"].authority == before.authority
        await traffic.read_all(world.processes[0])
        await traffic.prove_alive(world.processes[0])

    world.run(story())


def test_a_coordinator_that_gave_up_waiting_for_readers_is_not_followed_by_a_flip() -> None:
    world = World(1, Pair())

    async def story() -> None:
        await _peopled(world, 2)
        await _run(world, lambda c: c.migrate("t"), until=Until.VERIFIED)
        world.loop.pause(world.processes[1].machine)
        for _ in range(2):
            with pytest.raises(NotFinished, match="have not acknowledged armed"):
                await _run(world, lambda c: c.migrate("t"), ack_timeout_s=1.0)
            assert world.control.routes["messages"].phase is Phase.ARMED
        world.loop.resume(world.processes[1].machine)
        await _run(world, lambda c: c.migrate("t"))
        assert world.control.routes["messages"].phase is Phase.TARGET

    world.run(story())


def test_a_coordinator_that_gave_up_waiting_for_writers_is_not_followed_by_a_backfill() -> None:
    world = World(1, Pair("last_writer", "transactional"))

    async def story() -> None:
        await _peopled(world, 2)
        world.loop.pause(world.processes[1].machine)
        for _ in range(2):
            with pytest.raises(NotFinished, match="have not acknowledged intents"):
                await _run(world, lambda c: c.migrate("t"), ack_timeout_s=1.0)
            assert not world.control.migrations_of("messages")[0].milestones

    world.run(story())


def test_a_repeated_append_is_readable_when_it_is_answered() -> None:
    world = World(1, Pair("last_writer", "transactional"), assist=False)

    async def story() -> None:
        traffic = await _peopled(world)
        await _run(world, lambda c: c.migrate("t"), until=Until.DUAL)
        process = world.processes[0]
        await world.elapse(1.5)
        lost = [Fault.LOST_REQUEST]

        def once(call: Call) -> Injection | None:
            return Injection(lost.pop()) if call.name == "apply" and lost else None

        process.wire.plan = once
        room = traffic.rooms[0]
        message_id = process.layer.messages._ids.uuid7()
        with pytest.raises(OutcomeUnknown):
            await process.layer.messages.append(room, id=message_id, sender_id=SENDER, body="hi")
        await process.layer.messages.append(room, id=message_id, sender_id=SENDER, body="hi")
        assert await process.layer.messages.get(room, message_id) is not None

    world.run(story())
