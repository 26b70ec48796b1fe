"""The process that uses everything beside messages and users: it finds nothing where nothing is wrong, and what is wrong.

So does the judge that holds what it knew at its end against what is stored then.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.domains.record import Key, Record
from datalayer.errors import Corrupt, InvalidArgument, NotFound
from datalayer.layer import DataLayer, LayerOptions
from datalayer.repositories.conversations import Conversations
from datalayer.repositories.media import MediaItems
from datalayer.repositories.messages import Messages
from datalayer.repositories.presence import PresenceRepository
from datalayer.repositories.search import Search
from datalayer.repositories.sessions import Sessions
from datalayer.repositories.typing import Typing
from datalayer.settings import parse_settings
from datalayer.types import Page, Presence
from tests.acceptance import side_rooms
from tests.acceptance.growth_fleet import compare_index
from tests.acceptance.side_judge import judge
from tests.acceptance.side_kinds import (
    Found,
    MediaTraffic,
    PresenceTraffic,
    SessionTraffic,
    Traffic,
    TypingTraffic,
)
from tests.acceptance.side_rooms import ConversationTraffic, SearchTraffic
from tests.acceptance.side_traffic import KINDS, kinds_in, write_facts
from tests.unit.cli_world import fresh_world

SEVERAL = 12
MANY = 160
Fake = Callable[..., Any]


@pytest.fixture
async def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DataLayer]:
    """A deployment with a place for everything, in memory but for the files of media."""
    fresh_world(tmp_path, monkeypatch)
    document = {"backends": {"main": {"url": "memory://"}, "files": {"url": f"file://{tmp_path}/media"}}}
    async with DataLayer.open(parse_settings(document), options=LayerOptions(name="side")) as opened:
        yield opened


async def traffic(layer: DataLayer, kind: type[Traffic], steps: int = MANY) -> Traffic:
    """What a process has seen after some steps."""
    side = kind(layer, "1")
    for step in range(SEVERAL if isinstance(side, PresenceTraffic) else steps):
        await side.step()
        if isinstance(side, PresenceTraffic):
            side.due = dict.fromkeys(side.users, 0.0)
        if isinstance(side, SearchTraffic) and step == steps // 2:
            await followed(side)
    return side


async def followed(side: SearchTraffic) -> None:
    """Return when the index has followed, if it ever finds anything."""
    picked, said = list(side.live.items())[-1]
    for _ in range(200):
        if await side.finds(picked, said.word):
            return
        await asyncio.sleep(0.001)


def wrongs(found: Found) -> set[str]:
    """Of what kinds there are violations."""
    return {kind for kind in ("lost", "ghost", "stale", "other") if getattr(found, kind)}


async def test_every_domain_is_used_and_nothing_is_found_where_nothing_is_wrong(
    layer: DataLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_rooms, "LATE_S", 1.0)
    assert kinds_in(layer) == list(KINDS)
    sides = [await traffic(layer, kind) for kind in KINDS]
    for side in sides:
        assert wrongs(side.found) == set(), side.found
        assert side.found.operations >= MANY / 2, side.domain
        assert side.found.unknown == 0
    write_facts(tmp_path, "side-1", sides)
    total = await judge(layer, tmp_path)
    assert {domain: wrongs(found) for domain, found in total.items()} == {kind.domain: set() for kind in KINDS}
    assert sum(found.operations for found in total.values()) > sum(side.found.operations for side in sides)


# --- what a process sees while it works -------------------------------------------------------------------------------


def answers(value: Any) -> Fake:
    """A call with one answer, whatever it is asked."""

    async def fake(_self: object, *_: Any, **__: Any) -> Any:
        return value

    return fake


def refuses(error: Exception) -> Fake:
    """A call that is always refused."""

    async def fake(_self: object, *_: Any, **__: Any) -> Any:
        raise error

    return fake


def everybody(shown: Presence) -> Fake:
    """All users are shown so."""

    async def online(_self: object, ids: Any) -> dict[Any, Presence]:
        return dict.fromkeys(ids, shown)

    return online


async def renamed(_self: object, _id: UUID, *, title: str, **_: Any) -> Any:
    """It says so, and stores nothing."""
    return SimpleNamespace(title=title, version=1)


FORGETS = answers(None)
"""Something that is not there any more, or a call that did nothing."""
PLANTED = [
    (PresenceTraffic, PresenceRepository, "online", everybody(Presence.OFFLINE), "lost"),
    (PresenceTraffic, PresenceRepository, "online", everybody(Presence.ONLINE), "ghost"),
    (PresenceTraffic, PresenceRepository, "heartbeat", refuses(InvalidArgument("no")), "other"),
    (TypingTraffic, Typing, "who", answers(()), "lost"),
    (TypingTraffic, Typing, "stop", FORGETS, "ghost"),
    (SessionTraffic, Sessions, "get", FORGETS, "lost"),
    (SessionTraffic, Sessions, "touch", FORGETS, "lost"),
    (SessionTraffic, Sessions, "revoke", FORGETS, "ghost"),
    (SessionTraffic, Sessions, "get", answers(SimpleNamespace(user_id=uuid4())), "stale"),
    (MediaTraffic, MediaItems, "read", answers(b"other bytes"), "stale"),
    (MediaTraffic, MediaItems, "read", refuses(NotFound("no")), "lost"),
    (MediaTraffic, MediaItems, "read", refuses(Corrupt("no")), "other"),
    (MediaTraffic, MediaItems, "delete", FORGETS, "ghost"),
    (ConversationTraffic, Conversations, "get", FORGETS, "lost"),
    (ConversationTraffic, Conversations, "update", renamed, "stale"),
    (ConversationTraffic, Conversations, "add_member", FORGETS, "lost"),
    (ConversationTraffic, Conversations, "remove_member", FORGETS, "ghost"),
    (ConversationTraffic, Conversations, "delete", FORGETS, "ghost"),
    (SearchTraffic, Search, "messages", answers(Page(())), "lost"),
    (SearchTraffic, Messages, "edit", FORGETS, "stale"),
    (SearchTraffic, Messages, "delete", FORGETS, "ghost"),
]


@pytest.mark.parametrize(
    ("kind", "whose", "call", "fake", "wrong"),
    [pytest.param(*case, id=f"{case[0].domain}-{case[2]}-{case[4]}") for case in PLANTED],
)
async def test_an_answer_that_is_wrong_is_counted(
    layer: DataLayer,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Traffic],
    whose: type,
    call: str,
    fake: Fake,
    wrong: str,
) -> None:
    monkeypatch.setattr(side_rooms, "LATE_S", 0.0)
    monkeypatch.setattr(whose, call, fake)
    assert wrong in wrongs((await traffic(layer, kind)).found)


# --- what the judge sees in the end -----------------------------------------------------------------------------------


async def judged(
    layer: DataLayer, folder: Path, domain: str, facts: dict[str, Any], *, follow_s: float = 0.0
) -> set[str]:
    """What the judge says of facts that are held against what is stored."""
    told = {domain: {"found": {}, "facts": facts}}
    (folder / "side.json").write_text(json.dumps(told))
    return wrongs((await judge(layer, folder, follow_s=follow_s))[domain])


async def test_the_judge_of_sessions_sees_what_was_lost_or_came_back(layer: DataLayer, tmp_path: Path) -> None:
    facts = (await traffic(layer, SessionTraffic)).facts()
    assert await judged(layer, tmp_path, "sessions", facts) == set()
    token, user = next(iter(facts["live"].items()))
    revoked = facts["revoked"][0]
    assert await judged(layer, tmp_path, "sessions", {**facts, "revoked": [token]}) == {"ghost"}
    assert await judged(layer, tmp_path, "sessions", {**facts, "live": {revoked: user}}) == {"lost"}
    assert await judged(layer, tmp_path, "sessions", {**facts, "live": {token: str(uuid4())}}) == {"stale"}


async def test_the_judge_of_media_sees_what_was_lost_changed_or_came_back(layer: DataLayer, tmp_path: Path) -> None:
    facts = (await traffic(layer, MediaTraffic)).facts()
    assert await judged(layer, tmp_path, "media", facts) == set()
    id_, owner, _ = facts["live"][0]
    assert await judged(layer, tmp_path, "media", {**facts, "live": [(id_, owner, "0" * 64)]}) == {"stale"}
    assert await judged(layer, tmp_path, "media", {**facts, "live": [(str(uuid4()), owner, "")]}) == {"lost"}
    assert await judged(layer, tmp_path, "media", {**facts, "deleted": [(id_, owner)]}) == {"ghost"}
    files = [path for path in (tmp_path / "media").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    assert await judged(layer, tmp_path, "media", facts) == {"other"}
    for path in files:
        path.unlink()
    assert await judged(layer, tmp_path, "media", facts) == {"lost"}


async def test_the_judge_of_conversations_sees_what_was_lost_changed_or_came_back(
    layer: DataLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = (await traffic(layer, ConversationTraffic)).facts()
    assert await judged(layer, tmp_path, "conversations", facts, follow_s=10.0) == set()
    id_, room = next(iter(facts["rooms"].items()))
    nobody = {**facts, "people": []}
    stranger = {**room, "members": {user: role for user, role in room["members"].items() if role == "owner"}}
    cases = [
        ({**nobody, "rooms": {id_: {**room, "title": "another"}}}, {"stale"}),
        ({**nobody, "rooms": {str(uuid4()): {**room, "members": {}}}}, {"lost"}),
        ({**nobody, "rooms": {id_: {**room, "members": {**room["members"], str(uuid4()): "member"}}}}, {"lost"}),
        ({**nobody, "rooms": {id_: stranger}}, {"ghost"}),
        ({**nobody, "deleted": [id_]}, {"ghost"}),
        ({**facts, "rooms": {}}, {"ghost"}),
    ]
    for planted, wrong in cases:
        assert await judged(layer, tmp_path, "conversations", planted) == wrong
    monkeypatch.setattr(Conversations, "of_user", answers(Page(())))
    assert await judged(layer, tmp_path, "conversations", facts) == {"lost"}


async def test_the_judge_of_search_sees_what_is_not_found_and_what_still_is(layer: DataLayer, tmp_path: Path) -> None:
    facts = (await traffic(layer, SearchTraffic)).facts()
    assert await judged(layer, tmp_path, "search", facts, follow_s=10.0) == set()
    id_, word = next(iter(facts["live"].items()))
    assert await judged(layer, tmp_path, "search", {**facts, "live": {id_: "another"}}) == {"lost"}
    assert await judged(layer, tmp_path, "search", {**facts, "gone": [(id_, word)]}) == {"stale"}
    assert await judged(layer, tmp_path, "search", {**facts, "live": {}, "gone": [(id_, word)]}) == {"ghost"}


def test_the_comparison_of_index_and_store_sees_each_kind_of_difference() -> None:
    def document(key: bytes, version: int) -> dict[Key, Record]:
        record = Record("message_doc", key, version, deleted=False, fields=())
        return {record.ident: record}

    should = document(b"a", 1) | document(b"b", 2) | document(b"c", 3)
    assert compare_index(should, should).clean
    have = document(b"a", 1) | document(b"c", 2) | document(b"d", 4) | document(b"e", 5)
    found = compare_index(should, have)
    assert (found.operations, found.lost, found.ghost, found.stale) == (3, 1, 2, 1)
    assert not found.clean
