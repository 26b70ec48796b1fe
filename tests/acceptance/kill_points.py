"""One life cycle in which the migrator is killed at every point of the plan, one after the other.

Each command is started, dies at its point, and the next one resumes. Points that the rest of a stage does not pass
again are simply the next ones; a point that is never reached is reported.
"""

import asyncio
from collections.abc import Sequence

from datalayer.migrators.plan import PLAN, Stage
from tests.acceptance.fleet import Fleet

SAYS_KILLED = -9


def points(stages: Sequence[Stage]) -> list[str]:
    """``<action>.before`` and ``<action>.after`` of every action of the stages, in order."""
    return [f"{action}.{side}" for stage in stages for action in PLAN[stage] for side in ("before", "after")]


OVER = [
    *points((Stage.START,)),
    "backfill.page",
    *points((Stage.BACKFILL,)),
    "verify.page",
    *points((Stage.VERIFY, Stage.ARM, Stage.FLIP)),
]
BACK = points((Stage.ARM, Stage.FLIP))
COMPLETE = points((Stage.COMPLETE,))


async def kill_along(fleet: Fleet, words: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Run a command once for each point until it is through; the points at which it died."""
    died: list[str] = []
    for point in wanted:
        ended = await fleet.stage.command(*words, "--yes", failpoints=f"{point}=kill")
        if ended.code == SAYS_KILLED:
            died.append(point)
            fleet.kills += 1
            continue
        # The point lies behind: an earlier command, or a watchdog, has passed it for good.
        if ended.code == 0:
            continue
        said = ended.told.get("error")
        assert ended.told.get("error", {}).get("retryable") or ended.code == 5, f"{point}: {ended.code} {said}"
        await asyncio.sleep(0.1)
    return died
