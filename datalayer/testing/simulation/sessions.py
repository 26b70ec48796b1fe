"""What applications do with sessions in a simulation, and the judge's view of it.

A key is (user, session). All writes of a session carry the token of its making, for a touch changes no attribute; a
touch must rise the version, a revoke or a cut must end it for good. A cut whose outcome is not known may land at any
later time: from then on the sessions of its user may end.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.sessions import session_key, to_entity, to_session
from datalayer.errors import DatalayerError

if TYPE_CHECKING:
    from datalayer.domains.record import Record
    from datalayer.testing.simulation.history import History, Write
    from datalayer.testing.simulation.world import Process, World
    from datalayer.types import Session, SessionCut

PEOPLE: Final = 12
SESSIONS: Final = 60
DAY_S: Final = 86_400.0
Key = tuple[UUID, UUID]


class SessionTraffic:
    """Writers and readers over the sessions of a few people."""

    def __init__(self, world: World, *, pause_s: float = 0.06) -> None:
        self.world = world
        self.history: History = world.history
        self.people = [UUID(int=world.rng.getrandbits(128), version=4) for _ in range(PEOPLE)]
        self.stopped = asyncio.Event()
        self.cold: set[Any] = set()
        """Sessions that nobody touches again: a touch would heal what a copy has missed."""
        self._pause_s = pause_s
        self._tokens: dict[Key, str] = {}
        self._cuts: dict[UUID, list[bool]] = {}
        """Of each person, whether each cut that was begun was acknowledged."""
        self._longer_s = 0

    def employ(self, process: Process) -> None:
        """One writer, one reader."""
        for number, work in enumerate((self._write, self._read)):
            own = random.Random(self.world.rng.getrandbits(64))
            name = f"{process.machine.name}/{number}"
            process.tasks.append(self.world.loop.spawn(process.machine, self._on(work, process, own, name), name=name))

    async def _on(self, work: Any, process: Process, rng: random.Random, who: str) -> None:
        while not self.stopped.is_set():
            await work(process, rng, who)
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))

    async def lay_down(self, process: Process) -> None:
        """Cold sessions, of people who are never cut."""
        for _ in range(3):
            user = UUID(int=self.world.rng.getrandbits(128), version=4)
            self.cold.add(await self.create(process, user, "before"))

    async def prove_alive(self, process: Process) -> None:
        """One write that must get through."""
        await self.create(process, self.people[0], "the end")

    # --- writes -----------------------------------------------------------------------------------------------------

    async def _write(self, process: Process, rng: random.Random, who: str) -> None:
        key, draw = self._pick(rng), rng.random()
        if key is None or draw < (0.35 if len(self.history.keys) < SESSIONS else 0.06):
            await self.create(process, rng.choice(self.people), who)
        elif draw < 0.8:
            await self._touch(process, key, who)
        elif draw < 0.93:
            await self._revoke(process, key, who)
        else:
            await self._revoke_all(process, key[0], who)

    async def create(self, process: Process, user: UUID, who: str) -> Key | None:
        """A session; where its outcome is unknown nobody has its token, so nobody can miss it."""
        self._longer_s += 1
        token = f"w{self._longer_s}"
        begun = len(self._cuts.get(user, ()))
        unsure = not all(self._cuts.get(user, ()))
        try:
            made = await process.layer.sessions.create(user, ttl=DAY_S, lifetime=30 * DAY_S, attributes={"t": token})
        except DatalayerError as error:
            self._refused(f"{who}'s create", error)
            return None
        assert made.token is not None, "a new session has its token"
        key = (user, made.id)
        self._tokens[key] = made.token
        write = self.history.begin(key, "append", token, who)
        self.history.acknowledge(write, made.version, made.attributes["t"])
        # A touch shows the same token at a higher version.
        write.version = None
        if unsure or len(self._cuts.get(user, ())) > begun:
            self.history.keys[key].delete_begun = True
        return key

    async def _touch(self, process: Process, key: Key, who: str) -> None:
        self._longer_s += 1
        write = self._begin(key, "edit", who)
        try:
            found = await process.layer.sessions.touch(self._tokens[key], ttl=DAY_S + self._longer_s)
        except DatalayerError as error:
            self.history.fail(write, error)
            return
        if found is None:
            if write.after_create and not self.history.keys[key].delete_begun:
                self.history.broken("I1", f"{who}'s touch found nothing, though its create was acknowledged")
            return
        self.history.acknowledge(write, found.version, self._whole(found))
        write.version = None

    async def _revoke(self, process: Process, key: Key, who: str) -> None:
        write = self._begin(key, "delete", who)
        try:
            await process.layer.sessions.revoke(self._tokens[key])
        except DatalayerError as error:
            self.history.fail(write, error)
            return
        self.history.acknowledge(write, None)
        self.world.hits["revoked"] += 1

    async def _revoke_all(self, process: Process, user: UUID, who: str) -> None:
        mine = [key for key in self.history.keys if key[0] == user]
        writes = [self._begin((key[0], key[1]), "delete", who) for key in mine]
        cuts = self._cuts.setdefault(user, [])
        number = len(cuts)
        cuts.append(False)
        try:
            await process.layer.sessions.revoke_all(user)
        except DatalayerError as error:
            for write in writes:
                self.history.fail(write, error)
            self._refused(f"{who}'s cut", error)
            return
        cuts[number] = True
        for write in writes:
            self.history.acknowledge(write, None)
        self.world.hits["cut"] += 1

    def _begin(self, key: Key, what: str, who: str) -> Write:
        return self.history.begin(key, what, next(iter(self.history.keys[key].tokens)), who)

    # --- reads ------------------------------------------------------------------------------------------------------

    async def _read(self, process: Process, rng: random.Random, who: str) -> None:
        key = self._pick(rng, cold=True)
        if key is None:
            return
        everything = rng.random() < 0.3
        keys = [k for k in self.history.keys if k[0] == key[0]] if everything else [key]
        before = self.history.before(keys)
        try:
            if everything:
                found = await process.layer.sessions.of_user(key[0], limit=1000)
            else:
                one = await process.layer.sessions.get(self._tokens[key])
                found = () if one is None else (one,)
        except DatalayerError as error:
            self._refused(f"{who}'s read", error)
            return
        shown = {session.id: session for session in found}
        for item in before:
            session = shown.get(item.key[1])
            version = None if session is None else session.version
            self.history.saw(item, version, None if session is None else self._whole(session), who)

    async def read_all(self, process: Process) -> None:
        """Every session once, at the end."""
        for key in list(self.history.keys):
            before = self.history.before([key])
            found = await process.layer.sessions.get(self._tokens[key[0], key[1]])
            token = None if found is None else self._whole(found)
            self.history.saw(before[0], None if found is None else found.version, token, "the end")

    def settle(self, records: dict[tuple[str, bytes], Record]) -> None:
        """Judge the final records of the authority; a session under its user's cut has ended."""
        for key in self.history.keys:
            record = records.get(("session", session_key(key[0], key[1])))
            stored = records.get(("session_cut", key[0].bytes))
            cut: Any = None if stored is None else to_entity(stored)
            session = None if record is None else to_session(record)
            if session is None or session.deleted or _under(cut, session):
                self.history.settle(key, None, None)
            else:
                self.history.settle(key, record, self._whole(session))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _pick(self, rng: random.Random, *, cold: bool = False) -> Key | None:
        keys = [key for key in self.history.keys if cold or key not in self.cold]
        if not keys:
            return None
        key = rng.choice(keys[-4:]) if rng.random() < 0.5 else rng.choice(keys)
        return (key[0], key[1])

    def _refused(self, what: str, error: DatalayerError) -> None:
        name = type(error).__name__
        self.history.failed[name] = self.history.failed.get(name, 0) + 1
        if not error.retryable:
            self.history.permanent.append(f"{what}: {name}: {error.message}")

    def _whole(self, session: Session) -> str:
        return str(session.attributes["t"])


def _under(cut: SessionCut | None, session: Session) -> bool:
    return cut is not None and not cut.deleted and session.mark <= cut.mark
