"""`datalayer` of the next version: it knows two revisions more, 0903_pre and 0904_post. Run as ``python -m``."""

import sys
from pathlib import Path

import datalayer.cli.schema
from datalayer.cli import main
from datalayer.schemas import history
from datalayer.schemas.history import History
from datalayer.schemas.render import Revisions
from tests.integration.schema_ground import NO_REGION, REGION

if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    (folder / "r0903.py").write_text(REGION)
    (folder / "r0904.py").write_text(NO_REGION)
    history.THIS = History((*history.THIS.pre, "0903_pre"), ("0904_post",), history.THIS.needed)  # type: ignore[misc]
    datalayer.cli.schema.load_revisions = lambda: Revisions(folder)  # type: ignore[attr-defined]
    main()
