"""Backfill as whole processes, side by side: our command beside bare drivers and other tools, round by round."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks import dataset as datasets
from benchmarks.dataset import Dataset
from benchmarks.figures import Aim, Figure, ratio, rounded
from benchmarks.peers import tools
from benchmarks.processes import Ended, python, run
from benchmarks.shape import records as generated
from benchmarks.stage import PEER_ATTEMPT, Ground, Stage, opened
from datalayer.clock import SystemClock
from datalayer.domains.messages import MESSAGE
from datalayer.domains.record import Record, digest
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places

PEER_TABLE = f"messages_{PEER_ATTEMPT}"
IN_FLIGHT_TRIED = (16, 32, 64, 128)
SWEEP_ROWS = 20_000
SCAN_ROWS = 2000
CHECKED_ROWS_MAX = 60_000
"""Reading every copy back takes as long as making it: only smaller sets are compared, once."""
TOOL_ROUNDS_MAX = 2
"""Other tools are far from any aim and slow: a third round of them says nothing new."""
WORKERS = 2
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """One contender in one round. ``work_s`` is the copying alone, where the contender says how long that took."""

    rows: int
    seconds: float
    cpu_s: float
    work_s: float | None = None
    work_cpu_s: float | None = None


Contender = Callable[[Stage, Dataset], Awaitable[Done]]


@dataclass(slots=True)
class Race:
    """The rounds of every contender over one dataset."""

    dataset: Dataset
    rounds: dict[str, list[Done]] = field(default_factory=dict)
    landed: dict[str, bool | None] = field(default_factory=dict)
    """Whether the rows of the first round were read back equal to the source's; None: not looked at."""

    def rates(self, name: str) -> list[float]:
        return [done.rows / done.seconds for done in self.rounds[name]]

    def work_rates(self, name: str) -> list[float]:
        return [done.rows / (done.work_s or done.seconds) for done in self.rounds[name]]

    def document(self) -> dict[str, Any]:
        one = self.dataset
        return {
            "rows": one.rows,
            "partitions": one.partitions,
            "mib": one.mib,
            "contenders": {name: self._contender(name) for name in self.rounds},
            "ratios": ratios(self),
        }

    def _contender(self, name: str) -> dict[str, Any]:
        rounds = self.rounds[name]
        told: dict[str, Any] = {
            "rows_per_s": Figure.of(self.rates(name)).document(),
            "client_cpu_us_per_row": rounded(1e6 * Figure.of([done.cpu_s / done.rows for done in rounds]).median),
            "rows_equal_to_the_source": self.landed[name],
        }
        if all(done.work_s is not None for done in rounds):
            told["copying_rows_per_s"] = Figure.of(self.work_rates(name)).document()
        if all(done.work_cpu_s is not None for done in rounds):
            shares = [(done.work_cpu_s or 0.0) / done.rows for done in rounds]
            told["copying_cpu_us_per_row"] = rounded(1e6 * Figure.of(shares).median)
        return told


OURS_CASSANDRA = "datalayer, Postgres -> Cassandra"
OURS_POSTGRES = "datalayer, Postgres -> Postgres"
DRIVER = "driver alone, from memory"
DRIVER_PACKED = "driver alone, serialised before"
CQLSH = "cqlsh COPY FROM"
DSBULK = "DSBulk load"
COPY_PIPE = "COPY out | COPY in"
AIMS: tuple[tuple[str, str, Aim | None], ...] = (
    (OURS_CASSANDRA, DRIVER, Aim(0.7)),
    (OURS_CASSANDRA, DRIVER_PACKED, None),
    (OURS_CASSANDRA, CQLSH, None),
    (OURS_CASSANDRA, DSBULK, Aim(3.0)),
    (OURS_POSTGRES, COPY_PIPE, Aim(0.5)),
)


def ratios(race: Race) -> list[dict[str, Any]]:
    """Our rate over each peer's: of whole processes, and of the copying alone where both say that."""
    told = []
    for ours, peer, aim in AIMS:
        if ours not in race.rounds or peer not in race.rounds:
            continue
        # A tool has fewer rounds: only rounds that both were in are compared.
        both = min(len(race.rounds[ours]), len(race.rounds[peer]))
        found = ratio(race.rates(ours)[:both], race.rates(peer)[:both])
        entry: dict[str, Any] = {"ours": ours, "peer": peer, "whole_process": found.document()}
        if all(done.work_s is not None for done in race.rounds[peer]):
            entry["copying_alone"] = ratio(race.work_rates(ours)[:both], race.work_rates(peer)[:both]).document()
        if aim is not None:
            entry |= {"aim": str(aim), "met": aim.met(found.median)}
        told.append(entry)
    return told


# --- ours ----------------------------------------------------------------------------------------------------------


async def ours(stage: Stage, data: Dataset, target: str) -> Done:
    """``datalayer migrate messages --to TARGET --until backfilled``: start, tables, journal, copy, catch-up, end."""
    command = ("migrate", "messages", "--to", target, "--until", "backfilled", "--workers", WORKERS, "--yes", "--json")
    argv = python("datalayer.cli", *command, "--config", stage.config(target))
    ended = await asyncio.to_thread(run, argv, stage.log("datalayer"))
    async with open_places(stage.settings, SystemClock()) as places:
        migration = next(m for m in await places.control.migrations("messages") if not m.finished)
        told = await places.control.document(migration.id, "backfill")
    assert told is not None, "a backfill that ended says what it did"
    assert told["rows"] == data.rows, f"{told['rows']} of {data.rows} rows were copied"
    return Done(data.rows, ended.wall_s, ended.cpu_s, told["seconds"])


async def take_back(stage: Stage) -> None:
    """Cancel the migration: its tables go, the next one has a new number."""
    async with open_places(stage.settings, SystemClock()) as places:
        await Coordinator(places, "messages", holder="benchmark").cancel()


# --- peers ---------------------------------------------------------------------------------------------------------


def driver(mode: str, in_flight: int) -> Contender:
    """The driver alone; what it took to read the rows into memory is left out."""

    async def work(stage: Stage, data: Dataset) -> Done:
        ended = await asyncio.to_thread(_drive, stage, data, mode, [in_flight])
        told = ended.last_json()["runs"][0]
        return Done(data.rows, ended.wall_s - told["load_s"], told["send_cpu_s"], told["send_s"], told["send_cpu_s"])

    return work


def _drive(stage: Stage, data: Dataset, mode: str, in_flight: Sequence[int], rows: int | None = None) -> Ended:
    some = () if rows is None else ("--rows", rows)
    options = ("--mode", mode, *some, "--in-flight", *in_flight)
    argv = python("benchmarks.peers.driver", stage.cassandra, PEER_TABLE, data.csv, *options)
    return run(argv, stage.log("driver"))


async def best_in_flight(stage: Stage, data: Dataset) -> int:
    """How many requests on their way serve the driver best, found on some of the rows."""
    async with peer_table(stage, "cassandra"):
        rows = min(SWEEP_ROWS, data.rows)
        ended = await asyncio.to_thread(_drive, stage, data, "bound", (64, *IN_FLIGHT_TRIED), rows)
    # The first one warms the server up.
    told = ended.last_json()["runs"][1:]
    return int(min(told, key=lambda one: one["send_s"])["in_flight"])


def tool(call: Callable[[Stage, Dataset], Ended]) -> Contender:
    """Another tool, as a whole process."""

    async def work(stage: Stage, data: Dataset) -> Done:
        ended = await asyncio.to_thread(call, stage, data)
        return Done(data.rows, ended.wall_s, ended.cpu_s)

    return work


# --- the race ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """One contender: what it fills, where its rows land, how it works."""

    name: str
    backend: str
    work: Contender
    is_ours: bool = False
    is_tool: bool = False


def lanes(in_flight: int) -> list[Lane]:
    """Every contender."""
    return [
        Lane(OURS_CASSANDRA, "cassandra", lambda stage, data: ours(stage, data, "cassandra"), is_ours=True),
        Lane(DRIVER, "cassandra", driver("bound", in_flight)),
        Lane(DRIVER_PACKED, "cassandra", driver("packed", in_flight)),
        Lane(CQLSH, "cassandra", tool(lambda stage, data: tools.cqlsh(stage, data, PEER_TABLE)), is_tool=True),
        Lane(DSBULK, "cassandra", tool(lambda stage, data: tools.dsbulk(stage, data, PEER_TABLE)), is_tool=True),
        Lane(OURS_POSTGRES, "copy", lambda stage, data: ours(stage, data, "copy"), is_ours=True),
        Lane(COPY_PIPE, "copy", tool(lambda stage, _: tools.copy_pipe(stage, PEER_TABLE))),
    ]


async def race(stage: Stage, data: Dataset, rounds: int, say: Say) -> Race:
    """All contenders, interleaved: each round begins with the next one, so that none always follows the same."""
    in_flight = await best_in_flight(stage, data)
    say(f"{data.name}: {data.rows} rows, {data.mib} MiB; the driver alone is fastest with {in_flight} in flight")
    runners = lanes(in_flight)
    found = Race(data, {lane.name: [] for lane in runners})
    expected = await content(stage, "main", 0) if data.rows <= CHECKED_ROWS_MAX else None
    for number in range(rounds):
        # Not ours first: the first of all pays for caches and code that are cold.
        turn = (number + 1) % len(runners)
        for lane in [*runners[turn:], *runners[:turn]]:
            if lane.is_tool and number >= TOOL_ROUNDS_MAX:
                continue
            done, landed = await _one(stage, data, lane, check=number == 0 and expected is not None)
            found.rounds[lane.name].append(done)
            if number == 0:
                found.landed[lane.name] = None if expected is None else landed == expected
            whole, alone = done.rows / done.seconds, done.rows / (done.work_s or done.seconds)
            say(f"  round {number + 1}  {lane.name:34} {whole:8.0f} rows/s as a process, {alone:8.0f} copying")
    return found


async def _one(stage: Stage, data: Dataset, lane: Lane, *, check: bool) -> tuple[Done, tuple[int, int] | None]:
    """One contender's turn on empty tables, and what they hold afterwards if that is asked for."""
    if not lane.is_ours:
        async with peer_table(stage, lane.backend):
            done = await lane.work(stage, data)
            return done, await content(stage, lane.backend, PEER_ATTEMPT) if check else None
    try:
        done = await lane.work(stage, data)
        return done, await content(stage, lane.backend, await attempt(stage)) if check else None
    finally:
        await take_back(stage)


async def attempt(stage: Stage) -> int:
    """The number of the tables that the unfinished migration fills."""
    async with open_places(stage.settings, SystemClock()) as places:
        return next(m.attempt for m in await places.control.migrations("messages") if not m.finished)


@asynccontextmanager
async def peer_table(stage: Stage, backend: str) -> AsyncIterator[None]:
    """An empty table of our layout for a peer, gone afterwards."""
    async with opened(stage.settings, backend) as backends:
        store = backends[backend].store("messages", PEER_ATTEMPT)
        await store.drop()
        await store.create()
    try:
        yield
    finally:
        async with opened(stage.settings, backend) as backends:
            await backends[backend].store("messages", PEER_ATTEMPT).drop()


async def content(stage: Stage, backend: str, number: int) -> tuple[int, int]:
    """How many messages a place holds, and the sum of their digests."""
    count = total = 0
    async with opened(stage.settings, backend) as backends:
        store = backends[backend].store("messages", number)
        for range_ in await store.plan_scan(1):
            after, done = None, False
            while not done:
                page = await store.scan(range_, after, SCAN_ROWS)
                after, done = page.after, page.done
                count += len(page.records)
                total += sum(digest(MESSAGE, record) for record in page.records)
    return count, total % (1 << 128)


async def measure(ground: Ground, rows: int, rounds: int, say: Say) -> dict[str, Any]:
    """Generated rows of chat shape, and the real data where it is present."""
    # Installed before the clock runs.
    await asyncio.to_thread(tools.install_all)
    sources: dict[str, Iterable[Record]] = {"generated": generated(rows)}
    if (path := datasets.real_data()) is not None:
        sources["real"] = itertools.islice(datasets.real_records(path), rows)
    told: dict[str, Any] = {"rounds": rounds, "workers": WORKERS, "datasets": {}}
    for name, source in sources.items():
        stage = await ground.stage()
        data = await asyncio.to_thread(datasets.load, source, name, stage.main, stage.folder)
        told["datasets"][name] = (await race(stage, data, rounds, say)).document()
    return told
