"""Redis, S3, OpenSearch and DynamoDB do not outlive a session that dies, and say what is missing to install them."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.servers import InstallFailed, golang, java, packages
from tests.servers.given import (
    CASSANDRA_VARIABLE,
    DYNAMODB_VARIABLE,
    OPENSEARCH_VARIABLE,
    REDIS_CLUSTER_VARIABLE,
    REDIS_VARIABLE,
    S3_VARIABLE,
)
from tests.servers.needs import missing
from tests.servers.redis import install_redis
from tests.servers.redis.install import BINARY_VARIABLE
from tests.servers.watchdog import look

ROOT = Path(__file__).parents[2]
_GIVEN = {DYNAMODB_VARIABLE, OPENSEARCH_VARIABLE, REDIS_CLUSTER_VARIABLE, REDIS_VARIABLE, S3_VARIABLE}
# Where servers are given by address there is no local starter to test.
__test__ = not _GIVEN & set(os.environ)
pytestmark = pytest.mark.servers

CHILD = """
    import signal
    from tests.servers import Servers
    servers = Servers()
    own = [servers.redis(), *servers.redis_cluster().nodes, servers.s3(), servers.opensearch(), servers.dynamodb()]
    own[0].pause()
    print(servers._folder, *(server.pid for server in own), flush=True)
    signal.pause()
"""


def test_nothing_outlives_a_session_that_is_killed() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        folder, *pids = child.stdout.readline().split()
    assert len(pids) == 10
    assert all(look(int(pid)) for pid in pids)
    child.kill()
    child.wait(30)
    deadline = time.monotonic() + 60
    while Path(folder).exists() or any(look(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if look(int(pid))]
        time.sleep(0.05)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an empty cache, an empty PATH and no right to install packages."""
    monkeypatch.setenv("DATALAYER_SERVERS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "can_apt", lambda: False)
    monkeypatch.setattr(golang, "_SYSTEM", tmp_path / "go")
    monkeypatch.setattr(java, "_candidates", lambda: iter(()))


@pytest.mark.usefixtures("bare")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(InstallFailed, match="Redis is missing; install by hand: apt-get install redis-server"):
        install_redis()
    with pytest.raises(InstallFailed, match=r"Go 1.21 .* builds example.org/thing@v1 and is missing; .* golang-go"):
        golang.go_installed("example.org/thing", "v1")
    with pytest.raises(InstallFailed, match=r"it needs it; install by hand: .* openjdk-17-jdk-headless"):
        java.install_java(reason="it needs it", compiler=True)
    with pytest.raises(InstallFailed, match=r"Maven fetches the jars of thing and is missing; .* maven"):
        java.installed_jars("thing", ROOT / "pyproject.toml", needed=())


@pytest.mark.usefixtures("bare")
def test_needs_are_told_before_the_run_unless_servers_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    said = missing()
    for sentence, tool in zip(said, ("Java 17 with javac", "Maven", "Redis", "Go 1.21"), strict=True):
        assert sentence.startswith(f"{tool} ")
    monkeypatch.setattr(packages, "can_apt", lambda: True)
    assert missing() == said[3:]
    monkeypatch.setattr(packages, "can_apt", lambda: False)
    for variable in {*_GIVEN, CASSANDRA_VARIABLE} - {S3_VARIABLE}:
        monkeypatch.setenv(variable, "given")
    assert missing() == said[3:]
    monkeypatch.setenv(S3_VARIABLE, "given")
    assert missing() == []


def test_a_program_that_does_not_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text("#!/bin/sh\necho go: module example.org/thing: no such host\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("DATALAYER_SERVERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    with pytest.raises(InstallFailed, match=r"(?s)thing@v1 could not be built by .*no such host"):
        golang.go_installed("example.org/thing", "v1")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_old_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=00000000:0\n")
    old.chmod(0o755)
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert shutil.which("redis-server") == str(old)
    with pytest.raises(InstallFailed, match=r"is not Redis 7 or newer; it said .*6\.0\.16"):
        install_redis()
