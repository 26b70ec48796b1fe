"""The one lease of whoever moves a domain or slot group: taken, kept while work goes on, given back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from datalayer.control.base import coordinator_lease
from datalayer.errors import DatalayerError, LostLease, PreconditionFailed
from datalayer.routing.watchdog import COORDINATOR_TTL_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from datalayer.clock import Clock
    from datalayer.control.base import Control

KEEP_EVERY_S: Final = 0.5
TAKE_WAIT_S: Final = 20.0


@asynccontextmanager
async def held_lease(
    control: Control, clock: Clock, domain: str, holder: str, note: Callable[[str], None]
) -> AsyncIterator[int]:
    """The coordinator's lease of a domain or slot group, by its token.

    Raises PreconditionFailed while somebody else has it, LostLease inside the block when it went to somebody else.
    """
    name = coordinator_lease(domain)
    until = clock.monotonic() + TAKE_WAIT_S
    while (value := await control.take(name, holder, COORDINATOR_TTL_S)) is None:
        held = await control.holder(name)
        if clock.monotonic() >= until:
            by = held[0] if held else "another process"
            raise PreconditionFailed(f"another coordinator works on {domain}: {by}")
        await asyncio.sleep(0.05)
    mine = asyncio.current_task()
    assert mine is not None, "a coordinator runs in a task"
    failures: list[DatalayerError] = []

    async def keep() -> None:
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                await control.keep(name, value, COORDINATOR_TTL_S)
            except LostLease as error:
                failures.append(error)
                mine.cancel()
                return
            except DatalayerError as error:
                # The control store is away: every step of the plan will say so itself.
                note(f"the lease could not be renewed: {error.message}")

    # From the first moment: connecting to two databases may take longer than the lease.
    keeper = asyncio.create_task(keep(), name="datalayer-keep-lease")
    try:
        yield value
    except asyncio.CancelledError:
        if failures:
            mine.uncancel()
            raise failures[0] from None
        raise
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        try:
            await control.release(name, value)
        except DatalayerError as error:
            note(f"the lease could not be given back and will lapse: {error.message}")
