"""How fast rows move, for estimates: what was measured, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows a second of copying and of comparing, and where the figures come from."""

    copied_per_s: float
    compared_per_s: float
    source: str

    def capped(self, rows_per_s: float) -> Rate:
        """With the operator's cap of copying."""
        if rows_per_s >= self.copied_per_s:
            return self
        return Rate(rows_per_s, self.compared_per_s, f"--rate; comparing: {self.source}")


SECONDS_MIN: Final = 0.5
"""A shorter run says nothing about a longer one."""
_BENCHMARKS: Final = "docs/benchmarks.md (two cores); comparing is reckoned like copying"
_MEASURED: Final = {
    ("Postgres", "Cassandra"): 19_000.0,
    ("Postgres", "Postgres"): 62_500.0,
    ("sharded Postgres", "sharded Postgres"): 23_500.0,
}
_GUESS: Final = 10_000.0


def benchmarked(source: str, target: str) -> Rate:
    """The rate between two kinds of backend in the benchmarks, else a guess that says so."""
    found = _MEASURED.get((source, target))
    return Rate(found, found, _BENCHMARKS) if found else Rate(_GUESS, _GUESS, "a guess: no benchmark has this pair")


def seen(migration: str, copied: Mapping[str, Any] | None, compared: Mapping[str, Any] | None) -> Rate | None:
    """The rate that a migration of this deployment had, by what it has noted; None where it was too short to tell."""
    if copied is None or copied["seconds"] < SECONDS_MIN or not copied.get("copied"):
        return None
    rate = copied["copied"] / copied["seconds"]
    if compared is None or compared["seconds"] < SECONDS_MIN or not compared["authority_records"]:
        return Rate(rate, rate, f"as {migration} copied here; comparing is reckoned like copying")
    return Rate(rate, compared["authority_records"] / compared["seconds"], f"as {migration} ran here")
