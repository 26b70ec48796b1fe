"""Search follows messages and users: what is written, edited, deleted; moved; rebuilt; placed late."""

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append, appended, to_record
from datalayer.errors import ConfigurationError, PreconditionFailed, Unavailable
from datalayer.ids import IdSource
from datalayer.layer import DataLayer, claim_first_places
from datalayer.migrators.plan import PLAN, Action, Stage, Until
from datalayer.stores.memory import server as memory
from datalayer.types import Message
from tests.unit.index_world import config, coordinator, differences, held, in_step, old_rows, opened

KINDS = ["memory", "sqlite"]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and no server in memory that another test has written to."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})
    return tmp_path


async def written(layer: DataLayer, room: uuid.UUID, n: int = 6) -> list[Message]:
    """Messages of which one is edited and one deleted, and their sender."""
    name = f"u{uuid.uuid4().hex[:10]}"
    sender = await layer.users.create(username=name, email=f"{name}@example.org")
    found = [await layer.messages.append(room, sender_id=sender.id, body=f"word{i} here") for i in range(n)]
    await layer.messages.edit(room, found[0].id, body="edited afterwards")
    await layer.messages.delete(room, found[1].id)
    return found


def index_of(layer: DataLayer) -> Any:
    return layer.places.store("search", layer.places.routing_of("search").authority)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_index_placed_on_an_empty_deployment_follows_from_the_start(ground: Path, kind: str) -> None:
    async with opened(config(ground, kind)) as layer:
        await written(layer, uuid.uuid4())
        await in_step(layer.places)
        documents = await held(index_of(layer))
        assert len(documents) == 6, "five messages and a user"
        async with asyncio.timeout(10.0):
            while (await layer.health())["projections"]["search"] != {"behind": 0, "oldest_s": 0.0}:
                await asyncio.sleep(0.02)  # what was brought is settled a moment later


async def refused(layer: DataLayer, reason: str) -> None:
    """A query is answered with the command that builds the index."""
    with pytest.raises(ConfigurationError, match=reason) as error:
        await layer.search.messages("word", conversations=[uuid.uuid4()])
    assert error.value.hint == "datalayer search rebuild"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_index_placed_late_is_refused_until_it_is_rebuilt(ground: Path, kind: str) -> None:
    document = config(ground, kind)
    room = uuid.uuid4()
    ids = IdSource(SystemClock())
    old = Append(room, ids.uuid7(), ids.uuid7(), "was here before")
    await old_rows(document, [to_record(appended(old))])
    async with opened(document) as layer:
        await refused(layer, "search has no index yet")
        for leaf in layer.places.indexes.leaves():
            assert await layer.places.store(*leaf).outboxes() == [], "nobody asked for an index: there is no cost"
        with pytest.raises(PreconditionFailed, match="no place yet"):
            await coordinator(layer, "search").migrate("index")
        await claim_first_places(layer.settings, layer.places, build_index=True)
        async with asyncio.timeout(10.0):
            while not layer.router("search").serves:
                await asyncio.sleep(0.02)
        await refused(layer, "does not hold yet")
    async with opened(document) as layer:
        await refused(layer, "does not hold yet")
        await written(layer, room)
        migration = await coordinator(layer, "search", Until.COMPLETE).migrate("index")
        assert "completed" in migration.milestones
        await in_step(layer.places)
        assert len(await held(index_of(layer))) == 7
        found = await layer.search.messages("before", conversations=[room])
        assert [hit.message.id for hit in found.items] == [old.id]
        await coordinator(layer, "search").purge()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_index_moves_and_comes_back_and_follows_all_the_time(ground: Path, kind: str) -> None:
    async with opened(config(ground, kind)) as layer:
        room = uuid.uuid4()
        await written(layer, room)
        await coordinator(layer, "search").migrate("index2")
        await written(layer, room)
        await in_step(layer.places)
        assert layer.places.routing_of("search").authority.backend == "index2"
        await coordinator(layer, "search").rollback()
        await written(layer, room)
        await in_step(layer.places)
        assert layer.places.routing_of("search").authority.backend == "index"
        await coordinator(layer, "search").cancel()
        await written(layer, room)
        await in_step(layer.places)
        for leaf in layer.places.indexes.leaves():
            assert await layer.places.store(*leaf).outboxes() == [0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", ["messages", "users"])
async def test_an_index_follows_a_source_that_moves_over_and_back(ground: Path, kind: str, domain: str) -> None:
    # Nobody brings anything: all that is written at every stage waits in the outboxes, and must be found at the end.
    async with opened(config(ground, kind), project=False) as layer:
        room = uuid.uuid4()
        await written(layer, room)
        await coordinator(layer, domain).migrate("other")
        await written(layer, room)
        await coordinator(layer, domain).rollback()
        await written(layer, room)
        await coordinator(layer, domain).migrate("other")
        await written(layer, room)
        await coordinator(layer, domain, Until.COMPLETE).complete()
        await written(layer, room)
        await coordinator(layer, domain).purge()
        assert len(await differences(layer.places)) == 30
        layer.indexer.start()
        await in_step(layer.places)


async def given_up(layer: DataLayer) -> None:
    """Messages that wait at a target when it is dropped, and nobody has brought them yet."""
    await coordinator(layer, "messages").migrate("other")
    await written(layer, uuid.uuid4())
    await coordinator(layer, "messages").rollback()
    await coordinator(layer, "messages").cancel()
    assert len(await differences(layer.places)) == 6
    layer.indexer.start()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_waits_at_a_target_that_is_given_up_is_found_all_the_same(ground: Path, kind: str) -> None:
    async with opened(config(ground, kind), project=False) as layer:
        await given_up(layer)
        await in_step(layer.places)


async def test_without_the_hand_over_it_would_be_lost(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelling = tuple(action for action in PLAN[Stage.CANCEL] if action is not Action.LEAVE_TARGET)
    monkeypatch.setitem(PLAN, Stage.CANCEL, cancelling)
    monkeypatch.setattr("tests.unit.index_world.WAIT_S", 1.0)
    async with opened(config(ground, "memory"), project=False) as layer:
        await given_up(layer)
        with pytest.raises(AssertionError, match="keys differ"):
            await in_step(layer.places)


async def test_outboxes_of_indexes_that_are_given_up_are_swept(ground: Path) -> None:
    from datalayer.routing.indexer import sweep  # noqa: PLC0415 - of this test alone

    async with opened(config(ground, "memory")) as layer:
        for leaf in layer.places.indexes.leaves():
            await layer.places.store(*leaf).outbox(99).install()
        assert await sweep(layer.places, layer.places.indexes.known()) == 2
        assert await sweep(layer.places, layer.places.indexes.known()) == 0
        for leaf in layer.places.indexes.leaves():
            assert await layer.places.store(*leaf).outboxes() == [0]


async def test_an_index_that_is_down_keeps_no_process_from_starting_nor_from_writing(ground: Path) -> None:
    document = config(ground, "memory")
    async with opened(document) as first:
        server = memory.SERVERS["index"]
        server.up = False
        health = await first.health()
        assert health["ready"]
        assert health["backends"]["index"] != "ok"
        assert health["projections"]["search"] == {"behind": 0, "oldest_s": 0.0}
        async with opened(document) as layer:
            await written(layer, uuid.uuid4())
            with pytest.raises(Unavailable):
                await layer.search.messages("word2", conversations=[uuid.uuid4()])
            server.up = True
            await in_step(first.places)
            await until_served(layer)


async def until_served(layer: DataLayer) -> None:
    """Until the search of a layer answers: it looks again each second."""
    async with asyncio.timeout(10.0):
        while True:
            with contextlib.suppress(Unavailable):
                await layer.search.messages("word2", conversations=[uuid.uuid4()])
                return
            await asyncio.sleep(0.05)
