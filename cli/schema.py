"""datalayer schema: what each database looks like, and bringing all of them up to date."""

from __future__ import annotations

from typing import Any, Final, cast

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.running import Stop, run
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.migrators.schema_plan import Planned, check_cql, load_revisions, plan
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions
from datalayer.migrators.schemas import PARALLEL, SchemaState, inspect_schemas
from datalayer.schemas.history import Phase
from datalayer.schemas.lint import Finding, refused
from datalayer.schemas.script import Dialect, Script

_backend = click.argument("backend", required=False)
_PHASES: Final = click.Choice(["pre", "post", "all"])
_phase = click.option("--phase", type=_PHASES, default="all", show_default=True, help="Only revisions of this kind.")
_safe_phase = click.option(
    "--phase",
    type=_PHASES,
    default="pre",
    show_default=True,
    help="pre: what the older version of the code can live with; post: once none of it runs. A new database gets all.",
)
_parallel = click.option(
    "--parallel", type=int, default=PARALLEL, show_default=True, metavar="N", help="Databases at a time."
)
_CODES: Final = (
    ({"failed"}, ExitCode.FAILED),
    ({"ahead", "behind"}, ExitCode.PRECONDITION),
    ({"unreachable", "busy", "waiting"}, ExitCode.NOT_FINISHED),
    ({"drifted"}, ExitCode.DIFFERENCES),
)


@group()
def schema() -> None:
    """Look at schemas, or bring them up to date. BACKEND (or shards/s0) defaults to all, and the control store."""


@command()
@_backend
@_parallel
def status(console: Console, backend: str | None, parallel: int) -> ExitCode | None:
    """Revision and drift of each database; ends with 3 when one is behind, with 4 when one has drifted."""
    settings = console.settings()

    async def work(_: Stop) -> list[SchemaState]:
        return await inspect_schemas(settings, SystemClock(), only=backend, parallel=parallel)

    states = run(console, work)
    steps = ["datalayer schema upgrade"] if any(state.state in {"behind", "drifted"} for state in states) else []
    _tell(console, states, steps)
    if any(state.state == "unreachable" for state in states):
        return ExitCode.FAILED
    return _code(states)


@command()
@_backend
@_safe_phase
@click.option("--canary", metavar="NAME", help="The database to begin with (default: the first that answers).")
@_parallel
def upgrade(console: Console, backend: str | None, phase: str, canary: str | None, parallel: int) -> ExitCode | None:
    """Bring each database up to date: a canary, then N at a time. What is done is not done again."""
    chosen = _chosen(phase)
    options = UpgradeOptions(only=backend, phase=chosen, canary=canary, parallel=parallel)
    settings, revisions = console.settings(), load_revisions()
    given = [backend or "", f"--phase {phase}" if phase != "pre" else "", f"--canary {canary}" if canary else ""]
    again = " ".join(["datalayer schema upgrade", *(word for word in given if word)])
    console.way_on = [again]

    async def work(stop: Stop) -> list[SchemaState]:
        return await Upgrade(settings, SystemClock(), revisions, stop, options).run()

    states = run(console, work)
    code = _code(states)
    _tell(console, states, [again] if code in (ExitCode.NOT_FINISHED, ExitCode.FAILED) else [])
    return code


@command()
@_phase
@click.option("--from", "after", metavar="REVISION", help="Only what comes after it.")
def check(console: Console, phase: str, after: str | None) -> ExitCode | None:
    """Print what an upgrade runs, and refuse what would stop a busy server. No database is asked; ends with 3."""
    chosen = _chosen(phase)
    dialects: list[Dialect] = ["postgresql", "sqlite"]
    planned = [*plan(load_revisions(), dialects, after=after, phase=chosen), check_cql(chosen)]
    findings = [finding for one in planned for finding in one.findings]
    data = {
        "scripts": [_script_data(one, script) for one in planned for script in one.scripts],
        "findings": [_finding_data(finding) for finding in findings],
    }
    console.result(data, "\n".join(_script_text(one, script) for one in planned for script in one.scripts))
    for finding in findings:
        console.say(_finding_text(finding))
    return ExitCode.PRECONDITION if refused(findings) else None


def _chosen(phase: str) -> Phase | None:
    return None if phase == "all" else cast("Phase", phase)


def _code(states: list[SchemaState]) -> ExitCode | None:
    """The gravest of what the databases ended with."""
    found = {state.state for state in states}
    return next((code for kinds, code in _CODES if found & kinds), None)


def _tell(console: Console, states: list[SchemaState], steps: list[str]) -> None:
    rows = [(s.name, s.product, s.state, s.revision or "-", _detail(s)) for s in states]
    lines = [f"{state.name}: {one}" for state in states for one in state.drift]
    text = "\n".join([table(rows, ("name", "product", "state", "revision", "detail")), *lines])
    console.result({"schemas": [_data(state) for state in states]}, text, next_steps=steps)
    silent = [state.name for state in states if state.state == "unreachable"]
    if silent:
        console.say(f"start {', '.join(silent)}, or mend the URL in the configuration; what is done is not done again")


def _detail(state: SchemaState) -> str:
    return "; ".join(part for part in (", ".join(state.done), state.detail) if part)


def _data(state: SchemaState) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": state.name,
        "product": state.product,
        "state": state.state,
        "detail": state.detail,
    }
    drift = [{"table": one.table, "what": one.what, "harmful": one.harmful} for one in state.drift]
    more = {"revision": state.revision, "done": list(state.done), "drift": drift}
    return data | {key: value for key, value in more.items() if value}


def _script_data(planned: Planned, script: Script) -> dict[str, Any]:
    statements = [{"sql": step.sql, "alone": step.alone} for step in script.steps]
    return {
        "product": planned.product,
        "revision": script.revision,
        "phase": script.phase,
        "target": script.target,
        "statements": statements,
    }


def _script_text(planned: Planned, script: Script) -> str:
    target = f" on {script.target}" if script.target else ""
    lines = [f"-- {planned.product}: {script.revision}{target} ({script.phase}): {script.summary}"]
    for block in script.blocks:
        texts = [f"{step.sql};" for step in block]
        lines += texts if block[0].alone else ["BEGIN;", *texts, "COMMIT;"]
    return "\n".join([*lines, ""])


def _finding_data(finding: Finding) -> dict[str, Any]:
    return {
        "revision": finding.revision,
        "target": finding.target,
        "rule": finding.rule,
        "reason": finding.reason,
        "way_out": finding.way_out,
        "sql": finding.sql,
        "waived": finding.waived,
    }


def _finding_text(finding: Finding) -> str:
    head = f"{finding.revision}: {finding.rule}: {finding.reason}"
    if finding.waived:
        return f"{head}\n  waived: {finding.waived}"
    return f"{head}\n  {' '.join(finding.sql.split())}\n  instead: {finding.way_out}"


for _one in (status, upgrade, check):
    schema.add_command(_one)
