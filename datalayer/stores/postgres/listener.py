"""LISTEN on a connection of its own, made again whenever it is lost. A notification is a hint, never the truth."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from datalayer.errors import DatalayerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.stores.postgres.connection import DeadlineConnection

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0


class Listener:
    """Callbacks by channel; one connection and one task a channel."""

    def __init__(self, connect: Callable[[], Awaitable[DeadlineConnection | None]]) -> None:
        self._connect = connect
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._callbacks: dict[str, list[Callable[[], None]]] = {}
        self._closed = asyncio.Event()

    async def add(self, channel: str, callback: Callable[[], None]) -> bool:
        """Listen from now on; raises when the first connection cannot be made."""
        if channel in self._tasks:
            self._callbacks[channel].append(callback)
            return True
        connection = await self._open(channel)
        if connection is None:
            return False
        self._callbacks[channel] = [callback]
        self._tasks[channel] = asyncio.create_task(self._run(channel, connection), name=f"datalayer-listen-{channel}")
        return True

    async def close(self) -> None:
        """Idempotent."""
        self._closed.set()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, channel: str, first: DeadlineConnection) -> None:
        connection: DeadlineConnection | None = first
        pause_s = BACKOFF_FIRST_S
        while not self._closed.is_set():
            # reconnecting is where connection faults are swallowed: polling goes on meanwhile
            try:
                connection = connection or await self._open(channel)
                assert connection is not None, "a direct address does not vanish"
                pause_s = BACKOFF_FIRST_S
                self._call(channel)  # what came while nobody listened was missed
                async for _ in connection.notifies():
                    self._call(channel)
            except (DatalayerError, psycopg.Error):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._closed.wait()
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
            finally:
                if connection is not None:
                    connection.discard()
                connection = None

    async def _open(self, channel: str) -> DeadlineConnection | None:
        connection = await self._connect()
        if connection is not None:
            try:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            except BaseException:  # cancelled too: nobody else knows this connection yet
                connection.discard()
                raise
        return connection

    def _call(self, channel: str) -> None:
        for callback in self._callbacks[channel]:
            callback()
