"""What an index must not miss, and must not wait for: imports, writes that never came, late adopters, stores that are down."""

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append, appended, to_record
from datalayer.domains.record import Record
from datalayer.domains.search import document_of
from datalayer.errors import ConfigurationError, PreconditionFailed, Unavailable
from datalayer.exporting import export_domain
from datalayer.ids import IdSource
from datalayer.importing import import_domain
from datalayer.layer import DataLayer, claim_first_places
from datalayer.migrators import projection
from datalayer.migrators.lease import held_lease
from datalayer.migrators.plan import Until
from datalayer.routing import firstindex, indexer
from datalayer.routing.indexer import IndexWriter
from datalayer.routing.places import Places
from datalayer.routing.route import Place
from datalayer.settings import parse_settings
from datalayer.stores.base import Entry
from datalayer.stores.memory import server as memory
from datalayer.stores.memory.server import MemoryServer
from tests.unit.index_world import config, coordinator, differences, held, in_step, opened

IDS = IdSource(SystemClock())
LONG_AGO_US = 5 * 3600 * 1_000_000


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and no server in memory that another test has written to; messages in one without transactions."""
    monkeypatch.setattr(memory, "SERVERS", {})
    without_transactions()
    return tmp_path


def without_transactions() -> None:
    memory.SERVERS["other"] = MemoryServer("other", SystemClock(), authority_class="last_writer")


def message(body: str, room: uuid.UUID | None = None) -> Record:
    return to_record(appended(Append(room or IDS.uuid7(), IDS.uuid7(), IDS.uuid7(), body)))


def litter(number: int, since: int) -> list[Entry]:
    """Entries of writes that never came."""
    return [Entry("message", IDS.uuid7().bytes + IDS.uuid7().bytes, since, since=since) for _ in range(number)]


# --- imports ---------------------------------------------------------------------------------------------------------


async def imported(ground: Path) -> list[uuid.UUID]:
    """What differs after an export was imported where messages lie in a store without transactions, and one was written."""
    path, room = ground / "messages.jsonl", uuid.uuid4()
    first = ground / "first"
    first.mkdir()
    async with opened(config(first, "memory", messages="other")) as layer:
        for i in range(5):
            await layer.messages.append(room, sender_id=uuid.uuid4(), body=f"word{i}")
        await export_domain(layer, "messages", path)
    memory.SERVERS.clear()
    without_transactions()
    async with opened(config(ground, "memory", messages="other")) as layer:
        lease = held_lease(layer.places.control, layer.clock, "messages", "test", print)
        report = await import_domain(layer, "messages", path, lease=lambda: lease)
        assert report.new == 5
        last = await layer.messages.append(room, sender_id=uuid.uuid4(), body="live")
        await in_order(layer, last.id)
        return [uuid.UUID(bytes=key[1][16:]) for key in await differences(layer.places)]


async def in_order(layer: DataLayer, id: uuid.UUID) -> None:
    """Until the index holds a message, and its outboxes are empty."""
    index = layer.places.store("search", layer.places.routing_of("search").authority)
    writer = IndexWriter(layer.places, layer.places.indexes.known()[0])
    async with asyncio.timeout(10.0):
        while id.bytes not in {key[1][16:] for key in await held(index)} or (await writer.lag()).behind:
            await asyncio.sleep(0.02)


async def test_an_import_into_a_store_without_triggers_reaches_the_index(ground: Path) -> None:
    assert await imported(ground) == []


async def test_an_import_that_writes_past_the_outbox_would_not(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "putter", lambda self, routing: self.store("messages", routing.authority).apply)
    assert len(await imported(ground)) == 5


# --- writes that never came ---------------------------------------------------------------------------------------------


async def test_writes_that_never_came_starve_nobody_and_are_cleared_in_the_end(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(config(ground, "memory", messages="other"), project=False) as layer:
        (leaf,) = layer.places.indexes.leaves("messages")
        index = layer.places.indexes.known()[0]
        outbox = layer.places.indexes.outbox(leaf, index)
        now = layer.clock.now_us()
        await outbox.enter(litter(300, now - LONG_AGO_US))
        under_way = litter(3, now)
        await outbox.enter(under_way)
        await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="real")
        writer = IndexWriter(layer.places, index)
        rounds = [await writer.bring(leaf, 10) for _ in range(31)]
        assert sum(rounds) == 304, "each is met once"
        assert len(await held(layer.places.store("search", index))) == 1
        for _ in range(40):
            assert await writer.bring(leaf, 10) == 0
        assert (await outbox.lag(1000))[0] == 303, "not watched for long enough"
        monkeypatch.setattr(indexer, "WATCHED_S", 0.0)
        for _ in range(300 // 7 + 1):  # three places of ten are for the young
            await writer.bring(leaf, 10)
        assert {entry.ident for entry in await outbox.pending(1000)} == {entry.ident for entry in under_way}
        assert await writer.bring(leaf, 10) == 0


async def test_a_record_that_comes_after_its_entry_is_brought_while_others_are_written_all_the_time(
    ground: Path,
) -> None:
    async with opened(config(ground, "memory", messages="other"), project=False) as layer:
        (leaf,) = layer.places.indexes.leaves("messages")
        index = layer.places.indexes.known()[0]
        writer = IndexWriter(layer.places, index)
        late = message("late")
        await layer.places.indexes.outbox(leaf, index).enter([Entry(late.kind, late.key, late.version)])
        await writer.bring(leaf, 10)
        await layer.places.store(*leaf).apply([late])
        for _ in range(10):
            await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="another")
            assert await writer.bring(leaf, 10) > 0
        assert len(await held(layer.places.store("search", index))) == 11


async def test_litter_keeps_its_age_when_it_is_handed_over(ground: Path) -> None:
    async with opened(config(ground, "memory", messages="other"), project=False) as layer:
        (leaf,) = layer.places.indexes.leaves("messages")
        index = layer.places.indexes.known()[0]
        since = layer.clock.now_us() - LONG_AGO_US
        await layer.places.indexes.outbox(leaf, index).enter(litter(4, since))
        await coordinator(layer, "messages", Until.COMPLETE).migrate("main")
        (heir,) = layer.places.indexes.leaves("messages")
        assert heir.place.backend == "main"
        assert await layer.places.indexes.outbox(heir, index).lag(10) == (4, since)


# --- comparisons and repairs -----------------------------------------------------------------------------------------------


async def test_a_repair_leaves_alone_what_has_come_since_the_comparison(ground: Path) -> None:
    async with opened(config(ground, "memory")) as layer:
        await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="other")
        await in_step(layer.places)
        await coordinator(layer, "search", Until.VERIFIED).migrate("index2")
        new = layer.places.indexes.known()[-1]
        come, ghost = message("restored"), message("never written")
        documents = [one for one in map(document_of, (come, ghost)) if one is not None]
        await layer.places.store("search", new).apply(documents)
        found = await coordinator(layer, "search").verify()
        assert sorted(one["what"] for one in found["differences"]) == ["ghost", "ghost"]
        await layer.places.store("messages", layer.places.routing_of("messages").authority).apply([come])
        mended = await coordinator(layer, "search").repair()
        assert (mended["repaired"], mended["clean"]) == (1, True)
        assert document_of(come) in (await held(layer.places.store("search", new))).values()


async def test_an_entry_of_a_row_that_is_gone_never_beats_one_that_is_there(ground: Path) -> None:
    async with opened(config(ground, "memory"), project=False) as layer:
        (leaf,) = layer.places.indexes.leaves("messages")
        index = layer.places.indexes.known()[0]
        live = message("here")
        await layer.places.store(*leaf).apply([live])
        outbox = layer.places.indexes.outbox(leaf, index)
        await outbox.enter([Entry(live.kind, live.key, live.version + 2, gone=True)])
        await IndexWriter(layer.places, index).bring(leaf)
        assert list((await held(layer.places.store("search", index))).values()) == [document_of(live)]
        assert await outbox.holds([live.ident])


async def test_what_the_other_index_cannot_take_is_named_before_it_is_asked(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexWriter.bring, "__defaults__", (10,))
    monkeypatch.setattr(projection, "CATCH_UP_ENTRIES", 5)
    refused = MemoryServer("index2", SystemClock())
    memory.SERVERS["index2"] = refused
    async with opened(config(ground, "memory"), project=False) as layer:
        migration = await coordinator(layer, "search", Until.BACKFILLED).migrate("index2")
        refused.refuse = lambda record: "no" if "bad" in str(record.fields) else None
        for _ in range(30):
            await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="bad word")
        good = await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="good word")
        with pytest.raises(PreconditionFailed, match="cannot be stored by the target: no"):
            await coordinator(layer, "search", Until.VERIFIED).migrate("index2")
        assert len(await layer.control.quarantined(migration.id)) == 30
        new = layer.places.store("search", layer.places.indexes.known()[-1])
        assert {key[1][16:] for key in await held(new)} == {good.id.bytes}
        refused.refuse = None
        assert (await coordinator(layer, "search").repair())["clean"]
        await coordinator(layer, "search", Until.VERIFIED).migrate("index2")


# --- the first index ---------------------------------------------------------------------------------------------------------


async def test_a_process_that_is_open_already_does_not_serve_an_index_that_is_not_built(ground: Path) -> None:
    document = config(ground, "memory")
    document["backends"].pop("main")
    document["routes"] = {"users": "other2", "messages": "other2", "conversations": "other2", "listings": "other2"}
    document["backends"]["other2"] = {"url": "memory://"}
    async with opened(document) as old:
        await old.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="before")
        with contextlib.suppress(ConfigurationError):
            await old.search.messages("before", conversations=[uuid.uuid4()])
        await claim_first_places(
            parse_settings({**document, "routes": {**document["routes"], "search": "index"}}),
            old.places,
            build_index=True,
        )
        async with asyncio.timeout(10.0):
            while not old.router("search").serves:
                await asyncio.sleep(0.02)
        with pytest.raises(ConfigurationError, match="does not hold yet"):
            await old.search.messages("before", conversations=[uuid.uuid4()])


@pytest.mark.parametrize(
    ("messages", "placed", "unbuilt"),
    [("main", (), False), ("other", (), True), ("other", ("messages",), False)],
    ids=["triggers", "a route that others may know", "a route that nobody knew"],
)
async def test_an_index_is_complete_where_nobody_can_have_written_beside_it(
    ground: Path, messages: str, placed: tuple[str, ...], unbuilt: bool
) -> None:
    async with opened(config(ground, "memory", messages=messages), project=False) as layer:
        await placed_over(layer, Place("index2"), placed)
        assert await firstindex.unbuilt_index(layer.control, Place("index2")) == unbuilt
        assert not await firstindex.unbuilt_index(layer.control, Place("index")), "what was said of another one"


async def placed_over(layer: DataLayer, index: Place, placed: tuple[str, ...]) -> None:
    """A first index where the control store knows of none."""

    async def fresh() -> list[Place]:
        _, routings = await layer.control.routings()
        layer.places.learn({name: one for name, one in routings.items() if name != "search"})
        return []

    layer.places.indexes.fresh = fresh  # type: ignore[method-assign]
    await layer.places.ensure_open(index)
    await firstindex.place_index(layer.places, index, placed=placed)


# --- stores that are down ------------------------------------------------------------------------------------------------------


async def test_an_index_is_given_up_where_one_place_does_not_answer(ground: Path) -> None:
    async with opened(config(ground, "memory", messages="other"), project=False) as layer:
        await layer.messages.append(uuid.uuid4(), sender_id=uuid.uuid4(), body="word")
        await coordinator(layer, "search", Until.VERIFIED).migrate("index2")
        users, messages = layer.places.indexes.leaves("users")[0], layer.places.indexes.leaves("messages")[0]
        both = await layer.places.store(*users).outboxes()
        assert len(both) == 2
        memory.SERVERS["other"].up = False
        await coordinator(layer, "search").cancel()
        assert await layer.places.store(*users).outboxes() == [0]
        assert await indexer.sweep(layer.places, layer.places.indexes.known()) == 0
        memory.SERVERS["other"].up = True
        assert await layer.places.store(*messages).outboxes() == both
        assert await indexer.sweep(layer.places, layer.places.indexes.known()) == 1
        assert await layer.places.store(*messages).outboxes() == [0]


async def test_health_answers_though_a_store_never_does(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datalayer.layer.HEALTH_S", 0.1)
    looks: list[int] = []
    answer = asyncio.Event()

    async def silent(_: Any) -> Any:
        looks.append(1)
        await answer.wait()
        raise Unavailable("it was down")

    async with opened(config(ground, "memory"), project=False) as layer:
        monkeypatch.setattr(IndexWriter, "lag", silent)
        for _ in range(2):
            async with asyncio.timeout(5.0):
                found = await layer.health()
            assert found["projections"]["search"]["reason"] == "a store of it does not answer in time"
            assert found["projections"]["listings"]["behind"] == 0
        assert looks == [1], "the look that is under way is waited for, and not begun anew"
        answer.set()
        async with asyncio.timeout(5.0):
            while (await layer.health())["projections"]["search"]["reason"] != "it was down":
                await asyncio.sleep(0.02)
