"""The driver's errors as the library's: what is known about the effect decides the class.

A write is "not applied" only where the server or the driver says that it never began: no host was tried, or the
coordinator refused it up front. Everything that ends a write after it was sent leaves its outcome unknown.
"""

from __future__ import annotations

import re
from typing import Final

import cassandra as driver
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.protocol import (
    ErrorMessage,
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    SyntaxException,
)

from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    StaleRoute,
    Unavailable,
)

# "table messages_7 does not exist" (4.1 and later), "unconfigured table messages_7" (older, and ScyllaDB).
_NO_TABLE: Final = re.compile(r"(table|keyspace) \S+ does not exist|unconfigured table", re.IGNORECASE)
_MESSAGE: Final = re.compile(r'message="(.*)"', re.DOTALL)


class Refused(DatalayerError):
    """The server refuses this statement as it is: repeating it is useless."""


def translate(error: BaseException, where: str, *, write: bool) -> DatalayerError:
    """The library's error of a driver's one; ``where`` names the backend. The driver's error becomes the cause."""
    translated = _translate(error, where, write=write)
    # An authentication error may name what was sent; it does not travel.
    if not _is_login(error):
        translated.__cause__ = error
    return translated


def _translate(error: BaseException, where: str, *, write: bool) -> DatalayerError:
    before = _not_begun(error, where)
    if before is not None:
        return before
    if write:
        return OutcomeUnknown(f"{where} did not confirm the write: {_kind(error)}")
    if isinstance(error, driver.ReadTimeout | driver.OperationTimedOut):
        return DeadlineExceeded(f"{where} did not answer a read in time")
    if isinstance(error, OverloadedErrorMessage):
        return Overloaded(f"{where} is overloaded")
    return Unavailable(f"{where} did not answer a read: {_kind(error)}")


def _not_begun(error: BaseException, where: str) -> DatalayerError | None:
    """The errors after which nothing can have been written."""
    result: DatalayerError | None = None
    if _is_login(error):
        result = PreconditionFailed(f"{where} refuses the login", hint="check user and password of its URL")
    elif isinstance(error, NoHostAvailable):
        result = Unavailable(f"{where} does not answer: {_reasons(error)}")
    elif isinstance(error, driver.UnresolvableContactPoints):
        result = Unavailable(f"{where} has no address: its host names cannot be resolved")
    elif isinstance(error, driver.Unavailable):
        result = Unavailable(f"{where} has too few live replicas for LOCAL_QUORUM")
    elif isinstance(error, driver.InvalidRequest | SyntaxException | driver.ConfigurationException):
        result = _refused(error, where)
    elif isinstance(error, driver.Unauthorized):
        result = PreconditionFailed(f"{where} does not permit this: {_said(error)}", hint="grant it to the user")
    elif isinstance(error, IsBootstrappingErrorMessage):
        result = Unavailable(f"{where} is still starting")
    return result


def _refused(error: BaseException, where: str) -> DatalayerError:
    said = _said(error)
    if _NO_TABLE.search(said):
        return StaleRoute(f"{where}: {said}")
    return Refused(f"{where} refuses the statement: {said}")


def _is_login(error: BaseException) -> bool:
    if isinstance(error, NoHostAvailable) and isinstance(error.errors, dict):
        return any(isinstance(one, driver.AuthenticationFailed) for one in error.errors.values())
    return isinstance(error, driver.AuthenticationFailed)


def _reasons(error: NoHostAvailable) -> str:
    if not isinstance(error.errors, dict) or not error.errors:
        return "no node is up"
    return "; ".join(sorted({f"{host}: {_kind(one)}" for host, one in error.errors.items()}))


def _kind(error: BaseException) -> str:
    """A few words; never the whole text of an unknown error."""
    if isinstance(error, driver.Timeout | driver.CoordinationFailure):
        counted = f"{error.received_responses} of {error.required_responses} replicas answered"
        return f"{type(error).__name__} ({counted})"
    if isinstance(error, driver.OperationTimedOut):
        return "no answer in time"
    if isinstance(error, ConnectionException):
        return "the connection broke or cannot be had"
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).rpartition("Last error: ")[2]
    if isinstance(error, ErrorMessage):
        return str(error.summary)
    return type(error).__name__


def _said(error: BaseException) -> str:
    text = str(error)
    match = _MESSAGE.search(text)
    return match[1] if match else text
