"""datalayer shards: what lies on which shard, and moving slots between them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from statistics import median
from typing import Any, Final

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.progress import Watcher
from datalayer.cli.running import Stop, holder, moving_bulk, run, with_places
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.errors import InvalidArgument, NotFinished
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.rebalance import By, Load, Move, plan_moves
from datalayer.migrators.shards import (
    Moved,
    Mover,
    Sharding,
    check_shard,
    groups_of_slots,
    loads,
    sharding_of,
    unfinished,
)
from datalayer.migrators.sweep import Swept, sweep_claims
from datalayer.routing.places import Places

Chosen = tuple[Sharding, list[Load], list[Move], int]
Choose = Callable[[Places], Coroutine[Any, Any, Chosen]]
_HEAD: Final = ("shard", "weight", "groups", "slots", "rows", "bytes")

_domain = click.argument("domain", default="users")
_by = click.option(
    "--by", type=click.Choice(["rows", "bytes", "slots"]), default="rows", show_default=True, help="What to even out."
)
_drain = click.option("--drain", multiple=True, metavar="SHARD", help="Leave nothing there.")
_weights = click.option("--weights", metavar="S0=2,S1=1", help="Shares, instead of those of the configuration.")


def _moving(function: Any) -> Any:
    """The options of every command that moves slot groups."""
    for option in reversed(
        (
            click.option("--parallel", type=int, default=1, show_default=True, metavar="N", help="Groups at a time."),
            click.option("--rate", type=float, metavar="ROWS_PER_S", help="Cap of each group's backfill."),
            click.option(
                "--max-hold", type=float, default=1000.0, show_default=True, metavar="MS", help="Longest write pause."
            ),
            click.option("--assume-dead", multiple=True, metavar="GLOB", help="Processes not to wait for."),
            click.option("--purge", is_flag=True, help="Drop a group's old tables when it has moved."),
            click.option("--yes", is_flag=True, help="Move without asking."),
        )
    ):
        function = option(function)
    return function


@group()
def shards() -> None:
    """Look at the shards of DOMAIN (default: users), or move slots between them while applications run."""


@command("list")
@_domain
def list_(console: Console, domain: str) -> None:
    """Rows, bytes and slots of each shard, by the shards' own estimates."""

    async def look(places: Places) -> tuple[Sharding, list[Load], int]:
        sharding = await sharding_of(places, domain)
        return sharding, await loads(places, sharding), len(await unfinished(places, domain))

    sharding, found, begun = with_places(console, look)
    rows = _by_shard(sharding, found)
    data = {"domain": domain, "backend": sharding.backend.name, "unfinished_moves": begun, "shards": rows}
    steps = ["datalayer shards rebalance --yes"] if begun else []
    console.result(data, table([[str(row[name]) for name in _HEAD] for row in rows], _HEAD), next_steps=steps)


@command()
@_domain
@_by
@_drain
@_weights
def plan(console: Console, domain: str, by: By, drain: tuple[str, ...], weights: str | None) -> None:
    """Show what `rebalance` would move, and change nothing."""
    sharding, found, moves, begun = with_places(console, _choose(domain, by, drain, weights))
    steps = [f"datalayer shards rebalance {domain}"] if moves or begun else []
    console.result(_told(sharding, found, moves, begun), _plan_text(sharding, found, moves, begun), next_steps=steps)


@command()
@_domain
@_by
@_drain
@_weights
@_moving
def rebalance(
    console: Console, domain: str, by: By, drain: tuple[str, ...], weights: str | None, **chosen: Any
) -> None:
    """Move slot groups until every shard holds its share. Killed anywhere and run again, it goes on."""
    _carry_out(console, domain, _choose(domain, by, drain, weights), **chosen)


@command()
@click.argument("shard")
@_domain
@_by
@_moving
def drain(console: Console, shard: str, domain: str, by: By, **chosen: Any) -> None:
    """Move everything away from SHARD."""
    _carry_out(console, domain, _choose(domain, by, (shard,), None), **chosen)


@command()
@_domain
@click.option("--slots", required=True, metavar="0-63,...", help="Whole slot groups.")
@click.option("--to", "to", required=True, metavar="SHARD")
@_moving
def move(console: Console, domain: str, slots: str, to: str, **chosen: Any) -> None:
    """Move these slots to one shard."""

    async def choose(places: Places) -> Chosen:
        sharding = await sharding_of(places, domain)
        check_shard(sharding, to)
        found = await loads(places, sharding)
        groups = set(groups_of_slots(sharding, slots))
        moves = [Move(load, to) for load in found if load.group in groups and load.shard != to]
        return sharding, found, moves, len(await unfinished(places, domain))

    _carry_out(console, domain, choose, **chosen)


@command()
def sweep(console: Console) -> None:
    """Free unique names and addresses that no user has: what changes left behind that died half way."""

    async def work(stop: Stop) -> Swept:
        async with open_places(console.settings(), SystemClock(), claim=False) as places:
            return await sweep_claims(places, stop)

    swept = run(console, work)
    data = {"claims": swept.claims, "freed": swept.freed, "young": swept.young}
    text = f"{swept.claims} claims, {swept.freed} freed, {swept.young} orphans too young to judge"
    console.result(data, text)


def _choose(domain: str, by: By, drained: Sequence[str], weights: str | None) -> Choose:
    async def choose(places: Places) -> Chosen:
        sharding = await sharding_of(places, domain)
        for shard in drained:
            check_shard(sharding, shard)
        shares = dict(sharding.backend.weights) if weights is None else _parsed(sharding, weights)
        found = await loads(places, sharding)
        moves = plan_moves(found, shares, drain=drained, by=by)
        return sharding, found, moves, len(await unfinished(places, domain))

    return choose


def _parsed(sharding: Sharding, weights: str) -> dict[str, float]:
    shares = dict(sharding.backend.weights)
    for part in weights.split(","):
        name, _, value = part.partition("=")
        try:
            shares[check_shard(sharding, name.strip())] = float(value)
        except ValueError as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"{part!r} is no weight", hint="for example s0=2,s1=1") from None
        if not 0 <= shares[name.strip()] < float("inf"):
            raise InvalidArgument(f"the weight of {name.strip()} is {value}; it must be a number of at least 0")
    return shares


def _carry_out(
    console: Console,
    domain: str,
    choose: Choose,
    *,
    parallel: int,
    rate: float | None,
    max_hold: float,
    assume_dead: tuple[str, ...],
    purge: bool,
    yes: bool,
) -> None:
    options = MigrateOptions(rate_rows_per_s=rate, max_hold_ms=max_hold, assume_dead=assume_dead).checked()
    sharding, found, moves, begun = with_places(console, choose)
    console.way_on = [f"datalayer shards rebalance {domain} --yes"]
    if not moves and not begun:
        console.result(_told(sharding, found, moves, begun) | _done(Moved()), "every shard holds its share")
        return
    console.say(_plan_text(sharding, found, moves, begun))
    if not yes and not console.confirmed(f"Move {len(moves) + begun} slot group(s) now?"):
        raise NotFinished("nothing was moved: the moves were not confirmed")

    async def work(stop: Stop) -> Moved:
        watcher = Watcher(console)
        async with open_places(console.settings(), SystemClock(), claim=False) as places:
            mover = Mover(
                places,
                domain,
                holder=holder("shards"),
                options=options,
                parallel=parallel,
                purge=purge,
                reporter=watcher,
                failpoints=stop,
            )
            try:
                return await mover.run(moves)
            finally:
                watcher.close()

    with moving_bulk():
        moved = run(console, work)
    after, now, _, _ = with_places(console, choose)
    told = _told(after, now, [], 0) | _done(moved)
    holds = told["holds_ms"]
    text = f"{len(moved.groups)} slot groups moved, {moved.rows} rows; holds: {holds['count']}"
    if holds["count"]:
        text += f", median {holds['median']} ms, maximum {holds['maximum']} ms"
    console.result(told, f"{text}\n{_shard_text(after, now)}")


def _done(moved: Moved) -> dict[str, Any]:
    holds = moved.holds_ms
    told = {"count": len(holds), "median": round(median(holds), 2), "maximum": max(holds)} if holds else {"count": 0}
    return {"moved": moved.groups, "rows_copied": moved.rows, "holds_ms": told}


def _told(sharding: Sharding, found: Sequence[Load], moves: Sequence[Move], begun: int) -> dict[str, Any]:
    listed = [
        {
            "slots": m.load.group.slots,
            "from": m.load.shard,
            "to": m.to,
            "rows": m.load.rows,
            "bytes": m.load.size,
        }
        for m in moves
    ]
    return {
        "domain": sharding.domain,
        "unfinished_moves": begun,
        "moves": listed,
        "shards": _by_shard(sharding, found),
        "shards_after": _by_shard(sharding, _after(found, moves)),
    }


def _after(found: Sequence[Load], moves: Sequence[Move]) -> list[Load]:
    to = {m.load.group: m.to for m in moves}
    return [Load(load.group, to.get(load.group, load.shard), load.rows, load.size) for load in found]


def _by_shard(sharding: Sharding, found: Sequence[Load]) -> list[dict[str, Any]]:
    rows = []
    for name, weight in sorted(sharding.backend.weights.items()):
        mine = [load for load in found if load.shard == name]
        slots = sum(len(load.group) for load in mine)
        size = sum(load.size for load in mine)
        values = (name, weight, len(mine), slots, sum(load.rows for load in mine), size)
        rows.append(dict(zip(_HEAD, values, strict=True)))
    return rows


def _shard_text(sharding: Sharding, found: Sequence[Load]) -> str:
    return table([[str(row[name]) for name in _HEAD] for row in _by_shard(sharding, found)], _HEAD)


def _plan_text(sharding: Sharding, found: Sequence[Load], moves: Sequence[Move], begun: int) -> str:
    lines = [_shard_text(sharding, found)]
    if begun:
        lines.append(f"{begun} moves were begun and will be finished first")
    if not moves:
        return "\n".join([*lines, "no further move would even out anything"])
    rows = sum(m.load.rows for m in moves)
    lines.append(f"{len(moves)} slot groups would move, about {rows} rows; afterwards:")
    lines.append(_shard_text(sharding, _after(found, moves)))
    return "\n".join(lines)


for _one in (list_, plan, rebalance, drain, move, sweep):
    shards.add_command(_one)
