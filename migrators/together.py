"""Tasks that live and end together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

R = TypeVar("R")


async def together(*work: Coroutine[Any, Any, R]) -> list[R]:
    """Run all of it at once; the results in order.

    The first that fails ends the others and is raised as it is, not inside a group: what runs a stage must see
    whether the error is retryable. No task is left behind, whatever ends this call.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]
