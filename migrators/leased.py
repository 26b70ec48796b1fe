"""Chunks of a run, worked on by any number of workers under leases, until every one is done."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError, LostLease, MigrationError
from datalayer.migrators.together import together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.clock import Clock
    from datalayer.control.base import Chunk, Control

CHUNK_TTL_S: Final = 5.0
POLL_S: Final = 0.1
GIVE_BACK_S: Final = 1.0
STUCK_S: Final = 4 * CHUNK_TTL_S


async def work_through(
    control: Control,
    clock: Clock,
    run: str,
    *,
    holder: str,
    workers: int,
    work: Callable[[Chunk], Awaitable[None]],
) -> list[Chunk]:
    """Give every chunk of a run to ``work``; all of them, done, in order.

    A chunk that another worker holds - a dead one, maybe - is waited for while its lease or its progress lasts
    (MigrationError when neither moves). A chunk whose work fails is given back at once.
    """

    async def one(name: str) -> None:
        while (chunk := await control.take_chunk(run, name, CHUNK_TTL_S)) is not None:
            try:
                await work(chunk)
            except LostLease:
                continue  # a page took longer than the lease: whoever has the range now goes on with it
            except (DatalayerError, asyncio.CancelledError):
                await _give_back(control, run, chunk)
                raise

    seen: list[Chunk] = []
    since = clock.monotonic()
    while True:
        await together(*(one(f"{holder}/{number}") for number in range(workers)))
        chunks = await control.chunks(run)
        if all(chunk.done for chunk in chunks):
            return chunks
        if chunks != seen:
            seen, since = chunks, clock.monotonic()
        elif clock.monotonic() - since > STUCK_S:
            left = sum(not chunk.done for chunk in chunks)
            raise MigrationError(f"{left} range(s) of {run} are held by another worker that does not go on")
        await asyncio.sleep(POLL_S)


async def _give_back(control: Control, run: str, taken: Chunk) -> None:
    """End the lease now; what was checkpointed stays. Where that fails, it lapses by itself."""
    with contextlib.suppress(DatalayerError, TimeoutError):
        async with asyncio.timeout(GIVE_BACK_S):
            for chunk in await control.chunks(run):
                if chunk.number == taken.number and chunk.lease_token == taken.lease_token and not chunk.done:
                    await control.checkpoint(chunk, 0.0)
