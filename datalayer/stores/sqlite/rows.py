"""SQLite rows to values and back: uuids are 16 bytes, lists of uuids their bytes end to end, attributes their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from datalayer.domains.record import Record, parse_json
from datalayer.domains.users import CLAIM_FIELDS, claim_key_of, claim_of
from datalayer.stores.sql.build import message_of, uuid_of
from datalayer.types import User

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.stores.sql.database import Row
    from datalayer.types import Message

_INT64: Final = 1 << 63
_MESSAGE_KEY: Final = 32
_USER_KEY: Final = 16


class SqliteRows:
    """``RowCodec`` of SQLite. Every text and every 64-bit number fits; what does not, is a fault of the record."""

    __slots__ = ()

    def uuid(self, value: bytes) -> Any:
        return value

    def uuid_bytes(self, value: Any) -> bytes:
        return cast("bytes", value)

    def bind_uuid(self, value: UUID) -> Any:
        return value.bytes

    def message(self, row: Row) -> Message:
        conversation, ident, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
        return message_of(
            uuid_of(ident),
            uuid_of(conversation),
            uuid_of(sender),
            body,
            kind,
            None if thread is None else uuid_of(thread),
            _uuids(attachments) if attachments else (),
            edited,
            deleted == 1,
            version,
            {} if attributes == "{}" else parse_json(attributes),
        )

    def message_record(self, row: Row) -> Record:
        conversation, ident, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
        fields = (sender, body, kind, thread, attachments, edited, attributes)
        return Record("message", conversation + ident, version, deleted == 1, fields)

    def message_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        sender, body, kind, thread, attachments, edited, attributes = fields
        _check(len(key) == _MESSAGE_KEY, "the key of a message is 32 bytes")
        _check_version(version)
        _check_text(body, kind, attributes)
        return (key[:16], key[16:], sender, body, kind, thread, attachments, edited, deleted, version, attributes)

    def user(self, row: Row) -> User:
        ident, username, email, display_name, status, updated_at, deleted, version, attributes, region = row
        return User(
            uuid_of(ident),
            username,
            email,
            display_name,
            status,
            updated_at,
            deleted == 1,
            version,
            parse_json(attributes),
            region,
        )

    def user_record(self, row: Row) -> Record:
        ident, username, email, display_name, status, updated_at, deleted, version, attributes, region = row
        fields = (username, email, display_name, status, updated_at, attributes, region)
        return Record("user", ident, version, deleted == 1, fields)

    def user_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        username, email, display_name, status, updated_at, attributes, region = fields
        _check(len(key) == _USER_KEY, "the key of a user is 16 bytes")
        _check_version(version)
        _check_text(username, email, display_name, status, attributes, region)
        return (key, username, email, display_name, status, updated_at, deleted, version, attributes, region)

    def claim_record(self, row: Row) -> Record:
        kind, value, routing, owner, version, deleted = row
        return Record("claim", claim_key_of(kind, routing, value), version, deleted == 1, (owner,))

    def claim_row(self, record: Record) -> Row:
        key = record.key
        _check(key[16:17] in CLAIM_FIELDS, "the key of a claim names username or email")
        _check_version(record.version)
        kind, value = claim_of(key)
        return (kind, value, key[:16], record.fields[0], record.version, record.deleted)

    def conversation_record(self, row: Row) -> Record:
        ident, title, kind, updated_at, deleted, version, attributes = row
        return Record("conversation", ident, version, deleted == 1, (title, kind, updated_at, attributes))

    def conversation_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        title, kind, updated_at, attributes = fields
        _check(len(key) == _USER_KEY, "the key of a conversation is 16 bytes")
        _check_version(version)
        _check_text(title, kind, attributes)
        return (key, title, kind, updated_at, deleted, version, attributes)

    def member_record(self, row: Row) -> Record:
        conversation, user, role, joined_at, read_up_to, listed, deleted, version = row
        fields = (role, joined_at, read_up_to, listed)
        return Record("member", conversation + user, version, deleted == 1, fields)

    def member_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        role, joined_at, read_up_to, listed = fields
        _check(len(key) == _MESSAGE_KEY, "the key of a member is 32 bytes")
        _check_version(version)
        _check_text(role)
        return (key[:16], key[16:], role, joined_at, read_up_to, listed, deleted, version)

    def listed_record(self, row: Row) -> Record:
        user, conversation, *fields, deleted, version = row
        return Record("listed", user + conversation, version, deleted == 1, tuple(fields))

    def listed_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        _check(len(key) == _MESSAGE_KEY, "the key of a listed conversation is 32 bytes")
        _check_version(version)
        _check_text(fields[0])
        return (key[:16], key[16:], *fields, deleted, version)

    def message_doc_record(self, row: Row) -> Record:
        conversation, ident, sender, body, deleted, version = row
        return Record("message_doc", conversation + ident, version, deleted == 1, (sender, body))

    def message_doc_row(self, record: Record) -> Row:
        _, key, version, deleted, (sender, body) = record
        _check(len(key) == _MESSAGE_KEY, "the key of a message is 32 bytes")
        _check_version(version)
        _check_text(body)
        return (key[:16], key[16:], sender, body, deleted, version)

    def user_doc_record(self, row: Row) -> Record:
        ident, username, names, deleted, version = row
        return Record("user_doc", ident, version, deleted == 1, (username, names))

    def user_doc_row(self, record: Record) -> Row:
        _, key, version, deleted, (username, names) = record
        _check(len(key) == _USER_KEY, "the key of a user is 16 bytes")
        _check_version(version)
        _check_text(username, names)
        return (key, username, names, deleted, version)

    def media_record(self, row: Row) -> Record:
        owner, ident, *fields, deleted, version, attributes = row
        return Record("media", owner + ident, version, deleted == 1, (*fields, attributes))

    def media_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        *head, attributes = fields
        _check(len(key) == _MESSAGE_KEY, "the key of an item of media is 32 bytes")
        _check_version(version)
        _check_text(head[0], head[2], head[4], head[5], attributes)
        return (key[:16], key[16:], *head, deleted, version, attributes)

    def object_record(self, row: Row) -> Record:
        owner, content, *fields, deleted, version = row
        return Record("object", owner + content, version, deleted == 1, tuple(fields))

    def object_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        _check(len(key) == _MESSAGE_KEY, "the key of an object is 32 bytes")
        _check_version(version)
        _check_text(fields[0], fields[2], fields[4])
        return (key[:16], key[16:], *fields, deleted, version)

    def session_record(self, row: Row) -> Record:
        user, ident, *fields, deleted, version, attributes = row
        return Record("session", user + ident, version, deleted == 1, (*fields, attributes))

    def session_row(self, record: Record) -> Row:
        _, key, version, deleted, fields = record
        _check(len(key) == _MESSAGE_KEY, "the key of a session is 32 bytes")
        _check_version(version)
        _check_text(fields[-1])
        return (key[:16], key[16:], *fields[:-1], deleted, version, fields[-1])

    def cut_record(self, row: Row) -> Record:
        user, mark, expires_at, deleted, version = row
        return Record("session_cut", user, version, deleted == 1, (mark, expires_at))

    def cut_row(self, record: Record) -> Row:
        _check(len(record.key) == _USER_KEY, "the key of a cut is 16 bytes")
        _check_version(record.version)
        return (record.key, *record.fields, record.deleted, record.version)


def _uuids(value: bytes) -> tuple[UUID, ...]:
    return tuple([uuid_of(value[at : at + 16]) for at in range(0, len(value), 16)])


def _check(fits: bool, otherwise: str) -> None:  # noqa: FBT001 - a condition, as of assert
    if not fits:
        raise ValueError(otherwise)


def _check_version(version: int) -> None:
    _check(-_INT64 <= version < _INT64, "the version is outside 64 bits")


def _check_text(*texts: Any) -> None:
    for text in texts:
        # A lone surrogate is the one thing in a str that has no UTF-8 form; isascii costs nothing.
        if text is not None and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError("a text is not valid Unicode (lone surrogate)") from None
