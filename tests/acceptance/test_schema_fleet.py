"""A schema upgrade over eight shards, one of which cannot be reached, while an application writes; killed; run again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer
from datalayer.settings import load_settings
from tests.integration.postgres_places import database, program
from tests.integration.schema_ground import ask, make_old
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers
SHARDS = tuple(f"s{number}" for number in range(8))
DOWN = "s5"
WAIT_S = 120.0


@dataclass
class Deployment:
    """Eight shards, a main database with the control store, and a network that may break before one of them."""

    folder: Path
    config: Path
    urls: dict[str, str]
    proxy: TcpProxy
    acknowledged: list[tuple[UUID, str]] = field(default_factory=list)
    refused: int = 0
    stopped: bool = False

    def begin(self, *words: str, present: bool = False) -> subprocess.Popen[str]:
        """Start ``datalayer schema WORDS`` of the next version, or of the present one."""
        versions = self.folder / "versions"
        versions.mkdir(exist_ok=True)
        module = ["datalayer.cli"] if present else ["tests.acceptance.schema_cli", str(versions)]
        command = [sys.executable, "-m", *module, "schema", *words, "--config", str(self.config), "--json"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DATALAYER_")}
        return subprocess.Popen(
            command, env=clean, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    async def run(self, *words: str, code: int, present: bool = False) -> dict[str, dict[str, Any]]:
        """What each database ended with, by name; the command must end with this code."""
        began = time.monotonic()
        process = self.begin(*words, present=present)
        out, err = await asyncio.to_thread(process.communicate, timeout=WAIT_S)
        seconds = time.monotonic() - began
        assert "Traceback" not in err, err
        assert "secret" not in out + err, "the password of these servers"
        told = json.loads(out.splitlines()[-1])
        print(f"\n$ datalayer schema {' '.join(words)}   -> exit {process.returncode}, {seconds:.1f} s")
        for one in told.get("schemas", ()):
            shown = [f"{one['name']:<12}", f"{one['state']:<12}", f"{one.get('revision', '-'):<20}"]
            print("  ".join([*shown, f"{len(one.get('done', ()))} done", one["detail"]]).rstrip())
        print(f"next: {told['next_steps']}")
        assert process.returncode == code, (told, err)
        return {one["name"]: one for one in told.get("schemas", ())}

    async def write(self, layer: DataLayer, who: int) -> None:
        """An application of this version: creates users until told to stop; a shard that is down refuses."""
        number = 0
        while not self.stopped:
            number += 1
            name = f"user-{who}-{number}"
            try:
                user = await layer.users.create(username=name, email=f"{name}@example.org", timeout=2)
                self.acknowledged.append((user.id, name))
            except DatalayerError:
                self.refused += 1
            await asyncio.sleep(0.01)


@pytest.fixture
def deployment(servers: Servers, tmp_path: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        urls = {name: stack.enter_context(database(servers, f"fleet_{name}")) for name in ("main", *SHARDS)}
        for url in urls.values():
            make_old(url)
        proxy = stack.enter_context(TcpProxy.before(urls[DOWN]))
        members = ", ".join(f'{name} = "{proxy.url(urls[name]) if name == DOWN else urls[name]}"' for name in SHARDS)
        config = tmp_path / "datalayer.toml"
        config.write_text(
            f'[backends.main]\nurl = "{urls["main"]}"\n[backends.shards]\nmembers = {{ {members} }}\n'
            'pool_max = 32\nslot_groups = 16\n[routes]\nusers = "shards"\n'
        )
        yield Deployment(tmp_path, config, urls, proxy)


def tables(url: str) -> set[str]:
    return {str(row[0]) for row in ask(url, "SELECT relname FROM pg_class WHERE relname ~ '^users(_[0-9]+)?$'")}


def with_country(url: str) -> set[str]:
    columns = "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'country' AND attnum > 0"
    rows = ask(url, f"{columns} AND attrelid::regclass::text ~ '^users(_[0-9]+)?$'")
    return {str(row[0]) for row in rows}


def valid_indexes(url: str) -> int:
    rows = ask(url, "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text ~ '_country$'")
    return int(rows[0][0])


async def test_an_upgrade_over_eight_databases_with_one_unreachable_is_finished_by_its_rerun(
    deployment: Deployment,
) -> None:
    await _from_the_first_version(deployment)
    async with DataLayer.open(load_settings(deployment.config)) as layer:
        writers = [asyncio.create_task(deployment.write(layer, who)) for who in range(2)]
        try:
            await _scenario(deployment)
        finally:
            deployment.stopped = True
            await asyncio.gather(*writers)
        assert len(deployment.acknowledged) > 100
        lost = [
            name
            for id_, name in deployment.acknowledged
            if (u := await layer.users.get(id_)) is None or u.username != name
        ]
        assert lost == []
        print(f"{len(deployment.acknowledged)} users created meanwhile, {deployment.refused} refused, 0 lost")


async def _from_the_first_version(deployment: Deployment) -> None:
    """The shipped command alone: seven of eight shards and the main database go from 0001 to the newest revision."""
    deployment.proxy.cut()
    told = await deployment.run("upgrade", code=5, present=True)
    assert {name for name, one in told.items() if one["state"] != "ready"} == {f"shards/{DOWN}"}
    deployment.proxy.restore()
    told = await deployment.run("upgrade", code=0, present=True)
    assert {name for name, one in told.items() if one.get("done")} == {f"shards/{DOWN}"}


async def _scenario(deployment: Deployment) -> None:
    urls = deployment.urls
    while len(deployment.acknowledged) < 20:
        await asyncio.sleep(0.02)
    assert all(len(tables(urls[name])) > 1 for name in SHARDS), "each shard holds slot groups"
    deployment.proxy.cut()

    told = await deployment.run("upgrade", "--phase", "pre", "--canary", "shards/s2", "--parallel", "3", code=5)
    assert told[f"shards/{DOWN}"]["state"] == "unreachable"
    for name in ("main", *SHARDS):
        if name == DOWN:
            assert with_country(urls[name]) == set()
        else:
            assert told[name if name == "main" else f"shards/{name}"]["state"] == "ready"
            assert with_country(urls[name]) == tables(urls[name])
            assert valid_indexes(urls[name]) == len(tables(urls[name]))
    status = await deployment.run("status", code=1)
    assert status[f"shards/{DOWN}"]["state"] == "unreachable"

    deployment.proxy.restore()
    status = await deployment.run("status", code=3)
    assert status[f"shards/{DOWN}"]["state"] == "behind"
    told = await deployment.run("upgrade", "--phase", "pre", "--canary", "shards/s2", "--parallel", "3", code=0)
    assert {name for name, one in told.items() if one.get("done")} == {f"shards/{DOWN}"}, (
        "what is done is not done again"
    )
    assert with_country(urls[DOWN]) == tables(urls[DOWN])

    refused = deployment.refused
    told = await deployment.run("upgrade", "--phase", "post", code=0)
    assert deployment.refused == refused, "with every shard there, an upgrade refuses no write"
    assert {one.get("revision") for one in told.values() if one["name"] != "(control)"} == {"0903_pre, 0904_post"}
    assert [with_country(url) for url in urls.values()] == [set()] * 9


async def test_an_upgrade_that_is_killed_with_sigkill_is_finished_by_its_rerun(deployment: Deployment) -> None:
    await deployment.run("upgrade", code=0, present=True)
    url = deployment.urls["s3"]
    builds = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONC%'"
    async with program(url, isolation="REPEATABLE_READ") as reader:
        await reader.execute("SELECT count(*) FROM datalayer_meta")  # a build waits for the end of its snapshot
        process = deployment.begin("upgrade", "--phase", "pre")
        while not (builders := ask(url, f"{builds} AND wait_event_type = 'Lock'")):
            assert process.poll() is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.communicate, timeout=WAIT_S)
        assert ask(url, builds), "the server goes on building for a client that is gone"
        ask(url, f"SELECT pg_terminate_backend({builders[0][0]})")
        await reader.rollback()
    assert valid_indexes(url) == 0
    told = await deployment.run("upgrade", "--phase", "pre", code=0)
    assert "0903_pre" in told["shards/s3"]["done"]
    assert all(valid_indexes(one) == len(tables(one)) for one in deployment.urls.values())
