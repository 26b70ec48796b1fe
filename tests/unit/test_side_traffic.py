"""The process that uses presence and sessions beside everything else: it finds nothing where nothing is wrong, and what is wrong."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from datalayer.errors import InvalidArgument
from datalayer.layer import DataLayer
from datalayer.repositories.presence import PresenceRepository
from datalayer.repositories.sessions import Sessions
from datalayer.types import Presence
from tests.acceptance.side_traffic import PresenceTraffic, SessionTraffic, kinds_in
from tests.unit.cli_world import World, fresh_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def traffic(world: World) -> PresenceTraffic:
    async def use(layer: DataLayer) -> PresenceTraffic:
        assert PresenceTraffic in kinds_in(layer)
        kind = PresenceTraffic(layer, "1")
        for _ in range(12):
            await kind.step()
            kind.due = dict.fromkeys(kind.users, 0.0)
            await asyncio.sleep(0)
        return kind

    return world.with_layer(use)


def test_nothing_is_found_where_nothing_is_wrong(world: World) -> None:
    kind = traffic(world)
    assert (kind.found.lost, kind.found.ghost, kind.found.other) == (0, 0, 0)
    assert kind.found.operations > 100
    assert kind.left


@pytest.mark.parametrize(("shown", "wrong"), [(Presence.OFFLINE, "lost"), (Presence.ONLINE, "ghost")])
def test_an_answer_that_is_wrong_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, shown: Presence, wrong: str
) -> None:
    async def online(_self: object, ids: Any) -> dict[Any, Presence]:
        return dict.fromkeys(ids, shown)

    monkeypatch.setattr(PresenceRepository, "online", online)
    assert getattr(traffic(world).found, wrong) > 0


def test_a_refusal_that_no_application_could_live_with_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def heartbeat(_self: object, *_: Any, **__: Any) -> None:
        raise InvalidArgument("no")

    monkeypatch.setattr(PresenceRepository, "heartbeat", heartbeat)
    assert traffic(world).found.other > 0


def logins(world: World) -> SessionTraffic:
    async def use(layer: DataLayer) -> SessionTraffic:
        assert SessionTraffic in kinds_in(layer)
        kind = SessionTraffic(layer, "1")
        for _ in range(150):
            await kind.step()
        return kind

    return world.with_layer(use)


def test_sessions_that_are_kept_and_revoked_as_asked_are_found_so(world: World) -> None:
    kind = logins(world)
    assert (kind.found.lost, kind.found.ghost, kind.found.other) == (0, 0, 0)
    assert kind.live
    assert kind.revoked


async def forgets(_self: object, *_: Any, **__: Any) -> None:
    """A session that is not there any more, or a revoke that did nothing."""


@pytest.mark.parametrize(("call", "wrong"), [("get", "lost"), ("touch", "lost"), ("revoke", "ghost")])
def test_a_session_that_is_lost_or_stays_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, wrong: str
) -> None:
    monkeypatch.setattr(Sessions, call, forgets)
    assert getattr(logins(world).found, wrong) > 0
