"""What an upgrade runs, as data: statements in blocks, made from the revisions, printed, checked and run from one list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from datalayer.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from datalayer.schemas.history import Phase
    from datalayer.schemas.shapes import Drift, TableShape

Dialect = Literal["sqlite", "postgresql"]
LOCK_TIMEOUT_S: int = 3
"""How long a statement may wait for its lock while everybody else waits behind it; then it is tried again later."""


class Busy(Unavailable):
    """Somebody else holds what a schema change needs; nothing of this step was done."""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement. ``alone``: outside of any transaction, as CONCURRENTLY must be."""

    sql: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What one revision does to the database's own part (``target`` empty), or to one place's table."""

    revision: str
    phase: Phase
    summary: str
    steps: tuple[Step, ...]
    target: str = ""
    waived: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Rules of the linter that do not apply here: rule -> reason, as the revision states it."""

    @property
    def sha256(self) -> str:
        """Of the statements, as they are run."""
        return hashlib.sha256("\0".join(step.sql for step in self.steps).encode()).hexdigest()

    @property
    def blocks(self) -> Iterator[tuple[Step, ...]]:
        """The steps as they are run: each transaction, and each statement that stands alone."""
        block: list[Step] = []
        for step in self.steps:
            if step.alone:
                if block:
                    yield tuple(block)
                    block = []
                yield (step,)
            else:
                block.append(step)
        if block:
            yield tuple(block)

    @property
    def whole(self) -> bool:
        """Whether it is one transaction: a crash leaves all of it or nothing."""
        return len(list(self.blocks)) <= 1 and not any(step.alone for step in self.steps)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A row of datalayer_schema_log."""

    revision: str
    target: str
    at_us: int
    sha256: str
    took_ms: int
    library: str


class LockedSchema(Protocol):
    """A database whose schema nobody else changes meanwhile."""

    async def run(self, script: Script) -> None:
        """Run the script, block by block. Repeating it after a crash is harmless.

        An invalid index of a killed build is dropped before it is built again. Raises Busy when a lock was not had in
        LOCK_TIMEOUT_S (nothing of that block was done), Unavailable, OutcomeUnknown, and DatalayerError for a
        statement that the database refuses.
        """
        ...

    async def stamp(self, statements: Sequence[str], entries: Sequence[LogEntry]) -> None:
        """Record a revision as done, and the entries where there is a log, in one transaction."""
        ...


@runtime_checkable
class SqlSchema(Protocol):
    """What the schema tools ask of a SQL database."""

    dialect: Dialect
    where: str

    async def rows(self) -> frozenset[str]:
        """The rows of datalayer_schema; empty where there are none."""
        ...

    async def adopted(self) -> bool:
        """Whether a database without those rows has the tables of the first revision, made before they were written."""
        ...

    async def places(self) -> Mapping[str, Sequence[str]]:
        """The tables of all places by their plain name: attempt 0, attempts and slot groups, as far as they exist."""
        ...

    async def shapes(self, tables: Sequence[str]) -> Mapping[str, TableShape]:
        """What those of the tables that exist look like."""
        ...

    async def log(self) -> Sequence[LogEntry]:
        """What was done to this schema, oldest first."""
        ...

    def locked(self, wait_s: float) -> AbstractAsyncContextManager[LockedSchema]:
        """The right to change the schema, alone; Busy when another one has it for longer than ``wait_s``."""
        ...


@runtime_checkable
class HasSqlSchema(Protocol):
    """A backend whose schema the revisions make."""

    def sql_schema(self) -> SqlSchema:
        """The way to it; the backend need not be open, and closes it with itself."""
        ...


class CqlSchema(Protocol):
    """What the schema tools ask of a keyspace."""

    async def check(self) -> None:
        """SchemaBehind or SchemaAhead unless this version can serve the keyspace."""
        ...

    async def versions(self) -> list[int]:
        """The numbers of the files that were applied."""
        ...

    async def drift(self) -> list[Drift]:
        """How its tables differ from what the applied files make."""
        ...

    async def upgrade(self, phase: Phase | None = None) -> list[str]:
        """Apply the files of a phase (None: both) that were not applied; their names."""
        ...


@runtime_checkable
class HasCqlSchema(Protocol):
    """A backend whose schema the numbered CQL files make."""

    def cql_schema(self) -> CqlSchema:
        """The way to it; the backend must be open."""
        ...
