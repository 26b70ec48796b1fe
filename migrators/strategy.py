"""What one kind of movement contributes to a migration: its plan as data, its handlers, and what is asked of it.

The coordinator is the same for all: one lease with a fencing token, stages of recorded, idempotent actions, resume by
looking where the migration stands. A strategy with ``held`` cuts over in a hold of writes, by way of `armed`; the others
have no phase in which writes wait, and go from `dual` to `target` and back in one publication.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from datalayer.domains.movement import Movement, movement_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from enum import StrEnum

    from datalayer.control.base import Migration
    from datalayer.migrators.plan import Stage
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing

_HOMES: Final = {
    Movement.RECORDS: "records",
    Movement.SOFT: "soft",
    Movement.OBJECTS: "objects",
    Movement.PROJECTION: "projection",
}
"""Modules of this package, each with its STRATEGY; imported when a domain of that kind moves."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one kind of domain moves. Handlers are idempotent and return one line for the step log."""

    plan: Mapping[Stage, tuple[StrEnum, ...]]
    handlers: Mapping[Any, Callable[[Work], Awaitable[str]]]
    held: bool
    """Whether the cut-over passes through `armed` and a hold."""
    fit: Callable[[Places, str, Place], Awaitable[str]]
    """Asked before a migration is entered: PreconditionFailed where the (open) target cannot take the domain."""
    follow: Callable[[Work], Coroutine[Any, Any, None]]
    """Runs beside every stage until it is cancelled: keeps the mirror in step."""
    verify: Callable[[Work], Awaitable[dict[str, Any]]]
    """One comparison of both sides; a document with at least clean, ready, differences, undecided."""
    repair: Callable[[Work], Awaitable[dict[str, Any]]]
    """Mend what the last comparison found, then compare again: as ``verify``, with repaired and quarantined."""
    backlog: Callable[[Places, Migration, Routing], Awaitable[int | None]]
    """How much the mirror is behind, for status; None where that is unknown."""
    anew: bool = False
    """Whether the domain may move to the backend where it is: a new one is built there under another attempt."""
    quiet: frozenset[StrEnum] = frozenset()
    """Actions that are not recorded as steps: a record costs a write to the control store within a hold."""


def strategy_of(domain: str) -> Strategy:
    """The strategy of a domain or slot group. InvalidArgument for a name that is no domain."""
    home = importlib.import_module(f"datalayer.migrators.{_HOMES[movement_of(domain)]}")
    return cast("Strategy", home.STRATEGY)
