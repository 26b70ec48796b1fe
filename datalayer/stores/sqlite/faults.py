"""SQLite's errors as the library's, by extended result code; only what has no code of its own is told by its text."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    OutcomeUnknown,
    PreconditionFailed,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.stores.sql.database import UniqueViolation

if TYPE_CHECKING:
    from collections.abc import Callable

FENCED: Final = "datalayer: writes are fenced during a cut-over"
REPLACED: Final = "datalayer: INSERT OR REPLACE and UPDATE OR REPLACE are refused during a migration"
"""What the guard's triggers say to everybody."""

ERRORS: Final = (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError)
"""All that the driver raises for a statement and its values."""

_PRIMARY: Final = 0xFF
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_UNIQUE: Final = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})
_BY_CODE: Final[dict[int, Callable[[str], DatalayerError]]] = {
    sqlite3.SQLITE_FULL: Unavailable,
    sqlite3.SQLITE_NOMEM: Unavailable,
    sqlite3.SQLITE_CANTOPEN: Unavailable,
    sqlite3.SQLITE_PERM: PreconditionFailed,
    sqlite3.SQLITE_AUTH: PreconditionFailed,
    sqlite3.SQLITE_READONLY: PreconditionFailed,
    sqlite3.SQLITE_NOTADB: PreconditionFailed,
    sqlite3.SQLITE_CORRUPT: PreconditionFailed,
    sqlite3.SQLITE_TOOBIG: InvalidArgument,
    sqlite3.SQLITE_MISMATCH: InvalidArgument,
    sqlite3.SQLITE_RANGE: InvalidArgument,
    sqlite3.SQLITE_IOERR: Unavailable,
    sqlite3.SQLITE_BUSY: lambda text: Unavailable(f"{text}: another process holds the lock"),
    sqlite3.SQLITE_LOCKED: lambda text: Unavailable(f"{text}: another process holds the lock"),
    sqlite3.SQLITE_PROTOCOL: lambda text: Unavailable(f"{text}: another process holds the lock"),
    sqlite3.SQLITE_INTERRUPT: lambda _: DeadlineExceeded("the statement was interrupted; nothing was written"),
}
_NO_TABLE: Final = "no such table"


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds a lock: nothing was done, and trying again is right."""
    return isinstance(error, sqlite3.OperationalError) and (_code(error) & _PRIMARY) in _BUSY


def translate(error: BaseException, where: str, *, may_have_committed: bool = False) -> DatalayerError:
    """The library's error for a driver's; ``where`` names the database file."""
    if isinstance(error, UnicodeError):
        return InvalidArgument("a text is not valid Unicode")
    if isinstance(error, OverflowError):
        return InvalidArgument("a number is outside what SQLite can hold (64 bits)")
    assert isinstance(error, (sqlite3.Error, sqlite3.Warning)), "sqlite3 raises its own errors only"
    code = _code(error)
    if code & _PRIMARY == sqlite3.SQLITE_CONSTRAINT:
        return _of_constraint(str(error), code, where)
    # the code of a missing table differs where another process dropped it meanwhile
    if code & _PRIMARY == sqlite3.SQLITE_ERROR or str(error).startswith(_NO_TABLE):
        return _of_text(str(error), where)
    if code & _PRIMARY == sqlite3.SQLITE_IOERR and may_have_committed:
        return OutcomeUnknown(f"{where}: {error}")
    # without a code it was raised by the driver itself, before SQLite saw the statement
    build = _BY_CODE.get(code & _PRIMARY, InvalidArgument if isinstance(error, sqlite3.DataError) else DatalayerError)
    return build(f"{where}: {error}")


def _of_constraint(text: str, code: int, where: str) -> DatalayerError:
    if code in _UNIQUE:
        return UniqueViolation(text.rpartition(": ")[2])
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        return Fenced() if text == FENCED else PreconditionFailed(f"{where}: {text}")
    return InvalidArgument(f"{where}: {text}")


def _of_text(text: str, where: str) -> DatalayerError:
    if text.startswith(_NO_TABLE):
        return StaleRoute(f"{where}: {text}: the route is old, or the schema was never created")
    if "no such column" in text or "no column named" in text:
        return SchemaBehind(f"{where}: {text}", hint="datalayer schema upgrade")
    return DatalayerError(f"{where}: {text}")


def _code(error: sqlite3.Error | sqlite3.Warning) -> int:
    return getattr(error, "sqlite_errorcode", 0) or 0
