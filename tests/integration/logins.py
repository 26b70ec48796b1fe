"""People who log in, stay, and are logged out, over several DataLayers, checked while they do.

One event loop, so "acknowledged before the read began" is exact. A user's sessions are made and ended by one task;
everybody touches and reads them.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import UUID, uuid4

from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer, LayerOptions
from datalayer.settings import Settings
from datalayer.types import Session

State = Literal["live", "ending", "ended"]
TTL_S = 600
TOUCHERS = 2


class SessionCalls(Protocol):
    """What the traffic asks of a layer's sessions."""

    async def create(self, user_id: UUID, *, ttl: float, attributes: dict[str, int]) -> Session: ...
    async def get(self, token: str) -> Session | None: ...
    async def touch(self, token: str, *, ttl: float) -> Session | None: ...
    async def revoke(self, token: str) -> None: ...
    async def revoke_all(self, user_id: UUID) -> None: ...


@dataclass(slots=True)
class Login:
    """One session as it was acknowledged."""

    token: str
    user: UUID
    expires_at_us: int
    state: State = "live"
    """ending: a revoke was begun; ended: it was acknowledged."""


@dataclass
class Logins:
    """The traffic's state: what was acknowledged, what was seen wrong, which errors came."""

    layers: list[SessionCalls]
    pause_s: float = 0.003
    logins: list[Login] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    errors: list[DatalayerError] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    revoked: int = 0
    stopped: bool = False

    async def come_and_go(self, number: int) -> None:
        """Create, revoke and revoke all sessions of some users of its own."""
        sessions, chance = self.layers[number % len(self.layers)], random.Random(number)
        users = [uuid4() for _ in range(4)]
        while not self.stopped:
            try:
                await self._one(sessions, chance, chance.choice(users))
            except DatalayerError as error:
                self.errors.append(error)
            self.writes += 1
            await asyncio.sleep(self.pause_s)

    async def _one(self, sessions: SessionCalls, chance: random.Random, user: UUID) -> None:
        mine = [one for one in self.logins if one.user == user and one.state == "live"]
        roll = chance.random()
        if roll < 0.6 or not mine:
            made = await sessions.create(user, ttl=TTL_S, attributes={"number": self.writes})
            assert made.token is not None
            self.logins.append(Login(made.token, user, made.expires_at_us))
            return
        ending = [chance.choice(mine)] if roll < 0.92 else mine
        for one in ending:
            one.state = "ending"
        if roll < 0.92:
            await sessions.revoke(ending[0].token)
        else:
            await sessions.revoke_all(user)
        for one in ending:
            one.state = "ended"
        self.revoked += len(ending)

    async def touch_forever(self, number: int) -> None:
        """Touch whatever session there is, also while it is being revoked."""
        sessions, chance = self.layers[number % len(self.layers)], random.Random(500 + number)
        while not self.stopped:
            await asyncio.sleep(self.pause_s)
            # One toucher a session: of two touches at the same moment the last one written counts.
            mine = self.logins[number % TOUCHERS :: TOUCHERS][-30:]
            if not mine:
                continue
            one = chance.choice(mine)
            before, expires_at_us = one.state, one.expires_at_us
            try:
                found = await sessions.touch(one.token, ttl=TTL_S + self.writes)
            except DatalayerError as error:
                self.errors.append(error)
                continue
            self.judge(one, before, expires_at_us, found, "touch")
            if found is not None:
                one.expires_at_us = max(one.expires_at_us, found.expires_at_us)

    async def read_forever(self, number: int) -> None:
        """Read sessions of everybody; compare with what was acknowledged before the read began."""
        sessions, chance = self.layers[number % len(self.layers)], random.Random(1000 + number)
        while not self.stopped:
            await asyncio.sleep(self.pause_s)
            if self.logins:
                await self.look(sessions, chance.choice(self.logins))

    async def look(self, sessions: SessionCalls, one: Login) -> None:
        """Read one session and judge the answer."""
        before, expires_at_us = one.state, one.expires_at_us
        try:
            found = await sessions.get(one.token)
        except DatalayerError as error:
            self.errors.append(error)
            return
        self.reads += 1
        self.judge(one, before, expires_at_us, found, "get")

    def judge(self, one: Login, before: State, expires_at_us: int, found: Session | None, call: str) -> None:
        """``before`` and ``expires_at_us``: what had been acknowledged when the call began."""
        if before == "ended" and found is not None:
            self.wrong.append(f"accepted after its revoke, by {call}: {found}")
        elif before == one.state == "live" and found is None:
            self.wrong.append(f"lost, says {call}: a session of {one.user}")
        elif before == "live" and found is not None and found.expires_at_us < expires_at_us:
            self.wrong.append(f"a touch was lost, says {call}: {found}, not {expires_at_us}")

    async def audit(self, sessions: SessionCalls) -> None:
        """Everything acknowledged is there, nothing revoked is."""
        for one in self.logins:
            await self.look(sessions, one)


@asynccontextmanager
async def logins(settings: Settings, *, layers: int = 3, people: int = 3) -> AsyncIterator[Logins]:
    """Traffic while the block runs; audited at its end, every wrong answer fails."""
    opened: list[DataLayer] = []
    try:
        while len(opened) < layers:
            opened.append(await DataLayer.connect(settings, options=LayerOptions(name=f"logins-{len(opened)}")))
        live = Logins([layer.sessions for layer in opened])
        tasks = [asyncio.create_task(live.come_and_go(number)) for number in range(people)]
        tasks += [asyncio.create_task(live.touch_forever(number)) for number in range(TOUCHERS)]
        tasks += [asyncio.create_task(live.read_forever(number)) for number in range(3)]
        try:
            yield live
        finally:
            live.stopped = True
            await asyncio.gather(*tasks)
        await live.audit(opened[-1].sessions)
        assert not live.wrong, live.wrong[:5]
    finally:
        for layer in opened:
            await layer.close()
