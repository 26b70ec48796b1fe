"""Traffic of users: creates, renames, swaps of names, compare-and-set, deletes, and what unique names promise."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.users import claim_key, claim_of, normalise, to_user
from datalayer.errors import AlreadyExists, Conflict, DatalayerError, NotFound, Outcome
from datalayer.ids import uuid7_at

if TYPE_CHECKING:
    from datalayer.domains.record import Record
    from datalayer.testing.simulation.history import History
    from datalayer.testing.simulation.world import Process, World
    from datalayer.types import User

NAMES: Final = 14
USERS: Final = 25
RETRIES: Final = 6


class UserTraffic:
    """Writers and readers over one pool of users and few names, so that names are fought for."""

    def __init__(self, world: World, *, pause_s: float = 0.06) -> None:
        self.world = world
        self.history: History = world.history
        self.stopped = asyncio.Event()
        self.cold: set[Any] = set()
        self._pause_s = pause_s
        self._tokens = 0
        self._compared: set[tuple[UUID, int]] = set()
        self._wanted: dict[str, set[UUID]] = {}
        """For whom somebody has begun to take a name: only so can another one find it taken."""

    def _token(self) -> str:
        self._tokens += 1
        return f"w{self._tokens}"

    def employ(self, process: Process) -> None:
        """One writer, one reader."""
        for number, work in enumerate((self._write_on, self._read_on)):
            own = random.Random(self.world.rng.getrandbits(64))
            name = f"{process.machine.name}/{number}"
            process.tasks.append(self.world.loop.spawn(process.machine, work(process, own, name), name=name))

    async def lay_down(self, process: Process) -> None:
        """Cold users, whom nobody changes."""
        for number in range(3):
            key = await self.create(process, self.world.rng, "before", f"cold{number}")
            if key is not None:
                self.cold.add(key)

    async def _write_on(self, process: Process, rng: random.Random, who: str) -> None:
        while not self.stopped.is_set():
            await self._write(process, rng, who)
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))

    async def _read_on(self, process: Process, rng: random.Random, who: str) -> None:
        while not self.stopped.is_set():
            await self._read(process, rng, who)
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))

    def _pick(self, rng: random.Random) -> UUID | None:
        keys = [key for key in self.history.keys if key not in self.cold]
        return rng.choice(keys)[0] if keys else None

    # --- writes -----------------------------------------------------------------------------------------------------

    async def _write(self, process: Process, rng: random.Random, who: str) -> None:
        user_id = self._pick(rng)
        draw = rng.random()
        name = f"name{rng.randrange(NAMES)}"
        if user_id is None or draw < (0.3 if len(self.history.keys) < USERS else 0.05):
            await self.create(process, rng, who, name)
        elif draw < 0.6:
            await self._update(process, user_id, who, username=name)
        elif draw < 0.75:
            await self._swap(process, rng, who)
        elif draw < 0.84 and self.world.regions:
            await self._move_region(process, rng, user_id, who)
        elif draw < 0.92:
            await self._update(process, user_id, who)
        else:
            await self._delete(process, user_id, who)

    async def create(self, process: Process, rng: random.Random, who: str, name: str) -> tuple[UUID] | None:
        """With an id of its own, repeated until its outcome is known."""
        token = self._token()
        key = (uuid7_at(process.layer.clock.now_us(), rng.getrandbits(62)),)
        write = self.history.begin(key, "append", token, who)
        self._wanted.setdefault(name, set()).add(key[0])
        on_its_way = False
        for _ in range(RETRIES):
            try:
                user = await process.layer.users.create(username=name, display_name=token, id=key[0])
            except DatalayerError as error:
                if error.retryable:
                    on_its_way |= error.outcome is not Outcome.NOT_APPLIED
                    continue
                self._refuse(write, error, name)
                if on_its_way:
                    write.outcome = Outcome.UNKNOWN  # an earlier try may land when the name is free again
                return None
            if user.deleted:
                self.history.keys[key].created = True
                return key
            self.history.acknowledge(write, user.version, user.display_name)
            if user.display_name != token:
                write.version = None
            return key
        return None

    async def _update(self, process: Process, user_id: UUID, who: str, *, username: str | None = None) -> bool:
        """A compare-and-set on what was read just before."""
        try:
            found = await process.layer.users.get(user_id)
        except DatalayerError:
            return False
        if found is None:
            return False
        token = self._token()
        write = self.history.begin((user_id,), "edit", token, who)
        changes: dict[str, Any] = {"display_name": token}
        if username is not None:
            self._wanted.setdefault(username, set()).add(user_id)
            changes["username"] = username
        try:
            user = await process.layer.users.update(user_id, expected_version=found.version, **changes)
        except DatalayerError as error:
            self._refuse(write, error, username)
            return False
        self.history.acknowledge(write, user.version, user.display_name)
        if (user_id, found.version) in self._compared:
            self.history.broken("I1", f"two changes of {user_id} were made on the same version {found.version}")
        self._compared.add((user_id, found.version))
        return True

    async def _swap(self, process: Process, rng: random.Random, who: str) -> None:
        """Two users change their names by way of a third one."""
        one, two = self._pick(rng), self._pick(rng)
        if one is None or two is None or one == two:
            return
        try:
            found = await process.layer.users.get_many([one, two])
        except DatalayerError:
            return
        if len(found) < 2:
            return
        names = found[one].username, found[two].username
        if await self._update(process, one, who, username=f"{names[0]}-swap") and await self._update(
            process, two, who, username=names[0]
        ):
            await self._update(process, one, who, username=names[1])
            self.world.hits["names swapped"] += 1

    async def _move_region(self, process: Process, rng: random.Random, user_id: UUID, who: str) -> None:
        """To another region: nothing else changes."""
        try:
            await process.layer.users.move_region(user_id, rng.choice(("eu", "us")))
        except NotFound:
            return
        except DatalayerError as error:
            if not error.retryable and error.outcome is not Outcome.UNKNOWN:
                self.history.permanent.append(f"{who}'s move: {type(error).__name__}: {error.message}")
            return
        self.world.hits["regions changed"] += 1

    async def _delete(self, process: Process, user_id: UUID, who: str) -> None:
        write = self.history.begin((user_id,), "delete", self._token(), who)
        try:
            await process.layer.users.delete(user_id)
        except DatalayerError as error:
            self._refuse(write, error, None)
            return
        self.history.acknowledge(write, None)

    def _refuse(self, write: Any, error: DatalayerError, name: str | None) -> None:
        if isinstance(error, AlreadyExists):
            self.world.hits["a name was taken"] += 1
            if not self._wanted.get(name or "", set()) - {write.key[0]}:
                self.history.broken("I1", f"{write.who} found a name taken that nobody else had asked for")
        elif isinstance(error, Conflict):
            self.world.hits["compare-and-set lost"] += 1
        else:
            self.history.fail(write, error)
            return
        write.outcome = error.outcome

    # --- reads ------------------------------------------------------------------------------------------------------

    async def _read(self, process: Process, rng: random.Random, who: str) -> None:
        user_id = self._pick(rng)
        if user_id is None:
            return
        name = f"name{rng.randrange(NAMES)}"
        try:
            if rng.random() < 0.7:
                await self._look(process, user_id, who)
            else:
                found = await process.layer.users.get_by_username(name)
                if found is not None and normalise("username", found.username) != name:
                    self.history.broken("I4", f"{who} asked for {name} and got {found.username}")
        except DatalayerError as error:
            if not error.retryable:
                self.history.permanent.append(f"{who}'s read: {type(error).__name__}: {error.message}")

    async def _look(self, process: Process, user_id: UUID, who: str) -> None:
        before = self.history.before([(user_id,)])[0]
        user: User | None = await process.layer.users.get(user_id)
        self.history.saw(before, None if user is None else user.version, user.display_name if user else None, who)

    async def read_all(self, process: Process) -> None:
        """Every user once, at the end."""
        for (user_id,) in list(self.history.keys):
            await self._look(process, user_id, "the end")

    async def prove_alive(self, process: Process) -> None:
        """One write that must get through."""
        await self.create(process, self.world.rng, "the end", f"alive-{self._token()}")

    async def meddle(self, rng: random.Random) -> None:
        """No foreign program writes users."""
        del rng

    # --- the end ----------------------------------------------------------------------------------------------------

    def settle(self, records: dict[tuple[str, bytes], Record]) -> None:
        """Users as the history says, and exactly one live claim for each live user's name, his own."""
        for key in self.history.keys:
            record = records.get(("user", key[0].bytes))
            token = None if record is None or record.deleted else to_user(record).display_name
            self.history.settle(key, record, token)
        held = {r.key: r.fields[0] for r in records.values() if r.kind == "claim" and not r.deleted}
        live = [to_user(r) for r in records.values() if r.kind == "user" and not r.deleted]
        wanted = {claim_key("username", user.username): user.id.bytes for user in live}
        for claim in held.keys() | wanted.keys():
            if held.get(claim) != wanted.get(claim):
                self.history.broken("I1", f"the name {claim_of(claim)[1]!r}: its claim and its user disagree")
        if len(wanted) != len(live):
            self.history.broken("I1", "two users have one name")
