"""Holds that go wrong: one that cannot be short enough steps back; one whose coordinator dies ends by itself."""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.layer import DataLayer
from tests.acceptance.ground import MIGRATE, eventually, ground
from tests.integration.live import traffic
from tests.servers import Servers

pytestmark = pytest.mark.servers
MAX_HOLD_S = 2.0
LEASE_S = 8.0


async def test_a_hold_that_takes_too_long_steps_back_and_no_client_hears_of_it(
    servers: Servers, tmp_path: Path
) -> None:
    async with ground(servers, tmp_path, messages=300) as at:
        fleet = at.fleet
        async with traffic(fleet.stage.settings, layers=2, writers=2, readers=2, pause_s=0.01) as live:
            await fleet.command(*MIGRATE, "--max-hold", "1", code=5)
            status = (await fleet.command("migrations", "status")).told
            assert status["phase"] == "armed"
            assert status["holds"] == []
            assert "failed" in {step["state"] for step in status["steps"]}
            before = live.writes
            await _advance(lambda: live.writes, before + 50)
            # The hold alone was in the way: with the time it needs, the same migration ends.
            await fleet.command(*MIGRATE, "--max-hold", "5000")
            await _advance(lambda: live.writes, live.writes + 50)
            assert {layer.router("messages").routing.authority.backend for layer in live.layers} == {"cassandra"}
            assert live.errors == []


@pytest.mark.parametrize(
    ("point", "phase"), [("fence.after", "armed"), ("drain.after", "armed"), ("fence_for_good.after", "target")]
)
async def test_a_hold_whose_coordinator_is_gone_for_good_ends_by_itself(
    servers: Servers, tmp_path: Path, point: str, phase: str
) -> None:
    async with ground(servers, tmp_path, messages=200) as at:
        fleet, room, person = at.fleet, uuid4(), uuid4()
        hold = ("--max-hold", f"{MAX_HOLD_S * 1000:.0f}")
        async with DataLayer.open(fleet.stage.settings) as layer:
            first = await layer.messages.append(room, sender_id=person, body="before")
            await fleet.command(*MIGRATE, *hold, "--until", "armed")
            await fleet.command(*MIGRATE, *hold, failpoints=f"{point}=kill")
            died = time.monotonic()
            held = await layer.messages.append(room, sender_id=person, body="held", timeout=MAX_HOLD_S + LEASE_S)
            waited_s = time.monotonic() - died
            fleet.tell(f"killed at {point}: the next write took {waited_s:.2f} s")
            assert waited_s > 0.05, "there was no hold to wait for"

            async def settled() -> bool | None:
                return layer.router("messages").routing.phase == phase or None

            await eventually(settled, seconds=MAX_HOLD_S + LEASE_S, what=f"phase {phase}")
            last = await layer.messages.append(room, sender_id=person, body="after")
            assert time.monotonic() - died < MAX_HOLD_S + LEASE_S
            page = await layer.messages.history(room)
            assert [message.id for message in page.items] == [last.id, held.id, first.id]
            # Nobody else took part: the coordinator's own record of the hold is missing.
            status = (await fleet.command("migrations", "status")).told
            assert (status["phase"], status["holds"]) == (phase, [])


async def _advance(count: Callable[[], int], to: int) -> None:
    async def look() -> bool | None:
        return count() >= to or None

    await eventually(look, seconds=15, what=f"{to} writes")
