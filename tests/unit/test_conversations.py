"""Conversations as services call them: what is refused, pages and cursors, and each user's list that follows."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.errors import AlreadyExists, Conflict, InvalidArgument, InvalidCursor, NotFound, Unavailable
from datalayer.ids import IdSource, uuid7_at
from datalayer.layer import DataLayer, LayerOptions
from datalayer.routing import projector
from datalayer.settings import parse_settings
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.stores.memory.server import MemoryServer

CLOCK = SystemClock()
IDS = IdSource(CLOCK)


class Deployment:
    """Servers that stay when every data layer is closed."""

    def __init__(self) -> None:
        self.servers = {name: MemoryServer(name, CLOCK) for name in ("main", "other")}
        self.control = MemoryControlServer("control", CLOCK)
        self.settings = parse_settings(
            {
                "backends": {name: {"url": "memory://"} for name in self.servers},
                "routes": {"listings": "other"},
                "control": {"url": "memory://"},
                "limits": {"members_max": 4},
            }
        )
        self.layers: list[DataLayer] = []

    async def open(self, **options: Any) -> DataLayer:
        backends = {name: MemoryBackend(server, name=name) for name, server in self.servers.items()}
        control = MemoryControl(self.control)
        layer = DataLayer(self.settings, control, backends, clock=CLOCK, options=LayerOptions(**options))
        await layer.start()
        self.layers.append(layer)
        return layer


@pytest.fixture
async def deployment() -> AsyncIterator[Deployment]:
    made = Deployment()
    yield made
    for layer in made.layers:
        await layer.close()


@pytest.fixture
async def layer(deployment: Deployment) -> DataLayer:
    return await deployment.open()


async def follow(layer: DataLayer) -> None:
    """Wait until no list is behind."""
    for _ in range(500):
        if (await layer.projector.lag()).behind == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the lists stay behind")


async def listed(layer: DataLayer, user: UUID) -> list[UUID]:
    return [one.conversation_id for one in (await layer.conversations.of_user(user)).items]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"members": {}}, "must name an owner"),
        ({"members": {uuid4(): "admin"}}, "must name an owner"),
        ({"members": {uuid4(): "king"}}, "role is 'king'"),
        ({"members": [uuid4()]}, "must map user ids to roles"),
        ({"members": {"ann": "owner"}}, "members must be a UUID"),
        ({"members": {uuid4(): "owner" for _ in range(5)}}, "5 members were passed; the limit is 4"),
        ({"title": "a\x00b"}, "title contains the character NUL"),
        ({"title": "x" * 1025}, "title is 1025 bytes"),
        ({"id": uuid4()}, "ids are UUIDv7"),
        ({"attributes": 5}, "attributes must be"),
    ],
)
async def test_a_wrong_conversation_is_one_sentence(layer: DataLayer, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await layer.conversations.create(**{"title": "t", "members": {uuid4(): "owner"}, **wrong})


async def test_what_is_not_there_and_what_is_taken(layer: DataLayer) -> None:
    ann, bob = uuid4(), uuid4()
    talk = layer.conversations
    made = await talk.create(title="Lunch", members={ann: "owner"})
    with pytest.raises(NotFound):
        await talk.add_member(IDS.uuid7(), bob)
    with pytest.raises(NotFound):
        await talk.set_role(made.id, bob, "admin")
    with pytest.raises(NotFound):
        await talk.mark_read(made.id, bob, IDS.uuid7())
    with pytest.raises(Conflict, match="last owner"):
        await talk.remove_member(made.id, ann)
    await talk.add_member(made.id, bob)
    with pytest.raises(AlreadyExists):
        await talk.add_member(made.id, bob, role="admin")
    for _ in range(2):
        await talk.add_member(made.id, uuid4())
    with pytest.raises(Conflict, match="4 members; the limit is 4"):
        await talk.add_member(made.id, uuid4())
    with pytest.raises(InvalidArgument, match="role"):
        await talk.set_role(made.id, bob, "king")
    with pytest.raises(InvalidArgument, match="60 s in the future"):
        await talk.mark_read(made.id, bob, uuid7_at(CLOCK.now_us() + 3_600_000_000, 1))


async def test_a_conversation_from_its_first_day_to_its_last(layer: DataLayer) -> None:
    ann, bob = uuid4(), uuid4()
    talk = layer.conversations
    id_ = IDS.uuid7()
    made = await talk.create(title="Lunch", members={str(ann): "owner", bob: "member"}, id=id_, attributes={"a": 1})
    assert await talk.create(title="Lunch", members={ann: "owner", bob: "member"}, id=id_) == made
    assert (made.id, made.kind, made.created_at) == (id_, "group", made.updated_at)
    changed = await talk.update(id_, title="Dinner", expected_version=made.version)
    with pytest.raises(Conflict):
        await talk.update(id_, title="Breakfast", expected_version=made.version)
    assert await talk.get(str(id_)) == changed
    assert await talk.get_many([id_, IDS.uuid7()]) == {id_: changed}
    assert await talk.role_of(id_, ann) == "owner"
    await talk.set_role(id_, bob, "owner")
    await talk.remove_member(id_, ann)
    await talk.remove_member(id_, ann)
    assert not await talk.is_member(id_, ann)
    newest = IDS.uuid7()
    assert (await talk.mark_read(id_, bob, newest)).read_up_to == newest
    assert (await talk.mark_read(id_, bob, id_)).read_up_to == newest
    await talk.delete(id_)
    await talk.delete(id_)
    assert await talk.get(id_) is None
    gone = await talk.get(id_, include_deleted=True)
    assert gone is not None
    assert gone.deleted
    assert await talk.get_many([]) == {}
    assert (await talk.members(id_)).items == ()


async def test_members_come_in_pages(layer: DataLayer) -> None:
    users = sorted(uuid4() for _ in range(4))
    made = await layer.conversations.create(members=dict.fromkeys(users, "owner"))
    first = await layer.conversations.members(made.id, limit=3)
    rest = await layer.conversations.members(made.id, limit=3, cursor=first.next_cursor)
    assert [one.user_id for one in (*first.items, *rest.items)] == users
    assert rest.next_cursor is None
    for wrong in (first.next_cursor, "nonsense"):
        with pytest.raises(InvalidCursor):
            await layer.conversations.members(IDS.uuid7(), cursor=wrong)
        with pytest.raises(InvalidCursor):
            await layer.conversations.of_user(users[0], cursor=wrong)


# --- the list of a user ---------------------------------------------------------------------------------------------


async def test_a_list_is_by_last_activity_and_comes_in_pages(layer: DataLayer) -> None:
    ann, bob = uuid4(), uuid4()
    rooms = [(await layer.conversations.create(members={ann: "owner", bob: "member"})).id for _ in range(3)]
    await follow(layer)
    assert await listed(layer, ann) == rooms[::-1]
    message = await layer.messages.append(rooms[0], sender_id=ann, body="hi")
    await layer.projector.show_activity()
    await _until(layer, bob, rooms[0])
    page = await layer.conversations.of_user(bob, limit=2)
    rest = await layer.conversations.of_user(bob, limit=2, cursor=page.next_cursor)
    assert [one.conversation_id for one in (*page.items, *rest.items)] == [rooms[0], rooms[2], rooms[1]]
    assert (page.items[0].newest, page.items[0].last_activity) == (message.id, message.created_at)
    assert [one.unread for one in page.items] == [True, False]
    await layer.conversations.mark_read(rooms[0], bob, message.id)
    await follow(layer)
    assert not (await layer.conversations.of_user(bob)).items[0].unread
    with pytest.raises(InvalidCursor):
        await layer.conversations.of_user(ann, limit=2, cursor=page.next_cursor)


async def _until(layer: DataLayer, user: UUID, first: UUID) -> None:
    for _ in range(500):
        if (await listed(layer, user))[:1] == [first]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the message does not show")


async def test_a_list_follows_who_comes_and_goes(layer: DataLayer) -> None:
    ann, bob = uuid4(), uuid4()
    made = await layer.conversations.create(members={ann: "owner"})
    await layer.messages.append(made.id, sender_id=ann, body="before bob came")
    await layer.conversations.add_member(made.id, bob)
    await follow(layer)
    (entry,) = (await layer.conversations.of_user(bob)).items
    assert (entry.role, entry.unread) == ("member", True)
    await layer.conversations.set_role(made.id, bob, "admin")
    await follow(layer)
    assert (await layer.conversations.of_user(bob)).items[0].role == "admin"
    await layer.conversations.remove_member(made.id, bob)
    await follow(layer)
    assert await listed(layer, bob) == []
    await layer.conversations.add_member(made.id, bob)
    await follow(layer)
    assert await listed(layer, bob) == [made.id]
    await layer.conversations.delete(made.id)
    await follow(layer)
    assert await listed(layer, bob) == await listed(layer, ann) == []


async def test_what_a_process_left_behind_is_shown_by_another(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "SWEEP_S", 0.02)
    monkeypatch.setattr(projector, "GRACE_US", 0)
    dead, ann = await deployment.open(project=False), uuid4()
    made = await dead.conversations.create(members={ann: "owner"})
    health = await dead.health()
    assert health["projections"]["listings"]["behind"] == 1
    assert health["projections"]["listings"]["oldest_s"] < 60
    await dead.close()
    living = [await deployment.open() for _ in range(2)]
    await follow(living[0])
    assert await listed(living[1], ann) == [made.id]
    assert (await living[0].health())["projections"]["listings"] == {"behind": 0, "oldest_s": 0.0}
    swept = [layer.projector for layer in living]
    assert sum(one.errors for one in swept) == 0


async def test_lists_that_are_down_lose_nothing_and_hold_up_nobody(deployment: Deployment) -> None:
    layer, ann = await deployment.open(), uuid4()
    deployment.servers["other"].up = False
    made = await layer.conversations.create(members={ann: "owner"})
    await layer.messages.append(made.id, sender_id=ann, body="hi")
    await layer.projector.show_members()
    await layer.projector.show_activity()
    assert (await layer.projector.lag()).behind == 1
    with pytest.raises(Unavailable):
        await layer.conversations.of_user(ann)
    deployment.servers["other"].up = True
    assert await layer.projector.sweep() == 1
    assert await listed(layer, ann) == [made.id]
    assert (await layer.projector.lag()).behind == 0


async def test_who_uses_messages_alone_pays_nothing_for_lists(layer: DataLayer) -> None:
    asked = []
    store = layer.router("conversations").route.authority

    async def members(*_: Any, **__: Any) -> list[Any]:
        asked.append(1)
        return []

    store.members = members
    for _ in range(5):
        await layer.messages.append(uuid4(), sender_id=uuid4(), body="hi")
    await layer.projector.show_activity()
    assert asked == []


async def test_a_change_that_comes_while_it_is_shown_is_shown_too(layer: DataLayer) -> None:
    ann = uuid4()
    made = await layer.conversations.create(members={ann: "owner"})
    ids = [IDS.uuid7() for _ in range(20)]
    await asyncio.gather(
        *(layer.conversations.mark_read(made.id, ann, one) for one in ids), layer.projector.show_members()
    )
    await follow(layer)
    (entry,) = (await layer.conversations.of_user(ann)).items
    assert entry.read_up_to == max(ids)


async def test_lists_that_are_left_alone_half_way_leave_no_coroutine_behind(layer: DataLayer) -> None:
    await layer.projector.stop()
    for _ in range(2 * projector.AT_ONCE):
        await layer.conversations.create(members={uuid4(): "owner"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        showing = asyncio.create_task(layer.projector.show_members())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        del showing
        gc.collect()
    assert [str(one.message) for one in told] == []
