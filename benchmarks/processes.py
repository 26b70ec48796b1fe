"""Whole processes, measured: wall time from start to end, CPU and memory of the child and of its children."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900.0
_TAIL = 3000


class ChildFailed(RuntimeError):
    """A measured process ended badly; the message holds the end of what it said."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended well. ``cpu_s`` is user and system time of it and of the children it waited for."""

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    out: str

    def last_json(self) -> dict[str, Any]:
        """The JSON object on the last line that it wrote."""
        line = self.out.strip().splitlines()[-1]
        value = json.loads(line)
        assert isinstance(value, dict), f"a JSON object is expected, not {line[:80]}"
        return value


def run(argv: Sequence[str], log: Path, *, ends_with: Sequence[int] = (0,)) -> Ended:
    """Run a command to its end; its standard output is kept, its standard error goes to ``log``.

    Raises ChildFailed when it ends with another code than ``ends_with``, or takes longer than TIMEOUT_S.
    """
    out = log.with_suffix(".out")
    with out.open("wb") as output, log.open("wb") as errors:
        began = time.perf_counter()
        child = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        limit = threading.Timer(TIMEOUT_S, child.kill)
        limit.daemon = True
        limit.start()
        # wait4 and not Popen.wait: it alone says what the process has used.
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        limit.cancel()
    said = out.read_text(errors="replace")
    if child.returncode not in ends_with:
        told = log.read_text(errors="replace")[-_TAIL:] + said[-_TAIL:]
        raise ChildFailed(f"{' '.join(argv[:6])} ended with {child.returncode}\n{told}")
    return Ended(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said)


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of this checkout."""
    return [sys.executable, "-m", module, *map(str, arguments)]
