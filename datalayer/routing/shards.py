"""The shard map: how a place on a sharded backend is cut into slot groups, and which group a key belongs to.

A slot group is a run of slots that lives and moves as one. It has tables of its own at one member of the backend, and
a routing of its own in the control store, under the name ``users/7/128-191`` (domain, attempt of the place, slots). So
a group moves by the very migration that moves a whole domain, and nothing that the engine does to one group's tables -
triggers, scans, a purge - touches another's (docs/adr/0012).
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from datalayer.errors import InvalidArgument
from datalayer.ids import SLOTS, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from datalayer.routing.route import Routing

T = TypeVar("T")
GROUP_TABLES: Final = 1_000_000_000
"""Attempt numbers from here on are those of a group's first tables: this, + 4096 x attempt of the place, + first slot."""
_NAME: Final = re.compile(r"([a-z]+)/(\d+)/(\d+)-(\d+)")


def base_domain(name: str) -> str:
    """The domain of a routing: "users" of users and of users/7/128-191."""
    return name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Group:
    """The slots ``first`` to ``last`` of a domain's place of that attempt."""

    domain: str
    attempt: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """What its routing, leases and migrations are called by."""
        return f"{self.domain}/{self.attempt}/{self.first}-{self.last}"

    @property
    def slots(self) -> str:
        """Its slots as an operator writes them."""
        return f"{self.first}-{self.last}"

    @property
    def number(self) -> int:
        """A number that no attempt and no other group of this domain has: its first tables and outer guards carry it."""
        return self.numbered(self.attempt)

    def numbered(self, attempt: int) -> int:
        """As ``number``, for the guard of another attempt at this group's tables."""
        return GROUP_TABLES + attempt * SLOTS + self.first

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse_group(name: str) -> Group | None:
    """The group of a routing's name; None for a whole domain's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    domain, attempt, first, last = found.groups()
    return Group(domain, int(attempt), int(first), int(last))


def cut(domain: str, attempt: int, groups: int) -> list[Group]:
    """All slots in so many groups of one size."""
    if groups < 1 or SLOTS % groups:
        raise InvalidArgument(f"{groups} slot groups cannot be made: {SLOTS} slots must divide into them evenly")
    size = SLOTS // groups
    return [Group(domain, attempt, first, first + size - 1) for first in range(0, SLOTS, size)]


class ShardMap:
    """The groups of one place, in the order of their slots."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups: Final[Sequence[Group]] = sorted(groups, key=lambda group: group.first)
        self._index: Final = array("H", [i for i, group in enumerate(self.groups) for _ in range(len(group))])

    @property
    def whole(self) -> bool:
        """Whether every slot belongs to exactly one group."""
        ends = [-1, *(group.last for group in self.groups)]
        return len(self._index) == SLOTS and all(g.first == end + 1 for g, end in zip(self.groups, ends, strict=False))

    def by_slot(self, items: Sequence[T]) -> list[T]:
        """One item for each slot, out of one for each group."""
        return [items[at] for at in self._index]

    def group_of(self, routing_key: bytes) -> Group:
        """The group of a key, by its first 16 bytes."""
        return self.groups[self._index[slot_of(routing_key)]]


def shard_map(domain: str, attempt: int, routings: Mapping[str, Routing]) -> ShardMap | None:
    """The map of a place as the control store has it; None before it is complete."""
    groups = (parse_group(name) for name in routings)
    found = ShardMap(g for g in groups if g is not None and (g.domain, g.attempt) == (domain, attempt))
    return found if found.whole else None


def share_out(groups: int, weights: Mapping[str, float]) -> list[str]:
    """A member for each group in turn: neighbours go to different members, each gets its share by weight."""
    given = dict.fromkeys(weights, 0)
    shares = []
    for _ in range(groups):
        member = min(
            weights, key=lambda name: ((given[name] + 1) / weights[name] if weights[name] else float("inf"), name)
        )
        given[member] += 1
        shares.append(member)
    return shares
