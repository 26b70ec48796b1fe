"""The pool of Postgres connections, where no server is needed to see it."""

import asyncio

import pytest

from datalayer.errors import DeadlineExceeded, Unavailable
from datalayer.stores.postgres.connection import DeadlineConnection
from datalayer.stores.postgres.pool import Pool


async def test_a_slot_that_comes_free_when_a_caller_gives_up_leaves_its_deadline_the_answer() -> None:
    loop = asyncio.get_running_loop()
    refused: asyncio.Future[DeadlineConnection] = loop.create_future()

    async def connect(_: float) -> DeadlineConnection:
        return await refused

    pool, until = Pool(connect, 1, "the server"), loop.time() + 0.02
    first = asyncio.create_task(pool.take(until + 10))
    second = asyncio.create_task(pool.take(until))
    await asyncio.sleep(0)
    loop.call_at(until - 0.001, refused.set_exception, Unavailable("it refuses"))
    while loop.time() < until:
        """The loop is busy, so both moments come in one turn of it."""
    with pytest.raises(Unavailable, match="it refuses"):
        await first
    with pytest.raises(DeadlineExceeded, match="came free in time"):
        await second
    assert pool.in_use == 0
