"""One process that uses presence, sessions and media, as far as this version serves them, and judges what it sees.

    python -m tests.acceptance.side_traffic --config FILE --ledger FOLDER --name NAME

What it was told when a call ended is held against every later answer; what it knows at its end goes into FOLDER/NAME.json,
for `judge` to hold against what a fresh process reads.
"""

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from datalayer.errors import DatalayerError, Outcome
from datalayer.layer import DataLayer, LayerOptions
from datalayer.testing.workload import say, stop_at_end_of_input

TTL_S = 8.0
MARGIN_S = 2.0
"""How long before its end a beat is not held against an answer: calls and processes are slow on a busy machine."""
USERS = 30
MEDIA_MAX = 40_000
EXAMPLES = 5


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


class Traffic:
    """Calls of one domain. ``facts`` is what must be true in the end."""

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
        """(whether it succeeded, its answer). A refusal that no application could live with is a violation."""
        self.found.operations += 1
        try:
            return True, await call()
        except DatalayerError as error:
            if error.retryable or error.outcome is Outcome.UNKNOWN:
                self.found.unknown += 1
            else:
                self.found.wrong("other", f"{type(error).__name__}: {error}")
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
            token = self.random.choice([*self.live, *list(self.revoked)[-50:]])
            ok, session = await self.call(lambda: self.layer.sessions.get(token))
            self._check(token, session, ok=ok)

    def _check(self, token: str, session: Any, *, ok: bool) -> None:
        if ok and token in self.live and session is None:
            self.found.wrong("lost", f"a session of {self.live[token]}")
        if ok and token in self.revoked and session is not None:
            self.found.wrong("ghost", f"a revoked session of {self.revoked[token]}")

    def facts(self) -> dict[str, Any]:
        return {"live": list(self.live), "revoked": list(self.revoked)}


class MediaTraffic(Traffic):
    """Files are put, read back by their hash, and deleted."""

    domain = "media"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.owner = uuid4()
        self.live: dict[UUID, str] = {}
        self.deleted: set[UUID] = set()

    async def step(self) -> None:
        draw = self.random.random()
        if draw < 0.35 or not self.live:
            data = self.random.randbytes(self.random.randrange(1, MEDIA_MAX))
            ok, item = await self.call(
                lambda: self.layer.media.put(owner_id=self.owner, data=data, content_type="image/png")
            )
            if ok:
                self.live[item.id] = hashlib.sha256(data).hexdigest()
            return
        picked = self.random.choice(list(self.live))
        if draw < 0.42:
            del self.live[picked]
            ok, _ = await self.call(lambda: self.layer.media.delete(picked, owner_id=self.owner))
            if ok:
                self.deleted.add(picked)
            return
        ok, data = await self.call(lambda: self.layer.media.read(picked, owner_id=self.owner))
        if ok and hashlib.sha256(data).hexdigest() != self.live[picked]:
            self.found.wrong("stale", f"other bytes of {picked}")

    def facts(self) -> dict[str, Any]:
        live = {str(id_): digest for id_, digest in self.live.items()}
        return {"owner": str(self.owner), "live": live, "deleted": [str(id_) for id_ in self.deleted]}


KINDS: tuple[type[Traffic], ...] = (PresenceTraffic, SessionTraffic, MediaTraffic)


def kinds_in(layer: DataLayer) -> list[type[Traffic]]:
    """The traffic of domains that this version serves and this deployment has a place for."""
    return [kind for kind in KINDS if hasattr(layer, kind.domain) and layer.router(kind.domain).serves]


async def run(options: argparse.Namespace, layer: DataLayer) -> None:
    """Work until standard input ends; what was found and what is known go into a file."""
    kinds = [kind(layer, f"{options.seed}/{options.name}/{kind.domain}") for kind in kinds_in(layer)]
    say({"ready": options.name, "domains": [kind.domain for kind in kinds]})
    stop = stop_at_end_of_input(float("inf"))

    async def work(kind: Traffic) -> None:
        while not stop.is_set():
            await kind.step()
            await asyncio.sleep(1 / options.rate)

    await asyncio.gather(*(work(kind) for kind in kinds))
    told = {kind.domain: {"found": asdict(kind.found), "facts": kind.facts()} for kind in kinds}
    (options.ledger / f"{options.name}.json").write_text(json.dumps(told))


async def judge(layer: DataLayer, folder: Path) -> dict[str, Found]:
    """What the processes found, and what they knew held against what is stored now."""
    total: dict[str, Found] = {}
    for path in sorted(folder.glob("*.json")):
        for domain, told in json.loads(path.read_text()).items():
            found = total.setdefault(domain, Found())
            for name, value in told["found"].items():
                setattr(found, name, getattr(found, name) + value)
            if domain == "sessions":
                await _judge_sessions(layer, told["facts"], found)
            elif domain == "media":
                await _judge_media(layer, told["facts"], found)
    return total


async def _judge_sessions(layer: Any, facts: dict[str, Any], found: Found) -> None:
    for token in facts["live"]:
        found.operations += 1
        if await layer.sessions.get(token) is None:
            found.wrong("lost", "a session at the end")
    for token in facts["revoked"]:
        found.operations += 1
        if await layer.sessions.get(token) is not None:
            found.wrong("ghost", "a revoked session at the end")


async def _judge_media(layer: Any, facts: dict[str, Any], found: Found) -> None:
    owner = UUID(facts["owner"])
    for id_, digest in facts["live"].items():
        found.operations += 1
        item = await layer.media.get(UUID(id_), owner_id=owner)
        if item is None:
            found.wrong("lost", f"media {id_} at the end")
        elif hashlib.sha256(await layer.media.read(UUID(id_), owner_id=owner)).hexdigest() != digest:
            found.wrong("stale", f"other bytes of {id_} at the end")
    for id_ in facts["deleted"]:
        found.operations += 1
        if await layer.media.get(UUID(id_), owner_id=owner) is not None:
            found.wrong("ghost", f"deleted media {id_} at the end")


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=5.0, help="steps a second of each domain")
    options = parser.parse_args()

    async def work() -> None:
        async with DataLayer.open(options.config, options=LayerOptions(name=options.name)) as layer:
            await run(options, layer)

    asyncio.run(work())


if __name__ == "__main__":
    main()
