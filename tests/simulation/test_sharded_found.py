"""What the programmes over slot groups found, each in the one run that shows it."""

from functools import cache

import pytest

from datalayer.stores.memory.faults import Fault
from datalayer.testing.simulation.matrix import Case, Point, number
from datalayer.testing.simulation.sharded_matrix import ShardedMatrix
from datalayer.testing.simulation.world import Pair
from tests.simulation.takeover import send_home_half_moved, take_over, wake_when_armed

USERS = Pair(domain="users")


@cache
def _points(journey: str) -> list[Point]:
    return number(USERS, journey, ShardedMatrix).points


def _point(journey: str, action: str) -> Point:
    return next(point for point in _points(journey) if point.action == action)


@pytest.mark.parametrize("action", ["await_fleet", "retire_source", "remove_reverse"])
def test_a_group_whose_mover_died_after_it_published_complete_is_finished_by_the_next_run(action: str) -> None:
    journey = "move and purge, home"
    point = _point(journey, action)
    assert ShardedMatrix(USERS, journey, Case(USERS, journey, point, Fault.CRASH_BEFORE)).run().struck_at is not None


def test_old_tables_are_dropped_by_the_next_run_when_a_mover_died_before_its_purge() -> None:
    journey = "move and purge, home"
    point = _point(journey, "purge_source")
    assert ShardedMatrix(USERS, journey, Case(USERS, journey, point, Fault.CRASH_BEFORE)).run().struck_at is not None


def test_a_mover_that_slept_begins_no_group_after_somebody_took_its_domain_over() -> None:
    assert take_over("asleep") == ["LostLease"]


def test_a_mover_waits_while_its_domain_is_rolled_back() -> None:
    assert take_over("new") == ["PreconditionFailed"]


def test_a_domain_does_not_start_while_one_of_its_groups_is_half_moved() -> None:
    assert send_home_half_moved() == "PreconditionFailed"


def test_a_process_that_wakes_when_reads_go_to_shards_knows_their_groups_first() -> None:
    wake_when_armed()
