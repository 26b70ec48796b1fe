"""A process of a workload over users: creates, renames, swaps, compare-and-sets, deletes, look-ups - and its ledger.

``python -m datalayer.testing.user_workload --config FILE --ledger DIR --name w1 --mix writer --rate 50`` lives as
workload.py does: until its standard input ends or ``--seconds`` have passed, and may be killed at any instant.

Names are fought for on purpose: some numbers are wanted by everybody all the time (``--names``), each half second has
one that every racing process tries to create, and names that were freed are taken again at once. Look-ups and writes
spell the same name in different ways.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
import traceback
import zlib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from uuid import UUID

from datalayer.clock import SystemClock
from datalayer.errors import AlreadyExists, Conflict, DatalayerError, NotFound
from datalayer.ids import IdSource
from datalayer.repositories.cursor import encode_cursor
from datalayer.testing.ledger import NO_ID, NO_TOKEN, Ledger, Op
from datalayer.testing.user_board import UserBoard, key_of, name_key, seen
from datalayer.testing.user_values import NONE, UNCHANGED, USERS, Sets, compose_user, disguise, spelt
from datalayer.testing.workload import Pace, Turns, say, stop_at_end_of_input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence

    from datalayer.layer import DataLayer
    from datalayer.types import Page, User

CREATE_ATTEMPTS: Final = 5
WALK_PAGES: Final = 4
HOT: Final = 1 << 40
RACE: Final = 2 << 40
FRESH: Final = 4 << 40
"""Where the numbers of names begin that everybody wants, that are raced for, and that a process has for itself."""


class Act(StrEnum):
    """What a process may do next."""

    CREATE = "create"
    RACE = "race"
    HOT = "hot"
    RECREATE = "recreate"
    RENAME = "rename"
    READDRESS = "readdress"
    SWAP = "swap"
    UPDATE = "update"
    COMPARE = "compare"
    DELETE = "delete"
    GET = "get"
    MANY = "many"
    USERNAME = "username"
    EMAIL = "email"
    LIST = "list"

    @property
    def writes(self) -> bool:
        """Whether it changes users."""
        return self not in _READS


_READS: Final = frozenset({Act.GET, Act.MANY, Act.USERNAME, Act.EMAIL, Act.LIST})
_WRITER: Final = {
    Act.CREATE: 3.0,
    Act.RACE: 1.0,
    Act.HOT: 0.7,
    Act.RECREATE: 1.0,
    Act.RENAME: 2.0,
    Act.READDRESS: 1.0,
    Act.SWAP: 0.6,
    Act.UPDATE: 2.0,
    Act.COMPARE: 2.0,
    Act.DELETE: 1.5,
}
_READER: Final = {Act.GET: 4.0, Act.MANY: 0.5, Act.USERNAME: 3.0, Act.EMAIL: 1.5, Act.LIST: 0.5}
MIXES: Final[Mapping[str, Mapping[Act, float]]] = {
    "writer": _WRITER,
    "renamer": {Act.CREATE: 1.0, Act.HOT: 1.0, Act.RENAME: 4.0, Act.READDRESS: 2.0, Act.SWAP: 2.0, Act.DELETE: 0.5},
    "reader": _READER,
    "mixed": _WRITER | _READER,
}


class Users(Protocol):
    """What a workload calls: the users of an open DataLayer."""

    async def create(
        self, *, username: str, email: str | None, display_name: str, id: UUID, attributes: Any
    ) -> User: ...

    @property
    def update(self) -> Callable[..., Coroutine[Any, Any, User]]: ...

    async def delete(self, id: UUID, *, expected_version: int | None) -> None: ...

    async def get(self, id: UUID) -> User | None: ...

    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, User]: ...

    async def get_by_username(self, username: str) -> User | None: ...

    async def get_by_email(self, email: str) -> User | None: ...

    async def list(self, *, limit: int, cursor: str | None) -> Page[User]: ...


class Answer(NamedTuple):
    """How a write ended; ``again``: it may be repeated."""

    user: User | None = None
    failed: bool = False
    again: bool = False


class UserWorkload:
    """The calls of one process. ``counts`` tells them by name, errors by class."""

    def __init__(
        self,
        users: Users,
        ledger: Ledger,
        board: UserBoard,
        *,
        mix: Mapping[Act, float],
        rng: random.Random,
        names: int = 20,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._users = users
        self._ledger = ledger
        self._board = board
        self._acts = list(mix)
        self._weights = list(mix.values())
        self._rng = rng
        self._names = names
        self._ids = IdSource(SystemClock(), rng.getrandbits)
        self._number = 0
        self._fresh = FRESH + (zlib.crc32(ledger.process.encode()) << 24)

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
            await self.step(self._rng.choices(self._acts, self._weights)[0])

    async def step(self, act: Act) -> None:
        """One act - a few calls at most - and its record."""
        if act in {Act.CREATE, Act.RACE, Act.HOT, Act.RECREATE}:
            await self._create(*self._wanted(act))
        elif act is Act.LIST:
            await self._list()
        elif act in {Act.USERNAME, Act.EMAIL}:
            await self._look_up(act.value)
        else:
            await self._on_one(act)

    async def _on_one(self, act: Act) -> None:
        picked = self._board.pick(self._rng, recent=0.3 if act.writes else 0.7)
        if picked is None:
            await self._create(self._next_fresh(), NONE)
            return
        user_id = UUID(bytes=picked)
        if act is Act.GET:
            await self._get(user_id)
        elif act is Act.MANY:
            await self._many([user_id, *self._others()])
        elif act is Act.SWAP:
            await self._swap(user_id)
        elif act is Act.DELETE:
            await self._delete(user_id)
        elif act is Act.COMPARE:
            found = await self._get(user_id)
            if found is not None:
                await self._update(user_id, self._sometimes_named(), found.version)
        elif act is Act.RENAME:
            await self._update(user_id, Sets(username=self._next_name("username")))
        elif act is Act.READDRESS:
            email = NONE if self._rng.random() < 0.2 else self._next_name("email")
            await self._update(user_id, Sets(email=email))
        else:
            await self._update(user_id, Sets())

    # --- choices ----------------------------------------------------------------------------------------------------

    def _next_fresh(self) -> int:
        self._fresh += 1
        return self._fresh

    def _next_name(self, field: str) -> int:
        """A new name, one that everybody wants, or one that was given back."""
        draw, freed = self._rng.random(), self._board.freed[field]
        if draw < 0.3:
            return HOT + self._rng.randrange(self._names)
        if draw < 0.5 and freed:
            return self._rng.choice(freed)
        return self._next_fresh()

    def _sometimes_named(self) -> Sets:
        draw = self._rng.random()
        if draw < 0.3:
            return Sets(username=self._next_name("username"))
        return Sets(self._next_name("username"), self._next_name("email")) if draw < 0.4 else Sets()

    def _wanted(self, act: Act) -> tuple[int, int]:
        """Numbers of the username and e-mail address of a new user."""
        fresh = self._next_fresh()
        email = NONE if self._rng.random() < 0.3 else fresh
        if act is Act.RACE:
            # The same for every process within the same half second.
            number = RACE + int(time.time() * 2)
            return number, (number if self._rng.random() < 0.5 else email)
        if act is Act.HOT:
            return HOT + self._rng.randrange(self._names), email
        freed = self._board.freed["username"]
        if act is Act.RECREATE and freed:
            return freed[-1 - min(int(self._rng.expovariate(0.3)), len(freed) - 1)], email
        return fresh, email

    def _others(self) -> list[UUID]:
        picked = {self._board.pick(self._rng) for _ in range(10)}
        return [UUID(bytes=one) for one in picked if one is not None]

    def _spell(self, field: str, number: int) -> str | None:
        text = spelt(field, number)
        return None if text is None else disguise(text, self._rng)

    # --- writes -----------------------------------------------------------------------------------------------------

    async def _create(self, username: int, email: int) -> None:
        id_ = self._ids.uuid7()
        key, sets = key_of(id_), Sets(username, email)
        self._number += 1
        value = compose_user(key, self._ledger.process, self._number, sets)
        spelling, address = self._spell("username", username), self._spell("email", email)
        assert spelling is not None, "every user has a username"

        async def call() -> User:
            return await self._users.create(
                username=spelling,
                email=address,
                display_name=value.display_name,
                id=id_,
                attributes=value.attributes,
            )

        for _ in range(CREATE_ATTEMPTS):
            if not (await self._write(Op.APPEND, key, value.token, sets, call)).again:
                return

    async def _update(self, user_id: UUID, sets: Sets, expected: int | None = None) -> User | None:
        key = key_of(user_id)
        self._number += 1
        value = compose_user(key, self._ledger.process, self._number, sets)
        changes: dict[str, Any] = {"display_name": value.display_name, "attributes": value.attributes}
        for field in ("username", "email"):
            if getattr(sets, field) != UNCHANGED:
                changes[field] = self._spell(field, getattr(sets, field))

        async def call() -> User:
            return await self._users.update(user_id, expected_version=expected, **changes)

        return (await self._write(Op.EDIT, key, value.token, sets, call, expected)).user

    async def _swap(self, one: UUID) -> None:
        """Two users change their names - and sometimes addresses - by way of a third one."""
        picked = self._board.pick(self._rng)
        two = None if picked is None else UUID(bytes=picked)
        if two is None or one == two:
            return
        found = await self._many([one, two])
        if len(found) < 2:
            return
        names = [(seen(found[which]).note, found[which].version) for which in (one, two)]
        (first, version_one), (second, version_two) = names
        if not first or not second:
            return
        first_name, second_name = int(first[:16], 16), int(second[:16], 16)
        away = await self._update(one, Sets(username=self._next_fresh()), version_one)
        if away is None or await self._update(two, Sets(username=first_name), version_two) is None:
            return
        if await self._update(one, Sets(username=second_name), away.version) is not None:
            self.counts["swapped"] += 1

    async def _delete(self, user_id: UUID) -> None:
        expected = self._board.expected(key_of(user_id)) if self._rng.random() < 0.3 else 0

        async def call() -> None:
            await self._users.delete(user_id, expected_version=expected or None)

        await self._write(Op.DELETE, key_of(user_id), NO_TOKEN, Sets(), call, expected)

    async def _write(
        self,
        op: Op,
        key: bytes,
        token: bytes,
        sets: Sets,
        call: Callable[[], Coroutine[Any, Any, User | None]],
        expected: int | None = None,
    ) -> Answer:
        ticket = self._ledger.begin(op, key, token, expected=expected or 0, note=sets.note)
        try:
            user = await call()
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error, what=f".{error.field}" if isinstance(error, AlreadyExists) else "")
            return Answer(failed=True, again=self._failed(error))
        self.counts[op.name.lower()] += 1
        if user is None:
            self._ledger.acknowledge(ticket, 0)
        elif user.deleted:
            self._ledger.acknowledge(ticket, user.version, absent=True)
        else:
            shown = seen(user)
            self._ledger.acknowledge(ticket, user.version, shown.token, note=shown.note)
        return Answer(user)

    def _failed(self, error: Exception) -> bool:
        """Count it; whether it may be repeated."""
        known = isinstance(error, DatalayerError)
        if not (known and (error.retryable or isinstance(error, AlreadyExists | Conflict | NotFound))):  # type: ignore[attr-defined]
            traceback.print_exception(error)
        self.counts[type(error).__name__] += 1
        return isinstance(error, DatalayerError) and error.retryable

    # --- reads ------------------------------------------------------------------------------------------------------

    async def _get(self, user_id: UUID) -> User | None:
        key = key_of(user_id)
        ticket = self._ledger.look(Op.GET, key, self._board.expected(key))
        try:
            user = await self._users.get(user_id)
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error)
            self._failed(error)
            return None
        self.counts["get"] += 1
        self._ledger.saw(ticket, None if user is None else seen(user))
        return user

    async def _many(self, ids: Sequence[UUID]) -> dict[UUID, User]:
        ticket = self._ledger.look(Op.GET, key_of(ids[0]))
        try:
            found = await self._users.get_many(ids)
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error)
            self._failed(error)
            return {}
        self.counts["get_many"] += 1
        self._ledger.saw_many(ticket, dict.fromkeys(key_of(one) for one in ids), [seen(u) for u in found.values()])
        return found

    async def _look_up(self, field: str) -> None:
        number = self._to_look_up(field)
        text = None if number is None else self._spell(field, number)
        if number is None or text is None:
            return
        by = self._users.get_by_username if field == "username" else self._users.get_by_email
        ticket = self._ledger.look(Op.LOOK_UP, name_key(field, number))
        try:
            user = await by(text)
        except Exception as error:  # noqa: BLE001 - whatever leaves the library is evidence
            self._ledger.fail(ticket, error)
            self._failed(error)
            return
        self.counts[f"by_{field}"] += 1
        self._ledger.found(ticket, None if user is None else seen(user))

    def _to_look_up(self, field: str) -> int | None:
        draw = self._rng.random()
        if draw < 0.15:
            return HOT + self._rng.randrange(self._names)
        freed = self._board.freed[field]
        if draw < 0.3 and freed:
            return self._rng.choice(freed)
        picked = self._board.pick(self._rng, recent=0.7)
        if picked is None:
            return None
        number: int = getattr(self._board.users[picked].names, field)
        return number if number > 0 else None

    async def _list(self) -> None:
        """Some pages, from a user that is known on: the first ones of a large table hardly change."""
        picked = self._board.pick(self._rng)
        start = None if picked is None or self._rng.random() < 0.3 else picked
        limit, pages = self._rng.choice((5, 20, 50)), self._rng.randrange(1, WALK_PAGES + 1)
        try:
            async for _ in walk_users(self._users, self._ledger, limit=limit, pages=pages, start=start):
                self.counts["list"] += 1
        except Exception as error:  # noqa: BLE001 - walk_users() has recorded it
            self._failed(error)


async def walk_users(
    users: Users, ledger: Ledger, *, limit: int, pages: int, start: bytes | None = None
) -> AsyncIterator[tuple[User, ...]]:
    """List users page by page, on record; yields those of each page. ``start``: beyond this id."""
    after = NO_ID if start is None else start
    cursor = None if start is None else encode_cursor(UUID(bytes=start), "users.list", ())
    for _ in range(pages):
        ticket = ledger.look(Op.HISTORY, USERS + NO_ID)
        try:
            page = await users.list(limit=limit, cursor=cursor)
        except Exception as error:  # recorded, then raised again
            ledger.fail(ticket, error)
            raise
        shown = [seen(user) for user in page.items]
        cursor = page.next_cursor
        ledger.saw_page(ticket, shown, after=after, complete=cursor is None, oldest_first=True)
        yield page.items
        if cursor is None:
            return
        after = page.items[-1].id.bytes


async def record_users(users: Users, ledger: Ledger, ids: Iterable[UUID]) -> int:
    """Put stored users on record as there before the workload, which then takes part in their lives; how many."""
    wanted, count = list(ids), 0
    for at in range(0, len(wanted), 500):
        for user in (await users.get_many(wanted[at : at + 500])).values():
            ledger.baseline(seen(user))
            count += 1
    return count


# --- the process ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line of a workload process."""
    parser = argparse.ArgumentParser(prog="python -m datalayer.testing.user_workload")
    parser.add_argument("--config", type=Path, required=True, help="configuration file of the data layer")
    parser.add_argument("--ledger", type=Path, required=True, help="folder of the ledgers of all processes")
    parser.add_argument("--name", required=True, help="name of this process, new for each start")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--names", type=int, default=20, help="how many names everybody wants")
    parser.add_argument("--mix", default="mixed", help=f"{', '.join(MIXES)}, or shares such as create=6,swap=4")
    parser.add_argument("--rate", type=float, default=50.0, help="acts a second; 0: as many as it can")
    parser.add_argument("--tasks", type=int, default=4, help="acts on their way at once")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    return parser


def parse_acts(text: str) -> Mapping[Act, float]:
    """Shares of acts: the name of a mix, or ``create=6,swap=4``."""
    if text in MIXES:
        return MIXES[text]
    return {Act(name): float(share) for name, share in (part.split("=") for part in text.split(","))}


async def run(options: argparse.Namespace, layer: DataLayer) -> Counter[str]:
    """One process's work over an open layer."""
    ledger = Ledger.create(options.ledger, options.name)
    board = UserBoard(options.ledger, own=options.name)
    board.refresh()
    say({"ready": options.name, "pid": os.getpid()})
    rng = random.Random(f"{options.seed}/{options.name}")
    try:
        workload = UserWorkload(layer.users, ledger, board, mix=parse_acts(options.mix), rng=rng, names=options.names)
        await workload.run(stop_at_end_of_input(options.seconds), Pace(options.rate, options.tasks))
        return workload.counts
    finally:
        board.close()
        ledger.close()


async def _main(options: argparse.Namespace) -> None:
    # Imported late: what stands above serves tests that need neither drivers nor an engine.
    from datalayer.layer import DataLayer, LayerOptions  # noqa: PLC0415

    async with DataLayer.open(options.config, options=LayerOptions(name=options.name)) as layer:
        say({"name": options.name, "counts": dict(await run(options, layer))})


if __name__ == "__main__":
    asyncio.run(_main(arguments().parse_args()))
