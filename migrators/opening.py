"""Control store and backends for one command or script that is no member of the fleet."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from datalayer.layer import claim_first_places, close_stores, make_backends, open_control_store
from datalayer.routing.places import Places

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from datalayer.clock import Clock
    from datalayer.settings import Settings


@asynccontextmanager
async def open_places(settings: Settings, clock: Clock, *, claim: bool = True) -> AsyncIterator[Places]:
    """Places over the configured backends, connected as they are used; all given back at the end.

    ``claim`` publishes the configured placement of domains that have none yet, as opening a DataLayer does; without
    it only the control store has to answer. Raises as ``DataLayer.open``.
    """
    backends = make_backends(settings, clock)
    control = await open_control_store(settings, clock)
    places = Places(backends, control, clock, eager=False)
    try:
        if claim:
            await claim_first_places(settings, places)
        yield places
    finally:
        await close_stores(control, backends)
