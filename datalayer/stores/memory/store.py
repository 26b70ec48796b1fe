"""The client's stores: the port, the typed reads, and, on a transactional server, mutations."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

from datalayer.domains import catalogue, conversations, listings, messages, search, users
from datalayer.domains.registry import DOMAINS
from datalayer.errors import InvalidArgument, SchemaBehind, StaleRoute
from datalayer.ids import id_time_us
from datalayer.stores.base import Executed, ScanPage
from datalayer.stores.memory.guard import MemoryGuard
from datalayer.stores.memory.outbox import MemoryOutbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.stores.base import Guard
    from datalayer.stores.memory.backend import MemoryBackend
    from datalayer.stores.memory.table import Table
    from datalayer.types import Conversation, Listed, Media, Member, Message, User

T = TypeVar("T")


class MemoryPort:
    """A domain's place as a last-writer-wins map."""

    def __init__(self, backend: MemoryBackend, domain: str, attempt: int) -> None:
        self.kinds: Final[Sequence[Kind]] = DOMAINS[domain].kinds
        self._backend: Final = backend
        self._server: Final = backend.server
        self.place: Final = (domain, attempt)

    async def create(self) -> None:
        await self._call("create", lambda: self._server.create(self.place))

    async def drop(self) -> None:
        await self._call("drop", lambda: self._server.drop(self.place))

    async def empty(self) -> bool:
        try:
            return await self._call("empty", lambda: not self._table().records, write=False)
        except StaleRoute:
            msg = f"{self.place[0]} has no tables of attempt {self.place[1]} in {self._backend.name}"
            raise SchemaBehind(msg) from None

    async def plan_scan(self, n: int) -> list[str]:
        return await self._call("plan_scan", lambda: _ranges(self._table(), n), write=False)

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        kind, low, high = range_.split(":")
        beyond = None if after is None else bytes.fromhex(after)

        def effect() -> ScanPage:
            table = self._table()
            found = table.between(kind, bytes.fromhex(low), bytes.fromhex(high), after=beyond, limit=limit + 1)
            records = [table.records[kind, table.key_at(position)] for position in found[:limit]]
            last = found[: limit or None][-1].hex() if found else after
            return ScanPage(records, last, len(found) <= limit)

        return await self._call("scan", effect, write=False)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        def effect() -> dict[Key, Record]:
            records = self._table().records
            return {key: records[key] for key in keys if key in records}

        return await self._call("fetch", effect, write=False)

    async def apply(self, records: Sequence[Record]) -> None:
        def land(batch: Sequence[Record]) -> None:
            self._server.apply(self.place, batch)

        half = records[: len(records) // 2]
        await self._call("apply", lambda: land(records), partial=lambda: land(half))

    async def estimate(self) -> int:
        return await self._call("estimate", lambda: len(self._table().records), write=False)

    def check(self, record: Record) -> str | None:
        return self._server.check(record)

    def outbox(self, index: int) -> MemoryOutbox:
        """What an index has not taken in yet of this place."""
        return MemoryOutbox(self._backend, self.place, index)

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here."""
        return await self._call("outboxes", lambda: sorted(self._server.following.get(self.place, {})), write=False)

    def _table(self) -> Table:
        return self._server.table(self.place)

    async def _call(
        self,
        name: str,
        effect: Callable[[], T],
        deadline: Deadline | None = None,
        *,
        write: bool = True,
        partial: Callable[[], object] | None = None,
    ) -> T:
        place = self.place[0]
        return await self._backend.call(name, effect, deadline, domain=place, write=write, partial=partial)


class MemoryMessages(MemoryPort):
    """Messages: the port and its typed reads."""

    async def get(self, conversation_id: UUID, message_id: UUID, deadline: Deadline) -> Message | None:
        found = await self.get_many([(conversation_id, message_id)], deadline)
        return found[0] if found else None

    async def get_many(self, keys: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> list[Message]:
        wanted = [("message", messages.message_key(*pair)) for pair in keys]

        def effect() -> list[Message]:
            records = self._table().records
            return [messages.to_message(records[key]) for key in dict.fromkeys(wanted) if key in records]

        return await self._call("get_many", effect, deadline, write=False)

    async def history(
        self,
        conversation_id: UUID,
        limit: int,
        deadline: Deadline,
        *,
        after: UUID | None = None,
        oldest_first: bool = False,
        include_deleted: bool = False,
    ) -> list[Message]:
        beyond = None if after is None else messages.message_key(conversation_id, after)

        def wanted(record: Record) -> bool:
            if record.deleted and not include_deleted:
                return False
            return beyond is None or (record.key > beyond if oldest_first else record.key < beyond)

        def effect() -> list[Message]:
            all_of_it = list(self._table().of_routing("message", conversation_id.bytes))
            in_order: Iterable[Record] = all_of_it if oldest_first else reversed(all_of_it)
            return [messages.to_message(record) for record in islice(filter(wanted, in_order), limit)]

        return await self._call("history", effect, deadline, write=False)


class MemoryUsers(MemoryPort):
    """Users and claims: the port and its typed reads."""

    async def get(self, user_id: UUID, deadline: Deadline) -> User | None:
        found = await self.get_many([user_id], deadline)
        return found[0] if found else None

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[User]:
        wanted = [("user", user_id.bytes) for user_id in ids]

        def effect() -> list[User]:
            records = self._table().records
            return [users.to_user(records[key]) for key in dict.fromkeys(wanted) if key in records]

        return await self._call("get_many", effect, deadline, write=False)

    async def claim_owner(self, key: bytes, deadline: Deadline) -> UUID | None:
        def effect() -> UUID | None:
            claim = self._table().records.get(("claim", key))
            if claim is None or claim.deleted:
                return None
            owner = claim.fields[0]
            assert isinstance(owner, bytes), "a claim's owner is 16 bytes"
            return UUID(bytes=owner)

        return await self._call("claim_owner", effect, deadline, write=False)

    async def page(
        self, limit: int, deadline: Deadline, *, after: UUID | None = None, pointers: bool = False
    ) -> list[User]:
        beyond = b"" if after is None else after.bytes

        def effect() -> list[User]:
            records = self._table().records
            ids = sorted(key for kind, key in records if kind == "user" and key > beyond)
            found = (users.to_user(records["user", key]) for key in ids)
            wanted = (user for user in found if not user.deleted or (pointers and user.region is not None))
            return list(islice(wanted, limit))

        return await self._call("page", effect, deadline, write=False)

    async def count(self, deadline: Deadline) -> int:
        def effect() -> int:
            return sum(kind == "user" and not record.deleted for (kind, _), record in self._table().records.items())

        return await self._call("count", effect, deadline, write=False)


class MemoryConversations(MemoryPort):
    """Conversations and their members: the port and its typed reads."""

    async def get(self, conversation_id: UUID, deadline: Deadline) -> Conversation | None:
        found = await self.get_many([conversation_id], deadline)
        return found[0] if found else None

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[Conversation]:
        wanted = [("conversation", one.bytes) for one in ids]

        def effect() -> list[Conversation]:
            records = self._table().records
            return [conversations.to_conversation(records[key]) for key in dict.fromkeys(wanted) if key in records]

        return await self._call("get_many", effect, deadline, write=False)

    async def member(self, conversation_id: UUID, user_id: UUID, deadline: Deadline) -> Member | None:
        key = ("member", conversations.member_key(conversation_id, user_id))

        def effect() -> tuple[Member | None]:
            record = self._table().records.get(key)
            return (None if record is None else conversations.to_member(record),)

        return (await self._call("member", effect, deadline, write=False))[0]

    async def members(
        self, conversation_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Member]:
        beyond = b"" if after is None else conversations.member_key(conversation_id, after)

        def effect() -> list[Member]:
            all_of_it = self._table().of_routing("member", conversation_id.bytes)
            live = (record for record in all_of_it if not record.deleted and record.key > beyond)
            return [conversations.to_member(record) for record in islice(live, limit)]

        return await self._call("members", effect, deadline, write=False)

    async def unlisted(self, limit: int, deadline: Deadline, *, after: bytes = b"") -> list[Record]:
        def effect() -> list[Record]:
            waiting = (record for record in self._unlisted() if record.key > after)
            return sorted(waiting, key=lambda record: record.key)[:limit]

        return await self._call("unlisted", effect, deadline, write=False)

    async def lag(self, limit: int, deadline: Deadline) -> tuple[int, int | None]:
        def effect() -> tuple[int, int | None]:
            versions = [record.version for record in self._unlisted()]
            return min(len(versions), limit), min(versions, default=None)

        return await self._call("lag", effect, deadline, write=False)

    def _unlisted(self) -> Iterable[Record]:
        for (kind, _), record in self._table().records.items():
            if kind == "member" and not conversations.is_listed(record):
                yield record


class MemoryListings(MemoryPort):
    """Users' lists of conversations: the port and its typed reads."""

    async def get(self, user_id: UUID, conversation_id: UUID, deadline: Deadline) -> Listed | None:
        key = ("listed", listings.listed_key(user_id, conversation_id))

        def effect() -> tuple[Listed | None]:
            record = self._table().records.get(key)
            return (None if record is None else listings.to_listed(record),)

        return (await self._call("get", effect, deadline, write=False))[0]

    async def of_user(
        self, user_id: UUID, limit: int, deadline: Deadline, *, after: tuple[int, UUID] | None = None
    ) -> list[Listed]:
        def effect() -> list[Listed]:
            records = self._table().of_routing("listed", user_id.bytes)
            live = [listings.to_listed(record) for record in records if not record.deleted]
            live = [one for one in live if after is None or (one.last_activity_us, one.conversation_id) < after]
            return sorted(live, key=lambda one: (one.last_activity_us, one.conversation_id), reverse=True)[:limit]

        return await self._call("of_user", effect, deadline, write=False)


class MemorySearch(MemoryPort):
    """A search index: the port, and the definition of a match asked of every document."""

    visible_within_s: float = 0.0

    async def messages(
        self, query: search.MessageQuery, limit: int, deadline: Deadline, *, after: tuple[UUID, UUID] | None = None
    ) -> list[search.Found]:
        def effect() -> list[search.Found]:
            documents = chain.from_iterable(
                self._table().of_routing("message_doc", one.bytes) for one in set(query.conversations)
            )
            found = [_found(one) for one in documents if not one.deleted and _answers(query, one)]
            found = [one for one in found if after is None or one.position < after]
            return sorted(found, key=lambda one: one.position, reverse=True)[:limit]

        return await self._call("messages", effect, deadline, write=False)

    async def users(
        self, phrase: search.Phrase, limit: int, deadline: Deadline, *, after: tuple[str, UUID] | None = None
    ) -> list[search.FoundUser]:
        def effect() -> list[search.FoundUser]:
            found = []
            for (kind, key), document in self._table().records.items():
                if kind == "user_doc" and not document.deleted:
                    username, names = cast("tuple[str, str]", document.fields)
                    if search.matches((phrase,), names):
                        found.append(search.FoundUser(UUID(bytes=key), username, document.version))
            found = [one for one in found if after is None or _rising(one.position) > _rising(after)]
            return sorted(found, key=lambda one: _rising(one.position))[:limit]

        return await self._call("users", effect, deadline, write=False)

    async def refresh(self) -> None:
        await self._call("refresh", lambda: None, write=False)


def _found(document: Record) -> search.Found:
    return search.Found(UUID(bytes=document.key[:16]), UUID(bytes=document.key[16:]), document.version)


def _rising(position: tuple[str, UUID]) -> tuple[bytes, UUID]:
    return position[0].encode(), position[1]


def _answers(query: search.MessageQuery, document: Record) -> bool:
    sender, words = cast("tuple[bytes, str]", document.fields)
    id = document.key[16:]
    return (
        (query.sender_id is None or query.sender_id.bytes == sender)
        and (query.since is None or query.since.bytes <= id)
        and (query.until is None or id < query.until.bytes)
        and search.matches(query.phrases, words)
    )


class MemoryCatalogue(MemoryPort):
    """The catalogue of media: the port and its typed reads."""

    async def get(self, owner_id: UUID, media_id: UUID, deadline: Deadline) -> Media | None:
        key = ("media", catalogue.media_key(owner_id, media_id))

        def effect() -> tuple[Media | None]:
            record = self._table().records.get(key)
            return (None if record is None else catalogue.to_media(record),)

        return (await self._call("get", effect, deadline, write=False))[0]

    async def of_owner(
        self, owner_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Media]:
        def effect() -> list[Media]:
            mine = list(self._table().of_routing("media", owner_id.bytes))
            items = [catalogue.to_media(record) for record in reversed(mine) if not record.deleted]
            return [one for one in items if one.ready and (after is None or one.id < after)][:limit]

        return await self._call("of_owner", effect, deadline, write=False)

    async def object(self, owner_id: UUID, sha256: str, deadline: Deadline) -> catalogue.StoredObject | None:
        key = ("object", catalogue.object_key(owner_id, sha256))

        def effect() -> tuple[catalogue.StoredObject | None]:
            record = self._table().records.get(key)
            return (None if record is None else catalogue.to_object(record),)

        return (await self._call("object", effect, deadline, write=False))[0]

    async def known(self, names: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> set[tuple[UUID, UUID]]:
        def effect() -> set[tuple[UUID, UUID]]:
            items = [catalogue.to_media(record) for record in self._live("media")]
            held = {(one.owner_id, one.upload) for one in items}
            objects = [catalogue.to_object(record) for record in self._live("object")]
            held |= {(one.owner_id, one.name) for one in objects}
            return {name for name in names if name in held}

        return await self._call("known", effect, deadline, write=False)

    async def due(self, now_us: int, limit: int, deadline: Deadline) -> list[catalogue.StoredObject]:
        def effect() -> list[catalogue.StoredObject]:
            objects = [catalogue.to_object(record) for record in self._live("object")]
            found = [one for one in objects if one.delete_after is not None and one.delete_after <= now_us]
            return sorted(found, key=lambda one: one.delete_after or 0)[:limit]

        return await self._call("due", effect, deadline, write=False)

    async def waiting(self, before_us: int, limit: int, deadline: Deadline) -> list[Media]:
        def effect() -> list[Media]:
            items = [catalogue.to_media(record) for record in self._live("media")]
            found = [one for one in items if one.upload is not None and id_time_us(one.id) < before_us]
            return sorted(found, key=lambda one: one.id)[:limit]

        return await self._call("waiting", effect, deadline, write=False)

    def _live(self, kind: str) -> Iterable[Record]:
        return [one for (name, _), one in self._table().records.items() if name == kind and not one.deleted]


class Transactions(MemoryPort):
    """What a transactional server adds to a store."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        return await self._call("execute", lambda: self._server.execute(self.place, mutation), deadline)

    def guard(self, attempt: int) -> Guard:
        return MemoryGuard(self._backend, self.place, attempt)


class TransactionalMessages(MemoryMessages, Transactions):
    """Messages on a server that orders writes itself."""


class TransactionalUsers(MemoryUsers, Transactions):
    """Users on a server that orders writes itself."""


class TransactionalListings(MemoryListings, Transactions):
    """Users' lists on a server that orders writes itself."""


class TransactionalConversations(MemoryConversations, Transactions):
    """Conversations on a server that orders writes itself."""


class TransactionalCatalogue(MemoryCatalogue, Transactions):
    """The catalogue of media on a server that orders writes itself."""


def _ranges(table: Table, n: int) -> list[str]:
    """About n ranges of positions that together hold every record there is now."""
    if n < 1:
        msg = f"a scan has at least one range, not {n}"
        raise InvalidArgument(msg)
    return list(chain.from_iterable(_split(kind, at, n) for kind, at in table.positions.items() if at))


def _split(kind: str, positions: Sequence[bytes], n: int) -> list[str]:
    size = -(-len(positions) // n)
    parts = [positions[at : at + size] for at in range(0, len(positions), size)]
    return [f"{kind}:{_low(parts, number).hex()}:{part[-1].hex()}" for number, part in enumerate(parts)]


def _low(parts: Sequence[Sequence[bytes]], number: int) -> bytes:
    """The lower end of a part: just above the part before it, so that no insert falls between two ranges."""
    return b"" if number == 0 else parts[number - 1][-1] + b"\x00"
