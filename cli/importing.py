"""datalayer import: messages from a file."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.progress import ProgressBar
from datalayer.cli.running import Stop, run
from datalayer.importing import BadLine, BadLines, ImportReport, Progress, import_messages
from datalayer.layer import DataLayer, LayerOptions

SHOWN_MAX: Final = 20


@group("import")
def import_() -> None:
    """Store records from a file."""


@command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
def messages(console: Console, file: Path, *, on_error: Literal["stop", "skip"]) -> ExitCode | None:
    """Store the messages of FILE: one JSON object a line, plain or gzipped.

    \b
    {"conversation": any, "id": any, "sender": any, "sent_at": seconds or ISO time, "body": text}

    Ids follow from the line, so a second import changes nothing. On a bad line `stop` imports nothing at all, `skip`
    leaves that line out; both name it.
    """  # noqa: D301 - click looks for the character itself
    console.way_on = [
        f"datalayer import messages {shlex.quote(str(file))}{' --on-error skip' if on_error == 'skip' else ''}"
    ]
    bar = ProgressBar(console, "bytes")
    settings = console.settings()

    async def work(stop: Stop) -> ImportReport:
        async with DataLayer.open(settings, options=LayerOptions(name="import")) as layer:
            return await import_messages(
                layer, file, on_error=on_error, progress=lambda p: _show(console, bar, stop, p)
            )

    try:
        report = run(console, work)
    except BadLines as error:
        bar.clear()
        console.way_on = []
        _name(console, error.bad, error.count)
        raise
    finally:
        bar.clear()
    _name(console, report.bad, report.bad_count)
    if report.differing_count:
        lines = ", ".join(str(number) for number in report.differing[:SHOWN_MAX])
        console.say(
            f"{report.differing_count} line(s) differ from the message stored with their id, which stays: {lines}"
        )
    if report.ignored_keys:
        console.say(f"these keys are not imported: {', '.join(report.ignored_keys)}")
    console.result(asdict(report), _text(report))
    return None if report.complete else ExitCode.FAILED


def _show(console: Console, bar: ProgressBar, stop: Stop, progress: Progress) -> None:
    what = "check" if progress.checking else "import"
    rate = progress.position_bytes / progress.seconds if progress.seconds > 0 else 0.0
    bar.draw(what, progress.position_bytes, progress.size_bytes, rate)
    if bar.event_due():
        told: dict[str, Any] = {**asdict(progress), "event": "progress"}
        console.event(told)
    stop.check()


def _name(console: Console, bad: tuple[BadLine, ...], count: int) -> None:
    for line in bad[:SHOWN_MAX]:
        console.error(str(line))
    if count > SHOWN_MAX:
        console.error(f"and {count - SHOWN_MAX} more")


def _text(report: ImportReport) -> str:
    return (
        f"{report.lines:,} lines: {report.distinct:,} distinct messages, {report.new:,} new, "
        f"{report.already:,} already there, {report.repeated:,} repeated, {report.bad_count:,} bad "
        f"({report.seconds:.1f} s)\ndigest {report.digest}"
    )


import_.add_command(messages)
