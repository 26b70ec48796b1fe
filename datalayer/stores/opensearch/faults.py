"""OpenSearch's errors as the library's: by status and type of an answer, and by the moment where there is none.

A write is "not applied" where the server said no, or where nothing was sent. Whatever ends a write after it was sent
leaves its outcome unknown. Nothing that the server says of a document is repeated: it may quote the document.
"""

from __future__ import annotations

from typing import Any, Final

from opensearchpy.exceptions import ConnectionError as NoConnection
from opensearchpy.exceptions import ConnectionTimeout, SSLError
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    StaleRoute,
    Unavailable,
)

CAUGHT: Final = (NoConnection, OSError)
"""What a connection of the driver may raise."""
MISSING: Final = "index_not_found_exception"
_FULL: Final = "cluster_block_exception"
_BUSY: Final = frozenset(
    {"es_rejected_execution_exception", "rejected_execution_exception", "circuit_breaking_exception"}
)


class Refused(DatalayerError):
    """The server refuses this request as it is: repeating it is useless."""


def never_sent(error: BaseException) -> bool:
    """Whether no byte of the request can have arrived: another host may be asked."""
    return isinstance(getattr(error, "info", None), NewConnectionError | ConnectTimeoutError)


def broken(error: BaseException, where: str, *, write: bool) -> DatalayerError:
    """The error for a call that got no answer."""
    if isinstance(error, SSLError):
        return PreconditionFailed(
            f"{where} presents a certificate that is not trusted", hint="give its CA as ca=FILE in the URL"
        )
    if never_sent(error):
        return Unavailable(f"{where} does not answer")
    if write:
        return OutcomeUnknown(f"{where} did not confirm a write")
    if isinstance(error, ConnectionTimeout):
        return DeadlineExceeded(f"{where} did not answer a read in time")
    return Unavailable(f"the connection to {where} broke during a read")


def answered(status: int, body: Any, where: str, *, write: bool) -> DatalayerError:
    """The error for an answer that is one."""
    kind = type_of(body)
    if status in {401, 403} and kind != _FULL:
        return PreconditionFailed(f"{where} refuses the login, or does not permit this", hint="check user and password")
    return item_error(status, kind, where) or _of_status(status, kind, where, write=write)


def item_error(status: int, kind: str, where: str) -> DatalayerError | None:
    """The error for what was not applied for a reason that has nothing to do with its content."""
    if kind == MISSING:
        return StaleRoute(f"{where}: the index is gone")
    if kind == _FULL:
        return Unavailable(
            f"{where} takes no writes: a block lies on the index or the cluster", hint="its disk may be full"
        )
    if status == 429 or kind in _BUSY:
        return Overloaded(f"{where} is overloaded: {kind or 'too many requests'}")
    return None


def type_of(body: Any) -> str:
    """The type that an error's body names; empty where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    causes = error.get("root_cause") or [error]
    return str(causes[0].get("type") or error.get("type") or "")


def _of_status(status: int, kind: str, where: str, *, write: bool) -> DatalayerError:
    if status < 500:
        return Refused(f"{where} refuses the request: {kind or status}")
    if write and status != 503:
        return OutcomeUnknown(f"{where} did not confirm a write: {kind or status}")
    return Unavailable(f"{where} cannot answer: {kind or status}")
