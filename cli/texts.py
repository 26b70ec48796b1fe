"""How the commands put results into text for people; --json has the same as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Rows in aligned columns under a head."""
    cells = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(f"{value:<{width}}" for value, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def status_text(status: Mapping[str, Any]) -> str:
    """A migration's status."""
    phase = f"phase {status['phase']}{' (paused)' if status['paused'] else ''}"
    lines = [
        f"{status['id']}: {status['domain']} {status['source']} -> {status['target']}, {phase}",
        f"  copied       {status['rows_copied']:,} rows, {status['ranges']['done']} of {status['ranges']['all']} ranges",
        f"  verification {verdict_text(status['verification'])}",
    ]
    if status["phase"] not in {"complete", "cancelled"}:
        lines.append(f"  backlog      {'unknown' if status['backlog'] is None else status['backlog']}")
    if status["holds_ms"]:
        lines.append(f"  holds        {', '.join(f'{ms:.1f}' for ms in status['holds_ms'])} ms")
    if status["quarantined_count"]:
        first = status["quarantined"][0]
        lines.append(
            f"  quarantined  {status['quarantined_count']}, first {first['kind']} {first['key']}: {first['reason']}"
        )
    if status["foreign_writers"]:
        lines.append(f"  also written by {', '.join(status['foreign_writers'])}")
    lines += [f"  waits for    {process}" for process in status["behind"]]
    if status["coordinator"]:
        lines.append(f"  coordinator  {status['coordinator']}")
    if status["reverse_days"] is not None:
        lines.append(f"  reverse      on for {status['reverse_days']} days; complete ends it")
    return "\n".join(lines)


def verdict_text(verdict: Mapping[str, Any] | None) -> str:
    """One verification's result."""
    if verdict is None:
        return "none yet"
    if verdict["clean"]:
        return f"{verdict['authority_records']:,} records equal ({verdict['mode']}, {verdict['seconds']:.1f} s)"
    return f"{len(verdict['differences'])} differ, {len(verdict['undecided'])} undecided ({verdict['mode']})"


def difference_lines(verdict: Mapping[str, Any], most: int = 20) -> list[str]:
    """The first differences, one a line."""
    lines = [f"{item['what']:<8} {item['kind']} {item['key']}" for item in verdict["differences"][:most]]
    return lines + [f"undecided {item}" for item in verdict["undecided"][: most - len(lines)]]
