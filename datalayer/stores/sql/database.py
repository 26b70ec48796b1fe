"""The one thing the SQL stores and the control store ask of a driver: run a statement, or a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from datalayer.errors import DatalayerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from datalayer.clock import Deadline

Dialect = Literal["sqlite", "postgresql"]
Row = tuple[Any, ...]


class UniqueViolation(DatalayerError):
    """A unique key is taken; the statement had no effect. ``constraint`` names it, or is empty where unknown."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"the unique key {constraint or 'of this table'} is taken")
        self.constraint = constraint


class SqlTransaction(Protocol):
    """One open read-write transaction (SQLite: BEGIN IMMEDIATE)."""

    async def run(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one statement; its rows, or [] when it returns none."""
        ...

    async def run_many(self, sql: str, params: Sequence[Sequence[Any]]) -> None:
        """Run one statement once per parameter set, pipelined where the driver can."""
        ...


class SqlDatabase(Protocol):
    """One database. SQL text uses positional parameters in the driver's own style (``?`` or ``%s``).

    Errors are already the library's: Unavailable (not applied), OutcomeUnknown (a write whose fate is open),
    DeadlineExceeded, Fenced (the fence's own SQLSTATE or message), StaleRoute (relation missing),
    ``UniqueViolation`` carrying the constraint's name, InvalidArgument (value out of range).
    """

    dialect: Dialect

    async def fetch(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        """One read in autocommit."""
        ...

    async def run(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        """One writing statement in autocommit; rows of its RETURNING."""
        ...

    def transaction(self, *, deadline: Deadline | None = None) -> AbstractAsyncContextManager[SqlTransaction]:
        """A read-write transaction: committed at the end of the block, rolled back on any exception."""
        ...

    def stream(self, sql: str, params: Sequence[Any] = (), *, batch: int = 1000) -> AsyncIterator[list[Row]]:
        """Rows of a long read, batch by batch, in bounded memory."""
        ...

    async def listen(self, channel: str, callback: Callable[[], None]) -> bool:
        """Call back on every notification; False where the database has none (then the caller polls)."""
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        ...
