"""What may happen to one call between a client and its server, chosen from outside.

A call has one *effect*: a plain function that runs on the server's data at one instant. A fault decides whether the
effect happens and what the caller learns of it. The choice belongs to the caller of the store (a simulation, a crash
matrix); without one, every call simply works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datalayer.clock import Deadline


class ProcessCrash(BaseException):
    """The process ended here. Not an Exception: nothing in the engine may catch it and go on."""


class Fault(StrEnum):
    """What happens to one call."""

    NONE = "none"
    LOST_REQUEST = "lost_request"
    """No effect; a write is OutcomeUnknown, a read Unavailable."""
    LOST_REPLY = "lost_reply"
    """The effect happens; a write is OutcomeUnknown, a read Unavailable."""
    ERROR = "error"
    """No effect, and the caller is told so: Unavailable."""
    HANG = "hang"
    """No effect, and no word until the deadline: a write is OutcomeUnknown, a read DeadlineExceeded."""
    HANG_APPLIED = "hang_applied"
    """As HANG, but the effect happens."""
    PARTIAL = "partial"
    """The first half of a batch lands, then the connection breaks; as LOST_REQUEST where there is no batch."""
    CRASH_BEFORE = "crash_before"
    """The calling process dies before the request leaves."""
    CRASH_AFTER = "crash_after"
    """The calling process dies after the effect, before the reply."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the injector sees it. ``name`` is the port's method: ``apply``, ``journal.settle``, ``guard.seal``."""

    client: str
    server: str
    domain: str
    name: str
    write: bool
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class Injection:
    """The fault of one call, and how long request and reply travel (by the event loop's own time)."""

    fault: Fault = Fault.NONE
    request_s: float = 0.0
    reply_s: float = 0.0


Injector: TypeAlias = Callable[[Call], Injection]


def no_faults(_call: Call) -> Injection:
    """Every call works at once."""
    return Injection()
