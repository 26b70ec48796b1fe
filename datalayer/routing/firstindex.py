"""The first index of a deployment: complete from the start where nothing was written yet, else placed when it is built.

Who has data already and opens a newer version, or gives search a backend, is asked nothing and pays nothing: there is no index
until `datalayer search rebuild`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.domains.movement import INDEXED
from datalayer.errors import DatalayerError
from datalayer.routing.indexes import SEARCH
from datalayer.routing.route import Place

if TYPE_CHECKING:
    from collections.abc import Collection

    from datalayer.control.base import Control
    from datalayer.routing.places import Places

BUILD: Final = "datalayer search rebuild"
NOT_BUILT: Final = "search has no index yet, and messages or users were written before"


async def nothing_written(places: Places) -> bool:
    """Whether the sources are empty now. One that does not answer may hold something."""
    await places.indexes.fresh()
    try:
        for leaf in places.indexes.leaves():
            await places.ensure_open(leaf.place)
            if not await places.store(*leaf).empty():
                return False
    except DatalayerError:
        return False
    return all(domain in places.routings for domain in INDEXED)


async def place_index(places: Places, index: Place, *, placed: Collection[str]) -> None:
    """Make an index that follows from now on, and note whether it is complete; then it may be published.

    Emptiness is looked at when every later write is entered, and noted before anybody is let write by this route. A store
    without triggers is written by whoever knows its route: it was not before this call where its domain is one of those
    that were ``placed`` by it.
    """
    await places.store(SEARCH, index).create()
    await places.indexes.fresh()
    leaves = places.indexes.leaves()
    await places.indexes.follow(leaves, [index])
    untold = [leaf.domain for leaf in leaves if places.backend(leaf.place).authority_class == "last_writer"]
    built = await nothing_written(places) and all(domain in placed for domain in untold)
    before = await places.control.document(SEARCH, _name(index))
    if before is not None and before["built"] and not untold:
        built = True  # placed by a process that died here, or is ahead: it was empty when every later write was entered
    await places.indexes.fresh()
    if SEARCH not in places.routings:
        await places.control.put_document(SEARCH, _name(index), {"built": built})


async def unbuilt_index(control: Control, index: Place) -> bool:
    """Whether this is the first index, placed when there was something to search already, and not built since."""
    document = await control.document(SEARCH, _name(index)) if index.attempt == 0 else None
    return document is not None and not document["built"]


def _name(index: Place) -> str:
    """Of the document that says whether a first index held everything when it was placed."""
    return f"first/{index.backend}"
