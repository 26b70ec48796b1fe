"""The fleet: which processes have the data layer open, which epochs they serve, until when their leases run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.audit import INSERT_AUDIT
from datalayer.control.base import LEASE_S, ProcessInfo
from datalayer.control.rules import acknowledges, matches
from datalayer.control.schema import PROCESSES, STATE
from datalayer.control.statements import SqlPart, StoreClock, number, text
from datalayer.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.stores.sql.database import Row

_NOW: Final = StoreClock()
_NEW: Final = insert(PROCESSES).values(
    id=text("id"),
    host=text("host"),
    pid=number("pid"),
    boot_id=text("boot_id"),
    name=text("name"),
    epochs=text("epochs"),
    seen_us=_NOW,
    lease_us=_NOW + number("lease_us"),
)
_REGISTER: Final = _NEW.on_conflict_do_update(
    index_elements=[PROCESSES.c.id],
    set_={c.name: _NEW.excluded[c.name] for c in PROCESSES.c if c.name != "id"},
)
_RENEW: Final = (
    update(PROCESSES)
    .where(PROCESSES.c.id == text("id"))
    .values(epochs=text("epochs"), seen_us=_NOW, lease_us=_NOW + number("lease_us"))
    .returning(select(STATE.c.news).scalar_subquery())
)
_READ: Final = select(
    PROCESSES.c.id,
    PROCESSES.c.host,
    PROCESSES.c.pid,
    PROCESSES.c.boot_id,
    PROCESSES.c.name,
    _NOW - PROCESSES.c.seen_us,
    PROCESSES.c.lease_us - _NOW,
    PROCESSES.c.epochs,
).order_by(PROCESSES.c.id)
_REMOVE: Final = delete(PROCESSES).where(PROCESSES.c.id == text("id")).returning(PROCESSES.c.id)


class SqlFleet(SqlPart):
    """Registrations and acknowledgements."""

    async def register(self, info: ProcessInfo, epochs: Mapping[str, int]) -> None:
        """Enter a process with the epochs it serves. Idempotent."""
        values: dict[str, Any] = {
            "id": info.id,
            "host": info.host,
            "pid": info.pid,
            "boot_id": info.boot_id,
            "name": info.name,
        }
        await self._run(_REGISTER, **values, epochs=json.dumps(dict(epochs)), lease_us=round(LEASE_S * 1e6))

    async def renew(self, process_id: str, epochs: Mapping[str, int], lease_s: float = LEASE_S) -> int:
        """Prolong the lease, acknowledge epochs; the news counter. Closed when the process was deregistered."""
        rows = await self._run(_RENEW, id=process_id, epochs=json.dumps(dict(epochs)), lease_us=round(lease_s * 1e6))
        if not rows:
            raise Closed("this process was deregistered from the control store", hint="open the data layer again")
        return int(rows[0][0])

    async def leave(self, process_id: str) -> None:
        """Idempotent."""
        await self._run(_REMOVE, id=process_id)

    async def processes(self) -> list[ProcessInfo]:
        """Everybody registered, by id."""
        return [_process(row) for row in await self._fetch(_READ)]

    async def behind(self, domain: str, epoch: int) -> list[ProcessInfo]:
        """Registered processes that have not acknowledged this epoch (or a later one) of the domain."""
        return [info for info in await self.processes() if not acknowledges(info, domain, epoch)]

    async def deregister(self, patterns: Sequence[str], *, actor: str) -> list[ProcessInfo]:
        """Remove processes whose id, host, name or host:pid matches a glob; audited. Returns those removed."""
        removed = []
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            for info in map(_process, await self._do(transaction, _READ)):
                if matches(info, patterns) and await self._do(transaction, _REMOVE, id=info.id):
                    removed.append(info)
                    detail = f"process {info.id} ({info.host}:{info.pid} {info.name})"
                    await self._do(transaction, INSERT_AUDIT, actor=actor, action="deregister", detail=detail)
        return removed


def _process(row: Row) -> ProcessInfo:
    id_, host, pid, boot_id, name, seen_us, lease_us, epochs = row
    return ProcessInfo(id_, host, pid, boot_id, name, seen_us / 1e6, lease_us / 1e6, json.loads(epochs))
