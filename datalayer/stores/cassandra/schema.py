"""The schema of a keyspace: numbered CQL files, applied in their order by one upgrader at a time.

Cassandra's schema changes are no transactions, and two at once can leave nodes that disagree for ever. So an upgrader
holds a row that a lightweight transaction gave it and that lapses when it dies, asks for it anew before each statement,
and goes on only when all live nodes agree on what the one before made. Each file is recorded, with its checksum, when
all of it is done; one that was begun and not recorded is applied again.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from datalayer.errors import PreconditionFailed, SchemaAhead, SchemaBehind
from datalayer.schemas.cassandra import numbered_files
from datalayer.schemas.history import HINT
from datalayer.schemas.script import Busy
from datalayer.schemas.shapes import Drift
from datalayer.stores.cassandra.binding import bound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from datalayer.schemas.cassandra import CqlFile
    from datalayer.schemas.history import Phase
    from datalayer.stores.cassandra.session import CassandraSession

LOCK_TTL_S: Final = 180
"""Three times what one statement may take: the next upgrader waits this long at most for one that died."""
_VERSIONS: Final = "datalayer_schema"
_LOCK: Final = "datalayer_schema_lock"
_ADDED: Final = {"name": "text", "sha256": "text", "phase": "text"}
"""Columns of the versions' table that the first version of the library did not write."""
_PLACE: Final = re.compile(r"messages(_[1-9][0-9]*)?")
_TABLE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS \{keyspace\}\.(\w+)(\{suffix\})? \((.*)\)", re.DOTALL)
_COLUMN: Final = re.compile(r"\s*(\w+) ([\w<>, ]+?)(?: PRIMARY KEY)?,?\s*")
_ALTER: Final = re.compile(
    r"ALTER TABLE \{keyspace\}\.(\w+)(\{suffix\})? (ADD|DROP) IF (?:NOT )?EXISTS (\w+) ?([\w<>, ]*)"
)
_TAKE: Final = (
    "INSERT INTO {keyspace}.datalayer_schema_lock (name, holder) VALUES ('schema', ?) IF NOT EXISTS "  # noqa: S608 - our own constant
    f"USING TTL {LOCK_TTL_S}"
)
_KEEP: Final = (
    f"UPDATE {{keyspace}}.datalayer_schema_lock USING TTL {LOCK_TTL_S} SET holder = ? "  # noqa: S608 - our own constant
    "WHERE name = 'schema' IF holder = ?"
)
_DROP: Final = "DELETE FROM {keyspace}.datalayer_schema_lock WHERE name = 'schema' IF holder = ?"
_READ: Final = "SELECT version, name, sha256, phase FROM {keyspace}.datalayer_schema WHERE part = 'backend'"
_READ_FIRST: Final = "SELECT version FROM {keyspace}.datalayer_schema WHERE part = 'backend'"
_RECORD: Final = (
    "INSERT INTO {keyspace}.datalayer_schema (part, version, name, sha256, phase) VALUES ('backend', ?, ?, ?, ?)"
)


class _Applied(NamedTuple):
    version: int
    name: str | None = None
    sha256: str | None = None
    phase: str | None = None


class CassandraSchema:
    """The schema of one keyspace, over an open session. ``files`` are those of this version of the library."""

    def __init__(
        self, session: CassandraSession, keyspace: str, replication: int, files: Sequence[CqlFile] | None = None
    ) -> None:
        self._session = session
        self._keyspace = keyspace
        self._replication = replication
        self._files = numbered_files() if files is None else list(files)
        self._newest = max(step.number for step in self._files)

    # --- reads ------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """SchemaBehind or SchemaAhead unless this version can serve the keyspace."""
        applied = await self._applied()
        self._check_not_ahead(applied)
        missing = [step for step in self._files if step.phase == "pre" and step.number not in applied]
        if missing:
            at = max(applied, default=0)
            msg = f"the schema of {self._session.where} is version {at}; this library needs {missing[-1].name}"
            raise SchemaBehind(msg, hint=HINT)

    async def drift(self) -> list[Drift]:
        """Missing and other columns of every place and of the keyspace's own tables, and files applied with another text."""
        applied = await self._applied()
        done = [step for step in self._files if step.number in applied]
        own = [step for step in done if step.group == "backend"]
        places = [step for step in done if step.group == "place"]
        wanted = _shapes(own, "")
        for suffix in await self._suffixes():
            wanted |= _shapes(places, suffix)
        found = await self._columns()
        drift = [one for table, columns in wanted.items() for one in _differences(table, columns, found.get(table))]
        return drift + [Drift(_VERSIONS, what) for what in self._other_texts(applied)]

    async def versions(self) -> list[int]:
        """The numbers of the files that were applied."""
        return sorted(await self._applied())

    # --- changes ----------------------------------------------------------------------------------------------------

    async def upgrade(self, phase: Phase | None = None) -> list[str]:
        """Apply the files of a phase (None: both) that were not; their names. The keyspace is made where it is missing.

        Raises Busy while another upgrader holds the lock, PreconditionFailed when an applied file was another text,
        SchemaAhead, Unavailable when nodes do not agree; repeating it goes on.
        """
        await self._prepare()
        async with self._locked() as renew:
            for name, type_ in _ADDED.items():
                if name not in (await self._columns())[_VERSIONS]:
                    await self._change(f"ALTER TABLE {{keyspace}}.{_VERSIONS} ADD {name} {type_}")
            applied = await self._applied()
            self._check_not_ahead(applied)
            if other := self._other_texts(applied):
                raise PreconditionFailed(
                    f"{self._session.where}: {other[0]}", hint="a released file never changes: add one"
                )
            done: list[str] = []
            for step in self._files:
                if step.number in applied or phase not in {None, step.phase}:
                    continue
                self._check_order(step, {*applied, *(int(name[:4]) for name in done)})
                for suffix in await self._suffixes() if step.group == "place" else [""]:
                    await self._apply(step, suffix, renew)
                await self._record(step)
                done.append(step.name)
            return done + await self._mend(renew)

    async def _apply(self, step: CqlFile, suffix: str, renew: Any) -> None:
        for statement in step.statements:
            await renew()
            await self._change(statement, suffix)

    async def _mend(self, renew: Any) -> list[str]:
        """Bring places in step that an older version of the library made after a file had been applied."""
        applied = await self._applied()
        places = [step for step in self._files if step.group == "place" and step.number in applied]
        found, mended = await self._columns(), []
        for suffix in await self._suffixes():
            wanted = _shapes(places, suffix)
            if any(list(_differences(table, columns, found.get(table))) for table, columns in wanted.items()):
                for step in places:
                    await self._apply(step, suffix, renew)
                mended.append(f"messages{suffix}")
        return mended

    def _check_order(self, step: CqlFile, applied: set[int]) -> None:
        first = [one.name for one in self._files if one.phase == "pre" and one.number < step.number]
        missing = [name for name in first if int(name[:4]) not in applied]
        if step.phase == "post" and missing:
            raise PreconditionFailed(f"{missing[0]} must run before {step.name}", hint="--phase pre")

    def _check_not_ahead(self, applied: Mapping[int, _Applied]) -> None:
        """An unknown file that only adds does not hurt; it says so itself."""
        unknown = [one for number, one in sorted(applied.items()) if number > self._newest and one.phase != "pre"]
        if unknown:
            msg = f"the schema of {self._session.where} is version {unknown[-1].version}; this library knows {self._newest}"
            raise SchemaAhead(msg, hint="upgrade the library")

    def _other_texts(self, applied: Mapping[int, _Applied]) -> list[str]:
        return [
            f"{step.name} was applied with another text"
            for step in self._files
            if (row := applied.get(step.number)) is not None and row.sha256 not in {None, step.sha256}
        ]

    # --- the keyspace's own notes -------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """The keyspace and the tables that everything else rests on, where they are not there."""
        if await self._session.has_table(self._keyspace, _LOCK):
            return
        replication = f"{{'class': 'NetworkTopologyStrategy', '{self._session.local_dc}': {self._replication}}}"
        await self._session.change_schema(
            f'CREATE KEYSPACE IF NOT EXISTS "{self._keyspace}" WITH replication = {replication}'
        )
        await self._change(
            f"CREATE TABLE IF NOT EXISTS {{keyspace}}.{_VERSIONS} "
            "(part text, version int, name text, sha256 text, phase text, PRIMARY KEY (part, version))"
        )
        await self._change(f"CREATE TABLE IF NOT EXISTS {{keyspace}}.{_LOCK} (name text PRIMARY KEY, holder text)")

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Any]:
        holder = uuid4().hex.encode()
        if not (await self._rows(_TAKE, (holder,), write=True))[0][0]:
            raise Busy(
                f"somebody else is changing the schema of {self._session.where}",
                hint=f"repeat it when that has ended; the lock of one that died lapses after {LOCK_TTL_S} s",
            )

        async def renew() -> None:
            if not (await self._rows(_KEEP, (holder, holder), write=True))[0][0]:
                raise Busy(f"the lock of the schema of {self._session.where} was lost to another upgrader")

        try:
            yield renew
        finally:
            await self._rows(_DROP, (holder,), write=True)

    async def _applied(self) -> dict[int, _Applied]:
        """Empty when there is no keyspace or nothing in it yet."""
        columns = (await self._columns()).get(_VERSIONS)
        if columns is None:
            return {}
        rows = await self._rows(_READ if columns.keys() >= _ADDED.keys() else _READ_FIRST)
        return {row[0]: _Applied(*row) for row in rows}

    async def _record(self, step: CqlFile) -> None:
        values = (step.number.to_bytes(4, "big"), step.name.encode(), step.sha256.encode(), step.phase.encode())
        await self._rows(_RECORD, values, write=True)

    async def _suffixes(self) -> list[str]:
        """Of the places that the keyspace has; attempt 0 is one of them."""
        matches = [_PLACE.fullmatch(table) for table in await self._columns()]
        return sorted({"", *(match[1] or "" for match in matches if match is not None)})

    async def _columns(self) -> dict[str, dict[str, str]]:
        """Types by column by table."""
        statement = await self._session.prepare(
            "SELECT table_name, column_name, type FROM system_schema.columns WHERE keyspace_name = ?"
        )
        found: dict[str, dict[str, str]] = {}
        for table, column, type_ in await self._session.run(bound(statement, (self._keyspace.encode(),)), write=False):
            found.setdefault(str(table), {})[str(column)] = str(type_)
        return found

    async def _change(self, statement: str, suffix: str = "") -> None:
        await self._session.change_schema(statement.format(keyspace=f'"{self._keyspace}"', suffix=suffix))

    async def _rows(self, cql: str, values: tuple[bytes, ...] = (), *, write: bool = False) -> list[tuple[Any, ...]]:
        statement = await self._session.prepare(cql.format(keyspace=f'"{self._keyspace}"'))
        return await self._session.run(bound(statement, values), write=write)


def _shapes(files: Sequence[CqlFile], suffix: str) -> dict[str, dict[str, str]]:
    """What the files make: types by column by table."""
    found: dict[str, dict[str, str]] = {}
    for step in files:
        for statement in step.statements:
            if made := _TABLE.match(statement):
                columns = (_COLUMN.fullmatch(line) for line in made[3].splitlines())
                found[made[1] + (suffix if made[2] else "")] = {one[1]: one[2] for one in columns if one is not None}
            elif (changed := _ALTER.match(statement)) and (
                columns_ := found.get(changed[1] + (suffix if changed[2] else ""))
            ) is not None:
                if changed[3] == "ADD":
                    columns_[changed[4]] = changed[5]
                else:
                    columns_.pop(changed[4], None)
    return found


def _differences(table: str, wanted: Mapping[str, str], found: Mapping[str, str] | None) -> list[Drift]:
    if found is None:
        return [Drift(table, "the table is missing")]
    missing = [Drift(table, f"column {name} is missing") for name in wanted if name not in found]
    others = [
        Drift(table, f"column {name} is of type {found[name]}, not {type_}")
        for name, type_ in wanted.items()
        if found.get(name, type_).replace(" ", "") != type_.replace(" ", "")
    ]
    return (
        missing
        + others
        + [Drift(table, f"column {name} is unexpected", harmful=False) for name in found.keys() - wanted.keys()]
    )
