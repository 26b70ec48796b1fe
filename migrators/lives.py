"""Whether the side that is about to rule still has all that was brought to it.

What replayers and backfills bring to a store is settled, and never brought again. Some stores lose acknowledged writes
when one of their servers dies (``stores.base.Forgetful``), and tell it by another incarnation, here: their life. So each
copy and each verdict speaks of the one life of the mirror that it began in. In another life everything is copied and
compared once more: before the cut-over that is noted and done, and nobody is asked.

What cannot be seen is a loss behind the last look, right before the fence becomes permanent. From there on the store
rules, and keeps its writes as well as it does at rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from datalayer.clock import Deadline
from datalayer.errors import NotFinished
from datalayer.stores.base import Forgetful

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.migrators.work import Work
    from datalayer.routing.route import Place

LIVES: Final = "lives"
ASK_S: Final = 2.0
AGAIN_MAX: Final = 5
"""How often one command begins the cut-over anew."""


class AnotherLife(NotFinished):
    """The mirror has failed over or started again since it was compared."""


async def life_of(work: Work, place: Place) -> str:
    """The life that the backend of a place is in; empty for one that forgets nothing."""
    backend = work.places.backend(place)
    return await backend.incarnation(Deadline(work.clock, ASK_S)) if isinstance(backend, Forgetful) else ""


async def life_of_mirror(work: Work) -> str:
    """The life that the present mirror is in."""
    return await life_of(work, _mirror(work))


def copy_run(work: Work) -> str:
    """The name of the run that copies to the present mirror."""
    back = "-back" if work.routing.mirror == work.migration.source else ""
    return f"{work.migration.id}/backfill{back}"


def compare_run(work: Work) -> str:
    """The name of the run that compares both sides under the present routing."""
    return f"{work.migration.id}/verify-{work.routing.epoch}"


async def note_source(work: Work) -> None:
    """Note the life of the authority as the copy begins: it holds everything now, and may be the mirror some day."""
    life, noted = await life_of(work, work.routing.authority), await _noted(work)
    if life:
        await _note(work, {_name(work.routing.authority): {"life": life, "owed": False}, **noted})


async def note_mirror(work: Work) -> bool:
    """Note the life that the mirror is in; whether everything must be copied (again) for it.

    What was copied and compared in an earlier one counts for nothing from now on: whoever dies in between begins anew.
    """
    mirror, life = _mirror(work), await life_of_mirror(work)
    if not life:
        return False
    noted = await _noted(work)
    known = noted.get(_name(mirror))
    if known is not None and known["life"] == life:
        return bool(known["owed"])
    for side in ("authority", "mirror"):
        await work.control.drop_run(f"{compare_run(work)}/{side}")
    if known is not None:
        work.reporter.note(f"{mirror.backend} has failed over or started again: everything is copied to it once more")
        await work.control.drop_run(copy_run(work))
        await work.places.store(work.migration.domain, mirror).create()  # what says that the place exists may be lost
    await _note(work, {**noted, _name(mirror): {"life": life, "owed": known is not None}})
    return known is not None


async def note_copied(work: Work) -> None:
    """The copy that ``note_mirror`` asked for is done."""
    noted = await _noted(work)
    name = _name(_mirror(work))
    if name in noted:
        await _note(work, {**noted, name: {**noted[name], "owed": False}})


async def check_verdict(work: Work, verdict: Mapping[str, Any]) -> None:
    """AnotherLife where the mirror is not in the life any more that the verdict speaks of."""
    life = await life_of_mirror(work)
    if life and verdict.get("life") != life:
        raise _another(work)
    work.mirror_life = life


async def check_same(work: Work) -> None:
    """AnotherLife where the mirror is not in the life any more that ``check_verdict`` saw."""
    if work.mirror_life and await life_of_mirror(work) != work.mirror_life:
        raise _another(work)


def _another(work: Work) -> AnotherLife:
    name = _mirror(work).backend
    return AnotherLife(
        f"{name} has failed over or started again since it was compared: what it may have lost must be copied once more",
        hint="the same command goes on with that",
    )


def _mirror(work: Work) -> Place:
    assert work.routing.mirror is not None, "while a migration lives there is a mirror"
    return work.routing.mirror


def _name(place: Place) -> str:
    return f"{place.backend}/{place.attempt}"


async def _noted(work: Work) -> dict[str, Any]:
    return await work.control.document(work.migration.id, LIVES) or {}


async def _note(work: Work, lives: Mapping[str, Any]) -> None:
    await work.control.put_document(work.migration.id, LIVES, dict(lives))
