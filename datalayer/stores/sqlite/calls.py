"""Calls that cross from the event loop to a database thread and back.

A call is queued, running or over. The loop and the thread agree on that under one lock, so that a call given up at
its deadline either never starts or is known to be running. Results come back through a mailbox that wakes the loop
once for all that are ready, which is what makes the hop cheap with many callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, DeadlineExceeded

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from datalayer.clock import Deadline

GRACE: Final = 0.05
"""Part of its time by which a running write may outlive its deadline before its outcome is called unknown."""
GRACE_S_MIN: Final = 0.01


class State(IntEnum):
    """Where a call is."""

    QUEUED = 0
    RUNNING = 1
    OVER = 2


class Call:
    """One piece of work for a database thread. DeadlineExceeded when no time is left for it."""

    __slots__ = ("abandoned", "budget_s", "connection", "deadline", "future", "late", "params", "sql", "state", "work")

    def __init__(self, future: asyncio.Future[Any], deadline: Deadline) -> None:
        self.budget_s = deadline.remaining()
        if self.budget_s <= 0:
            raise DeadlineExceeded
        self.future = future
        self.deadline = deadline
        self.sql = ""
        self.params: Any = ()
        self.work: Callable[[sqlite3.Connection], Any] | None = None
        self.state = State.QUEUED
        self.connection: sqlite3.Connection | None = None
        """Set while a statement runs that may be interrupted without harm."""
        self.late: type[DatalayerError] = DeadlineExceeded
        """What it is called when it runs beyond its deadline and cannot be interrupted."""
        self.abandoned = False
        """Its caller was cancelled: what it waits for need not be waited for."""


class Mailbox:
    """Results on their way to one event loop."""

    __slots__ = ("_done", "_signalled", "lock", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lock = threading.Lock()
        self._done: deque[tuple[Call, Any, DatalayerError | None]] = deque()
        self._signalled = False

    # --- on a database thread --------------------------------------------------------------------------------------

    def start(self, call: Call, connection: sqlite3.Connection | None = None) -> bool:
        """Whether the call is still wanted; it is running from now on, interruptible with ``connection``."""
        with self.lock:
            if call.state is not State.QUEUED:
                return False
            call.state = State.RUNNING
            call.connection = connection
            return True

    def finish(self, call: Call, result: Any, error: DatalayerError | None = None) -> None:
        """Hand a result over. Only the first end of a call counts."""
        with self.lock:
            if call.state is State.OVER:
                return
            call.state = State.OVER
            call.connection = None
        self._done.append((call, result, error))
        if not self._signalled:
            self._signalled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver)

    # --- on the loop -----------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        # Lowered before the queue is read: what is posted from now on signals again.
        self._signalled = False
        done = self._done
        while done:
            call, result, error = done.popleft()
            if error is not None:
                _fail(call, error)
            elif not call.future.done():
                call.future.set_result(result)

    async def outcome(self, call: Call) -> Any:
        """Wait for a call up to its deadline. A cancelled caller leaves when the call has ended or never started."""
        timer = self.loop.call_later(call.budget_s, self._expire, call)
        try:
            return await call.future
        except asyncio.CancelledError:
            await self._abandon(call)
            raise
        finally:
            timer.cancel()

    def _expire(self, call: Call) -> None:
        with self.lock:
            if call.state is State.OVER:
                return  # its result is on the way
            if call.state is State.RUNNING and call.connection is None:
                grace = max(GRACE_S_MIN, GRACE * call.budget_s)
                self.loop.call_later(grace, self._unknown, call)
                return
            if call.connection is not None:
                # Under the lock, so that it cannot meet the thread's next statement.
                call.connection.interrupt()
            call.state = State.OVER
        _fail(call, DeadlineExceeded())

    def _unknown(self, call: Call) -> None:
        with self.lock:
            if call.state is State.OVER:
                return
            call.state = State.OVER
        _fail(call, call.late())

    async def _abandon(self, call: Call) -> None:
        with self.lock:
            call.abandoned = True
            if call.state is State.QUEUED:
                call.state = State.OVER
            if call.state is State.OVER:
                return
            call.future = ended = self.loop.create_future()
            if call.connection is not None:
                call.connection.interrupt()
        # Bounded: the thread ends it, or its deadline does. Further cancellations change nothing.
        self.loop.call_later(max(0.0, call.deadline.remaining()) + 1.0, _end, ended)
        while not ended.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({ended})


def _fail(call: Call, error: DatalayerError) -> None:
    if call.future.done():
        return
    if call.abandoned:
        call.future.set_result(None)
    else:
        call.future.set_exception(error)


def _end(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
