"""Sessions in Redis beside bare redis-py that sends the same commands in the same pipelines, and makes equal sessions."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID, uuid4

from benchmarks.figures import Aim
from benchmarks.peers.bare_redis import BareSessions
from benchmarks.slices import Call, beside, interleaved
from benchmarks.stage import Ground, settings_of
from datalayer.layer import DataLayer
from datalayer.stores.redis.keys import Names

TASKS = (1, 8)
SLICES_PER_ROUND = 3
USERS = 100
AT_ONCE = 20
AIM = Aim(1.2, at_least=False)
BARE = "redis-py"
Say = Callable[[str], None]


class Side(Protocol):
    """Either side's calls; ``create`` gives a token."""

    async def create(self, user: UUID) -> str: ...

    async def get(self, token: str) -> Any: ...

    async def touch(self, token: str) -> Any: ...

    async def revoke(self, token: str) -> None: ...


class Library:
    """The same through a DataLayer."""

    def __init__(self, layer: DataLayer) -> None:
        sessions = layer.sessions
        self.get, self.touch, self.revoke = sessions.get, sessions.touch, sessions.revoke
        self._create = sessions.create

    async def create(self, user: UUID) -> str:
        made = await self._create(user)
        assert made.token is not None, "a session that was just made has a token"
        return made.token


async def measure(ground: Ground, calls: int, rounds: int, say: Say) -> dict[str, Any]:
    """create, get, touch and revoke, by one task and by eight."""
    url = ground.redis()
    settings = settings_of({"main": ground.sqlite(), "redis": url}, ground.sqlite(), sessions="redis")
    users = [uuid4() for _ in range(USERS)]
    told: list[dict[str, Any]] = []
    async with DataLayer.open(settings) as layer:
        place = layer.router("sessions").routing.authority
        bare = BareSessions(url, Names("datalayer", "sessions", place.attempt))
        await bare.open()
        library = Library(layer)
        await _same_sessions(library, bare, users[0])
        for call in ("create", "get", "touch", "revoke"):
            for tasks in TASKS:
                sides = [_Tokens(side, call, users, calls) for side in (library, bare)]
                found = await interleaved(
                    [side.call for side in sides],
                    calls,
                    tasks,
                    rounds * SLICES_PER_ROUND,
                    lambda number, sides=sides: sides[number].ready(),  # type: ignore[misc]
                )
                figures = beside(found[0], found[1]) | {"call": call, "tasks": tasks, "bare": BARE}
                told.append(figures | {"aim": str(AIM), "met": AIM.met(figures["ratio"]["median"])})
            say(f"sessions: {call} measured")
        await bare.close()
    return {"calls_a_slice": calls, "slices": rounds * SLICES_PER_ROUND, "tasks": list(TASKS), "calls": told}


class _Tokens:
    """One side's calls, each of a session of its own; those that a slice needs are made while no clock runs."""

    def __init__(self, side: Side, what: str, users: list[UUID], calls: int) -> None:
        self._side = side
        self._users = users
        self._calls = calls
        self._tokens: list[str] = []
        self._what = what
        self.call: Call = self._create if what == "create" else self._other

    async def ready(self) -> None:
        if self._what == "create" or (self._what != "revoke" and self._tokens):
            return
        self._tokens = []
        for at in range(0, self._calls, AT_ONCE):
            self._tokens += await asyncio.gather(
                *(self._create(number) for number in range(at, min(at + AT_ONCE, self._calls)))
            )

    async def _create(self, number: int) -> str:
        return await self._side.create(self._users[number % len(self._users)])

    async def _other(self, number: int) -> object:
        found = await getattr(self._side, self._what)(self._tokens[number])
        assert found is not None or self._what == "revoke", "the session is there"
        return found


async def _same_sessions(library: Library, bare: BareSessions, user: UUID) -> None:
    """Each reads what the other has written, and takes its revokes; or the comparison means nothing."""
    for one, other in ((library, bare), (bare, library)):
        sides: tuple[Side, Side] = (one, other)
        token = await sides[0].create(user)
        assert await sides[0].get(token) == await sides[1].get(token) is not None, "both make equal sessions"
        touched = await sides[1].touch(token)
        assert touched == await sides[0].get(token) is not None, "a touch of one is seen by the other"
        await sides[1].revoke(token)
        assert await sides[0].get(token) is None, "a revoke of one is a revoke"
