"""The replayer: journal -> apply -> settle, in any order, any number of times.

For a last-writer authority the journal holds intents with their payload: these go to the authority first (a writer
may have died between its intent and its write), then to the mirror. Settling compares the version of the record
applied (never of the row taken), so a newer write keeps its key dirty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.control.base import QuarantineRow
from datalayer.errors import MigrationError, Quarantine
from datalayer.routing.lastwriter import IntentGuard

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.domains.record import Key, Record
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing

BATCH: Final = 500
QUARANTINE_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one round did: the records brought to the mirror, and whether the journal was found empty."""

    records: tuple[Record, ...]
    empty: bool


class Replayer:
    """Brings the mirror of one routing in step with its journal."""

    def __init__(self, places: Places, routing: Routing, migration_id: str, *, part: tuple[int, int] = (0, 1)) -> None:
        authority, mirror = places.sides(routing)
        self._control: Control = places.control
        self._clock: Clock = places.clock
        self._journal = authority.journal
        self._mirror = mirror
        self._authority = authority if isinstance(authority, IntentGuard) else None
        self._migration = migration_id
        self._part = part
        self._quarantined: dict[Key, int] = {}
        self.max_version = 0

    @property
    def quarantined(self) -> int:
        """How many keys the mirror refuses at the version they have now."""
        return len(self._quarantined)

    async def step(self, limit: int = BATCH) -> Replayed:
        """One round. Errors of the stores are raised; repeating it is harmless."""
        found = await self._journal.pending(limit + len(self._quarantined), part=self._part)
        records = [r for r in found if self._quarantined.get(r.ident) != r.version]
        if not records:
            return Replayed((), empty=not found)
        if self._authority is not None:
            await self._authority.deliver(records)
        refused: dict[Key, str] = {}
        try:
            await self._mirror.apply(records)
        except Quarantine as error:
            refused = error.rejected
        applied = [r for r in records if r.ident not in refused]
        await self._journal.settle(applied)
        await self._note_quarantine(records, refused)
        self.max_version = max([self.max_version, *(r.version for r in applied if not r.deleted)])
        return Replayed(tuple(applied), empty=False)

    async def _note_quarantine(self, records: list[Record], refused: dict[Key, str]) -> None:
        mended = [r.ident for r in records if r.ident in self._quarantined and r.ident not in refused]
        if mended:
            await self._control.release_quarantine(self._migration, mended)
            for key in mended:
                del self._quarantined[key]
        if not refused:
            return
        now = self._clock.now_us()
        rows = [QuarantineRow(r.kind, r.key, r.version, refused[r.ident], now) for r in records if r.ident in refused]
        await self._control.quarantine(self._migration, rows)
        self._quarantined.update({(row.kind, row.key): row.version for row in rows})
        if len(self._quarantined) > QUARANTINE_MAX:
            raise MigrationError(f"more than {QUARANTINE_MAX} records cannot be stored by the target")

    async def load_quarantine(self) -> None:
        """Take over what earlier replayers and the backfill could not store."""
        rows = await self._control.quarantined(self._migration, QUARANTINE_MAX)
        self._quarantined = {(row.kind, row.key): row.version for row in rows}

    async def backlog(self) -> int:
        """How many keys are dirty."""
        return await self._journal.backlog()
