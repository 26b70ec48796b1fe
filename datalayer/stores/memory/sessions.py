"""Sessions in memory: the port and its typed reads."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, cast
from uuid import UUID

from datalayer.domains import sessions
from datalayer.domains.record import expiry_us
from datalayer.stores.memory.store import MemoryPort, Transactions

if TYPE_CHECKING:
    from datalayer.clock import Deadline
    from datalayer.types import Session, SessionCut


class MemorySessions(MemoryPort):
    """Sessions: the port and its typed reads."""

    async def get(self, user_id: UUID, id: UUID, deadline: Deadline) -> tuple[Session | None, SessionCut | None]:
        def effect() -> tuple[Session | None, SessionCut | None]:
            record = self._table().records.get(("session", sessions.session_key(user_id, id)))
            return (None if record is None else sessions.to_session(record), self._cut(user_id))

        return await self._call("get", effect, deadline, write=False)

    async def of_user(self, user_id: UUID, limit: int, deadline: Deadline) -> tuple[list[Session], SessionCut | None]:
        def effect() -> tuple[list[Session], SessionCut | None]:
            held = (record for record in self._table().of_routing("session", user_id.bytes) if not record.deleted)
            return [sessions.to_session(record) for record in islice(held, limit)], self._cut(user_id)

        return await self._call("of_user", effect, deadline, write=False)

    async def purge(self, before_us: int, limit: int) -> tuple[int, int]:
        def effect() -> tuple[int, int]:
            table = self._table()
            past = (key for key, r in table.records.items() if expiry_us(table.kinds[r.kind], r) < before_us)
            found = list(islice(past, limit))
            for key in found:
                table.remove(key)
            return len(found), len(found)

        return await self._call("purge", effect)

    def _cut(self, user_id: UUID) -> SessionCut | None:
        record = self._table().records.get(("session_cut", user_id.bytes))
        return None if record is None else cast("SessionCut", sessions.to_entity(record))


class TransactionalSessions(MemorySessions, Transactions):
    """Sessions on a server that orders writes itself."""
