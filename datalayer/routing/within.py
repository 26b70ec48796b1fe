"""A deadline for calls that take none: the port's own, which the engine makes without."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from datalayer.clock import Deadline
    from datalayer.errors import DatalayerError

T = TypeVar("T")


async def within(deadline: Deadline, call: Awaitable[T], error: type[DatalayerError]) -> T:
    """The answer of a call, or ``error`` when the deadline passes before."""
    try:
        async with asyncio.timeout(max(deadline.remaining(), 0.0)):
            return await call
    except TimeoutError:
        raise error from None
