"""A pool of connections that hands one over without a task, a lock or a round trip.

psycopg's own pool was measured first: connecting in background tasks it lets a caller wait out its whole deadline for
a server that refuses at once, backs off for up to half a minute after an outage, and costs 20 us a call. Here the
caller who needs a new connection makes it, within its own deadline, and sees the true error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from psycopg.pq import TransactionStatus

from datalayer.errors import Closed, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.stores.postgres.connection import DeadlineConnection

LIFETIME_S: Final = 3600.0
IDLE_S: Final = 600.0
WAITING_MAX: Final = 2000


class Pool:
    """At most ``size`` connections; the latest used is handed out first, callers are served in their order."""

    def __init__(self, connect: Callable[[float], Awaitable[DeadlineConnection]], size: int, where: str) -> None:
        self._connect = connect
        self._size = size
        self._where = where
        self._idle: deque[DeadlineConnection] = deque()
        self._slots_taken = 0
        self._waiting: deque[asyncio.Future[DeadlineConnection | None]] = deque()
        self._closed = False
        self._renewed_at = float("-inf")

    @property
    def in_use(self) -> int:
        """Connections handed out or being made."""
        return self._slots_taken - len(self._idle)

    async def take(self, until: float) -> DeadlineConnection:
        """A connection, to be given back by ``give``.

        Raises Overloaded, DeadlineExceeded (none came free), Closed, and whatever connecting raises.
        """
        if self._closed:
            raise Closed
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                connection.until = until
                return connection
            self._drop(connection)
        if self._slots_taken < self._size:
            self._slots_taken += 1
            return await self._fill_slot(until)
        connection_or_slot = await self._queue(until)
        if connection_or_slot is None or not connection_or_slot.usable():
            if connection_or_slot is not None:
                connection_or_slot.discard()
            return await self._fill_slot(until)
        connection_or_slot.until = until
        return connection_or_slot

    def give(self, connection: DeadlineConnection) -> None:
        """Take a connection back; one that is not at rest is closed, and the server rolls back."""
        now = asyncio.get_running_loop().time()
        connection.until = float("inf")
        at_rest = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if connection.refused_writes:
            self.renew()  # the others lead to the same server
        made_at = connection.expires_at - LIFETIME_S
        if self._closed or not at_rest or now > connection.expires_at or made_at <= self._renewed_at:
            self._drop(connection)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = now
        self._idle.append(connection)
        if now - self._idle[0].idle_since > IDLE_S:
            self._drop(self._idle.popleft())

    def renew(self) -> None:
        """Use no connection made until now again: the name leads to another server, or the server has changed."""
        self._renewed_at = asyncio.get_running_loop().time()
        while self._idle:
            self._drop(self._idle.pop())

    def close(self) -> None:
        """Close what is idle now and the rest when it comes back; callers that wait get Closed."""
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(Closed())

    async def _fill_slot(self, until: float) -> DeadlineConnection:
        began = asyncio.get_running_loop().time()
        try:
            connection = await self._connect(until)
        except BaseException:  # the slot goes back whatever happened, cancellation included
            self._free_slot()
            raise
        connection.expires_at = began + LIFETIME_S
        connection.until = until
        return connection

    async def _queue(self, until: float) -> DeadlineConnection | None:
        """The next connection that comes free, or None: a slot to fill."""
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded(f"{WAITING_MAX} calls are waiting for a connection to {self._where} already")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[DeadlineConnection | None] = loop.create_future()
        self._waiting.append(waiter)
        late = DeadlineExceeded(f"no connection to {self._where} came free in time")
        timer = loop.call_at(until, _fail, waiter, late)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                connection = waiter.result()
                if connection is None:
                    self._free_slot()
                else:
                    self.give(connection)
            raise
        except DeadlineExceeded:
            if waiter in self._waiting:  # what came free in the same moment has passed it over and taken it out
                self._waiting.remove(waiter)
            raise
        finally:
            timer.cancel()

    def _drop(self, connection: DeadlineConnection) -> None:
        connection.discard()
        self._free_slot()

    def _free_slot(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._slots_taken -= 1


def _fail(waiter: asyncio.Future[DeadlineConnection | None], error: DeadlineExceeded) -> None:
    if not waiter.done():
        waiter.set_exception(error)
