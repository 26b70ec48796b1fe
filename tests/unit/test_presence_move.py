"""A move of presence between two servers, in memory: what the copy brings when the mirror was away."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.soft import Beat, seen_of
from datalayer.migrators import soft
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.route import Place
from datalayer.routing.soft import MISSED
from datalayer.stores.memory import MemoryBackend
from datalayer.stores.memory.server import MemoryServer
from datalayer.stores.memory.soft import MemorySoft
from datalayer.types import from_us
from tests.unit.index_world import opened

ANN, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, MemoryServer]:
    made = {name: MemoryServer(name, SystemClock()) for name in ("pa", "pb")}
    for server in made.values():
        server.reach = "network"
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", dict(made))
    return made


async def test_when_somebody_was_seen_does_not_go_back_over_a_move(
    tmp_path: Path, servers: dict[str, MemoryServer]
) -> None:
    """Over while the target was away after the copy, and back while the source was."""
    document = {
        "backends": {name: {"url": "memory://"} for name in ("main", "pa", "pb")},
        "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
        "routes": {"presence": "pa", "typing": "pa"},
    }
    async with opened(document) as layer:

        def command(until: Until) -> Coordinator:
            options = MigrateOptions(until=until, yes=True, lifetime_s=0.1)
            return Coordinator(layer.places, "presence", holder="t", options=options, patience_s=5.0)

        async def missed(user: UUID, away: str, before: object) -> object:
            servers[away].up = False
            await layer.presence.leave(user, timeout=0.1)
            async with asyncio.timeout(10):
                while (note := await layer.control.document(migration.id, MISSED)) == before:
                    await asyncio.sleep(0.01)
            servers[away].up = True
            return note

        async def seen_at(place: Place, user: UUID) -> object:
            store = layer.places.store("presence", place)
            entry = (await store.entries([user], Deadline(layer.clock, 5.0)))[user]
            return from_us(seen_of(entry))

        for user in (ANN, BOB):
            await layer.presence.leave(user)
        migration = await command(Until.BACKFILLED).migrate("pb")
        note = await missed(ANN, "pb", None)
        seen = await layer.presence.last_seen([ANN, BOB])
        await command(Until.TARGET).migrate("pb")
        assert await seen_at(migration.target, ANN) == seen[ANN]
        await missed(BOB, "pa", note)
        seen = await layer.presence.last_seen([ANN, BOB])
        await command(Until.TARGET).rollback()
        assert await seen_at(migration.source, BOB) == seen[BOB]


async def test_a_comparison_of_sides_that_share_nobody_ends_early(
    servers: dict[str, MemoryServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SystemClock()
    one, other = (MemorySoft(MemoryBackend(server), "presence", 0) for server in servers.values())
    now = clock.now_us()
    await one.apply([Beat(UUID(int=number), "web", now, now + 60_000_000) for number in range(3 * soft.PAGE)])
    monkeypatch.setattr(soft, "SUSPECTS_MAX", 3, raising=False)
    monkeypatch.setattr(soft, "AGAIN_S", (0.0,))
    work: Any = SimpleNamespace(clock=clock)
    missing, present = await soft._absent_at(work, one, other)
    assert (len(missing), present) == (soft.PAGE, soft.PAGE)
    assert await soft._absent_at(work, other, one) == ([], 0)
