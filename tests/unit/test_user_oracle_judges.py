"""The oracle over users on worlds that keep their promises (never an alarm), and on worlds that break one (found)."""

import random
from collections import Counter
from uuid import UUID

import pytest

from datalayer.errors import Outcome
from datalayer.ids import id_time_us, uuid7_at
from datalayer.testing import user_oracle
from datalayer.testing.ledger import Flag, Kind, Op
from datalayer.testing.user_board import name_key
from datalayer.testing.user_oracle import UserFindings
from datalayer.testing.user_values import USERS, Sets
from tests.unit.user_world import START_US, UserWorld, run

SEEDS = 200


def test_no_alarm_on_any_linearizable_history_of_names() -> None:
    for seed in range(SEEDS):
        findings = user_oracle.check(run(seed).events)
        assert [str(violation) for violation in findings.violations] == [], f"seed {seed}"
        assert findings.rows.unread == 0
        assert findings.refused_free == 0


def test_the_histories_are_rich_enough_to_mean_something() -> None:
    sums: Counter[str] = Counter()
    for seed in range(50):
        findings = user_oracle.check(run(seed).events)
        sums.update(findings.refusals)
        sums.update(acknowledged=findings.rows.acknowledged, unknown=findings.rows.unknown)
    assert sums["acknowledged"] > 1000
    assert sums["unknown"] > 100
    assert sums["AlreadyExists.username"] > 300
    assert sums["Conflict"] > 100


@pytest.mark.parametrize(
    ("fault", "kind", "share"),
    [
        ("old_value_read", "stale", 0.9),
        ("present_not_read", "stale", 0.9),
        ("deleted_read", "ghost", 0.7),
        ("refused_write_shows", "ghost", 0.3),
        ("write_dropped", "stale", 0.5),
        ("name_given_twice", "duplicate", 0.8),
        ("name_not_found", "stale", 0.9),
        ("old_name_in_new_row", "torn", 0.8),
        ("compare_ignored", "lost", 0.7),
        ("refused_for_nothing", "refused", 0.9),
        ("final_missing", "lost", 0.9),
        ("final_name_gone", "torn", 0.9),
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
        found += user_oracle.check(world.events).count(kind) > 0
    assert broken >= 30
    assert found >= share * broken, f"{found} of {broken}"


ONE, TWO = (USERS + uuid7_at(START_US + n, n).bytes for n in (1, 2))


class Told(UserWorld):
    """Histories placed by hand; the version of user n's create is START_US + n."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))

    def wrote(self, key: bytes, began: int, ended: int | None, names: Sets, *, op: Op = Op.APPEND, at: int = 0) -> None:
        token = began.to_bytes(16, "big")
        self.tell(Kind.BEGIN, op, key, began, began, token=token, text=names.note)
        if ended is not None:
            version = {Op.APPEND: START_US + 1 + (key == TWO), Op.DELETE: 0}.get(op, at)
            facts = {"version": version, "token": token, "outcome": Outcome.APPLIED}
            text = "" if op is Op.DELETE else names.note
            self.tell(Kind.ACK, op, key, began, ended, seq=self.seq, text=text, **facts)  # type: ignore[arg-type]

    def refused(self, key: bytes, began: int, ended: int, names: Sets, text: str) -> None:
        self.tell(Kind.BEGIN, Op.APPEND, key, began, began, token=began.to_bytes(16, "big"), text=names.note)
        told = {"text": text, "outcome": Outcome.NOT_APPLIED}
        self.tell(Kind.FAIL, Op.APPEND, key, began, ended, seq=self.seq, **told)  # type: ignore[arg-type]

    def looked_up(self, name: str, number: int, began: int, ended: int, found: bytes | None) -> None:
        token = bytes(16) if found is None else found[16:]
        flags = Flag.ABSENT if found is None else Flag.NONE
        self.tell(Kind.READ, Op.LOOK_UP, name_key(name, number), began, ended, token=token, flags=flags)

    def judged(self) -> UserFindings:
        return user_oracle.check(self.events)

    def kinds(self) -> list[str]:
        return [violation.kind for violation in self.judged().violations]


def test_versions_of_placed_creates_are_their_ids_times() -> None:
    assert [id_time_us(UUID(bytes=key[16:])) for key in (ONE, TWO)] == [START_US + 1, START_US + 2]


def test_two_acknowledged_creates_of_one_name_are_a_duplicate() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(TWO, 1, 6, Sets(7, 0))
    assert told.kinds() == ["duplicate"]


def test_two_addresses_alike_are_a_duplicate_and_none_at_all_is_not() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(1, 0))
    told.wrote(TWO, 1, 6, Sets(2, 0))
    assert told.kinds() == []
    told.wrote(ONE, 10, 11, Sets(1, 5), op=Op.EDIT, at=START_US + 10)
    told.wrote(TWO, 12, 13, Sets(2, 5), op=Op.EDIT, at=START_US + 12)
    assert told.kinds() == ["duplicate"]


def test_a_name_that_was_handed_over_while_calls_overlapped_is_no_duplicate() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(ONE, 10, 30, Sets(8, 0), op=Op.EDIT, at=START_US + 10)
    told.wrote(TWO, 15, 20, Sets(7, 0))
    assert told.kinds() == []


def test_a_name_taken_again_after_a_delete_is_no_duplicate_and_before_it_one() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(ONE, 10, 11, Sets(), op=Op.DELETE)
    told.wrote(TWO, 12, 13, Sets(7, 0))
    assert told.kinds() == []
    early = Told()
    early.wrote(ONE, 0, 5, Sets(7, 0))
    early.wrote(TWO, 6, 8, Sets(7, 0))
    early.wrote(ONE, 10, 11, Sets(), op=Op.DELETE)
    assert early.kinds() == ["duplicate"]


def test_of_two_deletes_the_first_that_began_frees_the_name_however_the_ledgers_are_read() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(ONE, 40, 41, Sets(), op=Op.DELETE)  # found a tombstone; its process's ledger is read first
    told.wrote(ONE, 10, 11, Sets(), op=Op.DELETE)
    told.wrote(TWO, 12, 13, Sets(7, 0))
    assert told.kinds() == []


def test_a_rename_and_a_late_second_delete_do_not_make_the_address_a_duplicate() -> None:
    told, token = Told(), bytes([6] * 16)
    told.wrote(ONE, 0, 40, Sets(7, 7))
    told.tell(Kind.BEGIN, Op.EDIT, ONE, 60, 60, token=token, text=Sets(username=8).note)
    facts = {"version": START_US + 90, "token": token, "outcome": Outcome.APPLIED}
    told.tell(Kind.ACK, Op.EDIT, ONE, 60, 100, seq=told.seq, text=Sets(8, 7).note, **facts)  # type: ignore[arg-type]
    told.wrote(ONE, 231, 300, Sets(), op=Op.DELETE)  # found the tombstone; its file is read first
    told.wrote(ONE, 120, 290, Sets(), op=Op.DELETE)
    told.wrote(TWO, 192, 230, Sets(7, 7))
    assert told.kinds() == []


def test_a_killed_rename_may_have_freed_the_name() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(ONE, 10, None, Sets(8, 0), op=Op.EDIT)
    told.wrote(TWO, 20, 21, Sets(7, 0))
    told.looked_up("username", 7, 12, 13, None)
    assert told.kinds() == []


def test_nobody_found_while_somebody_surely_had_the_name_is_stale_and_lost_in_the_end() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.looked_up("username", 7, 4, 9, None)  # began before the create was acknowledged
    assert told.kinds() == []
    told.looked_up("username", 7, 6, 9, None)
    assert told.kinds() == ["stale"]


def test_a_refusal_is_right_wrong_or_cannot_be_told() -> None:
    told = Told()
    told.refused(TWO, 0, 1, Sets(7, 0), "AlreadyExists.username")
    assert told.kinds() == ["refused"]
    told = Told()
    told.wrote(ONE, 0, None, Sets(7, 0))
    told.refused(TWO, 50, 51, Sets(7, 0), "AlreadyExists.username")
    assert (told.kinds(), told.judged().refused_free) == ([], 0)
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.wrote(ONE, 10, 11, Sets(), op=Op.DELETE)
    told.refused(TWO, 50, 51, Sets(7, 0), "AlreadyExists.username")
    assert (told.kinds(), told.judged().refused_free) == ([], 1)


def test_refusals_are_counted_and_are_no_errors() -> None:
    told = Told()
    told.wrote(ONE, 0, 5, Sets(7, 0))
    told.refused(TWO, 6, 7, Sets(7, 0), "AlreadyExists.username")
    findings = told.judged()
    assert findings.refusals == {"AlreadyExists.username": 1}
    assert findings.errors == {}
    assert findings.told()["acknowledged"] == 1


def test_a_user_that_no_ledger_speaks_of_is_a_ghost_unless_others_have_made_users() -> None:
    told = Told()
    told.tell(Kind.READ, Op.GET, ONE, 0, 1, version=START_US + 1, token=bytes([7] * 16), text=Sets(7, 0).note)
    assert told.kinds() == ["ghost"]
    findings = user_oracle.check(told.events, alone=False)
    assert (findings.violations, findings.strangers) == ((), 1)


def test_a_page_that_begins_after_a_stranger_is_a_page_of_its_own() -> None:
    told = Told()
    told.wrote(TWO, 0, 1, Sets(7, 0))
    stranger = USERS + uuid7_at(START_US + 1, 5).bytes
    for number, key in enumerate((TWO, TWO)):
        times = (10 + 10 * number, 15 + 10 * number)
        told.tell(Kind.PAGE, Op.HISTORY, stranger, *times, token=key[16:], flags=Flag.OLDEST_FIRST, items=1)
        shown = {"version": START_US + 2, "token": bytes(16), "text": Sets(7, 0).note}
        told.tell(Kind.ITEM, Op.HISTORY, key, *times, seq=told.seq, **shown)  # type: ignore[arg-type]
    told.tell(Kind.READ, Op.GET, stranger, 30, 31, version=START_US + 1, token=bytes([7] * 16), text=Sets(9, 0).note)
    assert user_oracle.check(told.events, alone=False).violations == ()
