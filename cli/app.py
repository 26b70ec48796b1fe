"""The command group. To add a command: write it in a module of its own and register it in COMMANDS."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

import click

from datalayer._settings.faults import choice
from datalayer.cli.console import Console, console_of, shared_options
from datalayer.cli.exits import ExitCode, exit_code
from datalayer.errors import DatalayerError, Unavailable

DISTRIBUTION: Final = "datalayer-online"
SILENT: Final = "start what does not answer, or mend its URL: datalayer doctor tries each backend"


class Entry(NamedTuple):
    """Where a command lives, and the line that `datalayer --help` shows, so that help imports none of them."""

    target: str
    summary: str


# Every top-level command, in the order of the help: name -> module:attribute, summary.
COMMANDS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "demo": Entry("datalayer.cli.demo:demo", "Move messages under a live workload, and prove nothing was lost."),
        "init": Entry("datalayer.cli.config:init", "Write a commented, valid datalayer.toml."),
        "config": Entry("datalayer.cli.config:config", "Show or check the configuration."),
        "import": Entry("datalayer.cli.importing:import_", "Store a domain from a file."),
        "plan": Entry("datalayer.cli.growth:plan", "List the steps to another size, changing nothing."),
        "grow": Entry("datalayer.cli.growth:grow", "Take the steps to another size, one after the other."),
        "export": Entry("datalayer.cli.exporting:export", "Write a domain to a file."),
        "migrate": Entry("datalayer.cli.migrate:migrate", "Move a domain to another backend, online."),
        "migrations": Entry("datalayer.cli.migrations:migrations", "Watch and steer migrations."),
        "shards": Entry("datalayer.cli.shards:shards", "See what lies on which shard, and move slots between them."),
        "users": Entry("datalayer.cli.users:users", "Move users between regions, and check where they lie."),
        "messages": Entry("datalayer.cli.messages:messages", "Look at the partitions of messages, or detach old ones."),
        "search": Entry("datalayer.cli.search:search", "Build the search index anew."),
        "routes": Entry("datalayer.cli.routes:routes", "Show which backend serves each domain."),
        "schema": Entry("datalayer.cli.schema:schema", "Look at schemas, or bring them up to date."),
        "doctor": Entry("datalayer.cli.doctor:doctor", "Check packages, control store, backends and routes."),
    }
)


class App(click.Group):
    """A group that imports a command when it is run, and maps every end of a command to an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command), entry.target
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}; {choice(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]  # one behaviour, not click's two modes
        words = list(sys.argv[1:] if args is None else args)
        # Looked for before parsing, so that a mistake in the options is told as JSON, too.
        console = Console(as_json="--json" in words)
        extra |= {"standalone_mode": False, "obj": console}
        sys.exit(self._run(console, words, prog_name or "datalayer", extra))

    def _run(self, console: Console, words: list[str], prog_name: str, extra: dict[str, Any]) -> int:
        try:
            return int(super().main(words, prog_name, **extra) or ExitCode.DONE)
        except click.UsageError as error:
            code = self._usage(console, error)
        except click.ClickException as error:
            code = _failed(console, ExitCode.FAILED, error.format_message(), kind=type(error).__name__)
        except DatalayerError as error:
            if error.hint is None and Unavailable in {type(error), type(error.__cause__)}:
                error.hint = SILENT
            code = _failed(console, exit_code(error), str(error), kind=type(error).__name__, error=error)
        except (KeyboardInterrupt, click.Abort):
            code = _failed(console, ExitCode.INTERRUPTED, "interrupted", kind="Interrupted")
        except BrokenPipeError:
            # The reader of stdout has left: nothing more can be said, and the flush at exit must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.FAILED
        except Exception as error:  # noqa: BLE001 - the last resort: one sentence without the text of a driver's error
            code = _unexpected(console, error)
        return code

    def _usage(self, console: Console, error: click.UsageError) -> int:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            console.say(error.format_message())
            return ExitCode.USAGE
        path = error.ctx.command_path if error.ctx else "datalayer"
        message = f"{error.format_message()} ({path} --help)"
        return _failed(console, ExitCode.USAGE, message, kind="UsageError")


def _failed(console: Console, code: ExitCode, message: str, *, kind: str, error: DatalayerError | None = None) -> int:
    console.error(message)
    told: dict[str, Any] = {"type": kind, "message": message}
    if error is not None:
        told = {"type": kind, "message": error.message, "hint": error.hint, "retryable": error.retryable}
        told["outcome"] = str(error.outcome)
    # The same command again helps where work was begun, not where a precondition or an argument refused it.
    way_on = [] if code in (ExitCode.USAGE, ExitCode.PRECONDITION) else console.steps(console.way_on)
    console.event({"error": told, "exit": int(code), "next_steps": way_on})
    if not console.as_json:
        for step in way_on:
            console.say(f"next: {step}")
    return code


def _unexpected(console: Console, error: Exception) -> int:
    """A mistake of ours. Its text may hold anything, so it is shown on request only."""
    if os.environ.get("DATALAYER_TRACEBACK"):
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = (
        f"unexpected {type(error).__name__} at {last.filename}:{last.lineno}: this is a bug of datalayer "
        "(DATALAYER_TRACEBACK=1 shows all of it)"
    )
    return _failed(console, ExitCode.FAILED, message, kind=type(error).__name__)


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
    if not value or context.resilient_parsing:
        return
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown (run from a checkout that is not installed)"
    console_of(context).result({"version": version}, f"datalayer {version}")
    context.exit()


app = App(
    "datalayer",
    help="Keep data in stores that fit its size, and move it online.",
    no_args_is_help=True,
    params=[
        *shared_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="The version, and nothing else.",
        ),
    ],
)
