"""What an application feels while its slot groups move: the time of a call at a fixed rate, idle and in a rebalance.

Calls begin when they are due, whether or not earlier ones have ended, and a call's time counts from when it was due: a
pause hides no call. The mover is the command, in a process of its own.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from typing import Any
from uuid import UUID, uuid4

from benchmarks.figures import Figure, rounded
from benchmarks.processes import Ended, python, run
from benchmarks.shards.moves import MAX_HOLD, finished, held, kept
from benchmarks.shards.place import SHARDS, Sharded, ids_of
from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer
from datalayer.types import User

RATE_PER_S = 200
"""Of the application: every other call a get, an update."""
MOVE_RATES: tuple[float | None, ...] = (5000, 20_000, None)
GROUPS = 16
IDLE_S = 5.0
HOLD_MAX_MS = 250.0
STRIDE = 7919
Say = Callable[[str], None]


@dataclass(slots=True)
class Felt:
    """Times of calls in milliseconds, by call, and the calls that ended with an error (their deadline passed)."""

    ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: int = 0

    def p99(self, call: str) -> float:
        return quantiles(self.ms[call], n=100)[98]

    def worst(self, call: str) -> float:
        return max(self.ms[call])


@dataclass(slots=True)
class Situation:
    """Idle, or a rebalance with that cap of its backfills; what was felt in each round."""

    name: str
    rounds: list[Felt] = field(default_factory=list)
    holds_ms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        told: dict[str, Any] = {"situation": self.name, "errors": sum(felt.errors for felt in self.rounds)}
        for call in ("get", "update"):
            told[call] = {
                "calls": sum(len(felt.ms[call]) for felt in self.rounds),
                "p50_ms": Figure.of([Figure.of(felt.ms[call]).median for felt in self.rounds]).document(),
                "p99_ms": Figure.of([felt.p99(call) for felt in self.rounds]).document(),
                "worst_ms": rounded(max(felt.worst(call) for felt in self.rounds)),
            }
        if self.holds_ms:
            told["holds_ms"] = held(self.holds_ms)
            told["rebalance_s"] = Figure.of(self.seconds).document()
        return told


async def traffic(
    place: Sharded, users: Sequence[User], rounds: int, say: Say, *, rate: float = RATE_PER_S, idle_s: float = IDLE_S
) -> dict[str, Any]:
    """Every situation once a round; a rebalance evens out over all shards, the next one empties half of them again."""
    situations = [Situation("idle"), *(Situation(_name(cap)) for cap in MOVE_RATES)]
    caps = [None, *MOVE_RATES]
    moves = count()
    async with DataLayer.open(place.settings) as layer:
        await felt_while(layer, ids_of(users), rate, asyncio.create_task(asyncio.sleep(0.4)))
        for number in range(rounds):
            for turn in range(len(situations)):
                at = (number + turn) % len(situations)
                one = situations[at]
                if at == 0:
                    going: asyncio.Task[Any] = asyncio.create_task(_rest(idle_s))
                else:
                    going = asyncio.create_task(_rebalance(place, one, caps[at], spread_out=next(moves) % 2 == 0))
                one.rounds.append(await felt_while(layer, ids_of(users), rate, going))
                felt = one.rounds[-1]
                p99 = ", ".join(f"{call} p99 {felt.p99(call):.1f} ms" for call in felt.ms)
                say(f"  round {number + 1}  {one.name:28} {p99}; holds so far: {len(one.holds_ms)}")
    return document(situations, rate, place.groups)


def document(situations: Sequence[Situation], rate: float, groups: int) -> dict[str, Any]:
    """Every situation, and all holds together."""
    holds = [ms for one in situations for ms in one.holds_ms]
    return {
        "calls_per_s": rate,
        "groups": groups,
        "situations": [one.document() for one in situations],
        "holds_ms": held(holds) | {"aim": f"<= {HOLD_MAX_MS:g} ms", "met": max(holds) <= HOLD_MAX_MS},
    }


async def felt_while(layer: DataLayer, ids: Sequence[UUID], rate: float, going: "asyncio.Task[Any]") -> Felt:
    """Gets and updates at that rate until the task has ended; what it raises is raised."""
    felt, began = Felt(), time.perf_counter()

    async def call(number: int, due: float) -> None:
        ident = ids[number * STRIDE % len(ids)]
        try:
            if number % 2:
                await layer.users.update(ident, display_name=f"User {number}")
            else:
                await layer.users.get(ident)
        except DatalayerError:
            felt.errors += 1
        felt.ms["update" if number % 2 else "get"].append(1e3 * (time.perf_counter() - due))

    async with asyncio.TaskGroup() as calls:
        for number in count():
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            if going.done():
                break
            calls.create_task(call(number, due))
    await going
    return felt


async def _rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _rebalance(place: Sharded, one: Situation, cap: float | None, *, spread_out: bool) -> None:
    before = await finished(place)
    share = {number: 1 if spread_out or number < SHARDS // 2 else 0 for number in range(SHARDS)}
    weights = ",".join(f"s{number}={weight}" for number, weight in share.items())
    capped = () if cap is None else ("--rate", f"{cap:g}")
    command = ("shards", "rebalance", "users", "--by", "slots", "--weights", weights, *capped)
    argv = python("datalayer.cli", *command, *MAX_HOLD, "--purge", "--yes", "--json", "--config", place.config)
    ended: Ended = await asyncio.to_thread(run, argv, place.folder / f"{uuid4().hex[:8]}.log")
    one.seconds.append(ended.wall_s)
    one.holds_ms += (await kept(place, set(before)))[1]


def _name(cap: float | None) -> str:
    return "rebalance, no --rate" if cap is None else f"rebalance --rate {cap:g}"
