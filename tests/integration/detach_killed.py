"""Detach old partitions in a process that dies, by SIGKILL, before its n-th statement.

    python -m tests.integration.detach_killed URL BEFORE_MS

For each number on stdin a process is forked, which dies before that statement of its own; on stdout how it ended: -9, or
0 when it was through before. Forked, because each death would otherwise cost the start of an interpreter.
"""

import asyncio
import os
import signal
import sys
from itertools import count
from typing import Any

import psycopg

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.postgres.backend import create_backend


def die_before(nth: int) -> None:
    """Let this process die before its n-th statement from now on."""
    inner = psycopg.AsyncCursor.execute
    numbers = count(1)

    async def execute(self: Any, *args: Any, **options: Any) -> Any:
        if next(numbers) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return await inner(self, *args, **options)

    psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]


async def detach(url: str, before_ms: int, nth: int) -> None:
    """What the command does at one place."""
    backend = create_backend("main", BackendUrl.parse(url), pool_max=2, clock=SystemClock())
    await backend.open()
    die_before(nth)
    await backend.store("messages", 0).partitions.detach(before_ms, 5.0)
    await backend.close()


def main(url: str, before_ms: int) -> None:
    """Read numbers, fork, tell."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(detach(url, before_ms, int(line)))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
