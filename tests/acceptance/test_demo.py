"""``datalayer demo`` as a new user runs it, and the planted mistakes that it must find."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 400
SIZE = ("--seconds", "12", "--messages", "4000", "--seed", "7")


def demo(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "datalayer.cli", "demo", "--json", *SIZE, "--report", "report.html", *words],
        cwd=folder,
        # A deployment that the user has configured: the demo must not come near it.
        env={**os.environ, "DATALAYER_BACKENDS__MAIN__URL": "postgresql://nobody@127.0.0.1:1/production"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout + done.stderr
    return done.returncode, json.loads(lines[0]), done.stderr


def test_messages_move_over_and_back_under_load_and_kills_and_nothing_is_lost(tmp_path: Path) -> None:
    code, told, talk = demo(tmp_path, "--directory", "stage")
    assert code == 0, f"{told}\n{talk}"
    assert {name: told[name] for name in ("lost", "ghost", "stale", "order", "torn", "unread")} == dict.fromkeys(
        ("lost", "ghost", "stale", "order", "torn", "unread"), 0
    )
    assert told["errors_not_retryable"] == 0
    assert told["failures"] == []
    assert told["kills"] == 3
    assert told["operations"] > 4000
    assert told["rows_copied"] >= 4000
    assert len(told["holds_ms"]) == 3, "over, back, over again"
    assert told["seconds"] > 0
    assert Path(told["report"]) == tmp_path / "report.html"
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=|url\(|https?://|<script""", page) == []
    assert page.count("<svg") == 5
    assert 'class="mark kill"' in page
    again, refused, _ = demo(tmp_path, "--directory", "stage")
    assert (again, refused["error"]["type"]) == (3, "PreconditionFailed"), "a folder that holds something is left alone"


@pytest.mark.parametrize("mistake", ["no-journal", "no-arming"])
def test_a_planted_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    code, told, talk = demo(tmp_path, "--sabotage", mistake)
    assert code == 1, f"{told}\n{talk}"
    assert told["failures"] == [], "the mistake itself must be found, not a command that failed"
    assert told["lost"] + told["ghost"] + told["stale"] > 0
    if mistake == "no-journal":
        assert told["lost"] > 0
    else:
        assert told["stale"] > 0


def test_a_report_that_cannot_be_written_is_refused_before_the_play(tmp_path: Path) -> None:
    code, told, _ = demo(tmp_path, "--report", "nowhere/report.html")
    assert (code, told["error"]["type"]) == (2, "UsageError")
