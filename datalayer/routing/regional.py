"""Users over shards that have regions: where one lies is found by following pointers, and one moves by a chain of swaps.

A move to another region: the row gets the new region where it is (from then on nobody writes it there), its copy is put
into the new group, the pointer under the id's own slot is turned, and what is left behind becomes a pointer, too. Each
step is a swap of exactly what was seen, so whoever meets a move that was begun can finish it, and every writer does
before he writes. A reader only follows: where the copy is not there yet, the row that is about to leave is the user.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from uuid import UUID

from datalayer.domains.messages import NIL
from datalayer.domains.users import (
    CreateUser,
    Elsewhere,
    Swap,
    UpdateUser,
    changed,
    check_expected,
    home_region,
    next_version,
    pointer,
    to_record,
    to_user,
)
from datalayer.errors import (
    Conflict,
    DatalayerError,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    NotFound,
    Outcome,
    OutcomeUnknown,
    PreconditionFailed,
    Quarantine,
    StaleRoute,
    Unavailable,
)
from datalayer.routing.claims import RACES_MAX, ClaimingWriter
from datalayer.routing.regions import Regions
from datalayer.routing.sharded import CLAIMED, RoutedRecords, ShardedUsers, apply_parts
from datalayer.routing.shardguard import ShardedGuard, ShardedJournal, in_turn
from datalayer.routing.together import each
from datalayer.routing.within import within
from datalayer.stores.base import Executed, ScanPage
from datalayer.types import User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Record
    from datalayer.routing.shards import Group
    from datalayer.stores.base import Guard

RETRY_S: Final = 0.02
HOPS_MAX: Final = 16
"""More than any chain of pointers is long: beyond it the user keeps moving."""


class Found(NamedTuple):
    """A user's record, or one that is about to leave for where nothing is yet, and the group where it was met."""

    group: Group
    record: Record


class RegionalUsers(ShardedUsers):
    """Users whose shards have regions. Claims lie wherever their hash puts them: they hold no value."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.records: RegionalRecords = RegionalRecords(self)
        self.claiming = ClaimingWriter(self.records, self.places.clock)
        self._regions: Regions | None = None

    @property
    def regions(self) -> Regions:
        """The regions of the slot groups. StaleRoute before the groups are known here."""
        if self._regions is None:
            found = self.map
            backend: Any = self.places.backend(self.place)
            shards = {group: self.places.routing_of(group.name).authority.backend for group in found.groups}
            self._regions = Regions(found, {g: backend.regions[s.partition("/")[2]] for g, s in shards.items()})
        return self._regions

    def check_region(self, region: str) -> None:
        """InvalidArgument for a region that no shard has."""
        if region not in self.regions.names:
            raise InvalidArgument(
                f"no shard of {self.place.backend!r} is in region {region!r}",
                hint=f"one of: {', '.join(self.regions.names)}",
            )

    def region_of(self, user_id: UUID) -> str:
        """The region of an id."""
        return self.regions.of_id(user_id.bytes)

    # --- where things are -------------------------------------------------------------------------------------------

    def groups_of(self, routing: bytes) -> Sequence[Group]:
        return self.regions.spots(routing)

    def group_of(self, record: Record) -> Group:
        if record.kind != "user":
            return super().group_of(record)
        return self.regions.spot(record.key, home_region(record))

    async def locate(
        self, keys: Sequence[Key], read: Callable[[Group, Sequence[Key]], Awaitable[Mapping[Key, Record]]]
    ) -> dict[Key, Found]:
        """Where the users of these keys lie now. Unavailable when one keeps moving.

        What is met at a place whose region the row names is the user as it is. A row that is about to leave is the user
        if the copy was looked for afterwards and is not there: nothing is, or pointers lead back to that very row. A
        pointer to a group without a row was read before the user went on: the way is begun again once.
        """
        found: dict[Key, Found] = {}
        at = {key: self.regions.home(key[1]) for key in keys}
        from_: dict[Key, Found] = {}
        leaving: dict[Key, Found] = {}
        again: set[Key] = set()
        for _ in range(HOPS_MAX):
            parts: dict[Group, list[Key]] = {}
            for key, group in at.items():
                parts.setdefault(group, []).append(key)
            pages = await each(parts.items(), lambda part: read(*part))
            met = {key: record for page in pages for key, record in page.items()}
            onward: dict[Key, Group] = {}
            for key, group in at.items():
                record, before = met.get(key), from_.get(key)
                if record is None:
                    if before is not None and not before.record.deleted:
                        found[key] = before
                    elif before is not None and key not in again:
                        again.add(key)
                        del from_[key]
                        onward[key] = self.regions.home(key[1])
                elif self.regions.lies(record, group) or leaving.get(key) == (group, record):
                    found[key] = Found(group, record)
                else:
                    self._check_known(record)
                    from_[key], onward[key] = Found(group, record), self.regions.spot(key[1], home_region(record))
                    if not record.deleted:
                        leaving[key] = from_[key]
            if not onward:
                return found
            at = onward
        raise Unavailable(f"{len(at)} users kept moving between regions under this call")

    def _check_known(self, mark: Record) -> None:
        if self._unknown(mark) is not None:
            raise PreconditionFailed(
                f"user {UUID(bytes=mark.key)} lies in region {home_region(mark)!r}, in which no shard of "
                f"{self.place.backend!r} is",
                hint="the regions of shards must keep their names: put them back into the configuration",
            )

    def marks(self, record: Record, group: Group) -> bool:
        return self.regions.points(record, group)

    # --- the port ---------------------------------------------------------------------------------------------------

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        async def read(group: Group, mine: Sequence[Key]) -> Mapping[Key, Record]:
            return cast("Mapping[Key, Record]", await (await self.store(group)).fetch(mine))

        users = [key for key in keys if key[0] == "user"]
        located = await self.locate(users, read)
        claims = await super().fetch([key for key in keys if key[0] != "user"])
        return {**claims, **{key: one.record for key, one in located.items()}}

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        page = await super().scan(range_, after, limit)
        first = int(range_.partition("|")[0])
        group = next(group for group in self.map.groups if group.first == first)
        return page._replace(records=[r for r in page.records if not self.regions.points(r, group)])

    async def scan_homes(self, range_: str, after: str | None, limit: int) -> ScanPage:
        page = await super().scan(range_, after, limit)
        first = int(range_.partition("|")[0])
        group = next(group for group in self.map.groups if group.first == first)
        mine = [r for r in page.records if r.kind != "user" or self.regions.home(r.key) == group]
        away = [r.ident for r in mine if r.kind == "user" and not self.regions.lies(r, group)]
        if not away:
            return page._replace(records=mine)
        found = await self.fetch(away)
        at = {record.ident: record for record in mine} | {key: found.get(key) for key in away}
        return page._replace(records=[record for record in at.values() if record is not None])

    def check(self, record: Record) -> str | None:
        return self._unknown(record) or super().check(record)

    def _unknown(self, record: Record) -> str | None:
        region = home_region(record) if record.kind == "user" else None
        known = region is None or region in self.regions.names
        return None if known else f"no shard is in its region {region!r} (there are: {', '.join(self.regions.names)})"

    async def apply_at(self, records: Sequence[Record], side: Callable[[Group], Awaitable[Any]]) -> None:
        """Each user to the group of its region, and the pointer to it first.

        Two versions of a user that name different regions may be applied in any order, by any two processes. So after
        its own row each looks wherever the user might lie: what is older there becomes a pointer, and where something is
        newer, its own row does. One of the two sees the other's.
        """
        refused = {r.ident: reason for r in records if (reason := self._unknown(r)) is not None}
        users = [r for r in records if r.kind == "user" and r.ident not in refused]
        rest = self.by_group((r for r in records if r.kind != "user"), lambda record: record.key)
        pointers: dict[Group, list[Record]] = {}
        rows: dict[Group, list[Record]] = rest
        for record in users:
            home, spot = self.regions.home(record.key), self.group_of(record)
            if spot != home:
                mark = pointer(record.key, self.regions.of_group(spot), record.version)
                pointers.setdefault(home, []).append(mark)
            rows.setdefault(spot, []).append(record)
        for parts in (pointers, rows):
            try:
                await apply_parts(parts, side)
            except Quarantine as error:
                refused.update(error.rejected)
        await apply_parts(await self._left_over([u for u in users if u.ident not in refused]), side)
        if refused:
            raise Quarantine(refused)

    async def _left_over(self, users: Sequence[Record]) -> dict[Group, list[Record]]:
        """The pointers that must replace rows of these users, which were just applied, or the very rows applied."""
        others = {user.key: [g for g in self.regions.spots(user.key) if g != self.group_of(user)] for user in users}
        parts: dict[Group, list[Key]] = {}
        for user in users:
            for group in others[user.key]:
                parts.setdefault(group, []).append(user.ident)

        async def read(group: Group) -> Mapping[Key, Record]:
            return cast("Mapping[Key, Record]", await (await self.store(group)).fetch(parts[group]))

        met = dict(zip(parts, await each(parts, read), strict=True))
        marks: dict[Group, list[Record]] = {}
        for user in users:
            spot = self.group_of(user)
            for group in others[user.key]:
                there = met[group].get(user.ident)
                if there is None and user.deleted:
                    # An older row may be on its way here: it must find something newer, for its sender may die then.
                    marks.setdefault(group, []).append(pointer(user.key, self.regions.of_group(spot), user.version))
                    continue
                if there is None or self.regions.points(there, group):
                    continue
                if there.version < user.version:
                    mark = pointer(user.key, self.regions.of_group(spot), user.version)
                    marks.setdefault(group, []).append(mark)
                elif there.version > user.version and self.regions.lies(there, group):
                    mark = pointer(user.key, self.regions.of_group(group), there.version)
                    marks.setdefault(spot, []).append(mark)
        return marks

    def guard(self, attempt: int) -> Guard:
        if attempt not in self._guards:
            self._guards[attempt] = RegionalGuard(self, attempt)
        return self._guards[attempt]

    # --- for the application ----------------------------------------------------------------------------------------

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        if isinstance(mutation, CreateUser) and mutation.region is not None:
            self.check_region(mutation.region)
            if mutation.region != self.region_of(mutation.id):
                raise InvalidArgument(
                    f"the id {mutation.id} is one of region {self.region_of(mutation.id)!r}, not {mutation.region!r}",
                    hint="leave id out, or create the user there and move it",
                )
        if isinstance(mutation, Swap):
            return Executed(mutation.record, (await self.records.swap(mutation, deadline),))
        if not isinstance(mutation, UpdateUser):
            return await super().execute(mutation, deadline)
        changes = {name for name, _ in mutation.changes}
        if "region" in changes:
            return await self._move(mutation, deadline)
        if CLAIMED & changes:
            return await super().execute(mutation, deadline)
        return await self._update(mutation, deadline)

    async def _update(self, mutation: UpdateUser, deadline: Deadline) -> Executed:
        """One transaction of the group where the user lies."""
        group = self.regions.home(mutation.id.bytes)
        for _ in range(RACES_MAX):
            router = self.places.group_routers[group.name]
            try:
                return await router.execute(replace(mutation, lies_in=self.regions.of_group(group)), deadline)
            except (NotFound, Elsewhere) as error:
                found = await self.records.settled(mutation.id.bytes, deadline)
                if found is None or found.record.deleted:
                    await self._ask_the_fence(mutation.id, deadline)
                    raise NotFound(f"user {mutation.id} does not exist") from error
                group = found.group
        raise Unavailable(f"user {mutation.id} kept moving under this write")

    async def _move(self, mutation: UpdateUser, deadline: Deadline) -> Executed:
        """Change the region, and what else is to change with it. After a crash: as before, or any writer finishes it."""
        region = cast("str", dict(mutation.changes)["region"])
        self.check_region(region)
        lost: Conflict | None = None
        for _ in range(RACES_MAX):
            found = await self.records.settled(mutation.id.bytes, deadline)
            if found is None or found.record.deleted:
                await self._ask_the_fence(mutation.id, deadline)
                raise NotFound(f"user {mutation.id} does not exist")
            stored = to_user(found.record)
            check_expected(mutation, stored)
            leaves = to_record(changed(mutation, stored, self.places.clock.now_us()))
            try:
                await self.records.clear(found, deadline)
                await self.records.swap_at(found.group, Swap(leaves, stored.version), deadline)
            except Conflict as error:
                lost = error
                continue
            return await self._arrive(leaves, deadline)
        raise Unavailable(f"user {mutation.id} kept changing under this write") from lost

    async def _arrive(self, leaves: Record, deadline: Deadline) -> Executed:
        """Bring a user to its new region after the row that says so was written.

        That was the write. A fence that is met from then on is waited for here: the domain's router would run the whole
        mutation again, and a compare-and-set would meet its own first step. Where the domain itself has gone to another
        place meanwhile, the row has gone with it.
        """
        user_id, region = UUID(bytes=leaves.key), home_region(leaves)
        while True:
            try:
                there = await self.records.settled(leaves.key, deadline)
            except (Fenced, StaleRoute) as error:
                if self.places.has_left(self.domain, self.place):
                    return Executed(to_user(leaves), ())
                if not deadline.passed:
                    await asyncio.sleep(RETRY_S)
                    continue
                refused: DatalayerError = error
            except DatalayerError as error:
                if error.outcome is not Outcome.NOT_APPLIED:
                    raise
                refused = error
            else:
                return Executed(
                    to_user(leaves if there is None else there.record), () if there is None else (there.record,)
                )
            msg = f"user {user_id} is on the way to region {region!r}: {refused.message}"
            raise OutcomeUnknown(msg, hint="repeat the call, or let the user's next write finish it") from refused

    async def _ask_the_fence(self, user_id: UUID, deadline: Deadline) -> None:
        for group in self.regions.spots(user_id.bytes):
            with suppress(NotFound):
                await self.places.group_routers[group.name].execute(UpdateUser(NIL, ()), deadline)

    async def get(self, user_id: UUID, deadline: Deadline) -> User | None:
        user = await super().get(user_id, deadline)
        if user is None or self._lies_at_home(user):
            return user
        found = await self.records.located([("user", user_id.bytes)], deadline)
        return to_user(found["user", user_id.bytes].record) if found else None

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[User]:
        users = await super().get_many(ids, deadline)
        at_home = [user for user in users if self._lies_at_home(user)]
        away: list[Key] = [("user", user.id.bytes) for user in users if not self._lies_at_home(user)]
        found = await self.records.located(away, deadline) if away else {}
        return [*at_home, *(to_user(one.record) for one in found.values())]

    def _lies_at_home(self, user: User) -> bool:
        return self.regions.lies(to_record(user), self.regions.home(user.id.bytes))

    async def page_of(
        self, limit: int, deadline: Deadline, *, after: UUID | None, missing: set[str] | None
    ) -> list[User]:
        """Pointers are merged, too: who moved while the groups were read is met as one, and looked up."""
        users: list[User] = []
        batch: list[User | UUID] = []
        met: list[tuple[Group, User]] = []
        async with aclosing(self.merged(limit, deadline, after, missing, pointers=True)) as pages:
            async for group, user in pages:
                if met and met[0][1].id != user.id:
                    batch.append(self._at_home_among(met))
                    met = []
                    if len(users) + len(batch) == limit:
                        users += await self._resolved(batch, deadline, missing)
                        batch = []
                        if len(users) == limit:
                            return users
                met.append((group, user))
        if met:
            batch.append(self._at_home_among(met))
        return [*users, *await self._resolved(batch, deadline, missing)]

    def _at_home_among(self, met: Sequence[tuple[Group, User]]) -> User | UUID:
        """The live row that what was met under the id's own slot leads to; else the id, to be looked up."""
        at = dict(met)
        user_id = met[0][1].id
        first = at.get(self.regions.home(user_id.bytes))
        if first is None:
            return user_id
        group = self.regions.spot(user_id.bytes, first.region)
        user = at.get(group)
        return user if user is not None and not user.deleted and self.regions.lies(to_record(user), group) else user_id

    async def _resolved(self, batch: Sequence[User | UUID], deadline: Deadline, missing: set[str] | None) -> list[User]:
        wanted = [one for one in batch if not isinstance(one, User)]
        try:
            found = {user.id: user for user in await self.get_many(wanted, deadline)} if wanted else {}
        except Unavailable:
            if missing is None:
                raise
            found = {}
        users = [one if isinstance(one, User) else found.get(one) for one in batch]
        return [user for user in users if user is not None and not user.deleted]


class RegionalRecords(RoutedRecords):
    """``claims.Records`` where users lie in regions: what a writer reads has finished every move that was begun."""

    def __init__(self, store: RegionalUsers) -> None:
        super().__init__(store)
        self._users = store

    async def read(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Record]:
        users = [key for key in keys if key[0] == "user"]
        claims = await super().read([key for key in keys if key[0] != "user"], deadline)
        located = await self.located(users, deadline) if users else {}
        for key, found in list(located.items()):
            if not self._users.regions.lies(found.record, found.group):
                settled = await self.settled(key[1], deadline)
                if settled is None:  # another program removed the rows
                    del located[key]
                else:
                    located[key] = settled
        return {**claims, **{key: found.record for key, found in located.items()}}

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        record = swap.record
        group = self._users.group_of(record)
        if record.kind == "user" and record.deleted and swap.seen is not None:
            # A tombstone names no region: it belongs where the row lies.
            found = (await self.located([record.ident], deadline)).get(record.ident)
            group = group if found is None else found.group
        return await self.swap_at(group, swap, deadline)

    async def swap_at(self, group: Group, swap: Swap, deadline: Deadline) -> Record:
        """Run one swap in a group."""
        await self._users.places.group_routers[group.name].execute(swap, deadline)
        return swap.record

    async def read_at(self, group: Group, keys: Sequence[Key], deadline: Deadline) -> Mapping[Key, Record]:
        """What a group has under these keys."""

        async def call(store: Any, deadline: Deadline) -> Mapping[Key, Record]:
            return cast("Mapping[Key, Record]", await within(deadline, store.fetch(keys), DeadlineExceeded))

        routings = tuple({key[1][:16] for key in keys})
        return await self._users.places.group_routers[group.name].read(routings, call, deadline)

    async def located(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Found]:
        """Where users lie, by ``RegionalUsers.locate``."""

        async def read(group: Group, mine: Sequence[Key]) -> Mapping[Key, Record]:
            return await self.read_at(group, mine, deadline)

        return await self._users.locate(keys, read)

    async def settled(self, user_id: bytes, deadline: Deadline) -> Found | None:
        """Where a user lies, after finishing a move that was begun."""
        for _ in range(RACES_MAX):
            found = (await self.located([("user", user_id)], deadline)).get(("user", user_id))
            if found is None or self._users.regions.lies(found.record, found.group):
                return found
            with suppress(Conflict):  # somebody else went on with it
                await self._finish(found, deadline)
        raise Unavailable(f"user {UUID(bytes=user_id)} kept moving between regions under this call")

    async def clear(self, lies: Found, deadline: Deadline) -> None:
        """Replace by pointers what moves that died have left elsewhere of a user who lies where it was found.

        Before a user leaves a place nothing live may be anywhere else: two rows that are both about to leave for where
        the other is would not tell which of them is the user. Conflict where somebody was faster: what lies elsewhere is
        left over only if the user has not left since.
        """
        key, left = lies.record.ident, []
        for group in self._users.regions.spots(key[1]):
            row = (await self.read_at(group, [key], deadline)).get(key)
            if group != lies.group and row is not None and not row.deleted:
                left.append((group, row))
        if left and (await self.read_at(lies.group, [key], deadline)).get(key) != lies.record:
            raise Conflict(f"user {UUID(bytes=key[1])} changed meanwhile")
        for group, row in left:
            await self._point(group, row, lies.group, self._users.places.clock.now_us(), deadline)

    async def _finish(self, leaving: Found, deadline: Deadline) -> None:
        """Copy, pointer, pointer. Conflict where somebody was faster; what was done by then stays right."""
        regions, now = self._users.regions, self._users.places.clock.now_us()
        group, row = leaving
        key, there, home = row.ident, self._users.group_of(row), regions.home(row.key)
        seen = (await self.read_at(there, [key], deadline)).get(key)
        mark = (await self.read_at(home, [key], deadline)).get(key)
        if (await self.read_at(group, [key], deadline)).get(key) != row:
            # A user leaves ``there`` only after this row became a pointer: as long as it stands, nobody has gone on.
            raise Conflict(f"user {UUID(bytes=row.key)} changed meanwhile")
        if seen is None or not regions.lies(seen, there):
            older = row if seen is None or seen.version < row.version else seen
            copy = row._replace(version=next_version(older, now))
            await self.swap_at(there, Swap(copy, None if seen is None else seen.version), deadline)
        if home not in {group, there} and mark is not None and regions.points(mark, home):
            await self._point(home, mark, there, now, deadline)
        await self._point(group, row, there, now, deadline)

    async def _point(self, group: Group, seen: Record, to: Group, now: int, deadline: Deadline) -> None:
        mark = pointer(seen.key, self._users.regions.of_group(to), next_version(seen, now))
        await self.swap_at(group, Swap(mark, seen.version), deadline)


class RegionalGuard(ShardedGuard):
    """The guard of a side whose users lie in regions."""

    def __init__(self, store: RegionalUsers, attempt: int) -> None:
        super().__init__(store, attempt)
        self._users = store
        self.journal = RegionalJournal(self, store)

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        """Only where the user lies: a version lifted elsewhere could come to be the higher one."""

        async def read(group: Group, mine: Sequence[Key]) -> Mapping[Key, Record]:
            return cast("Mapping[Key, Record]", await (await self.store.store(group)).fetch(mine))

        located = await self._users.locate([key for key in keys if key[0] == "user"], read)
        mine = self.store.by_group((key for key in keys if key[0] != "user"), lambda key: key[1])
        for key, found in located.items():
            mine.setdefault(found.group, []).append(key)
        theirs = self.store.by_group(ghosts, lambda record: record.key)

        async def act(group: Group) -> None:
            await (await self.of(group)).repair(mine.get(group, []), theirs.get(group, []), now_us)

        await each({**mine, **theirs}, act)


class RegionalJournal(ShardedJournal):
    """The journals of groups in which there are pointers: what they point to is in the journal of its own group."""

    def __init__(self, guard: RegionalGuard, users: RegionalUsers) -> None:
        super().__init__(guard)
        self._users = users

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        async def act(group: Group, journal: Any) -> list[Record]:
            records: list[Record] = await journal.pending(limit, part=part)
            pointers = [record for record in records if self._users.regions.points(record, group)]
            if pointers:
                await journal.settle(pointers)
            return [record for record in records if not self._users.regions.points(record, group)]

        return in_turn(await self._each(self._guard.groups(), act), limit)
