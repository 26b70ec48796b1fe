"""Sessions moved between every two kinds of store while people log in and out: nothing lost, nothing brought back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.plan import Until
from datalayer.routing.route import Phase
from datalayer.settings import Settings, parse_settings
from tests.integration.live import coordinator_of, create_schemas
from tests.integration.logins import Logins, logins
from tests.pairs import cases
from tests.servers import Servers

pytestmark = pytest.mark.servers
Place = Callable[[str], str]
KINDS = ("sqlite", "postgres", "redis", "cluster")
PAIRS = [(source, target) for source in KINDS for target in KINDS if source != target]


@pytest.fixture
def place(servers: Servers, tmp_path: Path) -> Place:
    """The URL of an empty place of a kind."""

    def url(kind: str) -> str:
        name = f"life_{uuid4().hex[:12]}"
        if kind == "postgres":
            return servers.postgres(1)[0].create_database(name)
        if kind == "redis":
            return servers.redis().create_database()
        if kind == "cluster":
            return f"{servers.redis_cluster().url}/?prefix={name}"
        return f"sqlite:///{tmp_path}/{name}.sqlite"

    return url


def settings_of(urls: dict[str, str], sessions: str, control: str) -> Settings:
    # Presence is in the memory of the process, by the backend's name: each test is a deployment of its own.
    here = f"here{uuid4().hex[:8]}"
    return parse_settings(
        {
            "backends": {name: {"url": url} for name, url in {**urls, here: "memory://"}.items()},
            "routes": {"sessions": sessions, "presence": here},
            "control": {"url": control},
        },
        directory=Path.cwd(),
    )


async def settings_for(place: Place, source: str, target: str) -> Settings:
    settings = settings_of(
        {"main": place("sqlite"), "a": place(source), "b": place(target)},
        "a",
        place("postgres" if "postgres" in {source, target} else "sqlite"),
    )
    await create_schemas(settings)
    return settings


async def life_cycle(settings: Settings, live: Logins) -> None:
    """Start, roll back, start, cut over, write, roll back after the cut-over, start, complete."""
    async with coordinator_of(settings, "sessions", until=Until.DUAL) as coordinator:
        await coordinator.migrate("b")
        await let_run(live)
        await coordinator.cancel()
    async with coordinator_of(settings, "sessions") as coordinator:
        await coordinator.migrate("b")
        await let_run(live)
        await coordinator.rollback()
        await let_run(live)
        await coordinator.migrate("b")
        await let_run(live)
        verdict = await coordinator.verify()
        assert verdict["clean"], verdict
        migration = await coordinator.complete()
        assert await _phase(coordinator) is Phase.COMPLETE
        await let_run(live)
        await coordinator.purge(migration.id)


async def _phase(coordinator: Coordinator) -> Phase:
    _, routings = await coordinator.places.control.routings()
    return routings["sessions"].phase


async def let_run(live: Logins, rounds: int = 1) -> None:
    """Wait for so much traffic, some of it revokes."""
    writes, revoked = live.writes + 30 * rounds, live.revoked + 3 * rounds
    async with asyncio.timeout(60):
        while live.writes < writes or live.revoked < revoked:
            await asyncio.sleep(0.02)


@pytest.mark.life_cycle("sessions")
@pytest.mark.parametrize(("source", "target"), cases(KINDS))
async def test_sessions_go_over_and_back_and_over_under_traffic(place: Place, source: str, target: str) -> None:
    settings = await settings_for(place, source, target)
    async with logins(settings) as live:
        await let_run(live)
        await life_cycle(settings, live)
    assert live.errors == []
    assert min(live.writes, live.reads, live.revoked) > 20


def embedded(folder: Path) -> Settings:
    return settings_of({"main": f"sqlite:///{folder}/main.sqlite"}, "main", f"sqlite:///{folder}/control.sqlite")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("UPDATE sessions SET deleted = 0, proof = (SELECT k.proof FROM kept k WHERE k.id = sessions.id)", "accepted"),
        ("DELETE FROM sessions WHERE NOT deleted", "lost, says"),
        ("UPDATE sessions SET expires_at = expires_at - 1 WHERE NOT deleted", "a touch was lost"),
        ("DELETE FROM session_cuts", "accepted"),
    ],
    ids=["a revoke", "a session", "a touch", "a cut"],
)
async def test_a_planted_mistake_is_noticed(tmp_path: Path, mistake: str, said: str) -> None:
    """The control of the oracle: a revoke and a cut that are undone, a session and a touch that are lost."""
    async with DataLayer.open(embedded(tmp_path)) as layer:
        live = Logins([layer.sessions], pause_s=0.0)
        store = layer.router("sessions").route.authority
        await store.db.run("CREATE TABLE kept (id BLOB PRIMARY KEY, proof BLOB)")
        await store.db.run(
            "CREATE TRIGGER keep AFTER INSERT ON sessions BEGIN INSERT INTO kept VALUES (NEW.id, NEW.proof); END"
        )
        tasks = [asyncio.create_task(live.come_and_go(0)), asyncio.create_task(live.touch_forever(0))]
        await let_run(live, rounds=4)
        live.stopped = True
        await asyncio.gather(*tasks)
        await live.audit(layer.sessions)
        assert live.wrong == []
        await store.db.run(mistake)
        await live.audit(layer.sessions)
    assert any(one.startswith(said) for one in live.wrong)


async def test_what_a_tombstone_keeps_fits_no_token(tmp_path: Path) -> None:
    async with DataLayer.open(embedded(tmp_path)) as layer:
        made = await layer.sessions.create(uuid4())
        assert made.token is not None
        await layer.sessions.revoke(made.token)
        await layer.router("sessions").route.authority.db.run("UPDATE sessions SET deleted = 0")
        assert await layer.sessions.get(made.token) is None
