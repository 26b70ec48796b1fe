"""What every command shares: --config and --json, results on stdout, talk on stderr.

A command is declared with `command` (or `group`) from here and takes the `Console` as its first argument:

    @command()
    @click.argument("domain")
    def migrate(console: Console, domain: str) -> ExitCode | None: ...

It returns None (done) or an ExitCode; errors of the library are raised and mapped to a code in one place.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from datalayer.cli.exits import ExitCode
from datalayer.settings import Settings, load_settings

P = ParamSpec("P")


@dataclass(slots=True)
class Console:
    """Where a command gets its settings and says its results."""

    config: Path | None = None
    as_json: bool = False
    way_on: list[str] = field(default_factory=list)
    """The commands to name when this one ends with an error: how to go on."""

    def settings(self) -> Settings:
        """The settings in force for this command."""
        return load_settings(self.config)

    def result(self, data: Mapping[str, Any], text: str = "", *, next_steps: Sequence[str] = ()) -> None:
        """The command's one result: an object with next_steps under --json, else ``text``, on stdout."""
        steps = self.steps(next_steps)
        if self.as_json:
            self.event({**data, "next_steps": steps})
            return
        if text:
            click.echo(text)
        for step in steps:
            self.say(f"next: {step}")

    def steps(self, commands: Sequence[str]) -> list[str]:
        """The commands as they must be typed after this one: with its --config."""
        suffix = "" if self.config is None else f" --config {shlex.quote(str(self.config))}"
        return [f"{step}{suffix}" if step.startswith("datalayer ") else step for step in commands]

    def event(self, data: Mapping[str, Any]) -> None:
        """One line of JSON on stdout, for a command that watches; nothing without --json."""
        if self.as_json:
            click.echo(json.dumps(data, default=str))

    def say(self, text: str) -> None:
        """Talk, on stderr."""
        click.echo(text, err=True)

    def error(self, text: str) -> None:
        """One sentence on stderr, marked where colours are wanted."""
        mark = click.style("datalayer:", fg="red", bold=True) if self.colour else "datalayer:"
        click.echo(f"{mark} {text}", err=True, color=self.colour)

    @property
    def colour(self) -> bool:
        """Whether stderr is a terminal and NO_COLOR is not set."""
        return self.terminal and not os.environ.get("NO_COLOR")

    @property
    def terminal(self) -> bool:
        """Whether a person watches stderr: progress bars are drawn, questions asked."""
        return sys.stderr.isatty()

    @property
    def asks(self) -> bool:
        """Whether a person can be asked."""
        return self.terminal and sys.stdin.isatty()

    def confirmed(self, question: str, *, word: str | None = None) -> bool:
        """Ask on the terminal: yes or no, or for ``word`` to be typed; False where nobody can answer."""
        if not self.asks:
            return False
        if word is None:
            return click.confirm(question, err=True)
        typed = click.prompt(f"{question} Type {word} to go on", default="", show_default=False, err=True)
        return str(typed).strip() == word


def console_of(context: click.Context) -> Console:
    """The console of a run, one for the command and its groups."""
    return context.ensure_object(Console)


def _take_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        console_of(context).config = value


def _take_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
    if value:
        console_of(context).as_json = True


def shared_options() -> list[click.Parameter]:
    """--config and --json, which every command and group takes."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            expose_value=False,
            callback=_take_config,
            help="Configuration file (default: $DATALAYER_CONFIG, else ./datalayer.toml).",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_take_json,
            help="One JSON object on stdout.",
        ),
    ]


def command(
    name: str | None = None, **attributes: Any
) -> Callable[[Callable[Concatenate[Console, P], ExitCode | None]], click.Command]:
    """Declare a command whose function takes the console first."""

    def declare(function: Callable[Concatenate[Console, P], ExitCode | None]) -> click.Command:
        def with_console(*args: P.args, **kwargs: P.kwargs) -> ExitCode | None:
            return function(console_of(click.get_current_context()), *args, **kwargs)

        declared = click.command(name, cls=click.Command, **attributes)(update_wrapper(with_console, function))
        declared.params.extend(shared_options())
        return declared

    return declare


def group(name: str | None = None, **attributes: Any) -> Callable[[Callable[[], None]], click.Group]:
    """Declare a group of commands; add one with ``the_group.add_command``."""

    def declare(function: Callable[[], None]) -> click.Group:
        declared = click.group(name, cls=click.Group, **attributes)(function)
        declared.params.extend(shared_options())
        return declared

    return declare
