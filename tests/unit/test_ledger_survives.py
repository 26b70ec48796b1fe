import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest

from datalayer.errors import NotFound, Outcome, OutcomeUnknown, Unavailable
from datalayer.ids import uuid7_at
from datalayer.testing import values
from datalayer.testing.ledger import RECORD_BYTES, Board, Flag, Kind, Ledger, Op, Seen, read_ledgers
from datalayer.types import Message

ROOM = bytes(15) + b"\1"
KEY = ROOM + uuid7_at(1_700_000_000_000_000, 1).bytes
OTHER = ROOM + uuid7_at(1_700_000_000_000_001, 2).bytes
TOKEN = bytes(range(16))

_WRITER = """
import sys
from pathlib import Path
from datalayer.testing.ledger import Ledger, Op
ledger = Ledger.create(Path(sys.argv[1]), "killed")
for number in range(1, 1 << 30):
    key = bytes(16) + number.to_bytes(16, "big")
    ledger.acknowledge(ledger.begin(Op.APPEND, key), number)
    print(number, flush=True)
"""


def test_sigkill_of_a_writer_loses_nothing_it_had_recorded(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = 0
        while told < 500:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout.read().split())])
    events = list(read_ledgers(tmp_path))
    acknowledged = [event.version for event in events if event.kind is Kind.ACK]
    assert acknowledged[:told] == list(range(1, told + 1))
    assert len([event for event in events if event.kind is Kind.BEGIN]) - len(acknowledged) in {0, 1}


def test_a_write_is_on_record_before_it_is_called(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, "w1")
    ledger.begin(Op.EDIT, KEY, TOKEN)
    [event] = read_ledgers(tmp_path)
    assert (event.process, event.kind, event.op, event.key, event.token) == ("w1", Kind.BEGIN, Op.EDIT, KEY, TOKEN)


def test_every_fact_comes_back_as_it_was_told(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, "w1")
    before = time.monotonic_ns()
    ledger.acknowledge(ledger.begin(Op.DELETE, KEY), 7, absent=True)
    ledger.fail(ledger.begin(Op.EDIT, KEY, TOKEN), OutcomeUnknown())
    ledger.fail(ledger.begin(Op.EDIT, KEY, TOKEN), NotFound())
    ledger.fail(ledger.begin(Op.EDIT, KEY, TOKEN), RuntimeError("ours"))
    ledger.saw(ledger.look(Op.GET, KEY, expected=5), Seen(KEY, 9, TOKEN))
    ledger.saw(ledger.look(Op.GET, KEY), None)
    events = [event for event in read_ledgers(tmp_path) if event.kind is not Kind.BEGIN]
    assert all(before <= event.began_ns <= event.at_ns <= time.monotonic_ns() for event in events)
    delete, unknown, missing, wild, read, nothing = events
    assert (delete.kind, delete.version, delete.outcome) == (Kind.ACK, 7, Outcome.APPLIED)
    assert (unknown.text, unknown.outcome, unknown.flags) == ("OutcomeUnknown", Outcome.UNKNOWN, Flag.RETRYABLE)
    assert (missing.text, missing.outcome, missing.flags) == ("NotFound", Outcome.NOT_APPLIED, Flag.NONE)
    assert (wild.text, wild.outcome, wild.flags) == ("RuntimeError", Outcome.UNKNOWN, Flag.NONE)
    assert (read.version, read.expected, read.token, read.flags) == (9, 5, TOKEN, Flag.NONE)
    assert nothing.flags == Flag.ABSENT


def test_a_page_is_a_head_with_its_items(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, "r1", final=True)
    items = [Seen(OTHER, 2, TOKEN), Seen(KEY, 1, TOKEN, "torn")]
    ledger.saw_page(ledger.look(Op.HISTORY, ROOM + bytes(16)), items, complete=True)
    head, first, second = read_ledgers(tmp_path)
    assert (head.kind, head.items, head.flags) == (Kind.PAGE, 2, Flag.COMPLETE | Flag.FINAL)
    assert (first.key, second.key, second.flags) == (OTHER, KEY, Flag.TORN | Flag.FINAL)


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, "w1")
    ledger.begin(Op.EDIT, KEY, TOKEN)
    with (tmp_path / "w1.ledger").open("ab") as file:
        file.write(b"\1" * (RECORD_BYTES - 1))
    assert len(list(read_ledgers(tmp_path))) == 1


def test_a_restarted_process_may_not_go_on_in_the_old_file(tmp_path: Path) -> None:
    Ledger.create(tmp_path, "w1")
    with pytest.raises(FileExistsError):
        Ledger.create(tmp_path, "w1")


def test_a_reader_knows_what_another_process_had_acknowledged_before_its_read(tmp_path: Path) -> None:
    board = Board(tmp_path, own="r1")
    ledger = Ledger.create(tmp_path, "w1")
    ticket = ledger.begin(Op.APPEND, KEY, TOKEN)
    board.refresh()
    assert board.expected(KEY) == 0, "begun is not acknowledged"
    ledger.acknowledge(ticket, 5)
    board.refresh()
    assert board.expected(KEY) == 5
    assert list(board.recent) == [KEY]
    later = Ledger.create(tmp_path, "w2")
    later.acknowledge(later.begin(Op.EDIT, KEY, TOKEN), 9)
    ledger.fail(ledger.begin(Op.EDIT, KEY, TOKEN), Unavailable())
    board.refresh()
    assert (board.expected(KEY), board.live(ROOM)) == (9, [KEY[16:]])
    later.acknowledge(later.begin(Op.DELETE, KEY), 0)
    board.refresh()
    assert (board.expected(KEY), board.live(ROOM)) == (0, [])


def test_a_half_written_record_is_read_when_it_is_whole(tmp_path: Path) -> None:
    source = Ledger.create(tmp_path / "source", "w1")
    source.acknowledge(source.begin(Op.APPEND, KEY, TOKEN), 5)
    data = (tmp_path / "source/w1.ledger").read_bytes()
    board = Board(tmp_path, own="r1")
    with (tmp_path / "w1.ledger").open("ab", buffering=0) as file:
        file.write(data[: RECORD_BYTES + 60])
        board.refresh()
        assert board.expected(KEY) == 0
        file.write(data[RECORD_BYTES + 60 :])
        board.refresh()
        assert board.expected(KEY) == 5


def _message(value: values.Value, **changes: object) -> Message:
    fields: dict[str, object] = {
        "id": UUID(bytes=KEY[16:]),
        "conversation_id": UUID(bytes=KEY[:16]),
        "sender_id": values.sender_of(KEY),
        "body": value.body,
        "version": 1,
        "attributes": value.attributes,
    }
    return Message(**(fields | changes))  # type: ignore[arg-type]


def test_a_whole_value_proves_itself_and_a_torn_one_is_noticed() -> None:
    rng = random.Random(1)
    one, two = (values.compose(KEY, "w1", number, rng) for number in (1, 2))
    assert values.token_of(_message(one)) == one.token != two.token
    for torn in (
        _message(one, attributes=two.attributes),
        _message(one, body=one.body[:-1]),
        _message(one, sender_id=values.sender_of(OTHER)),
        _message(one, id=UUID(bytes=OTHER[16:])),
        _message(one, attributes={"hash": one.token.hex()}),
    ):
        with pytest.raises(values.Torn):
            values.token_of(torn)


def test_bodies_have_the_sizes_of_a_real_chat() -> None:
    rng = random.Random(2)
    sizes = sorted(len(values.compose(KEY, "w1", 1, rng).body.encode()) for _ in range(4000))
    assert sizes[0] < 24
    assert 100 < sizes[2000] < 250
    assert 900 < sizes[3600] < 1700
    assert 4000 < sizes[-1] < 10_000
    assert os.fsencode(values.compose(KEY, "w1", 1, rng).body)


def test_a_message_from_before_the_workload_is_known_by_its_content() -> None:
    plain = values.Value(b"", "imported", {})
    assert values.token_of(_message(plain)) != values.token_of(_message(plain, body="changed"))


def test_an_edit_of_a_message_from_before_the_workload_proves_itself_under_its_own_sender() -> None:
    value = values.compose(KEY, "w1", 1, random.Random(3), sender=False)
    assert values.token_of(_message(value, sender_id=UUID(int=77))) == value.token
