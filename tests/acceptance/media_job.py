"""The job of media: objects of 1 B to 64 MB move from a folder to S3 under traffic, while the mover is killed again and
again: ``python -m tests.acceptance.media_job [--objects 5000] [--largest 67108864]``.

Shown at the end: every hash verified at the target by reading it there, the mover's memory above its base, that no
upload that was cut off was ever seen, and that none of 2,000 hostile names and links led out of the folder.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from datalayer.layer import DataLayer
from datalayer.settings import Settings, load_settings
from datalayer.stores.memory.server import SERVERS
from tests.acceptance.kept import working_folder
from tests.hostile_files import hostile_round
from tests.media_ground import Board, busy, mover, rows_and_bytes
from tests.servers import Servers

KILLS = (
    ("create_target.after", 1),
    ("publish_dual.after", 1),
    ("objects.copied", 40),
    ("objects.entered", 150),
    ("objects.page", 9),
    ("catch_up.before", 1),
    ("objects.verify", 5),
    ("verify.after", 1),
    ("publish_other.before", 1),
)
"""Where the mover dies, one after the other: the point, and how often it is reached before."""
MEMORY_KB = 64 * 1024


def size_of(rng: random.Random, number: int, objects: int, largest: int) -> int:
    """1 B, the largest, some of 4 MiB, and all between by the logarithm."""
    if number == 0:
        return 1
    if number % max(1, objects // 20) == 1:
        return largest
    if number % 50 == 2:
        return min(largest, 4 << 20)
    return int(2 ** (rng.random() * 18))


async def stored(layer: DataLayer, board: Board, objects: int, largest: int) -> int:
    """Objects that exist before the move; how many bytes."""
    rng = random.Random(7)
    owners = [uuid4() for _ in range(20)]
    total = 0
    room = asyncio.Semaphore(4)

    async def one(number: int, size: int, seed: int, owner: UUID) -> None:
        async with room:
            digest = hashlib.sha256()

            async def data() -> AsyncIterator[bytes]:
                made = random.Random(seed)
                for at in range(0, size, 1 << 20):
                    piece = made.randbytes(min(1 << 20, size - at))
                    digest.update(piece)
                    yield piece

            item = await layer.media.put(owner_id=owner, data=data(), content_type="a/b")
            board.stored[item.id] = (digest.hexdigest(), size)

    tasks = []
    for number in range(objects):
        size = size_of(rng, number, objects, largest)
        total += size
        tasks.append(one(number, size, number, owners[number % 20]))
    await asyncio.gather(*tasks)
    return total


async def moved(config: Path, report: Path, *, point: str = "", count: int = 0) -> int:
    """Run the mover; its exit code (-9: killed)."""
    more = (point, str(count)) if point else ()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.acceptance.media_mover", str(config), str(report), *more
    )
    return await process.wait()


async def job(
    servers: Servers, folder: Path, *, objects: int, largest: int, kills: tuple[Any, ...] = KILLS
) -> dict[str, Any]:
    """The whole job; what was seen."""
    config = folder / "datalayer.toml"
    config.write_text(
        f"""[backends.main]
url = "sqlite:///{folder}/main.sqlite"
[backends.a]
url = "file://{folder}/media"
[backends.b]
url = "{servers.s3().create_bucket(f"job-{uuid4().hex[:12]}")}"
[routes]
media = "a"
[limits]
media_max_bytes = {largest}
[control]
url = "sqlite:///{folder}/control.sqlite"
"""
    )
    settings = load_settings(config)
    before = Board()
    async with DataLayer.open(settings) as layer:
        began = time.monotonic()
        total = await stored(layer, before, objects, largest)
        print(f"{objects} objects, {total / 1e6:.0f} MB stored in {time.monotonic() - began:.0f} s", flush=True)
    found = await _under_traffic(settings, config, folder, kills)
    async with DataLayer.open(settings) as layer, mover(settings) as coordinator:
        await before.audit(layer)
        wrong = await rows_and_bytes(coordinator, "b")
        verdict = await coordinator.verify()
    found["wrong"] += [*before.wrong, *wrong]
    found["verified"] = verdict["authority_records"]
    found["differences"] = len(verdict["differences"])
    found["objects"] = len(before.stored)
    found["megabytes"] = round(total / 1e6)
    return found


async def _under_traffic(settings: Settings, config: Path, folder: Path, kills: tuple[Any, ...]) -> dict[str, Any]:
    report = folder / "report.json"
    killed = 0
    async with busy(settings, pause_s=0.05) as (board, _):
        for point, count in kills:
            code = await moved(config, report, point=point, count=count)
            print(f"{point} x {count}: {'killed' if code == -9 else f'ended with {code}'}", flush=True)
            killed += code == -9
            # a dead coordinator's lease runs out by itself
        code = await moved(config, report)
        assert code == 0, code
    memory = json.loads(report.read_text())
    return {
        "killed": killed,
        "puts": board.puts,
        "reads": board.reads,
        "wrong": list(board.wrong),
        "errors": board.errors[:5],
        "memory_kb": memory["peak_kb"] - memory["base_kb"],
        "last_run_s": memory["seconds"],
    }


async def fresh_memory(servers: Servers, folder: Path, *, objects: int, largest: int) -> dict[str, Any]:
    """The same move in one go: the memory of a mover that copies everything."""
    SERVERS.clear()  # presence of the job before, in the memory of this process, belongs to another deployment
    return await job(servers, folder, objects=objects, largest=largest, kills=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--largest", type=int, default=64 << 20)
    chosen = parser.parse_args()
    with Servers() as servers, working_folder() as name:
        for part in ("killed", "whole", "hostile"):
            (name / part).mkdir()
        killed = asyncio.run(job(servers, name / "killed", objects=chosen.objects, largest=chosen.largest))
        whole = asyncio.run(fresh_memory(servers, name / "whole", objects=chosen.objects // 5, largest=chosen.largest))
        escapes = asyncio.run(hostile_round(name / "hostile", 2000))
        print(json.dumps({"killed": killed, "whole": whole, "escapes": escapes}, indent=1))
        good = not killed["wrong"] and not whole["wrong"] and killed["killed"] == len(KILLS) and not escapes
        if not good or max(killed["memory_kb"], whole["memory_kb"]) > MEMORY_KB:
            raise SystemExit(1)  # within the block: the ledgers stay


if __name__ == "__main__":
    main()
