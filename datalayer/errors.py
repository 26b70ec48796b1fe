"""The error tree: every failure that leaves the library is one of these.

Two facts decide what a caller may do and stand on every error: ``retryable`` (the same call made again may
succeed) and ``outcome`` (whether a write took effect). A driver's own exception is only ever ``__cause__``, and
only after its text was scrubbed of secrets.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class Outcome(StrEnum):
    """What is known about the effect of a failed call."""

    APPLIED = "applied"
    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"


class DatalayerError(Exception):
    """Something went wrong in the data layer.

    ``message`` is one sentence and defaults to the first line of the class docstring; ``hint`` names the way out
    where a person can act.
    """

    retryable: ClassVar[bool] = False
    outcome: Outcome = Outcome.NOT_APPLIED

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


# --- what the caller asked for -------------------------------------------------------------------------------------


class InvalidArgument(DatalayerError, ValueError):
    """An argument is outside what the data layer accepts."""


class InvalidCursor(InvalidArgument):
    """A page cursor is damaged, or belongs to another method or other arguments."""


class InvalidToken(InvalidArgument):
    """A consistency token is damaged."""


class NotFound(DatalayerError, LookupError):
    """The record does not exist or was deleted."""


class AlreadyExists(DatalayerError):
    """A record with this id or unique value exists already."""

    def __init__(self, message: str | None = None, *, field: str = "id", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class Conflict(DatalayerError):
    """The record has changed since the version the caller expected."""

    def __init__(
        self,
        message: str | None = None,
        *,
        current_version: int | None = None,
        hint: str = "read the record again and repeat the change",
    ) -> None:
        super().__init__(message, hint=hint)
        self.current_version = current_version


class CrossShardError(InvalidArgument):
    """One write may not span two shards."""


# --- the world -----------------------------------------------------------------------------------------------------


class Unavailable(DatalayerError):
    """A backend did not answer; nothing was written."""

    retryable = True


class Overloaded(Unavailable):
    """Too many calls are waiting already; nothing was written."""


class LeaseExpired(Unavailable):
    """This process has not reached the control store in time to read safely during a cut-over."""


class DeadlineExceeded(Unavailable):
    """The call's deadline passed before an answer came; nothing was written."""


class OutcomeUnknown(DatalayerError):
    """The connection failed or the deadline passed after a write was sent: it may or may not have been applied.

    Appends, edits and deletes may be repeated with the same id: a repeat is the same write.
    """

    retryable = True
    outcome = Outcome.UNKNOWN


class Closed(DatalayerError):
    """This data layer is closed, or was inherited over a fork: open it again in this process."""


class Corrupt(DatalayerError):
    """Stored bytes are not those that were stored: their hash or size differs."""


# --- configuration and state of the deployment ---------------------------------------------------------------------


class ConfigurationError(DatalayerError):
    """The configuration is wrong."""


class MissingDependencyError(ConfigurationError, ImportError):
    """A driver is not installed."""


class PreconditionFailed(DatalayerError):
    """A precondition of this step does not hold; nothing was changed."""


class RoutingMismatch(PreconditionFailed):
    """Configuration, control store and backend disagree about where a domain lives."""


class SchemaBehind(PreconditionFailed):
    """A backend's schema is older than this version of the library needs."""


class SchemaAhead(PreconditionFailed):
    """A backend's or the control store's schema is newer than this version of the library knows."""


class MigrationError(DatalayerError):
    """A migration step failed."""


class NotFinished(MigrationError):
    """The migration stopped before its end; it can be resumed."""

    retryable = True


class LostLease(MigrationError):
    """Another coordinator has taken over this migration."""


class VerificationFailed(MigrationError):
    """Source and target differ."""


# --- between the library's own parts -------------------------------------------------------------------------------


class Fenced(DatalayerError):
    """The store refuses writes of this domain during a cut-over; the write was rolled back."""

    retryable = True


class StaleRoute(DatalayerError):
    """The routing this operation began with is no longer valid: read the route again."""

    retryable = True


class Quarantine(DatalayerError):
    """Some records cannot be stored by this store.

    ``rejected`` maps (kind, key) to the reason. All other records of the same call have been applied.
    """

    def __init__(self, rejected: Mapping[tuple[str, bytes], str]) -> None:
        super().__init__(f"{len(rejected)} record(s) cannot be stored: {next(iter(rejected.values()), '')}")
        self.rejected = dict(rejected)
