"""Postgres' ``RowCodec``: rows as psycopg gives and takes them, in binary.

A uuid read is a ``uuid.UUID`` (psycopg makes it in C). A uuid bound from a record's bytes is a ``RawUuid``: making a
UUID of it only for the driver to take it apart again would cost more than the rest of the row.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg.adapt import Dumper
from psycopg.pq import Format

from datalayer.domains.record import Record, parse_json
from datalayer.domains.users import claim_key_of, claim_of
from datalayer.stores.postgres.connection import ADAPTERS
from datalayer.types import Message, User

if TYPE_CHECKING:
    from datalayer.stores.sql.database import Row

UUID_OID: Final = 2950
UUIDS_OID: Final = 2951
_ARRAY_HEAD: Final = struct.Struct("!iiIii")
_EMPTY_ARRAY: Final = struct.pack("!iiI", 0, 0, UUID_OID)
_ITEM_LENGTH: Final = struct.pack("!i", 16)
_INT64: Final = 1 << 63
_SESSION_TIMES: Final = ("created_at", "mark", "ends_at", "expires_at")


class RawUuid(bytes):
    """The 16 bytes of a uuid, bound as they are."""

    __slots__ = ()


class _RawUuidDumper(Dumper):
    format = Format.BINARY
    oid = UUID_OID

    def dump(self, obj: RawUuid) -> bytes:
        return obj


class RawUuids(bytes):
    """n x 16 bytes, bound as a uuid[]."""

    __slots__ = ()


class _RawUuidsDumper(Dumper):
    format = Format.BINARY
    oid = UUIDS_OID

    def dump(self, obj: RawUuids) -> bytes:
        return uuid_array(obj)


def uuid_array(items: bytes) -> bytes:
    """The binary form of a uuid[] of these 16-byte items, without the length before it."""
    if not items:
        return _EMPTY_ARRAY
    n = len(items) // 16
    parts = [_ARRAY_HEAD.pack(1, 0, UUID_OID, n, 1)]
    parts += [_ITEM_LENGTH + items[at : at + 16] for at in range(0, len(items), 16)]
    return b"".join(parts)


ADAPTERS.register_dumper(RawUuid, _RawUuidDumper)
ADAPTERS.register_dumper(RawUuids, _RawUuidsDumper)


def check_text(value: str, what: str) -> None:
    """ValueError for what a Postgres text can never hold."""
    if "\x00" in value:
        raise ValueError(f"{what} contains the character NUL")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} contains a lone surrogate") from None


def check_int(value: int, what: str) -> None:
    """ValueError for what a bigint can never hold."""
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"{what} does not fit into 64 bits")


class PostgresCodec:
    """Conversions of rows in the order of ``schemas.metadata.*_COLUMNS``."""

    __slots__ = ()

    def uuid(self, value: bytes) -> Any:
        return RawUuid(value)

    def uuid_bytes(self, value: UUID) -> bytes:
        return value.bytes

    def bind_uuid(self, value: UUID) -> Any:
        return value

    def message(self, row: Row) -> Message:
        conversation, id, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
        return Message(
            id,
            conversation,
            sender,
            body,
            kind,
            thread,
            tuple(attachments),
            edited,
            deleted,
            version,
            {} if attributes == "{}" else parse_json(attributes),
        )

    def message_record(self, row: Row) -> Record:
        conversation, id, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
        return Record(
            "message",
            conversation.bytes + id.bytes,
            version,
            deleted,
            (
                sender.bytes,
                body,
                kind,
                None if thread is None else thread.bytes,
                b"".join([item.bytes for item in attachments]),
                edited,
                attributes,
            ),
        )

    def message_row(self, record: Record) -> Row:
        sender, body, kind, thread, attachments, edited, attributes = record.fields
        check_message(record)
        key = record.key
        return (
            RawUuid(key[:16]),
            RawUuid(key[16:]),
            RawUuid(sender),  # type: ignore[arg-type]
            body,
            kind,
            None if thread is None else RawUuid(thread),  # type: ignore[arg-type]
            RawUuids(attachments),  # type: ignore[arg-type]
            edited,
            record.deleted,
            record.version,
            attributes,
        )

    def user(self, row: Row) -> User:
        id, username, email, display_name, status, updated_at, deleted, version, attributes, region = row
        loaded = parse_json(attributes)
        return User(id, username, email, display_name, status, updated_at, deleted, version, loaded, region)

    def user_record(self, row: Row) -> Record:
        id, username, email, display_name, status, updated_at, deleted, version, attributes, region = row
        fields = (username, email, display_name, status, updated_at, attributes, region)
        return Record("user", id.bytes, version, deleted, fields)

    def user_row(self, record: Record) -> Row:
        username, email, display_name, status, updated_at, attributes, region = record.fields
        check_int(record.version, "version")
        check_int(updated_at, "updated_at")  # type: ignore[arg-type]
        for value, what in ((username, "username"), (email or "", "email"), (display_name, "display_name")):
            check_text(value, what)  # type: ignore[arg-type]
        check_text(status, "status")  # type: ignore[arg-type]
        check_text(attributes, "attributes")  # type: ignore[arg-type]
        check_text(region or "", "region")  # type: ignore[arg-type]
        head = (RawUuid(record.key), username, email, display_name, status, updated_at)
        return (*head, record.deleted, record.version, attributes, region)

    def claim_record(self, row: Row) -> Record:
        kind, value, routing, owner, version, deleted = row
        return Record("claim", claim_key_of(kind, bytes(routing), value), version, deleted, (owner.bytes,))

    def claim_row(self, record: Record) -> Row:
        kind, value = claim_of(record.key)
        check_text(value, kind)
        check_int(record.version, "version")
        owner = RawUuid(record.fields[0])  # type: ignore[arg-type]
        return (kind, value, record.key[:16], owner, record.version, record.deleted)

    def conversation_record(self, row: Row) -> Record:
        id, title, kind, updated_at, deleted, version, attributes = row
        return Record("conversation", id.bytes, version, deleted, (title, kind, updated_at, attributes))

    def conversation_row(self, record: Record) -> Row:
        title, kind, updated_at, attributes = record.fields
        check_int(record.version, "version")
        check_int(updated_at, "updated_at")  # type: ignore[arg-type]
        for value, what in ((title, "title"), (kind, "kind"), (attributes, "attributes")):
            check_text(value, what)  # type: ignore[arg-type]
        return (RawUuid(record.key), title, kind, updated_at, record.deleted, record.version, attributes)

    def member_record(self, row: Row) -> Record:
        conversation, user, role, joined_at, read_up_to, listed, deleted, version = row
        read = None if read_up_to is None else read_up_to.bytes
        return Record("member", conversation.bytes + user.bytes, version, deleted, (role, joined_at, read, listed))

    def member_row(self, record: Record) -> Row:
        role, joined_at, read_up_to, listed = record.fields
        check_text(role, "role")  # type: ignore[arg-type]
        for value, what in ((record.version, "version"), (joined_at, "joined_at"), (listed, "listed")):
            check_int(value, what)  # type: ignore[arg-type]
        read = None if read_up_to is None else RawUuid(read_up_to)  # type: ignore[arg-type]
        key = record.key
        return (RawUuid(key[:16]), RawUuid(key[16:]), role, joined_at, read, listed, record.deleted, record.version)

    def listed_record(self, row: Row) -> Record:
        user, conversation, role, joined_at, read_up_to, newest, last_activity, shown, deleted, version = row
        read = None if read_up_to is None else read_up_to.bytes
        known = None if newest is None else newest.bytes
        fields = (role, joined_at, read, known, last_activity, shown)
        return Record("listed", user.bytes + conversation.bytes, version, deleted, fields)

    def listed_row(self, record: Record) -> Row:
        role, joined_at, read_up_to, newest, last_activity, shown = record.fields
        check_text(role, "role")  # type: ignore[arg-type]
        for value, what in ((record.version, "version"), (last_activity, "last_activity"), (shown, "shown")):
            check_int(value, what)  # type: ignore[arg-type]
        check_int(joined_at, "joined_at")  # type: ignore[arg-type]
        read = None if read_up_to is None else RawUuid(read_up_to)  # type: ignore[arg-type]
        known = None if newest is None else RawUuid(newest)  # type: ignore[arg-type]
        head = (RawUuid(record.key[:16]), RawUuid(record.key[16:]), role, joined_at, read, known)
        return (*head, last_activity, shown, record.deleted, record.version)

    def session_record(self, row: Row) -> Record:
        user, id, proof, created_at, mark, ends_at, expires_at, deleted, version, attributes = row
        fields = (proof.bytes, created_at, mark, ends_at, expires_at, attributes)
        return Record("session", user.bytes + id.bytes, version, deleted, fields)

    def session_row(self, record: Record) -> Row:
        proof, created_at, mark, ends_at, expires_at, attributes = record.fields
        check_text(attributes, "attributes")  # type: ignore[arg-type]
        times = (created_at, mark, ends_at, expires_at)
        for value, what in zip((record.version, *times), ("version", *_SESSION_TIMES), strict=True):
            check_int(value, what)  # type: ignore[arg-type]
        head = (RawUuid(record.key[:16]), RawUuid(record.key[16:]), RawUuid(proof))  # type: ignore[arg-type]
        return (*head, *times, record.deleted, record.version, attributes)

    def cut_record(self, row: Row) -> Record:
        user, mark, expires_at, deleted, version = row
        return Record("session_cut", user.bytes, version, deleted, (mark, expires_at))

    def cut_row(self, record: Record) -> Row:
        mark, expires_at = record.fields
        for value, what in ((record.version, "version"), (mark, "mark"), (expires_at, "expires_at")):
            check_int(value, what)  # type: ignore[arg-type]
        return (RawUuid(record.key), mark, expires_at, record.deleted, record.version)

    def message_doc_record(self, row: Row) -> Record:
        conversation, id, sender, body, deleted, version = row
        return Record("message_doc", conversation.bytes + id.bytes, version, deleted, (sender.bytes, body))

    def message_doc_row(self, record: Record) -> Row:
        sender, body = record.fields
        check_text(body, "body")  # type: ignore[arg-type]
        check_int(record.version, "version")
        key = record.key
        sent_by = RawUuid(sender)  # type: ignore[arg-type]
        return (RawUuid(key[:16]), RawUuid(key[16:]), sent_by, body, record.deleted, record.version)

    def user_doc_record(self, row: Row) -> Record:
        id, username, names, deleted, version = row
        return Record("user_doc", id.bytes, version, deleted, (username, names))

    def user_doc_row(self, record: Record) -> Row:
        username, names = record.fields
        check_text(username, "username")  # type: ignore[arg-type]
        check_text(names, "names")  # type: ignore[arg-type]
        check_int(record.version, "version")
        return (RawUuid(record.key), username, names, record.deleted, record.version)

    def media_record(self, row: Row) -> Record:
        owner, id, state, upload, sha256, size, content_type, filename, deleted, version, attributes = row
        name = None if upload is None else upload.bytes
        fields = (state, name, sha256, size, content_type, filename, attributes)
        return Record("media", owner.bytes + id.bytes, version, deleted, fields)

    def media_row(self, record: Record) -> Row:
        state, upload, sha256, size, content_type, filename, attributes = record.fields
        texts = ((state, "state"), (sha256, "sha256"), (content_type, "content_type"), (filename or "", "filename"))
        for value, what in (*texts, (attributes, "attributes")):
            check_text(value, what)  # type: ignore[arg-type]
        for number, what in ((record.version, "version"), (size, "size")):
            check_int(number, what)  # type: ignore[arg-type]
        name = None if upload is None else RawUuid(upload)  # type: ignore[arg-type]
        head = (RawUuid(record.key[:16]), RawUuid(record.key[16:]), state, name, sha256, size, content_type)
        return (*head, filename, record.deleted, record.version, attributes)

    def object_record(self, row: Row) -> Record:
        owner, content, sha256, size, content_type, name, *rest, deleted, version = row
        fields = (sha256, size, content_type, name.bytes, *rest)
        return Record("object", owner.bytes + content.bytes, version, deleted, fields)

    def object_row(self, record: Record) -> Row:
        sha256, size, content_type, name, held, refs, delete_after = record.fields
        for value, what in ((sha256, "sha256"), (content_type, "content_type"), (held, "held")):
            check_text(value, what)  # type: ignore[arg-type]
        numbers = ((record.version, "version"), (size, "size"), (refs, "refs"), (delete_after or 0, "delete_after"))
        for number, what in numbers:
            check_int(number, what)  # type: ignore[arg-type]
        head = (RawUuid(record.key[:16]), RawUuid(record.key[16:]), sha256, size, content_type)
        return (*head, RawUuid(name), held, refs, delete_after, record.deleted, record.version)  # type: ignore[arg-type]


def check_message(record: Record) -> None:
    """ValueError, saying why, for a message that Postgres can never hold."""
    _, body, kind, _, _, edited, attributes = record.fields
    check_text(body, "body")  # type: ignore[arg-type]
    check_text(kind, "kind")  # type: ignore[arg-type]
    check_text(attributes, "attributes")  # type: ignore[arg-type]
    check_int(record.version, "version")
    if edited is not None:
        check_int(edited, "edited_at")  # type: ignore[arg-type]
