"""Mistakes that the users' job has found, each as small as it can be told."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from datalayer.domains.record import Key
from datalayer.errors import MigrationError
from datalayer.migrators import hold
from datalayer.migrators.options import MigrateOptions
from datalayer.stores.postgres.listener import Listener
from datalayer.stores.sql.statement import expanded


@pytest.mark.parametrize(
    ("held_s", "fence", "error"),
    [(0.4, "lapsing", MigrationError), (0.4, "open", hold.HoldTooLong), (0.5, "lapsing", hold.HoldTooLong)],
)
async def test_a_difference_that_shows_after_the_fence_has_lapsed_says_nothing_about_the_copy(
    monkeypatch: pytest.MonkeyPatch, held_s: float, fence: str, error: type[MigrationError]
) -> None:
    """Writes go on then. It ended a migration for good, with "differ inside the hold", on a machine under load."""

    class Verifier:
        async def unequal_now(self, keys: Sequence[Key]) -> Sequence[Key]:
            return keys

    async def not_sealed(_: Any) -> bool:
        return False

    async def state() -> SimpleNamespace:
        return SimpleNamespace(fence=fence)

    monkeypatch.setattr(hold, "_sealed", not_sealed)
    monkeypatch.setattr(hold, "_verifier", lambda _: Verifier())
    sides = SimpleNamespace(state=state), None
    clock = SimpleNamespace(monotonic=lambda: held_s)
    options = MigrateOptions(max_hold_ms=1000.0)
    changed = {("claim", bytes(20)): None}
    places = SimpleNamespace(sides=lambda _: sides)
    work: Any = SimpleNamespace(
        changed=changed, hold_began=0.0, clock=clock, options=options, mirror_life="", places=places, routing=None
    )
    with pytest.raises(MigrationError) as caught:
        await hold.check_changed(work)
    assert type(caught.value) is error


def test_postgres_looks_pairs_up_by_a_join_not_by_a_chain_of_ors() -> None:
    """Planned while the table was empty, the chain was a scan with 256 comparisons a row, and the plan was kept."""
    table = sa.table("rows", sa.column("a"), sa.column("b"), sa.column("c"))
    keys: sa.BindParameter[object] = sa.bindparam("keys", expanding=True)
    pairs = sa.select(table.c.c).where(sa.tuple_(table.c.a, table.c.b).in_(keys))
    assert expanded("postgresql", pairs, "keys", (None, None), 2).endswith("IN (VALUES (%s, %s), (%s, %s))")
    one = sa.select(table.c.c).where(table.c.a.in_(keys))
    assert expanded("postgresql", one, "keys", None, 2).endswith("IN (%s, %s)")


async def test_a_listener_that_is_cancelled_while_it_begins_leaves_no_connection_open() -> None:
    """A data layer that was closed soon after it was opened, on a machine under load, left one to the collector."""

    class Connection:
        discarded = False

        async def execute(self, _: object) -> None:
            await asyncio.Event().wait()

        def discard(self) -> None:
            self.discarded = True

    connection = Connection()

    async def connect() -> Any:
        return connection

    adding = asyncio.create_task(Listener(connect).add("channel", lambda: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    assert connection.discarded
