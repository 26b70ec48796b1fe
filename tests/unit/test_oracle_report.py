"""The report tells what was found, needs nothing from outside, and escapes what it is given."""

import re
from html.parser import HTMLParser

from datalayer.testing.oracle import Findings, Violation
from datalayer.testing.probe import Sample
from datalayer.testing.report import Run, page, summary
from datalayer.testing.timeline import Call, Mark, Timeline, spread_of

SECOND = 1_000_000_000


def timeline() -> Timeline:
    calls = [Call(n * SECOND // 10, n * SECOND // 10 + 2_000_000, n % 2 == 0) for n in range(100)]
    samples = [
        Sample(n * SECOND // 4, "source" if n < 10 else "dual" if n < 30 else "target", n // 10, n * 100, n % 7)
        for n in range(40)
    ]
    marks = [Mark(3 * SECOND, "kill", "the <migrator>"), Mark(5 * SECOND, "hold", "hold 12.0 ms, forward")]
    return Timeline(0, 10 * SECOND, calls, samples, marks)


def run(*violations: Violation, failures: tuple[str, ...] = ()) -> Run:
    findings = Findings(violations, 3, 50, 50, 2, {"Unavailable": 4})
    holds = [{"flip": 1, "direction": "forward", "ms": 12.34, "at_us": 1}]
    return Run("A run", findings, timeline(), holds, kills=2, rows_copied=900, seconds=10, failures=failures)


LOST = Violation("lost", bytes(32), "<b>gone</b>", SECOND)


class Balanced(HTMLParser):
    void = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained() -> None:
    text = page(run(LOST))
    parser = Balanced()
    parser.feed(re.sub(r"<(line|rect|polyline)([^>]*)/>", "", text))
    assert parser.open == []
    assert {"svg", "table", "style"} <= parser.seen
    assert re.findall(r"""(?:src|href)=|url\(|https?://|<script|@import""", text) == []
    assert "prefers-color-scheme:dark" in text


def test_the_page_escapes_what_it_is_given() -> None:
    text = page(run(LOST))
    assert "<b>gone</b>" not in text
    assert "&lt;b&gt;gone&lt;/b&gt;" in text
    assert "the &lt;migrator&gt;" in text


def test_the_page_plots_latency_rows_backlog_holds_and_kills() -> None:
    text = page(run())
    for title in ("Latency of writes", "Latency of reads", "Answered calls", "Rows copied", "Backlog"):
        assert title in text
    assert text.count('class="mark kill"') == 5
    assert text.count('class="mark hold"') == 5
    assert all(f">{phase}<" in text for phase in ("source", "dual", "target"))


def test_the_summary_and_the_result_agree() -> None:
    told = summary(run(LOST))
    assert "lost 1   ghost 0   stale 0" in told
    result = run(LOST).result()
    assert {"operations", "lost", "ghost", "stale", "errors", "kills", "holds_ms", "rows_copied", "seconds"} <= set(
        result
    )
    assert (result["lost"], result["errors"], result["holds_ms"], result["passed"]) == (1, 4, [12.34], False)


def test_a_run_passes_only_without_violations_and_without_failures() -> None:
    assert run().passed
    assert not run(LOST).passed
    assert not run(failures=("a command failed",)).passed
    assert "a command failed" in page(run(failures=("a command failed",)))


def test_latencies_are_told_by_phase() -> None:
    rows = timeline().by_stretch(writes=True)
    assert [stretch.phase for stretch, _ in rows] == ["source", "dual", "target"]
    assert sum(spread.calls for _, spread in rows) == 50
    assert {spread.p50_ms for _, spread in rows} == {2.0}


def test_percentiles_are_ranks() -> None:
    spread = spread_of([n * 1_000_000 for n in range(1, 101)])
    assert (spread.calls, spread.p50_ms, spread.p99_ms, spread.max_ms) == (100, 51.0, 100.0, 100.0)
    assert spread_of([]).calls == 0


def test_a_run_that_saw_nothing_still_has_a_page() -> None:
    empty = Run("Nothing", Findings((), 0, 0, 0, 0), Timeline(0, SECOND))
    assert "Nothing" in page(empty)
    assert "operations 0" in summary(empty)
