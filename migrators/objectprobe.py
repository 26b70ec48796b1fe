"""Whether a store of media does what is asked of it, shown by one small object that is stored, read and deleted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.domains.catalogue import object_name
from datalayer.errors import AlreadyExists, DatalayerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from datalayer.stores.objects import Objects

OWNER: Final = UUID(int=0)
"""Nobody's id: what should stay behind is swept as bytes that no item knows."""
BYTES: Final = b"datalayer doctor"


class Failed(Exception):
    """What a store did not do, and the way out."""

    def __init__(self, detail: str, way_out: str) -> None:
        self.detail = detail
        self.way_out = way_out
        super().__init__(detail)


async def probe(store: Objects, upload: UUID) -> None:
    """Store, read and delete a test object under a name of its own. Raises Failed; nothing of it stays where that can be."""
    name = object_name(OWNER, upload)
    step = "stored"
    try:
        try:
            await store.put(name, _body(), content_type="text/plain", size=len(BYTES))
            step = "refused a second time"
            await _once(store, name)
            step = "read"
            if [chunk async for chunk in store.read(name, 2, 9)] != [BYTES[2:9]]:
                raise Failed("a part of the test object is not what was stored", "look what lies between")
            step = "listed"
            await store.page(name[:-1], 1)
            await store.clear(0)
            step = "deleted"
            await store.delete([name])
            if await store.head(name) is not None:
                raise Failed("the test object is still there after it was deleted", "look what lies between")
        except DatalayerError as error:
            raise Failed(
                f"a test object could not be {step}: {error.message}", error.hint or "bring it back"
            ) from error
    except Failed:
        with contextlib.suppress(DatalayerError):
            await store.delete([name])
        raise


async def _once(store: Objects, name: str) -> None:
    try:
        await store.put(name, _body(), content_type="text/plain", size=len(BYTES))
    except AlreadyExists:
        return
    raise Failed(
        "it replaced an object that was there: it ignores If-None-Match",
        "use a server that has it (AWS S3, a newer MinIO, versitygw): others lose uploads",
    )


async def _body() -> AsyncIterator[bytes]:
    yield BYTES
