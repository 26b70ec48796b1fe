"""The shape of exported records: which domains can be exported, and a record as a plain object and back, exactly.

An object has the parts of the record's key, `version`, `deleted` and each field by its name. Ids are text, times are
integer microseconds (`..._us`), lists of ids are lists of text, `attributes` is an object. `created_at` is the time of the
id for people who read the file, and is not read back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.catalogue import FILENAME_BYTES, MEDIA, READY, SHA256
from datalayer.domains.conversations import CONVERSATION, MEMBER, ROLES
from datalayer.domains.messages import MESSAGE
from datalayer.domains.record import FINAL_LEAD, Kind, Record, canonical_json, check_text, parse_json
from datalayer.domains.users import USER
from datalayer.errors import InvalidArgument
from datalayer.ids import FUTURE_LIMIT_US, check_id, id_time_us
from datalayer.types import from_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.domains.record import FieldSpec, FieldValue

TEXT_BYTES: Final = 1 << 20
RECORD: Final = "record"
"""The name of the kind, in an export that has several."""
_INT_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """How one kind of record is written. ``left_out`` are fields that are the store's own affair, with their first value."""

    kind: Kind
    key: tuple[str, ...]
    """The names of the ids that the key is made of."""
    dated: bool = True
    """The last id carries the time at which the record was made."""
    left_out: tuple[tuple[str, FieldValue], ...] = ()

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        """The fields that are written."""
        return tuple(spec for spec in self.kind.fields if spec.name not in dict(self.left_out))

    def to_object(self, record: Record) -> dict[str, Any]:
        """A record as a plain object."""
        ids = [UUID(bytes=record.key[at : at + 16]) for at in range(0, len(record.key), 16)]
        found: dict[str, Any] = {name: str(id_) for name, id_ in zip(self.key, ids, strict=True)}
        if self.dated:
            found["created_at"] = from_us(id_time_us(ids[-1])).isoformat().replace("+00:00", "Z")
        left_out = dict(self.left_out)
        for spec, value in zip(self.kind.fields, record.fields, strict=True):
            if spec.name not in left_out:
                found[column_of(spec)] = _plain(spec, value)
        found["deleted"], found["version"] = record.deleted, record.version
        return found

    def to_record(self, fields: Mapping[str, Any], now_us: int) -> Record:
        """The record of a plain object; InvalidArgument in one sentence without its text."""
        ids = [_id(fields, name) for name in self.key]
        if self.dated:
            check_id(ids[-1], now_us)
        deleted = fields.get("deleted", False)
        if not isinstance(deleted, bool):
            raise InvalidArgument("deleted is neither true nor false")
        version = _int(fields, "version")
        if not 0 < version <= now_us + FUTURE_LIMIT_US + (FINAL_LEAD if deleted else 0):
            raise InvalidArgument("version is no time in microseconds, or lies more than 60 s in the future")
        left_out = dict(self.left_out)
        values = (left_out[spec.name] if spec.name in left_out else _stored(spec, fields) for spec in self.kind.fields)
        return Record(self.kind.name, b"".join(id_.bytes for id_ in ids), version, deleted, tuple(values))

    def normal(self, record: Record) -> Record:
        """A record as it counts in a digest: with the first value of what is left out."""
        if not self.left_out:
            return record
        left_out = dict(self.left_out)
        values = (left_out.get(spec.name, value) for spec, value in zip(self.kind.fields, record.fields, strict=True))
        return record._replace(fields=tuple(values))

    @property
    def known(self) -> frozenset[str]:
        """The names of an object's members."""
        return frozenset({*self.key, "created_at", "deleted", "version", RECORD, *map(column_of, self.fields)})


SHAPES: Final[dict[str, tuple[Shape, ...]]] = {
    "users": (Shape(USER, ("id",)),),
    "messages": (Shape(MESSAGE, ("conversation_id", "id")),),
    "conversations": (
        Shape(CONVERSATION, ("id",)),
        # Which of its versions a list shows is true of one deployment only: elsewhere the list is made anew.
        Shape(MEMBER, ("conversation_id", "user_id"), dated=False, left_out=(("listed", 0),)),
    ),
    # Only items whose bytes are there are written.
    "media": (Shape(MEDIA, ("owner_id", "id"), left_out=(("state", READY), ("upload", None))),),
}
"""By domain. Claims follow from users, users' lists from conversations, objects from items: none is exported."""
_NUMBERS: Final = frozenset({"size"})
"""Whole numbers that are no times."""


def stored_in(domain: str) -> str:
    """The domain whose store holds the records of an export."""
    return "catalogue" if domain == "media" else domain


def shapes_of(domain: str) -> dict[str, Shape]:
    """The shapes of a domain by kind; InvalidArgument when it cannot be exported."""
    if domain not in SHAPES:
        raise InvalidArgument(f"{domain!r} cannot be exported or imported", hint=f"one of: {', '.join(SHAPES)}")
    return {shape.kind.name: shape for shape in SHAPES[domain]}


def check_shape(domain: str, record: Record) -> None:
    """InvalidArgument for a record that the library itself would never have stored."""
    if domain == "conversations" and record.kind == MEMBER.name and record.fields[0] not in ROLES:
        raise InvalidArgument(f"role is none of {', '.join(ROLES)}")
    if domain == "media" and not record.deleted:
        _, _, sha256, size, _, filename, _ = record.fields
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise InvalidArgument("sha256 is not 64 hex digits")
        if not isinstance(size, int) or size < 0:
            raise InvalidArgument("size is no number of bytes")
        if filename is not None:
            check_text(filename, "filename", FILENAME_BYTES)


def column_of(spec: FieldSpec) -> str:
    """The name of a field in a file: that of a time says its unit."""
    return f"{spec.name}_us" if spec.type == "int" and spec.name not in _NUMBERS else spec.name


def _plain(spec: FieldSpec, value: FieldValue) -> Any:
    if isinstance(value, bytes):
        ids = [str(UUID(bytes=value[at : at + 16])) for at in range(0, len(value), 16)]
        return ids if spec.type == "uuids" else ids[0]
    return parse_json(value) if spec.type == "json" and isinstance(value, str) else value


def _stored(spec: FieldSpec, fields: Mapping[str, Any]) -> FieldValue:
    name = column_of(spec)
    value = fields.get(name)
    if value is None:
        if not spec.nullable:
            raise InvalidArgument(f"{name} missing")
        return None
    match spec.type:
        case "uuid":
            return _id(fields, name).bytes
        case "uuids":
            if not isinstance(value, list):
                raise InvalidArgument(f"{name} is no list of ids")
            return b"".join(_uuid(item, name).bytes for item in value)
        case "int":
            return _int(fields, name)
        case "json":
            if not isinstance(value, dict):
                raise InvalidArgument(f"{name} must be a JSON object")
            return canonical_json(value)
        case _:
            return check_text(value, name, TEXT_BYTES)


def _int(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _INT_MAX:
        raise InvalidArgument(f"{name} is no whole number")
    return value


def _id(fields: Mapping[str, Any], name: str) -> UUID:
    if fields.get(name) is None:
        raise InvalidArgument(f"{name} missing")
    return _uuid(fields[name], name)


def _uuid(value: object, name: str) -> UUID:
    try:
        return UUID(value) if isinstance(value, str) else _no_id(name)
    except ValueError:
        return _no_id(name)


def _no_id(name: str) -> UUID:
    raise InvalidArgument(f"{name} is no id")
