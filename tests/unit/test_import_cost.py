"""What importing the library costs: no driver, no command line, at most 0.3 s."""

import subprocess
import sys
import time

HEAVY = (
    "alembic",
    "click",
    "psycopg",
    "cassandra",
    "boto3",
    "redis",
    "sqlalchemy.orm",
    "matplotlib",
    "datalayer.testing",
)
SECONDS_MAX = 0.3


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def seconds_of(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begun


def test_importing_the_library_and_its_names_is_light() -> None:
    for statement in ("import datalayer", "from datalayer import DataLayer"):
        modules = imported_by(statement)
        assert "datalayer" in modules
        assert [name for name in HEAVY if name in modules] == [], statement


def test_the_look_at_modules_can_fail() -> None:
    assert "click" in imported_by("import datalayer, click")


def test_import_datalayer_takes_300_ms_at_most() -> None:
    # The interpreter's own start is not the library's; the best of five is what an unshared machine shows.
    library, bare = (min(seconds_of(statement) for _ in range(5)) for statement in ("import datalayer", "pass"))
    assert library - bare <= SECONDS_MAX
