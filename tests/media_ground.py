"""Media under traffic while they move, and the oracle that says whether what is seen is what was stored."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from datalayer.clock import SystemClock
from datalayer.domains.catalogue import StoredObject
from datalayer.errors import DatalayerError, NotFound
from datalayer.layer import DataLayer, make_backends, open_control_store
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import Failpoints, MigrateOptions, Silent
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.holders import Holders, name_of
from datalayer.routing.places import Places
from datalayer.settings import Settings, parse_settings
from datalayer.types import MediaId


def media_settings(backends: dict[str, str], *, media: str, control: str, main: str | None = None) -> Settings:
    """Settings for media in one of several places; all else is in ``main``."""
    return parse_settings(
        {
            "backends": {
                "main": {"url": main or "memory://"},
                **{name: {"url": url} for name, url in backends.items()},
            },
            "routes": {"media": media},
            "control": {"url": control},
        }
    )


@contextlib.asynccontextmanager
async def mover(
    settings: Settings, domain: str = "media", *, failpoints: Failpoints | None = None, **options: object
) -> AsyncIterator[Coordinator]:
    """A coordinator over its own connections."""
    clock = SystemClock()
    control = await open_control_store(settings, clock)
    backends = make_backends(settings, clock)
    try:
        places = Places(backends, control, clock)
        chosen = MigrateOptions(yes=True, **options)  # type: ignore[arg-type]
        yield Coordinator(places, domain, holder="test", options=chosen, failpoints=failpoints or Silent())
    finally:
        for backend in backends.values():
            await backend.close()
        await control.close()


@dataclass
class Board:
    """What was acknowledged: hash and size by item; and what is wrong."""

    stored: dict[MediaId, tuple[str, int]] = field(default_factory=dict)
    deleted: set[MediaId] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    puts: int = 0
    reads: int = 0
    errors: list[str] = field(default_factory=list)

    async def check(self, layer: DataLayer, item: MediaId) -> None:
        """Read an item, compare it with what was stored."""
        sha256, size = self.stored[item]
        digest, count = hashlib.sha256(), 0
        try:
            async for chunk in layer.media.open(item):
                digest.update(chunk)
                count += len(chunk)
        except NotFound:
            if item not in self.deleted:
                self.wrong.append(f"{item} is not there")
            return
        except DatalayerError as error:
            self.errors.append(f"{type(error).__name__}: {error.message}")
            if not error.retryable:
                self.wrong.append(f"{item}: {error.message}")
            return
        self.reads += 1
        if (digest.hexdigest(), count) != (sha256, size):
            self.wrong.append(f"{item} has other bytes: {count} of {size}")

    async def audit(self, layer: DataLayer) -> None:
        """Every item, and every owner's list."""
        for item in list(self.stored):
            await self.check(layer, item)
        for owner in {item.owner_id for item in self.stored}:
            seen: set[UUID] = set()
            cursor: str | None = None
            while True:
                page = await layer.media.list(owner, limit=100, cursor=cursor)
                seen |= {one.id for one in page.items}
                cursor = page.next_cursor
                if cursor is None:
                    break
            expected = {item for item in self.stored if item.owner_id == owner and item not in self.deleted}
            if seen != expected:
                self.wrong.append(
                    f"the list of {owner} has {len(seen - expected)} too many, {len(expected - seen)} less"
                )


class Cut(Exception):
    """Ends an upload."""


async def one_round(layer: DataLayer, board: Board, rng: random.Random, owners: list[UUID], largest: int) -> None:
    """Store, cut off, read or delete one item."""
    act = rng.random()
    known = [item for item in board.stored if item not in board.deleted]
    if act < 0.5 or not known:
        data = rng.randbytes(rng.choice((1, 10, 1000, 100_000, largest)))
        item = await layer.media.put(owner_id=rng.choice(owners), data=data, content_type="a/b")
        board.stored[item.id] = (hashlib.sha256(data).hexdigest(), len(data))
        board.puts += 1
        await board.check(layer, item.id)
    elif act < 0.6:

        async def cut() -> AsyncIterator[bytes]:
            yield rng.randbytes(rng.choice((10, 300_000)))
            raise Cut

        with contextlib.suppress(Cut):
            await layer.media.put(owner_id=rng.choice(owners), data=cut(), content_type="a/b")
    elif act < 0.7:
        gone = rng.choice(known)
        board.deleted.add(gone)
        await layer.media.delete(gone)
    else:
        await board.check(layer, rng.choice(known))


@contextlib.asynccontextmanager
async def busy(
    settings: Settings, *, layers: int = 2, seed: int = 0, pause_s: float = 0.02, largest: int = 400_000
) -> AsyncIterator[tuple[Board, list[DataLayer]]]:
    """Live traffic while the block runs, and an audit at its end."""
    board, stop = Board(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(DataLayer.open(settings)) for _ in range(layers)]
        owners = [uuid4() for _ in range(5)]

        async def worker(number: int) -> None:
            rng = random.Random(seed * 100 + number)
            while not stop.is_set():
                try:
                    await one_round(opened[number % layers], board, rng, owners, largest)
                except DatalayerError as error:
                    board.errors.append(f"{type(error).__name__}: {error.message}")
                await asyncio.sleep(pause_s)

        workers = [asyncio.create_task(worker(number)) for number in range(2 * layers)]
        try:
            yield board, opened
        finally:
            stop.set()
            await asyncio.gather(*workers)
            await board.audit(opened[0])


async def rows_and_bytes(coordinator: Coordinator, backend: str) -> list[str]:
    """What is wrong at a place, told by the catalogue and the store alone."""
    places = coordinator.places
    _, routings = await places.control.routings()
    places.learn(routings)
    routing = routings["media"]
    here = next(
        place for place in (routing.authority, routing.mirror) if place is not None and place.backend == backend
    )
    name, holders = name_of(here), Holders(places)
    wrong = []
    stored: StoredObject
    async for stored in Catalogue(places).walk():
        if name not in stored.held:
            wrong.append(f"{stored.key} is not held by {name}")
        elif (what := await holders.right(stored, name, hashed=True)) is not None:
            wrong.append(f"{stored.key} at {name}: {what}")
    return wrong
