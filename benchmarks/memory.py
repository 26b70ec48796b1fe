"""Memory of a backfill worker above its base, at table sizes forty times apart."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.backfill import take_back
from benchmarks.figures import Aim, rounded
from benchmarks.processes import python, run
from benchmarks.stage import Ground, Stage, psql_run

ROWS = (50_000, 2_000_000)
TARGETS = ("cassandra", "copy")
ABOVE_BASE = Aim(64.0, at_least=False)
_SAID = {"cassandra": "Cassandra", "copy": "Postgres"}
# Conversations of 100 messages a minute apart; a body has 8 to 400 bytes. Made in the order of the key, so that the
# table's index is filled from left to right.
_FILL = """
INSERT INTO messages (conversation_id, id, sender_id, body, version)
SELECT
    (lpad(to_hex(n / 100), 8, '0') || '-0000-5000-8000-000000000000')::uuid,
    (lpad(to_hex(1600000000000 + (n % 100) * 60000), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid,
    (lpad(to_hex(n % 1346), 8, '0') || '-0000-5000-8000-000000000000')::uuid,
    repeat('a word ', 1 + (n::bigint * 7919 % 57)::integer),
    (1600000000000 + (n % 100) * 60000) * 1000
FROM generate_series(1, {rows}) AS n
"""


async def measure(ground: Ground, sizes: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """One process for each size and target."""
    runs = []
    for rows in sizes:
        stage = await ground.stage()
        await asyncio.to_thread(fill, stage, rows)
        say(f"memory: {rows} rows made")
        for target in TARGETS:
            runs.append(await one(stage, rows, target))
            say(f"memory: {rows} rows to {target}: {runs[-1]['above_base_mib']} MiB above the base")
    return {"runs": runs}


def fill(stage: Stage, rows: int) -> None:
    """Make rows in the source."""
    psql_run(stage.main, _FILL.format(rows=rows))
    psql_run(stage.main, "VACUUM ANALYZE messages")


async def one(stage: Stage, rows: int, target: str) -> dict[str, Any]:
    """Copy everything in a process of its own; its memory."""
    argv = python("benchmarks.worker", stage.config(target), target)
    told = (await asyncio.to_thread(run, argv, stage.log("worker"))).last_json()
    await take_back(stage)
    assert told["rows"] == rows, f"{told['rows']} of {rows} rows were copied"
    above = told["peak_mib"] - told["base_mib"]
    return {
        "target": _SAID[target],
        "rows": rows,
        "base_mib": rounded(told["base_mib"]),
        "peak_mib": rounded(told["peak_mib"]),
        "above_base_mib": rounded(above),
        "rows_per_s": rounded(rows / told["seconds"]),
        "cpu_us_per_row": rounded(1e6 * told["cpu_s"] / rows),
        "aim": str(ABOVE_BASE),
        "met": ABOVE_BASE.met(above),
    }
