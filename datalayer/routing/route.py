"""The routing decision: one frozen value per domain and epoch, taken once at the start of every operation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """The phases of a migration, spelled alike in code, control store, command line and docs."""

    SOURCE = "source"
    DUAL = "dual"
    ARMED = "armed"
    HOLD = "hold"
    TARGET = "target"
    ARMED_BACK = "armed_back"
    HOLD_BACK = "hold_back"
    COMPLETE = "complete"


AT_REST: Final = frozenset({Phase.SOURCE, Phase.COMPLETE})
SOURCE_RULES: Final = frozenset({Phase.SOURCE, Phase.DUAL, Phase.ARMED, Phase.HOLD})
LEASE_BINDS: Final = frozenset({Phase.ARMED, Phase.HOLD, Phase.ARMED_BACK, Phase.HOLD_BACK})
JOURNAL_FIRST: Final = LEASE_BINDS
"""Phases in which a read looks into the authority's journal first: dirty -> authority, clean -> mirror."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a domain's data lies: a backend, and the attempt whose number its tables carry (0: the plain names)."""

    backend: str
    attempt: int = 0

    def relation(self, base: str) -> str:
        """The physical name of a table, keyspace table or index."""
        return base if self.attempt == 0 else f"{base}_{self.attempt}"


@dataclass(frozen=True, slots=True)
class Routing:
    """Who orders writes, who mirrors, how reads go - for one domain at one epoch."""

    domain: str
    epoch: int
    phase: Phase
    source: Place
    target: Place | None = None
    attempt: int = 0
    canary_pct: int = 100
    floor: int = 0
    """Every version allotted by a last-writer authority of this attempt is above this one. Of a soft domain: the longest
    lifetime that its migration waits for, microseconds; negative once the target may rule.
    """

    @property
    def authority(self) -> Place:
        """The place that orders writes."""
        if self.phase in SOURCE_RULES:
            return self.source
        assert self.target is not None, "a phase beyond hold has a target"
        return self.target

    @property
    def mirror(self) -> Place | None:
        """The other place while a migration lives, else None."""
        if self.phase in AT_REST:
            return None
        return self.target if self.phase in SOURCE_RULES else self.source

    @property
    def at_rest(self) -> bool:
        """Whether no migration touches this domain."""
        return self.phase in AT_REST

    @property
    def reads_journal_first(self) -> bool:
        """Whether reads follow the journal-first rule (and need a live lease)."""
        return self.phase in JOURNAL_FIRST
