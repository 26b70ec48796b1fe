"""datalayer schema: what each backend and the control store look like, and bringing them up to date."""

from __future__ import annotations

from typing import Any

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.running import Stop, run
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.errors import ConfigurationError
from datalayer.migrators.schemas import SchemaState, inspect_schemas

_backend = click.argument("backend", required=False)


@group()
def schema() -> None:
    """Look at schemas, or bring them up to date. BACKEND defaults to all of them and the control store."""


@command()
@_backend
def status(console: Console, backend: str | None) -> ExitCode | None:
    """Whether each schema is what this version needs; ends with 3 when one is not."""
    states = _inspect(console, backend, create=False)
    steps = ["datalayer schema upgrade"] if any(state.state == "behind" for state in states) else []
    return _tell(console, states, steps)


@command()
@_backend
def upgrade(console: Console, backend: str | None) -> ExitCode | None:
    """Create what is missing and bring what is behind up to date."""
    return _tell(console, _inspect(console, backend, create=True), [])


def _inspect(console: Console, only: str | None, *, create: bool) -> list[SchemaState]:
    settings = console.settings()
    if only is not None and only not in settings.backends:
        names = ", ".join(sorted(settings.backends))
        raise ConfigurationError(f"backend {only!r} is not configured", hint=f"one of: {names}")

    async def work(_: Stop) -> list[SchemaState]:
        return await inspect_schemas(settings, SystemClock(), only=only, create=create)

    return run(console, work)


def _tell(console: Console, states: list[SchemaState], steps: list[str]) -> ExitCode | None:
    data: list[dict[str, Any]] = [
        {"name": s.name, "product": s.product, "state": s.state, "detail": s.detail} for s in states
    ]
    rows = [(s.name, s.product, s.state, s.detail) for s in states]
    console.result({"schemas": data}, table(rows, ("name", "product", "state", "detail")), next_steps=steps)
    if any(state.state == "unreachable" for state in states):
        return ExitCode.FAILED
    return None if all(state.state == "ready" for state in states) else ExitCode.PRECONDITION


for _one in (status, upgrade):
    schema.add_command(_one)
