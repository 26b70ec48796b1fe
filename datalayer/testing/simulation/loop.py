"""An event loop of virtual time on which several machines run, in an order that the seed decides.

Time jumps to the next timer when nobody is ready. Each handle belongs to the machine whose context made it; handles of
one machine run in their order (asyncio relies on it), machines take turns at random. A paused machine's handles and
timers wait (SIGSTOP); a dead one's wait for ever (SIGKILL: no clean-up code runs), until ``bury`` lets the test end
its tasks.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, Unpack

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from contextvars import Context

Ts = TypeVarTuple("Ts")
EVENTS_MAX: Final = 20_000_000


class Stuck(AssertionError):
    """Nothing can ever happen any more, or too much happens without an end."""


class Machine:
    """One simulated process. Tasks belong to the machine in whose context they were created."""

    __slots__ = ("alive", "name", "paused", "queue")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.alive = True
        self.paused = False
        self.queue: Final[deque[asyncio.Handle]] = deque()

    @property
    def runs(self) -> bool:
        """Whether it executes anything now."""
        return self.alive and not self.paused


NETWORK: Final = Machine("network")
"""What belongs to no process: requests on their way."""
_machine: ContextVar[Machine] = ContextVar("datalayer_machine", default=NETWORK)


def machine_here() -> Machine:
    """The machine on which the caller runs."""
    return _machine.get()


class VirtualLoop(asyncio.BaseEventLoop):
    """Deterministic: a function of the seed and of what the tasks do."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._sequence = 0
        self._timers: list[tuple[float, int, Machine, asyncio.TimerHandle]] = []
        self._busy: list[Machine] = []
        self._graves: list[asyncio.Task[Any]] = []
        self.events = 0
        self.network = Machine("network")

    # --- what asyncio asks for --------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        machine = self._machine_of(context)
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(machine, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, self._machine_of(context), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its time comes."""

    def _run_once(self) -> None:
        while not self._busy:
            self._jump()
        self.events += 1
        if self.events > EVENTS_MAX:
            raise Stuck(f"{EVENTS_MAX} events and no end, at {self._now:.3f} s")
        at = int(self._rng.random() * len(self._busy))
        machine = self._busy[at]
        handle = machine.queue.popleft()
        if not machine.queue:
            self._busy[at] = self._busy[-1]
            self._busy.pop()
        if not handle.cancelled():
            handle._run()  # noqa: SLF001 - as every event loop does

    def _machine_of(self, context: Context | None) -> Machine:
        machine = _machine.get() if context is None else context.get(_machine, NETWORK)
        return self.network if machine is NETWORK else machine

    def _enqueue(self, machine: Machine, handle: asyncio.Handle) -> None:
        if not machine.queue and machine.runs:
            self._busy.append(machine)
        machine.queue.append(handle)

    def _jump(self) -> None:
        """To the next timer: it and all others of that instant become ready."""
        if not self._timers:
            raise Stuck(f"everybody waits for ever, at {self._now:.3f} s")
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            _, _, machine, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self._enqueue(machine, handle)

    # --- machines ---------------------------------------------------------------------------------------------------

    def spawn(self, machine: Machine, coroutine: Any, *, name: str | None = None) -> asyncio.Task[Any]:
        """A task of a machine; the tasks that it makes are the machine's too."""
        token = _machine.set(machine)
        try:
            return self.create_task(coroutine, name=name)
        finally:
            _machine.reset(token)

    def pause(self, machine: Machine) -> None:
        """SIGSTOP: nothing of it runs; its timers go on counting and fire when it goes on."""
        machine.paused = True
        self._idle(machine)

    def resume(self, machine: Machine) -> None:
        """SIGCONT."""
        if machine.paused:
            machine.paused = False
            if machine.queue and machine.alive:
                self._busy.append(machine)

    def kill(self, machine: Machine) -> None:
        """SIGKILL. What it had sent is still on its way."""
        machine.alive = False
        self._idle(machine)
        # Kept, so that no task is collected (and its clean-up run) before the end of the run.
        self._graves += [task for task in asyncio.all_tasks(self) if not task.done()]

    def _idle(self, machine: Machine) -> None:
        if machine in self._busy:
            self._busy.remove(machine)

    def bury(self, machines: list[Machine]) -> None:
        """At the end: cancel every task and let it end. The wire must refuse every call from now on."""
        for machine in machines:
            machine.paused, machine.alive = False, True
            if machine.queue and machine not in self._busy:
                self._busy.append(machine)
        tasks = sorted({*self._graves, *asyncio.all_tasks(self)}, key=lambda task: task.get_name())
        open_tasks = [task for task in tasks if not task.done()]
        for task in open_tasks:
            task.cancel()
        if open_tasks:
            self.run_until_complete(asyncio.wait(open_tasks))
        self._graves.clear()
