"""The oracle on worlds that keep their promises (never an alarm), and on worlds that break one (always found)."""

import random
from collections import Counter

import pytest

from datalayer.errors import Outcome
from datalayer.ids import uuid7_at
from datalayer.testing import oracle
from datalayer.testing.ledger import Flag, Kind, Op
from tests.unit.oracle_world import ROOM, World, run

SEEDS = 400


def test_no_alarm_on_any_linearizable_history_with_unknown_fates_and_overlapping_edits() -> None:
    for seed in range(SEEDS):
        findings = oracle.check(run(seed).events)
        assert [str(violation) for violation in findings.violations] == [], f"seed {seed}"
        assert findings.unread == 0


def test_the_histories_are_rich_enough_to_mean_something() -> None:
    sums: Counter[str] = Counter()
    for seed in range(50):
        findings = oracle.check(run(seed).events)
        sums.update(acknowledged=findings.acknowledged, answered=findings.answered, unknown=findings.unknown)
    assert sums["acknowledged"] > 1000
    assert sums["answered"] > 1500
    assert sums["unknown"] > 200


@pytest.mark.parametrize(
    ("fault", "kind", "share"),
    [
        ("old_value_read", "stale", 0.95),
        ("present_not_read", "stale", 0.95),
        ("deleted_read", "ghost", 0.8),
        ("edit_after_delete", "ghost", 0.8),
        ("refused_write_shows", "ghost", 0.3),
        ("write_dropped", "stale", 0.5),
        ("torn_read", "torn", 0.9),
        ("page_disordered", "torn", 0.9),
        ("final_missing", "lost", 0.9),
        ("final_reverted", "lost", 0.6),
    ],
)
def test_a_broken_promise_is_found(fault: str, kind: str, share: float) -> None:
    """``share``: of the worlds in which it broke; the rest hid it behind overlapping calls."""
    broken = found = 0
    for seed in range(100):
        world = run(seed, frozenset({fault}))
        if not world.broken:
            continue
        broken += 1
        found += oracle.check(world.events).count(kind) > 0
    assert broken >= 50
    assert found >= share * broken, f"{found} of {broken}"


KEY = ROOM + uuid7_at(1_700_000_000_000_000, 1).bytes
FIRST, SECOND = bytes([1] * 16), bytes([2] * 16)


class Told(World):
    """Histories placed by hand."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))

    def wrote(self, op: Op, began: int, ended: int | None, version: int = 0, token: bytes = FIRST) -> None:
        self.tell(Kind.BEGIN, op, KEY, began, began, token=token)
        if ended is not None:
            facts = {"version": version, "token": token, "outcome": Outcome.APPLIED}
            self.tell(Kind.ACK, op, KEY, began, ended, seq=self.seq, **facts)  # type: ignore[arg-type]

    def failed(self, op: Op, began: int, ended: int, text: str, flags: Flag, outcome: Outcome) -> None:
        self.tell(Kind.BEGIN, op, KEY, began, began, token=FIRST)
        self.tell(Kind.FAIL, op, KEY, began, ended, seq=self.seq, text=text, flags=flags, outcome=outcome)

    def looked(self, began: int, ended: int, version: int, token: bytes | None, flags: Flag = Flag.NONE) -> None:
        flags |= Flag.ABSENT if token is None else Flag.NONE
        self.tell(Kind.READ, Op.GET, KEY, began, ended, version=version, token=token or bytes(16), flags=flags)

    def kinds(self) -> list[str]:
        return [violation.kind for violation in oracle.check(self.events).violations]


APPENDED = 1_700_000_000_000_000


def test_a_killed_edit_may_show_or_not_but_not_vanish_once_it_showed() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.wrote(Op.EDIT, 10, None, token=SECOND)
    told.looked(20, 21, APPENDED, FIRST)
    told.looked(30, 31, APPENDED + 9, SECOND)
    assert told.kinds() == []
    told.looked(40, 41, APPENDED, FIRST)
    assert told.kinds() == ["stale"]


def test_a_killed_delete_may_show_or_not_but_what_it_took_does_not_come_back() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.wrote(Op.DELETE, 10, None)
    told.looked(20, 21, APPENDED, FIRST)
    told.looked(30, 31, 0, None)
    assert told.kinds() == []
    told.looked(40, 41, APPENDED, FIRST)
    assert told.kinds() == ["ghost"]


def test_absence_before_any_delete_began_is_not_excused_by_a_later_one() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.looked(5, 6, 0, None)
    told.wrote(Op.DELETE, 10, 11)
    assert told.kinds() == ["stale"]


def test_an_append_of_unknown_fate_that_was_repeated_is_one_write() -> None:
    told = Told()
    told.failed(Op.APPEND, 0, 5, "OutcomeUnknown", Flag.RETRYABLE, Outcome.UNKNOWN)
    told.looked(2, 3, APPENDED, FIRST)
    told.failed(Op.APPEND, 6, 7, "Unavailable", Flag.RETRYABLE, Outcome.NOT_APPLIED)
    told.looked(8, 9, APPENDED, FIRST)
    told.wrote(Op.APPEND, 10, 11, APPENDED)
    told.looked(20, 21, APPENDED, FIRST, Flag.FINAL)
    assert told.kinds() == []


def test_an_edit_overwritten_by_an_older_value_with_a_higher_version_is_lost() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.wrote(Op.EDIT, 10, 11, APPENDED + 50, token=SECOND)
    told.wrote(Op.EDIT, 20, 21, APPENDED + 40, token=bytes([3] * 16))
    told.looked(30, 31, APPENDED + 50, SECOND, Flag.FINAL)
    assert told.kinds() == ["lost", "order"]


def test_a_value_under_a_higher_version_is_a_repair_and_under_anothers_version_torn() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.looked(10, 11, APPENDED + 4, FIRST)
    findings = oracle.check(told.events)
    assert (findings.violations, findings.lifted) == ((), 1)
    told.wrote(Op.EDIT, 3, 4, APPENDED + 4, token=SECOND)
    assert "torn" in told.kinds()


@pytest.mark.parametrize(
    ("text", "flags", "kinds"),
    [
        ("Unavailable", Flag.RETRYABLE, []),
        ("Fenced", Flag.RETRYABLE, ["error"]),
        ("AlreadyExists", Flag.NONE, ["error"]),
        ("KeyError", Flag.NONE, ["error"]),
    ],
)
def test_only_retryable_errors_of_the_callers_kind_may_reach_a_caller(text: str, flags: Flag, kinds: list[str]) -> None:
    told = Told()
    told.failed(Op.EDIT, 0, 1, text, flags, Outcome.NOT_APPLIED)
    assert told.kinds() == kinds
    assert oracle.check(told.events).errors == {text: 1}


def test_an_acknowledged_key_that_the_final_read_left_out_is_no_success() -> None:
    told = Told()
    told.wrote(Op.APPEND, 0, 1, APPENDED)
    told.tell(Kind.READ, Op.GET, ROOM + uuid7_at(5, 5).bytes, 5, 6, flags=Flag.FINAL | Flag.ABSENT)
    findings = oracle.check(told.events)
    assert (findings.violations, findings.unread, findings.clean) == ((), 1, False)
