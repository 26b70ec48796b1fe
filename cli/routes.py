"""datalayer routes: which backend serves a domain now."""

from __future__ import annotations

from typing import Any

from datalayer.cli.console import Console, command
from datalayer.cli.running import with_places
from datalayer.cli.texts import table
from datalayer.domains.movement import OPTIONAL
from datalayer.errors import ConfigurationError
from datalayer.layer import MOVABLE
from datalayer.routing.places import Places
from datalayer.routing.route import Routing
from datalayer.settings import Settings

_HEAD = ("domain", "backend", "phase", "epoch", "table", "mirror")


@command()
def routes(console: Console) -> None:
    """Show which backend serves each domain, as the control store says."""
    settings = console.settings()

    async def look(places: Places) -> list[dict[str, Any]]:
        _, routings = await places.control.routings()
        return [_described(domain, routings.get(domain), settings, places) for domain in MOVABLE]

    listed = with_places(console, look)
    rows = [[item[name] or "-" for name in _HEAD] for item in listed]
    console.result({"routes": listed}, table(rows, _HEAD))


def _first(domain: str, settings: Settings, places: Places) -> str | None:
    """The backend that will be its first place; None where there is none that can hold it."""
    try:
        name = settings.backend_of(domain).name
    except ConfigurationError:
        if domain not in OPTIONAL:
            raise
        return None
    return name if name in places.backends and places.backends[name].refuses(domain) is None else None


def _described(domain: str, routing: Routing | None, settings: Settings, places: Places) -> dict[str, Any]:
    if routing is None:
        first = _first(domain, settings, places)
        return dict(zip(_HEAD, (domain, first, "not placed yet", 0, None, None), strict=True))
    authority, mirror = routing.authority, routing.mirror
    values = (
        domain,
        authority.backend,
        str(routing.phase),
        routing.epoch,
        authority.relation(domain),
        None if mirror is None else mirror.backend,
    )
    return dict(zip(_HEAD, values, strict=True))
