"""Blocking calls in a bounded number of threads, for drivers and file systems that know no other way."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from datalayer.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Threads:
    """The threads of one backend."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._pool: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Take calls from now on. Idempotent."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=f"datalayer-{self._name}")

    def close(self) -> None:
        """Take no more. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """What the call returns or raises; Closed. A cancelled caller waits for its end: it uses what the caller holds."""
        if self._pool is None:
            raise Closed
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():
                if not _is_cancelled():
                    raise Closed from None
                raise
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # looked at: nobody is left to be told
            raise


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
