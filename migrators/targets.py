"""Where a domain could go: every configured backend, with the reason where it is not possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datalayer.errors import ConfigurationError, DatalayerError, PreconditionFailed
from datalayer.layer import MOVABLE
from datalayer.migrators.plan import Stage, Standing, Until, stages_to
from datalayer.migrators.strategy import strategy_of
from datalayer.routing.firstindex import BUILD
from datalayer.routing.indexes import SEARCH
from datalayer.routing.route import Phase, Place
from datalayer.routing.shards import base_domain, parse_group

if TYPE_CHECKING:
    from datalayer.control.base import Migration
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing


@dataclass(frozen=True, slots=True)
class Target:
    """A backend as a target; ``reason`` is None where a migration could start, or go on, now."""

    backend: str
    product: str
    reason: str | None


async def possible_targets(places: Places, domain: str) -> list[Target]:
    """Every configured backend as a target of the domain. It connects to each that is not ruled out before."""
    routing, live = await standing_of(places, domain)
    found = []
    for name, backend in sorted(places.backends.items()):
        reason = _excluded(places, routing, live, name) or await _unfit(places, domain, name)
        found.append(Target(name, backend.product, reason))
    return found


async def planned_stages(places: Places, domain: str, to: str, until: Until) -> tuple[Migration | None, list[Stage]]:
    """What ``migrate --to`` would run from here, changing nothing; with the unfinished migration it would go on with.

    Raises ConfigurationError (no such backend) and PreconditionFailed as the migration itself would.
    """
    routing, live = await standing_of(places, domain)
    if to not in places.backends:
        names = ", ".join(sorted(places.backends))
        raise ConfigurationError(f"backend {to!r} is not configured", hint=f"one of: {names}")
    going_on = live is not None and live.target.backend == to
    reason = None if going_on else _excluded(places, routing, live, to) or await _unfit(places, domain, to)
    if reason:
        raise PreconditionFailed(f"{domain} cannot go to {to!r}: {reason}")
    held = strategy_of(domain).held
    if live is None:
        return None, stages_to(Standing(Phase.SOURCE, frozenset()), until, held=held)
    phase = routing.phase if routing.attempt == live.attempt else Phase.SOURCE
    return live, stages_to(Standing(phase, live.milestones), until, held=held)


def check_movable(domain: str) -> None:
    """PreconditionFailed for what is no domain, or none that an open DataLayer serves."""
    if base_domain(domain) not in MOVABLE:
        raise PreconditionFailed(f"{domain!r} cannot be migrated; movable are {', '.join(sorted(MOVABLE))}")


async def standing_of(places: Places, domain: str) -> tuple[Routing, Migration | None]:
    """The domain's routing and its unfinished migration."""
    check_movable(domain)
    _, routings = await places.control.routings()
    places.learn(routings)
    if domain not in routings:
        raise no_place(domain)
    live = next((m for m in await places.control.migrations(domain) if not m.finished), None)
    return routings[domain], live


def no_place(domain: str) -> PreconditionFailed:
    """The error for a domain that was placed nowhere."""
    hint = f"open the application once; {BUILD}, where there are messages already" if domain == SEARCH else ""
    return PreconditionFailed(f"{domain} has no place yet", hint=hint or "open the application once")


def refusal(places: Places, domain: str, name: str) -> str | None:
    """Why a backend by its nature cannot be the target of a domain or slot group."""
    whole, _, member = name.partition("/")
    if member and parse_group(domain) is None:
        return f"{name!r} is one shard of backend {whole!r}"
    if parse_group(domain) is not None and not member:
        return f"{name!r} is no shard: a slot group lies on one"
    return places.backends[name].refuses(base_domain(domain))


def _excluded(places: Places, routing: Routing, live: Migration | None, name: str) -> str | None:
    """Why not, from what is known without connecting."""
    if live is not None:
        return None if live.target.backend == name else f"{live.id} moves it to {live.target.backend!r} now"
    if routing.authority.backend == name and not strategy_of(routing.domain).anew:
        return f"{routing.domain} is there already"
    return refusal(places, routing.domain, name)


async def _unfit(places: Places, domain: str, name: str) -> str | None:
    """Why not, from what the backend says."""
    try:
        await places.ensure_open(Place(name))
        await strategy_of(domain).fit(places, domain, Place(name))
    except DatalayerError as error:
        return str(error)
    return None
