"""How each domain moves between backends: the engine has one strategy for each of these."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from datalayer.errors import InvalidArgument


class Movement(StrEnum):
    """What makes a move of a domain right."""

    RECORDS = "records"
    """A last-writer-wins map of versioned records: journal, backfill, verification, one short hold of writes."""
    SOFT = "soft"
    """State that its owners renew all the time: written to both sides for one longest lifetime, then read at the other."""
    OBJECTS = "objects"
    """Write-once bytes under names that are never used again; the catalogue in SQL says which backends hold each."""
    PROJECTION = "projection"
    """Derived from other domains: a new one is filled beside the old, then it is read instead."""


MOVEMENTS: Final[dict[str, Movement]] = {
    "users": Movement.RECORDS,
    "messages": Movement.RECORDS,
    "conversations": Movement.RECORDS,
    "listings": Movement.RECORDS,
    "sessions": Movement.RECORDS,
    "catalogue": Movement.RECORDS,
    "presence": Movement.SOFT,
    "typing": Movement.SOFT,
    "media": Movement.OBJECTS,
    "search": Movement.PROJECTION,
}
"""Every domain that may be placed on a backend."""
OPTIONAL: Final = frozenset({"sessions", "catalogue", "presence", "typing", "media", "search"})
"""Domains that a configuration need not have a backend for: whoever then uses one is told."""


INDEXED: Final[dict[str, tuple[str, ...]]] = {"messages": ("message",), "users": ("user",)}
"""The domains that search follows, and of each the kinds of records that have documents."""


def movement_of(domain: str) -> Movement:
    """How a domain or one of its slot groups moves. InvalidArgument for a name that is no domain."""
    base = domain.partition("/")[0]
    try:
        return MOVEMENTS[base]
    except KeyError:
        raise InvalidArgument(f"{base!r} is no domain", hint=f"one of: {', '.join(MOVEMENTS)}") from None
