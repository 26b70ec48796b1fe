"""Runs a command's asynchronous part: Ctrl-C once asks it to stop at the next safe point, twice ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from datalayer.cli.console import Console
from datalayer.cli.exits import ExitCode, Stopped
from datalayer.clock import SystemClock
from datalayer.migrators.opening import open_places
from datalayer.migrators.plan import IN_HOLD
from datalayer.routing.places import Places

R = TypeVar("R")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PAGES: Final = frozenset({"backfill.page", "verify.page"})
_YOUNG_OBJECTS: Final = 200_000
_SWITCH_S: Final = 0.02
_HELD: Final = frozenset(f"{action}.before" for action in IN_HOLD)


class Stop:
    """Whether the operator asked to stop; as the engine's failpoints it stops a migration between two steps."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise Stopped when the operator asked for it."""
        if self.requested:
            raise Stopped

    async def reach(self, name: str) -> None:
        """Stop before an action or after a page - never inside a hold: applications wait for its end."""
        if name in _PAGES or (name.endswith(".before") and name not in _HELD):
            self.check()


def run(console: Console, work: Callable[[Stop], Coroutine[Any, Any, R]]) -> R:
    """The result of ``work(stop)``.

    Raises Stopped when it stopped because it was asked to; KeyboardInterrupt when it was ended at once.
    """
    return asyncio.run(_guarded(console, work))


def with_places(console: Console, use: Callable[[Places], Coroutine[Any, Any, R]], *, claim: bool = False) -> R:
    """The result of ``use`` over the configured backends and control store."""
    settings = console.settings()

    async def work(_: Stop) -> R:
        async with open_places(settings, SystemClock(), claim=claim) as places:
            return await use(places)

    return run(console, work)


async def _guarded(console: Console, work: Callable[[Stop], Coroutine[Any, Any, R]]) -> R:
    stop = Stop()
    task = asyncio.current_task()
    assert task is not None, "this runs in a task"
    asked = 0

    def interrupted() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            stop.requested = True
            console.say("stopping after this step; Ctrl-C again stops at once")
        elif asked == 2:
            task.cancel()
        else:
            os._exit(ExitCode.INTERRUPTED)

    loop = asyncio.get_running_loop()
    # Only the main thread hears signals; elsewhere the caller stops the command by its own means.
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupted)
    try:
        return await work(stop)
    except asyncio.CancelledError:
        if stop.requested:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in _SIGNALS:
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def moving_bulk() -> Iterator[None]:
    """Settings of the interpreter for a process that moves many rows; as before afterwards.

    What was imported is left out of garbage collections, they come more rarely (a page of records is no garbage), and
    a driver's thread takes the interpreter less often: -2 to +8 % of the rate to Cassandra in trials of 150,000 rows.
    """
    thresholds, switch_s = gc.get_threshold(), sys.getswitchinterval()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *thresholds[1:])
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def holder(command: str) -> str:
    """Who acts, for leases and the audit log; no two runs share it, also not two containers with pid 1."""
    return f"{command}@{socket.gethostname()}:{os.getpid()}/{secrets.token_hex(3)}"
