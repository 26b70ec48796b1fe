"""How long a process waits for news before it looks by itself."""

from __future__ import annotations

import asyncio
from typing import Final

_FACTOR: Final = 4
_S_MIN: Final = 0.1


def listening_poll_s(poll_s: float) -> float:
    """The pause between two looks where notifications shorten it: rarer than without, but never trusting them alone."""
    return max(poll_s * _FACTOR, _S_MIN)


async def wait_event(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after the time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
