"""The control store over a SQL database: one class, its parts by concern in the modules beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal
from uuid import uuid4

from sqlalchemy import Text, column, func, literal, select, table, update
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.audit import SqlAudit
from datalayer.control.chunks import SqlChunks
from datalayer.control.documents import SqlDocuments
from datalayer.control.fleet import SqlFleet
from datalayer.control.intents import SqlIntents
from datalayer.control.leases import SqlLeases
from datalayer.control.migrations import SqlMigrations
from datalayer.control.quarantine import SqlQuarantine
from datalayer.control.routes import SqlRoutes
from datalayer.control.schema import STATE, VERSION, statements
from datalayer.control.statements import LONG_CALL_S, number, text
from datalayer.errors import SchemaAhead, SchemaBehind

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.control.base import IntentLog
    from datalayer.stores.sql.database import SqlDatabase

_MASTER: Final = table("sqlite_master", column("name"))
_EXISTS: Final = {
    "postgresql": select(func.to_regclass(literal(STATE.name, Text)).cast(Text)),
    "sqlite": select(func.max(_MASTER.c.name)).where(_MASTER.c.name == literal(STATE.name, Text)),
}
_ONE_AT_A_TIME: Final = select(func.pg_advisory_xact_lock(number("lock")))
_LOCK: Final = 0x646C_636F_6E74_726F
_FIRST: Final = (
    insert(STATE)
    .values(id=1, version=number("version"), deployment=text("deployment"), news=0)
    .on_conflict_do_nothing()
).inline()
_NOW_AT: Final = update(STATE).where(STATE.c.version < number("version")).values(version=number("version"))
_READ: Final = select(STATE.c.version, STATE.c.deployment)


class SqlControl(SqlRoutes, SqlFleet, SqlLeases, SqlMigrations, SqlChunks, SqlQuarantine, SqlDocuments, SqlAudit):
    """``Control`` over a ``SqlDatabase``, which it owns from now on.

    Single statements run in autocommit; what compares a fencing token does so in the transaction that writes. All
    times of leases and acknowledgements are the control store's own. After a crash everything that was acknowledged
    is there, and a call that had no answer may be repeated unless its description says otherwise.
    """

    def __init__(self, database: SqlDatabase, clock: Clock) -> None:
        super().__init__(database, clock)
        self._deployment: str | None = None
        self._logs: dict[tuple[str, int, str], SqlIntents] = {}

    async def open(self, *, create: bool) -> None:
        """Check the schema version (SchemaAhead when it is newer, SchemaBehind unless created). Idempotent."""
        if not await self._exists():
            if not create:
                raise SchemaBehind("the control store has no tables yet", hint="datalayer schema upgrade")
            await self._make()
        rows = await self._fetch(_READ)
        if create and rows and rows[0][0] < VERSION:
            await self._make()
            rows = await self._fetch(_READ)
        if not rows:
            raise SchemaBehind("the control store's tables are empty", hint="datalayer schema upgrade")
        version, self._deployment = rows[0]
        if version > VERSION:
            message = f"the control store has schema version {version}, but this datalayer knows only {VERSION}"
            raise SchemaAhead(message, hint="upgrade datalayer in this process")
        if version < VERSION:
            message = f"the control store has schema version {version}, this datalayer needs {VERSION}"
            raise SchemaBehind(message, hint="datalayer schema upgrade")

    async def close(self) -> None:
        """Close the database. Idempotent."""
        await self._stop_listening()
        await self._database.close()

    async def deployment(self) -> str:
        """The deployment's id, made with the schema."""
        if self._deployment is None:
            await self.open(create=False)
        assert self._deployment is not None, "open() read it"
        return self._deployment

    def intents(self, domain: str, attempt: int, side: Literal["source", "target"]) -> IntentLog:
        """Gate and journal of a side whose store is a last-writer one; one object per log, so positions are kept."""
        key = (domain, attempt, side)
        if key not in self._logs:
            self._logs[key] = SqlIntents(self._database, self._clock, domain, attempt, side)
        return self._logs[key]

    async def _exists(self) -> bool:
        rows = await self._fetch(_EXISTS[self._database.dialect])
        return bool(rows) and rows[0][0] is not None

    async def _make(self) -> None:
        """Bring the tables to this version; each statement is harmless where its object exists."""
        async with self._database.transaction(deadline=self._deadline(LONG_CALL_S)) as transaction:
            if self._database.dialect == "postgresql":
                # CREATE .. IF NOT EXISTS of two processes at once fails in the catalogue.
                await self._do(transaction, _ONE_AT_A_TIME, lock=_LOCK)
            for statement in statements(self._database.dialect):
                await transaction.run(statement)
            await self._do(transaction, _FIRST, version=VERSION, deployment=str(uuid4()))
            await self._do(transaction, _NOW_AT, version=VERSION)
