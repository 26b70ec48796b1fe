"""What the tests of replicas and of failover share."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from datalayer.layer import DataLayer
from datalayer.settings import Settings, parse_settings

R = TypeVar("R")


def settings_for(url: str, *replicas: str) -> Settings:
    """One backend with these replicas."""
    backends = {"main": {"url": url, "replicas": list(replicas)}}
    return parse_settings({"backends": backends, "control": {"url": url}}, directory=Path.cwd())


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def elsewhere(work: Coroutine[Any, Any, R]) -> R:
    """As in another process: nothing that this task has written is known to it."""
    return await asyncio.create_task(work, context=Context())


def by_replica(layer: DataLayer, backend: str = "main") -> int:
    """Reads that replicas of a backend have served for this layer."""
    return sum(int(one["reads"]) for one in layer.replicas()[backend])


def healthy(layer: DataLayer) -> bool:
    """Whether all replicas may serve within the default bound."""
    return all(one["ok"] and one["lag_s"] is not None and one["lag_s"] < 1.0 for one in layer.replicas()["main"])


async def until_healthy(layer: DataLayer) -> None:
    """Return once a replica has served a read: it has replayed all that was written before."""
    await until(lambda: healthy(layer))
    before = by_replica(layer)
    async with asyncio.timeout(10):
        while by_replica(layer) == before:
            await layer.users.get(uuid4())
            await asyncio.sleep(0.005)
