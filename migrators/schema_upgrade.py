"""Bringing schemas up to date: one canary database, then the others, a few at a time.

Each database says itself what was done (``datalayer_schema``), so there is no state of a run: what is done is not done
again, and after a crash, or when a server is back, the same command goes on. A statement that was begun and not recorded
is repeated; every one may be. Between two statements nothing is locked, and a lock that is not had at once is asked for
again later, so that nobody waits behind this.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from datalayer.control.connect import open_control
from datalayer.errors import (
    ConfigurationError,
    DatalayerError,
    NotFinished,
    OutcomeUnknown,
    PreconditionFailed,
    SchemaAhead,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.layer import make_backends
from datalayer.migrators.schema_plan import check_plan, plan, stamps
from datalayer.migrators.schemas import (
    PARALLEL,
    Database,
    SchemaState,
    State,
    databases,
    drift_of,
    effective_rows,
    inspect,
    purged_tables,
)
from datalayer.schemas import history
from datalayer.schemas.metadata import serving_tables
from datalayer.schemas.script import Busy, HasCqlSchema, HasSqlSchema, LogEntry
from datalayer.schemas.shapes import PLACE_NAME
from datalayer.stores.registry import DISTRIBUTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Clock
    from datalayer.migrators.options import Failpoints
    from datalayer.migrators.schema_plan import Revisions
    from datalayer.schemas.history import Phase
    from datalayer.schemas.script import LockedSchema, Script, SqlSchema
    from datalayer.settings import Settings

LOCK_WAIT_S: Final = 20.0
"""How long to wait for another upgrade of the same database."""
TRIES: Final = 6
PAUSE_S: Final = 0.25
_CREATES: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")
_BEGUN: Final[frozenset[State]] = frozenset({"ready", "drifted"})


@dataclass(frozen=True, slots=True)
class UpgradeOptions:
    """What an operator chose. ``phase`` None: both; ``canary`` None: the first database that answers."""

    only: str | None = None
    phase: Phase | None = None
    canary: str | None = None
    parallel: int = PARALLEL


@dataclass(slots=True)
class Upgrade:
    """One run over all databases."""

    settings: Settings
    clock: Clock
    revisions: Revisions
    failpoints: Failpoints
    options: UpgradeOptions = field(default_factory=UpgradeOptions)

    async def run(self) -> list[SchemaState]:
        """Each database's end, in the order of names, the control store last.

        Raises PreconditionFailed before anything was touched when the linter refuses a revision, ConfigurationError
        for a name that is none. What a database answers is a state: ``unreachable`` and ``busy`` ones are done by the
        same call made again, ``waiting`` ones were not begun because the canary did not end well.
        """
        if not 1 <= self.options.parallel <= 64:
            raise ConfigurationError(f"--parallel {self.options.parallel} is outside 1 to 64")
        check_plan(plan(self.revisions, ("postgresql", "sqlite")))
        folder = self.settings.embedded_directory
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        backends = make_backends(self.settings, self.clock)
        try:
            found = databases(self.settings, backends, self.options.only)
            ends = await self._canary_first(found)
            return [ends[database.name] for database in found]
        finally:
            for backend in backends.values():
                await backend.close()

    async def _canary_first(self, found: Sequence[Database]) -> dict[str, SchemaState]:
        ends: dict[str, SchemaState] = {}
        for database in self._canaries(found):
            ends[database.name] = end = await self._one(database)
            if end.state in _BEGUN:
                break
            if end.state != "unreachable" or self.options.canary is not None:
                why = f"not begun: the canary {database.name} is {end.state}"
                others = (one for one in found if one.name not in ends)
                return ends | {one.name: SchemaState(one.name, one.product, "waiting", why) for one in others}
        turns = asyncio.Semaphore(self.options.parallel)

        async def take_turn(database: Database) -> None:
            async with turns:
                ends[database.name] = await self._one(database)

        left = [database for database in found if database.name not in ends]
        # all of them end before anything is raised: none is left in the middle of a statement
        for raised in await asyncio.gather(*(take_turn(database) for database in left), return_exceptions=True):
            if raised is not None:
                raise raised
        return ends

    def _canaries(self, found: Sequence[Database]) -> Sequence[Database]:
        """Who goes first: the one chosen, else one after the other until one answers."""
        if self.options.canary is None:
            return found
        chosen = [one for one in found if one.name == self.options.canary]
        if not chosen:
            names = ", ".join(one.name for one in found)
            raise ConfigurationError(f"--canary {self.options.canary!r} is none of them", hint=f"one of: {names}")
        return chosen

    async def _one(self, database: Database) -> SchemaState:
        """Bring one database up to date; whatever it answers is told, not raised - but that the operator stops."""
        done: list[str] = []
        try:
            await self._bring(database, done)
        except SchemaAhead as error:
            end = SchemaState(database.name, database.product, "ahead", str(error))
        except Busy as error:
            end = SchemaState(database.name, database.product, "busy", str(error))
        except (Unavailable, OutcomeUnknown) as error:
            end = SchemaState(database.name, database.product, "unreachable", str(error))
        except NotFinished:
            raise
        except DatalayerError as error:
            end = SchemaState(database.name, database.product, "failed", str(error))
        else:
            end = await inspect(self.settings, self.clock, database)
            if end.state == "behind" and self.options.phase == "post":
                end = replace(end, state="ready")
        return replace(end, done=tuple(done))

    async def _bring(self, database: Database, done: list[str]) -> None:
        await self.failpoints.reach(f"schema.{database.name}.before")
        backend = database.backend
        if backend is None:
            if self.options.phase != "post":
                await self._control()
            return
        try:
            await backend.open()
        except PreconditionFailed as error:
            raise Unavailable(error.message, hint=error.hint) from error
        if isinstance(backend, HasSqlSchema):
            schema = backend.sql_schema()
            async with schema.locked(LOCK_WAIT_S) as locked:
                work = _Work(self, database, schema, locked, done)
                await work.upgrade()
        elif isinstance(backend, HasCqlSchema):
            done += await backend.cql_schema().upgrade(self.options.phase)
        elif self.options.phase != "post":
            await backend.ensure_schema(create=True)

    async def _control(self) -> None:
        control = open_control(self.settings.control, self.clock)
        try:
            await control.open(create=True)
        finally:
            await control.close()


@dataclass(slots=True)
class _Work:
    """One SQL database, with the right to change it."""

    run: Upgrade
    database: Database
    schema: SqlSchema
    locked: LockedSchema
    done: list[str]

    async def upgrade(self) -> None:
        rows = await effective_rows(self.schema)
        if rows:
            self._check_not_ahead(rows)
        # no older code has ever used a database that has no schema: nothing in it waits for a post revision
        pending = history.THIS.pending(rows, self.run.options.phase if rows else None)
        for revision in pending:
            self._check_order(revision, rows)
            scripts = self.run.revisions.scripts(revision, self.schema.dialect, await self.schema.places())
            entries = await self._run_all(scripts)
            await self.locked.stamp(stamps(revision, rows, self.schema.dialect), entries)
            self.done.append(revision)
            rows = await self.schema.rows()
        if not history.THIS.pending(rows, "pre"):
            await self._mend(rows)

    def _check_not_ahead(self, rows: frozenset[str]) -> None:
        try:
            history.THIS.check(rows, f"backend {self.database.name!r}")
        except SchemaBehind:
            return

    def _check_order(self, revision: str, rows: frozenset[str]) -> None:
        """A post revision takes away what an earlier pre revision replaced."""
        number = history.number_of(revision)
        first = [one for one in history.THIS.pending(rows, "pre") if history.number_of(one) < number]
        if first:
            raise PreconditionFailed(
                f"{', '.join(first)} must run before {revision}", hint="datalayer schema upgrade --phase pre"
            )

    async def _mend(self, rows: frozenset[str]) -> None:
        """Bring in step what was made or lost since: a place that older code made, a table that somebody dropped."""
        assert self.database.backend is not None, "the control store has no revisions"
        applied = [one for one in self.run.revisions.names if one in history.THIS.applied(rows)]
        drift = await drift_of(self.schema, await purged_tables(self.database.backend))
        missing = {table.name for table in serving_tables()} & {
            one.table for one in drift if "table is missing" in one.what
        }
        scripts: list[Script] = []
        for revision in applied if missing else ():
            own = self.run.revisions.scripts(revision, self.schema.dialect, {})
            scripts += [script for script in own if _makes(script) & missing]
        for table in sorted({one.table for one in drift if one.harmful} | missing):
            place = PLACE_NAME.fullmatch(table)
            if place is not None:
                scripts += self.run.revisions.place_scripts(applied, self.schema.dialect, place[1], table)
        entries = await self._run_all(scripts)
        if entries:
            await self.locked.stamp((), entries)
            self.done += [f"{entry.revision} {entry.target}".strip() for entry in entries]

    async def _run_all(self, scripts: Sequence[Script]) -> list[LogEntry]:
        entries = []
        for script in scripts:
            try:
                entries.append(await self._run(script))
            except StaleRoute:
                # a migration that ended meanwhile has dropped this place: there is nothing left to change
                if script.target in {name for names in (await self.schema.places()).values() for name in names}:
                    raise
        return entries

    async def _run(self, script: Script) -> LogEntry:
        """Run one script; when a lock is not had, again after a pause in which everybody else gets on."""
        await self.run.failpoints.reach(f"schema.{self.database.name}.{script.revision}.before")
        clock = self.run.clock
        began_us, began = clock.now_us(), clock.monotonic()
        for tried in range(1, TRIES + 1):
            try:
                await self.locked.run(script)
                break
            except Busy:
                if tried == TRIES:
                    raise
            await asyncio.sleep(PAUSE_S * tried)
        took_ms = round((clock.monotonic() - began) * 1000)
        return LogEntry(script.revision, script.target, began_us, script.sha256, took_ms, _library())


def _library() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"


def _makes(script: Script) -> set[str]:
    """The tables that a script makes where they are not there."""
    return {name for step in script.steps for name in _CREATES.findall(step.sql)}
