"""The main job on real servers, as a scenario: Postgres -> Cassandra and back, over again, complete, and home again -
while a fleet appends, edits, deletes and reads, and migrator, writer and server are killed.

    python -m tests.acceptance.main_job [--data FILE] [--rest SECONDS]

prints what happened; any broken promise ends it with an error.
"""

import argparse
import asyncio
from pathlib import Path
from uuid import uuid4

from datalayer.cli.demo.stage import Role
from tests.acceptance.fleet import Fleet, configuration, holds_of
from tests.acceptance.kept import working_folder
from tests.servers import CassandraServer, Servers

OVER_KILLS = ("backfill.page=kill@3", "verify.page=kill@2", "await_readers.after=kill", "drain.after=kill")
"""Where the migrator dies on its way over: the last one inside the hold."""


async def play(
    servers: Servers,
    directory: Path,
    data: Path | None,
    *,
    rest_s: float,
    messages: int,
    outage_s: float = 20.0,
    home: bool = True,
) -> None:
    """Over, back, over again, complete - and, with ``home``, the same from Cassandra back to Postgres.

    AssertionError names what went wrong.
    """
    name = f"job_{uuid4().hex[:8]}"
    postgres, cassandra = servers.postgres(1)[0], servers.cassandra()
    urls = {"main": postgres.create_database(name), "cassandra": cassandra.create_keyspace(name)}
    config = configuration(urls, {"users": "main", "messages": "main"}, urls["main"])
    async with Fleet.open(directory, config, messages=messages) as fleet:
        await fleet.command("schema", "upgrade")
        if data is not None:
            await _import(fleet, data)
        await fleet.stage.preload()
        await fleet.start()
        await fleet.serve(rest_s)
        await _over(fleet, cassandra, "cassandra", rest_s, outage_s)
        await _back_and_over_again(fleet, "cassandra", rest_s)
        await fleet.command("migrations", "complete", "--yes")
        await fleet.serve(rest_s)
        if home:
            fleet.tell("home again: Cassandra -> Postgres")
            await _over(fleet, cassandra, "main", rest_s, outage_s)
            await _back_and_over_again(fleet, "main", rest_s)
            await fleet.command("migrations", "complete", "--yes")
            await fleet.serve(rest_s)
        found = await fleet.judge()
        assert found.clean, found.violations[:5]
        fleet.tell(f"{fleet.kills} kills of processes, {1 + home} of the server: everything acknowledged is there")


async def _import(fleet: Fleet, data: Path) -> None:
    first = await fleet.command("import", "messages", str(data))
    again = await fleet.command("import", "messages", str(data))
    for told in (first.told, again.told):
        fleet.tell(f"import: { {k: v for k, v in told.items() if k != 'next_steps'} }")
    assert again.told["new"] == 0
    assert again.told["digest"] == first.told["digest"]


async def _over(fleet: Fleet, cassandra: CassandraServer, target: str, rest_s: float, outage_s: float) -> None:
    """One way over with every kill; the migration of the round must be at ``target`` afterwards."""
    migrate = ("migrate", "messages", "--to", target, "--yes")
    for number, failpoint in enumerate(OVER_KILLS):
        await fleet.command(*migrate, failpoints=failpoint)
        await fleet.serve(rest_s / 2)
        if number == 0:
            await fleet.kill_worker("writer-1" if target == "cassandra" else "writer-3")
            await fleet.stage.start([Role("writer-3" if target == "cassandra" else "writer-4", "writer", 30)])
        if number == 1:
            cassandra.kill9()
            fleet.tell("SIGKILL of Cassandra")
            going_on = asyncio.create_task(fleet.stage.command(*migrate, "--until", "verified"))
            await fleet.serve(outage_s)
            await asyncio.to_thread(cassandra.start)
            ended = await going_on
            fleet.tell(f"Cassandra is back after {outage_s:g} s; migrate --until verified -> {ended.code}")
            assert ended.code == 0, ended.told.get("error")
    ended = await fleet.command(*migrate)
    await fleet.serve(rest_s)
    await fleet.verdict()
    status = await fleet.command("migrations", "status")
    fleet.tell(f"phase {status.told['phase']}, holds {holds_of(status.told)} ms, rows {status.told['rows_copied']}")
    assert ended.code == 0


async def _back_and_over_again(fleet: Fleet, target: str, rest_s: float) -> None:
    await fleet.command("migrations", "rollback", "--yes", failpoints="fence_for_good.after=kill")
    await fleet.serve(rest_s)
    await fleet.command("migrations", "rollback", "--yes")
    await fleet.serve(rest_s)
    await fleet.verdict()
    await fleet.command("migrate", "messages", "--to", target, "--yes")
    await fleet.serve(rest_s)
    await fleet.verdict()
    status = await fleet.command("migrations", "status")
    fleet.tell(f"phase {status.told['phase']}, holds {holds_of(status.told)} ms")


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rest", type=float, default=5.0)
    parser.add_argument("--messages", type=int, default=5000)
    chosen = parser.parse_args()
    with Servers() as servers, working_folder() as folder:
        asyncio.run(play(servers, folder / "fleet", chosen.data, rest_s=chosen.rest, messages=chosen.messages))


if __name__ == "__main__":
    main()
