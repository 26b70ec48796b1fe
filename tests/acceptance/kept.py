"""The folder of a job that is run by hand: its ledgers are the evidence, so it stays when the job fails."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def working_folder() -> Iterator[Path]:
    """A new folder; removed when the block ends well, named on the screen when it does not."""
    folder = Path(tempfile.mkdtemp(prefix="datalayer-job-"))
    try:
        yield folder
    except BaseException:  # also an interrupted job: whatever it was is raised again
        print(f"the ledgers of this run are kept in {folder}")
        raise
    shutil.rmtree(folder)
