"""What repositories refuse, in one sentence and before anything is sent; cursors; retries with an id."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.errors import AlreadyExists, Closed, Conflict, InvalidArgument, InvalidCursor, NotFound
from datalayer.ids import IdSource, uuid7_at
from datalayer.layer import DataLayer, LayerOptions
from datalayer.settings import parse_settings
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.stores.memory.server import MemoryServer

ROOM, ANN = uuid4(), uuid4()
CLOCK = SystemClock()


@pytest.fixture
async def layer() -> AsyncIterator[DataLayer]:
    """A data layer over one memory server."""
    settings = parse_settings(
        {
            "backends": {"main": {"url": "memory://"}},
            "control": {"url": "memory://"},
            "limits": {"body_max_bytes": 1000},
            "deadlines": {"max_s": 10.0},
        }
    )
    backends = {"main": MemoryBackend(MemoryServer("main", CLOCK), name="main")}
    opened = DataLayer(
        settings, MemoryControl(MemoryControlServer("control", CLOCK)), backends, clock=CLOCK, options=LayerOptions()
    )
    await opened.start()
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("a\x00b", "body contains the character NUL"),
        ("a\ud800b", "body contains a lone surrogate at position 1"),
        ("é" * 501, "body is 1002 bytes; the limit is 1000"),
        (7, "body must be text, not int"),
    ],
)
async def test_a_body_that_no_store_keeps_alike_is_refused(layer: DataLayer, body: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await layer.messages.append(ROOM, sender_id=ANN, body=body)
    assert (await layer.messages.history(ROOM)).items == ()


async def test_a_body_at_the_limit_is_kept(layer: DataLayer) -> None:
    message = await layer.messages.append(ROOM, sender_id=ANN, body="é" * 500)
    assert await layer.messages.get(ROOM, message.id) == message


@pytest.mark.parametrize(
    ("id_", "says"),
    [
        (uuid4(), "version 4, but ids are UUIDv7"),
        (uuid7_at(CLOCK.now_us() + 24 * 3_600_000_000, 1), "more than 60 s in the future"),
        ("nonsense", "id must be a UUID"),
    ],
)
async def test_an_id_of_another_kind_or_time_is_refused(layer: DataLayer, id_: UUID | str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await layer.messages.append(ROOM, sender_id=ANN, body="hi", id=id_)
    with pytest.raises(InvalidArgument, match=says):
        await layer.users.create(username="ann", id=id_)


@pytest.mark.parametrize("attributes", [{"a": float("nan")}, {"a": object()}, {"a": "\x00"}, {"a": "x" * 20_000}, 5])
async def test_attributes_are_a_small_json_object(layer: DataLayer, attributes: object) -> None:
    with pytest.raises(InvalidArgument, match="attributes"):
        await layer.messages.append(ROOM, sender_id=ANN, body="hi", attributes=attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, 10.5, 31])
async def test_a_timeout_beyond_the_settings_is_refused(layer: DataLayer, timeout: float) -> None:
    with pytest.raises(InvalidArgument, match="at most 10"):
        await layer.messages.get(ROOM, uuid4(), timeout=timeout)


@pytest.mark.parametrize("limit", [0, 1001, True, "5"])
async def test_a_page_has_one_to_a_thousand_items(layer: DataLayer, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="limit is"):
        await layer.messages.history(ROOM, limit=limit)


async def test_a_cursor_goes_on_where_the_page_ended_and_belongs_to_its_arguments(layer: DataLayer) -> None:
    sent = [await layer.messages.append(ROOM, sender_id=ANN, body=str(n)) for n in range(5)]
    first = await layer.messages.history(ROOM, limit=2)
    second = await layer.messages.history(ROOM, limit=2, cursor=first.next_cursor)
    last = await layer.messages.history(ROOM, limit=2, cursor=second.next_cursor)
    assert [*first.items, *second.items, *last.items] == sent[::-1]
    assert last.next_cursor is None
    assert first.next_cursor is not None
    for cursor in (first.next_cursor[:-2] + "AA", "", "no cursor", first.next_cursor + "A"):
        with pytest.raises(InvalidCursor):
            await layer.messages.history(ROOM, cursor=cursor)
    for arguments in ({"oldest_first": True}, {"include_deleted": True}):
        with pytest.raises(InvalidCursor, match="other arguments"):
            await layer.messages.history(ROOM, cursor=first.next_cursor, **arguments)
    with pytest.raises(InvalidCursor, match="other arguments"):
        await layer.messages.history(uuid4(), cursor=first.next_cursor)


async def test_a_repeated_append_is_the_same_write(layer: DataLayer) -> None:
    id_ = IdSource(CLOCK).uuid7()
    first = await layer.messages.append(ROOM, sender_id=ANN, body="hi", id=id_)
    assert await layer.messages.append(ROOM, sender_id=ANN, body="hi", id=id_) == first
    with pytest.raises(AlreadyExists):
        await layer.messages.append(ROOM, sender_id=ANN, body="other", id=id_)
    edited = await layer.messages.edit(ROOM, id_, body="better")
    assert await layer.messages.append(ROOM, sender_id=ANN, body="hi", id=id_) == edited
    await layer.messages.delete(ROOM, id_)
    await layer.messages.delete(ROOM, id_)
    assert await layer.messages.get(ROOM, id_) is None
    assert (await layer.messages.append(ROOM, sender_id=ANN, body="hi", id=id_)).deleted
    with pytest.raises(NotFound):
        await layer.messages.edit(ROOM, id_, body="too late")


async def test_names_are_unique_without_case_and_unicode_form(layer: DataLayer) -> None:
    ann = await layer.users.create(username="Ann", email="Ann@Example.org")
    with pytest.raises(AlreadyExists) as taken:
        await layer.users.create(username="ＡＮＮ")
    assert taken.value.field == "username"
    with pytest.raises(AlreadyExists) as taken:
        await layer.users.create(username="bob", email="ann@example.ORG")
    assert taken.value.field == "email"
    assert await layer.users.get_by_email("ANN@example.org") == ann
    with pytest.raises(Conflict):
        await layer.users.update(ann.id, display_name="Ann", expected_version=ann.version + 1)
    with pytest.raises(InvalidArgument, match="username must not be empty"):
        await layer.users.create(username="  ")


async def test_one_deadline_holds_for_every_call_of_a_block(layer: DataLayer) -> None:
    with layer.deadline(5.0) as deadline:
        await layer.messages.append(ROOM, sender_id=ANN, body="hi")
        assert 0 < deadline.remaining() < 5.0


async def test_nothing_is_served_by_a_layer_that_a_fork_inherited(layer: DataLayer) -> None:
    layer.forked()
    with pytest.raises(Closed):
        await layer.messages.append(ROOM, sender_id=ANN, body="hi")
