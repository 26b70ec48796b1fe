"""The audit log: who did what, when by the control store's clock."""

from __future__ import annotations

from typing import Final

from sqlalchemy import insert, select

from datalayer.control.base import AuditRow
from datalayer.control.schema import AUDIT
from datalayer.control.statements import SqlPart, StoreClock, number, text

INSERT_AUDIT: Final = (
    insert(AUDIT).values(at_us=StoreClock(), actor=text("actor"), action=text("action"), detail=text("detail")).inline()
)
_READ: Final = (
    select(AUDIT.c.seq, AUDIT.c.at_us, AUDIT.c.actor, AUDIT.c.action, AUDIT.c.detail)
    .order_by(AUDIT.c.seq.desc())
    .limit(number("limit"))
)


class SqlAudit(SqlPart):
    """Append only."""

    async def audit(self, actor: str, action: str, detail: str) -> None:
        """Append to the audit log."""
        await self._run(INSERT_AUDIT, actor=actor, action=action, detail=detail)

    async def audit_log(self, limit: int = 100) -> list[AuditRow]:
        """Newest first."""
        return [AuditRow(*row) for row in await self._fetch(_READ, limit=limit)]
