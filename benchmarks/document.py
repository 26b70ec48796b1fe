"""A result as a JSON document: what was measured, where, when, from which commit, by which command."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
VERSION = 1


def machine() -> dict[str, Any]:
    """The machine, and how busy it was when the run began."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "model": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


@functools.cache
def commit() -> str:
    """The commit of the checkout, with a + where files of the product differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "datalayer", "migrators", "schemas", "cli")
    return head + ("+" if changed else "")


def document(name: str, body: Mapping[str, Any], begun_on: Mapping[str, Any]) -> dict[str, Any]:
    """The whole document of one benchmark; ``begun_on`` is ``machine()`` as of its begin."""
    return {
        "benchmark": name,
        "format": VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": dict(begun_on),
        **body,
    }


def write(documents: Sequence[Mapping[str, Any]], extra: Path | None) -> list[Path]:
    """Each document to benchmarks/results/<name>.json, and all of them to ``extra`` where it is given."""
    RESULTS.mkdir(exist_ok=True)
    written = [RESULTS / f"{one['benchmark']}.json" for one in documents]
    for path, one in zip(written, documents, strict=True):
        path.write_text(_text(one))
    if extra is not None:
        extra.write_text(_text({one["benchmark"]: one for one in documents}))
        written.append(extra)
    return written


def read_all() -> dict[str, dict[str, Any]]:
    """Every result that is kept, by name."""
    found = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")))
    return {one["benchmark"]: one for one in found}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
