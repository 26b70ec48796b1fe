"""Waiting for the fleet: every registered process must serve an epoch before the next step."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from datalayer.errors import NotFinished
from datalayer.layer import boot_identity

if TYPE_CHECKING:
    from datalayer.control.base import ProcessInfo
    from datalayer.migrators.work import Work

POLL_S: Final = 0.02
_WAY_OUT: Final = (
    "one whose configuration lacks backend {!r} never does: restart it with the new one; others leave when they end; "
    "--assume-dead GLOB goes on without them"
)


def proven_dead(process: ProcessInfo) -> bool:
    """Whether a process of this very machine and pid namespace has ended: its pid is gone or is somebody else's."""
    if not process.boot_id or process.host != socket.gethostname():
        return False
    mine = boot_identity(_own_pid())
    if mine.rsplit("/", 1)[0] != process.boot_id.rsplit("/", 1)[0]:
        return False
    return boot_identity(process.pid) != process.boot_id


def describe(process: ProcessInfo) -> str:
    """A process as an operator knows it."""
    return f"{process.name} {process.host}:{process.pid} (seen {process.seen_ago_s:.0f} s ago)"


async def await_fleet(work: Work, what: str) -> str:
    """Wait until every registered process has acknowledged the present epoch; NotFinished names who has not."""
    if work.options.assume_dead:
        gone = await work.control.deregister(work.options.assume_dead, actor=work.holder)
        for process in gone:
            work.reporter.note(f"assumed dead: {describe(process)}")
    until = work.clock.monotonic() + work.options.ack_timeout_s
    told = False
    while behind := await work.control.behind(work.migration.domain, work.routing.epoch):
        dead = [process for process in behind if proven_dead(process)]
        if dead:
            await work.control.deregister([process.id for process in dead], actor=work.holder)
            continue
        if work.clock.monotonic() >= until:
            names = ", ".join(describe(process) for process in behind[:5])
            raise NotFinished(
                f"{len(behind)} process(es) have not acknowledged {what}: {names}",
                hint=_WAY_OUT.format(work.migration.target.backend),
            )
        if not told:
            work.reporter.note(f"waiting for {len(behind)} process(es) to acknowledge {what}")
            told = True
        await asyncio.sleep(POLL_S)
    return f"epoch {work.routing.epoch} acknowledged"


def _own_pid() -> int:
    import os  # noqa: PLC0415 - the one place that asks for it

    return os.getpid()
