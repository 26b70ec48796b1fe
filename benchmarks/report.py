"""A result as text for people."""

from collections.abc import Mapping
from typing import Any

Columns = tuple[str, ...]


def text(found: Mapping[str, Any]) -> str:
    """Every figure of one document, with the aims it has."""
    machine = found["machine"]
    head = f"{found['benchmark']}  {found['date']}  commit {found['commit']}  {machine['cpus']} cpus, load {machine['load_1min']}"
    parts = {
        "backfill": _backfill,
        "history": _history,
        "media": _calls,
        "memory": _memory,
        "presence": _calls,
        "repository": _repository,
        "search": _search,
        "sessions": _calls,
        "shards": _shards,
    }
    return "\n".join([head, *parts[found["benchmark"]](found)])


def table(rows: list[Columns]) -> list[str]:
    """Columns as wide as they must be; the first one left, the others right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(figure: Mapping[str, Any]) -> str:
    return f"{number(figure['median'])} ±{figure['spread_pct'] / 2:.0f}%"


def verdict(entry: Mapping[str, Any]) -> str:
    if "aim" not in entry:
        return ""
    return f"{entry['aim']} {'met' if entry['met'] else 'MISSED'}"


def _backfill(found: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, data in found["datasets"].items():
        lines += ["", f"{name}: {data['rows']:,} rows, {data['mib']} MiB, {data['partitions']:,} partitions"]
        rows: list[Columns] = [("rows/s", "whole process", "copying alone", "client CPU us/row", "rows equal")]
        for contender, told in data["contenders"].items():
            copying = told.get("copying_rows_per_s")
            equal = {True: "yes", False: "NO", None: "-"}[told["rows_equal_to_the_source"]]
            cpu = number(told["client_cpu_us_per_row"])
            rows.append((contender, spread(told["rows_per_s"]), spread(copying) if copying else "-", cpu, equal))
        lines += table(rows)
        rows = [("ratio of", "whole process", "copying alone", "aim")]
        for one in data["ratios"]:
            alone = spread(one["copying_alone"]) if "copying_alone" in one else "-"
            rows.append((f"{one['ours']} / {one['peer']}", spread(one["whole_process"]), alone, verdict(one)))
        lines += ["", *table(rows)]
    return lines


def _memory(found: Mapping[str, Any]) -> list[str]:
    rows: list[Columns] = [("backfill to", "rows", "base MiB", "peak MiB", "above base", "rows/s", "aim")]
    for one in found["runs"]:
        sizes = (one["base_mib"], one["peak_mib"], one["above_base_mib"])
        rows.append((one["target"], f"{one['rows']:,}", *map(number, sizes), number(one["rows_per_s"]), verdict(one)))
    return table(rows)


def _repository(found: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, store in found["stores"].items():
        rows: list[Columns] = [
            (name, "tasks", "phase", "beside", "us a call", "bare driver", "ratio", "CPU ratio", "aim")
        ]
        for one in store:
            ours, bare = spread(one["us_a_call"]), spread(one["bare_us_a_call"])
            figures = (ours, bare, spread(one["ratio"]), spread(one["cpu_ratio"]), verdict(one))
            rows.append((one["call"], str(one["tasks"]), one["phase"], one["bare"], *figures))
        lines += ["", *table(rows)]
    return lines


def _calls(found: Mapping[str, Any]) -> list[str]:
    rows: list[Columns] = [
        ("call", "tasks", "beside", "us a call", "bare", "ratio", "CPU us", "bare", "CPU ratio", "aim")
    ]
    for one in found["calls"]:
        times = (spread(one["us_a_call"]), spread(one["bare_us_a_call"]), spread(one["ratio"]))
        work = (spread(one["cpu_us_a_call"]), spread(one["bare_cpu_us_a_call"]), spread(one["cpu_ratio"]))
        rows.append((one["call"], str(one["tasks"]), one["bare"], *times, *work, verdict(one)))
    return ["", *table(rows)]


def _history(found: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, store in found["stores"].items():
        head = f"{name}, {found['messages']:,} messages (loaded at {number(store['load_rows_per_s'])}/s)"
        rows: list[Columns] = [(head, "p50 ms", "p99 ms", "beside", "p50 ms", "p99 ms", "ratio of p50", "aim")]
        for one in store["calls"]:
            ours, bare = (
                tuple(spread(one[f"{prefix}{what}"]) for what in ("p50_ms", "p99_ms")) for prefix in ("", "bare_")
            )
            rows.append((one["call"], *ours, one["bare"], *bare, spread(one["ratio"]), verdict(one)))
        lines += ["", *table(rows)]
    return lines


def _search(found: Mapping[str, Any]) -> list[str]:
    told = found["indexing"]
    rows: list[Columns] = [("documents/s into OpenSearch", "", "client CPU us/document")]
    for name, one in told["contenders"].items():
        rows.append((name, spread(one["documents_per_s"]), number(one["client_cpu_us_per_document"])))
    rows += [(f"{one['ours']} / {one['peer']}", spread(one["documents_per_s"]), verdict(one)) for one in told["ratios"]]
    times: list[Columns] = [(f"{found['messages']:,} messages", "", "p50 ms", "p99 ms")]
    times += [(one["backend"], one["what"], spread(one["p50_ms"]), spread(one["p99_ms"])) for one in found["latency"]]
    return [*table(rows), "", *table(times)]


def _shards(found: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{found['users']:,} users on {found['shards']} shards in {found['groups']} slot groups"]
    rows: list[Columns] = [("slot look-up", "us", "aim")]
    rows += [(f"of {one['groups']} groups", spread(one["us"]), verdict(one)) for one in found["look_ups"]]
    lines += table(rows)
    rows = [("through the shard layer", "tasks", "us a call", "beside", "us a call", "ratio", "CPU ratio", "aim")]
    for one in (*found["gets"], *found["writes"]):
        theirs = (one["bare"], spread(one["bare_us_a_call"]), spread(one["ratio"]), spread(one["cpu_ratio"]))
        rows.append((one["call"], str(one["tasks"]), spread(one["us_a_call"]), *theirs, verdict(one)))
    lines += ["", *table(rows)]
    for race in found["moves"]:
        lines += ["", *_moves(race)]
    return [*lines, "", *_traffic(found["traffic"])]


def _moves(race: Mapping[str, Any]) -> list[str]:
    head = f"{race['rows']:,} rows moved in {race['groups']} slot groups, rows/s"
    rows: list[Columns] = [(head, "whole process", "copying alone", "client CPU us/row", "holds ms")]
    for name, one in race["contenders"].items():
        copying = spread(one["copying_rows_per_s"]) if "copying_rows_per_s" in one else "-"
        cpu = number(one["client_cpu_us_per_row"])
        rows.append((name, spread(one["rows_per_s"]), copying, cpu, _holds(one)))
    lines = table(rows)
    if not race["pgcopydb"]:
        lines.append("pgcopydb is not to be had here")
    ratios: list[Columns] = [("ratio of", "whole process")]
    ratios += [(f"{one['ours']} / {one['peer']}", spread(one["ratio"])) for one in race["ratios"]]
    return [*lines, *table(ratios)]


def _traffic(found: Mapping[str, Any]) -> list[str]:
    head = f"{found['calls_per_s']:g} calls/s, {found['groups']} slot groups"
    calls = ("get", "update")
    rows: list[Columns] = [
        (
            head,
            *(f"{call} {what}" for call in calls for what in ("p50 ms", "p99 ms", "worst ms")),
            "errors",
            "holds ms",
            "took s",
        )
    ]
    for one in found["situations"]:
        felt = (
            text
            for call in calls
            for text in (spread(one[call]["p50_ms"]), spread(one[call]["p99_ms"]), number(one[call]["worst_ms"]))
        )
        took = spread(one["rebalance_s"]) if "rebalance_s" in one else "-"
        rows.append((one["situation"], *felt, str(one["errors"]), _holds(one), took))
    held = found["holds_ms"]
    return [*table(rows), f"holds: {_holds(found)}; longest {verdict(held)}"]


def _holds(one: Mapping[str, Any]) -> str:
    if "holds_ms" not in one:
        return "-"
    held = one["holds_ms"]
    return f"{held['count']}: median {number(held['median'])}, longest {number(held['maximum'])}"
