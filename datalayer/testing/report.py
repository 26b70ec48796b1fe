"""The report of a run: a summary for the terminal, and one HTML file that needs nothing but a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Final

from datalayer.testing.charts import Band, Frame, Line, Series, chart
from datalayer.testing.oracle import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.testing.oracle import Findings
    from datalayer.testing.timeline import Bucket, Timeline

VIOLATIONS_SHOWN: Final = 50


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report tells. ``holds``: flip, direction and ms of each; ``facts``: lines about the set-up."""

    title: str
    findings: Findings
    timeline: Timeline
    holds: Sequence[Mapping[str, Any]] = ()
    kills: int = 0
    rows_copied: int = 0
    seconds: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    """What went wrong apart from the oracle's findings: a command that failed, a process that died by itself."""

    @property
    def passed(self) -> bool:
        """Whether nothing at all went wrong."""
        return self.findings.clean and not self.failures

    def result(self) -> dict[str, Any]:
        """As plain values, for --json."""
        findings = self.findings
        counts = {kind: findings.count(kind) for kind in KINDS if kind != "error"}
        return {
            "operations": findings.operations,
            **counts,
            "errors": sum(findings.errors.values()),
            "errors_by_class": dict(findings.errors),
            "errors_not_retryable": findings.count("error"),
            "unknown_outcomes": findings.unknown,
            "unread": findings.unread,
            "kills": self.kills,
            "holds_ms": [hold["ms"] for hold in self.holds],
            "rows_copied": self.rows_copied,
            "seconds": round(self.seconds, 1),
            "failures": list(self.failures),
            "passed": self.passed,
        }


def summary(run: Run) -> str:
    """Some twenty lines for a terminal."""
    findings = run.findings
    counts = "   ".join(f"{kind} {findings.count(kind)}" for kind in KINDS if kind != "error")
    errors = ", ".join(f"{name} {count}" for name, count in sorted(findings.errors.items())) or "none"
    holds = ", ".join(f"{hold['ms']:.1f} ms {hold['direction']}" for hold in run.holds) or "none"
    lines = [
        "",
        f"{counts}",
        (
            f"operations {findings.operations:,} on {findings.keys:,} messages"
            f" ({findings.acknowledged:,} writes acknowledged, {findings.answered:,} reads answered,"
            f" {findings.unknown} of unknown outcome)"
        ),
        f"errors     {errors}",
        f"holds      {holds}",
        f"kills      {run.kills}     rows copied {run.rows_copied:,}     {run.seconds:.0f} s",
        "",
        (
            f"{'phase':<12}{'seconds':>8}  {'writes':>8}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>9}"
            f"  {'reads':>8}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>9}"
        ),
    ]
    lines += [_phase_line(row) for row in phase_rows(run.timeline)]
    lines += ["", *(f"failed: {text}" for text in run.failures)]
    lines += [str(violation) for violation in findings.violations[:10]]
    if len(findings.violations) > 10:
        lines.append(f"... and {len(findings.violations) - 10} more")
    return "\n".join(lines).rstrip()


def phase_rows(timeline: Timeline) -> list[tuple[Any, ...]]:
    """(phase, seconds, calls p50 p99 max of writes, the same of reads) for each stretch of time."""
    empty = (0, 0.0, 0.0, 0.0)
    writes = {stretch: tuple(spread) for stretch, spread in timeline.by_stretch(writes=True)}
    reads = {stretch: tuple(spread) for stretch, spread in timeline.by_stretch(writes=False)}
    return [
        (
            stretch.phase,
            (stretch.ended_ns - stretch.began_ns) / 1e9,
            *writes.get(stretch, empty),
            *reads.get(stretch, empty),
        )
        for stretch in timeline.stretches()
    ]


def _phase_line(row: tuple[Any, ...]) -> str:
    phase, seconds, wn, w50, w99, wmax, rn, r50, r99, rmax = row
    return (
        f"{phase:<12}{seconds:>8.2f}  {wn:>8,}{w50:>8.2f}{w99:>8.1f}{wmax:>9.1f}"
        f"  {rn:>8,}{r50:>8.2f}{r99:>8.1f}{rmax:>9.1f}"
    )


# --- the page -------------------------------------------------------------------------------------------------------


def page(run: Run) -> str:
    """The report as one HTML document."""
    verdict = "passed" if run.passed else "violations found" if run.findings.violations else "failed"
    body = [
        f"<h1>{escape(run.title)} <span class='{'good' if run.passed else 'bad'}'>{verdict}</span></h1>",
        _cards(run),
        *(f"<figure>{svg}</figure>" for svg in _charts(run)),
        (
            "<p class='note'>Shaded: phases of the migration. Red lines: a process killed with SIGKILL. Blue lines: "
            "a hold. Hover for details.</p>"
        ),
        _phases(run),
        _holds(run),
        _violations(run),
        _facts(run),
    ]
    head = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(run.title)}</title><style>{_CSS}</style>"
    )
    return head + "<main>" + "\n".join(body) + "</main></html>\n"


def _cards(run: Run) -> str:
    findings = run.findings
    good = {kind: findings.count(kind) == 0 for kind in KINDS}
    cards = [(kind, f"{findings.count(kind)}", "good" if good[kind] else "bad") for kind in KINDS[:3]]
    worst = max((hold["ms"] for hold in run.holds), default=0.0)
    cards += [
        ("operations", f"{findings.operations:,}", ""),
        ("errors", f"{sum(findings.errors.values()):,}", "good" if good["error"] else "bad"),
        ("kills", f"{run.kills}", ""),
        ("longest hold", f"{worst:.1f} ms", ""),
        ("rows copied", f"{run.rows_copied:,}", ""),
        ("seconds", f"{run.seconds:.0f}", ""),
    ]
    return (
        "<div class='cards'>"
        + "".join(f"<div><b class='{style}'>{value}</b><span>{name}</span></div>" for name, value, style in cards)
        + "</div>"
    )


def _charts(run: Run) -> list[str]:
    timeline = run.timeline
    bands = [
        Band(timeline.seconds(stretch.began_ns), timeline.seconds(stretch.ended_ns), stretch.phase)
        for stretch in timeline.stretches()
    ]
    lines = [Line(timeline.seconds(mark.at_ns), mark.kind, mark.text) for mark in timeline.marks]
    frame = Frame(timeline.seconds(timeline.ended_ns), bands, lines)
    writes, reads = timeline.buckets(writes=True), timeline.buckets(writes=False)
    samples = [(timeline.seconds(sample.at_ns), sample) for sample in timeline.samples]
    copied = [(at, float(sample.rows_copied)) for at, sample in samples]
    backlog = [(at, float(sample.backlog)) for at, sample in samples if sample.backlog is not None]
    return [
        chart("Latency of writes", "ms, log", _latency(writes), frame, log=True),
        chart("Latency of reads", "ms, log", _latency(reads), frame, log=True),
        chart("Answered calls", "per second", [_rate("writes", writes, "a"), _rate("reads", reads, "b")], frame),
        chart("Rows copied by the backfill", "rows", [Series("rows copied", copied, "a")], frame),
        chart("Backlog of the journal", "keys", [Series("dirty keys", backlog, "b")], frame),
    ]


def _latency(buckets: Sequence[Bucket]) -> list[Series]:
    return [
        Series("p50", [(bucket.at_s, bucket.spread.p50_ms) for bucket in buckets], "a"),
        Series("p99", [(bucket.at_s, bucket.spread.p99_ms) for bucket in buckets], "b"),
    ]


def _rate(name: str, buckets: Sequence[Bucket], style: str) -> Series:
    width = buckets[1].at_s - buckets[0].at_s if len(buckets) > 1 else 1.0
    return Series(name, [(bucket.at_s, bucket.spread.calls / width) for bucket in buckets], style)


def _phases(run: Run) -> str:
    rows = []
    for phase, seconds, wn, w50, w99, wmax, rn, r50, r99, rmax in phase_rows(run.timeline):
        figures = [f"{seconds:.2f}", f"{wn:,}", f"{w50:.2f}", f"{w99:.1f}", f"{wmax:.1f}"]
        figures += [f"{rn:,}", f"{r50:.2f}", f"{r99:.1f}", f"{rmax:.1f}"]
        rows.append([phase, *figures])
    head = ["phase", "seconds", "writes", "p50 ms", "p99 ms", "max ms", "reads", "p50 ms", "p99 ms", "max ms"]
    return "<h2>By phase</h2>" + _table(head, rows)


def _holds(run: Run) -> str:
    rows = [[str(hold["flip"]), str(hold["direction"]), f"{hold['ms']:.2f}"] for hold in run.holds]
    if not rows:
        return ""
    return "<h2>Holds</h2>" + _table(["flip", "direction", "ms from fence to publication"], rows)


def _violations(run: Run) -> str:
    rows = [[v.kind, v.key.hex(), v.detail, f"{run.timeline.seconds(v.at_ns):.3f}"] for v in run.findings.violations]
    parts = [f"<p class='bad'>{escape(text)}</p>" for text in run.failures]
    if rows:
        parts.append(_table(["kind", "key", "what", "at s"], rows[:VIOLATIONS_SHOWN]))
        if len(rows) > VIOLATIONS_SHOWN:
            parts.append(f"<p>... and {len(rows) - VIOLATIONS_SHOWN} more</p>")
    return "<h2>Violations</h2>" + ("".join(parts) or "<p class='good'>none</p>")


def _facts(run: Run) -> str:
    errors = [[name, str(count)] for name, count in sorted(run.findings.errors.items())]
    parts = [
        "<h2>Errors that callers saw, by class</h2>",
        _table(["class", "calls"], errors) if errors else "<p>none</p>",
    ]
    rows = [[name, text] for name, text in run.facts.items()]
    if rows:
        parts += ["<h2>Set-up</h2>", _table(["", ""], rows)]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return "<table>" + cells("th", head) + "".join(cells("td", row) for row in rows) + "</table>"


_CSS: Final = """
:root{color-scheme:light dark;--fg:#1c2430;--soft:#5d6875;--bg:#fff;--card:#f4f6f8;--grid:#dfe4ea;--band0:#eef2f7;
--band1:#f9fafc;--a:#1769aa;--b:#d9731a;--good:#19783a;--bad:#b3261e;--hold:#3b5bdb}
@media(prefers-color-scheme:dark){:root{--fg:#e4e8ee;--soft:#97a3b1;--bg:#14181d;--card:#1e242b;--grid:#313a44;
--band0:#1d242c;--band1:#181d23;--a:#6cb6f5;--b:#f3a25a;--good:#65cf8a;--bad:#ff8a80;--hold:#91a7ff}}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}.good{color:var(--good)}.bad{color:var(--bad)}
.note,.cards span{color:var(--soft)}figure{margin:1rem 0}svg{width:100%;height:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(96px,1fr));gap:.6rem}
.cards div{background:var(--card);border-radius:8px;padding:.6rem .7rem}.cards b{display:block;font-size:1.25rem}
.cards span{font-size:.8rem}table{border-collapse:collapse;width:100%;font-size:.85rem;display:block;overflow-x:auto}
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--grid);font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
text{fill:var(--fg);font:12px system-ui,sans-serif}.title{font-weight:600;font-size:13px}
.tick,.phase,.unit{fill:var(--soft);font-size:11px;font-weight:400}.grid{stroke:var(--grid);stroke-width:1}
.band-0{fill:var(--band0)}.band-1{fill:var(--band1)}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.a{stroke:var(--a)}.b{stroke:var(--b)}.mark{stroke-width:1.4;stroke-dasharray:4 3;stroke:var(--soft)}
.mark.kill{stroke:var(--bad)}.mark.hold{stroke:var(--hold)}
"""
