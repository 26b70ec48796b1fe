"""All of it, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.shards import moves, reads, traffic, writes
from benchmarks.shards.place import GROUPS, SHARDS, fill, people, sharded, unsharded
from benchmarks.stage import Ground

FEW_GROUPS = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    users: int = 20_000
    """That are read, written and served during a rebalance."""
    moved_users: int = 50_000
    """That are moved: three rows each."""
    move_groups: tuple[int, ...] = (4, 64)
    rounds: int = 3
    calls: int = 600
    """Of one slice of reads; a third as many writes."""
    slices_a_round: int = 2

    def move_rounds(self, groups: int) -> int:
        """What a group costs beside its rows is much the same in every round: many groups need fewer of them."""
        return self.rounds if groups <= FEW_GROUPS else min(self.rounds, 2)


async def measure(ground: Ground, sizes: Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """Look-ups, calls, moves, and what is felt of a rebalance."""
    slices = sizes.rounds * sizes.slices_a_round
    found: dict[str, Any] = {"shards": SHARDS, "groups": GROUPS, "users": sizes.users, "rounds": sizes.rounds}
    found["look_ups"] = reads.look_ups((GROUPS, 4096), slices)
    say("shards: look-ups measured")
    users = people(sizes.users)
    place, plain = await sharded(ground), await unsharded(ground, users)
    await fill(place, users)
    say(f"shards: {sizes.users} users made")
    found["gets"] = await reads.gets(place, plain, users, calls=sizes.calls, slices=slices)
    say("shards: reads measured")
    found["writes"] = await writes.writes(place, plain, users, calls=max(sizes.calls // 3, 8), slices=slices)
    say("shards: writes measured")
    found["moves"] = [
        await moves.race(ground, sizes.moved_users, groups, sizes.move_rounds(groups), say)
        for groups in sizes.move_groups
    ]
    served = await sharded(ground, groups=traffic.GROUPS, all_on=SHARDS // 2)
    await fill(served, users)
    found["traffic"] = await traffic.traffic(served, users, min(sizes.rounds, 2), say)
    return found
