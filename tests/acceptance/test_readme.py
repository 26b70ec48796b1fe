"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def program(name: str) -> str:
    """The indented block that follows the name of a file."""
    block = re.search(rf"`{re.escape(name)}`.*?:\n\n((?:    .*\n|\n)+)", README.read_text())
    assert block is not None, f"the README shows no {name}"
    return re.sub(r"^    ", "", block[1], flags=re.MULTILINE)


def test_everything_that_a_service_keeps_works_without_a_configuration(tmp_path: Path) -> None:
    script = tmp_path / "everything.py"
    script.write_text(program("everything.py"))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "logged in: True"
    assert done.stdout.splitlines()[2:] == ["bytes: b'not really a picture'", "found: look at this"]
    assert "ONLINE" in done.stdout.splitlines()[1]
