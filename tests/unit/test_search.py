"""layer.search over memory: what it finds, filters, re-checks and refuses. The index is filled by hand here."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl, MemoryControlServer
from datalayer.domains import messages, users
from datalayer.domains.search import document_of
from datalayer.errors import InvalidArgument, InvalidCursor
from datalayer.layer import DataLayer, LayerOptions
from datalayer.settings import parse_settings
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.sharded import ShardedBackend
from datalayer.types import Message, User


@pytest.fixture
async def layer() -> AsyncIterator[DataLayer]:
    clock = SystemClock()
    settings = parse_settings({"backends": {"main": {"url": "memory://"}}, "control": {"url": "memory://"}})
    control = MemoryControl(MemoryControlServer("control", clock))
    await control.open(create=True)
    backends = {"main": MemoryBackend(MemoryServer("main", clock), name="main")}
    layer = DataLayer(settings, control, backends, clock=clock, options=LayerOptions(project=False))
    await layer.start()
    yield layer
    await layer.close()


async def index(layer: DataLayer, *entities: Message | User) -> None:
    store = layer.router("search").route.authority
    records = [messages.to_record(one) if isinstance(one, Message) else users.to_record(one) for one in entities]
    await store.apply([document for record in records if (document := document_of(record))])


def ids(page: Any) -> list[UUID]:
    return [hit.message.id for hit in page.items]


async def test_hits_are_the_messages_newest_first_over_conversations(layer: DataLayer, room: UUID, other: UUID) -> None:
    sent = [
        await layer.messages.append(one, sender_id=room, body=f"hello {at}") for at, one in enumerate([room, other] * 5)
    ]
    await index(layer, *sent)
    page = await layer.search.messages("HELLO", conversations=[room, other], limit=4)
    met = ids(page)
    while page.next_cursor:
        page = await layer.search.messages("hello", conversations=[other, room], limit=4, cursor=page.next_cursor)
        met += ids(page)
    assert met == [message.id for message in reversed(sent)]
    assert ids(await layer.search.messages("hello", conversations=[room])) == [m.id for m in reversed(sent[::2])]
    assert ids(await layer.search.messages("hello", conversations=[])) == []
    assert (await layer.search.messages('"hello 3"', conversations=[other])).items[0].message == sent[3]


async def test_sender_and_time_narrow_it(layer: DataLayer, room: UUID, other: UUID) -> None:
    sent = [await layer.messages.append(room, sender_id=one, body="hello") for one in (room, other, room)]
    await index(layer, *sent)
    assert ids(await layer.search.messages("hello", conversations=[room], sender=other)) == [sent[1].id]
    at = sent[1].created_at
    found = await layer.search.messages("hello", conversations=[room], between=(at, None))
    assert ids(found) == [sent[2].id, sent[1].id]
    found = await layer.search.messages("hello", conversations=[room], between=(None, at))
    assert ids(found) == [sent[0].id]
    found = await layer.search.messages("hello", conversations=[room], between=(at, at + timedelta(microseconds=1)))
    assert ids(found) == [sent[1].id]


async def test_what_was_deleted_or_changed_since_is_dropped_or_shown_as_it_is(layer: DataLayer, room: UUID) -> None:
    """The page is filled to its limit nevertheless."""
    sent = [await layer.messages.append(room, sender_id=room, body=f"hello {at}") for at in range(30)]
    await index(layer, *sent)
    for message in sent[10:20]:
        await layer.messages.delete(room, message.id)
    for message in sent[20:25]:
        await layer.messages.edit(room, message.id, body="bye")
    edited = await layer.messages.edit(room, sent[25].id, body="still hello")
    page = await layer.search.messages("hello", conversations=[room], limit=10)
    assert len(page.items) == 10
    assert ids(page) == [m.id for m in (*sent[29:24:-1], *sent[9:4:-1])]
    assert page.items[4].message == edited
    rest = await layer.search.messages("hello", conversations=[room], limit=10, cursor=page.next_cursor)
    assert ids(rest) == [m.id for m in sent[4::-1]]
    assert rest.next_cursor is None


async def test_an_index_of_messages_that_are_gone_gives_a_short_page_and_a_way_on(layer: DataLayer, room: UUID) -> None:
    gone = [Message(UUID(int=(7 << 76) | (1 << 63) | at), room, room, "hello", version=1) for at in range(1, 60)]
    kept = await layer.messages.append(room, sender_id=room, body="hello")
    old = [one for one in gone if one.id < kept.id]
    await index(layer, *old, kept)
    page = await layer.search.messages("hello", conversations=[room], limit=1)
    assert ids(page) == [kept.id]
    page = await layer.search.messages("hello", conversations=[room], limit=1, cursor=page.next_cursor)
    assert (page.items, page.next_cursor is None) == ((), False)
    for _ in range(3):
        if page.next_cursor:
            page = await layer.search.messages("hello", conversations=[room], limit=1, cursor=page.next_cursor)
    assert page.next_cursor is None


async def test_highlights_mark_what_matched(layer: DataLayer, room: UUID) -> None:
    message = await layer.messages.append(room, sender_id=room, body="<p>oh <b>Hello</b> there</p>")
    await index(layer, message)
    (hit,) = (await layer.search.messages("hello", conversations=[room], highlight=True)).items
    assert hit.excerpt is not None
    assert [hit.excerpt.text[low:high] for low, high in hit.excerpt.marks] == ["Hello"]
    (plain,) = (await layer.search.messages("hello", conversations=[room])).items
    assert plain.excerpt is None


async def test_users_by_the_beginning_of_a_name(layer: DataLayer) -> None:
    made = [
        await layer.users.create(username=name, display_name=shown)
        for name, shown in [("zed", "Ann Smith"), ("ann.b", "Bob"), ("Anna", ""), ("bob", "Joann"), ("eve", "Smith")]
    ]
    await index(layer, *made)
    assert [user.username for user in (await layer.search.users("ANN")).items] == ["ann.b", "Anna", "zed"]
    first = await layer.search.users("ann", limit=2)
    assert [user.username for user in first.items] == ["ann.b", "Anna"]
    then = await layer.search.users("ann", limit=2, cursor=first.next_cursor)
    assert [user.username for user in then.items] == ["zed"]
    await layer.users.update(made[1].id, username="carl")
    await layer.users.delete(made[2].id)
    assert [user.username for user in (await layer.search.users("ann")).items] == ["zed"]
    assert (await layer.search.users("bob eve")).items == ()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": "!!"}, "no word"),
    ({"query": ""}, "no word"),
    ({"query": "a\x00b"}, "NUL"),
    ({"query": "x" * 2000}, "1024"),
    ({"limit": 0}, "limit is 0"),
    ({"limit": 1001}, "limit is 1001"),
    ({"conversations": UUID(int=1)}, "a list of ids, not one"),
    ({"conversations": [UUID(int=at) for at in range(1001)]}, "1001 of conversations were passed; the limit is 1000"),
    ({"conversations": ["x"]}, "must be a UUID"),
    ({"sender": "x"}, "sender must be a UUID"),
    ({"between": datetime.now(UTC)}, "two times"),
    ({"between": (datetime(2026, 1, 1), None)}, "time zone"),  # noqa: DTZ001 - the mistake
    ({"cursor": "x"}, "damaged"),
]


@pytest.mark.parametrize(("argument", "said"), BAD, ids=lambda value: value if isinstance(value, str) else "")
async def test_mistakes_are_told(layer: DataLayer, room: UUID, argument: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"query": "hello", "conversations": [room]} | argument
    with pytest.raises(InvalidArgument, match=said):
        await layer.search.messages(arguments.pop("query"), **arguments)


async def test_a_cursor_belongs_to_its_query(layer: DataLayer, room: UUID, other: UUID) -> None:
    sent = [await layer.messages.append(room, sender_id=room, body="hello you") for _ in range(3)]
    await index(layer, *sent)
    cursor = (await layer.search.messages("hello", conversations=[room], limit=1)).next_cursor
    await layer.search.messages("hello", conversations=[room], limit=2, cursor=cursor)
    for query, rooms in (("you", [room]), ("hello", [other]), ("hello", [room, other])):
        with pytest.raises(InvalidCursor):
            await layer.search.messages(query, conversations=rooms, cursor=cursor)
    with pytest.raises(InvalidCursor):
        await layer.search.users("hello", cursor=cursor)


def test_shards_hold_no_index() -> None:
    assert "asked as a whole" in str(ShardedBackend("shards", {}, groups=2).refuses("search"))


@pytest.fixture
def room() -> UUID:
    return UUID("018f0000-0000-7000-8000-000000000001")


@pytest.fixture
def other() -> UUID:
    return UUID("018f0000-0000-7000-8000-000000000002")
