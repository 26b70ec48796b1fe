"""The real command line in a process that dies where it is told to, or lives with a planted mistake.

    DATALAYER_FAILPOINTS="drain.after=kill" python -m datalayer.cli.demo.staged migrate messages --to second --yes
    python -m datalayer.cli.demo.staged --sabotage no-journal migrate messages --to second --yes

The product's own entry point knows neither: both are put in here, before its ``main`` is called.
"""

from __future__ import annotations

import sys

from datalayer.cli import main
from datalayer.cli.running import Stop
from datalayer.testing.failpoints import Failpoints
from datalayer.testing.sabotage import Sabotage, sabotage_engine


def arm(points: Failpoints) -> None:
    """Let every command of this process pass the points, before it looks whether an operator wants it to stop."""
    stop_at = Stop.reach

    async def reach(self: Stop, name: str) -> None:
        await points.reach(name)
        await stop_at(self, name)

    Stop.reach = reach  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(Failpoints.from_environment())
    if sys.argv[1:2] == ["--sabotage"]:
        sabotage_engine(Sabotage(sys.argv[2]))
        del sys.argv[1:3]
    main()
