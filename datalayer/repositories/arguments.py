"""Checks of what callers pass: one clear sentence for each mistake, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.record import canonical_json
from datalayer.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Clock
    from datalayer.repositories.limits import Limits

PAGE_MAX: Final = 1000
MANY_MAX: Final = 1000
ambient_deadline: ContextVar[Deadline | None] = ContextVar("datalayer_deadline", default=None)


class _Unset:
    """The value of a field that an update leaves as it is."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()


def deadline_of(clock: Clock, timeout: float | None, limits: Limits) -> Deadline:
    """The deadline of one call: its own timeout, else the context's deadline, else the default; at most the limit."""
    around = ambient_deadline.get()
    if timeout is None:
        return Deadline(clock, limits.timeout_s) if around is None else around
    if not 0 < timeout <= limits.timeout_max_s:
        raise InvalidArgument(f"timeout is {timeout} s; it must be above 0 and at most {limits.timeout_max_s:g}")
    own = Deadline(clock, timeout)
    return own if around is None or own.at < around.at else around


def as_uuid(value: UUID | str, what: str) -> UUID:
    """A UUID, also from its text."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise InvalidArgument(f"{what} must be a UUID, not {str(value)[:60]!r}") from None


def as_limit(limit: object, most: int = PAGE_MAX) -> int:
    """A page size."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise InvalidArgument(f"limit is {limit!r}; it must be a whole number from 1 to {most}")
    return limit


def as_ids(values: Iterable[UUID | str], what: str, most: int = MANY_MAX) -> tuple[UUID, ...]:
    """Several UUIDs, bounded."""
    if isinstance(values, str | bytes | UUID) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{what} must be a list of ids, not one {type(values).__name__}", hint=f"{what}=[id]")
    ids = tuple(as_uuid(value, what) for value in values)
    if len(ids) > most:
        raise InvalidArgument(f"{len(ids)} of {what} were passed; the limit is {most}")
    return ids


def as_attributes(value: Mapping[str, Any] | None) -> str:
    """Canonical JSON text of attributes."""
    if value is None:
        return "{}"
    if not hasattr(value, "items"):
        raise InvalidArgument(f"attributes must be a JSON object, not {type(value).__name__}")
    text = canonical_json(dict(value))
    if "\\u0000" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidArgument("attributes contain the character NUL or a lone surrogate")
    return text
