"""datalayer export: domains into files."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from datalayer.cli.console import Console, command
from datalayer.cli.progress import ProgressBar
from datalayer.cli.running import Stop, moving_bulk, run
from datalayer.exporting import SHAPES, ExportProgress, ExportReport, export_domain
from datalayer.exporting.objects import ENDING
from datalayer.layer import DataLayer, LayerOptions


@command()
@click.argument("domain", type=click.Choice(list(SHAPES)))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--include-deleted", is_flag=True, help="Also what was deleted, as tombstones.")
@click.option("--overwrite", is_flag=True, help="Replace FILE, when the export is whole.")
def export(console: Console, domain: str, file: Path, *, include_deleted: bool, overwrite: bool) -> None:
    """Write what is stored of DOMAIN to FILE: .jsonl, .jsonl.gz or .parquet, by its ending.

    FILE appears when it is whole; the bytes of media lie in FILE.objects. Each record is as it was at some moment of the export. `datalayer import DOMAIN FILE`
    stores exactly these records elsewhere.
    """
    flags = " --include-deleted" * include_deleted + " --overwrite" * overwrite
    console.way_on = [f"datalayer export {domain} {shlex.quote(str(file))}{flags}"]
    bar = ProgressBar(console, "records")
    settings = console.settings()

    async def opened(stop: Stop) -> ExportReport:
        options = LayerOptions(name="export", assist=False, project=False)
        async with DataLayer.open(settings, options=options) as layer:
            return await export_domain(
                layer,
                domain,
                file,
                include_deleted=include_deleted,
                overwrite=overwrite,
                progress=lambda progress: _show(console, bar, stop, progress),
            )

    try:
        with moving_bulk():
            report = run(console, opened)
    finally:
        bar.clear()
    console.result(asdict(report), _text(report))


def _show(console: Console, bar: ProgressBar, stop: Stop, progress: ExportProgress) -> None:
    rate = progress.records / progress.seconds if progress.seconds > 0 else 0.0
    bar.draw("export", progress.records, max(progress.estimate, progress.records), rate)
    if bar.event_due():
        told: dict[str, Any] = {**asdict(progress), "event": "progress"}
        console.event(told)
    stop.check()


def _text(report: ExportReport) -> str:
    deleted = f" ({report.deleted:,} of them deleted)" if report.deleted else ""
    media = ""
    if report.domain == "media":
        media = f", {report.objects:,} contents ({report.objects_bytes:,} bytes) in {report.path}{ENDING}"
    return (
        f"{report.records:,} records of {report.domain}{deleted} in {report.path}, {report.size_bytes:,} bytes{media} "
        f"({report.seconds:.1f} s)\ndigest {report.digest}"
    )
