"""datalayer search: a new index beside the one in use."""

from __future__ import annotations

from typing import Literal

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.migrate import Request, carry_out
from datalayer.cli.running import moving_bulk, with_places
from datalayer.errors import PreconditionFailed
from datalayer.layer import claim_first_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.migrators.targets import standing_of
from datalayer.routing.indexes import SEARCH
from datalayer.routing.places import Places


@group()
def search() -> None:
    """Build the search index anew."""


@command("rebuild")
@click.option("--until", type=click.Choice([str(u) for u in Until if u is not Until.ARMED]), default="complete")
@click.option("--workers", type=int, default=2, show_default=True, metavar="N", help="Workers that fill it.")
@click.option("--rate", type=float, metavar="ROWS_PER_S", help="Cap of the filling; `migrations throttle` changes it.")
@click.option("--verify", type=click.Choice(["full", "sample"]), default="full", show_default=True)
@click.option("--assume-dead", multiple=True, metavar="GLOB", help="Processes not to wait for: host:pid, host or name.")
@click.option("--yes", is_flag=True, help="Let the new index be asked without asking you.")
def rebuild(
    console: Console,
    /,
    *,
    until: str,
    workers: int,
    rate: float | None,
    verify: Literal["full", "sample"],
    assume_dead: tuple[str, ...],
    yes: bool,
) -> None:
    """Fill a new index from messages and users, compare it with them, and have it asked instead of the old one.

    The old one answers until then, and both follow what is written. It is the move of search to the backend where it is:
    `datalayer migrations` shows it and steers it, and `migrations purge` drops the old index afterwards.
    """

    async def look(places: Places) -> str:
        await claim_first_places(console.settings(), places, build_index=True)
        routing, live = await standing_of(places, SEARCH)
        if live is not None and live.source.backend != live.target.backend:
            raise PreconditionFailed(
                f"search is moving to {live.target.backend!r} ({live.id}), which builds a new index too",
                hint="datalayer migrations complete, or rollback and cancel, that one first",
            )
        return routing.authority.backend

    backend = with_places(console, look)
    options = MigrateOptions(
        until=Until(until), workers=workers, rate_rows_per_s=rate, verify=verify, assume_dead=assume_dead, yes=yes
    ).checked()
    with moving_bulk():
        carry_out(console, Request(console.settings(), SEARCH, backend, options))


search.add_command(rebuild)
