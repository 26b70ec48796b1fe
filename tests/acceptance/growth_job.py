"""The one scenario over everything: a service grows from the embedded default through every size and one size back, while
its processes go on.

    python -m tests.acceptance.growth_job [--data ../shared/data/chat.jsonl.gz] [--seconds 10] [--users 2000]

Messages begin in SQLite and end in Cassandra, users in four shards of Postgres, presence and sessions in a Redis cluster,
media in S3, search in OpenSearch. The command that takes the steps is killed on the way to each size and run again, and so
are processes of the service. At the end every operation of every process is judged, tables are printed, and anything but
zero ends it with 1.
"""

import argparse
import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.acceptance.growth_fleet import GrowthFleet, Judged, holds_line, table
from tests.acceptance.kept import working_folder
from tests.acceptance.side_kinds import TTL_S
from tests.acceptance.users_data import SINCE_S, write
from tests.servers import Servers

BACK = "1m again"
"""One size back."""
KILLS = {
    "100k": ("backfill.page=kill@3",),
    "1m": ("publish_other.before=kill",),
    "100m": ("drain.after=kill", "backfill.page=kill@2"),
    BACK: ("fence_for_good.after=kill",),
}
"""Where runs of `datalayer grow` die on the way to a size: in a copy, before queries go to another index, inside a hold."""
_MEDIUM = {
    "users": "postgres",
    "messages": "postgres",
    "presence": "cluster",
    "sessions": "cluster",
    "media": "s3",
    "search": "opensearch",
}
WHERE = {
    "100k": {**_MEDIUM, "presence": "redis", "sessions": "redis", "search": "postgres"},
    "1m": _MEDIUM,
    "100m": {**_MEDIUM, "users": "shards", "conversations": "shards", "messages": "cassandra"},
    BACK: _MEDIUM,
}
"""Where domains must be after each size."""
SIZE_OF = {BACK: "1m"}
CONVERSATIONS = 20


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


async def play(servers: Servers, directory: Path, job: Job) -> list[Judged]:
    """The whole scenario; AssertionError names what went wrong on the way, the rows what the judges found."""
    folder = directory / "data"
    folder.mkdir(parents=True)
    config = configuration(servers, folder, f"grow_{uuid4().hex[:8]}", job.groups)
    async with GrowthFleet.open(directory / "fleet", config, messages=job.messages) as fleet:
        with fleet.timed("import, and a room for each process"):
            imported = await _fill(fleet, directory, job)
        await fleet.start(few=job.few)
        await fleet.serve(job.rest_s)
        for size in ("100k", "1m", "100m"):
            await _grow(fleet, size, job)
        with fleet.timed("import again, from Cassandra"):
            judged = [await imported.again(fleet, "imported messages, in Cassandra")]
        before = await fleet.backends()
        await _grow(fleet, BACK, job)
        fleet.tell(f"one size back: {before} -> {await fleet.backends()}")
        with fleet.timed("judgement of every operation"):
            judged += await fleet.judge()
        with fleet.timed("search, imported messages and both sides compared in full"):
            judged += [await fleet.index(), await imported.again(fleet, "imported messages, in the end")]
            judged += await fleet.compare()
        await _report(fleet, judged)
    return judged


async def _report(fleet: GrowthFleet, judged: list[Judged]) -> None:
    moves = await fleet.moves()
    head = ("migration", "source", "target", "phase", "rows copied", "seconds", "holds", "longest ms")
    print(table([move.row for move in moves], head))
    times = [*fleet.times, ("everything, traffic in between included", time.monotonic() - fleet.began)]
    print(table([(what, f"{seconds:.1f}") for what, seconds in times], ("part", "seconds")))
    rows = [(j.what, j.operations, j.lost, j.ghost, j.stale, j.other, j.remark) for j in judged]
    print(table(rows, ("what", "operations", "lost", "ghost", "stale", "other", "")))
    operations = sum(j.operations for j in judged)
    found = ", ".join(f"{sum(getattr(j, kind) for j in judged)} {kind}" for kind in ("lost", "ghost", "stale", "other"))
    clean = "clean" if all(j.clean for j in judged) else "NOT CLEAN"
    print(
        f"{operations} operations and comparisons: {found}; "
        f"{len(moves)} migrations, {holds_line(moves)}; {fleet.kills} processes killed; {clean}",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class Imported:
    """A file of messages, and what its first import said."""

    path: Path
    distinct: int
    digest: str

    async def again(self, fleet: GrowthFleet, what: str) -> Judged:
        """Every message of the file is there as it was stored first, wherever messages lie now."""
        told = (await fleet.command("import", "messages", str(self.path))).told
        differ = int(told["digest"] != self.digest)
        remark = f"digest {told['digest']}" + (f", not {self.digest}" if differ else ", as imported")
        return Judged(what, told["distinct"], told["new"], 0, differ, self.distinct - told["distinct"], remark)


async def _fill(fleet: GrowthFleet, directory: Path, job: Job) -> Imported:
    """The embedded default with data in it: imported users and messages, avatars, and rooms for the workload."""
    users = directory / "users.jsonl"
    await asyncio.to_thread(write, users, job.users)
    told = (await fleet.command("import", "users", str(users))).told
    assert told["new"] == job.users, told
    path = job.data or directory / "messages.jsonl"
    if job.data is None:
        await asyncio.to_thread(_write_messages, path, job.messages)
    first = (await fleet.command("import", "messages", str(path))).told
    imported = Imported(path, first["distinct"], first["digest"])
    fleet.tell(f"{imported.distinct} messages imported, digest {imported.digest}")
    assert (await imported.again(fleet, "")).clean
    await fleet.avatars(job.sample)
    await fleet.messages.stage.preload()
    await fleet.users.know(job.users, job.sample)
    return imported


def _write_messages(path: Path, messages: int) -> None:
    def line(n: int) -> dict[str, Any]:
        room = f"c{n % CONVERSATIONS}"
        return {"conversation": room, "id": n, "sender": n % 7, "sent_at": SINCE_S + n, "body": f"message {n}"}

    path.write_text("".join(f"{json.dumps(line(n))}\n" for n in range(messages)))


async def _grow(fleet: GrowthFleet, to: str, job: Job) -> None:
    """Plan, grow (killed on the way, where there is a way), look where everything is, compare in full."""
    size = SIZE_OF.get(to, to)
    chosen = ("--size", size, "--complete", "--longest-ttl", str(TTL_S))
    words = ("grow", *chosen, "--yes")
    planned = await fleet.users.stage.command("plan", *chosen)
    assert planned.code == 0, planned.told
    steps = [step["command"] for step in planned.told["steps"]]
    fleet.tell(f"size {to}: {len(steps)} steps, about {planned.told['seconds']} s: {steps}")
    with fleet.timed(f"grow to {to}, kills included"):
        for failpoint in KILLS[to] if job.kills else ():
            await fleet.command(*words, failpoints=failpoint)
            await fleet.replace()
            await fleet.serve(job.rest_s / 2)
        told = (await fleet.command(*words)).told
    fleet.tell(f"size {to} reached by {told['done']}")
    await fleet.serve(job.rest_s)
    backends = await fleet.backends()
    assert {domain: backends[domain] for domain in WHERE[to]} == WHERE[to], backends
    if to == BACK:
        return  # compared in the end, when nobody writes any more
    with fleet.timed(f"both sides compared in full at {to}"):
        for row in await fleet.compare():
            fleet.tell(f"{row.what}: {row.operations} records compared in full, {row.other} differ")
            assert row.clean, row


def main() -> None:
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
        folder = chosen.keep or stack.enter_context(working_folder())
        judged = asyncio.run(play(servers, folder, job))
        if not all(row.clean for row in judged):
            raise SystemExit(1)  # within the block: the ledgers stay


if __name__ == "__main__":
    main()
