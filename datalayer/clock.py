"""Time is passed in: the engine reads no clock of its own, so that a simulation can run it in virtual time."""

from __future__ import annotations

import time
from typing import Final, Protocol


class Clock(Protocol):
    """The three clocks the library needs."""

    def now_us(self) -> int:
        """Wall clock, microseconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; base of deadlines."""
        ...

    def boottime(self) -> float:
        """Seconds since boot, counting suspension and SIGSTOP; base of leases."""
        ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    def now_us(self) -> int:
        """Wall clock, microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since boot, suspension included."""
        return time.clock_gettime(_BOOTTIME)


_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Deadline:
    """The instant by which one call ends, shared by everything done for it."""

    __slots__ = ("_clock", "at")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self.at = clock.monotonic() + timeout_s

    def remaining(self) -> float:
        """Seconds left; zero or less when it has passed."""
        return self.at - self._clock.monotonic()

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self._clock.monotonic() >= self.at
