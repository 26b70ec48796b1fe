"""``datalayer demo``: a live workload, an online migration under it, and a proof."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalayer.cli.console import Console, command
from datalayer.cli.exits import ExitCode

if TYPE_CHECKING:
    from datalayer.testing.report import Run

_SEED_BITS = 31


@command()
@click.option("--seconds", type=click.FloatRange(min=10), default=40.0, show_default=True, help="How long it plays.")
@click.option("--messages", type=click.IntRange(min=300), default=20_000, show_default=True, help="Preloaded messages.")
@click.option("--seed", type=int, default=None, help="Seed of every choice the processes make (default: random).")
@click.option(
    "--sabotage",
    type=click.Choice(["no-journal", "no-arming"]),
    default=None,
    help="Plant a mistake that the proof must find (then it ends with 1).",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("datalayer-demo.html"),
    show_default=True,
    help="The report, one self-contained HTML file.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="An empty folder to play in, kept afterwards (default: a temporary one).",
)
def demo(
    console: Console,
    *,
    seconds: float,
    messages: int,
    seed: int | None,
    sabotage: str | None,
    report: Path,
    directory: Path | None,
) -> ExitCode:
    """Move messages between two SQLite files while processes write, edit, delete and read; prove nothing was lost.

    Needs no server and no configuration. The migrator is killed half way and inside a hold, resumed; then over, back,
    over again, complete. Ends with 0 only when no acknowledged operation was lost, came back or was read stale.
    """
    from datalayer.cli.demo.play import Play  # noqa: PLC0415 - `datalayer --help` needs none of it
    from datalayer.cli.demo.stage import Stage  # noqa: PLC0415
    from datalayer.testing.report import page, summary  # noqa: PLC0415
    from datalayer.testing.sabotage import Sabotage  # noqa: PLC0415

    if not report.resolve().parent.is_dir():
        raise click.BadParameter(f"the folder {report.resolve().parent} does not exist", param_hint="--report")
    folder = directory or Path(tempfile.mkdtemp(prefix="datalayer-demo-"))
    stage = Stage(
        folder.resolve(),
        secrets.randbits(_SEED_BITS) if seed is None else seed,
        messages,
        console.say,
        None if sabotage is None else Sabotage(sabotage),
    )
    stage.prepare()

    async def perform() -> Run:
        try:
            return await Play(stage, seconds, console.say).perform()
        finally:
            await stage.close()

    run = asyncio.run(perform())
    report.write_text(page(run))
    if directory is None and (run.passed or sabotage is not None):
        shutil.rmtree(folder)
    else:
        console.say(f"kept: {folder}")
    text = f"{summary(run)}\n\nreport: {report.resolve()}"
    console.result({**run.result(), "report": str(report.resolve())}, text)
    return ExitCode.DONE if run.passed else ExitCode.FAILED
