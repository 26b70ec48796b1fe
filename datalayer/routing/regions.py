"""Where users lie who have a home region: each slot belongs to a region, and so does each id.

The slot groups of a place are divided among the regions of its shards once, when it is made; from then on a group moves
between shards of its own region only. So the region of an id follows from its slot, a new user gets an id of its region,
and nobody has to be asked where a user lies. A user of another region than the id's - who has moved, or whose id was made
before there were regions - lies in one group of that region (``spot``), and under the id's own slot there is a pointer: a
tombstone that names the region.

One rule tells everything: a row lies where its region says. A tombstone elsewhere is a pointer, a live row elsewhere is
about to leave. (docs/adr/0016)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.domains.users import home_region
from datalayer.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.domains.record import Record
    from datalayer.routing.shards import Group, ShardMap


class Regions:
    """The regions of one place's slot groups. Fixed when the place is made."""

    def __init__(self, shard_map: ShardMap, region_of: Mapping[Group, str]) -> None:
        self._map = shard_map
        self._region_of: Final = dict(region_of)
        self._groups: dict[str, list[Group]] = {}
        for group in shard_map.groups:
            self._groups.setdefault(self._region_of[group], []).append(group)
        self.names: Final[Sequence[str]] = sorted(self._groups)

    def of_group(self, group: Group) -> str:
        """The region of a slot group."""
        return self._region_of[group]

    def of_id(self, key: bytes) -> str:
        """The region of an id."""
        return self._region_of[self.home(key)]

    def home(self, key: bytes) -> Group:
        """The group of an id's own slot: where a user lies or is pointed to from."""
        return self._map.group_of(key)

    def spot(self, key: bytes, region: str | None) -> Group:
        """The group where a user of a region lies; without a region, or with one that is not known here: ``home``."""
        home = self.home(key)
        groups = self._groups.get(region or "")
        if groups is None or region == self._region_of[home]:
            return home
        return groups[slot_of(key) % len(groups)]

    def spots(self, key: bytes) -> tuple[Group, ...]:
        """Every group where the user may lie, whatever its region."""
        return tuple(dict.fromkeys([self.home(key), *(self.spot(key, name) for name in self.names)]))

    def lies(self, record: Record, group: Group) -> bool:
        """Whether this is the user, and not a pointer or a row that is about to leave."""
        region = home_region(record)
        return region in {None, self._region_of[group]} or (region not in self._groups and not record.deleted)

    def points(self, record: Record, group: Group) -> bool:
        """Whether this only says where the user lies."""
        return record.kind == "user" and record.deleted and not self.lies(record, group)
