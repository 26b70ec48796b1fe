"""Calls that are repeated for a while where a repeat is the same call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from datalayer.errors import DatalayerError, NotFinished

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.clock import Clock

R = TypeVar("R")
PATIENCE_S: Final = 60.0


async def persist(clock: Clock, call: Callable[[], Awaitable[R]], stopped: str, patience_s: float = PATIENCE_S) -> R:
    """Repeat what fails retryably; NotFinished (``stopped``: what ended) when that goes on for too long."""
    until = clock.monotonic() + patience_s
    pause_s = 0.05
    while True:
        try:
            return await call()
        except DatalayerError as error:
            if not error.retryable:
                raise
            if clock.monotonic() >= until:
                raise NotFinished(f"{stopped}: {error.message}") from error
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.4)
