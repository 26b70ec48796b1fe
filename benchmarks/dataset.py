"""The rows of a run: in the source's table, and as the CSV that every other tool reads."""

import csv
import gzip
import os
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stage import psql, psql_run
from datalayer.domains.messages import appended, to_record
from datalayer.domains.record import Record
from datalayer.importing.lines import message_of
from datalayer.stores.cassandra import cells
from datalayer.stores.postgres.copyformat import HEADER, TRAILER, message_row

CSV_COLUMNS = ("conversation_id", "bucket", "id", "record", "version")
DATA_VARIABLE = "DATALAYER_CHAT_DATA"
DEFAULT_DATA = Path(__file__).parents[1] / "../shared/data/chat.jsonl.gz"
BODY_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that are loaded: how many, how much text, and the CSV with the same rows."""

    name: str
    rows: int
    partitions: int
    mib: float
    csv: Path
    plain_csv: Path
    """The same without the version: cqlsh takes the columns of the table and no others."""


def real_data() -> Path | None:
    """The file of real chat messages, or None where there is none."""
    path = Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)).resolve()
    return path if path.exists() else None


def real_records(path: Path) -> Iterator[Record]:
    """The distinct messages of a file of chat lines, as an import stores them."""
    now_us = time.time_ns() // 1000
    seen: set[bytes] = set()
    with gzip.open(path) as lines:
        for line in lines:
            record = to_record(appended(message_of(line, body_max_bytes=BODY_MAX, now_us=now_us)[0]))
            if record.key not in seen:
                seen.add(record.key)
                yield record


def load(records: Iterable[Record], name: str, url: str, folder: Path) -> Dataset:
    """Put records into the source's messages and into a CSV, both in the order of the primary key."""
    ordered = sorted(records, key=lambda record: record.key)
    path, plain = folder / f"{name}.csv", folder / f"{name}-plain.csv"
    size = _write_csv(ordered, path, plain)
    argv = [psql(), "--no-psqlrc", "-q", "-c", "COPY messages FROM STDIN (FORMAT binary)", url]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert child.stdin is not None, "a pipe was asked for"
    child.stdin.write(HEADER)
    for record in ordered:
        child.stdin.write(message_row(record))
    child.stdin.write(TRAILER)
    child.stdin.close()
    if child.wait() != 0:
        raise RuntimeError(f"loading {name} into the source failed")
    psql_run(url, "VACUUM ANALYZE messages")
    psql_run(url, "CHECKPOINT")
    partitions = len({cells.partition_of(record.key) for record in ordered})
    return Dataset(name, len(ordered), partitions, round(size / 2**20, 1), path, plain)


def _write_csv(records: Iterable[Record], path: Path, plain: Path) -> int:
    """Columns of CSV_COLUMNS, quotes and backslashes escaped by a backslash; how many bytes the cells have."""
    size = 0
    with path.open("w", newline="", encoding="utf-8") as file, plain.open("w", newline="", encoding="utf-8") as other:
        write, write_plain = (
            csv.writer(one, doublequote=False, escapechar="\\", lineterminator="\n").writerow for one in (file, other)
        )
        for record in records:
            key = record.key
            cell = cells.encode(record)
            size += len(cell)
            row = (uuid.UUID(bytes=key[:16]), cells.bucket_of(key[16:]), uuid.UUID(bytes=key[16:]), cell.decode())
            write((*row, record.version))
            write_plain(row)
    return size
