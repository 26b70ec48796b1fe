"""Independent looks at a deployment: everything it holds, read through the library, and how a migration stands."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from datalayer.clock import SystemClock
from datalayer.errors import DatalayerError
from datalayer.layer import close_stores, make_backends, open_control_store
from datalayer.routing.places import Places
from datalayer.settings import Settings, load_settings
from datalayer.testing.ledger import Board, Ledger, Op
from datalayer.testing.workload import seen, walk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from datalayer.control.base import Control, Migration
    from datalayer.routing.route import Routing
    from datalayer.testing.workload import Messages

PAGE: Final = 500
PAGES_MAX: Final = 1_000_000
FINAL: Final = "final"


async def read_everything(messages: Messages, directory: Path, *, name: str = FINAL, tasks: int = 4) -> int:
    """Read every known conversation page by page and every known message by id, on record; how many messages.

    To be called when no process of the workload runs any more. The first error of the library is raised.
    """
    ledger, board = Ledger.create(directory, name, final=True), Board(directory)
    board.refresh()
    rooms = iter(list(board.rooms))
    found = 0

    async def work() -> None:
        nonlocal found
        for room in rooms:
            count = await _read_room(messages, ledger, room, board.rooms[room])
            found += count

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work())
    finally:
        board.close()
        ledger.close()
    return found


async def _read_room(messages: Messages, ledger: Ledger, room: bytes, ids: list[bytes]) -> int:
    conversation, shown = UUID(bytes=room), set[bytes]()
    async for items in walk(messages, ledger, conversation, limit=PAGE, pages=PAGES_MAX):
        shown.update(message.id.bytes for message in items)
    for at in range(0, len(ids), PAGE):
        part = ids[at : at + PAGE]
        ticket = ledger.look(Op.GET, room + part[0])
        stored = await messages.get_many(conversation, [UUID(bytes=id_) for id_ in part])
        ledger.saw_many(ticket, [room + id_ for id_ in part], [seen(message) for message in stored.values()])
    return len(shown)


async def record_baseline(messages: Messages, ledger: Ledger, conversations: list[UUID]) -> int:
    """Put what these conversations hold on record as there before the workload; how many messages."""
    count = 0
    for conversation in conversations:
        cursor: str | None = None
        while True:
            page = await messages.history(conversation, limit=PAGE, cursor=cursor, oldest_first=True)
            for message in page.items:
                ledger.baseline(seen(message))
            count += len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
    return count


@dataclass(frozen=True, slots=True)
class Sample:
    """How a migration stood at an instant (CLOCK_MONOTONIC). ``backlog``: dirty keys, None when nobody could say."""

    at_ns: int
    phase: str
    epoch: int
    rows_copied: int
    backlog: int | None


@dataclass(slots=True)
class Watch:
    """Looks at a domain's migration in the control store and the authority's journal, as no member of the fleet."""

    control: Control
    places: Places
    domain: str = "messages"
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Path | Settings, domain: str = "messages") -> AsyncIterator[Self]:
        """A watch over the deployment of a configuration."""
        settings, clock = config if isinstance(config, Settings) else load_settings(config), SystemClock()
        backends = make_backends(settings, clock)
        control = await open_control_store(settings, clock)
        try:
            yield cls(control, Places(backends, control, clock, eager=False), domain)
        finally:
            await close_stores(control, backends)

    async def migration(self) -> Migration | None:
        """The newest migration of the domain."""
        found = await self.control.migrations(self.domain)
        return found[0] if found else None

    async def look(self) -> Sample | None:
        """Take a sample and keep it; None where the domain has no route yet."""
        routing = (await self.control.routings())[1].get(self.domain)
        if routing is None:
            return None
        sample = Sample(
            time.monotonic_ns(),
            str(routing.phase),
            routing.epoch,
            await self.rows_copied(),
            await self._backlog(routing),
        )
        self.samples.append(sample)
        return sample

    async def rows_copied(self) -> int:
        """Rows that the newest migration's backfill has checkpointed."""
        migration = await self.migration()
        if migration is None:
            return 0
        return sum(chunk.rows for chunk in await self.control.chunks(f"{migration.id}/backfill"))

    async def holds(self) -> list[Mapping[str, Any]]:
        """The holds of the newest migration, as its coordinators measured them: flip, direction, ms, at_us."""
        migration = await self.migration()
        document = None if migration is None else await self.control.document(migration.id, "holds")
        return [] if document is None else list(document["holds"])

    async def _backlog(self, routing: Routing) -> int | None:
        if routing.mirror is None:
            return 0
        try:
            await self.places.prepare(routing)
            authority, _ = self.places.sides(routing)
            return await authority.journal.backlog()
        except DatalayerError:
            # A journal that goes away between two looks is what a migration's end looks like.
            return None
