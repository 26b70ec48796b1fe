"""What applications do in a simulation: write and read messages through a process, and tell the history about it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.messages import message_key, to_message
from datalayer.errors import DatalayerError, Fenced, Outcome
from datalayer.ids import uuid7_at
from datalayer.stores.memory.faults import ProcessCrash

if TYPE_CHECKING:
    import random

    from datalayer.domains.record import Record
    from datalayer.testing.simulation.history import History, Write
    from datalayer.testing.simulation.world import Process, World
    from datalayer.types import Message

ROOMS: Final = 3
HOT: Final = 4
KEYS: Final = 60
"""Enough for several pages and many hot ones; beyond it appends become rare, so that reads stay cheap."""
RETRIES: Final = 6
SENDER: Final = UUID(int=7)


class MessageTraffic:
    """Writers, readers and foreign programs over one pool of conversations."""

    def __init__(self, world: World, *, pause_s: float = 0.06) -> None:
        self.world = world
        self.history: History = world.history
        self.rooms = [UUID(int=world.rng.getrandbits(128), version=4) for _ in range(ROOMS)]
        self.stopped = asyncio.Event()
        self.cold: set[Any] = set()
        """Keys that nobody writes again: an edit would heal what a copy has missed."""
        self._pause_s = pause_s
        self._tokens = 0

    def _token(self) -> str:
        self._tokens += 1
        return f"w{self._tokens}"

    # --- tasks of a process -----------------------------------------------------------------------------------------

    def employ(self, process: Process, *, writers: int = 1, readers: int = 1) -> None:
        """Start writers and readers in a process."""
        loop, rng = self.world.loop, self.world.rng
        import random  # noqa: PLC0415 - seeded sources, one for each task

        for number in range(writers + readers):
            own = random.Random(rng.getrandbits(64))
            name = f"{process.machine.name}/{number}"
            work = self._write_on(process, own, name) if number < writers else self._read_on(process, own, name)
            process.tasks.append(loop.spawn(process.machine, work, name=name))

    async def _write_on(self, process: Process, rng: random.Random, who: str) -> None:
        while not self.stopped.is_set():
            await self.write_once(process, rng, who)
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))

    async def _read_on(self, process: Process, rng: random.Random, who: str) -> None:
        while not self.stopped.is_set():
            await self.read_once(process, rng, who)
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))

    # --- single calls -----------------------------------------------------------------------------------------------

    async def write_once(self, process: Process, rng: random.Random, who: str) -> None:
        """One append, edit or delete."""
        key = self._pick(rng)
        draw = rng.random()
        if key is None or draw < (0.3 if len(self.history.keys) < KEYS else 0.04):
            await self.append(process, rng.choice(self.rooms), who, fresh=rng.random() < 0.4, rng=rng)
        elif draw < 0.92:
            await self.edit(process, key, who)
        else:
            await self.delete(process, key, who)

    async def append(
        self, process: Process, room: UUID, who: str, *, rng: random.Random, fresh: bool = False
    ) -> tuple[UUID, UUID] | None:
        """An append; with an id of its own it is repeated until its outcome is known."""
        token = self._token()
        fields: dict[str, Any] = {"sender_id": SENDER, "body": token, "attributes": {"t": token}}
        if fresh:
            try:
                message = await process.layer.messages.append(room, **fields)
            except DatalayerError as error:
                self._refused(f"{who}'s append", error)
                return None
            write = self.history.begin((room, message.id), "append", token, who)
            self.history.acknowledge(write, message.version, message.body)
            return (room, message.id)
        key = (room, uuid7_at(process.layer.clock.now_us(), rng.getrandbits(62)))
        write = self.history.begin(key, "append", token, who)
        for _ in range(RETRIES):
            try:
                message = await process.layer.messages.append(room, id=key[1], **fields)
            except DatalayerError as error:
                write.outcome = _worse(write.outcome, error)
                if not error.retryable:
                    self.history.fail(write, error)
                    return None
            else:
                # The answer may be what somebody has made of it since: another version, another body.
                self._again(write, message)
                return key
        return None

    def _again(self, write: Write, message: Message) -> None:
        version = message.version
        if message.deleted:
            known = self.history.keys[write.key]
            if not known.delete_begun:
                self.history.broken("I2", f"an append of {write.token!r} answered with a tombstone nobody wrote")
            known.created = True
            write.outcome = Outcome.APPLIED
            return
        self.history.acknowledge(write, version, message.body)
        if message.body != write.token:
            write.version = None

    async def edit(self, process: Process, key: tuple[UUID, UUID], who: str) -> None:
        """An edit; never repeated."""
        token = self._token()
        write = self.history.begin(key, "edit", token, who)
        try:
            message = await process.layer.messages.edit(*key, body=token, attributes={"t": token})
        except DatalayerError as error:
            self.history.fail(write, error)
            return
        self.history.acknowledge(write, message.version, message.body)

    async def delete(self, process: Process, key: tuple[UUID, UUID], who: str) -> None:
        """A delete."""
        write = self.history.begin(key, "delete", self._token(), who)
        try:
            await process.layer.messages.delete(*key)
        except DatalayerError as error:
            self.history.fail(write, error)
            return
        self.history.acknowledge(write, None)

    async def read_once(self, process: Process, rng: random.Random, who: str) -> None:
        """One get, get_many or history, compared with what was acknowledged before it began."""
        key = self._pick(rng)
        if key is None:
            return
        draw = rng.random()
        keys = [key] if draw < 0.5 else [k for k in self.history.keys if k[0] == key[0]]
        before = self.history.before(keys)
        messages = process.layer.messages
        try:
            if draw < 0.5:
                one = await messages.get(*key)
                found = [] if one is None else [one]
            elif draw < 0.6:
                found = list((await messages.get_many(key[0], [k[1] for k in keys[:900]])).values())
            else:
                found = list((await messages.history(key[0], limit=1000, oldest_first=draw < 0.8)).items)
        except DatalayerError as error:
            self._refused(f"{who}'s read", error)
            return
        shown = {message.id: message for message in found}
        for item in before[:900]:
            message = shown.get(item.key[1])
            token = None if message is None else self._whole(message)
            self.history.saw(item, None if message is None else message.version, token, who)

    def _refused(self, what: str, error: DatalayerError) -> None:
        name = type(error).__name__
        self.history.failed[name] = self.history.failed.get(name, 0) + 1
        if not error.retryable:
            self.history.permanent.append(f"{what}: {name}: {error.message}")

    def _whole(self, message: Message) -> str:
        """The token of a message, all of whose fields must be of one write."""
        if message.attributes.get("t") != message.body:
            self.history.broken("I4", f"{message.id} is torn: {message.body!r} with {message.attributes!r}")
        return message.body

    def _pick(self, rng: random.Random) -> tuple[UUID, UUID] | None:
        keys = [key for key in self.history.keys if key not in self.cold]
        if not keys:
            return None
        key = rng.choice(keys[-HOT:]) if rng.random() < 0.5 else rng.choice(keys)
        return (key[0], key[1])

    async def read_all(self, process: Process) -> None:
        """Every key once, at the end."""
        for key in list(self.history.keys):
            before = self.history.before([key])
            message = await process.layer.messages.get(*key)
            token = None if message is None else self._whole(message)
            self.history.saw(before[0], None if message is None else message.version, token, "the end")

    async def prove_alive(self, process: Process) -> None:
        """One write that must get through."""
        await self.append(process, self.rooms[0], "the end", rng=self.world.rng)

    async def lay_down(self, process: Process) -> None:
        """One cold message in each conversation."""
        for room in self.rooms:
            self.cold.add(await self.append(process, room, "before", rng=self.world.rng))

    # --- programs that do not know the library ----------------------------------------------------------------------

    async def meddle(self, rng: random.Random) -> None:
        """A foreign program: plain UPDATE and DELETE in the source's own table."""
        server, place = self.world.servers["s"], ("messages", 0)
        while not self.stopped.is_set():
            await asyncio.sleep(rng.expovariate(1 / self._pause_s) * 3)
            key = self._pick(rng)
            if key is None or not server.up:
                continue
            ident = ("message", message_key(*key))
            stored = server.tables[place].records.get(ident)
            if stored is None or stored.deleted:
                continue
            what = "delete" if rng.random() < 0.15 else "edit"
            token = self._token()
            write = self.history.begin(key, what, token, "psql")
            try:
                if what == "delete":
                    server.foreign_delete(place, ident, program="psql")
                    self.history.acknowledge(write, None)
                else:
                    landed = server.foreign_write(place, _with_body(stored, token), program="psql")
                    self.history.acknowledge(write, landed.version)
                self.world.hits[f"foreign {what}"] += 1
            except Fenced as error:
                self.history.fail(write, error)

    # --- the end ----------------------------------------------------------------------------------------------------

    def settle(self, records: dict[tuple[str, bytes], Record]) -> None:
        """Judge the final records of the authority."""
        for key in self.history.keys:
            record = records.get(("message", message_key(*key)))
            message = None if record is None else to_message(record)
            token = None if message is None or message.deleted else self._whole(message)
            self.history.settle(key, record, token)


def _worse(outcome: Outcome, error: DatalayerError) -> Outcome:
    return outcome if error.outcome is Outcome.NOT_APPLIED else error.outcome


def _with_body(record: Record, token: str) -> Record:
    fields = list(record.fields)
    fields[1], fields[6] = token, f'{{"t":"{token}"}}'
    return record._replace(fields=tuple(fields))


__all__ = ["MessageTraffic", "ProcessCrash"]
