"""Processes that sleep: one stopped by SIGSTOP holds up what needs its word, and does no harm when it wakes."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from datalayer.cli.demo.stage import Role
from datalayer.cli.exits import ExitCode, exit_code
from datalayer.errors import NotFinished
from datalayer.testing.ledger import Kind, read_ledgers
from tests.acceptance.fleet import Fleet
from tests.acceptance.ground import MIGRATE, ground
from tests.integration.live import coordinator_of
from tests.servers import Servers

pytestmark = pytest.mark.servers
BEYOND_THE_LEASE_S = 9.5


def wakeful(fleet: Fleet, name: str, number: signal.Signals) -> None:
    os.kill(fleet.stage.pid(name), number)
    fleet.tell(f"{number.name} to {name}")


async def test_a_process_that_does_not_acknowledge_is_named_and_waited_for(servers: Servers, tmp_path: Path) -> None:
    async with ground(servers, tmp_path, messages=300) as at:
        fleet = at.fleet
        await fleet.start([Role("writer-1", "writer", 20), Role("sleeper-1", "reader", 20)])
        await fleet.command(*MIGRATE, "--until", "verified")
        wakeful(fleet, "sleeper-1", signal.SIGSTOP)
        address = f"{socket.gethostname()}:{fleet.stage.pid('sleeper-1')}"
        async with coordinator_of(fleet.stage.settings, ack_timeout_s=2.0) as coordinator:
            with pytest.raises(NotFinished) as waited:
                await coordinator.migrate("cassandra")
        assert exit_code(waited.value) is ExitCode.NOT_FINISHED
        assert address in waited.value.message
        reasons = (await fleet.command("migrations", "why")).told["reasons"]
        assert [reason["detail"] for reason in reasons if address in reason["detail"]]
        assert not [reason for reason in reasons if str(fleet.stage.pid("writer-1")) in reason["detail"]]
        wakeful(fleet, "sleeper-1", signal.SIGCONT)
        await fleet.command(*MIGRATE)
        found = await fleet.judge()
    assert found.clean, found.violations[:5]


async def test_a_process_that_sleeps_through_the_cut_over_neither_writes_nor_reads_by_the_old_route(
    servers: Servers, tmp_path: Path
) -> None:
    async with ground(servers, tmp_path, messages=300) as at:
        fleet = at.fleet
        mixed = "append=3,edit=3,delete=1,get=6,history=1"
        await fleet.start(
            [Role("writer-1", "writer", 20), Role("editor-1", "editor", 20), Role("sleeper-1", mixed, 40, tasks=8)]
        )
        await fleet.command(*MIGRATE, "--until", "armed")
        wakeful(fleet, "sleeper-1", signal.SIGSTOP)
        asleep = time.monotonic()
        await fleet.command(*MIGRATE)
        status = (await fleet.command("migrations", "status")).told
        assert status["phase"] == "target"
        assert any("sleeper-1" in process for process in status["behind"]), "it slept through the cut-over"
        await fleet.serve(max(0.0, BEYOND_THE_LEASE_S - (time.monotonic() - asleep)))
        woke_ns = time.monotonic_ns()
        wakeful(fleet, "sleeper-1", signal.SIGCONT)
        until = time.monotonic() + 20
        while _done_since(fleet, "sleeper-1", woke_ns) < 50:
            assert time.monotonic() < until, "the sleeper does not go on"
            await asyncio.sleep(0.1)
        found = await fleet.judge()
    assert found.clean, found.violations[:5]


def _done_since(fleet: Fleet, name: str, since_ns: int) -> int:
    """Calls that a process began after a moment and that succeeded."""
    events = read_ledgers(fleet.stage.ledgers)
    return sum(e.process == name and e.began_ns > since_ns and e.kind in {Kind.ACK, Kind.READ} for e in events)
