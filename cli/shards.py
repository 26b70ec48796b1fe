"""datalayer shards: what lies on which shard, and moving slots between them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, Final

import click
from click.core import ParameterSource

from datalayer.cli.console import Console, command, group
from datalayer.cli.progress import Watcher
from datalayer.cli.running import Stop, holder, moving_bulk, run, with_places
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.errors import InvalidArgument, NotFinished
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.rebalance import By, Load, Move, check_capacity, plan_by_region, plan_moves
from datalayer.migrators.shards import (
    Estimate,
    Moved,
    Mover,
    Sharding,
    Split,
    begun_split,
    check_shard,
    estimate,
    groups_of_slots,
    loads,
    sharding_of,
    unfinished,
    with_begun,
)
from datalayer.migrators.sweep import Swept, sweep_claims
from datalayer.routing.places import Places

LOAD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was planned: where things lie once the moves begun before are finished, what should move then, how many were
    begun, what it will cost.
    """

    sharding: Sharding
    loads: list[Load]
    moves: list[Move]
    begun: int
    cost: Estimate
    split: Split | None = None
    """The split that the moves are of; its groups are those that it began with."""
    goes_on: bool = False
    """It was begun before."""


Choose = Callable[[Places], Coroutine[Any, Any, Chosen]]
_HEAD: Final = ("shard", "weight", "groups", "slots", "rows", "bytes")

_domain = click.argument("domain", default="users")
_by = click.option(
    "--by",
    type=click.Choice(["rows", "bytes", "load", "slots"]),
    default="rows",
    show_default=True,
    help=f"What to even out; the load is watched for {LOAD_S:g} s.",
)
_add = click.option("--add", multiple=True, metavar="SHARD", help="Let it take a share though its weight is 0.")
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
@_add
@_drain
@_weights
def plan(
    console: Console, /, domain: str, *, by: By, add: tuple[str, ...], drain: tuple[str, ...], weights: str | None
) -> None:
    """Show what `rebalance` would move, and change nothing."""
    chosen = with_places(console, _choose(domain, by, add, drain, weights))
    steps = [_typed("rebalance")] if chosen.moves or chosen.begun else []
    console.result(_told(chosen), _plan_text(chosen), next_steps=steps)


@command()
@_domain
@_by
@_add
@_drain
@_weights
@_moving
def rebalance(
    console: Console,
    /,
    domain: str,
    *,
    by: By,
    add: tuple[str, ...],
    drain: tuple[str, ...],
    weights: str | None,
    **chosen: Any,
) -> None:
    """Move slot groups until every shard holds its share. Killed anywhere and run again, it goes on."""
    _carry_out(console, domain, _choose(domain, by, add, drain, weights), **chosen)


@command()
@click.argument("shard")
@_domain
@_by
@_moving
def drain(console: Console, shard: str, domain: str, by: By, **chosen: Any) -> None:
    """Move everything away from SHARD."""
    _carry_out(console, domain, _choose(domain, by, (), (shard,), None), **chosen)


@command()
@click.argument("shard")
@_domain
@click.option("--to", "to", required=True, metavar="SHARD")
@_by
@_moving
def split(console: Console, shard: str, domain: str, to: str, by: By, **chosen: Any) -> None:
    """Move half of what SHARD holds to another; the other shards are left as they are.

    Killed anywhere and run again, it goes on with the half that it began with.
    """

    async def choose(places: Places) -> Chosen:
        sharding = await sharding_of(places, domain)
        if check_shard(sharding, to) == check_shard(sharding, shard):
            raise InvalidArgument(f"{shard!r} cannot be split onto itself")
        found = await with_begun(places, domain, await loads(places, sharding, watch_s=LOAD_S if by == "load" else 0.0))
        begun = await begun_split(places, sharding, shard, to)
        if begun is not None:
            moves = [Move(load, to) for load in found if load.group.name in begun.groups and load.shard != to]
            return replace(await _chosen(places, sharding, found, moves), split=begun, goes_on=True)
        moves = plan_moves([load for load in found if load.shard == shard], {shard: 1.0, to: 1.0}, by=by)
        names = frozenset(move.load.group.name for move in moves)
        return replace(await _chosen(places, sharding, found, moves), split=Split(shard, to, names))

    _carry_out(console, domain, choose, **chosen)


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
        groups = set(groups_of_slots(sharding, slots))
        found = await with_begun(places, domain, await loads(places, sharding))
        moves = [Move(load, to) for load in found if load.group in groups and load.shard != to]
        return await _chosen(places, sharding, found, moves)

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


def _typed(name: str | None) -> str:
    """This command with what was given to it, under a name; without --config and --yes."""
    context = click.get_current_context()
    words = ["datalayer", "shards", str(name)]
    for parameter in context.command.params:
        given = str(parameter.name)
        typed = context.get_parameter_source(given) is ParameterSource.COMMANDLINE
        if given not in context.params or not typed or given == "yes":
            continue
        value = context.params[given]
        option = parameter.opts[:1] if isinstance(parameter, click.Option) else []
        for one in value if isinstance(value, tuple) else (value,):
            words += option if one is True else [*option, shlex.quote(str(one))]
    return " ".join(words)


def _choose(domain: str, by: By, added: Sequence[str], drained: Sequence[str], weights: str | None) -> Choose:
    async def choose(places: Places) -> Chosen:
        sharding = await sharding_of(places, domain)
        for shard in (*drained, *added):
            check_shard(sharding, shard)
        shares = dict(sharding.backend.weights) if weights is None else _parsed(sharding, weights)
        usual = mean([share for share in shares.values() if share] or [1.0])
        shares |= {shard: shares[shard] or usual for shard in added}
        regions = sharding.backend.regions if domain == "users" else {}
        found = await with_begun(places, domain, await loads(places, sharding, watch_s=LOAD_S if by == "load" else 0.0))
        moves = plan_by_region(found, shares, regions, drain=drained, by=by)
        return await _chosen(places, sharding, found, moves)

    return choose


async def _chosen(places: Places, sharding: Sharding, found: list[Load], moves: list[Move]) -> Chosen:
    check_capacity(found, moves, sharding.backend.capacity)
    begun = len(await unfinished(places, sharding.domain))
    return Chosen(sharding, found, moves, begun, await estimate(places, sharding.domain, moves))


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
    before = with_places(console, choose)
    console.way_on = [f"{_typed(click.get_current_context().info_name)} --yes"]
    if not before.moves and not before.begun and not before.goes_on:
        console.result(_told(before) | _done(Moved()), "there is nothing to move")
        return
    console.say(_plan_text(before))
    if not yes and not console.confirmed(f"Move {len(before.moves) + before.begun} slot group(s) now?"):
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
                return await mover.run(before.moves, before.split)
            finally:
                watcher.close()

    with moving_bulk():
        moved = run(console, work)

    async def look(places: Places) -> tuple[Sharding, list[Load]]:
        sharding = await sharding_of(places, domain)
        return sharding, await loads(places, sharding)

    sharding, found = with_places(console, look)
    told = {"domain": domain, "shards": _by_shard(sharding, found)} | _done(moved)
    for name in sorted({load.shard for load in found if not sharding.backend.weights.get(load.shard)}):
        console.say(f"{name} has weight 0 in the configuration: unless it gets one, the next rebalance empties it")
    holds = told["holds_ms"]
    text = f"{len(moved.groups)} slot groups moved, {moved.rows} rows; holds: {holds['count']}"
    if holds["count"]:
        text += f", median {holds['median']} ms, maximum {holds['maximum']} ms"
    console.result(told, f"{text}\n{_shard_text(sharding, found)}")


def _done(moved: Moved) -> dict[str, Any]:
    holds = moved.holds_ms
    told = {"count": len(holds), "median": round(median(holds), 2), "maximum": max(holds)} if holds else {"count": 0}
    return {"moved": moved.groups, "rows_copied": moved.rows, "holds_ms": told}


def _told(chosen: Chosen) -> dict[str, Any]:
    listed = [
        {"slots": m.load.group.slots, "from": m.load.shard, "to": m.to, "rows": m.load.rows, "bytes": m.load.size}
        for m in chosen.moves
    ]
    cost = chosen.cost
    return {
        "domain": chosen.sharding.domain,
        "unfinished_moves": chosen.begun,
        "moves": listed,
        "estimate": {"rows": cost.rows, "bytes": cost.size, "seconds": cost.seconds, "hold_ms": cost.hold_ms},
        "shards": _by_shard(chosen.sharding, chosen.loads),
        "shards_after": _by_shard(chosen.sharding, _after(chosen.loads, chosen.moves)),
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


def _plan_text(chosen: Chosen) -> str:
    lines = [_shard_text(chosen.sharding, chosen.loads)]
    if chosen.begun:
        lines.append(f"{chosen.begun} moves were begun and will be finished first")
    if chosen.goes_on:
        lines.append("the split that was begun goes on, with the groups that it began with")
    if not chosen.moves:
        return "\n".join([*lines, "no further move would even out anything"])
    cost = chosen.cost
    took = "time unknown until the first group has moved"
    if cost.seconds is not None and cost.hold_ms is not None:
        took = f"about {cost.seconds:.0f} s one after the other, each with a hold of about {cost.hold_ms:.0f} ms"
    lines.append(
        f"{len(chosen.moves)} slot groups would move, about {cost.rows} rows, {cost.size} bytes, {took}; afterwards:"
    )
    lines.append(_shard_text(chosen.sharding, _after(chosen.loads, chosen.moves)))
    return "\n".join(lines)


for _one in (list_, plan, rebalance, drain, split, move, sweep):
    shards.add_command(_one)
