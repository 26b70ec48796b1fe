"""datalayer plan and grow: from one size of a service to another, as a list of steps, and step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import click

from datalayer.cli.console import Console, command
from datalayer.cli.exits import ExitCode
from datalayer.cli.progress import Watcher, duration
from datalayer.cli.running import Stop, holder, moving_bulk, run, with_places
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.domains.soft import TTL_MAX_S
from datalayer.errors import InvalidArgument, NotFinished
from datalayer.migrators.growing import check_ready, run_step
from datalayer.migrators.growth import Growth, GrowthOptions, Step, plan_growth
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.sizes import Size
from datalayer.routing.places import Places
from datalayer.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS: Final = (
    click.option("--size", type=click.Choice([str(size) for size in Size]), required=True, help="Where to."),
    click.option(
        "--use", "uses", multiple=True, metavar="DOMAIN=BACKEND", help="Which backend, where several would do."
    ),
    click.option(
        "--complete", is_flag=True, help="First close the way back of a migration whose domain has to move again."
    ),
    click.option("--rate", type=float, metavar="ROWS_PER_S", help="Cap of each backfill."),
    click.option(
        "--longest-ttl",
        type=float,
        default=TTL_MAX_S,
        show_default=True,
        metavar="SECONDS",
        help="Presence, typing: the longest ttl in use.",
    ),
)


def _growth_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class _Request:
    """What the operator asked for."""

    settings: Settings
    size: Size
    options: GrowthOptions
    words: str
    """The options as they were typed."""


@command()
@_growth_options
def plan(console: Console, /, **chosen: Any) -> ExitCode | None:
    """Compare where the domains lie with where a size wants them, and list the steps there. Nothing is changed.

    Ends with 3 when a backend is missing or something is in the way, and says what to add to the configuration.
    """
    request = _request(console, **chosen)
    return _tell(console, request, _plan(console, request, claim=False))


@command()
@_growth_options
@click.option("--workers", type=int, default=2, show_default=True, metavar="N", help="Backfill workers.")
@click.option("--max-hold", type=float, default=1000.0, show_default=True, metavar="MS", help="Longest write pause.")
@click.option("--dry-run", is_flag=True, help="As datalayer plan.")
@click.option("--yes", is_flag=True, help="Take every step, cut-overs included, without asking.")
def grow(
    console: Console, /, *, workers: int, max_hold: float, dry_run: bool, yes: bool, **chosen: Any
) -> ExitCode | None:
    """Take the steps of `datalayer plan` one after the other, each confirmed, while applications go on.

    Migrations end where the target rules and the way back is open. Killed anywhere and run again, it looks where it
    stands and goes on. Where nobody can be asked and --yes is missing, it ends with 5 before the first cut-over.
    """
    request = _request(console, **chosen)
    if dry_run:
        return _tell(console, request, _plan(console, request, claim=False))
    options = MigrateOptions(
        workers=workers,
        max_hold_ms=max_hold,
        rate_rows_per_s=request.options.rate_rows_per_s,
        lifetime_s=request.options.lifetime_s,
        yes=yes,
    ).checked()
    with moving_bulk():
        done = _grow(console, request, options)
    text = f"every domain is where size {request.size} wants it ({len(done)} steps taken)"
    ways_back = [p.detail for p in _plan(console, request, claim=False).domains if p.detail]
    console.result({"size": str(request.size), "done": done}, "\n".join([text, *ways_back]))
    return None


def _request(
    console: Console,
    *,
    size: str,
    uses: tuple[str, ...],
    complete: bool,
    rate: float | None,
    longest_ttl: float,
) -> _Request:
    chosen = {}
    for use in uses:
        domain, equals, backend = use.partition("=")
        if not (domain and equals and backend):
            raise InvalidArgument(f"--use {use!r} names no backend", hint="for example --use messages=cassandra")
        chosen[domain] = backend
    words = [f"--size {size}", *(f"--use {use}" for use in uses)]
    words += ["--complete"] * complete + ([f"--rate {rate:g}"] if rate is not None else [])
    words += [f"--longest-ttl {longest_ttl:g}"] if longest_ttl != TTL_MAX_S else []
    MigrateOptions(rate_rows_per_s=rate, lifetime_s=longest_ttl).checked()
    options = GrowthOptions(chosen, complete, rate, longest_ttl)
    return _Request(console.settings(), Size(size), options, " ".join(words))


def _plan(console: Console, request: _Request, *, claim: bool) -> Growth:
    async def look(places: Places) -> Growth:
        return await plan_growth(places, request.settings, request.size, request.options)

    return with_places(console, look, claim=claim)


# --- plan ------------------------------------------------------------------------------------------------------------


def _tell(console: Console, request: _Request, found: Growth) -> ExitCode | None:
    steps = [f"datalayer grow {request.words}"] if found.ready and found.steps else []
    console.result(found.document(), _text(found, request.settings), next_steps=steps)
    return None if found.ready else ExitCode.PRECONDITION


def _text(found: Growth, settings: Settings) -> str:
    rows = [
        (p.domain, p.backend or "-", p.kind or "-", " or ".join(p.wanted), p.standing, p.target or "-")
        for p in found.domains
    ]
    parts = [table(rows, ("domain", "backend", "kind", f"size {found.size}", "standing", "target"))]
    parts += [f"{p.domain}: {p.detail}" for p in found.domains if p.detail]
    snippets: dict[str, list[str]] = {}
    for plan in found.domains:
        if plan.toml:
            snippets.setdefault(plan.toml, []).append(plan.domain)
    if snippets and settings.embedded_directory is not None:
        parts.append("there is no configuration yet: `datalayer init` writes a file that names what is in use; to that")
    parts += [f"add for {', '.join(domains)}, and fill in:\n\n{toml}\n" for toml, domains in snippets.items()]
    if found.steps:
        lines = [(f"{n}.", s.command, s.why, _weight(s), _time(s)) for n, s in enumerate(found.steps, 1)]
        parts.append("\n" + table(lines, ("", "step", "why", "size", "time")))
        rates = dict.fromkeys(f"{s.domain or s.target}: {s.rate}" for s in found.steps if s.rate)
        parts += [f"time of {rate}" for rate in rates]
    elif found.ready:
        parts.append(f"every domain is where size {found.size} wants it")
    parts += [f"besides: {advice}" for advice in found.advice]
    return "\n".join(parts)


def _weight(step: Step) -> str:
    rows = "-" if step.rows is None else f"{step.rows:,} rows"
    return rows if not step.size_bytes else f"{rows}, {step.size_bytes / 1e6:,.1f} MB"


def _time(step: Step) -> str:
    return "not known" if step.seconds is None else f"about {duration(step.seconds)}"


# --- grow ------------------------------------------------------------------------------------------------------------


def _grow(console: Console, request: _Request, options: MigrateOptions) -> list[str]:
    """Plan, take the first step, plan again; the commands of the steps taken."""
    again = f"datalayer grow {request.words}"
    console.way_on = [again if options.yes else f"{again} --yes"]
    done: list[str] = []
    while True:
        found = _plan(console, request, claim=True)
        check_ready(found)
        if not found.steps:
            return done
        step = found.steps[0]
        if step.command in done:
            raise NotFinished(f"{step.command} ended, and is still to be done", hint="datalayer migrations why")
        confirmed = options
        console.say(f"step {len(done) + 1} of {len(done) + len(found.steps)}: {step.command}")
        if not options.yes and console.asks:
            if not console.confirmed(_question(step)):
                raise NotFinished(f"stopped before {step.command}")
            confirmed = replace(options, yes=True)
        run(console, partial(_take, console, request.settings, step, confirmed))
        done.append(step.command)


def _question(step: Step) -> str:
    what = {
        "schema": f"Upgrade the schema of {step.target}",
        "complete": f"Close the way back of {step.domain} to {step.source} for good",
        "rollback": f"Let {step.target} serve {step.domain} again",
        "migrate": f"Move {step.domain} from {step.source} to {step.target} ({_weight(step)}, {_time(step)})",
    }
    return f"{what[step.verb]}?"


async def _take(console: Console, settings: Settings, step: Step, options: MigrateOptions, stop: Stop) -> None:
    watcher = Watcher(console)
    async with open_places(settings, SystemClock()) as places:
        try:
            await run_step(
                places,
                settings,
                step,
                holder=holder("grow"),
                options=options,
                reporter=watcher,
                failpoints=stop,
            )
        finally:
            watcher.close()
