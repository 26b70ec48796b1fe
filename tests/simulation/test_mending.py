"""A record that the target cannot take: named, mended in any way, let go; and ranges that go from hand to hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.control.base import Chunk
from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.messages import message_key
from datalayer.errors import PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.leased import work_through
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.plan import Until
from datalayer.testing.simulation.world import Pair, World

CHOSEN = MigrateOptions(until=Until.TARGET, yes=True, foreign_writers="refuse")


VIRTUAL_S = 1.0
"""Costs nothing: the simulation's time is virtual."""


class Meanwhile(Silent):
    """Does something between backfill and verification, and lets the replayer of this coordinator see it."""

    def __init__(self, act: Callable[[], Awaitable[object]]) -> None:
        self._act = act

    async def reach(self, name: str) -> None:
        if name == "backfill.before":
            await asyncio.sleep(
                VIRTUAL_S
            )  # until that replayer has begun: it knows nothing of what the backfill will name
        if name == "verify.before":
            await self._act()
            await asyncio.sleep(VIRTUAL_S)


@pytest.mark.parametrize("way", ["edit", "delete", "plain delete"])
@pytest.mark.parametrize("target", ["transactional", "last_writer"])
def test_a_record_mended_while_the_copy_was_made_is_let_go_by_a_repair(way: str, target: str) -> None:
    async def story(world: World) -> None:
        process = await world.start()
        messages = process.layer.messages
        room, ann = uuid4(), uuid4()
        await messages.append(room, sender_id=ann, body="good")
        bad = await messages.append(room, sender_id=ann, body="bad")
        world.servers["t"].refuse = lambda record: "it is bad" if "bad" in record.fields else None

        async def mend() -> None:
            if way == "edit":
                await messages.edit(room, bad.id, body="mended")
            elif way == "delete":
                await messages.delete(room, bad.id)
            else:
                key = ("message", message_key(room, bad.id))
                world.servers["s"].foreign_delete(("messages", 0), key, program="psql")

        with pytest.raises(PreconditionFailed, match="cannot be stored"):
            await world.command("migrate", CHOSEN, lambda c: c.migrate("t"), failpoints=Meanwhile(mend)).task
        repaired = await world.command("repair", CHOSEN, Coordinator.repair).task
        assert (repaired["quarantined"], repaired["clean"]) == (0, True)
        await world.command("migrate", CHOSEN, lambda c: c.migrate("t")).task
        assert [item.body for item in (await messages.history(room)).items if item.id != bad.id] == ["good"]

    world = World(1, Pair("transactional", target), assist=False)  # type: ignore[arg-type]
    world.run(story(world))


def test_a_range_whose_lease_ran_out_under_a_long_page_is_gone_on_with() -> None:
    async def story() -> list[str]:
        clock = SystemClock()
        control = MemoryControl(MemoryControlServer("c", clock), client="test")
        await control.open(create=True)
        await control.plan_chunks("run", ["a"])
        done: list[str] = []

        async def work(chunk: Chunk) -> None:
            if not done:
                await control.checkpoint(chunk, 0.0)
                done.append("long page")
                stolen = await control.take_chunk("run", "somebody else", 0.05)
                assert stolen is not None
            await control.checkpoint(replace(chunk, done=True), 5.0)
            done.append("page")

        await work_through(control, clock, "run", holder="w", workers=1, work=work)
        return done

    assert asyncio.run(story()) == ["long page", "page"]
