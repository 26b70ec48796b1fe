"""Postgres' errors as the library's: by SQLSTATE, never by message text.

What a lost connection means depends on the moment: a statement that may have been committed is OutcomeUnknown; one
that was never sent, or whose transaction had no COMMIT yet, was not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from datalayer.errors import (
    ConfigurationError,
    DatalayerError,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    LostLease,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.stores.postgres.connection import TimeUp, Unconfirmed
from datalayer.stores.sql.database import UniqueViolation

if TYPE_CHECKING:
    from collections.abc import Callable

FENCED: Final = "DLF01"
TRUNCATE_REFUSED: Final = "DLF02"
LOST_LEASE: Final = "DLF03"
ENDED: Final = "DLF04"
"""Our own SQLSTATEs, raised by the guard's functions: a fence, a TRUNCATE, an older token, an attempt that ended."""

CAUGHT: Final = (psycopg.Error, TimeUp, Unconfirmed, UnicodeError)
"""What a statement of the driver may raise, for ``translate``."""
LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_HINT_SCHEMA: Final = "datalayer schema upgrade"
_READ_ONLY: Final = "session is read-only"
"""libpq's own sentence for target_session_attrs=read-write; there is no code for it."""
_HINT_POOLER: Final = "behind PgBouncer in transaction mode add ?pgbouncer=true to the URL"

_BY_STATE: Final[dict[str, Callable[[str], DatalayerError]]] = {
    FENCED: lambda _: Fenced(),
    TRUNCATE_REFUSED: PreconditionFailed,
    LOST_LEASE: lambda _: LostLease(),
    ENDED: lambda _: StaleRoute("this attempt of the migration has ended"),
    "42P01": lambda text: StaleRoute(f"{text}: the route is old, or the schema was never created"),
    "3F000": StaleRoute,
    "42883": lambda text: SchemaBehind(text, hint=_HINT_SCHEMA),
    "42703": lambda text: SchemaBehind(text, hint=_HINT_SCHEMA),
    "42501": lambda text: PreconditionFailed(
        text, hint="the role of the URL must own the tables: a migration makes triggers and tables"
    ),
    "3D000": PreconditionFailed,
    "26000": lambda text: ConfigurationError(text, hint=_HINT_POOLER),
    "42P05": lambda text: ConfigurationError(text, hint=_HINT_POOLER),
    "57014": lambda _: DeadlineExceeded("the statement was cancelled; nothing was written"),
    "55P03": Unavailable,
    "25006": lambda text: Unavailable(text, hint="this server is a standby"),
    "53300": Overloaded,
}
_BY_CLASS: Final[dict[str, Callable[[str], DatalayerError]]] = {
    "08": Unavailable,
    "22": InvalidArgument,
    "23": InvalidArgument,
    "28": PreconditionFailed,
    "40": Unavailable,
    "53": Unavailable,
    "54": InvalidArgument,
    "55": Unavailable,
    "57": Unavailable,
    "58": Unavailable,
}
_HANGS_UP: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""FATAL: the session ends. A commit may have happened just before (also 57P01: a commit waiting for a standby)."""


def translate(error: Exception, where: str, *, may_have_committed: bool) -> DatalayerError:
    """The library's error for a driver's; ``where`` names the backend without a secret."""
    if isinstance(error, DatalayerError):
        return error
    if isinstance(error, TimeUp | Unconfirmed):
        return _late(error, where, may_have_committed=may_have_committed)
    if isinstance(error, UnicodeError):
        return InvalidArgument("a text is not valid Unicode")
    assert isinstance(error, psycopg.Error), "psycopg raises its own errors only"
    if error.sqlstate is None:
        return _without_state(error, where, may_have_committed=may_have_committed)
    return _of_state(error, error.sqlstate, where, may_have_committed=may_have_committed)


def _late(error: TimeUp | Unconfirmed, where: str, *, may_have_committed: bool) -> DatalayerError:
    if isinstance(error, Unconfirmed):
        return OutcomeUnknown(f"{where} committed the write, but its synchronous standby did not confirm it")
    if may_have_committed and not error.undone:
        return OutcomeUnknown(f"the deadline passed before {where} confirmed the write")
    return DeadlineExceeded(f"{where} did not answer in time; nothing was written")


def _of_state(error: psycopg.Error, state: str, where: str, *, may_have_committed: bool) -> DatalayerError:
    if state == "23505":
        return UniqueViolation(error.diag.constraint_name or "")
    if may_have_committed and (state in _HANGS_UP or state[:2] == "08" or state == "40003"):
        return OutcomeUnknown(f"{where} hung up before it confirmed the write ({state})")
    text = f"{where}: {error.diag.message_primary or 'no message'} ({state})"
    build = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    return DatalayerError(text) if build is None else build(text)


def _without_state(error: psycopg.Error, where: str, *, may_have_committed: bool) -> DatalayerError:
    if isinstance(error, psycopg.DataError):
        return InvalidArgument("a value cannot be stored by Postgres (NUL in a text, or out of range)")
    if not isinstance(error, LOST):
        return DatalayerError(f"{where}: the driver refused the call ({type(error).__name__})")
    if may_have_committed:
        return OutcomeUnknown(f"the connection to {where} was lost before it confirmed the write")
    return Unavailable(f"the connection to {where} was lost; nothing was written")


def translate_connect(error: Exception, where: str) -> DatalayerError:
    """The library's error for a connection that could not be made. Nothing was sent."""
    if isinstance(error, (TimeUp, TimeoutError, psycopg.errors.ConnectionTimeout)):
        return DeadlineExceeded(f"{where} did not answer in time")
    if not isinstance(error, psycopg.Error):
        return Unavailable(f"{where} cannot be reached ({type(error).__name__})")
    # libpq gives no SQLSTATE for a refused log-in: what it says is the server's own sentence, without the password
    text = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    said = text.rpartition("FATAL:")[2].strip() if "FATAL:" in text else ""
    if any(word in said for word in ("authentication failed", "does not exist", "pg_hba", "not permitted")):
        return PreconditionFailed(f"{where} refuses the log-in: {said}", hint="check user, password and database")
    if text.endswith(_READ_ONLY):
        return Unavailable(f"{where} is a standby, or takes no writes")
    if "too many clients" in said or "remaining connection slots" in said:
        return Overloaded(f"{where}: {said}")
    return Unavailable(f"{where} does not accept connections" + (f": {said}" if said else ""))
