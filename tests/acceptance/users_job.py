"""Users from one Postgres to shards and back, as a scenario: import, over to two shards, rebalance to four, drain one,
sweep, and home again - while six processes create, rename, swap, update, delete and look up, and the mover, workers and
one shard's server are killed.

    python -m tests.acceptance.users_job [--users 1000000] [--rest SECONDS] [--rates 0,4000,1000] [--way-back rollback]

prints what happened; any broken promise ends it with an error. Each hold of a slot group is printed, the limit
(``--limit`` ms; 0: none) holds for all of them.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from datalayer.routing.shards import parse_group
from datalayer.testing.user_probe import Holdings
from tests.acceptance.kept import working_folder
from tests.acceptance.users_data import write
from tests.acceptance.users_fleet import ROLES, UserFleet, holds_text, latency_text
from tests.servers import PostgresServer, Servers

OVER_KILLS = ("backfill.page=kill@3", "verify.page=kill@2", "await_readers.after=kill", "drain.after=kill")
"""Where the mover dies on the way over: the last one inside the hold."""
MOVE_KILLS = ("backfill.page=kill@2", "verify.page=kill", "publish_armed.after=kill", "drain.after=kill@2")
DRAIN_KILLS = ("fence_for_good.after=kill", "open_other.after=kill@2")
HOME_KILLS = ("await_readers.after=kill", "fence_for_good.after=kill")
UNDER_WAY_S = 3.0
"""After which a command has surely begun to move something."""
YOUNG_S = 70.0
"""Longer than an orphan counts as taken."""


@dataclass(frozen=True, slots=True)
class Job:
    """How large the scenario is."""

    users: int = 1_000_000
    sample: int = 3000
    rest_s: float = 10.0
    outage_s: float = 8.0
    rates: tuple[float, ...] = (0.0, 4000.0, 1000.0)
    """Rows a second of the moves beside which calls are measured; 0: as fast as they go."""
    kills: bool = True
    max_hold_ms: float = 1000.0
    """Of a slot group."""
    whole_hold_ms: float = 4000.0
    """Of the whole domain: on the way home every slot group is fenced in a transaction of its own."""
    kill_every: int = 1
    """2: at every second point only, the last one included."""
    way_back: Literal["rollback", "migrate"] = "rollback"
    sweep_s: float = YOUNG_S
    groups: int = 64
    off_plan: float = 0.05
    """How far a shard may be off its share after a rebalance; a few users fall unevenly into a few groups."""
    pages: bool = False
    """Read all users page by page in the end."""


def configuration(main: str, shards: dict[str, str], weights: dict[str, int], groups: int) -> str:
    """A datalayer.toml; shards without a weight have 1."""
    members = ", ".join(f'{name} = "{url}"' for name, url in shards.items())
    given = ", ".join(f"{name} = {weight}" for name, weight in weights.items())
    return f"""
[backends.main]
url = "{main}"
[backends.shards]
members = {{ {members} }}
weights = {{ {given} }}
slot_groups = {groups}
[routes]
users = "main"
messages = "main"
[control]
url = "{main}"
"""


class Scenario:
    """One run."""

    def __init__(self, fleet: UserFleet, job: Job, servers: dict[str, PostgresServer]) -> None:
        self.fleet = fleet
        self.job = job
        self._servers = servers

    async def fill(self, data: Path) -> Holdings:
        """Import twice; what the store holds then."""
        await self.fleet.command("schema", "upgrade")
        await asyncio.to_thread(write, data, self.job.users)
        first = (await self.fleet.command("import", "users", str(data))).told
        again = (await self.fleet.command("import", "users", str(data))).told
        for told in (first, again):
            shown = ("lines", "distinct", "new", "already", "bad_count", "digest", "seconds")
            self.fleet.tell(f"import: { {name: told[name] for name in shown} }")
        assert (first["new"], again["new"], again["digest"]) == (self.job.users, 0, first["digest"])
        await self.fleet.know(self.job.users, self.job.sample)
        return await self.fleet.holdings()

    async def through(self, words: Sequence[str], kills: Sequence[str], label: str) -> dict[str, Any]:
        """Run a command to its end, killing it at each point first; what it said last."""
        if self.job.kills:
            await self.killed(words, kills)
        with self.fleet.window(label):
            told = (await self.fleet.command(*words)).told
        await self.fleet.serve(self.job.rest_s / 5)
        return told

    def _hold(self, *, whole: bool = False) -> tuple[str, ...]:
        limit_ms = self.job.whole_hold_ms if whole else self.job.max_hold_ms
        return ("--max-hold", f"{limit_ms:g}", "--yes")

    async def killed(self, words: Sequence[str], kills: Sequence[str]) -> None:
        """Run a command once for each point at which it dies; a worker dies, too."""
        for number, point in enumerate(kills[:: -self.job.kill_every][::-1]):
            await self.fleet.command(*words, failpoints=point)
            await self.fleet.serve(self.job.rest_s / 5)
            if number == 0:
                await self.fleet.replace_worker(self._worker("writer"))

    def _worker(self, kind: str) -> str:
        return next(name for name in self.fleet.stage.workers if name.startswith(kind))

    async def outage(self, words: Sequence[str], shard: str) -> None:
        """SIGKILL of a shard's server while the command runs, and its restart; the command goes on, or can be repeated."""
        server = self._servers[shard]
        going_on = asyncio.create_task(self.fleet.stage.command(*words))
        await self.fleet.serve(self.job.rest_s / 5 + UNDER_WAY_S)
        await asyncio.to_thread(server.kill9)
        self.fleet.tell(f"SIGKILL of the server of {shard}")
        await self.fleet.serve(self.job.outage_s)
        await asyncio.to_thread(server.start)
        ended = await going_on
        error = ended.told.get("error") or {}
        self.fleet.tell(
            f"{shard} is back after {self.job.outage_s:g} s; datalayer {' '.join(words[:2])} -> {ended.code} "
            f"{error.get('message', '')}"
        )
        assert ended.code == 0 or error.get("retryable"), error
        await self.fleet.serve(self.job.rest_s / 5)

    async def over(self) -> None:
        """From one database to two shards."""
        until = ("--until", "complete") if self.job.way_back == "migrate" else ()
        await self.through(
            ("migrate", "users", "--to", "shards", *until, *self._hold(whole=True)), OVER_KILLS, "moving to shards"
        )

    async def rebalance(self) -> None:
        """To four shards, one server killed on the way; every shard then holds its share."""
        words = ("shards", "rebalance", *self._hold())
        if self.job.kills:
            await self.killed(words, MOVE_KILLS)
            await self.outage(words, "s1")
        await self.through(words, (), "rebalancing")
        rows = await self.fleet.rows_by_shard()
        share = sum(rows.values()) / 4
        self.fleet.tell(f"rows by shard {rows}, the plan's share is {share:.0f}")
        assert max(abs(count - share) for count in rows.values()) <= self.job.off_plan * share, rows

    async def moves_at_rates(self) -> None:
        """Move some groups there and back at each rate, nothing killed, and look at the calls meanwhile."""
        for number, rate in enumerate(self.job.rates):
            to, cap = ("s1", "s2")[number % 2], ("--rate", f"{rate:g}") if rate else ()
            label = f"moving at {rate:g} rows/s" if rate else "moving at full speed"
            with self.fleet.window(label):
                told = (
                    await self.fleet.command("shards", "move", "--slots", "0-255", "--to", to, *cap, *self._hold())
                ).told
            self.fleet.tell(f"{label}: {told['rows_copied']} rows, holds {told['holds_ms']}")
            await self.fleet.serve(self.job.rest_s / 5)

    async def drain(self) -> None:
        """Nothing stays on one shard."""
        await self.through(("shards", "drain", "s1", *self._hold()), DRAIN_KILLS, "draining s1")
        rows = await self.fleet.rows_by_shard()
        self.fleet.tell(f"rows by shard {rows}")
        assert "s1" not in rows, rows

    async def home(self) -> None:
        """Back to the one database."""
        if self.job.way_back == "migrate":
            words = ("migrate", "users", "--to", "main", *self._hold(whole=True))
            await self.through(words, HOME_KILLS, "moving home")
            await self.fleet.command("migrations", "complete", "--yes")
        else:
            await self.through(("migrations", "rollback", "--yes"), HOME_KILLS, "rolling back")
            await self.fleet.command("migrations", "cancel", "--yes")
        routes = (await self.fleet.command("routes")).told["routes"]
        assert [route["backend"] for route in routes if route["domain"] == "users"] == ["main"], routes


async def play(servers: Servers, directory: Path, job: Job, *, limit_ms: float = 0.0) -> dict[str, Any]:
    """The whole scenario; AssertionError names what went wrong."""
    name = f"users_{uuid4().hex[:8]}"
    main = servers.postgres(1)[0].create_database(name)
    shards: dict[str, PostgresServer] = {f"s{n}": servers.fresh_postgres(f"{name}-s{n}") for n in range(4)}
    urls = {shard: server.create_database(name) for shard, server in shards.items()}
    async with UserFleet.open_users(directory, configuration(main, urls, {"s2": 0, "s3": 0}, job.groups)) as fleet:
        scenario = Scenario(fleet, job, shards)
        before = await scenario.fill(directory.parent / "users.jsonl")
        assert (before.orphans, before.missing) == (0, 0), before
        await fleet.start(ROLES)
        await fleet.rest("one database, nothing moves", job.rest_s)
        await scenario.over()
        await fleet.rest("two shards, nothing moves", job.rest_s)
        fleet.stage.config.write_text(configuration(main, urls, {}, job.groups))
        await scenario.rebalance()
        await fleet.rest("four shards, nothing moves", job.rest_s)
        await scenario.moves_at_rates()
        await scenario.drain()
        await fleet.sweep(0)
        await fleet.stage.stop()
        swept = await fleet.sweep(job.sweep_s)
        _check_claims(await fleet.holdings(), before, swept["young"])
        await fleet.start([role.__class__(f"{role.name}-home", role.mix, role.rate, role.tasks) for role in ROLES])
        await scenario.home()
        await fleet.rest("home, nothing moves", job.rest_s)
        found = await fleet.judge_users(pages=job.pages)
        swept = await fleet.sweep(job.sweep_s)
        _check_claims(await fleet.holdings(), before, swept["young"])
        holds, latencies = await fleet.holds(), await asyncio.to_thread(fleet.latencies)
        for line in [*holds_text(holds), *latency_text(latencies)]:
            fleet.tell(line)
        fleet.tell(f"{fleet.kills} kills of processes, {job.kills:d} of a server")
    assert found.clean, found.violations[:5]
    of_groups = [ms for domain, ms in holds if parse_group(domain) is not None]
    assert of_groups
    assert not limit_ms or max(of_groups) <= limit_ms, f"a hold took {max(of_groups)} ms; the limit is {limit_ms:g} ms"
    return {
        **found.told(),
        "kills": fleet.kills,
        "holds_ms": [{"of": domain, "ms": ms} for domain, ms in holds],
        "latencies": [{"when": label, "reads": r._asdict(), "writes": w._asdict()} for label, r, w in latencies],
    }


def _check_claims(found: Holdings, before: Holdings, young: int) -> None:
    """No orphan but those that were too young for the last sweep, no name without its claim, nobody else touched."""
    assert found.missing == 0, found
    assert found.orphans == young, found.examples
    assert (found.others, found.others_digest) == (before.others, before.others_digest), (found, before)


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=3000, help="imported users that the processes know")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds of traffic between two steps")
    parser.add_argument("--outage", type=float, default=8.0, help="seconds for which a shard is down")
    parser.add_argument("--rates", default="0,4000,1000", help="rows a second; 0: as fast as they go")
    parser.add_argument("--way-back", choices=["rollback", "migrate"], default="rollback")
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--limit", type=float, default=250.0, help="ms of a slot group's hold; 0: none")
    parser.add_argument("--off-plan", type=float, default=0.05, help="share by which a shard may be off the plan")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    job = Job(
        users=chosen.users,
        sample=min(chosen.sample, chosen.users),
        rest_s=chosen.rest,
        outage_s=chosen.outage,
        rates=tuple(float(rate) for rate in chosen.rates.split(",") if rate),
        kills=not chosen.no_kills,
        way_back=chosen.way_back,
        off_plan=chosen.off_plan,
        max_hold_ms=chosen.limit or 1000.0,
    )
    with Servers() as servers, working_folder() as folder:
        told = asyncio.run(play(servers, folder / "fleet", job, limit_ms=chosen.limit))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
