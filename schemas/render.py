"""The statements of each revision, rendered by Alembic and run by nobody here.

Alembic's revision files are the one definition of the steps. Its operations are rendered as text, as for ``--sql``; so
what ``schema check`` prints and judges is what ``schema upgrade`` runs, through the driver and the errors of the store
itself. Only people who change schemas need Alembic: nothing that serves an application imports this module.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateTable

from datalayer.schemas.history import number_of, phase_of
from datalayer.schemas.metadata import PLACES, SCHEMA_TABLE, schema_table
from datalayer.schemas.script import LOCK_TIMEOUT_S, Script, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from datalayer.schemas.history import Phase
    from datalayer.schemas.script import Dialect

FOLDER: Final = Path(__file__).parent / "revisions"
VERSIONS: Final = FOLDER / "versions"
_TAGS: Final = frozenset({"BEGIN", "COMMIT"})
_SET_TIMEOUT: Final = Step(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")


class Revisions:
    """The revision files of these folders."""

    def __init__(self, *locations: Path) -> None:
        folders = [str(folder) for folder in (VERSIONS, *locations)]
        found = ScriptDirectory(str(FOLDER), version_locations=folders).walk_revisions()
        self._modules: dict[str, Any] = {one.revision: one.module for one in found}

    @property
    def names(self) -> tuple[str, ...]:
        """Every revision, by its number."""
        return tuple(sorted(self._modules, key=number_of))

    def scripts(self, revision: str, dialect: Dialect, places: Mapping[str, Sequence[str]]) -> list[Script]:
        """What a revision does to a database that has these tables of places."""
        own = self._script(revision, dialect, "", self._modules[revision].upgrade)
        found = [own] if own.steps else []
        for base in PLACES:
            for table in places.get(base, ()):
                found += self.place_scripts([revision], dialect, base, table)
        return found

    def place_scripts(self, revisions: Sequence[str], dialect: Dialect, base: str, table: str) -> list[Script]:
        """What these revisions do to one table of a place."""
        found = []
        for revision in revisions:
            upgrade = getattr(self._modules[revision], "upgrade_place", None)
            if upgrade is not None:
                script = self._script(revision, dialect, table, partial(upgrade, base, table))
                found += [script] if script.steps else []
        return found

    def _script(self, revision: str, dialect: Dialect, target: str, upgrade: Callable[[], None]) -> Script:
        module = self._modules[revision]
        summary = (module.__doc__ or revision).strip().splitlines()[0]
        waived = MappingProxyType(dict(getattr(module, "WAIVED", {})))
        steps = _rendered(dialect, upgrade)
        return Script(revision, phase_of(revision), summary, steps, target, waived)


def stamps(revision: str, rows: Collection[str], dialect: Dialect) -> list[str]:
    """The statements that record a revision as its line's newest. Repeating them is harmless."""
    create = CreateTable(schema_table(), if_not_exists=True).compile(dialect=_core(dialect))
    phase: Phase = phase_of(revision)
    older = [row for row in rows if phase_of(row) == phase and number_of(row) < number_of(revision)]
    found = [str(create).strip()]
    found += [f"DELETE FROM {SCHEMA_TABLE} WHERE version_num = '{row}'" for row in sorted(older)]  # noqa: S608 - names checked by history
    found.append(f"INSERT INTO {SCHEMA_TABLE} (version_num) VALUES ('{revision}') ON CONFLICT DO NOTHING")  # noqa: S608
    return found


def _core(dialect: Dialect) -> sa.engine.Dialect:
    return sa.engine.make_url(f"{dialect}://").get_dialect()()


def _rendered(dialect: Dialect, upgrade: Callable[[], None]) -> tuple[Step, ...]:
    recorder = _Recorder()
    context = MigrationContext.configure(
        dialect=_core(dialect), opts={"as_sql": True, "output_buffer": recorder, "literal_binds": True}
    )
    recorder.terminator = context.impl.command_terminator
    with Operations.context(context):
        upgrade()
    if dialect == "sqlite":
        return tuple(Step(step.sql) for step in recorder.steps)
    steps: list[Step] = []
    for step in recorder.steps:
        begins = not step.alone and (not steps or steps[-1].alone)
        steps += [_SET_TIMEOUT, step] if begins else [step]
    return tuple(steps)


class _Recorder:
    """Alembic's output: one ``write`` for each statement. COMMIT opens what is to run alone, BEGIN closes it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.terminator = ";"
        self._alone = False

    def write(self, text: str) -> None:
        """Take one statement."""
        sql = text.strip().removesuffix(self.terminator).strip()
        if sql in _TAGS:
            self._alone = sql == "COMMIT"
            return
        sql = re.sub(r"[ \t]+\n", "\n", sql)
        if sql:
            self.steps.append(Step(sql, self._alone))

    def flush(self) -> None:
        """Nothing is held back."""
