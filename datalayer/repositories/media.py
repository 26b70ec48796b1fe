"""Media: bytes in a store of their own, and what is known of them in the catalogue beside their owner."""

from __future__ import annotations

import asyncio
import contextlib
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from datalayer.domains.catalogue import (
    FILENAME_BYTES,
    SHA256,
    Attach,
    Describe,
    Detach,
    Pend,
    StoredObject,
    object_name,
)
from datalayer.domains.record import check_text
from datalayer.errors import (
    DatalayerError,
    InvalidArgument,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from datalayer.ids import check_id
from datalayer.repositories.arguments import UNSET, _Unset, as_attributes, as_limit, as_uuid, deadline_of
from datalayer.repositories.cursor import decode_cursor, encode_cursor
from datalayer.repositories.intake import Arrived, Intake, check_size, check_type
from datalayer.routing.holders import Hashing, Holders, name_of
from datalayer.stores.objects import CHUNK
from datalayer.types import Item, Media, MediaData, MediaId, Page, PresignedUpload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.ids import IdSource
    from datalayer.repositories.limits import Limits
    from datalayer.routing.places import Places, Route
    from datalayer.routing.router import Router
    from datalayer.stores.base import CatalogueReads
    from datalayer.stores.objects import Objects

PRESIGN_MAX_S: Final = 900
DELETE_DELAY_US: Final = 24 * 3600 * 1_000_000
"""Bytes without an item are kept for so long."""


class MediaItems:
    """Store, read, list and delete media.

    An item is seen once its bytes are durable and their hash and size are known: an upload that is cut off, by either
    side, is never seen. Equal bytes of one owner are stored once. Ids (``item.id``) know their owner; a plain UUID, such
    as a message's attachment, is passed with ``owner_id``.

    Raises besides what is named: Unavailable, DeadlineExceeded, OutcomeUnknown, InvalidArgument.
    """

    def __init__(self, routers: tuple[Router, Router], places: Places, ids: IdSource, limits: Limits) -> None:
        """``routers``: of the catalogue and of media."""
        self._catalogue, self._media = routers
        self._holders = Holders(places)
        self._intake = Intake(routers, places, ids, limits)
        self._ids = ids
        self._clock: Clock = places.clock
        self._limits = limits

    # --- writing ---------------------------------------------------------------------------------------------------

    async def put(
        self,
        *,
        owner_id: UUID | str,
        data: MediaData,
        content_type: str,
        id: UUID | str | None = None,
        filename: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Media:
        """Store bytes and enter them; memory is bounded whatever their size.

        With ``id`` (a UUIDv7) a retry with the same bytes is the same write; AlreadyExists when it is known with others.
        ``timeout`` bounds the whole upload, which otherwise lasts while ``data`` does; each step has its own bound.
        """
        owner = as_uuid(owner_id, "owner_id")
        item = self._ids.uuid7() if id is None else check_id(as_uuid(id, "id"), self._clock.now_us())
        kind = check_type(content_type, self._limits)
        name = None if filename is None else check_text(filename, "filename", FILENAME_BYTES)
        more = as_attributes(attributes)
        with _reading(data) as (chunks, size):
            check_size(size or 0, self._limits)

            def entered(found: Arrived) -> Attach:
                about = (found.upload, found.sha256, found.size, found.held, kind, name, more)
                return Attach(owner, item, *about)

            executed = await self._intake.bring(
                owner, chunks, size=size, content_type=kind, enter=entered, timeout=timeout
            )
        return cast("Media", executed.entity)

    async def update(
        self,
        item: Item,
        *,
        owner_id: UUID | str | None = None,
        filename: str | _Unset | None = UNSET,
        attributes: Mapping[str, Any] | _Unset = UNSET,
        expected_version: int | None = None,
        timeout: float | None = None,
    ) -> Media:
        """Change what is said of an item; its bytes never change. NotFound, Conflict (``expected_version`` differs)."""
        key = _key(item, owner_id)
        changes: list[tuple[str, str | None]] = []
        if not isinstance(filename, _Unset):
            changes.append(("filename", None if filename is None else check_text(filename, "filename", FILENAME_BYTES)))
        if not isinstance(attributes, _Unset):
            changes.append(("attributes", as_attributes(attributes)))
        mutation = Describe(key.owner_id, key, tuple(changes), expected_version)
        return cast("Media", await self._catalogue.write(mutation, self._deadline(timeout)))

    async def delete(self, item: Item, *, owner_id: UUID | str | None = None, timeout: float | None = None) -> None:
        """Delete an item for good; twice is no error. NotFound when it never was.

        Its bytes are deleted a day later, unless another item of the owner has the same.
        """
        key = _key(item, owner_id)
        await self._catalogue.write(Detach(key.owner_id, key, DELETE_DELAY_US), self._deadline(timeout))

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(
        self, item: Item, *, owner_id: UUID | str | None = None, timeout: float | None = None
    ) -> Media | None:
        """One item, or None when absent, deleted or not uploaded yet."""
        found = await self._found(_key(item, owner_id), timeout)
        return found if found is not None and found.ready and not found.deleted else None

    async def list(
        self, owner_id: UUID | str, *, limit: int = 50, cursor: str | None = None, timeout: float | None = None
    ) -> Page[Media]:
        """A page of an owner's items, newest first, filled to ``limit`` (at most 1,000)."""
        owner = as_uuid(owner_id, "owner_id")
        size = as_limit(limit)
        after = None if cursor is None else decode_cursor(cursor, "media.list", (owner,))

        def call(store: CatalogueReads, deadline: Deadline) -> Any:
            return store.of_owner(owner, size, deadline, after=after)

        items: Any = await self._catalogue.read((owner.bytes,), call, self._deadline(timeout))
        last = encode_cursor(items[-1].id, "media.list", (owner,)) if len(items) == size else None
        return Page(tuple(items), last)

    async def open(
        self,
        item: Item,
        *,
        owner_id: UUID | str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an item, in pieces: ``async for chunk in layer.media.open(item.id)``.

        As a whole they are compared with their hash: the last piece comes only when it is right. A part, from ``start``
        to before ``stop``, cannot be compared. NotFound; Corrupt where no store has the right bytes any more.
        """
        if start < 0 or (stop is not None and stop < start):
            raise InvalidArgument(f"from {start} to {stop} is no range of bytes")
        key = _key(item, owner_id)
        found = await self.get(key)
        if found is None:
            raise NotFound(f"media {key} of owner {key.owner_id} does not exist")
        stored = await self._object(key.owner_id, found.sha256)
        held = self._holders.ordered(stored, self._media.routing)
        whole = start == 0 and (stop is None or stop >= stored.size)
        chunks = self._holders.whole(stored, held) if whole else self._holders.part(stored, held, start, stop)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def read(
        self, item: Item, *, owner_id: UUID | str | None = None, start: int = 0, stop: int | None = None
    ) -> bytes:
        """The bytes of an item at once, for small ones; as ``open``."""
        return b"".join([chunk async for chunk in self.open(item, owner_id=owner_id, start=start, stop=stop)])

    async def save(self, item: Item, path: PathLike[str] | str, *, owner_id: UUID | str | None = None) -> None:
        """Write the bytes of an item to a new file; as ``open``. What failed half way leaves no file.

        InvalidArgument where the file exists.
        """
        target = Path(path)
        with _opened(target, "xb") as file:
            try:
                async for chunk in self.open(item, owner_id=owner_id):
                    await asyncio.to_thread(file.write, chunk)
            except BaseException:  # whatever it was, half a file is no item; raised again
                await asyncio.to_thread(target.unlink)
                raise

    # --- URLs ------------------------------------------------------------------------------------------------------

    async def presign_get(
        self,
        item: Item,
        *,
        owner_id: UUID | str | None = None,
        expires_s: int = PRESIGN_MAX_S,
        inline: bool = False,
        timeout: float | None = None,
    ) -> str:
        """A URL at which anybody may read the item's bytes, for at most 15 minutes.

        Browsers are told to save it under its file name unless ``inline``. NotFound; PreconditionFailed where media lie
        in a store without URLs.
        """
        expires = _expires(expires_s)
        key = _key(item, owner_id)
        found = await self._found(key, timeout)
        if found is None or found.deleted or not found.ready:
            raise NotFound(f"media {key} of owner {key.owner_id} does not exist")
        stored = await self._object(key.owner_id, found.sha256)
        refused: DatalayerError | None = None
        for held in self._holders.ordered(stored, self._media.routing):
            try:
                store = await self._holders.store(held)
                return await store.presign_get(
                    stored.key, expires, content_type=found.content_type, filename=found.filename, inline=inline
                )
            except (PreconditionFailed, Unavailable) as error:
                refused = refused or error
        raise NotFound(f"no place holds media {key}") if refused is None else refused

    async def url(self, item: Item, *, owner_id: UUID | str | None = None, timeout: float | None = None) -> str | None:
        """The item's URL at the CDN that is configured for its backend (``cdn_url``); None without one. NotFound."""
        key = _key(item, owner_id)
        found = await self._found(key, timeout)
        if found is None or found.deleted or not found.ready:
            raise NotFound(f"media {key} of owner {key.owner_id} does not exist")
        stored = await self._object(key.owner_id, found.sha256)
        for held in self._holders.ordered(stored, self._media.routing):
            url = (await self._holders.store(held)).public_url(stored.key)
            if url is not None:
                return url
        return None

    async def presign_put(
        self,
        *,
        owner_id: UUID | str,
        size: int,
        content_type: str,
        sha256: str | None = None,
        id: UUID | str | None = None,
        filename: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        expires_s: int = PRESIGN_MAX_S,
        timeout: float | None = None,
    ) -> PresignedUpload:
        """Where a client may upload exactly these bytes by itself; nobody sees them before ``complete``.

        Name, size and type are bound by the signature, the hash too where ``sha256`` (hex) is given. PreconditionFailed
        where media lie in a store without URLs.
        """
        owner = as_uuid(owner_id, "owner_id")
        item = self._ids.uuid7() if id is None else check_id(as_uuid(id, "id"), self._clock.now_us())
        check_size(_bytes(size), self._limits)
        if sha256 is not None and not SHA256.fullmatch(sha256):
            raise InvalidArgument("sha256 must be 64 hex digits")
        expires = _expires(expires_s)
        name = None if filename is None else check_text(filename, "filename", FILENAME_BYTES)
        pend = Pend(
            owner,
            item,
            self._ids.uuid7(),
            size,
            check_type(content_type, self._limits),
            sha256 or "",
            name,
            as_attributes(attributes),
        )
        store: Objects = self._media.route.authority
        signed = await store.presign_put(
            object_name(owner, pend.upload), expires, size=size, content_type=pend.content_type, sha256=pend.sha256
        )
        entered = cast("Media", await self._catalogue.write(pend, self._deadline(timeout)))
        if entered.upload is not None and entered.upload != pend.upload:  # a retry: the first name stays
            signed = await store.presign_put(
                object_name(owner, entered.upload),
                expires,
                size=size,
                content_type=pend.content_type,
                sha256=pend.sha256,
            )
        return PresignedUpload(entered.id, signed.url, signed.headers, self._clock.now_us() + expires * 1_000_000)

    async def complete(self, item: Item, *, owner_id: UUID | str | None = None, timeout: float | None = None) -> Media:
        """Let an item be seen whose client says that its upload is done: size and hash are compared first.

        Done again it answers the same. NotFound (no such upload, or the bytes have not come), PreconditionFailed (they
        are not what was announced: the item is given up and they are deleted; presign another).
        """
        key = _key(item, owner_id)
        found = await self._found(key, timeout)
        if found is None or found.deleted:
            raise NotFound(f"media {key} of owner {key.owner_id} does not exist")
        if found.ready or found.upload is None:
            return found
        with self._intake.writing() as route:
            held, store, size = await self._arrived(route, key.owner_id, found.upload)
            name = object_name(key.owner_id, found.upload)
            wrong = f"{size} bytes came, {found.size} were announced" if size != found.size else None
            passing = Hashing(store.read(name))
            if wrong is None:
                async for _ in passing:
                    pass
                if passing.size != found.size or (found.sha256 and passing.sha256 != found.sha256):
                    wrong = "the bytes do not have the hash that was announced"
            if wrong is not None:
                await self._refuse(key, found, store)
                raise PreconditionFailed(f"the upload of media {key} is refused: {wrong}", hint="presign another")
            attach = Attach(
                key.owner_id,
                key,
                found.upload,
                passing.sha256,
                passing.size,
                held,
                found.content_type,
                found.filename,
                as_attributes(found.attributes),
            )
            executed = await self._intake.enter(attach)
            await self._intake.settle(route, executed, key.owner_id, found.upload)
        return cast("Media", executed.entity)

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _refuse(self, key: MediaId, found: Media, store: Objects) -> None:
        """The item is given up before its bytes go: a name that was read once never gets other bytes."""
        await self._catalogue.write(Detach(key.owner_id, key, 0), self._deadline(None))
        if found.upload is not None:
            await self._intake.give_back(store, key.owner_id, found.upload)

    async def _arrived(self, route: Route, owner: UUID, upload: UUID) -> tuple[str, Objects, int]:
        routing = route.routing
        for place in (routing.authority, routing.mirror):
            if place is not None:
                store = await self._holders.store(name_of(place))
                info = await store.head(object_name(owner, upload))
                if info is not None:
                    return name_of(place), store, info.size
        raise NotFound("the upload has not come, or its URL has expired before", hint="presign another")

    async def _found(self, key: MediaId, timeout: float | None) -> Media | None:
        def call(store: CatalogueReads, deadline: Deadline) -> Any:
            return store.get(key.owner_id, key, deadline)

        found: Media | None = await self._catalogue.read((key.owner_id.bytes,), call, self._deadline(timeout))
        return found

    async def _object(self, owner: UUID, sha256: str) -> StoredObject:
        def call(store: CatalogueReads, deadline: Deadline) -> Any:
            return store.object(owner, sha256, deadline)

        found: StoredObject | None = await self._catalogue.read((owner.bytes,), call, self._deadline(None))
        if found is None or found.deleted:
            raise NotFound(f"owner {owner} has no object of this content any more")
        return found

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)


def _key(item: Item, owner_id: UUID | str | None) -> MediaId:
    """Owner and id of what a caller passed."""
    if isinstance(item, Media):
        item = item.id
    if isinstance(item, MediaId) and owner_id is None:
        return item
    if owner_id is None:
        raise InvalidArgument(
            "this id does not say whose media it is", hint="pass owner_id=, or an item or id as put gave it"
        )
    return MediaId(as_uuid(owner_id, "owner_id"), as_uuid(item, "id"))


def _bytes(size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidArgument(f"size is {size!r}; it must be a number of bytes")
    return size


def _expires(seconds: object) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= PRESIGN_MAX_S:
        raise InvalidArgument(f"expires_s is {seconds!r}; it must be from 1 to {PRESIGN_MAX_S} seconds")
    return seconds


@contextlib.contextmanager
def _reading(data: MediaData) -> Iterator[tuple[AsyncIterator[bytes], int | None]]:
    """Bytes in pieces, and how many where that is known."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data).cast("B")
        yield _of_bytes(view), len(view)
    elif isinstance(data, PathLike):
        with _opened(Path(data), "rb") as file:
            yield _of_file(file), Path(data).stat().st_size
    elif hasattr(data, "read"):
        yield _of_file(cast("IO[bytes]", data)), None
    elif hasattr(data, "__aiter__"):
        yield _of_stream(data), None
    else:
        raise InvalidArgument(
            f"data must be bytes, a path, a binary file or an async iterator of bytes, not {type(data).__name__}"
        )


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open(mode))
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be opened: {error.strerror}") from error
        yield cast("IO[bytes]", file)


async def _of_bytes(view: memoryview) -> AsyncIterator[bytes]:
    for at in range(0, len(view), CHUNK):
        yield bytes(view[at : at + CHUNK])


async def _of_file(file: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK):
        yield _as_bytes(chunk)


async def _of_stream(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in stream:
        yield _as_bytes(chunk)


def _as_bytes(chunk: object) -> bytes:
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise InvalidArgument(f"data must give bytes, not {type(chunk).__name__}", hint="open files in binary mode")
    return bytes(chunk)
