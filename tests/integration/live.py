"""Live traffic inside one process: writers and readers over several DataLayers, checked while they run.

One event loop, so "acknowledged before the read began" is exact. What the traffic acknowledged is in ``Live.acked``;
``audit`` reads everything back at the authority.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from datalayer.clock import SystemClock
from datalayer.errors import DatalayerError, NotFound
from datalayer.layer import DataLayer, LayerOptions, make_backends, open_control_store
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions, Reporter, Silent
from datalayer.routing.places import Places
from datalayer.settings import Settings, parse_settings

GONE = 1 << 62


@dataclass
class Live:
    """The traffic's state: what was acknowledged, what was seen wrong, which errors came."""

    layers: list[DataLayer]
    conversations: list[UUID]
    pause_s: float
    acked: dict[tuple[UUID, UUID], int] = field(default_factory=dict)
    """(conversation, id) -> version acknowledged last; GONE once a delete was begun (acknowledged: in ``deleted``)."""
    deleted: set[tuple[UUID, UUID]] = field(default_factory=set)
    unknown: set[tuple[UUID, UUID]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    errors: list[DatalayerError] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    stopped: bool = False

    async def write_forever(self, number: int) -> None:
        """Append, edit and delete; each key is written by one writer only."""
        layer, chance = self.layers[number % len(self.layers)], random.Random(number)
        mine: list[tuple[UUID, UUID]] = []
        while not self.stopped:
            try:
                await self._write_once(layer, chance, mine, f"{number}-{self.writes}")
            except DatalayerError as error:
                self.errors.append(error)
            self.writes += 1
            await asyncio.sleep(self.pause_s)

    async def _write_once(
        self, layer: DataLayer, chance: random.Random, mine: list[tuple[UUID, UUID]], body: str
    ) -> None:
        roll = chance.random()
        if roll < 0.5 or not mine:
            message = await layer.messages.append(chance.choice(self.conversations), sender_id=uuid4(), body=body)
            key = (message.conversation_id, message.id)
            self.acked[key] = message.version
            mine.append(key)
        elif roll < 0.85:
            key = chance.choice(mine)
            try:
                message = await layer.messages.edit(*key, body=body)
            except NotFound:
                self.wrong.append(f"lost: {key} was not found by an edit")
                return
            except DatalayerError:
                self.unknown.add(key)
                raise
            if message.version <= self.acked[key]:
                self.wrong.append(f"version of {key} went from {self.acked[key]} to {message.version}")
            self.acked[key] = message.version
        else:
            key = mine.pop(chance.randrange(len(mine)))
            self.acked[key] = GONE
            await layer.messages.delete(*key)
            self.deleted.add(key)

    async def read_forever(self, number: int) -> None:
        """Read keys of every writer; compare with what was acknowledged before the read began."""
        layer, chance = self.layers[number % len(self.layers)], random.Random(1000 + number)
        while not self.stopped:
            await asyncio.sleep(self.pause_s)
            if not self.acked:
                continue
            key = chance.choice(list(self.acked))
            gone, version = key in self.deleted, self.acked[key]
            try:
                if chance.random() < 0.8:
                    message = await layer.messages.get(*key)
                else:
                    page = await layer.messages.history(key[0], limit=1000)
                    message = next((m for m in page.items if m.id == key[1]), None)
            except DatalayerError as error:
                self.errors.append(error)
                continue
            self.reads += 1
            if gone and message is not None:
                self.wrong.append(f"ghost: {key} in {layer.router('messages').routing}")
            elif version != GONE and self.acked[key] != GONE and (message is None or message.version < version):
                self.wrong.append(f"stale: {key} {version} {message} in {layer.router('messages').routing}")

    async def audit(self, layer: DataLayer) -> None:
        """Everything acknowledged is there, nothing deleted is."""
        for key, version in list(self.acked.items()):
            message = await layer.messages.get(*key, include_deleted=True, timeout=30)
            if key in self.deleted:
                if message is not None and not message.deleted:
                    self.wrong.append(f"ghost at the end: {key}")
            elif version != GONE and (message is None or message.deleted or message.version < version):
                self.wrong.append(f"lost at the end: {key} {version} {message}")
            elif version != GONE and key not in self.unknown and message is not None and message.version != version:
                self.wrong.append(f"never written: {key} {version} {message}")


def settings_of(backends: dict[str, str], *, messages: str, users: str, control: str) -> Settings:
    """Settings for two places of messages."""
    return parse_settings(
        {
            "backends": {name: {"url": url} for name, url in backends.items()},
            "routes": {"messages": messages, "users": users},
            "control": {"url": control},
        },
        directory=Path.cwd(),
    )


@asynccontextmanager
async def traffic(
    settings: Settings,
    *,
    layers: int = 3,
    writers: int = 3,
    readers: int = 3,
    conversations: int = 30,
    pause_s: float = 0.005,
    options: LayerOptions | None = None,
) -> AsyncIterator[Live]:
    """Live traffic while the block runs; audited at its end, every wrong read or lost write fails."""
    opened: list[DataLayer] = []
    try:
        while len(opened) < layers:
            chosen = options or LayerOptions(name=f"live-{len(opened)}")
            opened.append(await DataLayer.connect(settings, options=chosen))
        live = Live(opened, [uuid4() for _ in range(conversations)], pause_s)
        tasks = [asyncio.create_task(live.write_forever(n)) for n in range(writers)]
        tasks += [asyncio.create_task(live.read_forever(n)) for n in range(readers)]
        try:
            yield live
        finally:
            live.stopped = True
            await asyncio.gather(*tasks)
        await live.audit(opened[0])
        assert live.wrong == []
    finally:
        for layer in opened:
            await layer.close()


@asynccontextmanager
async def coordinator_of(
    settings: Settings, domain: str = "messages", reporter: Reporter | None = None, **options: object
) -> AsyncIterator[Coordinator]:
    """A coordinator over its own connections, as the command line makes one."""
    clock = SystemClock()
    control = await open_control_store(settings, clock)
    backends = make_backends(settings, clock)
    try:
        places = Places(backends, control, clock)
        chosen = MigrateOptions(yes=True, **options)  # type: ignore[arg-type]
        yield Coordinator(places, domain, holder="test", options=chosen, reporter=reporter or Silent())
    finally:
        for backend in backends.values():
            await backend.close()
        await control.close()


async def create_schemas(settings: Settings) -> None:
    """What ``datalayer schema upgrade`` does, on every backend."""
    backends = make_backends(settings, SystemClock())
    for backend in backends.values():
        await backend.open()
        await backend.ensure_schema(create=True)
        await backend.close()


async def preload(settings: Settings, rows: int) -> None:
    """Messages that exist before the migration begins."""
    async with DataLayer.open(settings) as layer:
        rooms = [uuid4() for _ in range(max(1, rows // 50))]
        for start in range(0, rows, 200):
            await asyncio.gather(
                *(
                    layer.messages.append(rooms[n % len(rooms)], sender_id=rooms[0], body=f"old {n}")
                    for n in range(start, min(start + 200, rows))
                )
            )


async def life_cycle(
    settings: Settings,
    target: str,
    live: Live | None,
    settle: Sequence[float] = (0.3,),
    reporter: Reporter | None = None,
    domain: str = "messages",
) -> list[float]:
    """Over, back, over again, complete - with traffic in between; the holds in ms."""
    async with coordinator_of(settings, domain, reporter=reporter) as coordinator:
        await coordinator.migrate(target)
        await _let_run(live, settle)
        await coordinator.rollback()
        await _let_run(live, settle)
        await coordinator.migrate(target)
        await _let_run(live, settle)
        verdict = await coordinator.verify()
        assert verdict["clean"], verdict
        migration = await coordinator.complete()
        holds = await coordinator.places.control.document(migration.id, "holds") or {"holds": []}
    return [hold["ms"] for hold in holds["holds"]]


async def _let_run(live: Live | None, settle: Sequence[float]) -> None:
    if live is None:
        return
    for seconds in settle:
        before = live.writes
        await asyncio.sleep(seconds)
        assert live.writes > before, "the traffic stands still"
