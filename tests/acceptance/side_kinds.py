"""What one process does with presence, typing, sessions and media, and what it holds against each answer."""

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from datalayer.errors import DatalayerError, NotFound, Outcome
from datalayer.layer import DataLayer

TTL_S = 8.0
MARGIN_S = 2.0
"""How long before its end a beat is not held against an answer: calls and processes are slow on a busy machine."""
USERS = 30
MEDIA_MAX = 40_000
EXAMPLES = 5
GONE = 50
"""So many of those that were revoked or deleted last are asked for again."""


@dataclass(slots=True)
class Found:
    """What one domain has shown."""

    operations: int = 0
    lost: int = 0
    ghost: int = 0
    stale: int = 0
    other: int = 0
    unknown: int = 0
    examples: list[str] = field(default_factory=list)

    def wrong(self, kind: str, text: str) -> None:
        """Count a violation; the first ones are kept."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {text}")

    def add(self, told: dict[str, Any]) -> None:
        """What another process has found."""
        for name, value in told.items():
            setattr(self, name, getattr(self, name) + value)


class Traffic:
    """Calls of one domain, one after the other. ``facts`` is what must be true in the end."""

    domain = ""

    def __init__(self, layer: DataLayer, seed: str) -> None:
        self.layer: Any = layer
        self.random = random.Random(seed)
        self.found = Found()

    async def step(self) -> None:
        """Some calls."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a fresh process must find."""
        return {}

    async def call(self, call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        """(whether it succeeded, its answer). A refusal that no application could live with is a violation.

        What is not there when it must be is lost.
        """
        self.found.operations += 1
        try:
            return True, await call()
        except DatalayerError as error:
            if error.retryable or error.outcome is Outcome.UNKNOWN:
                self.found.unknown += 1
            else:
                kind = "lost" if isinstance(error, NotFound) else "other"
                self.found.wrong(kind, f"{self.domain}: {type(error).__name__}: {error}")
        return False, None


class PresenceTraffic(Traffic):
    """Two thirds of the users never stop beating, the others come and go."""

    domain = "presence"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.users = [uuid4() for _ in range(USERS)]
        self.until: dict[UUID, float] = {}
        self.left: set[UUID] = set()
        self.due: dict[UUID, float] = dict.fromkeys(self.users, 0.0)

    async def step(self) -> None:
        now = time.monotonic()
        due = [user for user in self.users if self.due[user] <= now]
        await asyncio.gather(*(self._beat_or_leave(user) for user in due))
        await self._look()

    async def _beat_or_leave(self, user: UUID) -> None:
        self.due[user] = time.monotonic() + TTL_S / 4
        self.left.discard(user)
        if self.users.index(user) % 3 == 0 and self.random.random() < 0.5:
            self.until.pop(user, None)
            ok, _ = await self.call(lambda: self.layer.presence.leave(user))
            if ok:
                self.left.add(user)
            return
        began = time.monotonic()
        ok, _ = await self.call(lambda: self.layer.presence.heartbeat(user, ttl=TTL_S))
        if ok:
            self.until[user] = began + TTL_S
        else:
            # it may have come anyway: neither online nor offline can be held against anybody
            self.until.pop(user, None)

    async def _look(self) -> None:
        sure, gone = dict(self.until), set(self.left)
        ok, answer = await self.call(lambda: self.layer.presence.online(self.users))
        if not ok:
            return
        now = time.monotonic()
        for user in self.users:
            said = str(answer[user])
            if said == "offline" and sure.get(user, 0.0) > now + MARGIN_S and user in self.until:
                self.found.wrong("lost", f"{user} beats and is offline")
            if said == "online" and user in gone and user in self.left:
                self.found.wrong("ghost", f"{user} has left and is online")
            self.found.unknown += said == "unknown"


class TypingTraffic(Traffic):
    """Users begin to type and stop, in one conversation."""

    domain = "typing"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.room = uuid4()
        self.users = [uuid4() for _ in range(5)]
        self.until: dict[UUID, float] = {}
        self.stopped: set[UUID] = set()

    async def step(self) -> None:
        user = self.random.choice(self.users)
        self.until.pop(user, None)
        self.stopped.discard(user)
        began = time.monotonic()
        if self.random.random() < 0.6:
            ok, _ = await self.call(lambda: self.layer.typing.start(self.room, user, ttl=TTL_S))
            if ok:
                self.until[user] = began + TTL_S
        else:
            ok, _ = await self.call(lambda: self.layer.typing.stop(self.room, user))
            if ok:
                self.stopped.add(user)
        ok, typing = await self.call(lambda: self.layer.typing.who(self.room))
        if not ok:
            return
        now = time.monotonic()
        for one, until in self.until.items():
            if one not in typing and until > now + MARGIN_S:
                self.found.wrong("lost", f"{one} types and is not shown")
        for one in self.stopped & set(typing):
            self.found.wrong("ghost", f"{one} has stopped and is shown")


class SessionTraffic(Traffic):
    """Sessions are made, touched, read and revoked."""

    domain = "sessions"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.live: dict[str, UUID] = {}
        self.revoked: dict[str, UUID] = {}

    async def step(self) -> None:
        draw = self.random.random()
        if draw < 0.3 or not self.live:
            user = uuid4()
            ok, session = await self.call(lambda: self.layer.sessions.create(user))
            if ok:
                self.live[session.token] = user
        elif draw < 0.4:
            token = self.random.choice(list(self.live))
            user = self.live.pop(token)
            ok, _ = await self.call(lambda: self.layer.sessions.revoke(token))
            if ok:
                self.revoked[token] = user
        elif draw < 0.55:
            token = self.random.choice(list(self.live))
            ok, session = await self.call(lambda: self.layer.sessions.touch(token))
            self._check(token, session, ok=ok)
        else:
            token = self.random.choice([*self.live, *list(self.revoked)[-GONE:]])
            ok, session = await self.call(lambda: self.layer.sessions.get(token))
            self._check(token, session, ok=ok)

    def _check(self, token: str, session: Any, *, ok: bool) -> None:
        if ok and token in self.live and session is None:
            self.found.wrong("lost", f"a session of {self.live[token]}")
        if ok and token in self.live and session is not None and session.user_id != self.live[token]:
            self.found.wrong("stale", f"the session of {self.live[token]} is {session.user_id}'s")
        if ok and token in self.revoked and session is not None:
            self.found.wrong("ghost", f"a revoked session of {self.revoked[token]}")

    def facts(self) -> dict[str, Any]:
        live = {token: str(user) for token, user in self.live.items()}
        return {"live": live, "revoked": list(self.revoked)}


class MediaTraffic(Traffic):
    """Files are put, read back by their hash, and deleted."""

    domain = "media"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.owner = uuid4()
        self.live: dict[UUID, tuple[UUID, str]] = {}
        """Of each item its owner and the hash of its bytes."""
        self.deleted: dict[UUID, UUID] = {}

    async def put(self, owner: UUID, size: int) -> None:
        """One more item."""
        data = self.random.randbytes(size)
        ok, item = await self.call(lambda: self.layer.media.put(owner_id=owner, data=data, content_type="image/png"))
        if ok:
            self.live[item.id] = (owner, hashlib.sha256(data).hexdigest())

    async def step(self) -> None:
        draw = self.random.random()
        if draw < 0.3 or not self.live:
            await self.put(self.owner, self.random.randrange(1, MEDIA_MAX))
        elif draw < 0.4:
            picked = self.random.choice(list(self.live))
            owner, _ = self.live.pop(picked)
            ok, _ = await self.call(lambda: self.layer.media.delete(picked, owner_id=owner))
            if ok:
                self.deleted[picked] = owner
        elif draw < 0.5 and self.deleted:
            picked = self.random.choice(list(self.deleted)[-GONE:])
            ok, item = await self.call(lambda: self.layer.media.get(picked, owner_id=self.deleted[picked]))
            if ok and item is not None:
                self.found.wrong("ghost", f"deleted media {picked}")
        else:
            await self._read(self.random.choice(list(self.live)))

    async def _read(self, picked: UUID) -> None:
        owner, digest = self.live[picked]
        ok, data = await self.call(lambda: self.layer.media.read(picked, owner_id=owner))
        if ok and hashlib.sha256(data).hexdigest() != digest:
            self.found.wrong("stale", f"other bytes of {picked}")

    def facts(self) -> dict[str, Any]:
        live = [(str(id_), str(owner), digest) for id_, (owner, digest) in self.live.items()]
        return {"live": live, "deleted": [(str(id_), str(owner)) for id_, owner in self.deleted.items()]}
