"""What an upgrade of the schemas would run, and what is to be said against it - without any database."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from datalayer.errors import ConfigurationError, MissingDependencyError, PreconditionFailed
from datalayer.schemas import cassandra, history
from datalayer.schemas.lint import Finding, lint, refused
from datalayer.schemas.metadata import PLACES
from datalayer.schemas.script import Script, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from datalayer.schemas.cassandra import CqlFile
    from datalayer.schemas.history import Phase
    from datalayer.schemas.script import Dialect

ONE_PLACE: Final = {base: (base,) for base in PLACES}
"""The tables of attempt 0, which stand for those of every place where no database is asked."""

_UNREPEATABLE: Final = (
    "unrepeatable",
    "it is applied again after a crash, and for other places, and then fails",
    "IF NOT EXISTS, IF EXISTS",
)
_CONTRACT: Final = (
    "contract-in-pre",
    "code of the version before still uses it",
    "a file whose name ends in _post.cql: it runs when no process of an older version is left",
)


class Revisions(Protocol):
    """The revision files, as ``schemas.render`` reads them by Alembic."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every revision, by its number."""
        ...

    def scripts(self, revision: str, dialect: Dialect, places: Mapping[str, Sequence[str]]) -> list[Script]:
        """What a revision does to a database that has these tables of places."""
        ...

    def place_scripts(self, revisions: Sequence[str], dialect: Dialect, base: str, table: str) -> list[Script]:
        """What these revisions do to one table of a place."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """The scripts for one product, and what the linter found in them."""

    product: str
    scripts: tuple[Script, ...]
    findings: tuple[Finding, ...]


def load_revisions() -> Revisions:
    """The revisions of this version. MissingDependencyError where Alembic is not installed: nothing else needs it."""
    return cast("Revisions", _render().Revisions())


def stamps(revision: str, rows: Collection[str], dialect: Dialect) -> list[str]:
    """The statements that record a revision as its line's newest."""
    return cast("list[str]", _render().stamps(revision, rows, dialect))


def _render() -> Any:
    try:
        return importlib.import_module("datalayer.schemas.render")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "alembic":
            raise
        raise MissingDependencyError(
            "changing a schema needs Alembic, which is not installed", hint="pip install alembic"
        ) from error


def plan(
    revisions: Revisions, dialects: Sequence[Dialect], *, after: str | None = None, phase: Phase | None = None
) -> list[Planned]:
    """What the upgrade of a database with the tables of attempt 0 runs, from behind revision ``after`` on.

    The linter is shown all revisions from the first on, since one may rest on what an earlier one did; what it says of
    those that would run is told. Raises ConfigurationError for an unknown revision.
    """
    if after is not None and after not in revisions.names:
        raise ConfigurationError(f"there is no revision {after!r}", hint=f"one of: {', '.join(revisions.names)}")
    first = history.number_of(after) + 1 if after is not None else 0
    asked = {
        name for name in revisions.names if history.number_of(name) >= first and phase in {None, history.phase_of(name)}
    }
    planned = []
    for dialect in dialects:
        scripts = [script for name in revisions.names for script in revisions.scripts(name, dialect, ONE_PLACE)]
        findings = tuple(finding for finding in lint(scripts, dialect) if finding.revision in asked)
        planned.append(Planned(dialect, tuple(script for script in scripts if script.revision in asked), findings))
    return planned


def check_cql(phase: Phase | None = None, files: Sequence[CqlFile] | None = None) -> Planned:
    """The numbered files of the Cassandra backend, for the place of attempt 0, and what is to be said against them."""
    scripts, findings = [], []
    for one in cassandra.numbered_files() if files is None else files:
        if phase not in {None, one.phase}:
            continue
        target = "messages" if one.group == "place" else ""
        steps = tuple(Step(cql.format(keyspace="keyspace", suffix=""), alone=True) for cql in one.statements)
        scripts.append(Script(one.name, one.phase, "numbered CQL", steps, target))
        findings += [Finding(one.name, target, *_UNREPEATABLE, cql) for cql in one.unrepeatable]
        findings += [Finding(one.name, target, *_CONTRACT, cql) for cql in one.contracting if one.phase == "pre"]
    return Planned("cassandra", tuple(scripts), tuple(findings))


def check_plan(planned: Sequence[Planned]) -> None:
    """PreconditionFailed when the linter refuses a statement."""
    bad = [finding for one in planned for finding in refused(one.findings)]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise PreconditionFailed(
            f"revision {bad[0].revision} would hurt: {bad[0].rule}: {bad[0].reason}{more}",
            hint="datalayer schema check tells all of it",
        )
