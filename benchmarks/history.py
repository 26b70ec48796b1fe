"""History and single messages of a large table, on each store that messages may lie in, beside the bare driver.

Both sides read the same table, whose rows come by the stores' own bulk path; conversations have the sizes of real
ones. Beside the ratio stand the times of single calls: at this size the question is how long a reader waits.
"""

import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from benchmarks.figures import Aim, Figure, ratio, rounded
from benchmarks.peers.bare import LIMIT, Bare
from benchmarks.peers.bare_cassandra import BareCassandra
from benchmarks.peers.bare_postgres import BarePostgres
from benchmarks.peers.bare_sqlite import BareSqlite
from benchmarks.shape import in_parts
from benchmarks.slices import Call
from benchmarks.stage import Ground, create_schemas, opened, psql_run, settings_of
from datalayer.layer import DataLayer
from datalayer.settings import BackendUrl, Settings

PART = 5000
CALLS = 300
SAMPLE = 20_000
STRIDE = 7919
AIM = Aim(1.15, at_least=False)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the messages lie, and how to read them without the data layer."""

    name: str
    settings: Settings
    bare: Bare
    driver: str
    loaded: Callable[[], object]
    """What a careful operator does after a load."""


async def measure(ground: Ground, messages: int, rounds: int, say: Say) -> dict[str, Any]:
    """Every store, one after the other."""
    told: dict[str, Any] = {}
    for make in (sqlite, postgres, cassandra):
        place = make(ground)
        await create_schemas(place.settings)
        began = time.perf_counter()
        sample = await _load(place, messages)
        load_s = time.perf_counter() - began
        say(f"history: {messages:,} messages into {place.name}, {messages / load_s:,.0f}/s")
        async with _bare(place.bare), DataLayer.open(place.settings) as layer:
            calls = await _measured(layer, place, sample, rounds)
        told[place.name] = {"load_rows_per_s": rounded(messages / load_s), "calls": calls}
        say(f"history: {place.name} measured")
    return {"messages": messages, "calls_a_round": CALLS, "rounds": rounds, "limit": LIMIT, "stores": told}


def sqlite(ground: Ground) -> Place:
    path = ground.empty_folder() / "history.sqlite"
    settings = settings_of({"main": f"sqlite:///{path}"}, f"sqlite:///{path}.control")
    return Place("SQLite", settings, BareSqlite(path, 0, threads=True), "sqlite3 by to_thread", lambda: None)


def postgres(ground: Ground) -> Place:
    url = ground.database()
    settings = settings_of({"main": url}, ground.sqlite())
    return Place(
        "Postgres", settings, BarePostgres(url, 0), "psycopg", lambda: psql_run(url, "VACUUM ANALYZE messages")
    )


def cassandra(ground: Ground) -> Place:
    url = ground.keyspace()
    settings = settings_of({"main": ground.sqlite(), "cassandra": url}, ground.sqlite(), messages="cassandra")
    return Place("Cassandra", settings, BareCassandra(BackendUrl.parse(url), 0), "cassandra-driver", lambda: None)


async def _load(place: Place, messages: int) -> list[tuple[UUID, UUID]]:
    """Store them all; some of their keys."""
    every = max(1, messages // SAMPLE)
    sample: list[tuple[UUID, UUID]] = []
    authority = place.settings.routes["messages"]
    async with opened(place.settings, str(authority)) as backends:
        store = backends[str(authority)].store("messages", 0)
        for part in in_parts(messages, PART):
            await store.apply(part)
            sample += [(UUID(bytes=one.key[:16]), UUID(bytes=one.key[16:])) for one in part[::every]]
    place.loaded()
    return sample


@asynccontextmanager
async def _bare(bare: Bare) -> AsyncIterator[None]:
    await bare.open()
    try:
        yield
    finally:
        await bare.close()


async def _measured(
    layer: DataLayer, place: Place, sample: Sequence[tuple[UUID, UUID]], rounds: int
) -> list[dict[str, Any]]:
    bare = place.bare

    async def history(number: int) -> object:
        return (await layer.messages.history(_pick(sample, number)[0], limit=LIMIT)).items

    async def get(number: int) -> object:
        return await layer.messages.get(*_pick(sample, number))

    pairs: dict[str, tuple[Call, Call]] = {
        f"history({LIMIT})": (history, lambda number: bare.history(_pick(sample, number)[0])),
        "get": (get, lambda number: bare.get(*_pick(sample, number))),
    }
    told = []
    for name, (ours, theirs) in pairs.items():
        for number in range(0, 5 * CALLS, CALLS):
            mine, other = await ours(number), await theirs(number)
            same = list(mine) == other if isinstance(mine, tuple) else mine == other  # a page has a tuple
            assert same, f"{name} of {_pick(sample, number)}: the data layer and {place.driver} find different messages"
            assert other, f"{name} of {_pick(sample, number)} finds nothing"
        told.append({"call": name, "tasks": 1, "bare": place.driver} | await _timed((ours, theirs), rounds))
    return told


def _pick(sample: Sequence[tuple[UUID, UUID]], number: int) -> tuple[UUID, UUID]:
    return sample[number * STRIDE % len(sample)]


async def _timed(sides: tuple[Call, Call], rounds: int) -> dict[str, Any]:
    """Rounds of both in turn; no two read the same rows, so that neither finds in a cache what the other has left there."""
    times: list[list[list[float]]] = [[], []]
    numbers = itertools.count()
    for round_ in range(rounds + 1):
        for turn in range(2):
            at = (round_ + turn) % 2
            found = [await _once(sides[at](next(numbers))) for _ in range(CALLS)]
            if round_:  # the first warms up
                times[at].append(found)
    medians = [[statistics.median(one) for one in side] for side in times]
    compared = ratio(*medians)
    return {
        **_percentiles(times[0], ""),
        **_percentiles(times[1], "bare_"),
        "ratio": compared.document(),
        "aim": str(AIM),
        "met": AIM.met(compared.median),
    }


async def _once(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return 1e3 * (time.perf_counter() - began)


def _percentiles(rounds: Sequence[Sequence[float]], prefix: str) -> dict[str, Any]:
    """Of each round, in milliseconds."""
    ordered = [sorted(one) for one in rounds]
    return {
        f"{prefix}p50_ms": Figure.of([one[len(one) // 2] for one in ordered]).document(),
        f"{prefix}p99_ms": Figure.of([one[len(one) * 99 // 100] for one in ordered]).document(),
    }
