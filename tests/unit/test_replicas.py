"""Which replica may serve which read: the policy alone, told what was seen when."""

import math
import random

import pytest

from datalayer.routing.consistency import Position
from datalayer.routing.replicas import SAMPLES_MAX, Demand, Standings, cost
from datalayer.stores.replicated import LogPosition, ReplicaLook

SYSTEM, OTHER = 7_000_000_000_000_000_001, 7_000_000_000_000_000_002
FRESH = Demand(epoch=3, since=-math.inf)


def standings(*names: str) -> Standings:
    return Standings.of(names or ("r1",))


def primary(known: Standings, asked_at: float, lsn: int, *, timeline: int = 1, system: int = SYSTEM) -> None:
    known.saw_primary(asked_at, LogPosition(system, timeline, lsn))


def replica(
    known: Standings,
    lsn: int,
    *,
    name: str = "r1",
    timeline: int = 1,
    system: int = SYSTEM,
    run: str = "run 1",
    now: float = 0.0,
) -> None:
    known.saw_replica(name, now, ReplicaLook(LogPosition(system, timeline, lsn), run))


def able(known: Standings, demand: Demand = FRESH, *, max_lag_s: float = 1.0, now: float = 1.0) -> list[str]:
    needed = known.needed(demand)
    return [] if needed is None else known.able(needed, max_lag_s, now)


def test_nobody_is_able_before_both_sides_were_seen() -> None:
    known = standings()
    assert able(known) == []
    replica(known, 100)
    assert able(known) == []
    primary(known, 0.9, 100)
    assert able(known) == ["r1"]


def test_an_idle_primary_does_not_look_like_lag() -> None:
    known = standings()
    replica(known, 100)
    for tenth in range(1000):
        primary(known, tenth / 10, 100)
    assert known.lag_s("r1", 100.0) == pytest.approx(0.1)
    assert able(known, now=100.0) == ["r1"]


def test_lag_is_the_age_of_the_newest_position_that_was_replayed() -> None:
    known = standings()
    for second in range(10):
        primary(known, float(second), 100 + second)
    replica(known, 104)
    assert known.lag_s("r1", 9.5) == pytest.approx(5.5)
    assert known.lag_bytes("r1") == 5
    assert able(known, max_lag_s=5.0, now=9.5) == []
    assert able(known, max_lag_s=6.0, now=9.5) == ["r1"]
    replica(known, 109)
    assert able(known, max_lag_s=1.0, now=9.5) == ["r1"]


def test_a_replica_behind_everything_known_lags_by_no_one_knows_what() -> None:
    known = standings()
    primary(known, 1.0, 100)
    replica(known, 99)
    assert known.lag_s("r1", 2.0) == math.inf
    assert able(known, max_lag_s=1e9) == []


def test_a_primary_that_is_silent_ages_its_replicas() -> None:
    known = standings()
    primary(known, 0.0, 100)
    replica(known, 100)
    known.primary_lost("it does not answer")
    assert able(known, now=0.9) == ["r1"]
    assert able(known, now=1.1) == []
    assert able(known, max_lag_s=60.0, now=30.0) == ["r1"]


def test_an_own_write_needs_a_position_asked_for_strictly_after_it() -> None:
    known = standings()
    primary(known, 1.0, 100)
    replica(known, 100)
    mine = Demand(3, since=1.0)
    assert able(known, mine) == [], "asked at the same instant: it may have been asked before"
    primary(known, 1.25, 100)
    assert able(known, mine, now=1.3) == ["r1"]
    primary(known, 1.5, 130)
    assert able(known, Demand(3, since=1.3), now=1.6) == [], "not replayed yet"
    assert able(known, mine, now=1.6) == ["r1"]
    replica(known, 130)
    assert able(known, Demand(3, since=1.3), now=1.6) == ["r1"]


def test_a_token_of_the_same_routing_and_timeline_needs_its_own_position() -> None:
    known = standings()
    primary(known, 1.0, 100)
    replica(known, 100)
    token = Position(3, SYSTEM, 1, 120)
    assert able(known, Demand(3, -math.inf, [token])) == []
    replica(known, 120)
    assert able(known, Demand(3, -math.inf, [token])) == ["r1"]


@pytest.mark.parametrize(
    ("token", "served"),
    [
        (Position(4, SYSTEM, 1, 1), False),  # of a newer routing
        (Position(3, SYSTEM, 3, 1), False),  # of a newer timeline
        (Position(2, SYSTEM, 3, 1), False),
        (Position(3, OTHER, 1, 1), False),  # of another server under this routing
        (Position(2, OTHER, 1, 10**9), True),  # of the authority before: all of it was here at the flip
        (Position(2, SYSTEM, 2, 10**9), False),  # of a slow process under the routing before, same server
        (Position(3, SYSTEM, 1, 10**9), True),  # before the failover: what survived is here
    ],
)
def test_what_tokens_of_other_times_and_places_demand(token: Position, *, served: bool) -> None:
    known = standings()
    primary(known, 1.0, 100, timeline=2)
    replica(known, 100, timeline=2)
    assert able(known, Demand(3, -math.inf, [token])) == (["r1"] if served else [])


def test_positions_before_the_adoption_of_a_routing_do_not_count_for_anybody() -> None:
    known = standings()
    primary(known, 1.0, 100)
    replica(known, 100)
    adopted = Demand(9, since=1.5)
    assert able(known, adopted) == []
    primary(known, 1.75, 500)
    assert able(known, adopted, max_lag_s=60.0) == []
    replica(known, 500)
    assert able(known, adopted, now=1.8) == ["r1"]


def test_after_a_failover_old_positions_never_count_as_replayed() -> None:
    known = standings("r1", "r2")
    primary(known, 1.0, 1000)
    replica(known, 1000)
    replica(known, 1000, name="r2")
    primary(known, 2.0, 900, timeline=2)  # the standby that was promoted had not got the last of it
    assert able(known, max_lag_s=60.0, now=2.1) == [], "both still on the old timeline, one for ever"
    assert "timeline" in known.trouble("r1")
    primary(known, 3.0, 950, timeline=2)
    replica(known, 950, timeline=2)
    assert able(known, max_lag_s=60.0, now=3.1) == ["r1"]


def test_an_old_primary_that_answers_after_a_failover_is_not_believed() -> None:
    known = standings()
    primary(known, 1.0, 100, timeline=2)
    replica(known, 100, timeline=2)
    primary(known, 5.0, 100, timeline=1)
    assert known.lag_s("r1", 5.0) == pytest.approx(4.0)
    assert known.timeline == 2
    assert "timeline 1" in known.primary_trouble


def test_a_primary_that_lost_the_end_of_its_log_in_a_crash_is_measured_anew() -> None:
    known = standings()
    primary(known, 1.0, 100)
    primary(known, 2.0, 200)
    primary(known, 3.0, 150)
    replica(known, 150)
    assert known.lag_s("r1", 3.5) == pytest.approx(0.5)
    assert known.floor(0.5) == 150


def test_a_replica_of_another_system_is_left_out() -> None:
    known = standings()
    primary(known, 0.9, 100)
    replica(known, 10**9, system=OTHER)
    assert able(known) == []
    assert "another system" in known.trouble("r1")


def test_a_lost_replica_is_left_out_until_it_is_seen_again() -> None:
    known = standings("r1", "r2")
    primary(known, 0.9, 100)
    replica(known, 100)
    replica(known, 100, name="r2")
    known.lost("r1", "gone")
    assert able(known) == ["r2"]
    replica(known, 100)
    assert able(known) == ["r1", "r2"]


def test_a_restart_with_less_replayed_voids_what_was_known() -> None:
    known = standings()
    primary(known, 0.9, 100)
    replica(known, 100)
    replica(known, 60, run="run 2")
    assert able(known, max_lag_s=60.0) == []
    replica(known, 100, run="run 2")
    assert able(known) == ["r1"]


def test_a_timeline_once_reached_is_remembered_for_that_run_only() -> None:
    known = standings()
    primary(known, 0.9, 100, timeline=2)
    replica(known, 100, timeline=2)
    replica(known, 101, timeline=1)  # the receiver is away, and the last restartpoint was before the failover
    assert able(known) == ["r1"]
    replica(known, 101, timeline=1, run="run 2")
    assert able(known) == []


def test_what_is_remembered_is_bounded_and_forgets_the_oldest() -> None:
    known = standings()
    for step in range(SAMPLES_MAX + 50):
        primary(known, float(step), step)
    replica(known, 49)
    assert known.lag_s("r1", float(SAMPLES_MAX + 50)) == math.inf
    replica(known, 50)
    assert known.lag_s("r1", float(SAMPLES_MAX + 50)) == SAMPLES_MAX
    assert known.floor(-1.0) == 50, "older demands need more than they would have to"


def test_answers_out_of_order_do_not_count() -> None:
    known = standings()
    primary(known, 2.0, 200)
    primary(known, 1.0, 300)
    assert known.floor(0.5) == 200


def test_the_idler_and_the_fresher_is_cheaper() -> None:
    assert cost(0, 0.1, 1.0, 0.0) < cost(1, 0.1, 1.0, 0.0) < cost(2, 0.1, 1.0, 0.0)
    assert cost(1, 0.1, 1.0, 0.0) < cost(1, 0.9, 1.0, 0.0)
    draws = random.Random(1)
    first = sum(cost(0, 0.1, 1.0, draws.random()) < cost(0, 0.1, 1.0, draws.random()) for _ in range(1000))
    assert 400 < first < 600, "equals are taken by lot"


def test_whatever_was_seen_a_read_never_misses_a_write_before_it() -> None:
    """Random worlds in which the truth is known: the log, when each write was answered, what each replica shows."""
    served = 0
    for seed in range(300):
        served += _random_world(random.Random(seed))
    assert served > 1000, "the property is empty when nobody is ever served"


def _random_world(draws: random.Random) -> int:
    known = standings("r1", "r2")
    now, log, last_write, served = 0.0, 100, -1.0, 0
    written = 0  # the log's end when the last write was answered
    shows = {"r1": 0, "r2": 0}
    pending: list[tuple[float, int]] = []
    for _ in range(60):
        now += draws.random() * 0.2
        roll = draws.random()
        if roll < 0.1:
            log += draws.randrange(1, 20)
            last_write, written = now, log
        elif roll < 0.3:
            pending.append((now, log))  # the primary is asked; the answer comes later, maybe out of order
        elif roll < 0.5 and pending:
            asked_at, lsn = pending.pop(draws.randrange(len(pending)))
            primary(known, asked_at, lsn)
        elif roll < 0.75:
            name = draws.choice(["r1", "r2"])
            shows[name] = max(shows[name], log - draws.choice([0, 0, 3, 30]))
            replica(known, shows[name], name=name)
        else:
            for name in able(known, Demand(3, last_write), max_lag_s=60.0, now=now):
                assert shows[name] >= written, "a stale own read"
                served += 1
            bound_s = draws.random() * 3
            fresh = {name for name in known.replicas if known.lag_s(name, now) <= bound_s and not known.trouble(name)}
            assert fresh == set(known.able(0, bound_s, now)), "able and the lag that is shown are of one mind"
    return served
