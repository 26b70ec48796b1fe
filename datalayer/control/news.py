"""Waiting for news: notifications where the database has them, polling always.

Correctness never rests on a notification. It only shortens the wait; a poll finds what a lost one would have told.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sqlalchemy import Text, func, literal, select

from datalayer.control.schema import CHANNEL, STATE
from datalayer.control.statements import SqlPart
from datalayer.control.waiting import listening_poll_s, wait_event
from datalayer.errors import DatalayerError

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.stores.sql.database import SqlDatabase, SqlTransaction

_READ: Final = select(STATE.c.news)
_NOTIFY: Final = select(func.pg_notify(literal(CHANNEL, Text), literal("", Text)))


class SqlNews(SqlPart):
    """The news counter."""

    def __init__(self, database: SqlDatabase, clock: Clock) -> None:
        super().__init__(database, clock)
        self._stirred: asyncio.Event | None = None
        self._listening: bool | None = None
        self._listener: asyncio.Task[None] | None = None

    async def news(self) -> int:
        """The counter now: it rises with every published routing."""
        return int((await self._fetch(_READ))[0][0])

    async def wait_news(self, seen: int, timeout_s: float, *, poll_s: float) -> int:
        """Return the news counter as soon as it differs from ``seen``, or after the timeout."""
        self._start_listening()
        ends = self._clock.monotonic() + timeout_s
        while True:
            event = self._event()
            news = await self.news()
            left = ends - self._clock.monotonic()
            if news != seen or left <= 0:
                return news
            pause_s = listening_poll_s(poll_s) if self._listening else poll_s
            await wait_event(event, min(pause_s, left))

    def _start_listening(self) -> None:
        # Beside the wait, not in it: a server that does not answer must not keep anybody from polling.
        if self._listening is None and (self._listener is None or self._listener.done()):
            self._listener = asyncio.create_task(self._listen(), name="datalayer-control-listen")

    async def _listen(self) -> None:
        try:
            self._listening = await self._database.listen(CHANNEL, self._stir)
        except DatalayerError:
            # The one place where such an error is swallowed: polling does the work, the next wait tries again.
            return
        self._stir()

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})

    async def _announce(self, transaction: SqlTransaction) -> None:
        if self._database.dialect == "postgresql":
            await self._do(transaction, _NOTIFY)

    def _event(self) -> asyncio.Event:
        if self._stirred is None or self._stirred.is_set():
            self._stirred = asyncio.Event()
        return self._stirred

    def _stir(self) -> None:
        """Let every waiter of this process look now."""
        if self._stirred is not None:
            self._stirred.set()
