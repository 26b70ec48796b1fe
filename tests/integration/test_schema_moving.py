"""A schema upgrade in the middle of a move, under traffic: both copies are done, and the move goes on to its end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datalayer.clock import SystemClock
from datalayer.migrators.schemas import inspect_schemas
from datalayer.schemas import history
from datalayer.schemas.history import History
from tests.integration.live import coordinator_of, preload, settings_of, traffic
from tests.integration.postgres_places import TOKEN, Place, database
from tests.integration.schema_ground import REGION, ask, make_old, opened, upgraded, upgraded_main
from tests.servers import Servers

pytestmark = pytest.mark.servers


@pytest.fixture
async def urls(servers: Servers) -> AsyncIterator[dict[str, str]]:
    with database(servers, "moving_a") as source, database(servers, "moving_b") as target:
        for url in (source, target):
            make_old(url)
            assert (await upgraded_main(url)).state == "ready"
        yield {"a": source, "b": target}


@pytest.fixture
def revisions(urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The next version's revisions, over databases of this one."""
    (tmp_path / "r0903.py").write_text(REGION)
    monkeypatch.setattr(history, "THIS", History((*history.THIS.pre, "0903_pre"), (), history.THIS.needed))
    return tmp_path


def columns(url: str, table: str) -> set[str]:
    found = ask(url, f"SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attnum > 0")
    return {str(row[0]) for row in found}


# An eager apply that waits for the schema change's lock is cancelled in the middle of psycopg's pipeline, whose generator
# then complains of its closed connection (stores/postgres/connection.py); nothing is lost by it: the journal has the key.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <generator object BasePipeline._exit_gen:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("until", ["dual", "armed", "target"])
async def test_both_copies_of_a_move_are_upgraded_and_the_move_goes_on(
    urls: dict[str, str], revisions: Path, until: str
) -> None:
    settings = settings_of(urls, messages="a", users="a", control=urls["a"])
    await preload(settings, 201)
    async with traffic(settings) as live:
        async with coordinator_of(settings, until=until) as coordinator:
            await coordinator.migrate("b")
        states = await upgraded(settings, revisions)
        assert {state.state for state in states} == {"ready"}, states
        assert "language" in columns(urls["a"], "messages")
        assert "language" in columns(urls["b"], "messages_1")
        async with coordinator_of(settings) as coordinator:
            await coordinator.migrate("b")
            assert (await coordinator.verify())["clean"]
            await coordinator.rollback()
            assert (await coordinator.verify())["clean"]
    assert live.errors == []
    assert live.writes > 0
    assert {state.state for state in await inspect_schemas(settings, SystemClock())} == {"ready"}


async def test_an_upgrade_leaves_a_guard_sound(urls: dict[str, str], revisions: Path) -> None:
    async with opened(urls["a"]) as backend:
        place = Place(urls["a"], backend)
        await place.guard.install(TOKEN, sealed=False)
        assert (await upgraded_main(urls["a"], revisions)).state == "ready"
        state = await place.guard.state()
        assert (state.installed, state.fence, state.tampered) == (True, "open", False)
        record = await place.append()
        assert [one.ident for one in await place.guard.journal.pending(10)] == [record.ident]
