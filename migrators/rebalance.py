"""Which slot groups should move so that every shard holds its share: a plan, made from what lies where now.

Pure: loads in, moves out. The share of a shard is its weight's part of the whole; a shard that is drained has none.
Groups leave the fullest shard for the emptiest, each time the one that brings both closest to their shares, until no
move brings an improvement: the greedy rule for number partitioning, which leaves at most about half a group too much
anywhere and moves nothing that was in its place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from datalayer.errors import PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from datalayer.routing.shards import Group

By = Literal["rows", "bytes", "load", "slots"]
LEAST_GAIN: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Load:
    """What one slot group weighs, and the shard where it lies."""

    group: Group
    shard: str
    rows: int
    size: int = 0
    """Bytes on the disk; 0 where the product does not tell."""
    calls: float = 0.0
    """Statements a second that read or changed it; 0 where the product does not tell."""


@dataclass(frozen=True, slots=True)
class Move:
    """One slot group that should go from one shard to another."""

    load: Load
    to: str


def plan_moves(
    loads: Sequence[Load],
    weights: Mapping[str, float],
    *,
    drain: Collection[str] = (),
    by: By = "rows",
    capacity: Mapping[str, int] | None = None,
) -> list[Move]:
    """The moves that bring every shard to its share.

    PreconditionFailed when nothing is left to hold the data, or a shard would hold more bytes than its ``capacity``.
    """
    shares = {shard: 0.0 if shard in drain else weight for shard, weight in weights.items()}
    whole = sum(shares.values())
    if not whole:
        raise PreconditionFailed("no shard is left that may hold anything", hint="drain fewer, or give one a weight")
    cost = _costs(loads, by)
    total = sum(cost.values())
    over = {shard: -total * share / whole for shard, share in shares.items()}
    """How much each shard holds beyond its share."""
    held: dict[str, list[Load]] = defaultdict(list)
    for load in loads:
        held[load.shard].append(load)
        over[load.shard] = over.get(load.shard, 0.0) + cost[load.group]
    moves = []
    leaving = [shard for shard in held if not shares.get(shard)]
    while (found := _best(held, over, shares, cost, leaving)) is not None:
        load, to = found
        held[load.shard].remove(load)
        over[load.shard] -= cost[load.group]
        over[to] += cost[load.group]
        moves.append(Move(load, to))
    check_capacity(loads, moves, capacity or {})
    return moves


def plan_by_region(
    loads: Sequence[Load], weights: Mapping[str, float], regions: Mapping[str, str], **how: Any
) -> list[Move]:
    """As ``plan_moves``, each region for itself: no group leaves its own. Without regions there is one."""
    moves: list[Move] = []
    for region in sorted({regions.get(shard, "") for shard in weights}):
        mine = {shard: weight for shard, weight in weights.items() if regions.get(shard, "") == region}
        held = [load for load in loads if regions.get(load.shard, "") == region]
        if not held:
            continue
        if region and not any(weight for shard, weight in mine.items() if shard not in how.get("drain", ())):
            raise PreconditionFailed(
                f"no shard of region {region!r} would be left to hold its slots, which never leave it",
                hint="add a shard of that region first, or give another of its shards a weight",
            )
        moves += plan_moves(held, mine, **how)
    return moves


def check_capacity(loads: Sequence[Load], moves: Sequence[Move], capacity: Mapping[str, int]) -> None:
    """PreconditionFailed naming the shard that the moves would fill beyond its capacity."""
    gains: dict[str, int] = defaultdict(int)
    for move in moves:
        gains[move.to] += move.load.size
    for shard, gain in sorted(gains.items()):
        # What leaves a shard is dropped only when it is purged: it takes room until then.
        held = sum(load.size for load in loads if load.shard == shard)
        if shard in capacity and held + gain > capacity[shard]:
            raise PreconditionFailed(
                f"shard {shard!r} would hold {held + gain:,} bytes; its capacity is {capacity[shard]:,}",
                hint="add a shard, drain fewer, or raise its capacity in the configuration",
            )


def _best(
    held: Mapping[str, Sequence[Load]],
    over: Mapping[str, float],
    shares: Mapping[str, float],
    cost: Mapping[Group, float],
    leaving: Sequence[str],
) -> tuple[Load, str] | None:
    to = min((shard for shard, share in shares.items() if share), key=lambda shard: (over[shard], shard))
    for shard in leaving:
        if held[shard]:
            # The heaviest first: the lighter ones then even out what is left.
            return max(held[shard], key=lambda load: (cost[load.group], -load.group.first)), to
    source = max(held, key=lambda shard: (over[shard], shard))

    def gain(load: Load) -> float:
        moved = cost[load.group]
        return over[source] ** 2 + over[to] ** 2 - (over[source] - moved) ** 2 - (over[to] + moved) ** 2

    best = max(held[source], key=lambda load: (gain(load), -load.group.first), default=None)
    return None if best is None or gain(best) <= LEAST_GAIN else (best, to)


def _costs(loads: Sequence[Load], by: By) -> dict[Group, float]:
    if by == "rows":
        found = {load.group: float(load.rows) for load in loads}
    elif by == "bytes":
        found = {load.group: float(load.size) for load in loads}
    elif by == "load":
        found = {load.group: load.calls for load in loads}
    else:
        found = {load.group: float(len(load.group)) for load in loads}
    if not any(found.values()):
        return {load.group: float(len(load.group)) for load in loads}  # empty: every slot is as good as another
    return found
