"""What an operator can get wrong: one clear sentence, the documented exit code, nothing half done, no secret shown."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.postgres_places import database
from tests.servers import Servers

SECRET = "hunter2"
SQLITE = '[backends.main]\nurl = "sqlite:///main.sqlite"\n'
SEEING = ("routes", "migrations list", "migrate messages")
CONNECTING = ("migrate messages --to other --yes", "import messages lines.jsonl", *SEEING)
WAIT_S = 60.0
LINE = {"conversation": "a", "id": 1, "sender": 2, "sent_at": 1_600_000_000, "body": "hi"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lines.jsonl").write_text(json.dumps(LINE) + "\n")
    return tmp_path


def run(folder: Path, command: str, config: str | None = None, **environment: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); whatever happens there is no traceback and no secret in it."""
    if config is not None:
        (folder / "datalayer.toml").write_text(config)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DATALAYER_")}
    done = subprocess.run(
        [sys.executable, "-m", "datalayer.cli", *command.split()],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, command
    assert "bug of datalayer" not in done.stderr, done.stderr
    assert SECRET not in done.stdout + done.stderr, command
    return done.returncode, done.stdout, done.stderr


def refused(folder: Path, command: str, exit_code: int, config: str | None = None, **environment: str) -> str:
    """The one sentence of a refusal; the same as one object under --json."""
    code, out, said = run(folder, command, config, **environment)
    assert (code, out) == (exit_code, ""), (command, said)
    assert said.startswith("datalayer: "), said
    lines = [line for line in said.splitlines() if not line.startswith("next: ")]
    assert len(lines) == 1, said
    code, out, _ = run(folder, f"{command} --json", **environment)
    told = json.loads(out.splitlines()[-1])
    assert (code, told["exit"]) == (exit_code, exit_code)
    assert lines[0].startswith(f"datalayer: {told['error']['message']}")
    return lines[0]


def row(path: Path, sql: str) -> Any:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchone()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            SQLITE + "pol_max = 3\n",
            "datalayer.toml:3: backends.main.pol_max is not a known key (did you mean pool_max?)",
        ),
        ("[backends.main\n", "datalayer.toml:1"),
        (f'[backends.main]\nurl = "mysql://root:{SECRET}@db/app"\n', "backends.main.url has an unknown scheme"),
        (f'[backends.main]\nurl = "postgresql://app:{SECRET}@db:port/app"\n', "datalayer.toml:2: backends.main.url"),
        (f'[backends.main]\nurl = "postgresql:/app:{SECRET}@db"\n', "datalayer.toml:2: backends.main.url"),
        (SQLITE + '[routes]\nmessages = "mian"\n', "routes.messages names a backend that is not configured"),
    ],
)
def test_a_wrong_configuration_ends_every_command_with_2(folder: Path, config: str, says: str) -> None:
    for command in ("routes", "import messages lines.jsonl"):
        assert says in refused(folder, command, 2, config)
    assert {path.name for path in folder.iterdir()} == {"datalayer.toml", "lines.jsonl"}


def test_no_configuration_at_all_can_be_refused(folder: Path) -> None:
    said = refused(folder, "import messages lines.jsonl", 2, DATALAYER_EMBEDDED="never")
    assert "nothing is configured and DATALAYER_EMBEDDED=never" in said
    assert {path.name for path in folder.iterdir()} == {"lines.jsonl"}


def test_a_control_store_of_a_newer_version_is_left_alone(folder: Path) -> None:
    run(folder, "import messages lines.jsonl", SQLITE)
    control = folder / "control.sqlite"
    row(control, "UPDATE datalayer_control_state SET version = version + 1")
    before = control.read_bytes()
    for command in CONNECTING:
        said = refused(folder, command, 3)
        assert "the control store has schema version 2, but this datalayer knows only 1" in said
    assert control.read_bytes() == before


def test_a_backend_of_a_newer_version_is_left_alone(folder: Path) -> None:
    run(folder, "import messages lines.jsonl", SQLITE)
    row(folder / "main.sqlite", "UPDATE datalayer_schema SET version_num = 'from the future'")
    said = refused(folder, "import messages lines.jsonl", 3)
    assert "upgrade" in said
    assert "newer" in said or "not know" in said


def test_a_file_that_is_no_database_is_named(folder: Path) -> None:
    (folder / "main.sqlite").write_bytes(b"no database, but long enough to look like one" * 100)
    code, _, said = run(folder, "import messages lines.jsonl", SQLITE)
    assert code in {1, 3}
    assert "main.sqlite" in said
    assert len([line for line in said.splitlines() if line.startswith("datalayer: ")]) == 1


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


def test_a_server_that_accepts_and_never_answers_ends_in_time(folder: Path, deaf: int) -> None:
    began = time.monotonic()
    config = f'[backends.main]\nurl = "postgresql://app:{SECRET}@127.0.0.1:{deaf}/app"\n'
    code, _, said = run(folder, "routes", config)
    assert code == 1
    assert f"127.0.0.1:{deaf}" in said
    assert time.monotonic() - began < 35


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = f'[backends.main]\nurl = "postgresql://app:{SECRET}@127.0.0.1:{port}/app"\n'
    for command in ("routes", "migrations status"):
        assert f"127.0.0.1:{port}" in refused(folder, command, 1, config)
    other = (
        SQLITE + f'[backends.other]\nurl = "cassandra://app:{SECRET}@127.0.0.1:{port}/k?local_dc=dc1&replication=1"\n'
    )
    run(folder, "import messages lines.jsonl", other)
    assert "backend other" in refused(folder, "migrate messages --to other --yes", 1)
    assert json.loads(run(folder, "migrations list --json")[1])["migrations"] == []


@pytest.mark.servers
def test_a_wrong_password_or_database_is_refused_with_3(folder: Path, servers: Servers) -> None:
    with database(servers, "cli_refused") as url:
        right = psycopg.conninfo.conninfo_to_dict(url)
        at = f"{right['host']}:{right['port']}"
        wrong = {
            "password": f"postgresql://{right['user']}:{SECRET}@{at}/{right['dbname']}",
            "user": f"postgresql://nobody:{SECRET}@{at}/{right['dbname']}",
            "database": f"postgresql://{right['user']}:{right['password']}@{at}/no_such_database",
        }
        for what, address in wrong.items():
            said = refused(folder, "migrations list", 3, f'[backends.main]\nurl = "{address}"\n')
            assert at in said, what
            assert str(right["password"]) not in said


@pytest.mark.servers
def test_a_schema_that_is_behind_names_the_command_that_mends_it(folder: Path, servers: Servers) -> None:
    with database(servers, "cli_schema") as url:
        config = SQLITE + f'[backends.other]\nurl = "{url}"\n'
        run(folder, "import messages lines.jsonl", config)
        said = refused(folder, "migrate messages --to other --yes", 3)
        assert "datalayer schema upgrade" in said
        assert json.loads(run(folder, "migrations list --json")[1])["migrations"] == []
        assert run(folder, "schema upgrade other")[0] == 0
        code, _, said = run(folder, "migrate messages --to other --yes")
        assert code == 0, said
