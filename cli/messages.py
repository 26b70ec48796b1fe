"""datalayer messages: partitions by time, and detaching old ones."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.running import Stop, holder, run, with_places
from datalayer.cli.texts import table
from datalayer.clock import SystemClock
from datalayer.errors import InvalidArgument, PreconditionFailed
from datalayer.migrators.opening import open_places
from datalayer.migrators.partitions import Detached, detach, list_partitions

_FORMS: Final = ("%Y-%m", "%Y-%m-%d")


@group()
def messages() -> None:
    """Look at the partitions of messages, or detach old ones."""


@command("partitions")
def partitions_(console: Console) -> None:
    """List the partitions of messages, where they are served now."""
    found = with_places(console, list_partitions)
    rows = [[one.backend, one.name, _day(one.low_ms), _day(one.high_ms), f"{one.size:,}"] for one in found]
    text = table(rows, ("backend", "partition", "from", "to", "bytes")) if rows else "messages are not partitioned"
    for one in found:
        if one.stuck:
            text += (
                f"\n{one.name} on {one.backend} is too large to be split: its rows stay together, and no partitions are "
                "made there any more.\nA place that messages move to has all of them: datalayer migrate, or shards move"
            )
    console.result({"partitions": [asdict(one) for one in found]}, text)


@command("detach")
@click.option("--before", required=True, metavar="2025-01", help="A month or a day (2025-01-15), UTC.")
@click.option("--yes", is_flag=True, help="Detach without asking.")
def detach_(console: Console, before: str, *, yes: bool) -> None:
    """Take partitions out whose every message is older; they are kept as tables of their own.

    Their messages are gone for every reader: histories end earlier. Killed anywhere, the same command goes on.
    """
    before_ms = _instant(before)
    settings = console.settings()
    if not yes and not console.confirmed(f"Messages older than {before} will no longer be found."):
        raise PreconditionFailed("detach was not confirmed; nothing was changed", hint="add --yes")

    async def work(stop: Stop) -> list[Detached]:
        async with open_places(settings, SystemClock(), claim=False) as places:
            return await detach(places, before_ms, holder("messages detach"), stop)

    console.way_on = [f"datalayer messages detach --before {before} --yes"]
    gone = run(console, work)
    text = table([[one.backend, one.table] for one in gone], ("backend", "table")) if gone else "nothing is that old"
    console.result({"before": before, "detached": [asdict(one) for one in gone]}, text)


def _instant(text: str) -> int:
    for form in _FORMS:
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()) * 1000
        except ValueError:
            continue
    raise InvalidArgument(f"--before {text!r} is no month or day", hint="2025-01 or 2025-01-15")


def _day(ms: int | None) -> str:
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


for _one in (partitions_, detach_):
    messages.add_command(_one)
