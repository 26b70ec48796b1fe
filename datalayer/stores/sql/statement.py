"""Statements: built once with SQLAlchemy Core, compiled once per product to the driver's own text.

At run time a statement is a constant: text and the order of its parameters. SQLAlchemy's type processors never run;
values are converted by the product's ``RowCodec``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable
from sqlalchemy.sql.expression import ClauseElement, ColumnElement, Executable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.engine import Dialect as CoreDialect
    from sqlalchemy.sql.compiler import SQLCompiler

    from datalayer.stores.sql.database import Dialect

_VALUES: Final = re.compile(r"IN \(VALUES ((?:\([?, ]+\)(?:, )?)+)\)")
_TUPLES: Final = re.compile(r"IN \(((?:\((?:%s(?:, )?)+\)(?:, )?)+)\)")
FETCH_CHUNK: Final = 256
"""Most keys of one look-up."""


@cache
def _core(dialect: Dialect) -> CoreDialect:
    if dialect == "sqlite":
        return sqlite.dialect(paramstyle="qmark")
    return postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Statement:
    """Driver text, the names of its positional parameters in order, and the values of its literals by name."""

    sql: str
    order: tuple[str, ...]
    literals: Mapping[str, Any]

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        """The positional parameters for these named values; a missing name is a KeyError."""
        literals = self.literals
        return [values[name] if name in values else literals[name] for name in self.order]


def statement(dialect: Dialect, core: Executable | ClauseElement, *expected: str) -> Statement:
    """Compile a Core statement. With ``expected``, its parameters must come in just that order (hot statements)."""
    assert isinstance(core, ClauseElement)
    compiled = core.compile(dialect=_core(dialect))
    names = tuple(getattr(compiled, "positiontup", None) or ())
    literals = {name: value for name, value in (compiled.params or {}).items() if value is not None}
    if expected:
        assert names == expected, f"the parameters come as {names}, not {expected}"
    return Statement(str(compiled), names, literals)


def expanded(dialect: Dialect, core: Executable | ClauseElement, name: str, item: object, size: int) -> str:
    """The text of a statement whose one parameter ``name`` is an IN list of ``size`` items shaped like ``item``."""
    assert isinstance(core, ClauseElement)
    compiled = core.compile(dialect=_core(dialect))
    state = compiled.construct_expanded_state({name: [item] * size})  # type: ignore[attr-defined]
    # SQLite takes an index for (a, b) IN (SELECT ..), but scans the whole table for (a, b) IN (VALUES ..).
    text = _VALUES.sub(r"IN (SELECT * FROM (VALUES \1))", str(state.statement))
    # Postgres makes (a, b) IN ((..), ..) a chain of ORs. Planned while the table was empty, that is a scan with every
    # OR for every row, and a prepared statement keeps the plan: 256 keys took 1.3 s over 60,000 rows, like this 12 ms.
    return _TUPLES.sub(r"IN (VALUES \1)", text) if dialect == "postgresql" else text


class LookUp:
    """A statement over an IN list, compiled for sizes 1, 2, 4 .. FETCH_CHUNK; a list is padded with its last item."""

    __slots__ = ("_core", "_dialect", "_item", "_name", "_names", "_patterns", "_texts")

    def __init__(self, dialect: Dialect, core: Executable | ClauseElement, name: str, item: object) -> None:
        self._dialect = dialect
        self._core = core
        self._name = name
        self._item = item
        self._names = ("", "")
        self._patterns: dict[int, str] = {}
        self._texts: dict[int, str] = {}

    def renamed(self, mark: str, name: str) -> LookUp:
        """The same look-up where every ``mark`` in its texts is ``name``; both share what is compiled."""
        found = LookUp(self._dialect, self._core, self._name, self._item)
        found._patterns, found._names = self._patterns, (mark, name)
        return found

    def calls(self, items: Sequence[Any]) -> Iterable[tuple[str, list[Any]]]:
        """(text, parameters) of each chunk of the items; duplicates in a list are harmless."""
        for start in range(0, len(items), FETCH_CHUNK):
            chunk = items[start : start + FETCH_CHUNK]
            size = 1 << (len(chunk) - 1).bit_length()
            padded = [*chunk, *[chunk[-1]] * (size - len(chunk))]
            if size not in self._texts:
                self._texts[size] = self._pattern(size).replace(*self._names)
            flat = [value for item in padded for value in item] if isinstance(self._item, tuple) else padded
            yield self._texts[size], flat

    def _pattern(self, size: int) -> str:
        if size not in self._patterns:
            self._patterns[size] = expanded(self._dialect, self._core, self._name, self._item, size)
        return self._patterns[size]


def insert(dialect: Dialect, table: sa.Table) -> Any:
    """The product's own insert, which knows ON CONFLICT."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def values_of(names: Iterable[str]) -> dict[str, sa.BindParameter[Any]]:
    """One parameter per column, named like it."""
    return {name: sa.bindparam(name) for name in names}


def upsert_newer(dialect: Dialect, table: sa.Table, columns: Sequence[str]) -> Any:
    """INSERT .. ON CONFLICT DO UPDATE .. WHERE excluded.version > version: the newer one wins."""
    core = insert(dialect, table).values(values_of(columns))
    keys = [column.name for column in table.primary_key]
    return core.on_conflict_do_update(
        index_elements=keys,
        set_={name: core.excluded[name] for name in columns if name not in keys},
        where=core.excluded.version > table.c.version,
    )


def limited(dialect: Dialect, core: sa.Select[Any], name: str = "limit") -> sa.Select[Any]:
    """``core`` with a LIMIT parameter and nothing else behind it."""
    return _without_offset(dialect, core.limit(sa.bindparam(name, type_=sa.Integer)))


def first(dialect: Dialect, core: sa.Select[Any]) -> sa.Select[Any]:
    """``core`` with LIMIT 1."""
    return _without_offset(dialect, core.limit(sa.literal_column("1")))


def _without_offset(dialect: Dialect, core: sa.Select[Any]) -> sa.Select[Any]:
    # SQLite's compiler adds "OFFSET ?" with a literal parameter of its own unless it is given an offset
    return core.offset(sa.literal_column("0")) if dialect == "sqlite" else core


def create_table(dialect: Dialect, table: sa.Table) -> list[str]:
    """DDL that makes a table and its indexes where absent."""
    core = _core(dialect)
    ddl: list[Any] = [CreateTable(table, if_not_exists=True)]
    ddl += [CreateIndex(index, if_not_exists=True) for index in sorted(table.indexes, key=lambda one: str(one.name))]
    return [str(one.compile(dialect=core)).strip() for one in ddl]


def drop_table(dialect: Dialect, table: sa.Table) -> str:
    """DDL that drops a table where it exists."""
    return str(DropTable(table, if_exists=True).compile(dialect=_core(dialect))).strip()


class greatest(ColumnElement[int]):  # noqa: N801 - a function of SQL, spelled like one
    """The greater of two numbers: ``max`` in SQLite, ``greatest`` in Postgres."""

    inherit_cache = False
    type = sa.BigInteger()

    def __init__(self, left: ColumnElement[Any], right: ColumnElement[Any]) -> None:
        self.left = left
        self.right = right


@compiles(greatest)
def _greatest(element: greatest, compiler: SQLCompiler, **options: Any) -> str:
    name = "max" if compiler.dialect.name == "sqlite" else "greatest"
    return f"{name}({compiler.process(element.left, **options)}, {compiler.process(element.right, **options)})"


class last_byte(ColumnElement[int]):  # noqa: N801 - as above
    """The last byte of a key as a number, which spreads keys over replayers."""

    inherit_cache = False
    type = sa.Integer()

    def __init__(self, key: ColumnElement[Any]) -> None:
        self.of = key


@compiles(last_byte)
def _last_byte(element: last_byte, compiler: SQLCompiler, **options: Any) -> str:
    key = compiler.process(element.of, **options)
    if compiler.dialect.name != "sqlite":
        return f"get_byte({key}, length({key}) - 1)"
    # SQLite has no function from a byte to its number
    digit = "(instr('0123456789ABCDEF', substr(hex(substr({key}, -1)), {at}, 1)) - 1)"
    return f"({digit.format(key=key, at=1)} * 16 + {digit.format(key=key, at=2)})"
