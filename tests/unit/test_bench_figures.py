"""The arithmetic of the benchmarks, the shape of their documents, and that only peers import a driver."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document, plots, report, search
from benchmarks.backfill import COPY_PIPE, DRIVER, OURS_CASSANDRA, OURS_POSTGRES, Done, Race
from benchmarks.dataset import Dataset
from benchmarks.figures import Aim, Figure, ratio, rounded
from benchmarks.search import Done as Did
from benchmarks.shards import moves, reads, traffic
from benchmarks.shards.measure import Sizes
from benchmarks.shards.place import people, records, slot
from benchmarks.slices import Slice, beside
from datalayer.ids import slot_of

DRIVERS = {"psycopg", "psycopg_pool", "cassandra", "sqlite3", "redis", "boto3"}
INDEXERS = ("ours", *search.AIMS)
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
    row = beside(slices, bare) | {
        "call": "get",
        "tasks": 8,
        "phase": "rest",
        "bare": "psycopg",
        "aim": "x",
        "met": True,
    }
    run = {"target": "Postgres", "rows": 5, "base_mib": 1.0, "peak_mib": 2.0, "above_base_mib": 1.0, "rows_per_s": 9}
    ms = {f"{prefix}{what}_ms": Figure.of([1.0, 2.0]).document() for prefix in ("", "bare_") for what in ("p50", "p99")}
    far = ms | {"call": "get", "bare": "psycopg", "ratio": row["ratio"], "aim": "x", "met": False}
    found = {"backend": "like", "what": "a word", "p50_ms": ms["p50_ms"], "p99_ms": ms["p99_ms"]}
    bodies: dict[str, dict[str, Any]] = {
        "backfill": {"datasets": {"generated": race().document()}},
        "memory": {"runs": [run | {"aim": "<= 64", "met": True}]},
        "repository": {"stores": {"Postgres": [row]}},
        "shards": shards(slices, bare),
        "media": {"calls": [row, {name: value for name, value in row.items() if name not in {"aim", "met"}}]},
        "presence": {"calls": [row]},
        "sessions": {"calls": [row]},
        "history": {"messages": 5, "stores": {"Postgres": {"load_rows_per_s": 9, "calls": [far]}}},
        "search": {
            "messages": 5,
            "indexing": search.raced({key: [Did(1.0, 1.0)] for key in INDEXERS}, 5),
            "latency": [found],
        },
    }
    return [document.document(name, body, document.machine()) for name, body in bodies.items()]


def shards(ours: list[Slice], bare: list[Slice]) -> dict[str, Any]:
    done = {
        moves.OURS: [moves.Done(2.0, 0.1, 1.0, (10.0, 30.0, 20.0))] * 2,
        moves.OURS_PARALLEL: [moves.Done(1.0, 0.1, None, (10.0,))] * 2,
        moves.DUMP: [moves.Done(1.0, 0.1)] * 2,
        moves.DUMP_SCHEMA: [moves.Done(1.0, 0.1)] * 2,
    }
    felt = traffic.Felt()
    for number in range(200):
        felt.ms["get"].append(number)
        felt.ms["update"].append(2.0)
    situations = [traffic.Situation("idle", [felt]), traffic.Situation("rebalance", [felt], [10.0, 251.0], [5.0])]
    return {
        "users": 5,
        "shards": 4,
        "groups": 64,
        "look_ups": reads.look_ups((64,), 2),
        "gets": reads.compared([ours, bare, bare, bare], (reads.BARE, reads.ORM, reads.PLAIN), 8),
        "writes": reads.compared([ours, bare], ("other",), 1),
        "moves": [moves.told(1000, 4, done)],
        "traffic": traffic.document(situations, 200, 16),
    }


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


def test_moves_are_compared_round_by_round_and_copying_alone_only_where_groups_follow_each_other() -> None:
    told = shards([Slice(1.0, 1.0)], [Slice(1.0, 1.0)])["moves"][0]
    assert {one["peer"]: one["ratio"]["median"] for one in told["ratios"] if one["ours"] == moves.OURS} == {
        moves.DUMP: 0.5,
        moves.DUMP_SCHEMA: 0.5,
    }
    ours = told["contenders"][moves.OURS]
    assert (ours["rows_per_s"]["median"], ours["copying_rows_per_s"]["median"]) == (500.0, 1000)
    assert ours["holds_ms"] == {"count": 6, "median": 20.0, "maximum": 30.0}
    assert "copying_rows_per_s" not in told["contenders"][moves.OURS_PARALLEL]
    assert told["pgcopydb"] is False


def test_the_bare_driver_alone_has_an_aim() -> None:
    slow, fast = [Slice(116.0, 50.0)], [Slice(100.0, 50.0)]
    found = reads.compared([slow, fast, fast], (reads.BARE, reads.ORM), 1)
    assert [one.get("met") for one in found] == [False, None]
    assert reads.compared([fast, fast], (reads.BARE,), 1)[0]["met"] is True


def test_one_long_hold_misses_the_aim() -> None:
    told = shards([Slice(1.0, 1.0)], [Slice(1.0, 1.0)])["traffic"]
    assert (told["holds_ms"]["met"], told["holds_ms"]["count"], told["holds_ms"]["maximum"]) == (False, 2, 251.0)
    idle = told["situations"][0]
    assert "holds_ms" not in idle
    assert 197 <= idle["get"]["p99_ms"]["median"] <= 199
    assert idle["get"]["worst_ms"] == 199


def test_peers_find_the_shard_that_the_library_finds() -> None:
    made = records(people(50))
    assert [slot(one.key[:16]) for one in made] == [slot_of(one.key[:16]) for one in made]
    assert len(made) == 150
    assert people(5, before_us=10**15) == people(5, before_us=10**15)


def test_many_groups_are_moved_in_fewer_rounds() -> None:
    assert [Sizes(rounds=3).move_rounds(groups) for groups in (4, 64)] == [3, 2]


def test_documents_say_where_when_and_from_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    made = documents()
    paths = document.write(made, tmp_path / "all.json")
    assert [path.name for path in paths] == [
        "backfill.json",
        "memory.json",
        "repository.json",
        "shards.json",
        "media.json",
        "presence.json",
        "sessions.json",
        "history.json",
        "search.json",
        "all.json",
    ]
    for one in made:
        assert {"benchmark", "format", "date", "commit", "command", "machine"} <= one.keys()
        assert json.loads((tmp_path / f"{one['benchmark']}.json").read_text()) == one
    assert json.loads((tmp_path / "all.json").read_text()).keys() == {one["benchmark"] for one in made}


def test_every_document_can_be_read_and_drawn(tmp_path: Path) -> None:
    made = documents()
    texts = [report.text(one) for one in made]
    assert "MISSED" in texts[0]
    assert "pgcopydb is not to be had here" in texts[3]
    assert all(str(one["commit"]) in text for one, text in zip(made, texts, strict=True))
    same = {"presence", "sessions"}  # as media
    for path in plots.draw([one for one in made if one["benchmark"] not in same], tmp_path):
        assert path.read_text().startswith("<?xml")


def test_only_peers_import_a_driver() -> None:
    folder = Path(document.__file__).parent
    importing = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if _imports(path) & DRIVERS}
    assert importing == {
        "peers/bare_media.py",
        "peers/bare_postgres.py",
        "peers/bare_redis.py",
        "peers/bare_sqlite.py",
        "peers/bare_users.py",
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
