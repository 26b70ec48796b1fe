"""The network between the machines: how long each call travels, and what goes wrong with it.

One ``Wire`` belongs to one process. Its weather (a ``Profile``) can be changed while it lives; a test may place single
faults by hand with ``plan``. Every call is entered in the world's trace.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.stores.memory.faults import Call, Fault, Injection, ProcessCrash

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable

    from datalayer.testing.simulation.loop import Machine, VirtualLoop

_LAST: Final = 4000


@dataclass(slots=True)
class Profile:
    """Weather. Delays in seconds, one way; probabilities a call."""

    delay_s: float = 0.0004
    slow: float = 0.0
    """How often a call takes up to ``slow_s``."""
    slow_s: float = 0.05
    lost: float = 0.0
    """How often request or reply is lost, the connection breaks, or a batch lands half."""
    hang: float = 0.0
    late: float = 0.0
    """How often a request lands only after its caller gave up."""
    late_s: float = 12.0
    control_s: float = 0.0
    """Extra delay of every call to the control store: a process that hears news late."""


class Trace:
    """A digest of every call of a run, and the last ones as text."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.last: deque[str] = deque(maxlen=_LAST)
        self.calls = 0

    def enter(self, line: str) -> None:
        """One line."""
        self.calls += 1
        self._hash.update(line.encode())
        self.last.append(line)

    def digest(self) -> str:
        """Equal for equal runs."""
        return self._hash.hexdigest()


class Wire:
    """The injector of one process."""

    def __init__(
        self, loop: VirtualLoop, machine: Machine, rng: random.Random, trace: Trace, hits: Counter[str]
    ) -> None:
        self.machine: Final = machine
        self.profile = Profile()
        self.plan: Callable[[Call], Injection | None] | None = None
        self.prompt: Callable[[Call], bool] = lambda _call: False
        """Calls that never land late."""
        self._loop = loop
        self._rng = rng
        self._trace = trace
        self._hits = hits
        self.dying = False
        """The process has ended, or does at this instant."""

    def __call__(self, call: Call) -> Injection:
        if self.dying or not self.machine.alive:
            return Injection(Fault.CRASH_BEFORE)
        injection = None if self.plan is None else self.plan(call)
        if injection is None:
            injection = self._weather(call)
        if injection.fault is not Fault.NONE:
            self._hits[f"fault:{injection.fault}"] += 1
        line = f"{self._loop.time():.6f} {call.client} > {call.server} {call.domain} {call.name} {injection.fault}"
        self._trace.enter(line if injection.request_s < 1 else f"{line} +{injection.request_s:.3f}")
        if injection.fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            self._hits["crash at a call"] += 1
            self.dying = True
            # After the effect means: once everything of that instant has run.
            wait_s = injection.request_s + 1e-9 if injection.fault is Fault.CRASH_AFTER else 0.0
            self._loop.call_later(wait_s, self.die, context=Context())
        return injection

    def die(self) -> None:
        """The process ends here and now."""
        self.dying = True
        if self.machine.alive:
            self._loop.kill(self.machine)

    def _weather(self, call: Call) -> Injection:
        profile, rng = self.profile, self._rng
        request_s = profile.delay_s * rng.random() + 1e-6
        reply_s = profile.delay_s * rng.random()
        if profile.control_s and call.name.startswith("control."):
            reply_s += profile.control_s * rng.random()
        draw = rng.random()
        if draw < profile.slow:
            return Injection(Fault.NONE, profile.slow_s * rng.random(), profile.slow_s * rng.random())
        draw -= profile.slow
        if draw < profile.lost:
            fault = rng.choice((Fault.LOST_REQUEST, Fault.LOST_REPLY, Fault.ERROR, Fault.PARTIAL))
            return Injection(fault, request_s, reply_s)
        draw -= profile.lost
        if draw < profile.hang:
            return Injection(rng.choice((Fault.HANG, Fault.HANG_APPLIED)), request_s, reply_s)
        draw -= profile.hang
        if draw < profile.late and call.write and not self.prompt(call):
            self._hits["request lands late"] += 1
            left_s = 5.0 if call.deadline is None else max(call.deadline.remaining(), 0.0)
            return Injection(Fault.NONE, left_s + profile.late_s * rng.random(), 0.0)
        return Injection(Fault.NONE, request_s, reply_s)


__all__ = ["Call", "Fault", "Injection", "ProcessCrash", "Profile", "Trace", "Wire"]
