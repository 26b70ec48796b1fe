"""An open layer with a search index in memory or in SQLite files, and the full comparison of index and sources."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Key, Record
from datalayer.layer import DataLayer, LayerOptions, close_stores, make_backends
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.documents import Documents
from datalayer.routing.places import Places
from datalayer.routing.route import Place
from datalayer.settings import parse_settings

WAIT_S = 20.0


def config(path: Path, kind: str, **routes: str) -> dict[str, Any]:
    """Three backends: main (of the kind) with everything, other (likewise), index in memory."""
    urls = {
        "main": f"sqlite:///{path}/main.sqlite" if kind == "sqlite" else "memory://",
        "other": f"sqlite:///{path}/other.sqlite" if kind == "sqlite" else "memory://",
        "index": "memory://",
        "index2": "memory://",
    }
    return {
        "backends": {name: {"url": url} for name, url in urls.items()},
        "control": {"url": f"sqlite:///{path}/control.sqlite"},
        "routes": {"search": "index", **routes},
    }


async def old_rows(document: dict[str, Any], records: list[Record]) -> None:
    """Messages that lie in main before anybody has opened it."""
    clock = SystemClock()
    places = Places(
        make_backends(parse_settings(document), clock), MemoryControl(MemoryControlServer("c", clock)), clock
    )
    await places.ensure_open(Place("main"))
    await places.store("messages", Place("main")).apply(records)
    await close_stores(None, places.backends)


@asynccontextmanager
async def opened(document: dict[str, Any], **options: Any) -> AsyncIterator[DataLayer]:
    """A layer over a configuration as in a file."""
    async with DataLayer.open(parse_settings(document), options=LayerOptions(**options)) as layer:
        yield layer


async def held(store: Any) -> dict[Key, Record]:
    """Every document that is there, without the markers of deleted ones."""
    found: dict[Key, Record] = {}
    for range_ in await store.plan_scan(2):
        after, done = None, False
        while not done:
            page = await store.scan(range_, after, 500)
            found |= {record.ident: record for record in page.records if not record.deleted}
            after, done = page.after, page.done
    return found


async def differences(places: Places) -> dict[Key, tuple[Record | None, Record | None]]:
    """What the index that is asked and its sources do not have alike: (should be, is)."""
    await places.indexes.fresh()
    should = await held(Documents(places))
    have = await held(places.store("search", places.routing_of("search").authority))
    return {key: (should.get(key), have.get(key)) for key in should | have if should.get(key) != have.get(key)}


async def in_step(places: Places) -> None:
    """Wait until index and sources are equal; the assertion names what is not."""
    try:
        async with asyncio.timeout(WAIT_S):
            while await differences(places):
                await asyncio.sleep(0.02)
    except TimeoutError:
        left = await differences(places)
        raise AssertionError(f"{len(left)} keys differ, first {next(iter(left.items()), None)}") from None


def coordinator(layer: DataLayer, domain: str, until: Until = Until.TARGET, **more: Any) -> Coordinator:
    """A coordinator within the layer's own process."""
    options = MigrateOptions(until=until, yes=True, **more)
    return Coordinator(layer.places, domain, holder="test", options=options, patience_s=10.0)
