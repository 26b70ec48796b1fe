"""The commands of the main job as an operator types them, on SQLite files: processes, signals, a terminal."""

import contextlib
import gzip
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from datalayer.importing import conversation_id
from datalayer.sync import DataLayer
from datalayer.testing.rooms import room_sizes

CONFIG = """
[backends.main]
url = "sqlite:///main.sqlite"
[backends.other]
url = "sqlite:///other.sqlite"
"""
WAIT_S = 60.0


@dataclass
class Operator:
    """Somebody at a shell, in a folder and a home of their own."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *args: object, **streams: Any) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "datalayer.cli", *map(str, args)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DATALAYER_")}
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
        process = subprocess.Popen(words, cwd=self.folder, env=environment | {"HOME": str(self.folder)}, **how)
        self.started.append(process)
        return process

    def run(self, *args: object, exit_code: int = 0) -> tuple[str, str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == exit_code, (args, process.returncode, out, err)
        assert "Traceback" not in err
        return out, err

    def json(self, *args: object, exit_code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*args, "--json", exit_code=exit_code)[0].splitlines()[-1])
        return found


def until_copied(process: subprocess.Popen[str], rows: int) -> int:
    """Read the events of a migration until its backfill has got so far."""
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if told.get("run") == "backfill" and told["rows"] >= rows:
            return int(told["rows"])
    raise AssertionError("it ended before")


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    (tmp_path / "datalayer.toml").write_text(CONFIG)
    operator = Operator(tmp_path)
    yield operator
    for process in operator.started:
        if process.poll() is None:
            process.kill()
        process.wait(WAIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def chat(folder: Path, messages: int) -> tuple[Path, int]:
    """A file in the shape of a chat, with every tenth line twice; and how many distinct messages it holds."""
    lines: list[str] = []
    for room, size in enumerate(room_sizes(messages)):
        for number in range(size):
            at = len(lines)
            row = {"conversation": f"room {room}", "id": at, "sender": at % 50, "sent_at": 1_600_000_000 + at}
            lines.append(json.dumps(row | {"body": f"{room}/{number} " + "x" * (at % 300)}))
    path = folder / "chat.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*lines, *lines[::10]]).encode()))
    return path, len(lines)


def test_a_chat_is_imported_moved_through_kills_and_back(operator: Operator) -> None:
    path, distinct = chat(operator.folder, 3000)
    first = operator.json("import", "messages", path)
    assert (first["new"], first["distinct"]) == (distinct, distinct)

    moving = ("migrate", "messages", "--to", "other", "--yes", "--rate", "800", "--json")
    killed = operator.start(*moving)
    copied = until_copied(killed, 200)
    killed.kill()
    assert killed.wait(WAIT_S) == -signal.SIGKILL

    stopped = operator.start(*moving)
    copied = until_copied(stopped, copied + 1)
    stopped.send_signal(signal.SIGINT)
    out, said = stopped.communicate(timeout=WAIT_S)
    assert stopped.returncode == 130, said
    assert json.loads(out.splitlines()[-1])["next_steps"] == ["datalayer migrate messages --to other"]
    assert copied < distinct

    operator.run("migrations", "throttle", "--rate", "off")
    operator.run("migrate", "messages", "--to", "other", exit_code=5)
    told = operator.json("migrate", "messages", "--to", "other", "--yes")
    assert (told["phase"], told["verification"]["authority_records"]) == ("target", distinct)
    assert operator.json("import", "messages", path)["digest"] == first["digest"]

    with DataLayer.open(operator.folder / "datalayer.toml") as layer:
        written = layer.messages.append(conversation_id("room 0"), sender_id=conversation_id("me"), body="while there")
    assert operator.json("migrations", "rollback", "--yes")["phase"] == "dual"
    with DataLayer.open(operator.folder / "datalayer.toml") as layer:
        assert layer.messages.get(written.conversation_id, written.id) == written
    assert operator.json("migrations", "cutover", "--yes")["phase"] == "target"
    assert operator.json("migrations", "complete", "--yes")["phase"] == "complete"
    operator.run("migrations", "purge", "--yes")
    assert operator.json("import", "messages", path)["digest"] == first["digest"]
    assert operator.json("doctor")["ok"] is True


def test_on_a_terminal_there_are_bars_and_a_question(operator: Operator) -> None:
    path, distinct = chat(operator.folder, 2000)
    operator.run("import", "messages", path)
    outside, inside = pty.openpty()
    streams = {"stdin": inside, "stdout": inside, "stderr": inside, "text": False}
    process = operator.start("migrate", "messages", "--to", "other", "--rate", "2000", **streams)
    os.close(inside)
    screen = read_until(outside, b"Ready. Now let other serve messages? [y/N]: ")
    os.write(outside, b"y\n")
    screen += read_until(outside, b"phase target")
    with contextlib.suppress(OSError):
        while os.read(outside, 4096):
            pass
    assert process.wait(WAIT_S) == 0
    os.close(outside)
    assert b"backfill " in screen
    assert b" rows " in screen
    assert b" left" in screen
    assert b"\x1b[K" in screen
    assert operator.json("routes")["routes"][1]["backend"] == "other"
    assert operator.json("import", "messages", path)["already"] == distinct


def read_until(terminal: int, wanted: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + WAIT_S
    while wanted not in seen:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 4096)
    return seen


def test_nothing_but_results_goes_to_stdout(operator: Operator) -> None:
    path, _ = chat(operator.folder, 300)
    for args in (("import", "messages", path), ("migrate", "messages", "--to", "other", "--yes"), ("doctor",)):
        out, err = operator.run(*args, "--json")
        for line in out.splitlines():
            json.loads(line)
        assert "\x1b" not in out + err


def test_the_embedded_default_imports_and_says_where(operator: Operator) -> None:
    (operator.folder / "datalayer.toml").unlink()
    path, distinct = chat(operator.folder, 200)
    out, err = operator.run("import", "messages", path)
    assert f"{distinct} distinct messages" in out
    assert str(operator.folder / "datalayer-data") in err
    assert operator.json("routes")["routes"][1]["backend"] == "main"


def test_the_real_chat_is_imported_whole_in_under_a_minute(operator: Operator, chat_data: Path | None) -> None:
    path, distinct, lines = (chat_data, 52_208, 52_458) if chat_data else (*chat(operator.folder, 50_000), None)
    first = operator.json("import", "messages", path)
    assert first["distinct"] == distinct == first["new"]
    assert lines in {None, first["lines"]}
    assert first["bad_count"] == 0
    assert first["seconds"] < 60
    again = operator.json("import", "messages", path)
    assert (again["new"], again["digest"]) == (0, first["digest"])


def test_a_target_whose_guard_was_changed_never_rules_for_there_would_be_no_way_back(operator: Operator) -> None:
    path, distinct = chat(operator.folder, 200)
    operator.run("import", "messages", path)
    operator.run("migrate", "messages", "--to", "other", "--until", "verified", "--yes")
    with contextlib.closing(sqlite3.connect(operator.folder / "other.sqlite", isolation_level=None)) as foreign:
        # Every trigger dropped and made again as it was, as a schema tool does.
        for name, sql in foreign.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall():
            foreign.execute(f'DROP TRIGGER "{name}"')
            foreign.execute(sql)
    told = operator.json("migrate", "messages", "--to", "other", "--yes", exit_code=3)
    assert "somebody changed the journal or fence of 'other'" in told["error"]["message"]
    assert "datalayer migrations cancel" in told["error"]["hint"]
    assert operator.json("migrations", "why")["reasons"][0]["reason"] == "tampered"
    assert operator.json("migrations", "status")["phase"] == "dual"
    operator.run("migrations", "cancel", "--yes")
    told = operator.json("migrate", "messages", "--to", "other", "--yes")
    assert (told["phase"], told["rows_copied"]) == ("target", distinct)
    assert operator.json("migrations", "rollback", "--yes")["phase"] == "dual"
