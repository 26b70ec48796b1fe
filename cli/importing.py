"""datalayer import: domains from files."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.progress import ProgressBar
from datalayer.cli.running import Stop, holder, moving_bulk, run
from datalayer.importing import BadLine, BadLines, ImportReport, Progress, import_domain
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators.lease import held_lease

SHOWN_MAX: Final = 20


@group("import")
def import_() -> None:
    """Store records from a file."""


_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
_on_error = click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)


@command()
@_file
@_on_error
def messages(console: Console, file: Path, *, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    """Store the messages of FILE: one JSON object a line, plain or gzipped, or a Parquet row. Or an export of them.

    \b
    {"conversation": any, "id": any, "sender": any, "sent_at": seconds or ISO time, "body": text}

    Ids follow from the line, so a second import changes nothing. On a bad line `stop` imports nothing at all, `skip`
    leaves that line out; both name it.
    """  # noqa: D301 - click looks for the character itself
    return _import(console, "messages", file, on_error)


@command()
@_file
@_on_error
def users(console: Console, file: Path, *, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    """Store the users of FILE: one JSON object a line, plain or gzipped, or a Parquet row. Or an export of them.

    \b
    {"username": text, "email": text, "display_name": text, "id": any, "created_at": seconds or ISO time,
     "attributes": object, "region": text}

    Only the username is needed. Ids follow from the line, so a second import changes nothing. Names are compared
    without case and Unicode form. When a line is bad, or its name is another user's, `stop` imports nothing at all,
    `skip` leaves that line out - the first line of the file that has a name keeps it; both name it.
    """  # noqa: D301 - click looks for the character itself
    return _import(console, "users", file, on_error)


@command()
@_file
@_on_error
def conversations(console: Console, file: Path, *, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    """Store the conversations and members of FILE, which `datalayer export conversations` has made."""
    return _import(console, "conversations", file, on_error)


@command()
@_file
@_on_error
def media(console: Console, file: Path, *, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    """Store the items of FILE, which `datalayer export media` has made, with their bytes, which lie in FILE.objects."""
    return _import(console, "media", file, on_error)


def _import(console: Console, what: str, file: Path, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    console.way_on = [
        f"datalayer import {what} {shlex.quote(str(file))}{' --on-error skip' if on_error == 'skip' else ''}"
    ]
    bar = ProgressBar(console, "bytes")
    settings = console.settings()

    async def opened(stop: Stop) -> ImportReport:
        async with DataLayer.open(settings, options=LayerOptions(name="import")) as layer:
            return await import_domain(
                layer,
                what,
                file,
                lease=lambda: held_lease(layer.places.control, layer.clock, what, holder("import"), console.say),
                on_error=on_error,
                progress=lambda p: _show(console, bar, stop, p),
            )

    try:
        with moving_bulk():
            report = run(console, opened)
    except BadLines as error:
        bar.clear()
        console.way_on = []
        _name(console, file, error.bad, error.count)
        raise
    finally:
        bar.clear()
    _name(console, file, report.bad, report.bad_count)
    if report.differing_count:
        lines = ", ".join(str(number) for number in report.differing[:SHOWN_MAX])
        one = "item of media" if what == "media" else what.removesuffix("s")
        console.say(
            f"{report.differing_count} line(s) differ from the {one} stored with their id, which stays: {lines}"
        )
    if report.ignored_keys:
        console.say(f"these keys are not imported: {', '.join(report.ignored_keys)}")
    console.result(asdict(report), _text(report, what))
    return None if report.complete else ExitCode.FAILED


def _show(console: Console, bar: ProgressBar, stop: Stop, progress: Progress) -> None:
    what = "check" if progress.checking else "import"
    rate = progress.position_bytes / progress.seconds if progress.seconds > 0 else 0.0
    bar.draw(what, progress.position_bytes, progress.size_bytes, rate)
    if bar.event_due():
        told: dict[str, Any] = {**asdict(progress), "event": "progress"}
        console.event(told)
    stop.check()


def _name(console: Console, file: Path, bad: tuple[BadLine, ...], count: int) -> None:
    for line in bad[:SHOWN_MAX]:
        console.error(line.in_file(file))
    if count > SHOWN_MAX:
        console.error(f"and {count - SHOWN_MAX} more")


def _text(report: ImportReport, what: str) -> str:
    what = "items of media" if what == "media" else what
    return (
        f"{report.lines:,} lines: {report.distinct:,} distinct {what}, {report.new:,} new, "
        f"{report.already:,} already there, {report.repeated:,} repeated, {report.bad_count:,} bad "
        f"({report.seconds:.1f} s)\ndigest {report.digest}"
    )


for _one in (messages, users, conversations, media):
    import_.add_command(_one)
