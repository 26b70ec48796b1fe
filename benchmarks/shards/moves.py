"""Slot groups moved from one shard to another: our command beside tools that copy the same tables.

Ours moves everything back and forth between two shards; the tools copy a database that holds the same tables and
nothing else into an empty one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from benchmarks.figures import Figure, ratio, rounded
from benchmarks.peers import dumps
from benchmarks.processes import Ended, python, run
from benchmarks.shards.place import Lies, Sharded, fill, people, sharded
from benchmarks.stage import Ground, opened, psql_run, settings_of
from datalayer.clock import SystemClock
from datalayer.migrators.opening import open_places

OURS, OURS_PARALLEL = "datalayer shards move", "datalayer shards move --parallel 4"
DUMP, DUMP_SCHEMA, PGCOPYDB = "pg_dump | psql, data only", "pg_dump | psql, with schema", "pgcopydb clone"
ALL_SLOTS = "0-4095"
MAX_HOLD = ("--max-hold", 10_000)
"""A busy machine must not end a run: every hold is reported."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """One contender in one round. ``copy_s``: the copying alone, where groups were copied one after the other."""

    seconds: float
    cpu_s: float
    copy_s: float | None = None
    holds_ms: tuple[float, ...] = ()


@dataclass(slots=True)
class Pair:
    """Two shards between which everything moves, and a database with the same tables for the tools."""

    ground: Ground
    place: Sharded
    tables: list[Lies]
    peer: str
    rows: int
    at: int = 0
    """The shard that has everything now."""

    def log(self) -> Any:
        return self.place.folder / f"{uuid4().hex[:8]}.log"


Contender = Callable[[Pair], Awaitable[Done]]


async def prepare(ground: Ground, users: int, groups: int) -> Pair:
    """Everything on the first of two shards."""
    place = await sharded(ground, shards=2, groups=groups, all_on=1)
    await fill(place, people(users))
    tables = await place.lies()
    peer = ground.database()
    await make_tables(peer, tables)
    await asyncio.to_thread(dumps.dump_pipe, f"{place.shards[0]}", peer, place.folder / "peer.log", schema=False)
    return Pair(ground, place, tables, peer, count_rows(peer, tables))


async def make_tables(url: str, tables: Sequence[Lies]) -> None:
    """Empty tables of our layout, under the same names."""
    async with opened(settings_of({"main": url}, url)) as backends:
        for lies in tables:
            await backends["main"].store("users", lies.table).create()


def count_rows(url: str, tables: Sequence[Lies]) -> int:
    names = [f"{base}_{lies.table}" for lies in tables for base in ("users", "claims")]
    return int(psql_run(url, "SELECT " + " + ".join(f"(SELECT count(*) FROM {name})" for name in names)))


# --- contenders ----------------------------------------------------------------------------------------------------


async def ours(pair: Pair, *, parallel: int) -> Done:
    """The whole command, old tables dropped: start, plan, and each group's migration with its verification and holds."""
    target = 1 - pair.at
    before = await finished(pair.place)
    command = ("shards", "move", "users", "--slots", ALL_SLOTS, "--to", f"s{target}", "--parallel", parallel)
    argv = python("datalayer.cli", *command, *MAX_HOLD, "--purge", "--yes", "--json", "--config", pair.place.config)
    ended = await asyncio.to_thread(run, argv, pair.log())
    pair.at = target
    told = ended.last_json()
    assert told["rows_copied"] == pair.rows, f"{told['rows_copied']} of {pair.rows} rows were moved"
    copied, holds = await kept(pair.place, set(before))
    return Done(ended.wall_s, ended.cpu_s, sum(copied) if parallel == 1 else None, tuple(holds))


async def tool(pair: Pair, work: Callable[[str, str, Any], Ended], *, made: bool) -> Done:
    """A tool's copy into an empty database; ``made``: the tables are there already."""
    target = pair.ground.database()
    try:
        if made:
            await make_tables(target, pair.tables)
        ended = await asyncio.to_thread(work, pair.peer, target, pair.log())
        landed = count_rows(target, pair.tables)
        assert landed == pair.rows, f"{landed} of {pair.rows} rows were copied"
    finally:
        psql_run(pair.peer, f"DROP DATABASE {target.partition('?')[0].rpartition('/')[2]} WITH (FORCE)")
    return Done(ended.wall_s, ended.cpu_s)


async def finished(place: Sharded) -> list[str]:
    """Names of the moves that have ended."""
    async with open_places(place.settings, SystemClock(), claim=False) as places:
        return [one.id for one in await places.control.migrations() if one.finished]


async def kept(place: Sharded, before: set[str]) -> tuple[list[float], list[float]]:
    """Of the moves since: seconds of each backfill, and every hold in milliseconds."""
    async with open_places(place.settings, SystemClock(), claim=False) as places:
        control = places.control
        seconds, holds = [], []
        for one in await control.migrations():
            if one.id not in before:
                seconds.append(float((await control.document(one.id, "backfill") or {"seconds": 0})["seconds"]))
                held = await control.document(one.id, "holds") or {"holds": []}
                holds += [float(entry["ms"]) for entry in held["holds"]]
    return seconds, holds


def contenders() -> dict[str, Contender]:
    """Every one that can be had."""
    found: dict[str, Contender] = {
        OURS: partial(ours, parallel=1),
        OURS_PARALLEL: partial(ours, parallel=4),
        DUMP: partial(tool, work=partial(dumps.dump_pipe, schema=False), made=True),
        DUMP_SCHEMA: partial(tool, work=partial(dumps.dump_pipe, schema=True), made=False),
    }
    if dumps.install_pgcopydb() is not None:
        found[PGCOPYDB] = partial(tool, work=dumps.pgcopydb, made=False)
    return found


# --- the race ------------------------------------------------------------------------------------------------------


async def race(ground: Ground, users: int, groups: int, rounds: int, say: Say) -> dict[str, Any]:
    """All contenders, each round beginning with another one."""
    runners = await asyncio.to_thread(contenders)
    pair = await prepare(ground, users, groups)
    say(f"shards: {pair.rows} rows in {groups} slot groups made")
    found: dict[str, list[Done]] = {name: [] for name in runners}
    names = list(runners)
    for number in range(rounds):
        turn = (number + 2) % len(names)
        for name in [*names[turn:], *names[:turn]]:
            done = await runners[name](pair)
            found[name].append(done)
            say(f"  round {number + 1}  {groups} groups  {name:36} {pair.rows / done.seconds:8.0f} rows/s")
    return told(pair.rows, groups, found)


def told(rows: int, groups: int, found: dict[str, list[Done]]) -> dict[str, Any]:
    """The rounds of every contender, and ours over each tool's."""
    rates = {name: [rows / done.seconds for done in rounds] for name, rounds in found.items()}
    entries = {}
    for name, rounds in found.items():
        entry: dict[str, Any] = {"rows_per_s": Figure.of(rates[name]).document()}
        entry["client_cpu_us_per_row"] = rounded(1e6 * Figure.of([done.cpu_s / rows for done in rounds]).median)
        alone = [rows / done.copy_s for done in rounds if done.copy_s]
        if len(alone) == len(rounds):
            entry["copying_rows_per_s"] = Figure.of(alone).document()
        if holds := [ms for done in rounds for ms in done.holds_ms]:
            entry["holds_ms"] = held(holds)
        entries[name] = entry
    ratios = [
        {"ours": mine, "peer": peer, "ratio": ratio(rates[mine], rates[peer]).document()}
        for mine in (OURS, OURS_PARALLEL)
        for peer in (DUMP, DUMP_SCHEMA, PGCOPYDB)
        if peer in rates
    ]
    return {"rows": rows, "groups": groups, "contenders": entries, "ratios": ratios, "pgcopydb": PGCOPYDB in found}


def held(holds: Sequence[float]) -> dict[str, Any]:
    """Count, median and maximum."""
    return {"count": len(holds), "median": rounded(Figure.of(holds).median), "maximum": rounded(max(holds))}
