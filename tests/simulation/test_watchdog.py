"""What the watchdog of a process does when news, answers and coordinators come at the wrong moment."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from datalayer.control.base import coordinator_lease
from datalayer.errors import RoutingMismatch
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.plan import Until
from datalayer.routing.flip import write_roles
from datalayer.routing.route import Phase, Place, Routing
from datalayer.stores.base import MetaRow, Token
from datalayer.testing.simulation.world import Command, Pair, Process, World

Story = Callable[[World], Coroutine[Any, Any, None]]


def play(story: Story, *, assist: bool = False) -> None:
    """Run a story in a quiet world."""
    world = World(1, Pair(), assist=assist)
    world.run(story(world))


async def dual(world: World) -> tuple[Process, Routing, Token]:
    """A process, and what a coordinator publishes next: an attempt of its own, in phase dual."""
    process = await world.start()
    layer = process.layer
    value = await layer.control.take(coordinator_lease("messages"), "test", 600.0)
    assert value is not None
    token = Token("m", "messages", 1, value)
    now = layer.router("messages").routing
    return process, replace(now, phase=Phase.DUAL, target=Place("t", 1), attempt=1), token


def test_of_two_looks_at_the_routings_the_older_answer_is_never_adopted_last() -> None:
    async def story(world: World) -> None:
        process, routing, token = await dual(world)
        layer, watchdog = process.layer, process.layer._watchdog
        await watchdog.stop()
        prepare, held = layer.places.prepare, asyncio.Event()

        async def slow(found: Routing) -> None:
            if found.phase is Phase.DUAL:
                await held.wait()
            await prepare(found)

        pytest.MonkeyPatch().setattr(layer.places, "prepare", slow)
        await layer.control.publish(token, routing, actor="test")
        first = asyncio.ensure_future(watchdog._take_routings())
        await asyncio.sleep(0.1)
        rest = replace(routing, phase=Phase.SOURCE, target=None)
        newest = await layer.control.publish(token, rest, actor="test")
        second = asyncio.ensure_future(watchdog._take_routings())
        await asyncio.sleep(0.1)
        held.set()
        await asyncio.gather(first, second)
        assert layer.router("messages").routing.epoch == newest.epoch

    play(story)


def test_a_routing_published_while_another_is_taken_is_no_restored_control_store() -> None:
    async def story(world: World) -> None:
        process, routing, token = await dual(world)
        layer = process.layer
        prepare = layer.places.prepare

        async def overtaken(found: Routing) -> None:
            await prepare(found)
            if found.epoch == 2:
                newer = await layer.control.publish(token, found, actor="test")
                await write_roles(layer.places, newer)

        pytest.MonkeyPatch().setattr(layer.places, "prepare", overtaken)
        await layer.control.publish(token, routing, actor="test")
        await asyncio.sleep(3.0)
        assert layer.router("messages").routing.epoch == 3
        world.watchdogs_live()

    play(story)


def test_a_process_that_may_not_take_a_routing_goes_on_looking(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        process, routing, token = await dual(world)
        layer = process.layer
        source = layer.places.backend(routing.source)
        deployment = await layer.control.deployment()
        wrong = MetaRow("messages", 0, "somebody else", "authority", 0)
        await source.write_meta(wrong)
        await layer.control.publish(token, routing, actor="test")
        await asyncio.sleep(3.0)
        with pytest.raises(RoutingMismatch):
            await layer._watchdog._take_routings()
        assert layer.router("messages").routing.epoch == 1
        await source.write_meta(replace(wrong, deployment=deployment))
        await asyncio.sleep(3.0)
        assert layer.router("messages").routing.epoch == 2
        world.watchdogs_live()

    play(story)
    assert [record.levelname for record in caplog.records if "not taken" in record.message] == ["ERROR"]


class DiesSealed(Silent):
    """Kills its coordinator when the fence is permanent, after an operator has paused the migration."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.command: Command | None = None

    async def reach(self, name: str) -> None:
        if name == "fence_for_good.after":
            assert self.command is not None
            found = self._world.control.migrations_of("messages")[0]
            await self.command.coordinator.places.control.set_options(found.id, {"paused": True}, actor="test")
            self.command.wire.die()
            await asyncio.sleep(0)


def test_held_writes_of_a_paused_migration_do_not_wait_for_its_coordinator() -> None:
    async def story(world: World) -> None:
        process = await world.start()
        room, ann = uuid4(), uuid4()
        await process.layer.messages.append(room, sender_id=ann, body="before")
        dies = DiesSealed(world)
        options = MigrateOptions(until=Until.TARGET, yes=True)
        dies.command = world.command("migrate", options, lambda c: c.migrate("t"), failpoints=dies)
        await asyncio.sleep(30.0)
        assert not dies.command.machine.alive
        message = await process.layer.messages.append(room, sender_id=ann, body="after", timeout=10.0)
        assert process.layer.router("messages").routing.phase is Phase.TARGET
        assert await process.layer.messages.get(room, message.id) is not None

    play(story, assist=True)


def test_an_operator_s_command_finishes_a_sealed_flip_also_of_a_paused_migration() -> None:
    async def story(world: World) -> None:
        await world.start()
        dies = DiesSealed(world)
        options = MigrateOptions(until=Until.TARGET, yes=True)
        dies.command = world.command("migrate", options, lambda c: c.migrate("t"), failpoints=dies)
        await asyncio.sleep(30.0)
        again = world.command("cutover", options, Coordinator.cutover)
        await again.task
        assert world.control.routes["messages"].phase is Phase.TARGET

    play(story)
