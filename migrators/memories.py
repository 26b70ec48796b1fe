"""What lies in the memory of each process: a command is another process, and can neither read it nor put anything there.

Only tests have a control store in memory, too: there everything is in one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.control.rules import matches
from datalayer.domains.movement import Movement, movement_of
from datalayer.routing.route import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.control.base import Migration
    from datalayer.routing.places import Places
    from datalayer.settings import Settings

_STORED: Final = frozenset({Movement.RECORDS, Movement.OBJECTS})
"""Soft state renews itself, an index is made anew of what it follows."""
_BEYOND: Final = frozenset({Phase.TARGET, Phase.ARMED_BACK, Phase.HOLD_BACK})
NAMED_MAX: Final = 3


def gone_with_this(settings: Settings, domain: str, target: str) -> str | None:
    """Why memory is no target of a command, whose process ends; None where the target is none."""
    if not _in_memory(settings, target) or movement_of(domain) is Movement.SOFT:
        return None
    return f"{target} is the memory of each process; what this command moves there is gone when it ends"


async def unread_from_here(
    places: Places, settings: Settings, domain: str, assume_dead: Sequence[str] = ()
) -> str | None:
    """Why a domain cannot leave the memory of processes; None where none of them is open, or it lies elsewhere.

    A move that another command began has its journal in that command's memory.
    """
    _, routings = await places.control.routings()
    routing = routings.get(domain)
    if routing is None or movement_of(domain) not in _STORED or not _in_memory(settings, routing.authority.backend):
        return None
    begun = next((one for one in await places.control.migrations(domain) if not one.finished), None)
    if begun is not None:
        return (
            f"it lies in the memory of each process, and that of the command that began {begun.id} is gone; "
            f"datalayer migrations cancel {begun.id} forgets it, then begin anew"
        )
    living = [one for one in await places.control.processes() if not matches(one, assume_dead)]
    found = [f"{one.name} ({one.host}:{one.pid})" for one in living]
    if not found:
        return None
    named = ", ".join(found[:NAMED_MAX]) + (" and others" if len(found) > NAMED_MAX else "")
    return (
        f"it lies in the memory of each process, where nothing else can read it, and is in use by {named}; stop the "
        "applications first: what their memory holds ends with them"
    )


def no_way_back(settings: Settings, migration: Migration) -> str | None:
    """Why the way back of a migration whose target rules leads nowhere; None where it does not."""
    if migration.phase not in _BEYOND or gone_with_this(settings, migration.domain, migration.source.backend) is None:
        return None
    return (
        f"there is no way back for {migration.id}: {migration.source.backend!r} is the memory of each process, and what "
        f"{migration.domain} held there has ended with it"
    )


def _in_memory(settings: Settings, name: str) -> bool:
    backend = settings.backends.get(name)
    url = None if backend is None else backend.url
    return url is not None and url.scheme == "memory" and settings.control.scheme != "memory"
