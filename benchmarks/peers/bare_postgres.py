"""psycopg alone: its own pool in autocommit, binary results, statements prepared by the driver."""

from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from benchmarks.peers.bare import LIMIT, id_source, message
from datalayer.ids import id_time_us
from datalayer.stores.sql.messages import MessageStatements
from datalayer.types import Message


class BarePostgres:
    """Messages of one table."""

    def __init__(self, url: str, attempt: int) -> None:
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url, min_size=8, max_size=20, kwargs={"autocommit": True}, open=False
        )
        sql = MessageStatements("postgresql", attempt)
        self._append, self._get = sql.append, sql.get
        self._history = sql.history[False, False, False]
        self._ids = id_source()

    async def open(self) -> None:
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    async def append(self, conversation: UUID, sender: UUID, body: str) -> Message:
        ident = self._ids.uuid7()
        version = id_time_us(ident)
        row: tuple[Any, ...] = (conversation, ident, sender, body, "text", None, [], None, False, version, "{}")
        async with self._pool.connection() as connection:
            cursor = await connection.execute(self._append, row, binary=True)
            await cursor.fetchone()
        return Message(ident, conversation, sender, body, version=version)

    async def get(self, conversation: UUID, ident: UUID) -> Message | None:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(self._get, (conversation, ident), binary=True)
            row = await cursor.fetchone()
        return None if row is None else message(row)

    async def history(self, conversation: UUID) -> list[Message]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(self._history, (conversation, LIMIT), binary=True)
            return [message(row) for row in await cursor.fetchall()]
