"""A SQLite file with the library's backend on it, and foreign programs that write it by sqlite3 alone."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.messages import Append
from datalayer.domains.record import Record
from datalayer.ids import IdSource
from datalayer.stores.base import Token
from datalayer.stores.sqlite.backend import SqliteBackend
from datalayer.stores.sqlite.guard import SqliteGuard
from datalayer.stores.sqlite.store import SqliteMessages, SqlitePlace
from datalayer.types import Message

CLOCK = SystemClock()
IDS = IdSource(CLOCK)
TOKEN = Token("m1", "messages", 1, 1)


class World:
    """One file, one client of the library, any number of foreign ones."""

    def __init__(self, path: Path, backend: SqliteBackend) -> None:
        self.path = path
        self.backend = backend
        store = backend.store("messages", 0)
        assert isinstance(store, SqliteMessages)
        self.store: SqliteMessages = store

    def deadline(self, timeout_s: float = 20.0) -> Deadline:
        return Deadline(CLOCK, timeout_s)

    async def append(self, body: str = "hi") -> Message:
        mutation = Append(IDS.uuid7(), IDS.uuid7(), IDS.uuid7(), body)
        done: Message = (await self.store.execute(mutation, self.deadline())).entity
        return done

    async def guarded(self, *, sealed: bool = False) -> SqliteGuard:
        guard = guard_of(self.store)
        await guard.install(TOKEN, sealed=sealed)
        return guard

    def foreign(self, sql: str, params: Sequence[Any] = (), *, recursive: bool = False) -> list[Any]:
        """Run one statement as a program that knows nothing of the library."""
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            connection.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            with connection:
                return connection.execute(sql, params).fetchall()

    def row(self, message: Message) -> tuple[Any, ...]:
        """(body, version, deleted) as stored, or ()."""
        found = self.foreign("SELECT body, version, deleted FROM messages WHERE id = ?", (message.id.bytes,))
        return tuple(found[0]) if found else ()


def guard_of(place: SqlitePlace, attempt: int = 1) -> SqliteGuard:
    guard = place.guard(attempt)
    assert isinstance(guard, SqliteGuard)
    return guard


async def dirty(guard: SqliteGuard) -> list[Record]:
    return await guard.journal.pending(1000)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    path = folder / "main.sqlite"
    backend = SqliteBackend("main", path, clock=CLOCK, synchronous="OFF")
    try:
        await backend.open()
        await backend.ensure_schema(create=True)
        yield World(path, backend)
    finally:
        await backend.close()
