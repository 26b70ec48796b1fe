"""Calls of several sides, timed in turn: what an open client spends on one call."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Figure, ratio

Call = Callable[[int], Awaitable[object]]
"""One call; the number picks what it is about."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some calls, timed: microseconds a call, of the clock and of this process's CPU."""

    us: float
    cpu_us: float

    def part(self, parts: int) -> "Slice":
        """Of a call that does several things at once: what one of them takes."""
        return Slice(self.us / parts, self.cpu_us / parts)


async def timed(call: Call, calls: int, tasks: int) -> Slice:
    """``calls`` calls by so many tasks at once."""

    async def one(first: int) -> None:
        for number in range(first, calls, tasks):
            await call(number)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one(first) for first in range(tasks)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Slice(1e6 * seconds / calls, 1e6 * cpu / calls)


async def interleaved(
    sides: Sequence[Call],
    calls: int,
    tasks: int,
    slices: int,
    ready: Callable[[int], Awaitable[object]] | None = None,
) -> list[list[Slice]]:
    """Slices of every side in turn, each time beginning with another one; the first pass warms up and is left out.

    ``ready`` is awaited before each slice, with the number of its side, while no clock runs.
    """
    found: list[list[Slice]] = [[] for _ in sides]
    for number in range(slices + 1):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            if ready is not None:
                await ready(at)
            measured = await timed(sides[at], calls, tasks)
            if number:
                found[at].append(measured)
    return found


def beside(ours: Sequence[Slice], theirs: Sequence[Slice]) -> dict[str, Any]:
    """Both sides' times and CPU of a call, and ours over theirs."""
    return {
        "us_a_call": Figure.of([one.us for one in ours]).document(),
        "bare_us_a_call": Figure.of([one.us for one in theirs]).document(),
        "cpu_us_a_call": Figure.of([one.cpu_us for one in ours]).document(),
        "bare_cpu_us_a_call": Figure.of([one.cpu_us for one in theirs]).document(),
        "ratio": ratio([one.us for one in ours], [one.us for one in theirs]).document(),
        "cpu_ratio": ratio([one.cpu_us for one in ours], [one.cpu_us for one in theirs]).document(),
    }
