"""Presence in a simulation: users who beat, leave and come back through processes that hear news early and late.

Three promises are judged, each against what was acknowledged before a read began:

- *never away*: whoever beats is never called offline, whatever fails.
- *present*: while no call to a store fails, whoever beats is called online.
- *gone*: while no call to a store fails, whoever has left is never called online.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

from datalayer.errors import DatalayerError
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.testing.simulation.matrix import Matrix
from datalayer.testing.simulation.world import SKEW_US, Pair, World
from datalayer.types import Presence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.testing.simulation.world import Command, Process

TTL_S: Final = 2.0
BEAT_S: Final = 0.6
USERS: Final = 9
ROAMING: Final = 0.05
"""How often a user comes by another process than its own."""
MARGIN_US: Final = 2 * SKEW_US + 1_000
"""Two machines' clocks differ by so much."""
SOFT_PAIR: Final = Pair(domain="presence")
SOFT_JOURNEYS: Final[dict[str, tuple[str, ...]]] = {
    "over": ("target",),
    "over, back": ("target", "back"),
    "over, back, over, complete, purge": ("target", "back", "target", "complete", "purge"),
    "over, back, cancel": ("target", "back", "cancel"),
    "dual, cancel": ("dual", "cancel"),
}


@dataclass(slots=True)
class Known:
    """What was acknowledged of one user; times of the world's clock."""

    id: UUID
    alive_us: int = 0
    """Until when the last acknowledged beat lasts."""
    leaving: bool = False
    """A leave was begun, and no beat was acknowledged since."""
    left: bool = False
    """A leave was acknowledged, and no beat was begun since."""
    busy: bool = False
    given_us: int = 0
    """When the last beat or leave was given: what another machine gives within the difference of clocks may lose."""


class SoftWorld(World):
    """Two stores that every process reaches."""

    def __init__(self, seed: int, *, pushes: bool = True) -> None:
        super().__init__(seed, SOFT_PAIR, eager=False, assist=True, pushes=pushes)
        for server in self.servers.values():
            server.reach = "network"


class SoftTraffic:
    """Users, each of whom is served by one process after the other, and readers on every process."""

    def __init__(self, world: World, *, clean: bool = True, refusals: bool = False) -> None:
        """``clean``: everybody's authority answers, so more is promised. ``refusals``: a beat may be refused."""
        self.world = world
        self.clean = clean
        self.refusals = refusals or not clean
        self.stopped = asyncio.Event()
        self.users = [Known(UUID(int=world.rng.getrandbits(128), version=4)) for _ in range(USERS)]
        self.answers = 0
        self._served = 0

    async def lay_down(self, process: Process) -> None:
        """Everybody is there before anything moves."""
        for user in self.users:
            await self.beat(process, user)

    def employ(self, process: Process) -> None:
        """Beat for a share of the users, and read all of them."""
        rng = random.Random(self.world.rng.getrandbits(64))
        own = self.users[self._served % 3 :: 3]
        self._served += 1
        loop, name = self.world.loop, process.machine.name
        process.tasks.append(loop.spawn(process.machine, self._serve(process, own, rng), name=f"{name}/beats"))
        process.tasks.append(loop.spawn(process.machine, self._read_on(process, rng), name=f"{name}/reads"))

    async def _serve(self, process: Process, own: list[Known], rng: random.Random) -> None:
        while not self.stopped.is_set():
            user = rng.choice(self.users if rng.random() < ROAMING else own)
            if user.busy or (not user.left and user.alive_us - self._now() > (TTL_S - BEAT_S) * 1e6):
                await asyncio.sleep(BEAT_S / USERS)
            elif rng.random() < 0.08:
                await self.leave(process, user)
            else:
                await self.beat(process, user)

    async def _read_on(self, process: Process, rng: random.Random) -> None:
        while not self.stopped.is_set():
            await self.read_all(process)
            await asyncio.sleep(rng.expovariate(1 / 0.08))

    async def beat(self, process: Process, user: Known) -> None:
        """One heartbeat."""
        user.busy, user.left = True, False
        given, before = self._now(), user.given_us
        user.given_us = given
        try:
            await process.layer.presence.heartbeat(user.id, device="web", ttl=TTL_S)
        except DatalayerError as error:
            self._refused(error)
        else:
            if given - before > MARGIN_US:
                user.alive_us, user.leaving = given + int(TTL_S * 1e6), False
            self.world.history.acknowledged += 1
        finally:
            user.busy = False

    async def leave(self, process: Process, user: Known) -> None:
        """One leave; until a beat is acknowledged again nothing is promised but that the user is gone."""
        user.busy = user.leaving = True
        given, before = self._now(), user.given_us
        user.given_us = given
        try:
            await process.layer.presence.leave(user.id, device="web")
        except DatalayerError as error:
            self._refused(error)
        else:
            user.left = given - before > MARGIN_US
        finally:
            user.busy = False

    def _refused(self, error: DatalayerError) -> None:
        if not self.refusals or not error.retryable:
            self.world.history.permanent.append(f"a beat: {error.message}")

    async def read_all(self, process: Process) -> None:
        """Ask for everybody; judge each answer."""
        here = [user for user in self.users if not user.leaving]
        gone = [user for user in self.users if user.left]
        alive = {user.id: user.alive_us for user in here}
        found = await process.layer.presence.online([user.id for user in self.users])
        ended = self._now() + MARGIN_US
        who = process.machine.name
        phase = str(self.world.control.routes["presence"].phase)
        self.answers += len(found)
        for user in here:
            if alive[user.id] <= ended or user.leaving:
                continue
            self.world.hits[f"{found[user.id]} in {phase}"] += 1
            if found[user.id] is Presence.OFFLINE:
                self.world.broken("never away", f"{who} calls {user.id} offline in {phase}")
            elif self.clean and found[user.id] is not Presence.ONLINE:
                self.world.broken("present", f"{who} calls {user.id} {found[user.id]} in {phase}")
        for user in gone:
            self.world.hits[f"gone: {found[user.id]} in {phase}"] += user.left
            if self.clean and user.left and found[user.id] is Presence.ONLINE:
                self.world.broken("gone", f"{who} calls {user.id} online in {phase}, who has left")

    async def prove_alive(self, process: Process) -> None:
        """A process still serves."""
        await self.beat(process, self.users[0])

    def _now(self) -> int:
        return self.world.clock.now_us()


class SoftMatrix(Matrix):
    """The crash matrix of a soft domain: whatever happens to coordinators happens to no user."""

    journeys: ClassVar[Mapping[str, tuple[str, ...]]] = SOFT_JOURNEYS
    lifetime_s: ClassVar[float] = TTL_S

    def _make_world(self, pair: Pair, *, assist: bool) -> World:
        del pair, assist
        return SoftWorld(1)

    def _make_traffic(self) -> Any:
        return SoftTraffic(self.world)

    async def _judge(self) -> None:
        for process in self.world.processes:
            for task in process.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    self.world.broken("errors", f"{task.get_name()} met {task.exception()!r}")

    def _command(self, step: str) -> Command:
        return soft_command(self.world, step, lifetime_s=self.lifetime_s, watched_by=self)


def soft_command(
    world: World, step: str, *, lifetime_s: float = TTL_S, watched_by: SoftMatrix | None = None
) -> Command:
    """One operator's command."""
    acts: dict[str, Any] = {
        "target": lambda c: c.migrate("t"),
        "dual": lambda c: c.migrate("t"),
        "back": Coordinator.rollback,
        "complete": Coordinator.complete,
        "cancel": Coordinator.cancel,
        "purge": Coordinator.purge,
    }
    until = Until.DUAL if step == "dual" else Until.TARGET
    options = MigrateOptions(until=until, yes=True, lifetime_s=lifetime_s, ack_timeout_s=10.0)
    more: dict[str, Any] = {} if watched_by is None else {"failpoints": watched_by.numbered}
    command = world.command(step, options, acts[step], patience_s=20.0, **more)
    if watched_by is not None:
        watched_by.numbered.attach(command)
    return command


__all__ = ["SOFT_JOURNEYS", "SOFT_PAIR", "TTL_S", "SoftMatrix", "SoftTraffic", "SoftWorld", "soft_command"]
