"""The importer of users: names that collide are found by line, users go in by the thousand, a second import only reads.

Two lines of different users may not have one username or e-mail address, compared as claims are: without case and
Unicode form. ``stop`` finds that out before anything is written, ``skip`` leaves out the later line. A user that is
stored already is left alone, whatever its names are now.

Users at rest are stored in bulk, in the order that keeps names unique over shards as well (routing/claims.py): claims
of the users' own times first; then those are read back, and only users who have all of theirs get their rows, which are
read back, too. A claim that somebody else has, or has given back, is younger than an imported one and wins; such users
go through the routed create, one by one, as all do while the domain moves. Bulk records are not journalled: whoever
calls holds the domain's lease, so that no migration begins meanwhile, and a process that loses it stops. After a crash
there may be claims of users that are not stored yet: the same import goes on with them.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Self

from datalayer.clock import Deadline
from datalayer.domains.users import (
    USER,
    CreateUser,
    UpdateUser,
    claim_keys,
    claim_record,
    created,
    home_region,
    same_create,
    taken,
    to_record,
    to_user,
)
from datalayer.errors import AlreadyExists, PreconditionFailed, SchemaBehind
from datalayer.importing.files import BadLine
from datalayer.importing.reading import CALL_S, FileImporter, Found, ImportReport, Line, Progress, silent
from datalayer.importing.users_lines import user_of
from datalayer.routing.shards import base_domain
from datalayer.stores.base import Regional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from uuid import UUID

    from datalayer.domains.record import Key, Record
    from datalayer.importing.tally import Tally
    from datalayer.layer import DataLayer
    from datalayer.stores.base import Port

BATCH_LINES: Final = 2000
AT_ONCE: Final = 200
_LINE_MAX: Final = 1 << 18
_PARTS: Final = 64
_IN_MEMORY_BYTES: Final = 1 << 18
_ADOPT_S: Final = 10.0
ALIKE: Final = "compared without case and Unicode form"


async def import_users(
    layer: DataLayer,
    path: Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = silent,
    lease: Callable[[], AbstractAsyncContextManager[int]] | None = None,
) -> ImportReport:
    """Store the users of a file of JSON lines, plain or gzipped: username, and email, display_name, id, created_at,
    attributes where there are any.

    ``stop`` checks the whole file first, also against the names that are taken already, and stores nothing unless
    every line is good (BadLines); ``skip`` leaves out bad lines and those whose name is taken, and names them.
    ``lease``: makes the lease of whoever moves users (``migrators.lease.held_lease``); with it users at rest are
    stored in bulk, a hundred times as fast. ``progress`` is called between batches and may raise to stop there.

    Idempotent; memory is bounded whatever the size of the file. Raises NotFinished when the store does not answer for
    a minute: the same import goes on. InvalidArgument when the file cannot be opened.
    """
    importer = _Importer(layer, path, progress, lease)
    if on_error == "stop":
        await importer.check()
    return await importer.store()


class _Importer(FileImporter[CreateUser]):
    batch_lines = BATCH_LINES

    def __init__(
        self,
        layer: DataLayer,
        path: Path,
        progress: Callable[[Progress], None],
        lease: Callable[[], AbstractAsyncContextManager[int]] | None,
    ) -> None:
        super().__init__(layer.clock, path, _LINE_MAX, progress)
        self._layer = layer
        self._router = layer.router("users")
        self._lease = lease
        self._bulk: Port | None = None
        self._names: NameList | None = None
        self._fresh = False
        """The store was empty when the check began: no name was taken."""

    def _parse_line(self, raw: bytes, now_us: int) -> tuple[CreateUser, frozenset[str]]:
        return user_of(raw, now_us=now_us)

    # --- check ------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        with NameList() as self._names:
            self._fresh = await self._persist(self._is_empty, 0)
            await super().check()

    async def _check_batch(self, lines: list[Line[CreateUser]], found: Found) -> None:
        assert self._names is not None, "a check keeps a list of names"
        for line in lines:
            self._names.add(line)
        if self._fresh or not lines:
            return
        claims = await self._persist(partial(self._claims, [line.item for line in lines]), lines[0].number)
        suspects = [(line, key) for line in lines if (key := _taken(line.item, claims)) is not None]
        ids: list[Key] = [("user", line.item.id.bytes) for line, _ in suspects]
        stored = await self._persist(partial(self._fetch, ids), lines[0].number)
        for line, key in suspects:
            if ("user", line.item.id.bytes) not in stored:
                found.note_bad(BadLine(line.number, f"{taken(key, line.item).message} ({ALIKE})"))

    async def _check_end(self, found: Found) -> None:
        assert self._names is not None, "a check keeps a list of names"
        for bad in await asyncio.to_thread(self._names.collisions):
            found.note_bad(bad)

    # --- store ------------------------------------------------------------------------------------------------------

    async def store(self) -> ImportReport:
        async with AsyncExitStack() as stack:
            self._bulk = await self._bulk_store(stack)
            return await super().store()

    async def _bulk_store(self, stack: AsyncExitStack) -> Port | None:
        """The store to write to directly; None where every user must go through the router."""
        if self._lease is None or not await self._at_rest():
            return None
        try:
            await stack.enter_async_context(self._lease())
        except PreconditionFailed:  # somebody moves users now
            return None
        # Again, for a move may have ended just before; and this process must have heard of its end.
        until = self._clock.monotonic() + _ADOPT_S
        while await self._at_rest():
            routing = (await self._layer.places.control.routings())[1]["users"]
            if self._router.routing == routing:
                store: Port = self._router.route.authority
                return store
            if self._clock.monotonic() >= until:
                break
            await asyncio.sleep(0.05)
        return None

    async def _at_rest(self) -> bool:
        _, routings = await self._layer.places.control.routings()
        return all(routing.at_rest for name, routing in routings.items() if base_domain(name) == "users")

    async def _store_batch(self, lines: list[Line[CreateUser]], found: Found, tally: Tally) -> None:
        first: dict[bytes, Line[CreateUser]] = {}
        for line in lines:
            first.setdefault(line.item.id.bytes, line)
        at = lines[0].number if lines else 0
        stored: dict[bytes, Record] = await self._persist(partial(self._rows, list(first)), at)
        missing = [line for id_, line in first.items() if id_ not in stored]
        singles, crowd = await self._part(missing, at)
        if self._bulk is not None:
            singles += await self._store_bulk(crowd, stored, at)
        else:
            singles += crowd
        refused = await self._create_all(singles, stored)
        await self._bring_home(lines, stored)
        found.new += len(missing) - len(refused)
        self._tally(lines, stored, refused, found, tally)

    @staticmethod
    def _tally(
        lines: list[Line[CreateUser]],
        stored: dict[bytes, Record],
        refused: dict[bytes, str],
        found: Found,
        tally: Tally,
    ) -> None:
        for line in lines:
            id_ = line.item.id.bytes
            if id_ in refused:
                found.good -= 1
                found.note_bad(BadLine(line.number, refused[id_]))
                continue
            tally.add_record(USER, stored[id_])
            user = to_user(stored[id_])
            if not user.deleted and not same_create(line.item, user):
                found.note_differing(line.number)

    async def _part(
        self, missing: Sequence[Line[CreateUser]], at: int
    ) -> tuple[list[Line[CreateUser]], list[Line[CreateUser]]]:
        """(users whose names are or were in use, users whose names nobody has ever had).

        Of users of one name in one batch the first belongs to the second part: who comes first has it.
        """
        claims = await self._persist(partial(self._claims, [line.item for line in missing]), at)
        singles: list[Line[CreateUser]] = []
        crowd: list[Line[CreateUser]] = []
        met: set[bytes] = set()
        for line in missing:
            keys = claim_keys(line.item.username, line.item.email)
            known = any((claim := claims.get(("claim", key))) is not None and not _held(claim, line) for key in keys)
            (singles if known or met.intersection(keys) else crowd).append(line)
            met.update(keys)
        return singles, crowd

    async def _store_bulk(
        self, lines: Sequence[Line[CreateUser]], stored: dict[bytes, Record], at: int
    ) -> list[Line[CreateUser]]:
        """Store users whose names seem free; those that somebody came in between are returned."""
        assert self._bulk is not None, "bulk only under the lease"
        if not lines:
            return []
        users = {line.item.id.bytes: created(line.item) for line in lines}
        claims = [
            claim_record(key, user.id, user.version)
            for user in users.values()
            for key in claim_keys(user.username, user.email)
        ]
        await self._persist(partial(self._bulk.apply, claims), at)
        now = await self._persist(partial(self._claims, [line.item for line in lines]), at)
        lost = {bytes(mine.fields[0]) for mine in claims if now.get(mine.ident) != mine}  # type: ignore[arg-type]
        mine = [to_record(user) for id_, user in users.items() if id_ not in lost]
        await self._persist(partial(self._bulk.apply, mine), at)
        rows = await self._persist(partial(self._rows, [row.key for row in mine]), at)
        for row in mine:
            if rows.get(row.key) == row:
                stored[row.key] = row
            else:
                lost.add(row.key)
        return [line for line in lines if line.item.id.bytes in lost]

    async def _create_all(self, lines: list[Line[CreateUser]], stored: dict[bytes, Record]) -> dict[bytes, str]:
        """Create one by one, in the order of the lines where two want one name; why those were refused that were."""
        refused: dict[bytes, str] = {}

        async def create(line: Line[CreateUser]) -> None:
            try:
                user = await self._persist(partial(self._create, line.item), line.number)
            except AlreadyExists as error:
                refused[line.item.id.bytes] = f"{error.message} ({ALIKE})"
                await self._give_back(line.item)
            else:
                stored[line.item.id.bytes] = to_record(user)

        for group in _apart(sorted(lines, key=lambda line: line.number)):
            answers = await asyncio.gather(*(create(line) for line in group), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        return refused

    async def _give_back(self, mutation: CreateUser) -> None:
        """Release what a bulk write has claimed for a user that is refused after all."""
        if self._bulk is None:
            return
        held = [
            claim
            for claim in (await self._claims([mutation])).values()
            if not claim.deleted and claim.fields[0] == mutation.id.bytes
        ]
        if held:
            await self._bulk.apply([claim._replace(version=claim.version + 2, deleted=True) for claim in held])

    async def _bring_home(self, lines: Sequence[Line[CreateUser]], stored: dict[bytes, Record]) -> None:
        """Move who has no region yet and should: an import that died between create and move left them there."""
        store = self._router.route.authority
        if not isinstance(store, Regional):
            return
        for line in lines:
            region, record = line.item.region, stored.get(line.item.id.bytes)
            if region is None or record is None or record.deleted or home_region(record) is not None:
                continue
            if same_create(line.item, to_user(record)):
                stored[record.key] = to_record(
                    await self._persist(partial(self._move, line.item.id, region), line.number)
                )

    # --- the store --------------------------------------------------------------------------------------------------

    async def _create(self, mutation: CreateUser) -> Any:
        """One user. With an id of another region it is created where the id lies, and moved at once."""
        store, region = self._router.route.authority, mutation.region
        if region is None or not isinstance(store, Regional) or store.region_of(mutation.id) == region:
            return await self._router.write(mutation, Deadline(self._clock, CALL_S))
        store.check_region(region)
        user = await self._router.write(replace(mutation, region=None), Deadline(self._clock, CALL_S))
        if user.deleted:
            return user
        return await self._move(user.id, region)

    async def _move(self, user_id: UUID, region: str) -> Any:
        return await self._router.write(UpdateUser(user_id, (("region", region),)), Deadline(self._clock, CALL_S))

    async def _is_empty(self) -> bool:
        async def call(store: Port, _: Deadline) -> bool:
            try:
                return await store.empty()
            except SchemaBehind:
                return False

        return await self._router.read(None, call, Deadline(self._clock, CALL_S))

    async def _rows(self, ids: Iterable[bytes]) -> dict[bytes, Record]:
        return {key[1]: record for key, record in (await self._fetch([("user", id_) for id_ in ids])).items()}

    async def _claims(self, users: Iterable[CreateUser]) -> dict[Key, Record]:
        return await self._fetch([("claim", key) for user in users for key in claim_keys(user.username, user.email)])

    async def _fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        if not keys:
            return {}

        async def call(store: Port, _: Deadline) -> dict[Key, Record]:
            return await store.fetch(keys)

        routings = list({key[:16] for _, key in keys})
        return await self._router.read(routings, call, Deadline(self._clock, CALL_S))


def _taken(user: CreateUser, claims: dict[Key, Record]) -> bytes | None:
    """The first of a user's unique values that somebody else has."""
    for key in claim_keys(user.username, user.email):
        claim = claims.get(("claim", key))
        if claim is not None and not claim.deleted and claim.fields[0] != user.id.bytes:
            return key
    return None


def _held(claim: Record, line: Line[CreateUser]) -> bool:
    """Whether it is what an import of this line that was cut short has left."""
    return claim == claim_record(claim.key, line.item.id, created(line.item).version)


def _apart(lines: Sequence[Line[CreateUser]]) -> Iterable[list[Line[CreateUser]]]:
    """Runs of lines that want different names."""
    run: list[Line[CreateUser]] = []
    met: set[bytes] = set()
    for line in lines:
        keys = claim_keys(line.item.username, line.item.email)
        if run and (len(run) == AT_ONCE or met.intersection(keys)):
            yield run
            run, met = [], set()
        run.append(line)
        met.update(keys)
    if run:
        yield run


class NameList:
    """Every name of a file with its user and line, in temporary files, so that memory stays bounded."""

    def __init__(self) -> None:
        self._parts: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        for _ in range(_PARTS):
            part = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)
            self._parts.append(part)
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.close()

    def add(self, line: Line[CreateUser]) -> None:
        """Take down the names of a line."""
        user = line.item
        for key in claim_keys(user.username, user.email):
            self._parts[key[0] % _PARTS].write(key[:17] + user.id.bytes + line.number.to_bytes(8, "big"))

    def collisions(self) -> list[BadLine]:
        """The lines whose name is another user's of an earlier line, in no order."""
        found = []
        for part in self._parts:
            part.seek(0)
            first: dict[bytes, tuple[bytes, bytes]] = {}
            while entry := part.read(_ENTRY_BYTES):
                key, id_, number = entry[:17], entry[17:33], entry[33:]
                other, line = first.setdefault(key, (id_, number))
                if other != id_:
                    field = "username" if key[16:] == b"u" else "email"
                    said = f"the {field} is that of line {int.from_bytes(line, 'big')}, too ({ALIKE})"
                    found.append(BadLine(int.from_bytes(number, "big"), said))
        return found


_ENTRY_BYTES: Final = 17 + 16 + 8
