"""The rows of the benchmarks have the shape they claim, and every tool reads the same ones."""

import csv
import itertools
import random
import sys
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks import dataset, shape
from benchmarks.peers import driver
from benchmarks.processes import ChildFailed, run
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.bulk import BATCH_BYTES_MAX, BATCH_ROWS_MAX, ROW_BYTES

ROWS = 20_000


def test_same_seed_same_rows() -> None:
    first, again, other = (list(itertools.islice(shape.records(500, seed), 100)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("rows", [0, 1, 777])
def test_as_many_rows_as_asked_for(rows: int) -> None:
    found = list(shape.records(rows))
    assert len(found) == rows
    assert len({record.key for record in found}) == rows


def test_conversations_and_bodies_are_as_skewed_as_in_life() -> None:
    found = list(shape.records(ROWS))
    sizes = sorted(Counter(record.key[:16] for record in found).values())
    assert 6 <= sizes[len(sizes) // 2] <= 10
    assert 100 < sizes[-1] <= 1408
    bodies = sorted(len(str(record.fields[1])) for record in found)
    assert 8 <= bodies[0] < 14
    assert 130 <= bodies[len(bodies) // 2] <= 190
    assert 10_000 < bodies[-1] < 160_000


def test_quantiles_are_drawn_as_given() -> None:
    drawn = shape.Drawn(((0, 1), (50, 10), (100, 1000)))
    chance = random.Random(1)
    values = sorted(drawn.draw(chance) for _ in range(4001))
    assert values[0] >= 1
    assert values[-1] <= 1000
    assert 9 <= values[2000] <= 11


def test_every_tool_reads_the_rows_that_were_written(tmp_path: Path) -> None:
    found = sorted(shape.records(300), key=lambda record: record.key)
    hostile = 'quotes " and \\\\ and \\n,\n\t, "end\\'
    found[0] = found[0]._replace(fields=(found[0].fields[0], hostile, *found[0].fields[2:]))
    path, plain = tmp_path / "rows.csv", tmp_path / "plain.csv"
    size = dataset._write_csv(found, path, plain)
    rows = driver.read(path, None)
    assert [row[3].encode() for row in rows] == [cells.encode(record) for record in found]
    assert size == sum(len(row[3].encode()) for row in rows)
    assert [(row[0].bytes + row[2].bytes, row[4]) for row in rows] == [(r.key, r.version) for r in found]
    assert [row[1] for row in rows] == [cells.bucket_of(record.key[16:]) for record in found]
    with plain.open(newline="", encoding="utf-8") as file:
        others = list(csv.reader(file, doublequote=False, escapechar="\\"))
    assert [[*map(str, row[:4])] for row in rows] == others


def test_the_driver_alone_batches_within_our_bounds_and_loses_no_row() -> None:
    rows = [driver.packed(row) for row in _rows(3000)]
    found = list(driver.batches(rows))
    assert sorted(row for batch in found for row in batch) == sorted(rows)
    for batch in found:
        assert len({row[:2] for row in batch}) == 1
        assert len(batch) <= BATCH_ROWS_MAX
        assert len(batch) == 1 or sum(len(r[3]) + ROW_BYTES for r in batch) <= BATCH_BYTES_MAX


def test_a_process_is_measured_and_a_bad_end_is_told(tmp_path: Path) -> None:
    ended = run([sys.executable, "-c", "print('noise'); print('{\"rows\": 3}')"], tmp_path / "good.log")
    assert ended.last_json() == {"rows": 3}
    assert 0 < ended.cpu_s <= 5
    assert ended.wall_s > 0
    assert ended.peak_rss_mib > 1
    bad = [sys.executable, "-c", "import sys; sys.exit('it broke')"]
    with pytest.raises(ChildFailed, match="it broke"):
        run(bad, tmp_path / "bad.log")
    assert run(bad, tmp_path / "bad.log", ends_with=(1,)).out == ""


def _rows(count: int) -> list[driver.Row]:
    records = sorted(shape.records(count), key=lambda record: record.key)
    return [
        (
            UUID(bytes=record.key[:16]),
            cells.bucket_of(record.key[16:]),
            UUID(bytes=record.key[16:]),
            cells.encode(record).decode(),
            record.version,
        )
        for record in records
    ]
