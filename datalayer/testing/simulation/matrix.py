"""The crash matrix: one fault at one numbered call or action of a coordinator, then somebody goes on, then the judge.

A *journey* is a list of commands (forward, back, over again, complete, cancel). The first run of a journey, without
faults, numbers every call that its coordinators make and names the action in which each was made. Every other run puts
one fault there. Nothing else goes wrong, so whatever is wrong at the end is the fault's doing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from datalayer.errors import DatalayerError, NotFinished, PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.stores.memory.faults import Fault, Injection
from datalayer.testing.simulation.checks import sides_agree, watch_authorities
from datalayer.testing.simulation.traffic import MessageTraffic
from datalayer.testing.simulation.world import Pair, World

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from datalayer.stores.memory.faults import Call
    from datalayer.testing.simulation.world import Command

JOURNEYS: Final[dict[str, tuple[str, ...]]] = {
    "over": ("target",),
    "over, back": ("target", "back"),
    "over, complete, purge": ("target", "complete", "purge"),
    "armed, cancel": ("armed", "cancel"),
}
FAULTS: Final = (
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
    Fault.ERROR,
    Fault.LOST_REPLY,
    Fault.LOST_REQUEST,
    Fault.HANG,
    Fault.PARTIAL,
)
PERSISTS_S: Final = 3.0
"""A persistent fault hits the same call of the same action for so long."""
TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Point:
    """One place for a fault: the call's number, what it was, and the action that made it."""

    number: int
    action: str
    call: str


@dataclass(frozen=True, slots=True)
class Case:
    """One run: which pair and journey, where, what, and who goes on afterwards."""

    pair: Pair
    journey: str
    point: Point
    fault: Fault
    persistent: bool = False
    again: int = 0
    """Crash once more, at this call of the resume (0: no)."""
    zombie: bool = False
    """Instead of the fault the coordinator stops there, and goes on after others have finished its step."""
    alone: bool = False
    """No coordinator ever comes back: the watchdogs of the processes are all there is."""

    @property
    def how(self) -> str:
        """What else is special about it."""
        chosen = {"zombie": self.zombie, "persistent": self.persistent, "again": self.again, "alone": self.alone}
        return next((name for name, is_so in chosen.items() if is_so), "once")

    def __str__(self) -> str:
        lasting = "persistent " if self.persistent else ""
        if self.zombie:
            return f"{self.pair} {self.journey}: stopped at {self.point.action}/{self.point.call}, wakes later"
        more = f", again at {self.again}" if self.again else ", alone" if self.alone else ""
        return f"{self.pair} {self.journey}: {lasting}{self.fault} at {self.point.action}/{self.point.call}{more}"


@dataclass(slots=True)
class Numbered:
    """Numbers the calls of all coordinators of a run, and acts at one of them."""

    world: World
    case: Case | None = None
    points: list[Point] = field(default_factory=list)
    actions: set[str] = field(default_factory=set)
    action: str = "start"
    struck_at: float | None = None
    crashed: bool = False
    attached: dict[str, Command] = field(default_factory=dict)
    sleeper: Command | None = None
    _resumed: int = 0

    def attach(self, command: Command) -> None:
        """Watch the calls of this coordinator."""
        command.wire.plan = self._inject
        self.attached[command.machine.name] = command

    async def reach(self, name: str) -> None:
        """The failpoints of the engine: the action under way."""
        action, _, what = name.rpartition(".")
        if what == "before":
            self.action = action
            self.actions.add(action)

    def _inject(self, call: Call) -> Injection | None:
        case = self.case
        if self.struck_at is not None and case is not None:
            return self._later(call, case)
        self.points.append(Point(len(self.points) + 1, self.action, call.name))
        if case is None or len(self.points) != case.point.number:
            return None
        self.struck_at = self.world.loop.time()
        if case.zombie:
            self.sleeper = self.attached[call.client]
            self.world.loop.pause(self.sleeper.machine)
            return None
        self.crashed = case.fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
        return Injection(case.fault, 1e-5, 1e-5)

    def _later(self, call: Call, case: Case) -> Injection | None:
        self._resumed += 1
        if case.again and self._resumed == case.again:
            return Injection(Fault.CRASH_AFTER, 1e-5, 1e-5)
        assert self.struck_at is not None, "the fault has struck"
        same = call.name == case.point.call and self.action == case.point.action
        if case.persistent and same and self.world.loop.time() < self.struck_at + PERSISTS_S:
            return Injection(case.fault, 1e-5, 1e-5)
        return None


class Matrix:
    """Runs one case (or the numbering run) from nothing to its judgement."""

    journeys: ClassVar[Mapping[str, tuple[str, ...]]] = JOURNEYS

    def __init__(self, pair: Pair, journey: str, case: Case | None = None) -> None:
        self._steps = self.journeys[journey]
        self._case = case
        self.world = self._make_world(pair, assist=True if case is None else case.alone)
        self.numbered = Numbered(self.world, case)
        self._traffic = self._make_traffic()

    def _make_world(self, pair: Pair, *, assist: bool) -> World:
        return World(1, pair, eager=False, assist=assist)

    def _make_traffic(self) -> Any:
        return MessageTraffic(self.world, pause_s=0.05)

    async def _judge(self) -> None:
        await sides_agree(self.world, self._traffic)

    def run(self) -> Numbered:
        """Play it; the first violation is raised."""
        self.world.run(self._main())
        return self.numbered

    async def _main(self) -> None:
        world, traffic = self.world, self._traffic
        watch_authorities(world)
        for _ in range(2):
            process = await world.start()
            await traffic.lay_down(process)
            traffic.employ(process)
        ended = True
        for step in self._steps:
            ended = await self._step(step)
            if not ended:
                break
            await asyncio.sleep(0.1)
        if self._case is not None and self._case.alone and not ended:
            # Longer than the coordinator's lease, a hold, and a round of the watchdogs.
            await world.elapse(9.0)
        for process in world.processes:
            before = world.history.acknowledged
            await traffic.prove_alive(process)
            if world.history.acknowledged == before:
                world.broken("I10", f"{process.machine.name} cannot write in {self._phase()}")
        traffic.stopped.set()
        for process in world.processes:
            await asyncio.wait(process.tasks, timeout=20.0)
        await self._judge()
        for process in world.processes:
            await traffic.read_all(process)
        world.watchdogs_live()
        self._no_client_error(world)
        if ended:
            self._arrived()

    def _no_client_error(self, world: World) -> None:
        for text in world.history.permanent:
            world.broken("errors", text)

    def _phase(self) -> str:
        return str(self.world.control.routes[self.world.pair.domain].phase)

    def _arrived(self) -> None:
        """I7: the end is that of a run without a fault."""
        expected = {"target": "target", "back": "dual", "complete": "complete", "cancel": "source", "armed": "armed"}
        expected["purge"] = "complete"
        phase = self._phase()
        if phase != expected[self._steps[-1]]:
            self.world.broken("I7", f"after {self._steps} the phase is {phase}")

    async def _step(self, step: str) -> bool:
        """One command, run again by new coordinators until it is done; whether it was."""
        last: Any = None
        for _ in range(TRIES):
            command = self._command(step)
            await _ended(command)
            if command.wire.dying or command.machine.paused:
                if self._case is not None and self._case.alone:
                    return False
                await asyncio.sleep(PERSISTS_S / 4)
                continue
            if not command.task.done():
                self.world.broken("I10", f"{step} does not end in {self._phase()}")
                return False
            last = command.task.exception()
            if last is None:
                await self._wake()
                return True
            if isinstance(last, PreconditionFailed) and self._done_already(step, last):
                await self._wake()
                return True
            if not isinstance(last, DatalayerError) or not (last.retryable or isinstance(last, NotFinished)):
                break
            await asyncio.sleep(PERSISTS_S / 4)
        self.world.broken("I7", f"{step} cannot be done again: {last!r} in {self._phase()}")
        return False

    async def _wake(self) -> None:
        """The sleeper goes on, now that others have done its work."""
        sleeper = self.numbered.sleeper
        if sleeper is not None and sleeper.machine.paused:
            # Long enough for writes under the routing that the sleeper knows nothing of.
            await self.world.elapse(0.6)
            self.world.loop.resume(sleeper.machine)
            await asyncio.wait([sleeper.task], timeout=30.0)

    def _done_already(self, step: str, error: PreconditionFailed) -> bool:
        text = str(error)
        return (step in ("complete", "cancel") and "no unfinished migration" in text) or (
            step == "purge" and "no completed migration" in text
        )

    def _command(self, step: str) -> Command:
        until = Until.ARMED if step == "armed" else Until.TARGET
        acts: dict[str, Callable[[Coordinator], Any]] = {
            "target": lambda c: c.migrate("t"),
            "armed": lambda c: c.migrate("t"),
            "back": Coordinator.rollback,
            "complete": Coordinator.complete,
            "cancel": Coordinator.cancel,
            "purge": Coordinator.purge,
        }
        options = MigrateOptions(until=until, yes=True, workers=1, max_hold_ms=300.0, ack_timeout_s=10.0)
        command = self.world.command(step, options, acts[step], failpoints=self.numbered, patience_s=20.0)
        self.numbered.attach(command)
        return command


async def _ended(command: Command) -> None:
    """Wait for its end, or its crash."""
    for _ in range(900):
        await asyncio.wait([command.task], timeout=0.1)
        if command.task.done() or command.wire.dying or command.machine.paused:
            return


def number(pair: Pair, journey: str, matrix: type[Matrix] = Matrix) -> Numbered:
    """The points of a journey, and the actions that it goes through."""
    return matrix(pair, journey).run()


def chosen_points(points: list[Point]) -> list[Point]:
    """The first, the middle and the last call of each name in each action: the others repeat what these show."""
    calls: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        calls.setdefault((point.action, point.call), []).append(point)
    chosen = {point for made in calls.values() for point in (made[0], made[len(made) // 2], made[-1])}
    return sorted(chosen, key=lambda point: point.number)


def all_cases(pairs: Iterable[Pair], rng: random.Random, matrix: type[Matrix] = Matrix) -> list[Case]:
    """Every chosen point of every journey of these pairs with every fault, once and persistent; with crashes, also a
    second crash in the resume, and nobody who comes back. In an order in which each prefix covers as much as it can.
    """
    lanes: dict[tuple[str, Fault, str], list[Case]] = {}
    for pair in pairs:
        for journey in matrix.journeys:
            for point in chosen_points(number(pair, journey, matrix).points):
                for case in _cases_at(pair, journey, point, rng):
                    how = case.how
                    lanes.setdefault((point.action, case.fault, how), []).append(case)
    for lane in lanes.values():
        rng.shuffle(lane)
    order = list(lanes.values())
    rng.shuffle(order)  # else a short programme would end before the first cut-over
    longest = max(map(len, order))
    return [lane[at] for at in range(longest) for lane in order if at < len(lane)]


def _cases_at(pair: Pair, journey: str, point: Point, rng: random.Random) -> Iterable[Case]:
    yield Case(pair, journey, point, Fault.NONE, zombie=True)
    for fault in FAULTS:
        yield Case(pair, journey, point, fault)
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            yield Case(pair, journey, point, fault, again=rng.randrange(1, 60))
            yield Case(pair, journey, point, fault, alone=True)
        else:
            yield Case(pair, journey, point, fault, persistent=True)


__all__ = ["FAULTS", "JOURNEYS", "Case", "Matrix", "Numbered", "Point", "all_cases", "chosen_points", "number"]
