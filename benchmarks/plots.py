"""Results as SVG in docs/plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import ROOT

PLOTS = ROOT / "docs" / "plots"
OURS, PEER = "#2563a8", "#9aa5b1"
# The same results give the same file, byte by byte.
_STEADY: Any = {"svg.hashsalt": "datalayer", "svg.fonttype": "none"}


def draw(documents: Sequence[Mapping[str, Any]], folder: Path = PLOTS) -> list[Path]:
    """One file for each document."""
    drawers = {
        "backfill": _backfill,
        "history": _history,
        "media": _calls(1.15),
        "memory": _memory,
        "presence": _calls(1.2),
        "repository": _repository,
        "search": _search,
        "sessions": _calls(1.2),
        "shards": _shards,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [drawers[one["benchmark"]](one, folder / f"{one['benchmark']}.svg") for one in documents]


def _backfill(found: Mapping[str, Any], path: Path) -> Path:
    datasets = found["datasets"]
    figure, axes = _figure(len(datasets), 7.0, 3.2)
    for axis, (name, data) in zip(axes, datasets.items(), strict=True):
        told = data["contenders"]
        figures = [one["rows_per_s"] for one in told.values()]
        _bars(axis, list(told), figures, [OURS if label.startswith("datalayer") else PEER for label in told])
        axis.set_xlabel("rows a second, whole process")
        axis.set_title(f"backfill, {name}: {data['rows']:,} rows, {data['mib']} MiB", fontsize=10)
    return _save(figure, path)


def _memory(found: Mapping[str, Any], path: Path) -> Path:
    runs = found["runs"]
    figure, (axis,) = _figure(1, 7.0, 0.6 + 0.4 * len(runs))
    labels = [f"{one['rows']:,} rows to {one['target']}" for one in runs]
    sizes = [
        {"median": one["above_base_mib"], "min": one["above_base_mib"], "max": one["above_base_mib"]} for one in runs
    ]
    _bars(axis, labels, sizes, [OURS] * len(runs))
    axis.axvline(64, color="#b42318", linewidth=1)
    axis.set_xlabel("MiB above the base of a backfill worker (line: the aim)")
    return _save(figure, path)


def _repository(found: Mapping[str, Any], path: Path) -> Path:
    stores = found["stores"]
    longest = max(len(rows) for rows in stores.values())
    figure, axes = _figure(len(stores), 7.0, 0.8 + 0.24 * longest)
    for axis, (name, rows) in zip(axes, stores.items(), strict=True):
        labels = [f"{one['call']}, {one['tasks']} task{'s'[: one['tasks'] > 1]}, {one['phase']}" for one in rows]
        _bars(axis, labels, [one["ratio"] for one in rows], [OURS if one["phase"] == "rest" else PEER for one in rows])
        axis.axvline(1.15, color="#b42318", linewidth=1)
        axis.set_xlabel("time of a call over that of the bare driver (line: the aim at rest)")
        axis.set_title(name, fontsize=10)
    return _save(figure, path)


def _calls(aim: float) -> Callable[[Mapping[str, Any], Path], Path]:
    def drawn(found: Mapping[str, Any], path: Path) -> Path:
        rows = found["calls"]
        figure, (axis,) = _figure(1, 7.0, 0.8 + 0.3 * len(rows))
        labels = [_label(one) for one in rows]
        _bars(axis, labels, [one["ratio"] for one in rows], [OURS if "aim" in one else PEER for one in rows])
        axis.axvline(aim, color="#b42318", linewidth=1)
        axis.set_xlabel("time of a call over the bare driver's (line: the aim)")
        axis.set_title(found["benchmark"], fontsize=10)
        return _save(figure, path)

    return drawn


def _history(found: Mapping[str, Any], path: Path) -> Path:
    figure, (axis,) = _figure(1, 7.0, 0.8 + 0.9 * len(found["stores"]))
    labels, figures, colours = [], [], []
    for name, store in found["stores"].items():
        for one in store["calls"]:
            for prefix, by, colour in (("", "datalayer", OURS), ("bare_", one["bare"], PEER)):
                labels.append(f"{name}: {one['call']}, {by}")
                middle, high = one[f"{prefix}p50_ms"]["median"], one[f"{prefix}p99_ms"]["median"]
                figures.append({"median": middle, "min": middle, "max": high})
                colours.append(colour)
    _bars(axis, labels, figures, colours)
    axis.set_title(f"ms of a call among {found['messages']:,} messages, p50 to p99", fontsize=10)
    return _save(figure, path)


def _search(found: Mapping[str, Any], path: Path) -> Path:
    figure, axes = _figure(2, 7.0, 3.2)
    told = found["indexing"]["contenders"]
    colours = [OURS if name == "ours" else PEER for name in told]
    _bars(axes[0], list(told), [one["documents_per_s"] for one in told.values()], colours)
    axes[0].set_title("documents a second into OpenSearch", fontsize=10)
    times = found["latency"]
    labels = [f"{one['backend']}, {one['what']}" for one in times]
    figures = [
        {"median": middle, "min": middle, "max": one["p99_ms"]["median"]}
        for one in times
        for middle in (one["p50_ms"]["median"],)
    ]
    _bars(axes[1], labels, figures, [OURS] * len(times))
    axes[1].set_title(f"ms of a query of {found['messages']:,} messages, p50 to p99", fontsize=10)
    return _save(figure, path)


def _shards(found: Mapping[str, Any], path: Path) -> Path:
    figure, axes = _figure(3 + len(found["moves"]), 7.0, 2.3)
    _ratios(axes[0], found["gets"], "shard layer: time of a read over that of")
    axes[0].axvline(1.15, color="#b42318", linewidth=1)
    _ratios(axes[1], found["writes"], "shard layer: time of a change over that of")
    for axis, race in zip(axes[2:], found["moves"], strict=False):
        told = race["contenders"]
        colours = [OURS if name.startswith("datalayer") else PEER for name in told]
        _bars(axis, list(told), [one["rows_per_s"] for one in told.values()], colours)
        axis.set_title(f"{race['rows']:,} rows in {race['groups']} slot groups, rows/s", fontsize=10)
    felt = found["traffic"]["situations"]
    labels = [f"{call}, {one['situation']}" for call in ("get", "update") for one in felt]
    figures = [one[call]["p99_ms"] for call in ("get", "update") for one in felt]
    _bars(axes[-1], labels, figures, [PEER if label.endswith("idle") else OURS for label in labels])
    axes[-1].set_title(f"p99 in ms at {found['traffic']['calls_per_s']:g} calls a second", fontsize=10)
    return _save(figure, path)


def _label(one: Mapping[str, Any]) -> str:
    return f"{one['call']}, {one['tasks']} task{'s'[: one['tasks'] > 1]}, {one['bare']}"


def _ratios(axis: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    labels = [_label(one) for one in rows]
    _bars(axis, labels, [one["ratio"] for one in rows], [OURS] * len(rows))
    axis.set_title(title, fontsize=10)


def _figure(rows: int, width: float, height: float) -> tuple[Any, Sequence[Any]]:
    from matplotlib import rc_context  # noqa: PLC0415 - a second to import, and only drawing needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    with rc_context(_STEADY):
        figure = Figure(figsize=(width, height * rows), layout="constrained")
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    return figure, list(axes)


def _bars(axis: Any, labels: Sequence[str], figures: Sequence[Mapping[str, float]], colours: Sequence[str]) -> None:
    medians = [one["median"] for one in figures]
    spread = (
        [one["median"] - one["min"] for one in figures],
        [one["max"] - one["median"] for one in figures],
    )
    axis.barh(range(len(labels)), medians, xerr=spread, color=colours, error_kw={"linewidth": 0.8, "capsize": 2})
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import rc_context  # noqa: PLC0415 - as above

    with rc_context(_STEADY):
        figure.savefig(path, metadata={"Date": None})
    return path
