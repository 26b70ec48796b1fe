"""Whole life cycles by seed: traffic, operators, disasters; then everything must come to rest and be right."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import (
    DatalayerError,
    LostLease,
    NotFinished,
    PreconditionFailed,
    VerificationFailed,
)
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.testing.simulation.checks import sides_agree, watch_authorities
from datalayer.testing.simulation.sessions import SessionTraffic
from datalayer.testing.simulation.traffic import MessageTraffic
from datalayer.testing.simulation.users import UserTraffic
from datalayer.testing.simulation.wire import Profile
from datalayer.testing.simulation.world import Pair, World

if TYPE_CHECKING:
    from datalayer.testing.simulation.world import Command, Process

PROCESSES: Final = 3
COMMANDS: Final = 5
PATIENCE_S: Final = 25.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides at once."""

    pair: Pair
    eager: bool
    assist: bool
    pushes: bool
    foreign: bool
    stormy: bool

    @classmethod
    def of(cls, seed: int, pair: Pair | None = None) -> Plan:
        """Half the seeds without eager apply, half without assist, some without notifications."""
        rng = random.Random(f"plan/{seed}")
        classes: tuple[Any, ...] = ("transactional", "last_writer")
        chosen = pair or Pair(rng.choice(classes), rng.choice(classes))
        transactional = chosen.source == chosen.target == "transactional"
        foreign = transactional and chosen.domain == "messages" and rng.random() < 0.4
        return cls(chosen, rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.7, foreign, rng.random() < 0.75)


class Life:
    """One run of one seed."""

    def __init__(self, seed: int, pair: Pair | None = None, *, commands: int = COMMANDS) -> None:
        self.plan = self._planned(seed, pair)
        self.world = self._make_world(seed)
        self.rng = random.Random(f"life/{seed}")
        self.traffic: Any = None
        self.over = asyncio.Event()
        self._commands = commands
        self.log: list[str] = []

    def _planned(self, seed: int, pair: Pair | None) -> Plan:
        return Plan.of(seed, pair)

    def _make_world(self, seed: int) -> World:
        plan = self.plan
        return World(seed, plan.pair, eager=plan.eager, assist=plan.assist, pushes=plan.pushes)

    def _make_traffic(self) -> Any:
        return traffic_of(self.world)

    def _breakable(self) -> tuple[str, ...]:
        """Servers that an outage may hit, as often as they stand here."""
        return ("c", "c", "t", "t", "s")

    def note(self, text: str) -> None:
        """What operators and disasters do, for whoever reads a failing seed."""
        self.log.append(f"{self.world.loop.time():.4f} {text}")
        self.world.trace.enter(f"-- {text}")

    def run(self) -> World:
        """Play it; the first violation is raised."""
        self.world.run(self._main())
        return self.world

    async def _main(self) -> None:
        world = self.world
        self.traffic = self._make_traffic()
        watch_authorities(world)
        for _ in range(PROCESSES):
            self.traffic.employ(await world.start())
        if self.plan.foreign:
            world.loop.spawn(world.loop.network, self.traffic.meddle(random.Random(self.rng.random())), name="psql")
        await self.traffic.lay_down(world.processes[0])
        await asyncio.sleep(0.3)
        self._weather(self.plan.stormy)
        disasters = asyncio.ensure_future(self._disasters())
        for _ in range(self._commands):
            await self._operate()
        self.over.set()
        await disasters
        self._weather(storm=False)
        await self._mend()
        await self._finish()
        await self._quiet()

    # --- weather and disasters --------------------------------------------------------------------------------------

    def _weather(self, storm: bool) -> None:  # noqa: FBT001 - one fact
        rng = self.rng
        profile = Profile()
        if storm:
            profile = Profile(
                delay_s=rng.choice((0.0004, 0.002, 0.01)),
                slow=rng.choice((0.0, 0.01, 0.05)),
                slow_s=rng.choice((0.03, 0.3)),
                lost=rng.choice((0.0, 0.01, 0.04)),
                hang=rng.choice((0.0, 0.002)),
                late=rng.choice((0.0, 0.004)),
                control_s=0.0,
            )
        self.world.profile = profile
        for process in self.world.processes:
            process.wire.profile = _like(profile)
        if storm and rng.random() < 0.5:
            process = rng.choice(self.world.processes)
            process.wire.profile.control_s = rng.choice((0.1, 0.5, 1.5))
            self.world.hits["process hears news late"] += 1

    async def _disasters(self) -> None:
        rng, world = self.rng, self.world
        while not self.over.is_set():
            await _sleep_unless(self.over, rng.expovariate(1 / 1.5))
            if self.over.is_set() or not self.plan.stormy:
                continue
            if not world.processes:  # all have died, and none could start while the control store was down
                await self._restart()
                continue
            await rng.choice((self._outage, self._crash, self._pause, self._outage, self._crash, self._pause))()
            self._count_dead()
            if len(world.processes) < PROCESSES:
                await self._restart()

    async def _outage(self) -> None:
        rng, world = self.rng, self.world
        name = rng.choice(self._breakable())
        server = world.control.machine if name == "c" else world.servers[name]
        seconds = rng.choice((0.3, 1.0, 4.0, 9.0))
        self.note(f"outage of {name} for {seconds} s")
        world.hits[f"outage of {name}"] += 1
        server.up = False
        await _sleep_unless(self.over, seconds)
        server.up = True

    async def _crash(self) -> None:
        process = self.rng.choice(self.world.processes)
        self.note(f"{process.machine.name} crashes")
        self.world.hits["process crash"] += 1
        self.world.kill(process)

    async def _pause(self) -> None:
        process = self.rng.choice(self.world.processes)
        seconds = self.rng.choice((0.2, 1.0, 4.0, 11.0))
        self.note(f"{process.machine.name} pauses for {seconds} s")
        self.world.hits["pause past the lease" if seconds > 8 else "short pause"] += 1
        self.world.loop.pause(process.machine)
        await _sleep_unless(self.over, seconds)
        self.world.loop.resume(process.machine)

    def _count_dead(self) -> None:
        for process in [p for p in self.world.processes if not p.machine.alive]:
            self.world.bury(process)

    async def _restart(self) -> None:
        process = await start_process(self.world)
        if process is not None:
            self.traffic.employ(process)
            self.note(f"{process.machine.name} starts")

    # --- operators --------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        """One command; it may crash, be paused, or meet another one."""
        rng, world = self.rng, self.world
        first = self._command(rng)
        others: list[Command] = []
        fate = rng.random()
        if self.plan.stormy and fate < 0.3:
            await self._wait([first], rng.expovariate(1 / 0.8))
            if not first.task.done():
                self.note(f"{first.machine.name} is killed")
                world.hits["coordinator crash"] += 1
                first.wire.die()
        elif self.plan.stormy and fate < 0.55:
            await self._wait([first], rng.expovariate(1 / 0.8))
            if not first.task.done():
                seconds = rng.choice((1.0, 6.0, 12.0))
                self.note(f"{first.machine.name} pauses for {seconds} s")
                world.loop.pause(first.machine)
                others.append(self._command(rng))
                await self._wait(others, seconds)
                world.loop.resume(first.machine)
                if others[0].task.done():
                    world.hits["zombie coordinator wakes"] += 1
        elif fate < 0.7:
            others.append(self._command(rng))
            world.hits["two operators"] += 1
        await self._wait([first, *others], PATIENCE_S)
        for command in (first, *others):
            if not command.task.done() and command.machine.alive:
                self.note(f"{command.machine.name} is ended")
                command.wire.die()
            elif command.task.done():
                self._judge(command)
        await asyncio.sleep(rng.random() * 0.3)

    def _command(self, rng: random.Random) -> Command:
        until = rng.choice((Until.TARGET, Until.TARGET, Until.TARGET, Until.ARMED, Until.VERIFIED, Until.COMPLETE))
        options = MigrateOptions(
            until=until,
            yes=True,
            workers=rng.choice((1, 2)),
            max_hold_ms=rng.choice((30.0, 300.0, 1000.0)),
            foreign_writers="refuse",
            ack_timeout_s=rng.choice((1.0, 6.0)),
            canary_pct=rng.choice((100, 100, 40)) if until is Until.ARMED else 100,
        )
        migrate = ("migrate", lambda c: c.migrate(self._target()))
        acts: list[tuple[str, Any]] = [
            migrate,
            migrate,
            migrate,
            ("rollback", Coordinator.rollback),
            ("rollback", Coordinator.rollback),
            ("complete", Coordinator.complete),
            ("cancel", Coordinator.cancel),
            ("repair", Coordinator.repair),
        ]
        name, act = rng.choice(acts)
        if name == "complete" and rng.random() < 0.5:
            name, act = migrate
        self.note(f"{name} (until {until})")
        self.world.history.repairs |= name == "repair"
        self.world.hits[f"command {name}"] += 1
        return self.world.command(name, options, act, patience_s=6.0)

    def _target(self) -> str:
        """Away from where the domain rests (or to the present target)."""
        control, domain = self.world.control, self.plan.pair.domain
        for migration in control.migrations_of(domain):
            if not migration.finished:
                return migration.target.backend
        return "t" if control.routes[domain].authority.backend == "s" else "s"

    async def _wait(self, commands: list[Command], seconds: float) -> None:
        tasks = [c.task for c in commands if not c.task.done() and c.machine.alive]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _judge(self, command: Command) -> None:
        """How a command may end."""
        error = None if command.task.cancelled() else command.task.exception()
        name = "done" if error is None else type(error).__name__
        self.note(f"{command.machine.name}: {name} {error or ''}")
        self.world.hits[f"ended: {name}"] += 1
        if isinstance(error, (VerificationFailed, AssertionError)) or (
            error is not None and not isinstance(error, DatalayerError)
        ):
            self.world.broken("I5" if isinstance(error, VerificationFailed) else "engine", f"{error!r}")

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _mend(self) -> None:
        """Every fault ends: servers up, machines awake, the fleet complete."""
        world = self.world
        for server in (*world.servers.values(), world.control.machine):
            server.up = True
        for process in world.processes:
            world.loop.resume(process.machine)
        self._count_dead()
        while len(world.processes) < PROCESSES:
            await self._restart()
        await world.elapse(6.0)

    async def _finish(self) -> None:
        """I10: without faults an operator brings it to an end in a few tries."""
        goal = self.rng.choice(("target", "complete", "back", "cancel"))
        self.note(f"finish: {goal}")
        act, until = {
            "target": (lambda c: c.migrate(self._target()), Until.TARGET),
            "complete": (lambda c: c.migrate(self._target()), Until.COMPLETE),
            "back": (Coordinator.rollback, Until.TARGET),
            "cancel": (Coordinator.cancel, Until.TARGET),
        }[goal]
        options = MigrateOptions(until=until, yes=True, foreign_writers="refuse", ack_timeout_s=20.0)
        last: BaseException | None = None
        other_way = False
        for _ in range(6):
            command = self.world.command(f"finish-{goal}", options, act, patience_s=20.0)
            await asyncio.wait([command.task], timeout=120.0)
            if not command.task.done():
                self.world.broken("I10", f"finish {goal} does not end: {self._where()}")
                return
            last = command.task.exception()
            self._judge(command)
            if last is None:
                self.world.hits[f"finish {goal}"] += 1
                if not other_way and goal in ("target", "complete"):
                    self._arrived(command)
                return
            if isinstance(last, PreconditionFailed) and not isinstance(last, NotFinished):
                act, until = self._other_way(last, act, until)
                other_way = True
                options = MigrateOptions(until=until, yes=True, foreign_writers="refuse", ack_timeout_s=20.0)
                if act is None:
                    return
            elif not isinstance(last, (NotFinished, LostLease)) and not getattr(last, "retryable", False):
                break
        self.world.broken("I10", f"finish {goal} fails for ever: {last!r}, {self._where()}")

    def _arrived(self, command: Command) -> None:
        """I7: where a migration says that it has arrived, there the data is."""
        migration = command.task.result()
        routing = self.world.control.routes[self.plan.pair.domain]
        if routing.attempt != migration.attempt:
            self.world.broken(
                "I7", f"{migration.id} says it is done, but {self._where()} is of attempt {routing.attempt}"
            )

    def _other_way(self, error: PreconditionFailed, act: Any, until: Until) -> tuple[Any, Until]:
        """What the refusal says to do instead; None: there is nothing left to do."""
        text = str(error)
        if "no unfinished migration" in text:
            return None, until
        if "rollback" in text and "cancel" not in text:
            return Coordinator.rollback, until
        if "being cancelled" in text:
            return Coordinator.cancel, until
        if "is complete" in text or "phase is complete" in text:
            return Coordinator.complete, until
        return act, until

    def _where(self) -> str:
        routing = self.world.control.routes[self.plan.pair.domain]
        return f"phase {routing.phase} epoch {routing.epoch}"

    async def _quiet(self) -> None:
        """Traffic ends, journals empty; then both sides and every caller's view must agree."""
        world = self.world
        await self._progress()
        self.traffic.stopped.set()
        for process in world.processes:
            if process.tasks:
                await asyncio.wait(process.tasks, timeout=40.0)
        await self._judge_all()
        for process in world.processes:
            await self.traffic.read_all(process)
        world.watchdogs_live()
        for text in world.history.permanent:
            world.broken("errors", text)
        world.hits["acknowledged"] += world.history.acknowledged
        world.hits["reads"] += world.history.reads

    async def _judge_all(self) -> None:
        await sides_agree(self.world, self.traffic)

    async def _progress(self) -> None:
        """I10: in quiet weather every process gets a write through."""
        for process in self.world.processes:
            before = self.world.history.acknowledged
            await self.traffic.prove_alive(process)
            if self.world.history.acknowledged == before:
                self.world.broken("I10", f"{process.machine.name} cannot write: {self._where()}")


def traffic_of(world: World) -> MessageTraffic | UserTraffic | SessionTraffic:
    """The traffic of the domain that moves."""
    if world.pair.domain == "sessions":
        return SessionTraffic(world)
    return MessageTraffic(world) if world.pair.domain == "messages" else UserTraffic(world)


async def start_process(world: World) -> Process | None:
    """Start a process; None when the control store or its authority is away (it will be tried again)."""
    starting = asyncio.ensure_future(world.start())
    try:
        return await starting
    except DatalayerError:
        process = world.processes[-1]
        process.wire.die()
        world.bury(process)
        await asyncio.sleep(0.2)
        return None


async def _sleep_unless(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _like(profile: Profile) -> Profile:
    return Profile(
        profile.delay_s,
        profile.slow,
        profile.slow_s,
        profile.lost,
        profile.hang,
        profile.late,
        profile.late_s,
        profile.control_s,
    )
