"""Doing one thing to many slot groups at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE: Final = 16
"""Groups worked on at a time: enough to keep the members busy, few enough for a pool of twenty connections."""


async def each(items: Iterable[T], act: Callable[[T], Awaitable[R]]) -> list[R]:
    """The results of ``act`` for all items, in their order; all have ended when the first error is raised."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> R:
        async with room:
            return await act(item)

    answers = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers  # type: ignore[return-value]
