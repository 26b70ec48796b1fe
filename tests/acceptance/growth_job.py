"""The one scenario over everything: a service grows from the embedded default through every size and one size back, while
its processes go on.

    python -m tests.acceptance.growth_job [--data ../shared/data/chat.jsonl.gz] [--seconds 10] [--users 2000]

Messages begin in SQLite and end in Cassandra, users in four shards of Postgres; what other domains this version serves
goes along. The command that takes the steps is killed at each size and run again. At the end every operation of every
process is judged, the table is printed, and anything but zero ends it with 1.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from datalayer.layer import MOVABLE
from datalayer.migrators.sizes import SIZES, Size
from tests.acceptance.growth_fleet import GrowthFleet, Judged, table
from tests.acceptance.side_traffic import TTL_S
from tests.acceptance.users_data import write
from tests.pairs import stores_of
from tests.servers import Servers

KILLS = {"100k": "backfill.page=kill@3", "1m": "", "100m": "drain.after=kill"}
"""Where the first `datalayer grow` of a size dies: in a copy, or inside a hold."""
WHERE = {
    "100k": {"users": "postgres", "messages": "postgres"},
    "1m": {"users": "postgres", "messages": "postgres"},
    "100m": {"users": "shards", "messages": "cassandra"},
}
"""Where domains must be after each size; of others the plan itself says it."""


@dataclass(frozen=True, slots=True)
class Job:
    """How large the scenario is."""

    data: Path | None = None
    messages: int = 3000
    users: int = 2000
    sample: int = 400
    rest_s: float = 10.0
    kills: bool = True
    groups: int = 8
    few: bool = False
    """Few processes at low rates."""


def configuration(servers: Servers, folder: Path, name: str, groups: int) -> str:
    """Every backend of every size from the beginning: processes must know one before anything moves there."""
    postgres = servers.postgres(1)[0].create_database(name)
    shards = {f"s{n}": servers.fresh_postgres(f"{name}-s{n}").create_database(name) for n in range(4)}
    members = ", ".join(f'{shard} = "{url}"' for shard, url in shards.items())
    return f"""
[backends.main]
url = "sqlite:///{folder}/main.sqlite"
[backends.postgres]
url = "{postgres}"
pool_max = 8
[backends.shards]
members = {{ {members} }}
slot_groups = {groups}
pool_max = 16
[backends.cassandra]
url = "{servers.cassandra().create_keyspace(name)}"
[backends.redis]
url = "{servers.redis().create_database()}"
[backends.cluster]
url = "{servers.redis_cluster().url}"
[backends.s3]
url = "{servers.s3().create_bucket(name.replace("_", "-"))}"
[backends.opensearch]
url = "{servers.opensearch().url_of(name.replace("_", "-"))}"
"""


def kept(size: str) -> list[str]:
    """Options for the domains whose stores of that size this version has not: they stay where they began."""
    words = []
    for domain, kinds in SIZES[Size(size)].items():
        if domain in MOVABLE and not {kind.name for kind in kinds} & set(stores_of(domain)):
            words += ["--use", f"{domain}={'memory' if domain in {'presence', 'typing'} else 'main'}"]
    return words


async def play(servers: Servers, directory: Path, job: Job) -> list[Judged]:
    """The whole scenario; AssertionError names what went wrong on the way, the rows what the judges found."""
    folder = directory / "data"
    folder.mkdir(parents=True)
    config = configuration(servers, folder, f"grow_{uuid4().hex[:8]}", job.groups)
    async with GrowthFleet.open(directory / "fleet", config, messages=job.messages) as fleet:
        await _fill(fleet, directory, job)
        await fleet.start(few=job.few)
        await fleet.serve(job.rest_s)
        for size in ("100k", "1m", "100m"):
            await _grow(fleet, size, job)
        before = await fleet.backends()
        fleet.tell("one size back")
        await _grow(fleet, "1m", job)
        after = await fleet.backends()
        fleet.tell(f"{before} -> {after}")
        judged = await fleet.judge() + await fleet.compare()
        moves = await fleet.moves()
    print(table(moves, ("migration", "source", "target", "phase", "rows", "longest hold ms")))
    rows = [(j.what, j.operations, j.lost, j.ghost, j.stale, j.other, j.remark) for j in judged]
    print(table(rows, ("domain", "operations", "lost", "ghost", "stale", "other", "")))
    print(f"{fleet.kills} kills; {'clean' if all(j.clean for j in judged) else 'NOT CLEAN'}", flush=True)
    return judged


async def _fill(fleet: GrowthFleet, directory: Path, job: Job) -> None:
    """The embedded default with data in it: imported users and messages, and rooms for the workload."""
    users = directory / "users.jsonl"
    await asyncio.to_thread(write, users, job.users)
    told = (await fleet.command("import", "users", str(users))).told
    assert told["new"] == job.users, told
    if job.data is not None:
        first = (await fleet.command("import", "messages", str(job.data))).told
        again = (await fleet.command("import", "messages", str(job.data))).told
        fleet.tell(f"{first['distinct']} messages imported, digest {first['digest']}")
        assert (again["new"], again["digest"]) == (0, first["digest"])
    await fleet.messages.stage.preload()
    await fleet.users.know(job.users, job.sample)


async def _grow(fleet: GrowthFleet, size: str, job: Job) -> None:
    """Plan, grow (killed once on the way, where there is a way), look where everything is."""
    chosen = ("--size", size, "--complete", "--longest-ttl", str(TTL_S), *kept(size))
    words = ("grow", *chosen, "--yes")
    planned = await fleet.users.stage.command("plan", *chosen)
    assert planned.code == 0, planned.told
    steps = [step["command"] for step in planned.told["steps"]]
    fleet.tell(f"size {size}: {len(steps)} steps, about {planned.told['seconds']} s: {steps}")
    if steps and job.kills and KILLS[size]:
        await fleet.command(*words, failpoints=KILLS[size])
        await fleet.serve(job.rest_s / 2)
    told = (await fleet.command(*words)).told
    fleet.tell(f"size {size} reached by {told['done']}")
    await fleet.serve(job.rest_s)
    backends = await fleet.backends()
    assert {domain: backends[domain] for domain in WHERE[size]} == WHERE[size], backends
    for row in await fleet.compare():
        fleet.tell(f"{row.what}: {row.operations} records compared in full, {row.other} differ")
        assert row.clean, row


def main() -> int:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="traffic between two steps")
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--few", action="store_true", help="few processes at low rates")
    parser.add_argument("--keep", type=Path, help="folder that stays, for looking into")
    chosen = parser.parse_args()
    job = Job(
        data=chosen.data,
        messages=chosen.messages,
        users=chosen.users,
        sample=min(400, chosen.users),
        rest_s=chosen.seconds,
        kills=not chosen.no_kills,
        few=chosen.few,
        groups=4 if chosen.few else 8,
    )
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(Servers())
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        judged = asyncio.run(play(servers, folder, job))
    return 0 if all(row.clean for row in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
