"""What a table looks like, what it should look like, and the difference.

Types, defaults and collations are compared in the product's own words: those that its catalogue gives for a column made
by our metadata.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable

from datalayer.schemas.metadata import PLACES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import sqlalchemy as sa

    from datalayer.schemas.script import Dialect

PLACE_NAME: Final = re.compile(rf"({'|'.join(PLACES)})(?:_([1-9][0-9]*))?")
_MARKS: Final = {
    "messages": frozenset({"conversation_id", "id", "sender_id", "version", "deleted"}),
    "users": frozenset({"id", "username", "version", "deleted"}),
    "claims": frozenset({"kind", "value", "routing", "owner", "version", "deleted"}),
    "conversations": frozenset({"id", "title", "kind", "version", "deleted"}),
    "members": frozenset({"conversation_id", "user_id", "role", "listed", "version", "deleted"}),
    "listings": frozenset({"user_id", "conversation_id", "last_activity", "shown", "version", "deleted"}),
    "media": frozenset({"owner_id", "id", "state", "sha256", "version", "deleted"}),
    "media_objects": frozenset({"owner_id", "content", "name", "held", "refs", "version", "deleted"}),
    "sessions": frozenset({"user_id", "id", "proof", "mark", "expires_at", "version", "deleted"}),
    "session_cuts": frozenset({"user_id", "mark", "expires_at", "version", "deleted"}),
}
"""The columns of its first revision that tell a place's table from another program's of a like name."""
SERIAL: Final = "a sequence"
_CAST: Final = re.compile(r"::[\w \[\]\"()]+$")
_VARCHAR: Final = re.compile(r"varchar\((\d+)\)")
_COLLATED: Final = re.compile(r'(.*) collate "?(\w+)"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ColumnShape:
    """One column. ``default`` is the expression, '' where there is none; ``collation`` only where it is not the usual."""

    type: str
    nullable: bool
    default: str = ""
    collation: str = ""


@dataclass(frozen=True, slots=True)
class IndexShape:
    """One index that is no primary key."""

    columns: tuple[str, ...]
    unique: bool = False
    valid: bool = True


@dataclass(frozen=True, slots=True)
class TableShape:
    """One table."""

    columns: Mapping[str, ColumnShape]
    key: tuple[str, ...]
    indexes: Mapping[str, IndexShape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference. What is not ``harmful`` is somebody's addition that this library can live with."""

    table: str
    what: str
    harmful: bool = True

    def __str__(self) -> str:
        return f"{self.table}: {self.what}"


def places_among(columns: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """The tables of places among these, by their plain name, in the order of their numbers.

    A table of the right name that has not our columns is somebody else's, and left alone.
    """
    found: dict[str, list[tuple[int, str]]] = {base: [] for base in PLACES}
    for table, names in columns.items():
        match = PLACE_NAME.fullmatch(table)
        if match and _MARKS[match[1]] <= names:
            found[match[1]].append((int(match[2] or 0), table))
    return {base: [table for _, table in sorted(tables)] for base, tables in found.items()}


def attempt_of(table: str) -> tuple[str, int]:
    """The plain name and the number of a place's table."""
    match = PLACE_NAME.fullmatch(table)
    assert match is not None, f"{table} is no table of a place"
    return match[1], int(match[2] or 0)


def expected(table: sa.Table, dialect: Dialect) -> TableShape:
    """The shape that our metadata gives a table."""
    core = sqlite.dialect() if dialect == "sqlite" else postgresql.dialect()  # type: ignore[no-untyped-call]
    ddl = core.ddl_compiler(core, CreateTable(table))
    columns = {}
    for column in table.columns:
        declared = column.type.compile(dialect=core).lower()
        collated = _COLLATED.fullmatch(declared)
        type_, collation = (collated[1], collated[2].upper()) if collated else (declared, "")
        type_ = _VARCHAR.sub(r"character varying(\1)", type_) if dialect == "postgresql" else type_
        default = plain_default(ddl.get_column_default_string(column) or "")
        if dialect == "postgresql" and column is table.autoincrement_column:
            default = SERIAL
        columns[column.name] = ColumnShape(type_, bool(column.nullable), default, collation)
    indexes = {
        str(index.name): IndexShape(tuple(one.name for one in index.columns), bool(index.unique))
        for index in table.indexes
    }
    return TableShape(columns, tuple(column.name for column in table.primary_key), indexes)


def plain_default(expression: str) -> str:
    """A default without the casts and brackets that a catalogue adds."""
    found = expression.strip()
    while found.startswith("(") and found.endswith(")"):
        found = found[1:-1].strip()
    return SERIAL if found.startswith("nextval(") else _CAST.sub("", found)


def differences(name: str, wanted: TableShape, found: TableShape | None) -> Iterator[Drift]:
    """How a table differs from what it should be; None: there is none."""
    if found is None:
        yield Drift(name, "the table is missing")
        return
    for column, want in wanted.columns.items():
        have = found.columns.get(column)
        if have is None:
            yield Drift(name, f"column {column} is missing")
        else:
            yield from (Drift(name, f"column {column} {what}") for what in _of_column(want, have))
    for column, have in found.columns.items():
        if column not in wanted.columns:
            harmful = not have.nullable and not have.default
            yield Drift(
                name, f"column {column} is unexpected{' and must be given a value' if harmful else ''}", harmful
            )
    if found.key != wanted.key:
        yield Drift(name, f"the primary key is ({', '.join(found.key)}), not ({', '.join(wanted.key)})")
    yield from _of_indexes(name, wanted, found)


def _of_column(want: ColumnShape, have: ColumnShape) -> Iterator[str]:
    if have.type != want.type:
        yield f"is of type {have.type}, not {want.type}"
    if have.collation != want.collation:
        yield f"has the collation {have.collation or 'of the database'}, not {want.collation or 'that of the database'}"
    if have.nullable != want.nullable:
        yield "may be NULL" if have.nullable else "may not be NULL"
    if have.default != want.default:
        yield f"defaults to {have.default or 'nothing'}, not {want.default or 'nothing'}"


def _of_indexes(name: str, wanted: TableShape, found: TableShape) -> Iterator[Drift]:
    for index, want in wanted.indexes.items():
        have = found.indexes.get(index)
        if have is None:
            yield Drift(name, f"index {index} is missing")
        elif not have.valid:
            yield Drift(name, f"index {index} is invalid: a build of it was ended")
        elif (have.columns, have.unique) != (want.columns, want.unique):
            yield Drift(name, f"index {index} is on ({', '.join(have.columns)}), not ({', '.join(want.columns)})")
    for index, have in found.indexes.items():
        if index not in wanted.indexes:
            kind = "unique index" if have.unique else "index" if have.valid else "invalid index"
            yield Drift(name, f"{kind} {index} on ({', '.join(have.columns)}) is unexpected", harmful=have.unique)
