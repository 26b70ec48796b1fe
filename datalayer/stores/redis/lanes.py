"""Beats on their way to a server: those given at the same time share a pipeline."""

from __future__ import annotations

import asyncio
import math
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from datalayer.clock import Deadline
from datalayer.errors import DatalayerError, OutcomeUnknown, Overloaded
from datalayer.stores.redis.scripts import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.stores.redis.session import RedisSession
    from datalayer.stores.redis.target import Address

PENDING_MAX: Final = 100_000
"""Beats that wait for a server; beyond them a beat is refused."""
BATCH_MAX: Final = 1000
Given = tuple[Call, asyncio.Future[None], Deadline]
"""A beat, what its caller waits for, and until when."""
_AT: Final = attrgetter("at")


class Lane:
    """Beats for one server: while a pipeline is under way, the next gathers.

    One timer serves all of them: it is set for the first that ends. One of its own for each beat would cost as much as
    all that is sent.
    """

    __slots__ = ("_address", "_bell", "_rings_at", "_session", "_task", "_under_way", "_waiting")

    def __init__(self, session: RedisSession, address: Address) -> None:
        self._session = session
        self._address = address
        self._waiting: list[Given] = []
        self._under_way: list[Given] = []
        self._task: asyncio.Task[None] | None = None
        self._bell: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def send(self, call: Call, deadline: Deadline) -> asyncio.Future[None]:
        """What ends when the server has confirmed it, or by the deadline. Overloaded."""
        if len(self._waiting) >= PENDING_MAX:
            raise Overloaded(f"{self._session.where}: {PENDING_MAX} beats wait for a server already")
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()
        self._waiting.append((call, sent, deadline))
        if deadline.at < self._rings_at:
            self._set_bell(deadline)
        if self._task is None:
            self._task = loop.create_task(self._run(), name="datalayer-beats")
        return sent

    def _set_bell(self, deadline: Deadline) -> None:
        if self._bell is not None:
            self._bell.cancel()
        self._rings_at = deadline.at
        self._bell = asyncio.get_running_loop().call_later(max(0.0, deadline.remaining()), self._ring)

    def _ring(self) -> None:
        """End those whose time is up."""
        self._bell, self._rings_at = None, math.inf
        still: list[Deadline] = []
        for _, sent, deadline in (*self._under_way, *self._waiting):
            if sent.done():
                continue
            if deadline.passed:
                sent.set_exception(
                    OutcomeUnknown(f"{self._session.where}: the beat was not confirmed before the deadline")
                )
            else:
                still.append(deadline)
        if still:
            self._set_bell(min(still, key=_AT))

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                self._under_way = [one for one in batch if not one[1].done()]
                if self._under_way:
                    await self._send(self._under_way)
        finally:
            self._task = None
            self._under_way = []

    async def _send(self, batch: Sequence[Given]) -> None:
        deadline = max((one[2] for one in batch), key=_AT)
        failure: DatalayerError | None = OutcomeUnknown(f"{self._session.where}: the beats' sender ended")
        try:
            await self._session.batch([one[0] for one in batch], write=True, deadline=deadline, to=self._address)
            failure = None
        except DatalayerError as error:
            failure = error
        finally:
            for _, sent, _ in batch:
                if sent.done():
                    continue
                if failure is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(failure)
