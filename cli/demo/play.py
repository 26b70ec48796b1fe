"""The demo's play: over, killed twice on the way, back, over again, complete - and the judgement of every operation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from datalayer.cli.demo.stage import TARGET, Ended, Role, Stage, monotonic_of
from datalayer.cli.exits import ExitCode
from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer, LayerOptions
from datalayer.testing import oracle
from datalayer.testing.ledger import read_ledgers
from datalayer.testing.probe import Watch, read_everything
from datalayer.testing.report import Run
from datalayer.testing.timeline import Mark, Timeline, calls_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROLES: Final = (
    Role("writer-1", "writer", 90),
    Role("editor-1", "editor", 90),
    Role("deleter-1", "deleter", 60),
    Role("reader-1", "reader", 120),
    Role("reader-2", "reader", 120),
)
SAMPLE_S: Final = 0.1
KILL_AT: Final = 0.45
BACKFILL_SHARE: Final = 0.12
BACKFILL_S_MIN: Final = 3.0
"""How long a throttled backfill takes, of the play's length and at least: there is a half way to be killed at."""
TRIES: Final = 8
MIGRATE: Final = ("migrate", "messages", "--to", TARGET, "--yes")


@dataclass(slots=True)
class Play:
    """One performance on a prepared stage. ``seconds`` is about how long its processes work."""

    stage: Stage
    seconds: float
    say: Callable[[str], None]
    marks: list[Mark] = field(default_factory=list)
    kills: int = 0
    rows_copied: int = 0
    holds: list[dict[str, Any]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    async def perform(self) -> Run:
        """Play it to the end and judge it. Whatever fails on the way is told in the run, not raised."""
        self._tell(f"preload {self.stage.messages:,} messages into {self.stage.directory}")
        await self.stage.preload()
        await self.stage.start(ROLES)
        self._tell(f"{len(ROLES)} processes write, edit, delete and read")
        async with Watch.open(self.stage.settings) as watch:
            timeline = Timeline(time.monotonic_ns(), 0)
            sampling = asyncio.create_task(self._sample(watch))
            try:
                await (self._straight(watch) if self.stage.sabotage else self._there_and_back(watch))
            finally:
                sampling.cancel()
                await asyncio.gather(sampling, return_exceptions=True)
            timeline.ended_ns = time.monotonic_ns()
            await self.stage.stop()
            self.holds = [dict(hold) for hold in await watch.holds()]
            timeline.samples = watch.samples
        return await self._judge(timeline)

    # --- the acts ---------------------------------------------------------------------------------------------------

    async def _there_and_back(self, watch: Watch) -> None:
        await self._serve(0.06, "at rest")
        rate = self._rate()
        ended = await self.stage.command(*MIGRATE, *rate, watch=lambda: self._half_way(watch))
        self._killed(ended, "the migrator, half way through the backfill")
        await self._serve(0.03, "nobody coordinates")
        ended = await self._command(*MIGRATE, *rate, failpoints="drain.after=kill")
        self._killed(ended, "the migrator, inside the hold")
        await self._run("resume: over to the second file", *MIGRATE)
        self.rows_copied = await watch.rows_copied()
        await self._serve(0.06, "the second file rules")
        await self.stage.kill("writer-1")
        self._mark("kill", "a writer")
        self.kills += 1
        await self.stage.start([Role("writer-2", "writer", 90)])
        await self._serve(0.04, "a writer was killed and another one came")
        await self._run("roll back to the first file", "migrations", "rollback", "--yes")
        await self._serve(0.06, "the first file rules again")
        await self._run("over again", *MIGRATE)
        await self._serve(0.05, "the second file rules")
        await self._run("complete", "migrations", "complete", "--yes")
        await self._serve(0.05, "at rest in the second file")

    async def _straight(self, watch: Watch) -> None:
        """What a planted mistake has to be noticed in: one way over, and some service there."""
        await self._serve(0.03, "at rest")
        rate = self._rate()
        await self._run(f"over to the second file, sabotaged: {self.stage.sabotage}", *MIGRATE, *rate)
        self.rows_copied = await watch.rows_copied()
        await self._serve(0.08, "the second file rules")

    def _rate(self) -> tuple[str, str]:
        seconds = max(BACKFILL_SHARE * self.seconds, BACKFILL_S_MIN)
        return ("--rate", str(max(int(self.stage.messages / seconds), 1)))

    async def _serve(self, share: float, text: str) -> None:
        self._tell(text)
        until = time.monotonic() + share * self.seconds
        while time.monotonic() < until:
            await asyncio.sleep(SAMPLE_S)
            self.stage.check()

    async def _run(self, text: str, *words: str) -> None:
        self._tell(text)
        ended = await self._command(*words)
        if ended.code != ExitCode.DONE:
            self._failed(f"datalayer {' '.join(words)} ended with {ended.code}: {_said(ended)}")

    async def _command(self, *words: str, failpoints: str = "") -> Ended:
        """Run a command; one that stepped back (on a busy machine a hold may take too long) is run again."""
        tries = 1
        while (ended := await self.stage.command(*words, failpoints=failpoints)).code == ExitCode.NOT_FINISHED:
            if tries == TRIES:
                break
            tries += 1
            self._tell(f"not finished: {_said(ended)}; again")
        return ended

    def _killed(self, ended: Ended, who: str) -> None:
        if not ended.killed:
            self._failed(f"{who} was to be killed, but ended with {ended.code}: {_said(ended)}")
            return
        self.kills += 1
        self._mark("kill", who)

    async def _half_way(self, watch: Watch) -> None:
        self._tell("migrate to the second file; killed half way")
        while await watch.rows_copied() < KILL_AT * self.stage.messages:
            await asyncio.sleep(SAMPLE_S / 2)

    async def _sample(self, watch: Watch) -> None:
        while True:
            # A look that found the files busy is left out: the next one comes at once.
            with contextlib.suppress(DatalayerError):
                await watch.look()
            await asyncio.sleep(SAMPLE_S)

    # --- the judgement ----------------------------------------------------------------------------------------------

    async def _judge(self, timeline: Timeline) -> Run:
        self._tell("read everything, judge every operation")
        options = LayerOptions(name="final", assist=False)
        async with DataLayer.open(self.stage.settings, options=options) as layer:
            await read_everything(layer.messages, self.stage.ledgers)
        events = list(read_ledgers(self.stage.ledgers))
        findings = await asyncio.to_thread(oracle.check, events)
        timeline.calls = calls_of(events)
        timeline.marks = sorted([*self.marks, *(self._hold_mark(hold) for hold in self.holds)])
        return Run(
            "Messages moved online" if self.stage.sabotage is None else f"Sabotaged: {self.stage.sabotage}",
            findings,
            timeline,
            holds=self.holds,
            kills=self.kills,
            rows_copied=self.rows_copied,
            seconds=time.monotonic() - self._began,
            facts=self._facts(),
            failures=tuple(self.stage.failures),
        )

    def _facts(self) -> dict[str, str]:
        roles = ", ".join(f"{role.name} ({role.rate:g}/s)" for role in ROLES)
        return {
            "stores": "SQLite file to SQLite file, WAL",
            "processes": roles,
            "preloaded": f"{self.stage.messages:,} messages",
            "seed": str(self.stage.seed),
        }

    def _hold_mark(self, hold: dict[str, Any]) -> Mark:
        return Mark(monotonic_of(hold["at_us"]), "hold", f"hold {hold['ms']:.1f} ms, {hold['direction']}")

    def _mark(self, kind: str, text: str) -> None:
        self.marks.append(Mark(time.monotonic_ns(), kind, text))
        self._tell(f"SIGKILL: {text}")

    def _failed(self, text: str) -> None:
        self.stage.failures.append(text)
        self._tell(f"failed: {text}")

    def _tell(self, text: str) -> None:
        self.say(f"{time.monotonic() - self._began:6.1f} s  {text}")


def _said(ended: Ended) -> str:
    error = ended.told.get("error")
    if isinstance(error, dict):
        return str(error.get("message"))
    lines = ended.errors.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
