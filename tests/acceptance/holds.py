"""How long writers are held: flips over and back between Postgres and Cassandra under steady traffic.

    python -m tests.acceptance.holds [--flips 20] [--limit 250] [--json FILE]

prints every hold with its parts, the median and the maximum, and the judgement of every operation; a hold over the limit, a
client's error or a broken promise ends it with an error.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from datalayer.cli.demo.stage import Role
from datalayer.testing.ledger import Flag, Kind, read_ledgers
from tests.acceptance.ground import MIGRATE, ground
from tests.servers import Servers

ROLES = (
    Role("writer-1", "writer", 60),
    Role("writer-2", "writer", 60),
    Role("editor-1", "editor", 50),
    Role("deleter-1", "deleter", 30),
    Role("reader-1", "reader", 40),
    Role("reader-2", "reader", 40),
)
"""Six processes, 200 writes a second in all."""


async def play(servers: Servers, directory: Path, *, flips: int, messages: int, rest_s: float) -> dict[str, Any]:
    """Flip there and back until there were ``flips`` of them: the holds with their parts, and what was judged."""
    holds: list[dict[str, Any]] = []
    async with ground(servers, directory, messages=messages) as at:
        fleet = at.fleet
        await fleet.start(ROLES)
        began = time.time()
        await fleet.serve(rest_s)
        while len(holds) < flips:
            await fleet.command(*MIGRATE)
            await fleet.serve(rest_s)
            await fleet.command("migrations", "rollback", "--yes")
            await fleet.serve(rest_s)
            told = (await fleet.command("migrations", "status")).told
            holds.extend(told["holds"][-2:])
            for hold in told["holds"][-2:]:
                fleet.tell(f"hold {hold['ms']} ms {hold['parts_ms']}")
        seconds = time.time() - began
        found = await fleet.judge()
        writes = sum(
            one.kind is Kind.ACK and Flag.BASELINE not in one.flags for one in read_ledgers(fleet.stage.ledgers)
        )
    lengths = [hold["ms"] for hold in holds]
    return {
        "flips": len(holds),
        "holds_ms": lengths,
        "median_ms": statistics.median(lengths),
        "max_ms": max(lengths),
        "writes_per_second": round(writes / seconds, 1),
        "operations": found.operations,
        "errors": sum(found.errors.values()),
        "clean": found.clean,
        "parts_ms": [hold["parts_ms"] for hold in holds],
    }


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--limit", type=float, default=250.0, help="ms")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rest", type=float, default=2.0, help="seconds of traffic between two commands")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with Servers() as servers, tempfile.TemporaryDirectory() as folder:
        told = asyncio.run(
            play(servers, Path(folder), flips=chosen.flips, messages=chosen.messages, rest_s=chosen.rest)
        )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({key: value for key, value in told.items() if key != "parts_ms"}, indent=1))
    assert told["clean"], told
    assert told["errors"] == 0, told
    assert told["max_ms"] <= chosen.limit, f"a hold took {told['max_ms']} ms, the limit is {chosen.limit:g} ms"


if __name__ == "__main__":
    main()
