"""The catalogue of media: each owner's items, and the objects that hold their bytes.

An item refers to an object by the hash of its content; equal bytes of one owner are one object. An object is what the
stores of media hold under a name that is never used again, and ``held`` says which places hold it. Items, objects and
their counts lie under the owner's routing key, so that they change together, and a residency that holds for the owner
holds for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from uuid import UUID

from datalayer.domains.record import FINAL_LEAD, FieldSpec, FieldValue, Key, Kind, Record, parse_json
from datalayer.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed
from datalayer.ids import id_time_us
from datalayer.types import Media, MediaId

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA: Final = Kind(
    "media",
    (
        FieldSpec("state", "text"),
        FieldSpec("upload", "uuid", nullable=True),
        FieldSpec("sha256", "text"),
        FieldSpec("size", "int"),
        FieldSpec("content_type", "text"),
        FieldSpec("filename", "text", nullable=True),
        FieldSpec("attributes", "json"),
    ),
)
OBJECT: Final = Kind(
    "object",
    (
        FieldSpec("sha256", "text"),
        FieldSpec("size", "int"),
        FieldSpec("content_type", "text"),
        FieldSpec("name", "uuid"),
        FieldSpec("held", "text"),
        FieldSpec("refs", "int"),
        FieldSpec("delete_after", "int", nullable=True),
    ),
    # the same bytes may come again, under another name
    final=False,
)
KINDS: Final = (MEDIA, OBJECT)
READY: Final = "ready"
PENDING: Final = "pending"
SHA256: Final = re.compile(r"[0-9a-f]{64}")
FILENAME_BYTES: Final = 1024
UPLOAD_MAX_US: Final = 24 * 3600 * 1_000_000
"""An upload that began longer ago is not entered any more; bytes that nobody knows are kept for twice as long."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes that lie in the stores of media. ``held``: the places that have them, as ``place_name`` writes them."""

    owner_id: UUID
    sha256: str
    size: int
    content_type: str
    name: UUID
    held: tuple[str, ...]
    refs: int
    delete_after: int | None
    deleted: bool
    version: int

    @property
    def key(self) -> str:
        """What stores of media call these bytes."""
        return object_name(self.owner_id, self.name)


@dataclass(frozen=True, slots=True)
class Pend:
    """Enter an item whose bytes the client uploads by itself; nobody sees it before it is attached."""

    owner_id: UUID
    id: UUID
    upload: UUID
    size: int
    content_type: str
    sha256: str = ""
    filename: str | None = None
    attributes: str = "{}"


@dataclass(frozen=True, slots=True)
class Attach:
    """Make an item visible whose bytes are durable at ``held``, under the name ``upload``.

    Where the owner has an object of this content already, that one gets one reference more and the upload is not used.
    """

    owner_id: UUID
    id: UUID
    upload: UUID
    sha256: str
    size: int
    held: str
    content_type: str
    filename: str | None = None
    attributes: str = "{}"


@dataclass(frozen=True, slots=True)
class Restore:
    """Enter an item, or tombstone, exactly as it was elsewhere, unless anything is known of its id: that stays.

    Its bytes are durable at ``held`` under the name ``upload``, as of ``Attach``; without one the owner must have an
    object of this content already.
    """

    owner_id: UUID
    id: UUID
    version: int
    sha256: str
    size: int
    content_type: str
    filename: str | None = None
    attributes: str = "{}"
    deleted: bool = False
    upload: UUID | None = None
    held: str = ""


@dataclass(frozen=True, slots=True)
class Describe:
    """Change the given fields of an item, ``filename`` and ``attributes``; its bytes never change."""

    owner_id: UUID
    id: UUID
    changes: tuple[tuple[str, str | None], ...]
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class Detach:
    """Delete an item for good; an object without references is deleted after ``delay_us``."""

    owner_id: UUID
    id: UUID
    delay_us: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Enter that a place has, or has no longer, the bytes of an object of this name."""

    owner_id: UUID
    sha256: str
    name: UUID
    add: str | None = None
    drop: str | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Give up an object without references whose time has come: from then on nobody can refer to these bytes."""

    owner_id: UUID
    sha256: str
    name: UUID


CatalogueMutation: TypeAlias = Pend | Attach | Restore | Describe | Detach | Hold | Forget


def media_key(owner_id: UUID, media_id: UUID) -> bytes:
    """The 32 bytes of an item's key: owner (the routing key), then id."""
    return owner_id.bytes + media_id.bytes


def object_key(owner_id: UUID, sha256: str) -> bytes:
    """The 32 bytes of an object's key: owner, then the first half of the hash of its content."""
    return owner_id.bytes + bytes.fromhex(sha256[:32])


def object_name(owner_id: UUID, name: UUID) -> str:
    """What stores of media call the bytes of an upload."""
    return f"{owner_id.hex}/{name.hex}"


def place_name(backend: str, attempt: int) -> str:
    """A place as ``held`` has it."""
    return f"{backend}:{attempt}"


def keys_of(mutation: CatalogueMutation) -> tuple[Key, ...]:
    """The keys that a mutation reads; of a ``Detach`` also ``referred`` by its item."""
    if isinstance(mutation, (Hold, Forget)):
        return (("object", object_key(mutation.owner_id, mutation.sha256)),)
    item: Key = ("media", media_key(mutation.owner_id, mutation.id))
    if isinstance(mutation, Attach) or (isinstance(mutation, Restore) and not mutation.deleted):
        return (item, ("object", object_key(mutation.owner_id, mutation.sha256)))
    return (item,)


def referred(mutation: CatalogueMutation, item: Record | None) -> Key | None:
    """The object that a deletion lets go of, which only the item tells."""
    if not isinstance(mutation, Detach) or item is None or item.deleted or item.fields[0] != READY:
        return None
    return ("object", object_key(mutation.owner_id, cast("str", item.fields[2])))


def to_media(record: Record) -> Media:
    """The item of a canonical record."""
    state, upload, sha256, size, content_type, filename, attributes = cast(
        "tuple[str, bytes | None, str, int, str, str | None, str]", record.fields
    )
    return Media(
        MediaId(UUID(bytes=record.key[:16]), UUID(bytes=record.key[16:])),
        content_type,
        size,
        sha256,
        filename,
        state == READY,
        None if upload is None else UUID(bytes=upload),
        record.deleted,
        record.version,
        parse_json(attributes),
    )


def to_object(record: Record) -> StoredObject:
    """The object of a canonical record."""
    sha256, size, content_type, name, held, refs, delete_after = cast(
        "tuple[str, int, str, bytes, str, int, int | None]", record.fields
    )
    return StoredObject(
        UUID(bytes=record.key[:16]),
        sha256,
        size,
        content_type,
        UUID(bytes=name),
        tuple(held.split()),
        refs,
        delete_after,
        record.deleted,
        record.version,
    )


def to_entity(record: Record) -> Media | StoredObject:
    """The item or object of a canonical record."""
    return to_media(record) if record.kind == "media" else to_object(record)


_NO_ITEM: Final[tuple[FieldValue, ...]] = (READY, None, "", 0, "", None, "{}")
_NO_OBJECT: Final[tuple[FieldValue, ...]] = ("", 0, "", bytes(16), "", 0, None)


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The tombstone of a record of which nothing else is known (a foreign hard delete)."""
    return Record(kind, key, version, True, _NO_ITEM if kind == "media" else _NO_OBJECT)


def decide(
    mutation: CatalogueMutation, current: Mapping[Key, Record], now_us: int
) -> tuple[Media | StoredObject, tuple[Record, ...]]:
    """What a mutation does: (the item or object afterwards, the records to apply). The reference for every store.

    Raises AlreadyExists (the id is another item's), NotFound, Conflict (an object is in use, the place is the last one
    that holds it, or other bytes have half of the hash), PreconditionFailed (an upload that began more than UPLOAD_MAX_US ago).
    """
    match mutation:
        case Pend():
            return _pend(mutation, current.get(keys_of(mutation)[0]), now_us)
        case Attach() | Restore():
            return _enter(mutation, current, now_us)
        case Describe():
            return _describe(mutation, current.get(keys_of(mutation)[0]), now_us)
        case Detach():
            return _detach(mutation, current, now_us)
        case Hold():
            return _hold(mutation, _live(mutation, current), now_us)
        case Forget():
            return _forget(mutation, current.get(keys_of(mutation)[0]), now_us)


def _later(record: Record | None, now_us: int) -> int:
    return now_us if record is None else max(record.version + 2, now_us)


def _pend(mutation: Pend, item: Record | None, now_us: int) -> tuple[Media, tuple[Record, ...]]:
    if item is not None:
        known = to_media(item)
        told = (known.size, known.content_type, known.sha256)
        if known.deleted or known.ready or told != (mutation.size, mutation.content_type, mutation.sha256):
            raise AlreadyExists(f"media {mutation.id} of owner {mutation.owner_id} exists already", field="id")
        return known, ()
    fields = (
        PENDING,
        mutation.upload.bytes,
        mutation.sha256,
        mutation.size,
        mutation.content_type,
        mutation.filename,
        mutation.attributes,
    )
    record = Record("media", media_key(mutation.owner_id, mutation.id), now_us, False, fields)
    return to_media(record), (record,)


def _attach(mutation: Attach, current: Mapping[Key, Record], now_us: int) -> tuple[Media, tuple[Record, ...]]:
    item_key, key = keys_of(mutation)
    item, stored = current.get(item_key), current.get(key)
    if item is not None:
        known = to_media(item)
        told = (known.sha256, known.size, known.content_type)
        if known.ready and not known.deleted and told == (mutation.sha256, mutation.size, mutation.content_type):
            return known, ()
        if known.ready or known.deleted or known.upload != mutation.upload:
            raise AlreadyExists(f"media {mutation.id} of owner {mutation.owner_id} exists already", field="id")
    kept = _referred_to(mutation, mutation.upload, stored, now_us)
    shown = (
        READY,
        None,
        mutation.sha256,
        mutation.size,
        mutation.content_type,
        mutation.filename,
        mutation.attributes,
    )
    record = Record("media", item_key[1], _later(item, now_us), False, shown)
    return to_media(record), (record, kept)


def _enter(mutation: Attach | Restore, current: Mapping[Key, Record], now_us: int) -> tuple[Media, tuple[Record, ...]]:
    if isinstance(mutation, Attach):
        return _attach(mutation, current, now_us)
    return _restore(mutation, current, now_us)


def _restore(mutation: Restore, current: Mapping[Key, Record], now_us: int) -> tuple[Media, tuple[Record, ...]]:
    keys = keys_of(mutation)
    known = current.get(keys[0])
    if known is not None:
        return to_media(known), ()
    about = (mutation.sha256, mutation.size, mutation.content_type, mutation.filename, mutation.attributes)
    item = Record("media", keys[0][1], mutation.version, mutation.deleted, (READY, None, *about))
    if mutation.deleted:
        return to_media(item), (item,)
    stored = current.get(keys[1])
    if mutation.upload is None and (stored is None or stored.deleted):
        raise NotFound(f"owner {mutation.owner_id} has no object of this content")
    return to_media(item), (item, _referred_to(mutation, mutation.upload, stored, now_us))


def _referred_to(mutation: Attach | Restore, upload: UUID | None, stored: Record | None, now_us: int) -> Record:
    """The object of an item with one reference more: the one that is there, else that of the upload."""
    if upload is not None and id_time_us(upload) < now_us - UPLOAD_MAX_US:
        raise PreconditionFailed("this upload began more than a day ago", hint="upload it again")
    content = (mutation.sha256, mutation.size)
    if stored is None or stored.deleted:
        assert upload is not None, "there is an object or an upload"
        fields: tuple[FieldValue, ...] = (*content, mutation.content_type, upload.bytes, mutation.held, 1, None)
    else:
        if stored.fields[:2] != content:
            raise Conflict(
                f"other bytes of owner {mutation.owner_id} have a hash that begins alike", hint="change them"
            )
        fields = (*stored.fields[:5], cast("int", stored.fields[5]) + 1, None)
    key = object_key(mutation.owner_id, mutation.sha256)
    return Record("object", key, _later(stored, now_us), False, fields)


def _describe(mutation: Describe, item: Record | None, now_us: int) -> tuple[Media, tuple[Record, ...]]:
    if item is None or item.deleted or item.fields[0] != READY:
        raise NotFound(f"media {mutation.id} of owner {mutation.owner_id} does not exist")
    if mutation.expected_version is not None and mutation.expected_version != item.version:
        raise Conflict(f"media {mutation.id} has changed", current_version=item.version)
    values = dict(mutation.changes)
    filename, attributes = values.get("filename", item.fields[5]), values.get("attributes", item.fields[6])
    changed = item._replace(fields=(*item.fields[:5], filename, attributes))
    if changed.fields == item.fields:
        return to_media(item), ()
    changed = changed._replace(version=_later(item, now_us))
    return to_media(changed), (changed,)


def _detach(mutation: Detach, current: Mapping[Key, Record], now_us: int) -> tuple[Media, tuple[Record, ...]]:
    item = current.get(keys_of(mutation)[0])
    if item is None:
        raise NotFound(f"media {mutation.id} of owner {mutation.owner_id} does not exist")
    if item.deleted:
        return to_media(item), ()
    fields = (READY, None, item.fields[2], item.fields[3], item.fields[4], None, "{}")
    gone = Record("media", item.key, _later(item, now_us) + FINAL_LEAD, True, fields)
    key = referred(mutation, item)
    stored = None if key is None else current.get(key)
    if stored is None or stored.deleted:
        return to_media(gone), (gone,)
    refs = max(0, cast("int", stored.fields[5]) - 1)
    after = now_us + mutation.delay_us if refs == 0 else None
    kept = stored._replace(version=_later(stored, now_us), fields=(*stored.fields[:5], refs, after))
    return to_media(gone), (gone, kept)


def _live(mutation: Hold, current: Mapping[Key, Record]) -> Record:
    record = current.get(keys_of(mutation)[0])
    if record is None or record.deleted or record.fields[3] != mutation.name.bytes:
        raise NotFound(f"owner {mutation.owner_id} has no object {mutation.name} any more")
    return record


def _hold(mutation: Hold, record: Record, now_us: int) -> tuple[StoredObject, tuple[Record, ...]]:
    before = set(cast("str", record.fields[4]).split())
    held = before | ({mutation.add} if mutation.add else set())
    held -= {mutation.drop} if mutation.drop else set()
    if held == before:
        return to_object(record), ()
    if not held:
        raise Conflict(f"{mutation.drop} is the last that holds object {mutation.name}", hint="copy it first")
    fields = (*record.fields[:4], " ".join(sorted(held)), *record.fields[5:])
    changed = record._replace(version=_later(record, now_us), fields=fields)
    return to_object(changed), (changed,)


def _forget(mutation: Forget, record: Record | None, now_us: int) -> tuple[StoredObject, tuple[Record, ...]]:
    if record is None:
        raise NotFound(f"owner {mutation.owner_id} has no object {mutation.name}")
    stored = to_object(record)
    if record.deleted or stored.name != mutation.name:
        return stored, ()
    if stored.refs > 0 or stored.delete_after is None or stored.delete_after > now_us:
        raise Conflict(f"object {mutation.name} is in use", hint="leave it")
    gone = record._replace(version=_later(record, now_us), deleted=True)
    return to_object(gone), (gone,)
