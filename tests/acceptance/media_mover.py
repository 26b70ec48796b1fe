"""A process that moves media, dies where it is told to, and says how much memory it took: ``CONFIG REPORT [POINT COUNT]``."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from datalayer.errors import NotFinished
from datalayer.migrators.options import Silent
from datalayer.routing.route import Place
from datalayer.settings import load_settings
from tests.media_ground import mover


class KillAt(Silent):
    """SIGKILL of this very process the n-th time that a point is reached."""

    def __init__(self, point: str, count: int) -> None:
        self.point = point
        self.left = count

    async def reach(self, name: str) -> None:
        if name == self.point:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the kernel tells the resident size")


class Memory(threading.Thread):
    """Samples the resident size; writes base and peak at the end, and every second."""

    def __init__(self, report: Path) -> None:
        super().__init__(daemon=True)
        self.report = report
        self.base = self.peak = resident_kb()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.peak = max(self.peak, resident_kb())

    def told(self, **more: object) -> None:
        self.report.write_text(json.dumps({"base_kb": self.base, "peak_kb": self.peak, **more}))


async def main(config: str, report: Path, failpoints: Silent) -> None:
    settings = load_settings(config)
    async with mover(settings, failpoints=failpoints, workers=2) as coordinator:
        for name in ("main", "a", "b"):
            await coordinator.places.ensure_open(Place(name))
        store = coordinator.places.store("media", Place("a"))
        await store.page("", 1)
        memory = Memory(report)
        memory.start()
        began = time.monotonic()
        try:
            migration = await coordinator.migrate("b")
        except NotFinished as error:
            memory.told(error=error.message)
            raise SystemExit(5) from error
        finally:
            memory.ended.set()
        memory.told(phase=migration.phase, seconds=round(time.monotonic() - began, 2))


if __name__ == "__main__":
    point, count = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else ("", 0)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), KillAt(point, count)))
