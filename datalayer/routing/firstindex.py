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
    from datalayer.control.base import Control
    from datalayer.routing.places import Places

DOCUMENT: Final = "first"
"""Says whether the first index held everything when it was placed."""
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


async def place_index(places: Places, index: Place) -> None:
    """Make an index that follows from now on, and note whether it is complete; then it may be published.

    Emptiness is looked at when every later write is entered, and noted before anybody is let write by this route.
    """
    await places.store(SEARCH, index).create()
    await places.indexes.fresh()
    await places.indexes.follow(places.indexes.leaves(), [index])
    empty = await nothing_written(places)
    if await places.control.document(SEARCH, DOCUMENT) is None:
        await places.control.put_document(SEARCH, DOCUMENT, {"backend": index.backend, "built": empty})


async def unbuilt_index(control: Control) -> Place | None:
    """The first index, where it was placed when there was something to search already."""
    document = await control.document(SEARCH, DOCUMENT)
    return None if document is None or document["built"] else Place(document["backend"])
