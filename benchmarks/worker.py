"""A backfill worker that watches its own memory: a process of its own.

    python -m benchmarks.worker CONFIG TARGET

It brings the migration to ``dual``, notes its resident memory, lets the kernel forget the peak so far, copies, and
says one JSON object.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from datalayer.clock import SystemClock
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.settings import load_settings

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


def memory_mib(name: str) -> float:
    """VmRSS or VmHWM (its peak) of this process."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let the kernel count the peak anew from here."""
    _CLEAR.write_text(_FORGET_PEAK)


async def work(config: Path, target: str, workers: int) -> dict[str, Any]:
    async with open_places(load_settings(config), SystemClock()) as places:

        async def migrate(until: Until) -> str:
            options = MigrateOptions(until=until, workers=workers)
            return (await Coordinator(places, "messages", holder="benchmark", options=options).migrate(target)).id

        await migrate(Until.DUAL)
        gc.collect()
        base = memory_mib("VmRSS")
        forget_peak()
        began, cpu = time.perf_counter(), time.process_time()
        name = await migrate(Until.BACKFILLED)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = memory_mib("VmHWM")
        told = await places.control.document(name, "backfill")
    assert told is not None, "a backfill that ended says what it did"
    return {"rows": told["rows"], "seconds": seconds, "cpu_s": cpu, "base_mib": base, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.worker")
    parser.add_argument("config", type=Path)
    parser.add_argument("target")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    json.dump(asyncio.run(work(chosen.config, chosen.target, chosen.workers)), sys.stdout)


if __name__ == "__main__":
    main()
