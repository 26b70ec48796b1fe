"""The command line of a process with a planted mistake: ``python -m datalayer.cli.demo.sabotaged MISTAKE WORDS``."""

from __future__ import annotations

import sys

from datalayer.cli import main
from datalayer.testing.sabotage import Sabotage, sabotage_engine

if __name__ == "__main__":
    sabotage_engine(Sabotage(sys.argv.pop(1)))
    main()
