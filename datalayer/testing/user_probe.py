"""Independent looks at users when everything is over: through the library, and at what the stores hold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.domains.record import DIGEST_MODULUS, digest
from datalayer.domains.users import USER, claim_keys, claim_of, to_user
from datalayer.testing.ledger import Kind, Ledger, Op, read_ledgers
from datalayer.testing.probe import FINAL, PAGES_MAX
from datalayer.testing.user_board import key_of, name_key, seen
from datalayer.testing.user_values import FIELDS, sets_of, spelt
from datalayer.testing.user_workload import walk_users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Sequence
    from pathlib import Path

    from datalayer.domains.record import Record
    from datalayer.routing.places import Places
    from datalayer.stores.base import Port
    from datalayer.testing.user_workload import Users

PAGE: Final = 500
SCAN_PAGE: Final = 2000
SHOWN_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Told:
    """Whom and which names the ledgers speak of."""

    users: frozenset[bytes]
    names: frozenset[tuple[str, int]]


def told_in(directory: Path) -> Told:
    """Every user that was begun, and every name that was asked for."""
    users: set[bytes] = set()
    names: set[tuple[str, int]] = set()
    for event in read_ledgers(directory):
        if event.kind is Kind.BEGIN:
            users.add(event.key[16:])
            sets = sets_of(event.text)
            if sets is not None:
                names.update((name, number) for name in FIELDS if (number := getattr(sets, name)) > 0)
    return Told(frozenset(users), frozenset(names))


async def read_users(users: Users, directory: Path, *, name: str = FINAL, tasks: int = 4, pages: bool = True) -> int:
    """Read every user of the ledgers by id, by all names that were ever asked for, and on pages; how many are live.

    To be called when no process of the workload runs any more. ``pages``: also list all users of the deployment.
    """
    told = told_in(directory)
    ledger = Ledger.create(directory, name, final=True)
    found = 0

    async def by_id(ids: Sequence[bytes]) -> None:
        nonlocal found
        ticket = ledger.look(Op.GET, key_of(UUID(bytes=ids[0])))
        stored = await users.get_many([UUID(bytes=one) for one in ids])
        ledger.saw_many(ticket, [key_of(UUID(bytes=one)) for one in ids], [seen(one) for one in stored.values()])
        found += len(stored)

    async def by_name(name: tuple[str, int]) -> None:
        text = spelt(*name)
        assert text is not None, "only names are looked up"
        ticket = ledger.look(Op.LOOK_UP, name_key(*name))
        look_up = users.get_by_username if name[0] == "username" else users.get_by_email
        user = await look_up(text)
        ledger.found(ticket, None if user is None else seen(user))

    parts = [partial(by_id, part) for part in _parts(sorted(told.users))]
    work = iter([*parts, *(partial(by_name, one) for one in sorted(told.names))])

    async def through() -> None:
        for one in work:
            await one()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(through())
        if pages:
            async for _ in walk_users(users, ledger, limit=PAGE, pages=PAGES_MAX):
                pass
    finally:
        ledger.close()
    return found


def _parts(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (ids[at : at + PAGE] for at in range(0, len(ids), PAGE))


@dataclass(slots=True)
class Holdings:
    """What the stores hold. ``orphans``: live claims of a value that their owner's row does not have."""

    users: int = 0
    claims: int = 0
    orphans: int = 0
    missing: int = 0
    """Values of live users without a live claim of theirs: any of two users of one name has none."""
    others: int = 0
    others_digest: int = 0
    """Number and digest of the records, tombstones included, of users that were not named as ``known``."""
    examples: list[str] = field(default_factory=list)


async def hold(places: Places, known: Collection[bytes] = frozenset()) -> Holdings:
    """Scan the authority of the users at rest: does every live user hold exactly its claims?

    Some 150 bytes of memory a user.
    """
    _, routings = await places.control.routings()
    places.learn(routings)
    await places.ensure_open(routings["users"].authority)
    store: Port = places.store("users", routings["users"].authority)
    found = Holdings()
    wanted: set[int] = set()
    held: set[int] = set()
    async for records in _scanned(store):
        for record in records:
            if record.kind == "user":
                _take_user(record, found, wanted, known)
            elif not record.deleted:
                found.claims += 1
                held.add(_pair(record.key, _owner(record)))
    found.missing, found.orphans = len(wanted - held), len(held - wanted)
    if found.orphans:
        await _name_orphans(store, held - wanted, found)
    return found


def _take_user(record: Record, found: Holdings, wanted: set[int], known: Collection[bytes]) -> None:
    if record.key not in known:
        found.others += 1
        found.others_digest = (found.others_digest + digest(USER, record)) % DIGEST_MODULUS
    if not record.deleted:
        found.users += 1
        user = to_user(record)
        wanted.update(_pair(key, record.key) for key in claim_keys(user.username, user.email))


async def _name_orphans(store: Port, orphans: set[int], found: Holdings) -> None:
    async for records in _scanned(store):
        for record in records:
            if record.kind == "claim" and not record.deleted and _pair(record.key, _owner(record)) in orphans:
                field_, value = claim_of(record.key)
                found.examples.append(f"{field_} {value!r} of {_owner(record).hex()}, version {record.version}")
                if len(found.examples) == SHOWN_MAX:
                    return


async def _scanned(store: Port) -> AsyncIterator[Sequence[Record]]:
    for range_ in await store.plan_scan(1):
        after: str | None = None
        while True:
            page = await store.scan(range_, after, SCAN_PAGE)
            yield page.records
            if page.done:
                break
            after = page.after


def _owner(claim: Record) -> bytes:
    return bytes(claim.fields[0])  # type: ignore[arg-type]


def _pair(claim: bytes, owner: bytes) -> int:
    # Both are random enough: the claim's key begins with a sha256, an id ends with random bits.
    return int.from_bytes(claim[:8], "big") ^ int.from_bytes(owner[8:], "little")
