"""A mirror that forgets what it has acknowledged, at every step of a move: copied and compared once more, unasked."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from datalayer.migrators import actions, hold, lives
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.route import Phase, Place
from datalayer.testing.simulation.checks import sides_agree
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.sessions import SessionTraffic
from datalayer.testing.simulation.world import Command, Pair, World

OVER = Pair("transactional", "last_writer", "sessions")
BACK = Pair("last_writer", "transactional", "sessions")
BEFORE = ("backfill.page", "backfill.after", "verify.before", "verify.page", "verify.after")
CUT_OVER = ("check_arm.after", "publish_armed.after", "check_hold.after", "fence.after", "drain.after")


class Forgets:
    """At the first time that a point is reached the server loses all that it holds of sessions, its ``place`` too."""

    def __init__(
        self, world: World, name: str, point: str, *, place: bool = True, then: Callable[[], None] | None = None
    ) -> None:
        self.points = [point]
        self._place = place
        self._server = world.servers[name]
        self._then = then

    async def reach(self, name: str) -> None:
        if self.points and name == self.points[0]:
            del self.points[0]
            for place in [place for place in self._server.tables if place[0] == "sessions"]:
                del self._server.tables[place]
                if not self._place:
                    self._server.create(place)
            self._server.life += 1
            if self._then is not None:
                self._then()


def world_of(pair: Pair, forgetful: str) -> World:
    world = World(1, pair)
    world.servers[forgetful].forgetful = True
    return world


async def peopled(world: World) -> SessionTraffic:
    """A few sessions, one of them revoked."""
    traffic = SessionTraffic(world)
    process = await world.start()
    await traffic.lay_down(process)
    key = await traffic.create(process, traffic.people[0], "before")
    assert key is not None
    await traffic._revoke(process, key, "before")
    return traffic


async def ended(world: World, act: Any, **more: Any) -> Command:
    """A command, to its end or its death."""
    options = MigrateOptions(yes=True, until=more.pop("until", Until.TARGET), workers=1)
    command = world.command("operator", options, act, patience_s=5.0, **more)
    await asyncio.wait([command.task], timeout=60.0)
    return command


async def judged(world: World, traffic: SessionTraffic) -> None:
    await world.elapse(1.0)
    await traffic.read_all(world.processes[0])
    traffic.stopped.set()
    await sides_agree(world, traffic)


def over(point: str, *, place: bool = True) -> None:
    """Over, while the target forgets at that point."""
    world = world_of(OVER, "t")

    async def story() -> None:
        traffic = await peopled(world)
        forgets = Forgets(world, "t", point, place=place)
        command = await ended(world, lambda c: c.migrate("t"), failpoints=forgets)
        assert not forgets.points, "it was reached"
        assert command.task.exception() is None
        assert world.control.routes["sessions"].phase is Phase.TARGET
        await judged(world, traffic)

    world.run(story())


@pytest.mark.parametrize("point", BEFORE + CUT_OVER)
def test_what_a_target_forgot_on_the_way_is_copied_again_and_nobody_is_asked(point: str) -> None:
    over(point)


async def _nothing(*_: Any) -> None:
    return None


async def _durable(_work: Any, _place: Place) -> str:
    return ""


@pytest.mark.parametrize(
    ("where", "name", "instead", "point"),
    [
        (lives, "life_of", _durable, "verify.after"),
        (lives, "life_of", _durable, "drain.after"),
        (actions, "check_verdict", _nothing, "publish_armed.after"),
        (hold, "check_same", _nothing, "check_hold.after"),
        (hold, "check_same", _nothing, "drain.after"),
    ],
)
def test_a_coordinator_that_does_not_look_flips_to_what_is_lost(
    where: Any, name: str, instead: Any, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(Violation):
        over(point, place=False)


@pytest.mark.parametrize("point", ["verify.before", "verify.page", "verify.after", *CUT_OVER])
def test_what_a_source_forgot_is_copied_back_before_a_rollback_of_the_flip(point: str) -> None:
    world = world_of(BACK, "s")

    async def story() -> None:
        traffic = await peopled(world)
        assert (await ended(world, lambda c: c.migrate("t"))).task.exception() is None
        key = await traffic.create(world.processes[0], traffic.people[1], "after")
        assert key is not None
        forgets = Forgets(world, "s", point)
        command = await ended(world, lambda c: c.rollback(), failpoints=forgets)
        assert not forgets.points
        assert command.task.exception() is None
        assert world.control.routes["sessions"].phase is Phase.DUAL
        await judged(world, traffic)

    world.run(story())


@pytest.mark.parametrize("point", ["backfill.page", "verify.page", "verify.after", "check_hold.after", "drain.after"])
@pytest.mark.parametrize("dies_at", ["at once", "backfill.page"])
def test_a_coordinator_that_dies_beside_its_target_leaves_the_next_one_nothing_to_believe(
    point: str, dies_at: str
) -> None:
    world = world_of(OVER, "t")

    async def story() -> None:
        traffic = await peopled(world)
        dying: list[Command] = []

        def die() -> None:
            dying[0].wire.die()

        forgets = Forgets(world, "t", point, then=die if dies_at == "at once" else None)

        class Points:
            async def reach(self, name: str) -> None:
                if not forgets.points and name == dies_at:
                    die()
                await forgets.reach(name)

        options = MigrateOptions(yes=True, workers=1)
        dying.append(world.command("first", options, lambda c: c.migrate("t"), patience_s=5.0, failpoints=Points()))
        await asyncio.wait([dying[0].task], timeout=30.0)
        assert not forgets.points
        command = await ended(world, lambda c: c.migrate("t"))
        assert command.task.exception() is None
        assert world.control.routes["sessions"].phase is Phase.TARGET
        await judged(world, traffic)

    world.run(story())
