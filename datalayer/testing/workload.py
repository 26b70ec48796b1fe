"""A process of a workload: appends, edits, deletes and reads over the library, and keeps a ledger of it.

``python -m datalayer.testing.workload --config FILE --ledger DIR --name w1 --mix append=6,edit=3,delete=1`` runs until
its standard input ends (so it cannot outlive the process that started it) or ``--seconds`` have passed. It says
``{"ready": ...}`` on stdout once it serves, and one line of counts at its end. Killing it at any instant is part of
the game: see ledger.py.

Every choice comes from ``--seed`` and ``--name``; the rooms are the same in all processes of one seed. Writers repeat
an append that failed retryably with the same id. Readers look at what *other* processes changed last, right after
asking the board what had been acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append, appended, to_record
from datalayer.domains.record import canonical_json
from datalayer.errors import DatalayerError
from datalayer.ids import IdSource, uuid7_at
from datalayer.testing.ledger import NO_ID, NO_TOKEN, Board, Ledger, Op, Seen
from datalayer.testing.rooms import Rooms, pick_message
from datalayer.testing.values import Torn, compose, sender_of, token_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from datalayer.layer import DataLayer
    from datalayer.stores.base import Port
    from datalayer.types import Message, Page

APPEND_ATTEMPTS: Final = 5
WALK_PAGES: Final = 4
PRELOAD_BATCH: Final = 500
PRELOAD_AGE_US: Final = 30 * 24 * 3600 * 1_000_000
MIXES: Final = {
    "writer": {Op.APPEND: 7.0, Op.EDIT: 2.5, Op.DELETE: 0.5},
    "editor": {Op.APPEND: 2.0, Op.EDIT: 7.0, Op.DELETE: 1.0},
    "deleter": {Op.APPEND: 4.0, Op.EDIT: 2.0, Op.DELETE: 4.0},
    "reader": {Op.GET: 7.0, Op.HISTORY: 3.0},
}


class Messages(Protocol):
    """What a workload calls: the messages of an open DataLayer."""

    async def append(
        self, conversation_id: UUID, *, sender_id: UUID, body: str, id: UUID, attributes: Any
    ) -> Message: ...

    async def edit(self, conversation_id: UUID, id: UUID, *, body: str, attributes: Any) -> Message: ...

    async def delete(self, conversation_id: UUID, id: UUID) -> None: ...

    async def get(self, conversation_id: UUID, id: UUID) -> Message | None: ...

    async def get_many(self, conversation_id: UUID, ids: Sequence[UUID]) -> dict[UUID, Message]: ...

    async def history(
        self, conversation_id: UUID, *, limit: int, cursor: str | None, oldest_first: bool
    ) -> Page[Message]: ...


def key_of(conversation: UUID, message: UUID) -> bytes:
    """The ledger's key of a message."""
    return conversation.bytes + message.bytes


def seen(message: Message) -> Seen:
    """A message as the ledger records it."""
    key = key_of(message.conversation_id, message.id)
    try:
        return Seen(key, message.version, token_of(message))
    except Torn as error:
        return Seen(key, message.version, NO_TOKEN, str(error))


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard a process works: calls a second in all (0: as many as it can), and calls on their way at once."""

    rate: float
    tasks: int


class Turns:
    """When the next call of a process is due: its tasks take turns at one rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = time.monotonic()

    async def next(self, stop: asyncio.Event) -> None:
        """Return when it is time for a call, or to stop."""
        if self._rate <= 0:
            await asyncio.sleep(0)
            return
        now = time.monotonic()
        # A process that was held up does not make up for more than a moment of it.
        self._due = max(self._due + 1 / self._rate, now - 0.05)
        if self._due > now:
            try:
                await asyncio.wait_for(stop.wait(), self._due - now)
            except TimeoutError:
                return


class Workload:
    """The calls of one process. ``counts`` tells them by name, errors by class."""

    def __init__(
        self,
        messages: Messages,
        ledger: Ledger,
        board: Board,
        rooms: Rooms,
        *,
        mix: dict[Op, float],
        rng: random.Random,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._messages = messages
        self._ledger = ledger
        self._board = board
        self._rooms = rooms
        self._ops = list(mix)
        self._weights = list(mix.values())
        self._rng = rng
        self._ids = IdSource(SystemClock(), rng.getrandbits)
        self._number = 0

    async def run(self, stop: asyncio.Event, pace: Pace) -> None:
        """Work until told to stop; calls on their way then are awaited."""
        turns = Turns(pace.rate)
        async with asyncio.TaskGroup() as group:
            for _ in range(pace.tasks):
                group.create_task(self._work(stop, turns))

    async def _work(self, stop: asyncio.Event, turns: Turns) -> None:
        while not stop.is_set():
            await turns.next(stop)
            self._board.refresh()
            await self.step(self._rng.choices(self._ops, self._weights)[0])

    async def step(self, op: Op) -> None:
        """One call, and its record."""
        if op is Op.APPEND:
            await self._append(self._rooms.pick(self._rng))
            return
        room = self._rooms.pick(self._rng)
        if op is Op.HISTORY:
            await self._walk(room)
            return
        if op is Op.GET:
            await self._get(self._to_read(room))
            return
        target = self._to_change(room)
        if target is None:
            await self._append(room)
        elif op is Op.EDIT:
            await self._edit(room, target)
        else:
            await self._delete(room, target)

    # --- writes -----------------------------------------------------------------------------------------------------

    async def _append(self, room: UUID) -> None:
        id_ = self._ids.uuid7()
        key = key_of(room, id_)
        value = compose(key, self._ledger.process, self._next(), self._rng)

        async def call() -> Message:
            return await self._messages.append(
                room, sender_id=sender_of(key), body=value.body, id=id_, attributes=value.attributes
            )

        for _ in range(APPEND_ATTEMPTS):
            if await self._write(Op.APPEND, key, value.token, call):
                return

    async def _edit(self, room: UUID, id_: UUID) -> None:
        key = key_of(room, id_)
        value = compose(key, self._ledger.process, self._next(), self._rng, sender=key not in self._board.foreign)

        async def call() -> Message:
            return await self._messages.edit(room, id_, body=value.body, attributes=value.attributes)

        await self._write(Op.EDIT, key, value.token, call)

    async def _delete(self, room: UUID, id_: UUID) -> None:
        async def call() -> None:
            await self._messages.delete(room, id_)

        await self._write(Op.DELETE, key_of(room, id_), NO_TOKEN, call)

    async def _write(
        self, op: Op, key: bytes, token: bytes, call: Callable[[], Coroutine[Any, Any, Message | None]]
    ) -> bool:
        """Whether the call needs no repetition."""
        ticket = self._ledger.begin(op, key, token)
        try:
            message = await call()
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error)
            return not self._failed(error)
        self.counts[op.name.lower()] += 1
        if message is None:
            self._ledger.acknowledge(ticket, 0)
        else:
            shown = seen(message)
            self._ledger.acknowledge(ticket, message.version, shown.token, absent=message.deleted)
        return True

    def _failed(self, error: Exception) -> bool:
        """Count it; whether it may be repeated."""
        if not isinstance(error, DatalayerError) and type(error).__name__ not in self.counts:
            traceback.print_exception(error)
        self.counts[type(error).__name__] += 1
        return isinstance(error, DatalayerError) and error.retryable

    # --- reads ------------------------------------------------------------------------------------------------------

    async def _get(self, key: bytes | None) -> None:
        if key is None:
            return
        ticket = self._ledger.look(Op.GET, key, self._board.expected(key))
        try:
            message = await self._messages.get(UUID(bytes=key[:16]), UUID(bytes=key[16:]))
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error)
            self._failed(error)
            return
        self.counts["get"] += 1
        self._ledger.saw(ticket, None if message is None else seen(message))

    async def _walk(self, room: UUID) -> None:
        pages = 1 if self._rng.random() < 0.8 else WALK_PAGES
        limit, oldest_first = self._rng.choice((5, 20, 50)), self._rng.random() < 0.2
        try:
            async for _ in walk(
                self._messages, self._ledger, room, limit=limit, pages=pages, oldest_first=oldest_first
            ):
                self.counts["history"] += 1
        except Exception as error:  # noqa: BLE001 - walk() has recorded it
            self._failed(error)

    # --- choices ----------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _to_change(self, room: UUID) -> UUID | None:
        """Seldom a deleted message, for a change of one must not be accepted."""
        any_one = self._rng.random() < 0.03
        ids = self._board.rooms.get(room.bytes, []) if any_one else self._board.live(room.bytes)
        picked = pick_message(ids, self._rng)
        return None if picked is None else UUID(bytes=picked)

    def _to_read(self, room: UUID) -> bytes | None:
        if self._board.recent and self._rng.random() < 0.7:
            recent = self._board.recent
            # The youngest changes are the ones a late route or a lost journal would hide.
            return recent[-1 - min(int(self._rng.expovariate(0.15)), len(recent) - 1)]
        picked = pick_message(self._board.rooms.get(room.bytes, []), self._rng)
        return None if picked is None else room.bytes + picked


async def walk(
    messages: Messages, ledger: Ledger, room: UUID, *, limit: int, pages: int, oldest_first: bool = False
) -> AsyncIterator[tuple[Message, ...]]:
    """Read a conversation page by page, on record; yields the messages of each page. Raises what the library does."""
    after, cursor = NO_ID, None
    for _ in range(pages):
        ticket = ledger.look(Op.HISTORY, room.bytes + NO_ID)
        try:
            page = await messages.history(room, limit=limit, cursor=cursor, oldest_first=oldest_first)
        except Exception as error:  # recorded, then raised again
            ledger.fail(ticket, error)
            raise
        shown = [seen(message) for message in page.items]
        cursor = page.next_cursor
        ledger.saw_page(ticket, shown, after=after, complete=cursor is None, oldest_first=oldest_first)
        yield page.items
        if cursor is None:
            return
        after = page.items[-1].id.bytes


async def preload(store: Port, ledger: Ledger, rooms: Rooms, rng: random.Random) -> int:
    """Fill the rooms with messages of the last month, on record; the number of messages. Raises at the first error.

    They go through the store's ``apply``, as a restored backup would: one by one they would take a minute.
    """
    pending = _to_preload(rooms, SystemClock().now_us() - PRELOAD_AGE_US, rng)
    written = 0
    while batch := list(islice(pending, PRELOAD_BATCH)):
        tickets, records = [], []
        for room, id_ in batch:
            key = key_of(room, id_)
            value = compose(key, ledger.process, written, rng)
            written += 1
            attributes = canonical_json(value.attributes)
            message = appended(Append(room, id_, sender_of(key), value.body, attributes=attributes))
            tickets.append((ledger.begin(Op.APPEND, key, value.token), message))
            records.append(to_record(message))
        await store.apply(records)
        for ticket, message in tickets:
            ledger.acknowledge(ticket, message.version, seen(message).token)
    return written


def _to_preload(rooms: Rooms, start_us: int, rng: random.Random) -> Iterator[tuple[UUID, UUID]]:
    step_us = PRELOAD_AGE_US // (sum(rooms.sizes) + 1)
    at = start_us
    for room, size in zip(rooms.ids, rooms.sizes, strict=True):
        for _ in range(size):
            at += step_us
            yield room, uuid7_at(at, rng.getrandbits(62))


# --- the process ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line of a workload process."""
    parser = argparse.ArgumentParser(prog="python -m datalayer.testing.workload")
    parser.add_argument("--config", type=Path, required=True, help="configuration file of the data layer")
    parser.add_argument("--ledger", type=Path, required=True, help="folder of the ledgers of all processes")
    parser.add_argument("--name", required=True, help="name of this process, new for each start")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=20_000, help="how many messages the rooms are shaped for")
    parser.add_argument("--preload", action="store_true", help="fill the rooms, then end")
    parser.add_argument("--mix", default="writer", help=f"{', '.join(MIXES)}, or shares such as append=6,edit=4")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second; 0: as many as it can")
    parser.add_argument("--tasks", type=int, default=4, help="calls on their way at once")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--sabotage", help="live with a planted mistake: see sabotage.py")
    return parser


def parse_mix(text: str) -> dict[Op, float]:
    """Shares of calls: the name of a mix, or ``append=6,edit=4``."""
    if text in MIXES:
        return MIXES[text]
    return {Op[name.upper()]: float(share) for name, share in (part.split("=") for part in text.split(","))}


async def run(options: argparse.Namespace, layer: DataLayer) -> Counter[str]:
    """One process's work over an open layer."""
    ledger = Ledger.create(options.ledger, options.name)
    rng = random.Random(f"{options.seed}/{options.name}")
    rooms = Rooms(options.seed, options.messages)
    board = Board(options.ledger, own=options.name)
    board.refresh()
    say({"ready": options.name, "pid": os.getpid()})
    try:
        if options.preload:
            store = layer.router("messages").route.authority
            return Counter(append=await preload(store, ledger, rooms, rng))
        workload = Workload(layer.messages, ledger, board, rooms, mix=parse_mix(options.mix), rng=rng)
        stop = stop_at_end_of_input(options.seconds)
        await workload.run(stop, Pace(options.rate, options.tasks))
        return workload.counts
    finally:
        board.close()
        ledger.close()


def stop_at_end_of_input(seconds: float) -> asyncio.Event:
    """An event that is set when the process's standard input ends, or after so many seconds."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    if seconds != float("inf"):
        loop.call_later(seconds, stop.set)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:  # the loop has ended by itself
            return

    threading.Thread(target=watch, name="end-of-input", daemon=True).start()
    return stop


def say(told: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(told), flush=True)  # noqa: T201 - the process's one way to speak


async def _main(options: argparse.Namespace) -> None:
    # Imported late: what stands above serves tests that need neither drivers nor an engine.
    from datalayer.layer import DataLayer, LayerOptions  # noqa: PLC0415

    if options.sabotage:
        from datalayer.testing.sabotage import Sabotage, open_sabotaged  # noqa: PLC0415

        reads = not any(op.writes for op in parse_mix(options.mix))
        opened = open_sabotaged(options.config, options.name, Sabotage(options.sabotage), reads=reads)
    else:
        opened = DataLayer.open(options.config, options=LayerOptions(name=options.name))
    async with opened as layer:
        say({"name": options.name, "counts": dict(await run(options, layer))})


if __name__ == "__main__":
    asyncio.run(_main(arguments().parse_args()))
