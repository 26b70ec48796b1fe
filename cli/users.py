"""datalayer users: where users lie who have a home region."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.running import Stop, holder, run
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.opening import open_places
from datalayer.migrators.regions import Outside, adopt, finish, outside

if TYPE_CHECKING:
    from datalayer.types import User

_HEAD = ("user", "region", "lies in", "shard")


@group()
def users() -> None:
    """Move users between regions, and check where they lie."""


@command("move-region")
@click.argument("user_id", metavar="ID")
@click.option("--to", "to", required=True, metavar="REGION")
def move_region(console: Console, user_id: str, to: str) -> None:
    """Give the user ID another home region and bring its row there, while it is used.

    Killed anywhere, the same command goes on; so does the next write of the user.
    """
    settings = console.settings()

    async def work(stop: Stop) -> User:
        del stop
        async with DataLayer.open(settings, options=LayerOptions(name="move-region")) as layer:
            return await layer.users.move_region(user_id, to)

    console.way_on = [f"datalayer users move-region {user_id} --to {to}"]
    user = run(console, work)
    console.result({"user": str(user.id), "region": user.region}, f"user {user.id} lies in region {user.region}")


@command("check-regions")
@click.option("--mend", is_flag=True, help="Finish moves that died; where regions are new, begin with them.")
def check_regions(console: Console, *, mend: bool) -> ExitCode | None:
    """List rows that lie outside their user's region; there must be none."""
    settings = console.settings()

    async def work(stop: Stop) -> list[Outside]:
        del stop
        if mend:
            async with open_places(settings, SystemClock(), claim=False) as places:
                await adopt(places, holder("check-regions"))
        async with DataLayer.open(settings, options=LayerOptions(name="check-regions")) as layer:
            found = await outside(layer.places)
            if mend and found:
                await finish(layer.places, found)
                found = await outside(layer.places)
            return found

    found = run(console, work)
    rows = [[one.user, one.region, one.lies_in, one.shard] for one in found]
    if rows:
        console.say("moves that died on their way; finish them: datalayer users check-regions --mend")
    text = table(rows, _HEAD) if rows else "every user lies in the user's region"
    console.result({"outside": [asdict(one) for one in found]}, text)
    return ExitCode.DIFFERENCES if found else None


users.add_command(move_region)
users.add_command(check_regions)
