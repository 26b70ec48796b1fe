"""sqlite3 alone: on the caller's own thread, or through asyncio.to_thread with a connection for each thread."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from benchmarks.peers.bare import LIMIT, id_source
from datalayer.ids import id_time_us
from datalayer.stores.sql.messages import MessageStatements
from datalayer.types import Message

T = TypeVar("T")
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-16384")


class BareSqlite:
    """Messages of one table. ``threads``: every call goes through asyncio.to_thread."""

    def __init__(self, path: Path, attempt: int, *, threads: bool) -> None:
        self._path = path
        self._threads = threads
        self._of_thread = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._writing = threading.Lock()
        sql = MessageStatements("sqlite", attempt)
        self._append, self._get = sql.append, sql.get
        self._history = sql.history[False, False, False]
        self._ids = id_source()

    async def open(self) -> None:
        """Connections are made by the threads that need them."""

    async def close(self) -> None:
        for connection in self._all:
            connection.close()

    async def append(self, conversation: UUID, sender: UUID, body: str) -> Message:
        return await self._run(lambda: self._append_now(conversation, sender, body))

    async def get(self, conversation: UUID, ident: UUID) -> Message | None:
        return await self._run(lambda: self._get_now(conversation, ident))

    async def history(self, conversation: UUID) -> list[Message]:
        return await self._run(lambda: self._history_now(conversation))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work) if self._threads else work()

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            found = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
            for pragma in _PRAGMAS:
                found.execute(f"PRAGMA {pragma}").fetchall()
            self._of_thread.connection = found
            self._all.append(found)
        return found

    def _append_now(self, conversation: UUID, sender: UUID, body: str) -> Message:
        ident = self._ids.uuid7()
        version = id_time_us(ident)
        row = (conversation.bytes, ident.bytes, sender.bytes, body, "text", None, b"", None, False, version, "{}")
        with self._writing:
            self._connection().execute(self._append, row).fetchall()
        return Message(ident, conversation, sender, body, version=version)

    def _get_now(self, conversation: UUID, ident: UUID) -> Message | None:
        row = self._connection().execute(self._get, (conversation.bytes, ident.bytes)).fetchone()
        return None if row is None else _message(row)

    def _history_now(self, conversation: UUID) -> list[Message]:
        rows = self._connection().execute(self._history, (conversation.bytes, LIMIT)).fetchall()
        return [_message(row) for row in rows]


def _message(row: tuple[Any, ...]) -> Message:
    conversation, ident, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
    return Message(
        UUID(bytes=ident),
        UUID(bytes=conversation),
        UUID(bytes=sender),
        body,
        kind,
        None if thread is None else UUID(bytes=thread),
        tuple(UUID(bytes=attachments[at : at + 16]) for at in range(0, len(attachments), 16)),
        edited,
        bool(deleted),
        version,
        json.loads(attributes),
    )
