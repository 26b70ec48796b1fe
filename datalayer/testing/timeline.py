"""What a run looked like from outside: latencies and rates over time and by phase, from the ledger alone."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from datalayer.testing.ledger import Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.testing.ledger import Event
    from datalayer.testing.probe import Sample

BUCKET_S: Final = 0.5


class Call(NamedTuple):
    """One answered call."""

    began_ns: int
    ended_ns: int
    writes: bool


class Mark(NamedTuple):
    """Something worth a line in every plot: ``kind`` is kill, hold or step."""

    at_ns: int
    kind: str
    text: str


class Spread(NamedTuple):
    """Latencies of a set of calls, in milliseconds."""

    calls: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Stretch(NamedTuple):
    """A phase and when it ruled."""

    phase: str
    began_ns: int
    ended_ns: int


class Bucket(NamedTuple):
    """Half a second of one kind of call; ``at_s`` counts from the start of the run."""

    at_s: float
    spread: Spread


@dataclass(slots=True)
class Timeline:
    """A run: its answered calls, samples of the migration, and marks."""

    began_ns: int
    ended_ns: int
    calls: list[Call] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def seconds(self, at_ns: int) -> float:
        """Seconds since the start of the run."""
        return (at_ns - self.began_ns) / 1e9

    def stretches(self) -> list[Stretch]:
        """The phases in the order they ruled, as the samples saw them."""
        found: list[Stretch] = []
        for sample in self.samples:
            if found and found[-1].phase == sample.phase:
                found[-1] = found[-1]._replace(ended_ns=sample.at_ns)
                continue
            if found:
                found[-1] = found[-1]._replace(ended_ns=sample.at_ns)
            found.append(Stretch(sample.phase, sample.at_ns, sample.at_ns))
        if found:
            found[0] = found[0]._replace(began_ns=min(self.began_ns, found[0].began_ns))
            found[-1] = found[-1]._replace(ended_ns=max(self.ended_ns, found[-1].ended_ns))
        return found

    def buckets(self, *, writes: bool) -> list[Bucket]:
        """Latencies of reads or writes, by the half second in which they ended; the last, cut one is left out."""
        width = int(BUCKET_S * 1e9)
        found: defaultdict[int, list[int]] = defaultdict(list)
        for call in self.calls:
            if call.writes is writes and self.began_ns <= call.ended_ns <= self.ended_ns:
                found[(call.ended_ns - self.began_ns) // width].append(call.ended_ns - call.began_ns)
        whole = (self.ended_ns - self.began_ns) // width
        return [
            Bucket((number + 0.5) * BUCKET_S, spread_of(found[number])) for number in sorted(found) if number < whole
        ]

    def by_stretch(self, *, writes: bool) -> list[tuple[Stretch, Spread]]:
        """Latencies by phase, each call counted where it ended."""
        stretches = self.stretches()
        begins = [stretch.began_ns for stretch in stretches]
        found: defaultdict[int, list[int]] = defaultdict(list)
        for call in self.calls:
            at = bisect_right(begins, call.ended_ns) - 1
            if call.writes is writes and at >= 0 and call.ended_ns <= self.ended_ns:
                found[at].append(call.ended_ns - call.began_ns)
        return [(stretches[at], spread_of(found[at])) for at in sorted(found)]


def spread_of(nanoseconds: Sequence[int]) -> Spread:
    """Nearest-rank percentiles."""
    ordered = sorted(nanoseconds)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0)
    last = len(ordered) - 1

    def rank(share: float) -> float:
        return ordered[min(last, int(share * len(ordered)))] / 1e6

    return Spread(len(ordered), rank(0.5), rank(0.99), ordered[-1] / 1e6)


def calls_of(events: Iterable[Event]) -> list[Call]:
    """The answered calls of a ledger, without the final read."""
    answers, aside = {Kind.ACK, Kind.READ, Kind.PAGE}, Flag.FINAL | Flag.BASELINE
    return [
        Call(event.began_ns, event.at_ns, event.op.writes)
        for event in events
        if event.kind in answers and not event.flags & aside
    ]
