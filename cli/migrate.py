"""datalayer migrate: starts, joins or goes on with the move of a domain to another backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import click
from click.core import ParameterSource

from datalayer.cli.console import Console, command
from datalayer.cli.progress import Watcher
from datalayer.cli.running import Stop, holder, moving_bulk, run, with_places
from datalayer.cli.texts import status_text, table
from datalayer.clock import SystemClock
from datalayer.control.base import Migration
from datalayer.domains.movement import Movement, movement_of
from datalayer.domains.soft import TTL_MAX_S
from datalayer.errors import NotFinished, PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.memories import gone_with_this, unread_from_here
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Stage, Until
from datalayer.migrators.status import status
from datalayer.migrators.strategy import strategy_of
from datalayer.migrators.targets import Target, planned_stages, possible_targets, standing_of
from datalayer.migrators.work import stores_last_writer
from datalayer.routing.places import Places
from datalayer.routing.route import Phase, Routing
from datalayer.settings import Settings
from datalayer.stores.sharded import ShardedBackend

_ORDER = list(Until)
_LASTING = {
    "workers": "workers",
    "rate": "rate_rows_per_s",
    "max_hold": "max_hold_ms",
    "canary": "canary_pct",
    "verify": "verify",
    "foreign_writers": "foreign_writers",
    "longest_ttl": "lifetime_s",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for."""

    settings: Settings
    domain: str
    target: str
    options: MigrateOptions

    @property
    def command(self) -> str:
        """The command that goes on with it."""
        until = "" if self.options.until is Until.TARGET else f" --until {self.options.until}"
        return f"datalayer migrate {self.domain} --to {self.target}{until}"


@command()
@click.argument("domain")
@click.option("--to", "target", metavar="BACKEND", help="Where to; without it the possible targets are listed.")
@click.option("--until", type=click.Choice([str(until) for until in Until]), default="target", show_default=True)
@click.option(
    "--workers", type=int, default=2, show_default=True, metavar="N", help="Backfill workers of this process."
)
@click.option("--rate", type=float, metavar="ROWS_PER_S", help="Cap of the backfill; `migrations throttle` changes it.")
@click.option("--max-hold", type=float, default=1000.0, show_default=True, metavar="MS", help="Longest write pause.")
@click.option(
    "--canary", type=int, default=100, show_default=True, metavar="PCT", help="Keys read the new way while armed."
)
@click.option("--verify", type=click.Choice(["full", "sample"]), default="full", show_default=True)
@click.option("--assume-dead", multiple=True, metavar="GLOB", help="Processes not to wait for: host:pid, host or name.")
@click.option("--foreign-writers", type=click.Choice(["refuse"]), help="Cut over although other programs write.")
@click.option(
    "--longest-ttl",
    type=float,
    default=TTL_MAX_S,
    show_default=True,
    metavar="SECONDS",
    help="Presence, typing: the longest ttl in use.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Cut over without asking.")
def migrate(console: Console, /, domain: str, target: str | None, *, dry_run: bool, **chosen: Any) -> None:
    """Move DOMAIN to another backend while applications read and write it.

    It starts a migration, joins it or goes on where it stopped: dual write, backfill, verification, cut-over. It ends
    where the target rules and the way back is still open; `datalayer migrations complete` closes it.
    """
    options = _options(**chosen)
    if target is None:
        _list_targets(console, domain)
        return
    request = Request(console.settings(), domain, target, options)
    if reason := gone_with_this(request.settings, domain, target):
        raise PreconditionFailed(f"{domain} cannot go to {target!r}: {reason}")
    if dry_run:
        _dry_run(console, request)
    else:
        with moving_bulk():
            carry_out(console, request)


def _options(
    *,
    until: str,
    workers: int,
    rate: float | None,
    max_hold: float,
    canary: int,
    verify: Literal["full", "sample"],
    assume_dead: tuple[str, ...],
    foreign_writers: Literal["refuse"] | None,
    longest_ttl: float,
    yes: bool,
) -> MigrateOptions:
    return MigrateOptions(
        until=Until(until),
        workers=workers,
        rate_rows_per_s=rate,
        max_hold_ms=max_hold,
        canary_pct=canary,
        verify=verify,
        assume_dead=assume_dead,
        foreign_writers=foreign_writers or "ask",
        lifetime_s=longest_ttl,
        yes=yes,
        given=_given(),
    ).checked()


def _given() -> frozenset[str]:
    """The lasting options that stand on the command line."""
    context = click.get_current_context()
    named = {option for option in _LASTING if context.get_parameter_source(option) is not ParameterSource.DEFAULT}
    return frozenset(_LASTING[option] for option in named)


def carry_out(console: Console, request: Request) -> None:
    """Migrate. In two runs where the cut-over must be confirmed: nothing is leased while the operator thinks."""
    console.way_on = [request.command]
    asks = not request.options.yes and _ORDER.index(request.options.until) > _ORDER.index(Until.VERIFIED)
    first = replace(request.options, until=Until.VERIFIED) if asks else request.options
    told = run(console, lambda stop: _work(console, replace(request, options=first), stop))
    if asks and not _reached(told["phase"], request.options.until):
        confirmed = replace(request, options=replace(request.options, yes=True))
        if not console.confirmed(_question(request, told["phase"])):
            console.way_on = [f"{request.command} --yes"]
            raise NotFinished(f"{told['id']} is ready to go on to {request.options.until}, if that is confirmed")
        told = run(console, lambda stop: _work(console, confirmed, stop))
    console.result(told, status_text(told), next_steps=told["next_steps"])


def _reached(phase: str, until: Until) -> bool:
    furthest = {Phase.ARMED: Until.ARMED, Phase.TARGET: Until.TARGET, Phase.COMPLETE: Until.COMPLETE}
    return _ORDER.index(furthest.get(Phase(phase), Until.VERIFIED)) >= _ORDER.index(until)


def _question(request: Request, phase: str) -> str:
    does = [] if phase == Phase.TARGET else [f"let {request.target} serve {request.domain}"]
    if request.options.until is Until.ARMED:
        does = [f"let clean keys of {request.domain} be read from {request.target}"]
    if request.options.until is Until.COMPLETE:
        does.append("close the way back for good")
    return f"Ready. Now {' and '.join(does)}?"


async def _work(console: Console, request: Request, stop: Stop) -> dict[str, Any]:
    watcher = Watcher(console)
    async with open_places(request.settings, SystemClock()) as places:
        coordinator = Coordinator(
            places,
            request.domain,
            holder=holder("migrate"),
            options=request.options,
            reporter=watcher,
            failpoints=stop,
        )
        try:
            await _check_readable(places, request)
            migration = await coordinator.migrate(request.target)
            _say_costs(watcher, places, migration)
        finally:
            watcher.close()
        return await status(places, migration)


async def _check_readable(places: Places, request: Request) -> None:
    reason = await unread_from_here(places, request.settings, request.domain, request.options.assume_dead)
    if reason:
        raise PreconditionFailed(f"{request.domain} cannot go to {request.target!r}: {reason}")


def _say_costs(watcher: Watcher, places: Places, migration: Migration) -> None:
    from_shards = isinstance(places.backend(migration.source), ShardedBackend)
    if from_shards and migration.domain == "users" and migration.phase in {Phase.TARGET, Phase.COMPLETE}:
        watcher.note(
            "names that changes over shards left behind half done count as taken here until `datalayer shards sweep`, "
            "which judges what is older than a minute"
        )
    ordered = movement_of(migration.domain) is Movement.RECORDS
    if ordered and migration.phase == Phase.TARGET and stores_last_writer(places, migration.target):
        watcher.note(
            "from now on the control store is in the path of every write of this domain, until "
            "`datalayer migrations complete` (or rollback)"
        )


def _list_targets(console: Console, domain: str) -> None:
    async def look(places: Places) -> tuple[Routing, Migration | None, list[Target]]:
        return *await standing_of(places, domain), await possible_targets(places, domain)

    settings = console.settings()
    routing, live, found = with_places(console, look, claim=True)
    targets = [replace(t, reason=gone_with_this(settings, domain, t.backend) or t.reason) for t in found]
    rows = [(t.backend, t.product, "possible" if t.reason is None else t.reason) for t in targets]
    data = {
        "domain": domain,
        "backend": routing.authority.backend,
        "phase": str(routing.phase),
        "migration": live.id if live else None,
        "targets": [asdict(t) | {"possible": t.reason is None} for t in targets],
    }
    text = f"{domain} is on {routing.authority.backend}\n{table(rows, ('backend', 'product', 'as a target'))}"
    steps = [f"datalayer migrate {domain} --to {t.backend}" for t in targets if t.reason is None]
    console.result(data, text, next_steps=steps)


def _dry_run(console: Console, request: Request) -> None:
    async def look(places: Places) -> tuple[Migration | None, list[Stage]]:
        await _check_readable(places, request)
        return await planned_stages(places, request.domain, request.target, request.options.until)

    live, stages = with_places(console, look, claim=True)
    actions = strategy_of(request.domain).plan
    plan = [{"stage": str(stage), "actions": [str(action) for action in actions[stage]]} for stage in stages]
    data = {"domain": request.domain, "target": request.target, "migration": live.id if live else None, "plan": plan}
    lines = [f"{stage}: {', '.join(actions[stage])}" for stage in stages] or ["nothing is left to do"]
    if Stage.FLIP in stages and strategy_of(request.domain).held:
        lines.append(f"the hold of writes is at most {request.options.max_hold_ms:g} ms")
    console.result(data, "\n".join(lines), next_steps=[request.command] if stages else [])
