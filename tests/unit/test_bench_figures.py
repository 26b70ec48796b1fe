"""The arithmetic of the benchmarks, the shape of their documents, and that only peers import a driver."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document, plots, report
from benchmarks.backfill import COPY_PIPE, DRIVER, OURS_CASSANDRA, OURS_POSTGRES, Done, Race
from benchmarks.dataset import Dataset
from benchmarks.figures import Aim, Figure, ratio, rounded
from benchmarks.repository import Slice, _entry

DRIVERS = {"psycopg", "psycopg_pool", "cassandra", "sqlite3"}
DATA = Dataset("generated", 1000, 80, 0.8, Path("a.csv"), Path("b.csv"))


def race() -> Race:
    rounds = {
        OURS_CASSANDRA: [Done(1000, 2.0, 0.1, 1.0), Done(1000, 4.0, 0.1, 2.0), Done(1000, 2.0, 0.1, 1.0)],
        DRIVER: [Done(1000, 1.5, 0.1, 0.5, 0.1), Done(1000, 3.0, 0.1, 1.0, 0.1), Done(1000, 1.5, 0.1, 0.5, 0.1)],
        OURS_POSTGRES: [Done(1000, 5.0, 0.1, 1.0)] * 3,
        COPY_PIPE: [Done(1000, 1.0, 0.1)] * 2,
    }
    return Race(DATA, rounds, dict.fromkeys(rounds, True))


def documents() -> list[dict[str, Any]]:
    slices = [Slice(100.0, 50.0), Slice(110.0, 50.0)]
    bare = [Slice(100.0, 50.0), Slice(100.0, 50.0)]
    row = _entry(slices, bare) | {
        "call": "get",
        "tasks": 8,
        "phase": "rest",
        "bare": "psycopg",
        "aim": "x",
        "met": True,
    }
    run = {"target": "Postgres", "rows": 5, "base_mib": 1.0, "peak_mib": 2.0, "above_base_mib": 1.0, "rows_per_s": 9}
    bodies: dict[str, dict[str, Any]] = {
        "backfill": {"datasets": {"generated": race().document()}},
        "memory": {"runs": [run | {"aim": "<= 64", "met": True}]},
        "repository": {"stores": {"Postgres": [row]}},
    }
    return [document.document(name, body, document.machine()) for name, body in bodies.items()]


def test_median_and_spread() -> None:
    figure = Figure.of([4.0, 1.0, 2.0])
    assert figure.median == 2.0
    assert figure.spread_pct == 150.0
    assert figure.document() == {"median": 2.0, "min": 1.0, "max": 4.0, "spread_pct": 150.0, "rounds": [4.0, 1.0, 2.0]}


def test_ratio_is_taken_round_by_round() -> None:
    # A round in which the machine was three times slower changes both sides and no ratio.
    assert ratio([10.0, 30.0, 10.0], [20.0, 60.0, 20.0]).values == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], []), ([1.0, 2.0], [1.0]), ([], [])])
def test_ratio_needs_pairs(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="round"):
        ratio(ours, theirs)


def test_aims_look_the_right_way() -> None:
    assert Aim(0.7).met(0.7)
    assert not Aim(0.7).met(0.69)
    assert Aim(64.0, at_least=False).met(64.0)
    assert not Aim(64.0, at_least=False).met(65.0)
    assert (str(Aim(0.7)), str(Aim(1.15, at_least=False))) == (">= 0.7", "<= 1.15")


def test_figures_are_rounded_to_what_they_are_worth() -> None:
    assert [rounded(value) for value in (0.123456, 12.3456, 123.456, 12345.6)] == [0.1235, 12.35, 123.5, 12346]


def test_race_compares_whole_processes_and_says_whether_the_aim_was_met() -> None:
    by_peer = {one["peer"]: one for one in race().document()["ratios"]}
    assert by_peer[DRIVER]["whole_process"]["median"] == 0.75
    assert by_peer[DRIVER]["copying_alone"]["median"] == 0.5
    assert by_peer[DRIVER]["met"] is True
    assert by_peer[COPY_PIPE]["whole_process"]["median"] == 0.2
    assert by_peer[COPY_PIPE]["met"] is False  # the control
    assert "copying_alone" not in by_peer[COPY_PIPE]


def test_documents_say_where_when_and_from_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    made = documents()
    paths = document.write(made, tmp_path / "all.json")
    assert [path.name for path in paths] == ["backfill.json", "memory.json", "repository.json", "all.json"]
    for one in made:
        assert {"benchmark", "format", "date", "commit", "command", "machine"} <= one.keys()
        assert json.loads((tmp_path / f"{one['benchmark']}.json").read_text()) == one
    assert json.loads((tmp_path / "all.json").read_text()).keys() == {"backfill", "memory", "repository"}


def test_every_document_can_be_read_and_drawn(tmp_path: Path) -> None:
    made = documents()
    texts = [report.text(one) for one in made]
    assert "MISSED" in texts[0]
    assert all(str(one["commit"]) in text for one, text in zip(made, texts, strict=True))
    for path in plots.draw(made, tmp_path):
        assert path.read_text().startswith("<?xml")


def test_only_peers_import_a_driver() -> None:
    folder = Path(document.__file__).parent
    importing = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if _imports(path) & DRIVERS}
    assert importing == {
        "peers/bare_postgres.py",
        "peers/bare_sqlite.py",
        "peers/driver.py",
    }


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found
