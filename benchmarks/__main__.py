"""python -m benchmarks [NAME|all] [--rows N] [--messages N] [--rounds N] [--json FILE]; --help has the names"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import (
    backfill,
    document,
    history,
    media,
    memory,
    plots,
    presence,
    report,
    repository,
    search,
    sessions,
)
from benchmarks.shards.measure import Sizes
from benchmarks.shards.measure import measure as measure_shards
from benchmarks.stage import Ground, ground

ROWS, ROUNDS, MESSAGES, BEATING = 200_000, 3, 200_000, 20_000
Benchmark = Callable[[Ground, argparse.Namespace, Callable[[str], None]], Coroutine[Any, Any, dict[str, Any]]]
BENCHMARKS: dict[str, Benchmark] = {
    "backfill": lambda place, chosen, say: backfill.measure(place, chosen.rows, chosen.rounds, say),
    "history": lambda place, chosen, say: history.measure(place, chosen.messages, chosen.rounds, say),
    "media": lambda place, chosen, say: media.measure(place, chosen.sizes, chosen.rounds, say),
    "memory": lambda place, chosen, say: memory.measure(place, memory_rows(chosen), say),
    "presence": lambda place, chosen, say: presence.measure(place, chosen.beating, chosen.rounds, say),
    "repository": lambda place, chosen, say: repository.measure(place, chosen.calls, chosen.rounds, say),
    "search": lambda place, chosen, say: search.measure(place, chosen.messages, chosen.rounds, say),
    "sessions": lambda place, chosen, say: sessions.measure(place, chosen.calls, chosen.rounds, say),
    "shards": lambda place, chosen, say: measure_shards(place, sizes(chosen), say),
}


def memory_rows(chosen: argparse.Namespace) -> list[int]:
    """The sizes asked for; by default the large one is left to ``memory`` alone, so that ``all`` ends in ten minutes."""
    given: list[int] | None = chosen.memory_rows
    return given or list(memory.ROWS[: 1 if chosen.what == "all" else None])


def sizes(chosen: argparse.Namespace) -> Sizes:
    """Those of the benchmark of shards."""
    return Sizes(chosen.users, chosen.moved_users, tuple(chosen.move_groups), chosen.rounds, chosen.shard_calls)


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    names = list(BENCHMARKS) if chosen.what == "all" else [chosen.what]
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    documents = []
    with ground() as place:
        for name in names:
            machine = document.machine()
            body = asyncio.run(BENCHMARKS[name](place, chosen, say))
            documents.append(document.document(name, body, machine))
    for path in document.write(documents, chosen.json):
        say(f"wrote {path}")
    for path in plots.draw(documents):
        say(f"drew {path}")
    print("\n\n".join(report.text(one) for one in documents))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Speed and memory beside peers, in one run.")
    parser.add_argument("what", nargs="?", choices=[*BENCHMARKS, "all"], default="all")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the backfill (default %(default)s)")
    parser.add_argument(
        "--messages", type=int, default=MESSAGES, help="messages of history and search (default %(default)s)"
    )
    parser.add_argument("--beating", type=int, default=BEATING, help="users of presence (default %(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=media.SIZES, metavar="BYTES", help="of media (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of both sides (default %(default)s)")
    parser.add_argument("--calls", type=int, default=repository.CALLS, help="calls of a round (default %(default)s)")
    parser.add_argument(
        "--memory-rows", type=int, nargs="+", help=f"table sizes of memory (default {memory.ROWS}, in all the first)"
    )
    default = Sizes()
    for name, what in (
        ("users", "users that are read, written and served on shards"),
        ("moved-users", "users that are moved between shards, of three rows each"),
        ("shard-calls", "calls of one slice of reads on shards"),
    ):
        of = default.calls if name == "shard-calls" else getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=of, help=f"{what} (default %(default)s)")
    parser.add_argument(
        "--move-groups",
        type=int,
        nargs="+",
        default=default.move_groups,
        help="in how many slot groups they are moved (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all results in one file, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
