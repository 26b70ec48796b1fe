"""The journal on Postgres: as every SQL journal, but an attempt can end while somebody holds its tables.

DROP waits behind a pg_dump. So ending an attempt is a mark in datalayer_fence, made in the transaction that switches the
triggers off; the tables go when they can. From the mark on "clean" would be a lie: it is asked for with every look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import StaleRoute
from datalayer.schemas.metadata import journal_tables
from datalayer.stores.postgres.triggers import FENCE_TABLE
from datalayer.stores.sql.journal import TriggerJournal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.sql.store import SqlStore

_DIRTY: Final = 1
_ENDED: Final = 2


class PostgresJournal(TriggerJournal):
    """The Journal of one Postgres side of one attempt."""

    def __init__(self, store: SqlStore, attempt: int) -> None:
        super().__init__(store, attempt)
        self._table = journal_tables(store.domain, attempt).journal.name
        self._what = f"attempt {attempt} of {store.domain}"
        self._or_ended = (
            f" UNION ALL SELECT {_ENDED} FROM {FENCE_TABLE} "  # noqa: S608
            f"WHERE domain = '{store.domain}' AND attempt = {attempt:d} AND ended"
        )

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        found = await super().pending(limit, part=part)
        await self.dirty((), ())  # an attempt that ended has nothing pending, and is not drained
        return found

    async def backlog(self) -> int:
        await self.dirty((), ())
        return await super().backlog()

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        wanted = self._sql.dirty_routing.calls(routings) if keys is None else self._sql.dirty_key.calls(keys)
        # without a single key the mark is still asked for
        for sql, params in list(wanted) or [(f"SELECT {_DIRTY} FROM {self._table} WHERE false", [])]:  # noqa: S608
            found = {row[0] for row in await self._db.fetch(f"({sql}){self._or_ended}", params)}
            if _ENDED in found:
                raise StaleRoute(f"{self._what} has ended")
            if found:
                return True
        return False
