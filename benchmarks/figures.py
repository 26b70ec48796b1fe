"""Figures of several rounds: median, spread, and the ratio of two sides measured in the same rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity over the rounds of a run."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        if not values:
            raise ValueError("a figure needs a round")
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread_pct(self) -> float:
        """From the least to the most, in per cent of the median."""
        middle = self.median
        return 100.0 * (max(self.values) - min(self.values)) / middle if middle else 0.0

    def document(self) -> dict[str, Any]:
        return {
            "median": rounded(self.median),
            "min": rounded(min(self.values)),
            "max": rounded(max(self.values)),
            "spread_pct": round(self.spread_pct, 1),
            "rounds": [rounded(value) for value in self.values],
        }


def ratio(ours: Sequence[float], peers: Sequence[float]) -> Figure:
    """Ours over the peer's, round by round: what a round did to both sides falls out."""
    if len(ours) != len(peers):
        raise ValueError(f"{len(ours)} rounds of ours, {len(peers)} of the peer: a ratio needs pairs")
    return Figure.of([mine / theirs for mine, theirs in zip(ours, peers, strict=True)])


def rounded(value: float) -> float:
    """Four significant digits; large numbers whole."""
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Aim:
    """What a ratio should be: at least or at most ``bound``."""

    bound: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"
