"""A domain's place on a sharded backend, as one store: every record belongs to one slot group, and each group's own
routing says which member has it.

Two sides use it. The application reads and writes through the routers of the groups, so that a group may be in any
phase of its own move meanwhile. The engine, moving the whole domain, uses the port and the guard: it works while every
group is at rest (``migrators.shards`` and a domain's migration exclude each other), and spreads each call over the
groups' authorities.
"""

from __future__ import annotations

import heapq
from contextlib import aclosing, suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.domains.messages import NIL
from datalayer.domains.record import ROUTING_BYTES
from datalayer.domains.registry import DOMAINS
from datalayer.domains.users import Swap, UpdateUser
from datalayer.errors import (
    AlreadyExists,
    Conflict,
    CrossShardError,
    DatalayerError,
    DeadlineExceeded,
    NotFound,
    Quarantine,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.ids import slot_of
from datalayer.routing import regionrecord
from datalayer.routing.claims import ClaimingWriter
from datalayer.routing.route import Place
from datalayer.routing.shardguard import ShardedGuard
from datalayer.routing.shards import ShardMap, cut, share_out
from datalayer.routing.together import each
from datalayer.routing.within import within
from datalayer.stores.base import Executed, MetaRow, ScanPage
from datalayer.stores.sharded import member_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.catalogue import StoredObject
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.routing.places import Places
    from datalayer.routing.router import Router
    from datalayer.routing.shards import Group
    from datalayer.stores.base import Guard
    from datalayer.stores.sharded import ShardedBackend
    from datalayer.types import Conversation, Listed, Media, Member, Message, User

R = TypeVar("R")
CLAIMED: Final = frozenset({"username", "email"})
GROUPS_PER_RANGE_MARK: Final = "|"


class ShardedStore:
    """The port of a domain over the groups of one place."""

    def __init__(self, places: Places, domain: str, place: Place) -> None:
        self.kinds: Sequence[Kind] = DOMAINS[domain].kinds
        self.domain = domain
        self.place = place
        self.places = places
        self._guards: dict[int, Guard] = {}
        self._routers: Sequence[Router] = ()
        """By slot, once the groups are known: they never change, nor do their routers."""

    # --- where things are -------------------------------------------------------------------------------------------

    @property
    def map(self) -> ShardMap:
        """The groups of this place. StaleRoute before they are known here."""
        found = self.places.shard_map(self.domain, self.place.attempt)
        if found is None:
            raise StaleRoute(f"the slot groups of {self.domain} on {self.place.backend!r} are not known yet")
        return found

    async def store(self, group: Group) -> Any:
        """The group's store at its authority, for the engine."""
        place = self.places.routing_of(group.name).authority
        await self.places.ensure_open(place)
        return self.places.store(self.domain, place)

    def router(self, key: bytes) -> Router:
        """The router of a key's group, for the application."""
        if not self._routers:
            routers = self.places.group_routers
            self._routers = self.map.by_slot([routers[group.name] for group in self.map.groups])
        return self._routers[slot_of(key[:ROUTING_BYTES])]

    def by_group(self, items: Iterable[R], routing: Callable[[R], bytes]) -> dict[Group, list[R]]:
        """Items by the group of their routing keys."""
        found: dict[Group, list[R]] = {}
        shard_map_ = self.map
        for item in items:
            found.setdefault(shard_map_.group_of(routing(item)), []).append(item)
        return found

    def groups_of(self, routing: bytes) -> Sequence[Group]:
        """Every group that may hold something of a routing key."""
        return (self.map.group_of(routing),)

    def by_groups(self, items: Iterable[R], routing: Callable[[R], bytes]) -> dict[Group, list[R]]:
        """Items by every group that may hold something of their routing keys."""
        found: dict[Group, list[R]] = {}
        for item in items:
            for group in self.groups_of(routing(item)):
                found.setdefault(group, []).append(item)
        return found

    def marks(self, record: Record, group: Group) -> bool:
        """Whether a record of a group is no record of the domain, but only says where one lies."""
        del record, group
        return False

    def group_of(self, record: Record) -> Group:
        """The group where a record belongs."""
        return self.map.group_of(record.key)

    # --- the port ---------------------------------------------------------------------------------------------------

    async def create(self) -> None:
        backend: ShardedBackend = self.places.backend(self.place)  # type: ignore[assignment]
        if self.places.shard_map(self.domain, self.place.attempt) is None:
            await self._place_groups(backend)
        if self.domain == regionrecord.USERS:
            await regionrecord.write_down(self.places, self.place)
        deployment = await self.places.control.deployment()

        async def make(group: Group) -> None:
            routing = self.places.routing_of(group.name)
            member = await self.places.ensure_open(routing.authority)
            await (await self.store(group)).create()
            row = MetaRow(group.name, routing.authority.attempt, deployment, "authority", routing.epoch)
            await member.write_meta(row)

        await each(self.map.groups, make)

    async def _place_groups(self, backend: ShardedBackend) -> None:
        """Spread the groups over the members by weight, and publish that; what is published already stays."""
        groups = cut(self.domain, self.place.attempt, backend.groups)
        members = share_out(len(groups), backend.weights)
        if self.domain == regionrecord.USERS:
            regionrecord.check_shares(backend, members)
        first = {
            group.name: Place(member_name(backend.name, member), group.number)
            for group, member in zip(groups, members, strict=True)
        }
        await self.places.control.ensure_routes(first)
        self.places.learn((await self.places.control.routings())[1])

    async def drop(self) -> None:
        if self.places.shard_map(self.domain, self.place.attempt) is None:
            return

        async def drop(group: Group) -> None:
            await (await self.store(group)).drop()

        await each(self.map.groups, drop)

    async def empty(self) -> bool:
        found = self.places.shard_map(self.domain, self.place.attempt)
        if found is None:
            raise SchemaBehind(
                f"{self.domain} has no slot groups of attempt {self.place.attempt} in {self.place.backend}"
            )

        async def look(group: Group) -> bool:
            return bool(await (await self.store(group)).empty())

        return all(await each(found.groups, look))

    async def plan_scan(self, n: int) -> list[str]:
        groups = self.map.groups

        async def plan(group: Group) -> list[str]:
            ranges = await (await self.store(group)).plan_scan(max(1, n // len(groups)))
            return [f"{group.first}{GROUPS_PER_RANGE_MARK}{range_}" for range_ in ranges]

        return [range_ for ranges in await each(groups, plan) for range_ in ranges]

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        first, _, inner = range_.partition(GROUPS_PER_RANGE_MARK)
        group = next(group for group in self.map.groups if group.first == int(first))
        page: ScanPage = await (await self.store(group)).scan(inner, after, limit)
        return page

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        parts = self.by_group(keys, lambda key: key[1])

        async def fetch(group: Group) -> dict[Key, Record]:
            found: dict[Key, Record] = await (await self.store(group)).fetch(parts[group])
            return found

        return {key: record for part in await each(parts, fetch) for key, record in part.items()}

    async def apply(self, records: Sequence[Record]) -> None:
        await self.apply_at(records, self.store)

    async def apply_at(self, records: Sequence[Record], side: Callable[[Group], Awaitable[Any]]) -> None:
        """Apply records to the groups they belong to, each at ``side`` of its group; as ``Port.apply``."""
        await apply_parts(self.by_group(records, lambda record: record.key), side)

    async def estimate(self) -> int:
        async def estimate(group: Group) -> int:
            return int(await (await self.store(group)).estimate())

        return sum(await each(self.map.groups, estimate))

    def check(self, record: Record) -> str | None:
        group = self.map.group_of(record.key)
        store = self.places.store(self.domain, self.places.routing_of(group.name).authority)
        reason: str | None = store.check(record)
        return reason

    def guard(self, attempt: int) -> Guard:
        if attempt not in self._guards:
            self._guards[attempt] = ShardedGuard(self, attempt)
        return self._guards[attempt]

    # --- for the application ----------------------------------------------------------------------------------------

    async def read(self, routing_key: bytes, call: Callable[[Any, Deadline], Awaitable[R]], deadline: Deadline) -> R:
        """One group's read, by its own routing."""
        return await self.router(routing_key).read((routing_key[:16],), call, deadline)

    async def read_many(
        self, items: Sequence[Any], routing: Callable[[Any], bytes], call: Callable[..., Any], deadline: Deadline
    ) -> list[Any]:
        """``call(store, items of a group, deadline)`` for each group that has some, all put together."""
        parts = self.by_group(items, routing)

        async def read(group: Group) -> list[Any]:
            mine = parts[group]

            def at(store: Any, deadline: Deadline) -> Any:
                return call(store, mine, deadline)

            keys = tuple({routing(item)[:16] for item in mine})
            found: list[Any] = await self.places.group_routers[group.name].read(keys, at, deadline)
            return found

        if len(parts) == 1:
            return await read(next(iter(parts)))
        return [item for found in await each(parts, read) for item in found]

    async def ask_all(self, call: Callable[[Any, Deadline], Awaitable[R]], deadline: Deadline) -> list[R]:
        """The answers of every group that gives one; Unavailable where none does."""
        answers: list[R] = []
        errors: list[DatalayerError] = []

        async def ask(group: Group) -> None:
            try:
                answers.append(await self.places.group_routers[group.name].read(None, call, deadline))
            except Unavailable as error:
                errors.append(error)

        await each(self.map.groups, ask)
        if errors and not answers:
            raise errors[0]
        return answers


class ShardedMessages(ShardedStore):
    """Messages: a conversation lies in one group."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        keys = {key[:16] for _, key in DOMAINS["messages"].keys_of(mutation)}
        if len(keys) != 1:
            raise CrossShardError("one write cannot change several conversations: they may lie on different shards")
        return await self.router(keys.pop()).execute(mutation, deadline)

    async def get(self, conversation_id: UUID, message_id: UUID, deadline: Deadline) -> Message | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(conversation_id, message_id, deadline)

        found: Message | None = await self.read(conversation_id.bytes, call, deadline)
        return found

    async def get_many(self, keys: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> list[Message]:
        def call(store: Any, mine: Any, deadline: Deadline) -> Any:
            return store.get_many(mine, deadline)

        return await self.read_many(keys, lambda pair: pair[0].bytes, call, deadline)

    async def history(self, conversation_id: UUID, limit: int, deadline: Deadline, **options: Any) -> list[Message]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.history(conversation_id, limit, deadline, **options)

        found: list[Message] = await self.read(conversation_id.bytes, call, deadline)
        return found


class ShardedUsers(ShardedStore):
    """Users: row and claims lie in the groups of their own keys."""

    def __init__(self, places: Places, domain: str, place: Place) -> None:
        super().__init__(places, domain, place)
        self.records = RoutedRecords(self)
        self.claiming = ClaimingWriter(self.records, places.clock)

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        if isinstance(mutation, Swap):
            return await self.router(mutation.record.key).execute(mutation, deadline)
        if isinstance(mutation, UpdateUser) and not CLAIMED.intersection(name for name, _ in mutation.changes):
            # No claim is touched: one transaction of the user's own group, which queues writers on the row's lock.
            return await self.router(mutation.id.bytes).execute(mutation, deadline)
        try:
            executed = await self.claiming.execute(mutation, deadline)
        except (NotFound, Conflict, AlreadyExists):
            await self._ask_the_fence(mutation.id, deadline)
            raise
        if not executed.records:
            await self._ask_the_fence(mutation.id, deadline)
        return executed

    async def _ask_the_fence(self, user_id: UUID, deadline: Deadline) -> None:
        """Raise Fenced where what a change was refused by may be stale.

        It was read, and no fence speaks where nothing is written: a writer with an old route would be refused by the
        rows of a side that is sealed. A change of nobody in the user's group has to pass the fence.
        """
        with suppress(NotFound):
            await self.router(user_id.bytes).execute(UpdateUser(NIL, ()), deadline)

    async def get(self, user_id: UUID, deadline: Deadline) -> User | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(user_id, deadline)

        found: User | None = await self.read(user_id.bytes, call, deadline)
        return found

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[User]:
        def call(store: Any, mine: Any, deadline: Deadline) -> Any:
            return store.get_many(mine, deadline)

        return await self.read_many(ids, attrgetter("bytes"), call, deadline)

    async def claim_owner(self, key: bytes, deadline: Deadline) -> UUID | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.claim_owner(key, deadline)

        found: UUID | None = await self.read(key, call, deadline)
        return found

    async def page(self, limit: int, deadline: Deadline, *, after: UUID | None = None) -> list[User]:
        return await self.page_of(limit, deadline, after=after, missing=None)

    async def count(self, deadline: Deadline) -> int:
        return await self.count_of(deadline, missing=None)

    async def page_of(
        self, limit: int, deadline: Deadline, *, after: UUID | None, missing: set[str] | None
    ) -> list[User]:
        merged: list[User] = []
        async with aclosing(self.merged(limit, deadline, after, missing)) as pages:
            async for _, user in pages:
                merged.append(user)
                if len(merged) == limit:
                    break
        return merged

    async def merged(
        self, limit: int, deadline: Deadline, after: UUID | None, missing: set[str] | None, **options: Any
    ) -> AsyncGenerator[tuple[Group, User]]:
        """The k-way merge of the groups' pages, which ``options`` choose: (where it was met, user) by id.

        Each is asked for its share of ``limit`` and some more; one that runs dry is asked again before anything beyond
        its last user is given.
        """
        groups = self.map.groups
        share = min(limit, 2 * limit // len(groups) + 8)

        async def page(group: Group, after: UUID | None) -> list[User]:
            def call(store: Any, deadline: Deadline) -> Any:
                return store.page(share, deadline, after=after, **options)

            found: list[User] = await self._read_all(group, call, deadline, missing, default=[])
            return found

        async def begin(group: Group) -> list[User]:
            return await page(group, after)

        heap = [(users[0].id, number, 0, users) for number, users in enumerate(await each(groups, begin)) if users]
        heapq.heapify(heap)
        while heap:
            _, number, at, users = heap[0]
            yield groups[number], users[at]
            if at + 1 == len(users):
                users, at = (await page(groups[number], users[at].id), -1) if len(users) == share else ([], -1)
            if at + 1 < len(users):
                heapq.heapreplace(heap, (users[at + 1].id, number, at + 1, users))
            else:
                heapq.heappop(heap)

    async def count_of(self, deadline: Deadline, *, missing: set[str] | None) -> int:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.count(deadline)

        async def count(group: Group) -> int:
            return int(await self._read_all(group, call, deadline, missing, default=0))

        return sum(await each(self.map.groups, count))

    async def _read_all(
        self, group: Group, call: Any, deadline: Deadline, missing: set[str] | None, default: Any
    ) -> Any:
        """A read of everything that a group holds."""
        try:
            return await self.places.group_routers[group.name].read(None, call, deadline)
        except Unavailable:
            if missing is None or deadline.passed:
                raise
            missing.add(self.places.routing_of(group.name).authority.backend)
            return default


class ShardedConversations(ShardedStore):
    """Conversations: one lies in one group, with all its members."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        return await self.router(mutation.id.bytes).execute(mutation, deadline)

    async def get(self, conversation_id: UUID, deadline: Deadline) -> Conversation | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(conversation_id, deadline)

        found: Conversation | None = await self.read(conversation_id.bytes, call, deadline)
        return found

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[Conversation]:
        def call(store: Any, mine: Any, deadline: Deadline) -> Any:
            return store.get_many(mine, deadline)

        return await self.read_many(ids, attrgetter("bytes"), call, deadline)

    async def member(self, conversation_id: UUID, user_id: UUID, deadline: Deadline) -> Member | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.member(conversation_id, user_id, deadline)

        found: Member | None = await self.read(conversation_id.bytes, call, deadline)
        return found

    async def members(
        self, conversation_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Member]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.members(conversation_id, limit, deadline, after=after)

        found: list[Member] = await self.read(conversation_id.bytes, call, deadline)
        return found

    async def unlisted(self, limit: int, deadline: Deadline, *, after: bytes = b"") -> list[Record]:
        """Of every group that answers: one shard that is down keeps no other's lists behind."""

        def call(store: Any, deadline: Deadline) -> Any:
            return store.unlisted(limit, deadline, after=after)

        found = [one for part in await self.ask_all(call, deadline) for one in part]
        return sorted(found, key=attrgetter("key"))[:limit]

    async def lag(self, limit: int, deadline: Deadline) -> tuple[int, int | None]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.lag(limit, deadline)

        parts = await self.ask_all(call, deadline)
        oldest = [version for _, version in parts if version is not None]
        return min(limit, sum(number for number, _ in parts)), min(oldest, default=None)


class ShardedListings(ShardedStore):
    """Users' lists: one lies in one group."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        return await self.router(mutation.user_id.bytes).execute(mutation, deadline)

    async def get(self, user_id: UUID, conversation_id: UUID, deadline: Deadline) -> Listed | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(user_id, conversation_id, deadline)

        found: Listed | None = await self.read(user_id.bytes, call, deadline)
        return found

    async def of_user(
        self, user_id: UUID, limit: int, deadline: Deadline, *, after: tuple[int, UUID] | None = None
    ) -> list[Listed]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.of_user(user_id, limit, deadline, after=after)

        found: list[Listed] = await self.read(user_id.bytes, call, deadline)
        return found


class ShardedCatalogue(ShardedStore):
    """The catalogue of media: an owner's part lies in one group."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        return await self.router(mutation.owner_id.bytes).execute(mutation, deadline)

    async def get(self, owner_id: UUID, media_id: UUID, deadline: Deadline) -> Media | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(owner_id, media_id, deadline)

        found: Media | None = await self.read(owner_id.bytes, call, deadline)
        return found

    async def of_owner(
        self, owner_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Media]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.of_owner(owner_id, limit, deadline, after=after)

        found: list[Media] = await self.read(owner_id.bytes, call, deadline)
        return found

    async def object(self, owner_id: UUID, sha256: str, deadline: Deadline) -> StoredObject | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.object(owner_id, sha256, deadline)

        found: StoredObject | None = await self.read(owner_id.bytes, call, deadline)
        return found

    async def known(self, names: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> set[tuple[UUID, UUID]]:
        async def call(store: Any, mine: Any, deadline: Deadline) -> list[tuple[UUID, UUID]]:
            return list(await store.known(mine, deadline))

        return set(await self.read_many(names, lambda pair: pair[0].bytes, call, deadline)) if names else set()

    async def due(self, now_us: int, limit: int, deadline: Deadline) -> list[StoredObject]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.due(now_us, limit, deadline)

        found = [one for part in await self.ask_all(call, deadline) for one in part]
        return sorted(found, key=attrgetter("delete_after"))[:limit]

    async def waiting(self, before_us: int, limit: int, deadline: Deadline) -> list[Media]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.waiting(before_us, limit, deadline)

        found = [one for part in await self.ask_all(call, deadline) for one in part]
        return sorted(found, key=attrgetter("id"))[:limit]


class RoutedRecords:
    """``claims.Records`` through the routers of the groups."""

    def __init__(self, store: ShardedStore) -> None:
        self._store = store

    async def read(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Record]:
        async def call(store: Any, mine: Sequence[Key], deadline: Deadline) -> list[Record]:
            found: dict[Key, Record] = await within(deadline, store.fetch(mine), DeadlineExceeded)
            return list(found.values())

        found = await self._store.read_many(keys, lambda key: key[1], call, deadline) if keys else []
        return {record.ident: record for record in found}

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        await self._store.router(swap.record.key).execute(swap, deadline)
        return swap.record


async def apply_parts(parts: Mapping[Group, Sequence[Record]], side: Callable[[Group], Awaitable[Any]]) -> None:
    """Apply each group's records; Quarantine names all that were refused, after all others landed."""
    refused: dict[Key, str] = {}

    async def apply(group: Group) -> None:
        try:
            await (await side(group)).apply(parts[group])
        except Quarantine as error:
            refused.update(error.rejected)

    await each(parts, apply)
    if refused:
        raise Quarantine(refused)
