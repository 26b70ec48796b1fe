"""A whole life cycle for every ordered pair of stores of every domain of records: the list is read from what is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datalayer.domains.movement import Movement, movement_of
from datalayer.domains.record import Key, Record
from datalayer.layer import MOVABLE, DataLayer
from datalayer.routing.places import Places
from datalayer.routing.route import Place
from datalayer.settings import Settings, parse_settings
from datalayer.stores.base import Backend
from datalayer.stores.memory import SERVERS
from datalayer.testing.contract.fixture import StoreFixture
from datalayer.testing.contract.values import Maker
from tests.integration import test_session_life_cycles
from tests.integration.live import coordinator_of, create_schemas, life_cycle
from tests.pairs import KIND_OF, Pair, pairs_of
from tests.servers import Servers

pytestmark = pytest.mark.servers
RECORDS = 120
ELSEWHERE = {Pair("sessions", KIND_OF[one], KIND_OF[other]) for one, other in test_session_life_cycles.PAIRS}
"""Those of sessions that live through a life cycle of their own, under traffic."""
PAIRS = [
    pair
    for domain in MOVABLE
    if movement_of(domain) is Movement.RECORDS
    for pair in pairs_of(domain)
    if pair not in ELSEWHERE
]


def once_each(pair: Pair) -> bool:
    """Of a domain's pairs, those in which every kind is left once and reached once, and from shards to other shards."""
    kinds = sorted({one.source for one in pairs_of(pair.domain)})
    following = kinds[(kinds.index(pair.source) + 1) % len(kinds)]
    return pair.target == following or pair.source == pair.target == KIND_OF["shards"]


CASES = [pytest.param(pair, marks=() if once_each(pair) else pytest.mark.deep) for pair in PAIRS]
BackendOf = Callable[[str], dict[str, Any]]


@pytest.fixture
def backend(servers: Servers, tmp_path: Path) -> BackendOf:
    """An empty place of a kind, as the configuration has it; a kind without one here is an error, not a gap."""

    SERVERS.clear()  # presence lies in the memory of this process, and belonged to the deployment of the test before

    def postgres() -> str:
        return servers.postgres(1)[0].create_database(f"pair_{uuid4().hex[:12]}")

    def shards() -> dict[str, Any]:
        return {"members": {"s0": postgres(), "s1": postgres()}, "slot_groups": 4, "pool_max": 8}

    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "SQLite": lambda: {"url": f"sqlite:///{tmp_path}/{uuid4().hex[:8]}.sqlite"},
        "Postgres": lambda: {"url": postgres(), "pool_max": 6},
        "sharded Postgres": shards,
        "Redis": lambda: {"url": servers.redis().create_database()},
        "Redis cluster": lambda: {"url": f"{servers.redis_cluster().url}?prefix=pair{uuid4().hex[:12]}"},
        "Cassandra": lambda: {"url": servers.cassandra().create_keyspace(f"pair_{uuid4().hex[:12]}")},
    }
    return lambda kind: kinds[kind]()


def settings_of(pair: Pair, backend: BackendOf, folder: Path) -> Settings:
    """The pair's domain on one of two backends; everything else beside them."""
    side = {"url": f"sqlite:///{folder}/side.sqlite"}
    routes = {domain: "side" for domain in MOVABLE if movement_of(domain) is Movement.RECORDS}
    return parse_settings(
        {
            "backends": {"a": backend(pair.source), "b": backend(pair.target), "side": side},
            "routes": {**routes, pair.domain: "a"},
            "control": {"url": f"sqlite:///{folder}/control.sqlite"},
        },
        directory=folder,
    )


async def connected() -> Backend:
    raise AssertionError("only records are made here")


async def stored(places: Places, domain: str) -> dict[Key, Record]:
    """Everything that the authority holds."""
    _, routings = await places.control.routings()
    places.learn(routings)
    place = routings[domain].authority
    await places.ensure_open(place)
    store = places.store(domain, place)
    found: dict[Key, Record] = {}
    for range_ in await store.plan_scan(3):
        after, done = None, False
        while not done:
            page = await store.scan(range_, after, 100)
            after, done = page.after, page.done
            found |= {record.ident: record for record in page.records}
    return found


def compared(records: dict[Key, Record]) -> dict[Key, Any]:
    """What verification compares: of a tombstone the version alone."""
    return {key: r.version if r.deleted else r for key, r in records.items()}


@pytest.mark.parametrize("pair", CASES, ids=str)
async def test_records_go_over_and_back_and_over_for_good(pair: Pair, backend: BackendOf, tmp_path: Path) -> None:
    settings = settings_of(pair, backend, tmp_path)
    await create_schemas(settings)
    records = Maker(StoreFixture(connected, seed=len(str(pair)))).many(pair.domain, RECORDS)
    async with DataLayer.open(settings):
        pass
    async with coordinator_of(settings, pair.domain) as coordinator:
        places = coordinator.places
        await stored(places, pair.domain)
        await places.store(pair.domain, Place("a")).apply(records)
        before = compared(await stored(places, pair.domain))
        assert len(before) == RECORDS
    await life_cycle(settings, "b", live=None, domain=pair.domain)
    async with coordinator_of(settings, pair.domain) as coordinator:
        _, routings = await coordinator.places.control.routings()
        assert routings[pair.domain].authority.backend == "b"
        assert compared(await stored(coordinator.places, pair.domain)) == before
