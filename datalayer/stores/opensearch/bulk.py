"""Documents as lines of a bulk body, made by hand: a JSON encoder costs three times as much for each.

External versions with ``gte`` are the store's last-writer-wins: of an older document the server says 409, which is no
error here. A document that was deleted stays as a marker, since the server forgets the version of one that is deleted
there after a minute (``index.gc_deletes``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

from datalayer.domains.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BODY_MAX: Final = 4 << 20
_INT64: Final = 1 << 63
_KEY: Final = {"message_doc": 32, "user_doc": 16}
# The function behind JSONEncoder(ensure_ascii=False): quotes and escapes one string.
_quoted: Final = json.encoder.encode_basestring
_FLAG: Final = {False: "false", True: "true"}


def lines_of(record: Record) -> bytes:
    """What to do, and the document."""
    key, version = record.key.hex(), record.version
    head = f'{{"index":{{"_id":"{key}","version":{version},"version_type":"external_gte"}}}}\n'
    flag = _FLAG[record.deleted]
    if record.kind == "message_doc":
        sender, body = cast("tuple[bytes, str]", record.fields)
        text = (
            f'{{"conversation":"{key[:32]}","id":"{key[32:]}","sender":"{sender.hex()}","deleted":{flag},'
            f'"version":{version},"body":{_quoted(body)}}}\n'
        )
    else:
        username, names = cast("tuple[str, str]", record.fields)
        text = (
            f'{{"id":"{key}","username":{_quoted(username)},"deleted":{flag},"version":{version},'
            f'"names":{_quoted(names)}}}\n'
        )
    return (head + text).encode()


def bodies_of(records: Sequence[Record]) -> Iterator[tuple[Sequence[Record], bytes]]:
    """The records in bodies of some megabytes."""
    parts: list[bytes] = []
    start = size = 0
    for at, record in enumerate(records):
        lines = lines_of(record)
        if parts and size + len(lines) > BODY_MAX:
            yield records[start:at], b"".join(parts)
            parts, start, size = [], at, 0
        parts.append(lines)
        size += len(lines)
    if parts:
        yield records[start:], b"".join(parts)


def record_of(kind: str, key: str, source: dict[str, object]) -> Record:
    """The record of a document."""
    version, deleted = cast("int", source["version"]), source["deleted"] is True
    if kind == "message_doc":
        fields = (bytes.fromhex(cast("str", source["sender"])), cast("str", source["body"]))
        return Record(kind, bytes.fromhex(key), version, deleted, fields)
    return Record(
        kind, bytes.fromhex(key), version, deleted, (cast("str", source["username"]), cast("str", source["names"]))
    )


def unfit(record: Record) -> str | None:
    """Why no such document can be stored, or None."""
    length = _KEY.get(record.kind)
    if length is None:
        return f"this store holds no records of the kind {record.kind}"
    if len(record.key) != length:
        return f"the key of a {record.kind} is {length} bytes"
    if not 0 <= record.version < _INT64:
        return "the version is negative or outside 64 bits"
    for value in record.fields:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return "a text is not valid Unicode (lone surrogate)"
    return None
