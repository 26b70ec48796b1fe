"""A small cloud on one virtual loop: two stores and a control store, processes that come and go, coordinators."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.coordinator import Coordinator
from datalayer.routing.places import Places
from datalayer.settings import parse_settings
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.stores.memory.faults import ProcessCrash
from datalayer.stores.memory.server import MemoryServer
from datalayer.testing.simulation.history import History, Violation
from datalayer.testing.simulation.loop import Machine, VirtualLoop
from datalayer.testing.simulation.wire import Profile, Trace, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from datalayer.migrators.options import Failpoints, MigrateOptions
    from datalayer.routing.route import Place
    from datalayer.stores.base import AuthorityClass

BASE_US: Final = 1_800_000_000_000_000
SKEW_US: Final = 20_000


@dataclass(frozen=True, slots=True)
class Pair:
    """What moves, between which classes of stores."""

    source: AuthorityClass = "transactional"
    target: AuthorityClass = "transactional"
    domain: str = "messages"

    def __str__(self) -> str:
        return f"{self.domain}:{self.source}->{self.target}"


class SimulatedClock:
    """Virtual time, with a skew of the wall clock."""

    __slots__ = ("_loop", "_skew_us")

    def __init__(self, loop: VirtualLoop, skew_us: int = 0) -> None:
        self._loop = loop
        self._skew_us = skew_us

    def now_us(self) -> int:
        """Wall clock of this machine."""
        return BASE_US + int(self._loop.time() * 1e6) + self._skew_us

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def boottime(self) -> float:
        """Virtual seconds: they pass while a machine is paused."""
        return self._loop.time()


@dataclass(slots=True)
class Process:
    """One simulated process with an open DataLayer."""

    machine: Machine
    wire: Wire
    layer: DataLayer
    tasks: list[asyncio.Task[Any]]

    @property
    def id(self) -> str:
        """Its id in the fleet."""
        return self.layer.process.id


@dataclass(slots=True)
class Command:
    """One operator's command at work on a machine of its own."""

    machine: Machine
    wire: Wire
    task: asyncio.Task[Any]
    coordinator: Any = None


class World:
    """Everything of one run. ``hits`` counts what sometimes happens, so that a test can demand that it does."""

    regions: Mapping[str, str] = MappingProxyType({})
    """The region of each backend where users lie by region."""

    def __init__(self, seed: int, pair: Pair, *, eager: bool = True, assist: bool = True, pushes: bool = True) -> None:
        self.seed = seed
        self.pair = pair
        self.rng = random.Random(f"{seed}/{pair}")
        self.loop = VirtualLoop(random.Random(f"{seed}/order"))
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self.clock = SimulatedClock(self.loop)
        self.trace = Trace()
        self.hits: Counter[str] = Counter()
        self.history = History(self.clock)
        self.servers = self._make_servers()
        self.control = MemoryControlServer("c", self.clock)
        self.control.pushes = pushes
        self.settings = parse_settings({**self._config(), "control": {"url": "memory://"}})
        self.options = LayerOptions(eager=eager, assist=assist, project=False, purge=False)
        self.processes: list[Process] = []
        self.dead: list[str] = []
        """Ids of processes that died: what an operator may assume dead."""
        self.profile = Profile()
        self._machines: list[Machine] = []
        self._wires: list[Wire] = []
        self._numbers = 0

    def _make_servers(self) -> dict[str, MemoryServer]:
        return {
            "s": MemoryServer("s", self.clock, authority_class=self.pair.source),
            "t": MemoryServer("t", self.clock, authority_class=self.pair.target),
            "u": MemoryServer("u", self.clock),
        }

    def _config(self) -> dict[str, Any]:
        """Backends and first places, as in a configuration file."""
        routes = {"messages": "u", "users": "u", self.pair.domain: "s"}
        return {"backends": {name: {"url": "memory://"} for name in self.servers}, "routes": routes}

    def tables(self, domain: str, place: Place, attempt: int) -> list[tuple[Place, int]]:
        """What a place consists of: each part's own place, and the number of its guard for an attempt."""
        del domain
        return [(place, attempt)]

    # --- machines ---------------------------------------------------------------------------------------------------

    def machine(self, name: str) -> tuple[Machine, Wire]:
        """A machine with its wire."""
        self._numbers += 1
        machine = Machine(f"{name}-{self._numbers}")
        wire = Wire(self.loop, machine, random.Random(self.rng.random()), self.trace, self.hits)
        wire.profile = replace(self.profile)
        self._machines.append(machine)
        self._wires.append(wire)
        return machine, wire

    def places(self, machine: Machine, wire: Wire, clock: SimulatedClock) -> Places:
        """Places of one machine that is no member of the fleet."""
        control = MemoryControl(self.control, client=machine.name, inject=wire)
        return Places(self.backends(machine, wire), control, clock, eager=False)

    def backends(self, machine: Machine, wire: Wire) -> dict[str, Any]:
        """The clients of one machine, by the names of their backends."""
        return {n: MemoryBackend(s, name=n, client=machine.name, inject=wire) for n, s in self.servers.items()}

    def machine_clock(self) -> SimulatedClock:
        """The clock of another machine: it goes somewhat wrong."""
        return SimulatedClock(self.loop, self.rng.randrange(-SKEW_US, SKEW_US + 1))

    async def start(self, name: str = "app") -> Process:
        """Start a process; it joins the fleet (as often as it must try)."""
        machine, wire = self.machine(name)
        control = MemoryControl(self.control, client=machine.name, inject=wire)
        layer = DataLayer(
            self.settings,
            control,
            self.backends(machine, wire),
            clock=self.machine_clock(),
            options=replace(self.options, name=machine.name),
            seed=self.rng.getrandbits(32),
        )
        # Of no real host: the real machine knows nothing about a simulated process's life.
        layer.process = replace(layer.process, host="sim", pid=self._numbers, boot_id="")
        layer._watchdog._process = layer.process  # noqa: SLF001 - as above
        # A last-writer authority at rest keeps no journal: that a write of before the migration lands hours later (a
        # hint) is ruled out by waiting longer than the hint window, not by the protocol.
        wire.prompt = lambda call: call.name == "apply" and layer.router(self.pair.domain).routing.at_rest
        process = Process(machine, wire, layer, [])
        self.processes.append(process)
        await self.loop.spawn(machine, layer.start(), name=f"{machine.name}/start")
        return process

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        process.wire.die()
        self.bury(process)

    def bury(self, process: Process) -> None:
        """Take note of a process that has died."""
        self.dead.append(process.id)
        self.processes.remove(process)

    def command(
        self, name: str, options: MigrateOptions, act: Callable[[Coordinator], Coroutine[Any, Any, Any]], **more: Any
    ) -> Command:
        """Start a coordinator on a machine of its own."""
        machine, wire = self.machine(name)
        failpoints: Failpoints | None = more.pop("failpoints", None)
        if failpoints is not None:
            more["failpoints"] = failpoints
        coordinator = Coordinator(
            self.places(machine, wire, self.machine_clock()),
            self.pair.domain,
            holder=machine.name,
            options=replace(options, assume_dead=(*options.assume_dead, *self.dead)),
            **more,
        )
        command = self.run_command(machine, wire, act(coordinator))
        command.coordinator = coordinator
        return command

    def run_command(self, machine: Machine, wire: Wire, work: Coroutine[Any, Any, Any]) -> Command:
        """Run an operator's command on its machine."""
        return Command(machine, wire, self.loop.spawn(machine, _quietly(work), name=machine.name))

    async def elapse(self, seconds: float) -> None:
        """Let virtual time pass: costs nothing."""
        await asyncio.sleep(seconds)

    # --- the end ----------------------------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end of ``main``, then end everything. The first violation is raised."""
        try:
            result = self.loop.run_until_complete(main)
        finally:
            self.close()
        if self.history.violations:
            raise self.history.violations[0]
        return result

    def close(self) -> None:
        """End every task and close the loop."""
        if self.loop.is_closed():
            return
        for wire in self._wires:
            wire.die()
        self.loop.bury(self._machines)
        self.loop.close()

    def broken(self, promise: str, detail: str) -> None:
        """Enter a violation."""
        self.history.broken(promise, detail)

    def watchdogs_live(self) -> None:
        """A background task of a living process never ends."""
        for process in self.processes:
            for task in process.layer._watchdog._tasks:  # noqa: SLF001 - there is no other way to see it
                if task.done() and not task.cancelled() and process.machine.alive:
                    self.broken("I10", f"{task.get_name()} of {process.machine.name} has ended: {task.exception()!r}")


async def _quietly(work: Coroutine[Any, Any, Any]) -> Any:
    """A crash ends the machine; its task's end means nothing then."""
    try:
        return await work
    except ProcessCrash:
        # The loop has frozen this machine: nobody waits for an answer.
        return None


__all__ = ["Command", "Pair", "Process", "SimulatedClock", "Violation", "World"]
