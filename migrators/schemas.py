"""The schemas of everything configured: which databases there are, and the state of each.

A database is a plain backend, a member of a sharded one, or the control store. Both sides of a move and every attempt's
tables are in one of them, whoever the routing says rules: a table is found in the catalogue, not in a route.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from datalayer.control.connect import NAME, open_control
from datalayer.control.schema import METADATA
from datalayer.domains.registry import DOMAINS
from datalayer.errors import ConfigurationError, DatalayerError, SchemaAhead, SchemaBehind
from datalayer.layer import make_backends
from datalayer.schemas import history, metadata, shapes
from datalayer.schemas.script import HasCqlSchema, HasSqlSchema
from datalayer.stores.registry import open_factory
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import sqlalchemy as sa

    from datalayer.clock import Clock
    from datalayer.schemas.script import CqlSchema, SqlSchema
    from datalayer.schemas.shapes import Drift
    from datalayer.settings import BackendUrl, Settings
    from datalayer.stores.base import Backend

State = Literal["ready", "behind", "ahead", "drifted", "unreachable", "busy", "failed", "waiting"]
CONTROL: Final = "(control)"
PARALLEL: Final = 4
_TABLES_OF: Final = {name: tuple(table.name for table in metadata.domain_tables(name)) for name in DOMAINS}


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema of one database; ``name`` is CONTROL for the control store."""

    name: str
    product: str
    state: State
    detail: str = ""
    revision: str = ""
    """The newest applied revision of each line."""
    done: tuple[str, ...] = ()
    """What an upgrade did here: revisions, and tables of places that were brought in step."""
    drift: tuple[Drift, ...] = ()


@dataclass(frozen=True, slots=True)
class Database:
    """One place where data physically is."""

    name: str
    product: str
    backend: Backend | None
    """None: the control store."""


def databases(settings: Settings, backends: Mapping[str, Backend], only: str | None) -> list[Database]:
    """All, or those of one backend (all its members when it is sharded). ConfigurationError for an unknown name."""
    if only is not None and only not in backends:
        known = ", ".join(sorted(backends))
        raise ConfigurationError(f"backend {only!r} is not configured", hint=f"one of: {known}")
    chosen = backends[only] if only is not None else None
    names = {only} if only is not None else set(backends)
    if isinstance(chosen, ShardedBackend):
        names = set(chosen.members)
    found = [
        Database(name, backend.product, backend)
        for name, backend in sorted(backends.items())
        if name in names and not isinstance(backend, ShardedBackend) and not _unasked(settings, name, backend)
    ]
    return found if only is not None else [*found, Database(CONTROL, settings.control.scheme, None)]


def _unasked(settings: Settings, name: str, backend: Backend) -> bool:
    """What nobody configured, the memory of a process or a folder of media: it has no schema."""
    return backend.product in {"memory", "filesystem"} and name not in settings.backends and "/" not in name


async def inspect_schemas(
    settings: Settings, clock: Clock, *, only: str | None = None, parallel: int = PARALLEL
) -> list[SchemaState]:
    """Each schema's state, in the order of names, the control store last. Changes nothing.

    Raises ConfigurationError and MissingDependencyError; what a server answers is a state.
    """
    backends = make_backends(settings, clock)
    found = databases(settings, backends, only)
    turns = asyncio.Semaphore(max(1, parallel))

    async def look(database: Database) -> SchemaState:
        async with turns:
            return await inspect(settings, clock, database)

    try:
        return list(await asyncio.gather(*(look(database) for database in found)))
    finally:
        for backend in backends.values():
            await backend.close()


async def inspect(settings: Settings, clock: Clock, database: Database) -> SchemaState:
    """One schema's state."""
    try:
        return await _inspect(settings, clock, database)
    except SchemaBehind as error:
        return SchemaState(database.name, database.product, "behind", error.message)
    except SchemaAhead as error:
        return SchemaState(database.name, database.product, "ahead", str(error))
    except DatalayerError as error:
        return SchemaState(database.name, database.product, "unreachable", str(error))


async def _inspect(settings: Settings, clock: Clock, database: Database) -> SchemaState:
    if database.backend is None:
        return await _inspect_control(settings, clock)
    await database.backend.open()
    if isinstance(database.backend, HasSqlSchema):
        return await inspect_sql(database, database.backend.sql_schema())
    if isinstance(database.backend, HasCqlSchema):
        return await _inspect_cql(database, database.backend.cql_schema())
    await database.backend.ensure_schema(create=False)
    return SchemaState(database.name, database.product, "ready")


async def inspect_sql(database: Database, schema: SqlSchema) -> SchemaState:
    """The state of a SQL database: its revisions, and how its tables differ from what they should be."""
    assert database.backend is not None, "the control store has no revisions"
    rows = await effective_rows(schema)
    if not rows:
        raise SchemaBehind("this database has no datalayer schema")
    try:
        history.THIS.check(rows, f"backend {database.name!r}")
    except SchemaBehind as error:
        behind_at = ", ".join(sorted(rows))
        return SchemaState(database.name, database.product, "behind", error.message, revision=behind_at)
    drift = tuple(await drift_of(schema, await purged_tables(database.backend)))
    state = _judged(SchemaState(database.name, database.product, "ready", drift=drift), sorted(rows))
    if behind := history.THIS.pending(rows, "pre"):
        detail = f"{', '.join(behind)} not applied (this version serves it all the same)"
        return replace(state, state="behind", detail=detail)
    if state.state == "ready" and (waiting := history.THIS.pending(rows, "post")):
        detail = f"{', '.join(waiting)}: once no process of an older version runs (--phase post)"
        return replace(state, detail=detail)
    return state


async def _inspect_cql(database: Database, schema: CqlSchema) -> SchemaState:
    await schema.check()
    drift = tuple(await schema.drift())
    return _judged(SchemaState(database.name, database.product, "ready", drift=drift), (await schema.versions())[-1:])


def _judged(state: SchemaState, revisions: Sequence[object]) -> SchemaState:
    """With its revision, and drifted where a difference harms."""
    harmful = sum(one.harmful for one in state.drift)
    state = replace(state, revision=", ".join(str(one) for one in revisions))
    return replace(state, state="drifted", detail=f"{harmful} difference{'s'[: harmful > 1]}") if harmful else state


async def effective_rows(schema: SqlSchema) -> frozenset[str]:
    """The rows of datalayer_schema; the first revision where its tables were made before there were rows."""
    rows = await schema.rows()
    if not rows and await schema.adopted():
        return frozenset(history.THIS.pre[:1])
    return rows


async def purged_tables(backend: Backend) -> frozenset[str]:
    """The plain tables of domains that have moved away: a purge may have dropped them."""
    meta = await backend.read_meta()
    gone = {domain for (domain, attempt), row in meta.items() if attempt == 0 and row.role == "retired"}
    return frozenset(table for domain in gone for table in _TABLES_OF.get(domain, ()))


async def drift_of(schema: SqlSchema, purged: Collection[str] = ()) -> list[Drift]:
    """How every table of ours differs from what this version would make."""
    wanted: dict[str, sa.Table] = {table.name: table for table in (metadata.schema_table(), *metadata.base_tables())}
    if schema.dialect == "sqlite":
        wanted |= {table.name: table for table in metadata.sqlite_tables()}
    for tables in (await schema.places()).values():
        for name in tables:
            wanted[name] = metadata.place_table(*shapes.attempt_of(name))
    return await _differences(schema, wanted, purged)


async def _differences(schema: SqlSchema, wanted: Mapping[str, sa.Table], excused: Collection[str]) -> list[Drift]:
    found = await schema.shapes(list(wanted))
    return [
        one
        for name, table in wanted.items()
        if name in found or name not in excused
        for one in shapes.differences(name, shapes.expected(table, schema.dialect), found.get(name))
    ]


async def _inspect_control(settings: Settings, clock: Clock) -> SchemaState:
    control = open_control(settings.control, clock)
    try:
        await control.open(create=False)
    finally:
        await control.close()
    drift = await _control_drift(settings.control, clock)
    return _judged(SchemaState(CONTROL, settings.control.scheme, "ready", drift=tuple(drift)), ())


async def _control_drift(url: BackendUrl, clock: Clock) -> Sequence[Drift]:
    backend = open_factory(url.scheme, NAME)(NAME, url, pool_max=1, clock=clock)
    try:
        if not isinstance(backend, HasSqlSchema):
            return []
        return await _differences(backend.sql_schema(), {table.name: table for table in METADATA.sorted_tables}, ())
    finally:
        await backend.close()
