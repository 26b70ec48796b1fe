"""The physical form of a message: partition, clustering key and the one cell.

A partition is (conversation, bucket); the bucket is a pure function of the id's own time, so that a key alone says
where its record lies. docs/adr/0006 tells why a bucket is 32 days wide.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from datalayer.domains.messages import MESSAGE
from datalayer.domains.record import Record, decode_cell, parse_json
from datalayer.types import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKET_MS: Final = 32 * 24 * 3600 * 1000
CELL_BYTES_MAX: Final = 7 * 1024 * 1024
"""Below Cassandra's limit of a mutation (half a commit log segment: 16 MiB by default, 8 MiB with segments of 16)."""
_TIMESTAMPS: Final = range(-(1 << 63) + 1, 1 << 63)

pack_int: Final = struct.Struct(">i").pack
pack_bigint: Final = struct.Struct(">q").pack
_read_json: Final = json.JSONDecoder().raw_decode
encode_basestring: Final = json.encoder.encode_basestring
# Control characters that JSON writes as \u00XX, or \b and \f.
_RARE: Final = bytes(code for code in range(32) if code not in b"\t\n\r")
# What most messages hold behind their body: no thread, no attachments, never edited, no attributes.
_PLAIN: Final = ["text", None, b"", None, "{}"]
_PLAIN_REST: Final = b',"text",null,"",null,"{}"]'

Partition = tuple[bytes, int]
"""(conversation, bucket)."""


def bucket_of(message_id: bytes) -> int:
    """The bucket of an id: its milliseconds (the first 48 bits of a UUIDv7) over the width."""
    return int.from_bytes(message_id[:6], "big") // BUCKET_MS


def partition_of(key: bytes) -> Partition:
    """The partition of a message's key."""
    return key[:16], int.from_bytes(key[16:22], "big") // BUCKET_MS


def routing_key(partition: Partition) -> bytes:
    """The serialised partition key, as the partitioner hashes it."""
    return routing_key_of(partition[0], pack_int(partition[1]))


def routing_key_of(conversation: bytes, bucket: bytes) -> bytes:
    """``routing_key`` of a bucket that is packed already."""
    return b"".join((b"\x00\x10", conversation, b"\x00\x00\x04", bucket, b"\x00"))


def encode(record: Record) -> bytes:
    """The bytes of ``encode_cell``, in half of its time: every row of a backfill passes here.

    UnicodeEncodeError for a lone surrogate.
    """
    _, _, version, deleted, fields = record
    sender, body, *others = cast("tuple[bytes, str, Any]", fields)
    head = f'[{version},{1 if deleted else 0},"{sender.hex()}",'.encode()
    return b"".join((head, _quoted(body), _PLAIN_REST if others == _PLAIN else _rest(others)))


def _quoted(text: str) -> bytes:
    """A JSON string with a minimum of escapes; replacing in bytes is twice as fast as the encoder's walk over characters."""
    raw = text.encode()
    if len(raw) != len(raw.translate(None, _RARE)):
        return encode_basestring(text).encode()
    raw = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'"' + raw.replace(b"\n", b"\\n").replace(b"\t", b"\\t").replace(b"\r", b"\\r") + b'"'


def _rest(others: Sequence[Any]) -> bytes:
    kind, thread, attachments, edited, attributes = others
    middle = f'"{thread.hex()}"' if thread is not None else "null"
    numbers = "null" if edited is None else edited
    ends = f',{middle},"{attachments.hex()}",{numbers},'
    return b"".join((b",", _quoted(kind), ends.encode(), _quoted(attributes), b"]"))


def decode(conversation: bytes, message_id: bytes, cell: str) -> Record:
    """The record of a row."""
    return decode_cell(MESSAGE, conversation + message_id, cell)


def unstorable(record: Record, cell_bytes: int) -> str | None:
    """Why a record with a cell of this size could never be stored, or None."""
    if cell_bytes > CELL_BYTES_MAX:
        return f"the record is {cell_bytes} bytes; Cassandra takes at most {CELL_BYTES_MAX} in one write"
    if record.version not in _TIMESTAMPS:
        return f"the version {record.version} is no 64-bit timestamp"
    return None


def message_of(conversation_id: UUID, message_id: UUID, cell: str) -> Message:
    """``to_message(decode_cell(...))`` in one step: half of its time, and history reads fifty at once."""
    fields: Sequence[Any]
    version, deleted, *fields = _read_json(cell)[0]
    sender, body, kind, thread, attachments, edited, attributes = fields
    return Message(
        message_id,
        conversation_id,
        UUID(sender),
        body,
        kind,
        None if thread is None else UUID(thread),
        tuple(UUID(attachments[at : at + 32]) for at in range(0, len(attachments), 32)),
        edited,
        deleted == 1,
        version,
        parse_json(attributes),
    )
