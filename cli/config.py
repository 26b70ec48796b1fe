"""datalayer init, datalayer config show, datalayer config check."""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby
from os import environ
from pathlib import Path
from typing import Any

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode, exit_code
from datalayer.settings import (
    DEFAULT_FILE,
    SettingsError,
    describe,
    explain,
    write_default_toml,
)


@command()
def init(console: Console) -> None:
    """Write a commented, valid datalayer.toml (or the file of --config); an existing file is left alone."""
    path = console.config or Path(environ.get("DATALAYER_CONFIG") or DEFAULT_FILE)
    write_default_toml(path)
    console.result({"written": str(path)}, f"wrote {path}", next_steps=[f"edit {path}", "datalayer config check"])


@group()
def config() -> None:
    """Show or check the configuration."""


@command()
def show(console: Console) -> None:
    """Print the settings in force, passwords masked, each with its place."""
    settings = console.settings()
    rows = explain(settings)
    places = {".".join(key): place for key, _, place in rows}
    console.result({**describe(settings), "places": places}, _as_toml(settings.source, rows))


@command()
def check(console: Console) -> ExitCode | None:
    """Read the configuration and list every mistake by file, line, key, reason and way out."""
    try:
        settings = console.settings()
    except SettingsError as error:
        for fault in error.faults:
            console.error(f"{fault} ({fault.way_out})" if fault.way_out else str(fault))
        faults = [dataclasses.asdict(fault) for fault in error.faults]
        console.result({"valid": False, "faults": faults})
        return exit_code(error)
    text = f"{settings.source} is valid: {', '.join(settings.backends)}; control store {settings.control}"
    console.result({"valid": True, "source": settings.source, "faults": []}, text)
    return None


def _as_toml(source: str, rows: list[tuple[tuple[str, ...], Any, str]]) -> str:
    """The rows as a TOML document with places as comments."""
    lines = [f"# from {source}"]
    for table, members in groupby(rows, key=lambda row: row[0][:-1]):
        lines += ["", f"[{'.'.join(table)}]"]
        for key, value, place in members:
            lines.append(f"{f'{key[-1]} = {json.dumps(value, ensure_ascii=False)}':<60}  # {place}")
    return "\n".join(lines)


config.add_command(show)
config.add_command(check)
