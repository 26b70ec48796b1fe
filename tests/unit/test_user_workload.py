"""A workload of users in one process: what it does, that it proves clean, and that mistakes of a store show."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from datalayer.control import memory_server as control
from datalayer.domains.users import claim_key, claim_of, normalise
from datalayer.layer import DataLayer
from datalayer.stores.memory import server as stores
from datalayer.testing import user_oracle
from datalayer.testing.ledger import Ledger, read_ledgers
from datalayer.testing.user_board import UserBoard, seen
from datalayer.testing.user_probe import hold, read_users, told_in
from datalayer.testing.user_values import (
    FIELDS,
    NONE,
    Sets,
    compose_user,
    disguise,
    number_of,
    plain,
    sets_of,
    spelt,
    user_token,
)
from datalayer.testing.user_workload import MIXES, Act, UserWorkload, parse_acts, record_users
from datalayer.testing.values import Torn
from datalayer.testing.workload import Pace
from datalayer.types import User

DONE = ("append", "edit", "delete", "get", "get_many", "by_username", "by_email", "list", "swapped")


@pytest.fixture(autouse=True)
def no_servers_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory server lives as long as its process, by name: each test gets new ones."""
    monkeypatch.setattr(stores, "SERVERS", {})
    monkeypatch.setattr(control, "SERVERS", {})


@asynccontextmanager
async def opened(folder: Path, url: str = "memory://") -> AsyncIterator[DataLayer]:
    config = folder / "datalayer.toml"
    config.write_text(f'[backends.main]\nurl = "{url}"\n[control]\nurl = "{url.replace("users", "control")}"\n')
    async with DataLayer.open(config) as layer:
        yield layer


async def work(
    users: Any, ledgers: Path, seconds: float = 0.5, done: tuple[str, ...] = (), at_least: int = 0
) -> Counter[str]:
    """All roles for so long, and until each of ``done`` and so many acts in all were done (20 s at most)."""
    stop = asyncio.Event()
    processes: list[UserWorkload] = []
    for name in ("writer", "renamer", "mixed", "reader"):
        ledger, board = Ledger.create(ledgers, name), UserBoard(ledgers, own=name)
        made = UserWorkload(users, ledger, board, mix=parse_acts(name), rng=random.Random(name))
        processes.append(made)
    ending = asyncio.create_task(_end(stop, processes, seconds, done, at_least))
    await asyncio.gather(*(process.run(stop, Pace(0, 3)) for process in processes))
    await ending
    return counted(processes)


async def _end(
    stop: asyncio.Event, processes: list[UserWorkload], seconds: float, done: tuple[str, ...], at_least: int
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < 20.0:
        await asyncio.sleep(0.05)
        counts = counted(processes)
        enough = all(counts[name] for name in done) and counts.total() >= at_least
        if loop.time() - began >= seconds and enough:
            break
    stop.set()


def counted(processes: list[UserWorkload]) -> Counter[str]:
    return sum((process.counts for process in processes), start=Counter())


@pytest.mark.parametrize("url", ["memory://", "sqlite:///users.sqlite"])
async def test_a_workload_over_a_correct_store_is_clean_and_touches_everything(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(tmp_path, url) as layer:
        counts = await work(
            layer.users, tmp_path / "ledger", 0.5 if url == "memory://" else 1.5, (*DONE, "AlreadyExists")
        )
        live = await read_users(layer.users, tmp_path / "ledger")
        found = await hold(layer.places)
    findings = user_oracle.check(read_ledgers(tmp_path / "ledger"))
    assert [str(violation) for violation in findings.violations] == []
    assert (findings.clean, findings.errors, findings.refused_free) == (True, {}, 0)
    assert (found.orphans, found.missing, found.users) == (0, 0, live)
    assert [name for name in DONE if not counts[name]] == []
    assert counts["AlreadyExists"] > 0


class Careless:
    """Users of a store with one mistake."""

    def __init__(self, layer: DataLayer) -> None:
        self._users = layer.users
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._users, name)

    def _now(self) -> bool:
        self._calls += 1
        return self._calls % 9 == 0


class Forgetful(Careless):
    """Drops updates after saying yes."""

    async def update(self, id: UUID, *, expected_version: int | None = None, **changes: Any) -> User:
        if not self._now() or expected_version is not None:
            return await self._users.update(id, expected_version=expected_version, **changes)
        stored = await self._users.get(id)
        assert stored is not None
        fields = {name: getattr(stored, name) for name in User.__slots__}
        return User(**{**fields, **changes, "version": stored.version + 2})


class Blind(Careless):
    """Does not find everybody by name."""

    async def get_by_username(self, username: str) -> User | None:
        return None if self._now() else await self._users.get_by_username(username)


class Generous(Careless):
    """Gives a name to whoever comes: a create under a taken name says yes, and shows ever after what was asked for."""

    def __init__(self, layer: DataLayer) -> None:
        super().__init__(layer)
        self.given: dict[UUID, User] = {}

    async def create(self, *, username: str, id: UUID, **rest: Any) -> User:
        if not self._now():
            return await self._users.create(username=username, id=id, **rest)
        made = await self._users.create(username=f"hidden {id}", id=id)
        fields = {name: getattr(made, name) for name in User.__slots__}
        self.given[id] = User(**{**fields, **rest, "username": username})
        return self.given[id]


@pytest.mark.parametrize(("store", "kind"), [(Forgetful, "lost"), (Blind, "stale"), (Generous, "duplicate")])
async def test_a_mistake_of_the_store_is_noticed(tmp_path: Path, store: type[Careless], kind: str) -> None:
    async with opened(tmp_path) as layer:
        await work(store(layer), tmp_path / "ledger", at_least=600)
        await read_users(layer.users, tmp_path / "ledger")
    assert user_oracle.check(read_ledgers(tmp_path / "ledger")).count(kind) > 0


async def test_users_from_before_the_workload_are_judged_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as layer:
        made = [await layer.users.create(username=str(spelt("username", n)), email=spelt("email", n)) for n in (1, 2)]
        assert await record_users(layer.users, Ledger.create(tmp_path / "ledger", "b"), [u.id for u in made]) == 2
        assert told_in(tmp_path / "ledger").names == {(field, n) for field in FIELDS for n in (1, 2)}
        await read_users(layer.users, tmp_path / "ledger", name="final-1")
        assert user_oracle.check(read_ledgers(tmp_path / "ledger")).clean
        await layer.users.delete(made[0].id)
        await read_users(layer.users, tmp_path / "ledger", name="final-2")
    found = user_oracle.check(read_ledgers(tmp_path / "ledger"))
    assert found.count("lost") == 3  # the row, its username and its address


async def test_what_the_stores_hold_is_counted_and_compared(tmp_path: Path) -> None:
    async with opened(tmp_path) as layer:
        ann = await layer.users.create(username="ann", email="ann@example.org")
        await layer.users.create(username="bob")
        clean = await hold(layer.places)
        assert (clean.users, clean.claims, clean.orphans, clean.missing, clean.others) == (2, 3, 0, 0, 2)
        known = await hold(layer.places, {ann.id.bytes})
        assert (known.others, known.others_digest == clean.others_digest) == (1, False)
        store = layer.router("users").route.authority
        [user] = (await store.fetch([("user", ann.id.bytes)])).values()
        await store.apply([user._replace(version=user.version + 9, fields=("eve", *user.fields[1:]))])
        broken = await hold(layer.places)
        assert (broken.orphans, broken.missing) == (1, 1)
        hashed = claim_of(claim_key("username", "ann"))[1]
        assert broken.examples[0].startswith(f"username {hashed!r} of {ann.id.hex}")


def test_a_name_tells_its_number_in_any_spelling() -> None:
    rng = random.Random(1)
    spellings = 0
    for number in [*range(1, 400), *(rng.randrange(1 << 60) for _ in range(200))]:
        for name in FIELDS:
            text = spelt(name, number)
            assert text is not None
            other = disguise(text, rng)
            spellings += other != text
            assert number_of(name, other) == number
            assert normalise(name, other) == plain(text)
    assert spellings > 200
    assert number_of("email", None) == NONE
    with pytest.raises(Torn):
        number_of("username", "somebody else 7")


def test_a_row_put_together_from_two_writes_is_torn() -> None:
    user_id = UUID("018bcfe5-6800-7000-8000-000000000001")
    sets = Sets(5, 6)
    value = compose_user(b"users".ljust(16, b"\0") + user_id.bytes, "p", 1, sets)
    names = {"username": str(spelt("username", 5)), "email": spelt("email", 6)}
    whole = {"id": user_id, **names, "display_name": value.display_name, "attributes": value.attributes, "version": 9}
    user = User(**whole)  # type: ignore[arg-type]
    assert user_token(user) == value.token
    assert sets_of(seen(user).note) == sets
    for change in ({"display_name": "p 2"}, {"username": spelt("username", 7)}, {"email": None}):
        assert seen(User(**{**whole, **change})).torn  # type: ignore[arg-type]


def test_shares_of_acts_can_be_named_or_spelled_out() -> None:
    assert parse_acts("reader") == MIXES["reader"]
    assert parse_acts("create=2,swap=0.5") == {Act.CREATE: 2.0, Act.SWAP: 0.5}
