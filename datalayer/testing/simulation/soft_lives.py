"""Lives of a soft migration under one kind of trouble each, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError, NotFinished
from datalayer.stores.memory.faults import Fault, Injection
from datalayer.testing.simulation.soft import TTL_S, SoftTraffic, SoftWorld, soft_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.stores.memory.faults import Call
    from datalayer.testing.simulation.world import Process

_AT_ONCE: Final = 1e-5
TRIES: Final = 60


class SoftLife:
    """One run: three processes, one operator who does not give up."""

    def __init__(self, seed: int, trouble: str) -> None:
        self.trouble = trouble
        self.world = SoftWorld(seed, pushes=seed % 2 == 0)
        self.rng = random.Random(f"{seed}/{trouble}")
        clean = trouble != "lossy"
        self.traffic = SoftTraffic(self.world, clean=clean and trouble != "deaf", refusals=trouble != "late")

    def run(self) -> SoftWorld:
        """Play it; the first violation is raised."""
        self.world.run(self._main())
        return self.world

    async def _main(self) -> None:
        play = {"late": self._late, "lossy": self._lossy, "window": self._window, "deaf": self._deaf}[self.trouble]
        for _ in range(3):
            process = await self.world.start()
            await self.traffic.lay_down(process)
            self.traffic.employ(process)
        await play()
        await asyncio.sleep(1.0)
        self.traffic.stopped.set()
        for process in self.world.processes:
            await asyncio.wait(process.tasks, timeout=20.0)
            for task in process.tasks:
                if task.done() and task.exception() is not None:
                    self.world.broken("errors", f"{task.get_name()} met {task.exception()!r}")
        for text in self.world.history.permanent:
            self.world.broken("errors", text)
        self.world.watchdogs_live()

    async def _late(self) -> None:
        """Processes hear news late, each in its own time; coordinators are killed."""
        for process in self.world.processes:
            process.wire.profile.control_s = self.rng.choice((0.0, 0.3, 1.5))
        for step in ("target", "back", "target", "complete"):
            await self._step(step, killed=True)
            await asyncio.sleep(self.rng.random() * 0.5)

    async def _lossy(self) -> None:
        """Calls of processes to everything are lost, hang and land late."""
        for process in self.world.processes:
            process.wire.profile.lost = 0.08
            process.wire.profile.late = 0.02
            process.wire.profile.late_s = 0.5
            process.wire.profile.control_s = self.rng.choice((0.0, 0.3))
        for step in ("target", "back", "target", "complete"):
            await self._step(step)

    async def _window(self) -> None:
        """The target misses beats of one process for a while; the source dies once the target rules."""
        one = self.world.processes[self.rng.randrange(3)]
        moving = asyncio.ensure_future(self._step("target"))
        await self._phase("dual")
        await asyncio.sleep(self.rng.random() * TTL_S * 0.9)
        self._refuse(one, lambda call: call.server == "t" and call.name == "beat")
        await asyncio.sleep(0.3 + self.rng.random() * TTL_S * 0.6)
        one.wire.plan = None
        await self._phase("target")
        self.world.servers["s"].up = False
        self.world.hits["the source is down"] += 1
        await asyncio.sleep(TTL_S / 2)
        self.world.servers["s"].up = True
        await moving

    async def _deaf(self) -> None:
        """A process hears nothing of the flip and cannot reach the target; the operator completes meanwhile."""
        one = self.world.processes[self.rng.randrange(3)]
        moving = asyncio.ensure_future(self._step("target"))
        await self._phase("target")
        until = self.world.loop.time() + 1.0 + 2 * self.rng.random()
        self._refuse(
            one,
            lambda call: (
                (call.server == "t" and call.name == "beat") or (call.server == "c" and self.world.loop.time() < until)
            ),
        )
        await moving
        await self._step("complete")
        one.wire.plan = None

    # --- steering ----------------------------------------------------------------------------------------------------

    def _refuse(self, process: Process, which: Callable[[Call], bool]) -> None:
        def plan(call: Call) -> Injection | None:
            if which(call):
                self.world.hits[f"refused {call.server}"] += 1
                return Injection(Fault.ERROR, _AT_ONCE, _AT_ONCE)
            return None

        process.wire.plan = plan

    async def _phase(self, phase: str) -> None:
        while str(self.world.control.routes["presence"].phase) != phase:
            await asyncio.sleep(0.002)

    async def _step(self, step: str, *, killed: bool = False) -> None:
        """One command, again and again until it is done; a coordinator may be killed."""
        for _ in range(TRIES):
            command = soft_command(self.world, step)
            if killed and self.rng.random() < 0.5:
                await asyncio.wait([command.task], timeout=self.rng.random() * 3.0)
                if not command.task.done():
                    command.wire.die()
                    self.world.hits["coordinator killed"] += 1
                    await asyncio.sleep(6.0)
                    continue
            await asyncio.wait([command.task], timeout=60.0)
            error = command.task.exception() if command.task.done() else None
            if command.task.done() and error is None:
                return
            if error is not None and "no unfinished migration" in str(error):
                return
            if not isinstance(error, DatalayerError) or not (error.retryable or isinstance(error, NotFinished)):
                self.world.broken("I7", f"{step} ended with {error!r}")
                return
            await asyncio.sleep(0.3)
        self.world.broken("I10", f"{step} does not end")


TROUBLES: Final = ("late", "lossy", "window", "deaf")
__all__ = ["TROUBLES", "SoftLife"]
