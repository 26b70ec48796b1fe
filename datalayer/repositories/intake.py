"""How bytes of media come in: into the store first, then into the catalogue.

Nobody sees bytes that no row names, so whatever ends half way leaves no item. What it leaves in a store is given back at
once where that is possible, and found by the sweep where it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.domains.catalogue import Hold, object_name, to_object
from datalayer.domains.record import check_text
from datalayer.errors import DatalayerError, DeadlineExceeded, InvalidArgument, OutcomeUnknown, Unavailable
from datalayer.repositories.arguments import deadline_of
from datalayer.routing.holders import Hashing, Holders, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from uuid import UUID

    from datalayer.domains.catalogue import CatalogueMutation
    from datalayer.ids import IdSource
    from datalayer.repositories.limits import Limits
    from datalayer.routing.places import Places, Route
    from datalayer.routing.router import Router
    from datalayer.stores.base import Executed
    from datalayer.stores.objects import Objects

ATTEMPTS: Final = 3
_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}(; ?[ -~]{1,120})?")


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes that are durable at the place ``held`` under the name ``upload``."""

    upload: UUID
    held: str
    sha256: str
    size: int


class Intake:
    """Takes bytes in for whoever says how they are to be entered."""

    def __init__(self, routers: tuple[Router, Router], places: Places, ids: IdSource, limits: Limits) -> None:
        """``routers``: of the catalogue and of media."""
        self._catalogue, self._media = routers
        self._holders = Holders(places)
        self._clock = places.clock
        self._ids = ids
        self._limits = limits

    async def bring(
        self,
        owner: UUID,
        chunks: AsyncIterator[bytes],
        *,
        size: int | None,
        content_type: str,
        enter: Callable[[Arrived], CatalogueMutation],
        timeout: float | None = None,
    ) -> Executed:
        """Store bytes and enter them as ``enter`` says; memory is bounded whatever their size.

        What ``chunks`` raises is raised, and nothing is stored. InvalidArgument where they are more than is allowed, or
        not ``size``. ``timeout`` bounds the upload.
        """
        with self.writing() as route:
            upload = self._ids.uuid7()
            passing = Hashing(chunks, lambda size: check_size(size, self._limits))
            store: Objects = route.authority
            try:
                async with asyncio.timeout(timeout):
                    await store.put(object_name(owner, upload), aiter(passing), content_type=content_type, size=size)
            except TimeoutError:
                raise DeadlineExceeded("the upload took longer than its timeout: nothing was stored") from None
            except OutcomeUnknown as error:  # bytes without a row are seen by nobody
                await self.give_back(store, owner, upload)
                raise Unavailable("the store of media did not confirm the upload: nothing was stored") from error
            if size is not None and passing.size != size:
                await self.give_back(store, owner, upload)
                raise InvalidArgument(f"the data changed while it was read: {passing.size} bytes of {size}")
            arrived = Arrived(upload, name_of(route.routing.authority), passing.sha256, passing.size)
            try:
                executed = await self.enter(enter(arrived))
            except OutcomeUnknown:
                raise  # it may have been entered: what was not is found by the sweep
            except DatalayerError:
                await self.give_back(store, owner, upload)
                raise
            await self.settle(route, executed, owner, upload)
        return executed

    @contextlib.contextmanager
    def writing(self) -> Iterator[Route]:
        """The route of a write of bytes, counted until the catalogue knows of it: a move waits for that."""
        route = self._media.route
        route.inflight += 1
        try:
            yield route
        finally:
            route.inflight -= 1

    async def enter(self, mutation: CatalogueMutation) -> Executed:
        """Enter an item; an answer that was lost is asked for again, which by the id is the same write."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._catalogue.execute(mutation, deadline_of(self._clock, None, self._limits))
            except OutcomeUnknown:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def settle(self, route: Route, executed: Executed, owner: UUID, upload: UUID) -> None:
        """What is due once an item was entered: bytes that the owner had already go, new ones are mirrored in a move.

        Best effort: the sweep finds the first, the move finds the second, which it needs to come to an end.
        """
        stored = next((to_object(record) for record in executed.records if record.kind == "object"), None)
        if stored is None:
            return
        mirror = route.routing.mirror
        with contextlib.suppress(DatalayerError):
            if stored.name != upload:
                await route.authority.delete([object_name(owner, upload)])
            elif mirror is not None and name_of(mirror) not in stored.held:
                await self._holders.copy(stored, stored.held, name_of(mirror))
                hold = Hold(owner, stored.sha256, stored.name, add=name_of(mirror))
                await self._catalogue.execute(hold, deadline_of(self._clock, None, self._limits))

    async def give_back(self, store: Objects, owner: UUID, upload: UUID) -> None:
        """Delete bytes that nobody will refer to; where that fails, the sweep finds them."""
        with contextlib.suppress(DatalayerError):
            await store.delete([object_name(owner, upload)])


def check_type(given: object, limits: Limits) -> str:
    """A media type that is allowed here; InvalidArgument."""
    value = check_text(given, "content_type", 255).strip()
    if not _TYPE.fullmatch(value):
        raise InvalidArgument(f"content_type {value[:60]!r} is no media type", hint='such as "image/png"')
    allowed = limits.media_types
    base = value.partition(";")[0]
    if allowed and base not in allowed and f"{base.partition('/')[0]}/*" not in allowed:
        raise InvalidArgument(
            f"media of type {base} are not allowed here", hint=f"limits.media_types has: {', '.join(allowed)}"
        )
    return value


def check_size(size: int, limits: Limits) -> None:
    """InvalidArgument for more bytes than are allowed here."""
    most = limits.media_max_bytes
    if size > most:
        raise InvalidArgument(f"media of more than {most} bytes are not allowed here", hint="limits.media_max_bytes")
