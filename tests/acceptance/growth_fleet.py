"""One deployment, one fleet over all its domains: the stages of messages and of users side by side, and one judgement."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datalayer.cli.demo.stage import Ended, Role, Stage
from datalayer.clock import SystemClock
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.opening import open_places
from datalayer.testing.user_probe import Holdings
from tests.acceptance.fleet import Fleet
from tests.acceptance.side_traffic import judge
from tests.acceptance.users_fleet import UserFleet

MESSAGE_ROLES = (
    Role("writer-1", "writer", 20),
    Role("editor-1", "editor", 20),
    Role("deleter-1", "deleter", 15),
    Role("reader-1", "reader", 30),
)
USER_ROLES = (
    Role("users-writer-1", "writer", 12),
    Role("users-mixed-1", "mixed", 12),
    Role("users-reader-1", "reader", 15),
)
"""Rates that leave two cores room for ten servers."""
SIDE_ROLES = (Role("side-1", "side", 4), Role("side-2", "side", 4))
FEW = (Role("writer-1", "append=4,edit=3,delete=1", 8), Role("reader-1", "reader", 8))
FEW_USERS = (Role("users-mixed-1", "mixed", 5),)
FEW_SIDE = (Role("side-1", "side", 2),)
"""For a short run beside other work."""


class SideStage(Stage):
    """A stage whose workers use presence, sessions and media."""

    async def _start_worker(self, role: Role, *more: str) -> asyncio.subprocess.Process:
        options = {
            "--config": self.config,
            "--ledger": self.ledgers,
            "--name": role.name,
            "--seed": self.seed,
            "--rate": role.rate,
        }
        words = [str(word) for pair in options.items() for word in pair]
        with self._error_file(role.name).open("wb") as errors:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.acceptance.side_traffic",
                *words,
                *more,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )


@dataclass(frozen=True, slots=True)
class Judged:
    """One row of the table at the end."""

    what: str
    operations: int
    lost: int
    ghost: int
    stale: int
    other: int
    remark: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.ghost or self.stale or self.other)


@dataclass(slots=True)
class GrowthFleet:
    """Both fleets, the commands over the deployment, and what was found."""

    messages: Fleet
    users: UserFleet
    side: Fleet
    began: float = field(default_factory=time.monotonic)
    before: Holdings | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, config: str, *, messages: int, seed: int = 1) -> AsyncIterator["GrowthFleet"]:
        """Fleets in an empty folder; their processes end with the block."""
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(
                Fleet.open(directory / "messages", config, messages=messages, seed=seed)
            )
            second = await stack.enter_async_context(UserFleet.open_users(directory / "users", config, seed=seed))
            side = SideStage(directory / "side", seed, 0, say=print)
            side.prepare()
            side.config.write_text(config)
            stack.push_async_callback(side.close)
            yield cls(first, second, Fleet(side))

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return self.messages.kills + self.users.kills

    def tell(self, text: str) -> None:
        """One line of the scenario's log."""
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    async def command(self, *words: str, failpoints: str = "", code: int = 0) -> Ended:
        """Run ``datalayer WORDS``; one that ended resumably is run again, as an operator would."""
        return await self.users.command(*words, failpoints=failpoints, code=code)

    async def start(self, *, few: bool = False) -> None:
        """Start every worker."""
        await self.messages.start(FEW if few else MESSAGE_ROLES)
        await self.users.start(FEW_USERS if few else USER_ROLES)
        await self.side.start(FEW_SIDE if few else SIDE_ROLES)

    async def serve(self, seconds: float) -> None:
        """Let the workers work; one that ends by itself is a failure."""
        await asyncio.gather(self.messages.serve(seconds), self.users.serve(seconds), self.side.serve(seconds))

    async def backends(self) -> dict[str, str]:
        """Which backend serves each domain."""
        routes = (await self.command("routes")).told["routes"]
        return {route["domain"]: route["backend"] for route in routes if route["phase"] != "not placed yet"}

    async def unfinished(self) -> dict[str, str]:
        """Migrations that have not ended, with the phase of their domain."""
        async with open_places(self.users.stage.settings, SystemClock(), claim=False) as places:
            _, routings = await places.control.routings()
            live = [m for m in await places.control.migrations() if not m.finished]
            return {m.id: str(routings[m.domain].phase) for m in live if routings[m.domain].attempt == m.attempt}

    async def moves(self) -> list[tuple[str, str, str, str, int, float]]:
        """(migration, source, target, how it ended or stands, rows copied, longest hold in ms) of the whole run."""
        found = []
        async with open_places(self.users.stage.settings, SystemClock(), claim=False) as places:
            for migration in reversed(await places.control.migrations()):
                copied = await places.control.document(migration.id, "backfill") or {"rows": 0}
                held = await places.control.document(migration.id, "holds") or {"holds": []}
                longest = max((float(hold["ms"]) for hold in held["holds"]), default=0.0)
                sides = (migration.source.backend, migration.target.backend)
                found.append((migration.id, *sides, migration.phase, int(copied["rows"]), longest))
        return found

    async def judge(self) -> list[Judged]:
        """Stop the workers, read everything, judge every operation of every domain."""
        await asyncio.gather(*(fleet.stage.stop() for fleet in (self.messages, self.users, self.side)))
        said = await self.messages.judge()
        for violation in said.violations[:10]:
            self.tell(str(violation))
        wrong = sum(said.count(kind) for kind in ("order", "torn", "error"))
        lost, ghost, stale = (said.count(kind) for kind in ("lost", "ghost", "stale"))
        found = [Judged("messages", said.operations, lost, ghost, stale, wrong, f"{said.unknown} unknown outcomes")]
        told = await self.users.judge_users(pages=False)
        rows = told.rows
        lost, ghost, stale = (told.count(kind) for kind in ("lost", "ghost", "stale"))
        others = len(told.violations) - lost - ghost - stale
        found.append(Judged("users", rows.operations, lost, ghost, stale, others, f"{rows.unknown} unknown outcomes"))
        return found + await self._judge_side()

    async def _judge_side(self) -> list[Judged]:
        assert self.side.stage.failures == [], self.side.stage.failures
        options = LayerOptions(name="final-side", assist=False)
        async with DataLayer.open(self.side.stage.config, options=options) as layer:
            total = await judge(layer, self.side.stage.ledgers)
        for found in total.values():
            for example in found.examples:
                self.tell(example)
        return [
            Judged(domain, f.operations, f.lost, f.ghost, f.stale, f.other, f"{f.unknown} unknown outcomes or answers")
            for domain, f in total.items()
        ]

    async def compare(self) -> list[Judged]:
        """A full comparison of both sides of every migration whose way back is open."""
        found = []
        for migration in sorted(await self.unfinished()):
            said = (await self.command("migrations", "verify", migration)).told
            wrong = len(said["differences"]) + len(said["undecided"])
            compared = int(said.get("authority_records", 0))
            found.append(Judged(migration, compared, 0, 0, 0, wrong, "both sides compared in full"))
        return found


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Rows in aligned columns."""
    cells = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
