"""One deployment, one fleet over all its domains: the stages of messages and of users side by side, and one judgement."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from datalayer.cli.demo.stage import Ended, Role, Stage
from datalayer.clock import SystemClock
from datalayer.control.base import Control, Migration
from datalayer.domains.record import Key, Record
from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.opening import open_places
from datalayer.routing.documents import Documents
from tests.acceptance.fleet import Fleet
from tests.acceptance.side_judge import FOLLOW_S, judge
from tests.acceptance.side_kinds import MediaTraffic
from tests.acceptance.side_traffic import write_facts
from tests.acceptance.users_data import id_of
from tests.acceptance.users_fleet import UserFleet
from tests.unit.index_world import held

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
AVATAR_MAX = 40_000
LARGE = 6 << 20
"""An avatar that S3 takes in parts."""
FLIPPED = ("open_other", "switch", "publish_other")
"""Of each strategy the action that makes the target rule, or the source again."""
AGAIN_S = 0.3
COMPARED_AT_ONCE = 3


class SideStage(Stage):
    """A stage whose workers use the domains that have no fleet of their own."""

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
    """The fleets, the commands over the deployment, and what was found."""

    messages: Fleet
    users: UserFleet
    side: Fleet
    began: float = field(default_factory=time.monotonic)
    times: list[tuple[str, float]] = field(default_factory=list)
    """What took how many seconds."""
    replaced: int = 0

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

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long a part of the scenario takes."""
        began = time.monotonic()
        yield
        self.times.append((what, time.monotonic() - began))

    async def start(self, *, few: bool = False) -> None:
        """Start every worker."""
        await self.messages.start(FEW if few else MESSAGE_ROLES)
        await self.users.start(FEW_USERS if few else USER_ROLES)
        await self.side.start(FEW_SIDE if few else SIDE_ROLES)

    async def serve(self, seconds: float) -> None:
        """Let the workers work; one that ends by itself is a failure."""
        await asyncio.gather(self.messages.serve(seconds), self.users.serve(seconds), self.side.serve(seconds))

    async def replace(self) -> None:
        """SIGKILL of one process over messages and one over users; others like them take their places."""
        self.replaced += 1
        for fleet, roles in ((self.messages, (*MESSAGE_ROLES, *FEW)), (self.users, (*USER_ROLES, *FEW_USERS))):
            name = fleet.stage.workers[0]
            role = next(role for role in roles if name.startswith(role.name.removesuffix("-1")))
            await fleet.kill_worker(name)
            another = f"{role.name.removesuffix('-1')}-{1 + self.replaced}"
            await fleet.stage.start([Role(another, role.mix, role.rate)])

    async def avatars(self, users: int) -> None:
        """One item of media for each of the first users, one of them large; what they are is judged at the end."""
        async with DataLayer.open(self.side.stage.config, options=LayerOptions(name="avatars", assist=False)) as layer:
            media = MediaTraffic(layer, "avatars")
            for number in range(1, users + 1):
                size = LARGE if number == users else media.random.randrange(1, AVATAR_MAX)
                await media.put(id_of(number), size)
        assert len(media.live) == users, media.found
        write_facts(self.side.stage.ledgers, "avatars", [media])
        self.tell(f"{users} avatars put")

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

    async def moves(self) -> list["Move"]:
        """Every migration of the whole run, in the order of their beginning."""
        async with open_places(self.users.stage.settings, SystemClock(), claim=False) as places:
            return [await _move(places.control, one) for one in reversed(await places.control.migrations())]

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

    async def index(self) -> Judged:
        """The index that is asked against the store, read in full: what messages and users there are now is in it, as
        they are now, and nothing else. To be called when no process writes any more; the index may follow for a while.
        """
        until = time.monotonic() + FOLLOW_S
        async with DataLayer.open(self.side.stage.config, options=LayerOptions(name="final-index")) as layer:
            while True:
                try:
                    await layer.places.indexes.fresh()
                    should = await held(Documents(layer.places))
                    have = await held(layer.places.store("search", layer.places.routing_of("search").authority))
                except DatalayerError as error:
                    if not error.retryable or time.monotonic() >= until:
                        raise
                else:
                    found = compare_index(should, have)
                    if found.clean or time.monotonic() >= until:
                        return found
                await asyncio.sleep(AGAIN_S)

    async def compare(self) -> list[Judged]:
        """A full comparison of both sides of every migration whose way back is open."""
        room = asyncio.Semaphore(COMPARED_AT_ONCE)

        async def one(migration: str) -> Judged:
            async with room:
                said = (await self.command("migrations", "verify", migration)).told
            wrong = len(said["differences"]) + len(said["undecided"])
            compared = int(said.get("authority_records", 0))
            return Judged(migration, compared, 0, 0, 0, wrong, "both sides compared in full")

        return await asyncio.gather(*(one(migration) for migration in sorted(await self.unfinished())))


def compare_index(should: Mapping[Key, Record], have: Mapping[Key, Record]) -> Judged:
    """Documents that should be there against those that are."""
    lost, ghost = should.keys() - have.keys(), have.keys() - should.keys()
    stale = [key for key in should.keys() & have.keys() if should[key] != have[key]]
    remark = f"{len(should)} documents of messages and users, each compared with the store"
    return Judged("search index", len(should), len(lost), len(ghost), len(stale), 0, remark)


@dataclass(frozen=True, slots=True)
class Move:
    """One migration as it went."""

    id: str
    source: str
    target: str
    phase: str
    rows: int
    seconds: float | None
    """From its beginning until the target ruled; None where that never was."""
    holds: tuple[float, ...]
    """ms of each pause of writes, those of the way back included."""

    @property
    def row(self) -> tuple[Any, ...]:
        """For a table."""
        took = "-" if self.seconds is None else f"{self.seconds:.1f}"
        holds = f"{max(self.holds):.1f}" if self.holds else "-"
        return (self.id, self.source, self.target, self.phase, self.rows, took, len(self.holds), holds)


async def _move(control: Control, migration: Migration) -> Move:
    copied = await control.document(migration.id, "backfill") or {"rows": 0}
    held_ = await control.document(migration.id, "holds") or {"holds": []}
    steps = await control.steps(migration.id, 1000)
    flips = [step.at_us for step in steps if step.action in FLIPPED and step.state == "done"]
    seconds = (min(flips) - migration.started_us) / 1e6 if flips else None
    holds = tuple(float(hold["ms"]) for hold in held_["holds"])
    sides = (migration.source.backend, migration.target.backend)
    return Move(migration.id, *sides, migration.phase, int(copied["rows"]), seconds, holds)


def holds_line(moves: Sequence[Move]) -> str:
    """All pauses of writes of the run in one line."""
    holds = sorted(ms for move in moves for ms in move.holds)
    if not holds:
        return "no pauses of writes"
    return f"{len(holds)} pauses of writes: median {median(holds):.0f} ms, longest {holds[-1]:.0f} ms"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Rows in aligned columns."""
    cells = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
