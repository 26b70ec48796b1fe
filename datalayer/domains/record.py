"""The record: what every store is a last-writer-wins map of, and the one canonical form of it.

A record is (kind, key, version, deleted, fields). ``key`` begins with the 16-byte routing key. Fields are canonical
primitives only (bytes for uuids, str, int, None), in the order of the kind. ``encode_cell`` is the one text form of
a record's mutable part: it is what Cassandra stores in a single cell, so that equal timestamps cannot tear a record,
and what verification digests.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from datalayer.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

FINAL_LEAD: Final = 1 << 36
"""What a final delete adds to its version (19 h in microseconds), so that a tombstone beats any edit in flight."""

ROUTING_BYTES: Final = 16
DIGEST_MODULUS: Final = 1 << 128
"""Digests of several records are summed modulo this: the sum does not depend on their order."""
EXPIRY_GRACE_US: Final = 3600 * 1_000_000
"""How long a store keeps a record beyond its expiry. Clocks of servers and processes differ by less, so what anybody
still compares has been dropped by nobody."""

FieldType = Literal["uuid", "uuids", "text", "int", "json"]
FieldValue = bytes | str | int | None
Key = tuple[str, bytes]
"""(kind name, key bytes)."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a kind: uuid = 16 bytes, uuids = n x 16 bytes, text, int, json = canonical JSON text."""

    name: str
    type: FieldType
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of record: its name and fields, in canonical order."""

    name: str
    fields: tuple[FieldSpec, ...]
    final: bool = True
    """A key is never used again once it was deleted."""
    expiry: str | None = None
    """The field that says until when a record, or tombstone, is of use: microseconds since 1970."""

    @property
    def lead(self) -> int:
        """What a delete adds to its version."""
        return FINAL_LEAD if self.final else 0


class Record(NamedTuple):
    """One version of one record. A tombstone has ``deleted`` set; its fields carry nothing that verification compares."""

    kind: str
    key: bytes
    version: int
    deleted: bool
    fields: tuple[FieldValue, ...]

    @property
    def routing(self) -> bytes:
        """The routing key: the first 16 bytes of the key."""
        return self.key[:ROUTING_BYTES]

    @property
    def ident(self) -> Key:
        """(kind, key)."""
        return (self.kind, self.key)


def useless(kind: Kind, record: Record, now_us: int) -> bool:
    """Whether the expiry of a record is past: it counts as absent wherever sides are compared."""
    return kind.expiry is not None and expiry_us(kind, record) <= now_us


def dead(kind: Kind, record: Record, now_us: int) -> bool:
    """Whether a record is of no use by any clock: a store may have dropped it, and need not take it."""
    return useless(kind, record, now_us - EXPIRY_GRACE_US)


def expiry_us(kind: Kind, record: Record) -> int:
    """Until when a record of an expiring kind is of use."""
    at = next(number for number, field in enumerate(kind.fields) if field.name == kind.expiry)
    value = record.fields[at]
    assert isinstance(value, int), "an expiry is a number"
    return value


def encode_cell(kind: Kind, record: Record) -> str:
    """The canonical JSON text of version, deleted and fields; uuids as hex."""
    assert len(record.fields) == len(kind.fields), "a record carries every field of its kind"
    parts = [str(record.version), "1" if record.deleted else "0"]
    for value in record.fields:
        # By hand: a JSON encoder costs twice as much for each record, and every row of a backfill passes here.
        if isinstance(value, str):
            parts.append(_quoted(value))
        elif isinstance(value, bytes):
            parts.append(f'"{value.hex()}"')
        else:
            parts.append("null" if value is None else str(value))
    return f"[{','.join(parts)}]"


def decode_cell(kind: Kind, key: bytes, cell: str) -> Record:
    """The record that ``encode_cell`` wrote."""
    version, deleted, *values = json.loads(cell)
    fields = tuple(
        bytes.fromhex(value) if value is not None and spec.type in ("uuid", "uuids") else value
        for spec, value in zip(kind.fields, values, strict=True)
    )
    return Record(kind.name, key, version, deleted == 1, fields)


def digest(kind: Kind, record: Record) -> int:
    """A 128-bit hash of a record as verification compares it: key, version, and the fields unless deleted."""
    cell = f"{record.version},D" if record.deleted else encode_cell(kind, record)
    prefix = f"{kind.name}:{record.key.hex()}:"
    return int.from_bytes(hashlib.blake2b((prefix + cell).encode(), digest_size=16).digest(), "big")


def canonical_json(value: Mapping[str, Any], *, limit_bytes: int = 16 * 1024, what: str = "attributes") -> str:
    """The canonical text of a JSON object: sorted keys, no white space, no NaN. InvalidArgument when it is none."""
    if not value:
        return "{}"
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_refuse
        )
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{what} must be a JSON object: {type(error).__name__}"
        raise InvalidArgument(msg) from None
    if size > limit_bytes:
        msg = f"{what} are {size} bytes of JSON; the limit is {limit_bytes}"
        raise InvalidArgument(msg)
    return text


def parse_json(text: str) -> dict[str, Any]:
    """The object that ``canonical_json`` wrote."""
    return {} if text == "{}" else cast("dict[str, Any]", json.loads(text))


def check_text(value: object, what: str, limit_bytes: int) -> str:
    """Refuse what some store could not keep: NUL, lone surrogates, too many bytes of UTF-8 (InvalidArgument)."""
    if not isinstance(value, str):
        msg = f"{what} must be text, not {type(value).__name__}"
        raise InvalidArgument(msg)
    if "\x00" in value:
        msg = f"{what} contains the character NUL, which no store keeps alike"
        raise InvalidArgument(msg, hint="remove it, or put binary data into media")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        msg = f"{what} contains a lone surrogate at position {error.start}, which is not valid Unicode"
        raise InvalidArgument(msg) from None
    if size > limit_bytes:
        msg = f"{what} is {size} bytes; the limit is {limit_bytes}"
        raise InvalidArgument(msg)
    return value


def _refuse(value: object) -> Any:
    raise TypeError(type(value).__name__)


# The function behind JSONEncoder(ensure_ascii=False): quotes and escapes one string.
_quoted: Final = json.encoder.encode_basestring
