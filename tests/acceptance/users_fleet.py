"""A fleet of real processes that fight for usernames, and its judgement: calls, names, rows and claims in the stores."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from datalayer.cli.demo.stage import Ended, Role, Stage
from datalayer.clock import SystemClock
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.opening import open_places
from datalayer.migrators.shards import sharding_of
from datalayer.routing.shards import parse_group
from datalayer.testing import user_oracle
from datalayer.testing.ledger import Kind, Ledger, read_ledgers
from datalayer.testing.timeline import Spread, calls_of, spread_of
from datalayer.testing.user_oracle import KINDS, UserFindings
from datalayer.testing.user_probe import Holdings, hold, read_users, told_in
from datalayer.testing.user_workload import record_users
from tests.acceptance.fleet import Fleet
from tests.acceptance.users_data import id_of

ROLES = (
    Role("writer-1", "writer", 25),
    Role("writer-2", "writer", 25),
    Role("renamer-1", "renamer", 25),
    Role("mixed-1", "mixed", 25),
    Role("reader-1", "reader", 25),
    Role("reader-2", "reader", 25),
)
"""Six processes; rates that leave two cores room for five servers."""
SWEEP_EVERY_S = 0.4
RESUMABLE = 5
RESUMES_MAX = 5
LONG_MS = 200.0


class UserStage(Stage):
    """A stage whose workers work on users."""

    async def _start_worker(self, role: Role, *more: str) -> asyncio.subprocess.Process:
        options = {
            "--config": self.config,
            "--ledger": self.ledgers,
            "--name": role.name,
            "--seed": self.seed,
            "--mix": role.mix,
            "--rate": role.rate,
            "--tasks": role.tasks,
        }
        words = [str(word) for pair in options.items() for word in pair]
        with self._error_file(role.name).open("wb") as errors:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "datalayer.testing.user_workload",
                *words,
                *more,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the run that is looked at by itself."""

    label: str
    began_ns: int
    ended_ns: int


@dataclass(slots=True)
class UserFleet(Fleet):
    """Processes over users, commands, and what was found."""

    windows: list[Window] = field(default_factory=list)
    renewed: int = 0

    @classmethod
    @asynccontextmanager
    async def open_users(cls, directory: Path, config: str, *, seed: int = 1) -> AsyncIterator["UserFleet"]:
        """A fleet in an empty folder; its processes end with the block."""
        stage = UserStage(directory, seed, 0, say=print, command_s=3600.0)
        fleet = cls(stage)
        stage.prepare()
        stage.config.write_text(config)
        try:
            yield fleet
        finally:
            await stage.close()

    async def command(self, *words: str, code: int = 0, failpoints: str = "") -> Ended:
        """As ``Fleet.command``; one that ended resumably before its point is run again, as an operator would."""
        ended = await self.stage.command(*words, failpoints=failpoints)
        for _ in range(RESUMES_MAX):
            if ended.code != RESUMABLE:
                break
            self.tell(f"datalayer {' '.join(words[:2])} -> 5: {(ended.told.get('error') or {}).get('message')}")
            ended = await self.stage.command(*words, failpoints=failpoints)
        said = ended.told.get("error") or ended.errors[-400:]
        if failpoints:
            assert ended.killed, f"datalayer {words} was to be killed at {failpoints}, ended with {ended.code}: {said}"
            self.kills += 1
            self.tell(f"SIGKILL of datalayer {' '.join(words[:2])} at {failpoints}")
        else:
            assert ended.code == code, f"datalayer {words} ended with {ended.code}: {said}"
            self.tell(f"datalayer {' '.join(words)} -> {ended.code}")
        return ended

    @contextlib.contextmanager
    def window(self, label: str) -> Iterator[None]:
        """Look at the calls of this stretch by themselves."""
        began = time.monotonic_ns()
        yield
        self.windows.append(Window(label, began, time.monotonic_ns()))

    async def rest(self, label: str, seconds: float) -> None:
        """Let the workers work with nothing else going on."""
        with self.window(label):
            await self.serve(seconds)

    async def replace_worker(self, name: str) -> str:
        """SIGKILL one worker and start another like it; its name."""
        await self.kill_worker(name)
        self.renewed += 1
        kind = name.partition("-")[0]
        role = Role(f"{kind}-{10 + self.renewed}", kind, 25)
        await self.stage.start([role])
        return role.name

    async def know(self, users: int, sample: int) -> None:
        """Put a sample of the imported users on record: they take part in what follows."""
        ids = [id_of(1 + number * users // sample) for number in range(sample)]
        ledger = Ledger.create(self.stage.ledgers, "baseline")
        async with DataLayer.open(self.stage.config, options=LayerOptions(name="baseline", assist=False)) as layer:
            assert await record_users(layer.users, ledger, ids) == sample
        ledger.close()

    async def holdings(self) -> Holdings:
        """What the authority of the users holds."""
        known = (await asyncio.to_thread(told_in, self.stage.ledgers)).users
        async with open_places(self.stage.settings, SystemClock(), claim=False) as places:
            found = await hold(places, known)
        self.tell(
            f"stores: {found.users} users, {found.claims} claims, {found.orphans} orphans, {found.missing} missing, "
            f"{found.others} users nobody touched"
        )
        return found

    async def sweep(self, patience_s: float) -> dict[str, Any]:
        """Sweep until there are no orphans left, or for that long; what the last sweep said."""
        until = time.monotonic() + patience_s
        freed = 0
        while True:
            told = (await self.stage.command("shards", "sweep")).told
            assert "claims" in told, told
            freed += told["freed"]
            if not told["young"] or time.monotonic() >= until:
                self.tell(f"datalayer shards sweep: {told['claims']} claims, {freed} freed, {told['young']} young")
                return told
            await asyncio.sleep(SWEEP_EVERY_S)

    async def holds(self) -> list[tuple[str, float]]:
        """(slot group or domain, ms) of every hold of the run; what the long ones spent it on is told."""
        found = []
        async with open_places(self.stage.settings, SystemClock(), claim=False) as places:
            for migration in reversed(await places.control.migrations()):
                document = await places.control.document(migration.id, "holds") or {"holds": []}
                found += [(migration.domain, float(entry["ms"])) for entry in document["holds"]]
                for entry in document["holds"]:
                    if entry["ms"] > LONG_MS:
                        self.tell(f"of the {entry['ms']} ms of {migration.domain}: {entry['parts_ms']}")
        return found

    async def rows_by_shard(self) -> dict[str, int]:
        """Users and claims on each shard, counted, tombstones included."""
        found: dict[str, int] = {}
        async with open_places(self.stage.settings, SystemClock(), claim=False) as places:
            sharding = await sharding_of(places, "users")
            for group, shard in sharding.shard_of.items():
                place = places.routing_of(group.name).authority
                await places.ensure_open(place)
                store = places.store("users", place)
                for relation in store.relations.values():
                    rows = await store.db.fetch(f"SELECT count(*) FROM {relation.table.name}")
                    found[shard] = found.get(shard, 0) + int(rows[0][0])
        return dict(sorted(found.items()))

    async def judge_users(self, *, name: str = "final", pages: bool = True) -> UserFindings:
        """Stop the workers, read what they know of, judge every call."""
        await self.stage.stop()
        assert self.stage.failures == [], self.stage.failures
        async with DataLayer.open(self.stage.config, options=LayerOptions(name=name, assist=False)) as layer:
            await read_users(layer.users, self.stage.ledgers, name=name, pages=pages)
        found = await asyncio.to_thread(user_oracle.check, read_ledgers(self.stage.ledgers), alone=False)
        kinds = ", ".join(f"{kind} {found.count(kind)}" for kind in KINDS)
        self.tell(f"operations {found.rows.operations} on {found.rows.keys} users: {kinds}")
        self.tell(
            f"unknown outcomes {found.rows.unknown}, refusals {dict(found.refusals)}, of them of free names "
            f"{found.refused_free}, errors {found.errors}"
        )
        for violation in found.violations[:20]:
            self.tell(str(violation))
        twice = [one.detail.rsplit(": ", 1)[1].split(" and ") for one in found.violations if " at once: " in one.detail]
        users = {bytes.fromhex(user) for pair in twice[:5] for user in pair}
        for event in read_ledgers(self.stage.ledgers) if users else ():
            if event.key[16:] in users and event.kind is not Kind.PAGE:
                self.tell(str(event))
        return found

    def latencies(self) -> list[tuple[str, Spread, Spread]]:
        """(window, its reads, its writes)."""
        calls = calls_of(read_ledgers(self.stage.ledgers))
        found = []
        for window in self.windows:
            mine = [call for call in calls if window.began_ns <= call.ended_ns <= window.ended_ns]
            reads, writes = (
                spread_of([call.ended_ns - call.began_ns for call in mine if call.writes is writes])
                for writes in (False, True)
            )
            found.append((window.label, reads, writes))
        return found


def holds_text(holds: Sequence[tuple[str, float]]) -> list[str]:
    """Every hold by slot group, and count, median and maximum."""
    groups = [(domain, ms) for domain, ms in holds if parse_group(domain) is not None]
    wholes = [(domain, ms) for domain, ms in holds if parse_group(domain) is None]
    lines = [f"hold {domain} {ms:.1f} ms" for domain, ms in [*wholes, *groups]]
    for what, found in (("the whole domain", wholes), ("slot groups", groups)):
        if found:
            lengths = [ms for _, ms in found]
            lines.append(
                f"holds of {what}: {len(lengths)}, median {median(lengths):.1f} ms, maximum {max(lengths):.1f} ms"
            )
    return lines


def latency_text(latencies: Sequence[tuple[str, Spread, Spread]]) -> list[str]:
    """A table."""
    head = f"{'':<34}{'reads':>8}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>9}{'writes':>9}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>9}"
    rows = [
        f"{label:<34}{r.calls:>8}{r.p50_ms:>8.1f}{r.p99_ms:>8.1f}{r.max_ms:>9.1f}"
        f"{w.calls:>9}{w.p50_ms:>8.1f}{w.p99_ms:>8.1f}{w.max_ms:>9.1f}"
        for label, r, w in latencies
    ]
    return [head, *rows]
