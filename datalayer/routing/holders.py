"""Where the bytes of media lie: the places that an object's catalogue row names, and moving bytes between them.

A hash is compared wherever bytes pass as a whole. A reader gets the last piece of an object only once the hash of all
of it is right, so that nobody takes wrong bytes for the object.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.catalogue import StoredObject, place_name
from datalayer.errors import AlreadyExists, Corrupt, DatalayerError, NotFound, RoutingMismatch, Unavailable
from datalayer.routing.route import Place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.stores.objects import Objects

MEDIA: Final = "media"


def place_of(held: str) -> Place:
    """The place that an entry of ``held`` names."""
    backend, _, attempt = held.rpartition(":")
    return Place(backend, int(attempt))


def name_of(place: Place) -> str:
    """A place as ``held`` has it."""
    return place_name(place.backend, place.attempt)


class Hashing:
    """Bytes on their way, counted and hashed. ``limit``: InvalidArgument beyond so many."""

    def __init__(self, chunks: AsyncIterator[bytes], check: Any = None) -> None:
        self._chunks = chunks
        self._check = check
        self._hash = hashlib.sha256()
        self.size = 0

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._chunks:
            self.size += len(chunk)
            if self._check is not None:
                self._check(self.size)
            self._hash.update(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        """The hash of what has passed, in hex."""
        return self._hash.hexdigest()


class Holders:
    """The stores of media, by the names that the catalogue has for them."""

    def __init__(self, places: Places) -> None:
        self._places = places

    async def store(self, held: str) -> Objects:
        """The store of a place, connected. RoutingMismatch for a backend that is not configured here."""
        place = place_of(held)
        await self._places.ensure_open(place)
        store: Objects = self._places.store(MEDIA, place)
        return store

    def ordered(self, stored: StoredObject, routing: Routing) -> Sequence[str]:
        """The places that hold an object, those first that are in use now."""
        first = [name_of(place) for place in (routing.authority, routing.mirror) if place is not None]
        return sorted(stored.held, key=lambda held: first.index(held) if held in first else len(first))

    async def whole(self, stored: StoredObject, held: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """All bytes of an object, from the first place that has them; what fails half way is gone on with elsewhere.

        The last piece comes once the hash is right. Corrupt where no place has the right bytes; what was given of a
        larger object before that is no object.
        """
        told: DatalayerError = NotFound(f"no place that holds object {stored.key} can be reached here")
        digest, at = hashlib.sha256(), 0
        for name in held:
            kept = b""
            try:
                async for chunk in self._rest(stored, name, at):
                    digest.update(chunk)
                    at += len(chunk)
                    if kept:
                        yield kept
                    kept = chunk
            except (Unavailable, NotFound, RoutingMismatch, Corrupt) as error:
                told = error
                if kept:
                    yield kept
                continue
            if at == stored.size and digest.hexdigest() == stored.sha256:
                if kept:
                    yield kept
                return
            told = _corrupt(stored, name)
            if at > len(kept):
                break  # pieces of it were given away already
            digest, at = hashlib.sha256(), 0
        raise told

    async def _rest(self, stored: StoredObject, name: str, at: int) -> AsyncGenerator[bytes, None]:
        store = await self.store(name)
        if at == stored.size > 0:
            return  # the place before has given all, but did not come to its end
        try:
            async for chunk in store.read(stored.key, at, size=stored.size):
                yield chunk
        except Corrupt as error:
            raise _corrupt(stored, name) from error

    async def part(
        self, stored: StoredObject, held: Sequence[str], start: int, stop: int | None
    ) -> AsyncGenerator[bytes, None]:
        """Some bytes of an object; the size is compared, the hash cannot be."""
        told: DatalayerError = NotFound(f"no place that holds object {stored.key} can be reached here")
        end = stored.size if stop is None else min(stop, stored.size)
        at = start
        for name in held:
            if at >= end:
                return
            try:
                store = await self.store(name)
                async for chunk in store.read(stored.key, at, end, size=stored.size):
                    at += len(chunk)
                    yield chunk
            except (NotFound, Corrupt):
                told = _corrupt(stored, name)
                continue
            except (Unavailable, RoutingMismatch) as error:
                told = error
                continue
            if at == end:
                return
            told = _corrupt(stored, name)
        if at < end:
            raise told

    async def copy(self, stored: StoredObject, held: Sequence[str], target: str) -> None:
        """Bring an object to another place, or find it there. Corrupt where no place has the right bytes.

        What is there already under its name is only looked at: a name is given once, and its bytes never change.
        """
        store = await self.store(target)
        info = await store.head(stored.key)
        if info is None:
            try:
                chunks = self.whole(stored, [name for name in held if name != target])
                await store.put(stored.key, chunks, content_type=stored.content_type, size=stored.size)
            except AlreadyExists:
                info = await store.head(stored.key)  # another copier was faster
            else:
                return
        if info is None or info.size != stored.size:
            raise _corrupt(stored, target)

    async def right(self, stored: StoredObject, name: str, *, hashed: bool) -> str | None:
        """What is wrong with an object at a place: missing, size, hash; None where nothing is."""
        store = await self.store(name)
        info = await store.head(stored.key)
        if info is None:
            return "missing"
        if info.size != stored.size:
            return "size"
        if not hashed:
            return None
        digest = Hashing(store.read(stored.key))
        async for _ in digest:
            pass
        return None if (digest.size, digest.sha256) == (stored.size, stored.sha256) else "hash"


def _corrupt(stored: StoredObject, name: str) -> Corrupt:
    return Corrupt(
        f"object {stored.key} in {name} is not what was stored there",
        hint="datalayer migrations verify finds what differs while media move; restore it from a copy",
    )
