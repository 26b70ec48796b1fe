"""How the control store's parts run statements: written once in SQLAlchemy Core, compiled once per dialect.

The store's own clock is the one construct that differs in kind. On Postgres it is the server's, read when the
expression is evaluated, so after any lock was waited for. SQLite has one machine, whose clock is the caller's: there
it is a parameter, read when the statement is handed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, BindParameter, ColumnElement, LargeBinary, Text, bindparam, select
from sqlalchemy.ext.compiler import compiles

from datalayer.clock import Deadline
from datalayer.control.base import coordinator_lease
from datalayer.control.rules import lost
from datalayer.control.schema import LEASES
from datalayer.stores.sql.statement import statement

if TYPE_CHECKING:
    from sqlalchemy import Executable, Select
    from sqlalchemy.sql.compiler import SQLCompiler

    from datalayer.clock import Clock
    from datalayer.stores.base import Token
    from datalayer.stores.sql.database import Row, SqlDatabase, SqlTransaction
    from datalayer.stores.sql.statement import Statement

CALL_S: Final = 5.0
LONG_CALL_S: Final = 60.0
"""For a call over many rows."""


class StoreClock(ColumnElement[int]):
    """Microseconds since 1970 by the control store's own clock."""

    type = BigInteger()
    inherit_cache = True


@compiles(StoreClock, "postgresql")
def _server_clock(_element: StoreClock, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "(extract(epoch from clock_timestamp()) * 1000000)::bigint"


@compiles(StoreClock, "sqlite")
def _callers_clock(_element: StoreClock, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(bindparam("now_us", type_=BigInteger()), **kw)


def text(name: str) -> BindParameter[str]:
    """A parameter of text. Its SQL name has a prefix: SQLAlchemy keeps the columns' own names for itself."""
    return bindparam(f"p_{name}", type_=Text())


def number(name: str) -> BindParameter[int]:
    """A parameter of 64 bits."""
    return bindparam(f"p_{name}", type_=BigInteger())


def blob(name: str) -> BindParameter[bytes]:
    """A parameter of bytes."""
    return bindparam(f"p_{name}", type_=LargeBinary())


def held_lease() -> Select[Any]:
    """The row of a lease that still is at a token, locked for this transaction; no row when it is lost.

    On Postgres a lock that was waited for reads the row again, so the comparison is with the newest token.
    """
    return (
        select(LEASES.c.token)
        .where(LEASES.c.name == text("lease"), LEASES.c.token == number("token"), LEASES.c.holder != "")
        .with_for_update()
    )


HELD_LEASE: Final = held_lease()


class SqlPart:
    """What every part of the SQL control store stands on."""

    def __init__(self, database: SqlDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._compiled: dict[int, tuple[Executable, Statement]] = {}

    def _bind(self, core: Executable, values: dict[str, Any]) -> tuple[str, list[Any]]:
        known = self._compiled.get(id(core))
        if known is None:
            known = (core, statement(self._database.dialect, core))
            self._compiled[id(core)] = known  # holds the statement, so that its id stays its own
        named = {f"p_{name}": value for name, value in values.items()}
        named["now_us"] = self._clock.now_us()
        return known[1].sql, known[1].bind(named)

    async def _fetch(self, core: Executable, **values: Any) -> list[Row]:
        sql, params = self._bind(core, values)
        return await self._database.fetch(sql, params, deadline=self._deadline())

    async def _run(self, core: Executable, **values: Any) -> list[Row]:
        """One writing statement: atomic on its own, and committed when it returns."""
        sql, params = self._bind(core, values)
        return await self._database.run(sql, params, deadline=self._deadline())

    async def _do(self, transaction: SqlTransaction, core: Executable, **values: Any) -> list[Row]:
        sql, params = self._bind(core, values)
        return await transaction.run(sql, params)

    async def _do_many(self, transaction: SqlTransaction, core: Executable, rows: list[dict[str, Any]]) -> None:
        if rows:
            bound = [self._bind(core, row) for row in rows]
            await transaction.run_many(bound[0][0], [params for _, params in bound])

    async def _hold(self, transaction: SqlTransaction, token: Token) -> None:
        """Compare the fencing token in this transaction, and keep it the newest until the end; else LostLease."""
        lease = coordinator_lease(token.domain)
        if not await self._do(transaction, HELD_LEASE, lease=lease, token=token.value):
            raise lost(token)

    def _deadline(self, seconds: float = CALL_S) -> Deadline:
        return Deadline(self._clock, seconds)
