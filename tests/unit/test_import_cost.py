import subprocess
import sys

HEAVY = ("alembic", "click", "psycopg", "cassandra", "sqlalchemy.orm", "matplotlib", "datalayer.testing")


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_datalayer_is_light() -> None:
    modules = imported_by("import datalayer")
    assert "datalayer" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_the_look_at_modules_can_fail() -> None:
    assert "click" in imported_by("import datalayer, click")
