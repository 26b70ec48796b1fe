"""Opened Redis backends for tests."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from datalayer.clock import Clock, Deadline, SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.redis.backend import RedisBackend, create_backend
from datalayer.stores.redis.session import RedisSession

CLOCK = SystemClock()


def unopened(url: str, *, pool_max: int = 10, clock: Clock = CLOCK) -> RedisBackend:
    return create_backend("redis", BackendUrl.parse(url), pool_max=pool_max, clock=clock)


@asynccontextmanager
async def opened(url: str, *, pool_max: int = 10) -> AsyncIterator[RedisBackend]:
    """A backend whose server was checked, closed at the end."""
    backend = unopened(url, pool_max=pool_max)
    try:
        await backend.open()
        await backend.ensure_schema(create=True)
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def session_of(url: str, *, pool_max: int = 10) -> AsyncIterator[RedisSession]:
    """The session of a backend."""
    async with opened(url, pool_max=pool_max) as backend:
        yield backend._session


def prefixed(url: str) -> str:
    """The URL with a prefix of its own: a cluster has one database for all tests."""
    return f"{url}{'&' if '?' in url else '/?'}prefix=t{uuid.uuid4().hex[:12]}"


def within(seconds: float) -> Deadline:
    return Deadline(CLOCK, seconds)
