"""The plan of a rebalance, and the shard map it works on."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.errors import InvalidArgument, PreconditionFailed
from datalayer.ids import SLOTS, slot_of
from datalayer.migrators.rebalance import Load, Move, plan_moves
from datalayer.routing.shards import GROUP_TABLES, Group, ShardMap, base_domain, cut, parse_group, share_out

MIB = 1 << 20


def laid(*shards: str, rows: int = 100) -> list[Load]:
    """Groups of equal weight, dealt out to these shards in turn."""
    groups = cut("users", 3, 64)
    return [Load(g, shards[i % len(shards)], rows, rows * 1000, rows / 10) for i, g in enumerate(groups)]


def after(loads: list[Load], moves: list[Move], by: str = "rows") -> Counter[str]:
    """What each shard holds when the moves are made."""
    to = {move.load.group: move.to for move in moves}
    held: Counter[str] = Counter()
    for load in loads:
        held[to.get(load.group, load.shard)] += load.rows if by == "rows" else load.size
    return held


def test_two_shards_become_four_of_one_size() -> None:
    loads = laid("s0", "s1")
    moves = plan_moves(loads, dict.fromkeys(("s0", "s1", "s2", "s3"), 1.0))
    assert after(loads, moves) == dict.fromkeys(("s0", "s1", "s2", "s3"), 1600)
    assert len(moves) == 32
    assert {move.to for move in moves} == {"s2", "s3"}, "nothing moves that is in its place"


def test_nothing_moves_where_every_shard_holds_its_share() -> None:
    assert plan_moves(laid("s0", "s1"), {"s0": 1.0, "s1": 1.0}) == []


def test_a_drained_shard_is_left_empty_and_the_others_even() -> None:
    loads = laid("s0", "s1", "s2", "s3")
    held = after(loads, plan_moves(loads, dict.fromkeys(("s0", "s1", "s2", "s3"), 1.0), drain=["s1"]))
    assert held["s1"] == 0
    assert max(held.values()) - min(held[s] for s in ("s0", "s2", "s3")) <= 100


def test_weights_are_shares() -> None:
    loads = laid("s0")
    held = after(loads, plan_moves(loads, {"s0": 1.0, "s1": 3.0}))
    assert held == {"s0": 1600, "s1": 4800}


def test_it_goes_by_what_is_asked_for() -> None:
    groups = cut("users", 0, 4)
    loads = [
        Load(g, "s0", rows, size, calls)
        for g, rows, size, calls in zip(groups, (9, 1, 1, 1), (1, 9, 1, 1), (1.0, 1.0, 9.0, 1.0), strict=True)
    ]
    weights = {"s0": 1.0, "s1": 1.0}
    stay = {
        by: {load.group.first for load in loads} - {m.load.group.first for m in plan_moves(loads, weights, by=by)}
        for by in ("rows", "bytes", "load")
    }
    heavy = {"rows": groups[0].first, "bytes": groups[1].first, "load": groups[2].first}
    for by, first in heavy.items():
        alone = stay[by] == {first} or first not in stay[by]
        assert alone, "the heavy group outweighs the three others together: it shares its shard with none"


def test_empty_groups_are_evened_out_by_slots() -> None:
    loads = laid("s0", rows=0)
    moves = plan_moves(loads, {"s0": 1.0, "s1": 1.0})
    assert len(moves) == 32


def test_a_drain_that_leaves_nobody_is_refused() -> None:
    with pytest.raises(PreconditionFailed, match="no shard is left"):
        plan_moves(laid("s0", "s1"), {"s0": 1.0, "s1": 0.0}, drain=["s0"])


def test_a_drain_that_does_not_fit_is_refused_naming_shard_and_bytes() -> None:
    loads = laid("s0", "s1")
    weights = {"s0": 1.0, "s1": 1.0}
    with pytest.raises(PreconditionFailed, match=r"'s1' would hold 6,400,000 bytes; its capacity is 6,000,000"):
        plan_moves(loads, weights, drain=["s0"], capacity={"s1": 6_000_000})
    assert plan_moves(loads, weights, drain=["s0"], capacity={"s1": 6_400_000})


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 2))
def test_any_plan_ends_near_the_shares(seed: int, shards: int, drained: int) -> None:
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(shards + drained)]
    weights = {name: rng.choice((1.0, 1.0, 2.0)) for name in names}
    drain = names[shards:]
    loads = [Load(g, rng.choice(names), rng.randint(50, 150)) for g in cut("users", 1, 64)]
    held = after(loads, plan_moves(loads, weights, drain=drain))
    whole = sum(weights[name] for name in names[:shards])
    for name in names[:shards]:
        assert abs(held[name] - sum(load.rows for load in loads) * weights[name] / whole) <= 150, (
            "at most one group off"
        )
    assert all(held[name] == 0 for name in drain)


def test_groups_cover_every_slot_once_and_find_their_keys() -> None:
    found = ShardMap(cut("users", 7, 64))
    assert found.whole
    assert sum(len(group) for group in found.groups) == SLOTS
    for number in range(500):
        key = number.to_bytes(16, "big")
        group = found.group_of(key)
        assert group.first <= slot_of(key) <= group.last


@pytest.mark.parametrize("left_out", [0, 17, 63])
def test_a_map_with_a_hole_or_an_overlap_is_not_whole(left_out: int) -> None:
    groups = cut("users", 7, 64)
    assert not ShardMap(groups[:left_out] + groups[left_out + 1 :]).whole
    assert not ShardMap([*groups, groups[left_out]]).whole


def test_a_group_is_found_again_by_its_name() -> None:
    group = Group("users", 7, 128, 191)
    assert group.name == "users/7/128-191"
    assert parse_group(group.name) == group
    assert parse_group("users") is None
    assert base_domain(group.name) == base_domain("users") == "users"
    assert group.number == GROUP_TABLES + 7 * SLOTS + 128


def test_slots_that_do_not_divide_evenly_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="60 slot groups"):
        cut("users", 0, 60)


def test_groups_are_dealt_out_by_weight() -> None:
    assert Counter(share_out(64, {"a": 1.0, "b": 3.0, "c": 0.0})) == {"a": 16, "b": 48}
