"""The bare Cassandra driver as a process of its own: rows from memory, unlogged batches per partition, many in flight.

    python -m benchmarks.peers.driver URL TABLE CSV --mode bound|packed --in-flight N [--rows N]

``bound`` binds each row by the driver's prepared statement, as its documentation shows; ``packed`` hands over values
that were serialised before the clock started, the least any client of this driver can do. The connection is made with
the same choices as ours (protocol, buffers, no retries), the batches have our bounds. Says one JSON object.
"""

import argparse
import csv
import gc
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from cassandra.query import BatchStatement, BatchType, BoundStatement

from datalayer.settings import parse_settings
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra import cluster as clusters
from datalayer.stores.cassandra.bulk import BATCH_BYTES_MAX, BATCH_ROWS_MAX, ROW_BYTES
from datalayer.stores.cassandra.cluster import Target

Row = tuple[Any, ...]
PUT = "INSERT INTO {table} (conversation_id, bucket, id, record) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
TIMEOUT_S = 30.0


def read(path: Path, rows: int | None) -> list[Row]:
    """The rows of a CSV as the driver binds them."""
    csv.field_size_limit(1 << 30)
    found: list[Row] = []
    with path.open(newline="", encoding="utf-8") as file:
        for conversation, bucket, ident, record, version in csv.reader(file, doublequote=False, escapechar="\\"):
            found.append((UUID(conversation), int(bucket), UUID(ident), record, int(version)))
            if len(found) == rows:
                break
    return found


def packed(row: Row) -> Row:
    """The row's values, serialised."""
    conversation, bucket, ident, record, version = row
    return (conversation.bytes, cells.pack_int(bucket), ident.bytes, record.encode(), cells.pack_bigint(version))


def batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one partition together, within the bounds that the data layer has."""
    by_partition: dict[tuple[Any, int], list[Row]] = {}
    for row in rows:
        by_partition.setdefault((row[0], row[1]), []).append(row)
    for found in by_partition.values():
        batch: list[Row] = []
        size = 0
        for row in found:
            row_size = len(row[3]) + ROW_BYTES
            if batch and (len(batch) >= BATCH_ROWS_MAX or size + row_size > BATCH_BYTES_MAX):
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += row_size
        yield batch


def statement(prepared: Any, rows: list[Row], *, bind: bool) -> Any:
    """One insert, or a batch of them."""
    if len(rows) == 1 and bind:
        return prepared.bind(rows[0])
    batch = BatchStatement(batch_type=BatchType.UNLOGGED)
    if bind:
        for row in rows:
            batch.add(prepared, row)
        return batch
    partition = (rows[0][0], int.from_bytes(rows[0][1], "big"))
    carrier = BoundStatement(prepared, routing_key=cells.routing_key(partition))
    carrier.values = rows[0]
    if len(rows) == 1:
        return carrier
    for row in rows:
        carrier.values = row
        batch.add(carrier)
    return batch


class Sender:
    """At most ``in_flight`` requests on their way; the first error ends it."""

    def __init__(self, session: Any, in_flight: int) -> None:
        self._session = session
        self._in_flight = in_flight
        self._room = threading.Semaphore(in_flight)
        self._failure: BaseException | None = None

    def send(self, statement: Any) -> None:
        self._room.acquire()
        if self._failure is not None:
            raise self._failure
        self._session.execute_async(statement, timeout=TIMEOUT_S).add_callbacks(self._done, self._failed)

    def finish(self) -> None:
        """Wait for every answer."""
        for _ in range(self._in_flight):
            self._room.acquire()
        if self._failure is not None:
            raise self._failure

    def _done(self, _: object) -> None:
        self._room.release()

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._room.release()


def measure(session: Any, table: str, rows: list[Row], *, bind: bool, in_flight: int) -> dict[str, Any]:
    """Send all rows; how long it took, and what CPU of this process."""
    prepared = session.prepare(PUT.format(table=table))
    if not bind:
        rows = [packed(row) for row in rows]
    gc.freeze()
    sender = Sender(session, in_flight)
    cpu, began = time.process_time(), time.perf_counter()
    for batch in batches(rows):
        sender.send(statement(prepared, batch, bind=bind))
    sender.finish()
    return {"rows": len(rows), "send_s": time.perf_counter() - began, "send_cpu_s": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.peers.driver")
    parser.add_argument("url")
    parser.add_argument("table")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--mode", choices=("bound", "packed"), default="bound")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64], help="several: one after the other")
    parser.add_argument("--rows", type=int)
    chosen = parser.parse_args()
    began = time.perf_counter()
    rows = read(chosen.csv, chosen.rows)
    loaded = time.perf_counter() - began
    settings = parse_settings({"backends": {"c": {"url": chosen.url}}, "control": {"url": "memory://"}})
    url = settings.backends["c"].url
    assert url is not None, "a url was given"
    cluster = clusters.build(Target.of(url))
    session = cluster.connect(url.database)
    bind = chosen.mode == "bound"
    told = [
        {"in_flight": n, "load_s": loaded, **measure(session, chosen.table, rows, bind=bind, in_flight=n)}
        for n in chosen.in_flight
    ]
    cluster.shutdown()
    json.dump({"runs": told}, sys.stdout)


if __name__ == "__main__":
    main()
