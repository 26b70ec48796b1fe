"""The messages domain: its record kind, its mutations, and decide()."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias, cast
from uuid import UUID

from datalayer.domains.record import FINAL_LEAD, FieldSpec, Key, Kind, Record, canonical_json, parse_json
from datalayer.errors import AlreadyExists, NotFound
from datalayer.ids import id_time_us
from datalayer.types import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

MESSAGE: Final = Kind(
    "message",
    (
        FieldSpec("sender_id", "uuid"),
        FieldSpec("body", "text"),
        FieldSpec("kind", "text"),
        FieldSpec("thread_id", "uuid", nullable=True),
        FieldSpec("attachments", "uuids"),
        FieldSpec("edited_at", "int", nullable=True),
        FieldSpec("attributes", "json"),
    ),
)
KINDS: Final = (MESSAGE,)
NIL: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Append:
    """Create a message if its id is unknown; version = the id's own time, so a retry is the same write."""

    conversation_id: UUID
    id: UUID
    sender_id: UUID
    body: str
    kind: str = "text"
    thread_id: UUID | None = None
    attachments: tuple[UUID, ...] = ()
    attributes: str = "{}"
    fresh: bool = False
    """The library made the id just now: no store can hold it yet, so a look before the write may be left out."""
    creates: ClassVar[bool] = True
    deletes: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the body and, where given, the attributes; last writer wins."""

    conversation_id: UUID
    id: UUID
    body: str
    attributes: str | None = None
    fresh: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    deletes: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete for good: the id is never used again."""

    conversation_id: UUID
    id: UUID
    fresh: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    deletes: ClassVar[bool] = True


MessageMutation: TypeAlias = Append | Edit | Delete


def message_key(conversation_id: UUID, message_id: UUID) -> bytes:
    """The 32 bytes of a message's key: conversation (the routing key), then id."""
    return conversation_id.bytes + message_id.bytes


def keys_of(mutation: MessageMutation) -> tuple[Key, ...]:
    """The keys a mutation reads and may write."""
    return (("message", mutation.conversation_id.bytes + mutation.id.bytes),)


def to_record(message: Message) -> Record:
    """The canonical record of a message."""
    return Record(
        "message",
        message.conversation_id.bytes + message.id.bytes,
        message.version,
        message.deleted,
        (
            message.sender_id.bytes,
            message.body,
            message.kind,
            None if message.thread_id is None else message.thread_id.bytes,
            b"".join(item.bytes for item in message.attachments),
            message.edited_at_us,
            canonical_json(message.attributes),
        ),
    )


def to_message(record: Record) -> Message:
    """The message of a canonical record."""
    sender, body, kind, thread, attachments, edited, attributes = cast(
        "tuple[bytes, str, str, bytes | None, bytes, int | None, str]", record.fields
    )
    return Message(
        UUID(bytes=record.key[16:]),
        UUID(bytes=record.key[:16]),
        UUID(bytes=sender),
        body,
        kind,
        None if thread is None else UUID(bytes=thread),
        tuple(UUID(bytes=attachments[at : at + 16]) for at in range(0, len(attachments), 16)),
        edited,
        record.deleted,
        record.version,
        parse_json(attributes),
    )


def tombstone(key: bytes, version: int) -> Record:
    """The tombstone of a message of which nothing else is known (a foreign hard delete)."""
    return Record("message", key, version, True, (NIL.bytes, "", "text", None, b"", None, "{}"))


def same_append(mutation: Append, stored: Message) -> bool:
    """Whether an append of a known id is a retry of the write that made it.

    An edited or deleted message no longer shows its first body: then the sender alone decides.
    """
    if stored.sender_id != mutation.sender_id:
        return False
    return stored.version != id_time_us(mutation.id) or stored.body == mutation.body


def blocked(mutation: MessageMutation, pending: Record | None) -> Message:
    """The answer to a mutation that met a write under way: a delete (None), or of an append another append."""
    if pending is None:
        raise NotFound(f"message {mutation.id} was deleted")
    assert isinstance(mutation, Append), "only an append finds a pending intent in its way"
    stored = to_message(pending)
    if not same_append(mutation, stored):
        raise AlreadyExists(f"message {mutation.id} exists already with another sender or body", field="id")
    return stored


def decide(mutation: MessageMutation, current: Mapping[Key, Record], now_us: int) -> tuple[Message, tuple[Record, ...]]:
    """What a mutation does to the records it reads: (the message afterwards, the records to apply).

    The reference for every store. ``now_us`` is the clock in microseconds. No records: nothing changes. Raises
    NotFound (absent, or an edit of a deleted one), AlreadyExists (a known id with another sender or body).
    """
    record = current.get(keys_of(mutation)[0])
    if isinstance(mutation, Append):
        return _decide_append(mutation, record)
    if record is None:
        raise NotFound(f"message {mutation.id} does not exist in conversation {mutation.conversation_id}")
    stored = to_message(record)
    if isinstance(mutation, Delete):
        if stored.deleted:
            return stored, ()
        version = max(record.version + 2, now_us) + FINAL_LEAD
        return _changed(stored, version, body="", deleted=True, attributes="{}", edited_at=stored.edited_at_us)
    if stored.deleted:
        raise NotFound(f"message {mutation.id} was deleted")
    version = max(record.version + 2, now_us)
    attributes = canonical_json(stored.attributes) if mutation.attributes is None else mutation.attributes
    return _changed(stored, version, body=mutation.body, deleted=False, attributes=attributes, edited_at=now_us)


def appended(mutation: Append) -> Message:
    """The message a first append makes."""
    return Message(
        mutation.id,
        mutation.conversation_id,
        mutation.sender_id,
        mutation.body,
        mutation.kind,
        mutation.thread_id,
        mutation.attachments,
        None,
        False,
        id_time_us(mutation.id),
        parse_json(mutation.attributes),
    )


def _decide_append(mutation: Append, record: Record | None) -> tuple[Message, tuple[Record, ...]]:
    if record is None:
        message = appended(mutation)
        return message, (to_record(message),)
    stored = to_message(record)
    if not same_append(mutation, stored):
        raise AlreadyExists(f"message {mutation.id} exists already with another sender or body", field="id")
    return stored, ()


def _changed(
    stored: Message, version: int, *, body: str, deleted: bool, attributes: str, edited_at: int | None
) -> tuple[Message, tuple[Record, ...]]:
    message = Message(
        stored.id,
        stored.conversation_id,
        stored.sender_id,
        body,
        stored.kind,
        stored.thread_id,
        () if deleted else stored.attachments,
        edited_at,
        deleted,
        version,
        parse_json(attributes),
    )
    return message, (to_record(message),)
