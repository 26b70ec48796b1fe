"""The ports: what every store of a movable domain offers, whatever product is behind it.

Every store is a last-writer-wins map of records. ``apply`` is idempotent and commutative: a record lands only where
its version is newer. Everything that moves data - backfill, eager apply, replay, repair, rollback - is "scan or
journal -> apply".

Two classes of authority exist. A *transactional* store (SQL) runs a mutation natively and guards itself by triggers
(``Guard``). Any other store is wrapped by ``LastWriterAuthority``, whose journal and gate are intents in the control
store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.catalogue import StoredObject
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.domains.search import Found, FoundUser, MessageQuery, Phrase
    from datalayer.types import Conversation, Listed, Media, Member, Message, Session, SessionCut, User

AuthorityClass = Literal["transactional", "last_writer"]
Role = Literal["authority", "copy", "retired"]


class ScanPage(NamedTuple):
    """A page of a scan: records (tombstones included), the token to go on after, and whether the range is done."""

    records: list[Record]
    after: str | None
    done: bool


class Executed(NamedTuple):
    """The entity after a mutation, and the records it changed (none: nothing changed)."""

    entity: Any
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """The fencing token of a coordinator: a database that has seen a higher value refuses this one (LostLease)."""

    migration: str
    domain: str
    attempt: int
    value: int


@dataclass(frozen=True, slots=True)
class MetaRow:
    """What a backend says of itself: one row per (domain, attempt) in its datalayer_meta table."""

    domain: str
    attempt: int
    deployment: str
    role: Role
    epoch: int


FenceState = Literal["open", "lapsing", "sealed"]


@dataclass(frozen=True, slots=True)
class GuardState:
    """Whether the journal is on, how writes are fenced now (a lapsed fence is open), and by which flip."""

    installed: bool
    fence: FenceState
    flip: int
    tampered: bool = False
    """Somebody else dropped or changed the guard since it was installed: the journal can no longer be trusted."""


@runtime_checkable
class Port(Protocol):
    """A domain's store at one place."""

    kinds: Sequence[Kind]

    async def create(self) -> None:
        """Make the physical tables of this place if absent. Idempotent."""
        ...

    async def drop(self) -> None:
        """Drop the physical tables of this place. Idempotent."""
        ...

    async def empty(self) -> bool:
        """Whether the place exists and holds no record at all (a missing place raises SchemaBehind)."""
        ...

    async def plan_scan(self, n: int) -> list[str]:
        """About ``n`` ranges, as opaque serialisable text, that together cover every record that exists now.

        Planned once and never split again. Ends are fixed now, so a scan ends under endless inserts.
        """
        ...

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        """The next at most ``limit`` records of a range, in the store's own stable order, read at its quorum."""
        ...

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        """The records (tombstones too) of those keys that exist, read at the authority's consistency."""
        ...

    async def apply(self, records: Sequence[Record]) -> None:
        """Store each record whose version is newer than what is stored; acknowledged at the write quorum.

        Raises Quarantine naming the records that this store cannot take, after all others were applied.
        Unavailable or OutcomeUnknown otherwise; repeating is harmless.
        """
        ...

    async def estimate(self) -> int:
        """About how many records there are; cheap, may be wrong by a factor."""
        ...

    def check(self, record: Record) -> str | None:
        """Why this store could never take the record (a limit of its codec), or None."""
        ...


class Journal(Protocol):
    """The durable set of keys whose mirror may be behind: coalesced, without a cursor."""

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        """At most ``limit`` dirty records as they are now; ``part`` = (i, n) spreads them over n replayers by hash."""
        ...

    async def settle(self, seen: Sequence[Record]) -> None:
        """Clear each key whose journal entry is at exactly the version of the record applied."""
        ...

    async def backlog(self) -> int:
        """How many keys are dirty."""
        ...

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        """Whether any key with one of these routing keys (or just ``keys``) is dirty.

        Raises StaleRoute when this attempt's journal does not exist: a missing journal never means clean.
        """
        ...

    async def foreign_writers(self) -> list[str]:
        """Names of programs other than this library that have written while the journal was on."""
        ...


class Guard(Protocol):
    """Journal and fence of one side of one attempt. The fence is exact: after it no write of anybody commits."""

    journal: Journal

    async def install(self, token: Token, *, sealed: bool) -> None:
        """Put the journal on; with ``sealed`` the place refuses all writes but applies from the first moment.

        When it returns, every write that commits later is journalled in its own transaction. Idempotent.
        """
        ...

    async def apply(self, records: Sequence[Record]) -> None:
        """``Port.apply`` as this attempt's replayer: passes the fence, is not journalled, consults the tombstones of
        foreign hard deletes, and lands nowhere (StaleRoute) once the attempt has ended.
        """
        ...

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        """Refuse writes of everybody for ``lapse_s`` seconds, then lapse by itself. No write is running on return.

        Raises Unavailable (naming who is in the way) when the lock cannot be had in ``lock_timeout_s``.
        """
        ...

    async def seal(self, token: Token, flip: int) -> None:
        """Replace the lapsing fence of this flip by one without expiry. MigrationError when it had lapsed before."""
        ...

    async def open(self, flip: int) -> None:
        """Accept writes again, journalled. Needs no DDL; idempotent; may be done by any process.

        Opens whatever fence is in force, except one of a later flip: that of a zombie's past flip opens nothing.
        """
        ...

    async def state(self) -> GuardState:
        """What is in force now."""
        ...

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        """Make the replayer bring the mirror in step, by versions alone: there is no other write path.

        Each of ``keys`` stored here gets its version lifted under its lock to max(version + 2, now) (+ FINAL_LEAD for
        a tombstone) and is journalled; each of ``ghosts`` (a tombstone record whose key is absent here) is entered as
        a journalled tombstone unless the key has appeared meanwhile.
        """
        ...

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        """Journal off for good; the fence goes too unless ``keep_fence`` (the retired side). Idempotent."""
        ...


class Entry(NamedTuple):
    """A key that an index may be behind on: it is in step once it holds this version of the key, or a later one.

    ``gone``: another program removed the row without a tombstone; the version is that of the tombstone due.
    ``since``: when it was entered, in microseconds - where triggers write the outbox, when its key was entered first.
    """

    kind: str
    key: bytes
    version: int
    gone: bool = False
    since: int = 0

    @property
    def ident(self) -> Key:
        """(kind, key)."""
        return (self.kind, self.key)


class Outbox(Protocol):
    """What one index has not taken in yet of one place: a durable, coalesced set of keys beside the records themselves.

    Written by whoever writes the place, in the same transaction; a store without transactions is told first (``enter``).
    What a migration's replayer applies is not entered: it was where it was written. Of the place's kinds those of
    INDEXED are followed. Every method but ``install``, ``remove`` and ``installed`` raises StaleRoute where it is off.
    """

    async def install(self) -> None:
        """Put it on. When it returns, every write that commits later is entered. Idempotent."""
        ...

    async def remove(self) -> None:
        """Take it off for good, with all that it holds. Idempotent; a number is never used again."""
        ...

    async def installed(self) -> bool:
        """Whether it is on, as it was made."""
        ...

    async def enter(self, entries: Sequence[Entry]) -> None:
        """Enter keys; of two versions of a key the later one stays. ``since`` is kept; 0 is now."""
        ...

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1), every: bool = False) -> list[Entry]:
        """At most ``limit`` entries, those that wait longest first; ``part`` = (i, n) spreads keys over n by hash.

        ``every``: look everywhere; otherwise what came very late may be found later.
        """
        ...

    async def settle(self, entries: Sequence[Entry]) -> None:
        """The index holds these versions: clear each of these keys whose entry is at that version or below it."""
        ...

    async def holds(self, keys: Sequence[Key]) -> bool:
        """Whether there is an entry of any of these keys."""
        ...

    async def lag(self, limit: int) -> tuple[int, int | None]:
        """(how many entries there are, counted to ``limit``; since when the oldest waits, in microseconds, or None)."""
        ...


class MessageReads(Protocol):
    """Typed reads of messages. Deleted ones are returned by ``get`` and ``get_many`` (callers filter)."""

    async def get(self, conversation_id: UUID, message_id: UUID, deadline: Deadline) -> Message | None:
        """One message, also a deleted one."""
        ...

    async def get_many(self, keys: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> list[Message]:
        """Those of the (conversation, id) pairs that exist, in any order."""
        ...

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
        """At most ``limit`` messages beyond ``after`` in the order asked, filled to the limit; newest first."""
        ...


class UserReads(Protocol):
    """Typed reads of users; deleted users are returned (callers filter)."""

    async def get(self, user_id: UUID, deadline: Deadline) -> User | None:
        """One user."""
        ...

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[User]:
        """Those that exist, in any order."""
        ...

    async def claim_owner(self, key: bytes, deadline: Deadline) -> UUID | None:
        """The owner of a live claim."""
        ...

    async def page(
        self, limit: int, deadline: Deadline, *, after: UUID | None = None, pointers: bool = False
    ) -> list[User]:
        """Live users by id, ascending, beyond ``after``; with ``pointers`` also deleted ones that name a region."""
        ...

    async def count(self, deadline: Deadline) -> int:
        """How many live users there are, counted."""
        ...


@runtime_checkable
class Scattered(Protocol):
    """Users over several databases, of which some may be down."""

    async def page_of(
        self, limit: int, deadline: Deadline, *, after: UUID | None, missing: set[str] | None
    ) -> list[User]:
        """As ``page``; shards that do not answer are entered in ``missing`` and left out, unless it is None."""
        ...

    async def count_of(self, deadline: Deadline, *, missing: set[str] | None) -> int:
        """As ``count``, likewise."""
        ...


@runtime_checkable
class Regional(Protocol):
    """Users over databases in several regions: the region of an id is fixed, and a new user's id is chosen by it."""

    def check_region(self, region: str) -> None:
        """InvalidArgument for a region that no database is in."""
        ...

    def region_of(self, user_id: UUID) -> str:
        """The region of an id."""
        ...

    async def scan_homes(self, range_: str, after: str | None, limit: int) -> ScanPage:
        """As ``Port.scan``, but each user is met at the home of its id, which stays, and looked up where it lies.

        So whoever exists from the beginning of a scan to its end is given once, wherever it moves meanwhile.
        """
        ...


class ConversationReads(Protocol):
    """Typed reads of conversations; deleted conversations and members are returned by ``get``, ``get_many``, ``member``."""

    async def get(self, conversation_id: UUID, deadline: Deadline) -> Conversation | None:
        """One conversation."""
        ...

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[Conversation]:
        """Those that exist, in any order."""
        ...

    async def member(self, conversation_id: UUID, user_id: UUID, deadline: Deadline) -> Member | None:
        """One user's place in a conversation."""
        ...

    async def members(
        self, conversation_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Member]:
        """Live members by user id, ascending, beyond ``after``, filled to the limit."""
        ...

    async def unlisted(self, limit: int, deadline: Deadline, *, after: bytes = b"") -> list[Record]:
        """Members, tombstones too, that their users' lists do not show yet, by key, beyond ``after``."""
        ...

    async def lag(self, limit: int, deadline: Deadline) -> tuple[int, int | None]:
        """(how many members are unlisted, counted to ``limit``; the lowest version among those, or None)."""
        ...


class ListingReads(Protocol):
    """Typed reads of users' lists of conversations; ended entries are returned by ``get`` alone."""

    async def get(self, user_id: UUID, conversation_id: UUID, deadline: Deadline) -> Listed | None:
        """One entry."""
        ...

    async def of_user(
        self, user_id: UUID, limit: int, deadline: Deadline, *, after: tuple[int, UUID] | None = None
    ) -> list[Listed]:
        """A user's live entries by (last activity, conversation id), newest first, beyond ``after``."""
        ...


class SearchReads(Protocol):
    """Queries of a search index. Exact: every document that matches (``domains.search.matches``) and no other.

    ``apply`` answers when what it was given is durable; queries see it within ``visible_within_s`` of that, ``fetch`` at
    once; a scan sees at least what was there when it was planned.
    """

    visible_within_s: float

    async def messages(
        self, query: MessageQuery, limit: int, deadline: Deadline, *, after: tuple[UUID, UUID] | None = None
    ) -> list[Found]:
        """At most ``limit`` that match, filled to the limit, falling by ``Found.position``, beyond ``after``."""
        ...

    async def users(
        self, phrase: Phrase, limit: int, deadline: Deadline, *, after: tuple[str, UUID] | None = None
    ) -> list[FoundUser]:
        """At most ``limit`` whose names match, filled to the limit, rising by ``FoundUser.position``, beyond ``after``."""
        ...

    async def refresh(self) -> None:
        """Let queries see all that was applied until now."""


class CatalogueReads(Protocol):
    """Typed reads of the catalogue of media; deleted items and objects are returned by ``get`` and ``object``."""

    async def get(self, owner_id: UUID, media_id: UUID, deadline: Deadline) -> Media | None:
        """One item."""
        ...

    async def of_owner(
        self, owner_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Media]:
        """An owner's live and ready items by id, newest first, beyond ``after``, filled to the limit."""
        ...

    async def object(self, owner_id: UUID, sha256: str, deadline: Deadline) -> StoredObject | None:
        """The object of an owner's content."""
        ...

    async def known(self, names: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> set[tuple[UUID, UUID]]:
        """Those (owner, name) that a live object has, or that an item waits for."""
        ...

    async def due(self, now_us: int, limit: int, deadline: Deadline) -> list[StoredObject]:
        """Live objects whose time to be deleted has come, the earliest first."""
        ...

    async def waiting(self, before_us: int, limit: int, deadline: Deadline) -> list[Media]:
        """Items with an id of before that time whose bytes have not come, the oldest first."""
        ...


class SessionReads(Protocol):
    """Typed reads of sessions; revoked and expired ones are returned (callers filter), unless they were dropped."""

    async def get(self, user_id: UUID, id: UUID, deadline: Deadline) -> tuple[Session | None, SessionCut | None]:
        """One session, and the cut of its user's sessions; one round trip."""
        ...

    async def of_user(self, user_id: UUID, limit: int, deadline: Deadline) -> tuple[list[Session], SessionCut | None]:
        """At most ``limit`` sessions of a user by id, revoked ones left out, and the cut."""
        ...

    async def purge(self, before_us: int, limit: int) -> tuple[int, int]:
        """Take out what expired before that, bounded by ``limit`` records; (how many were looked at, taken out).

        For a place at rest: a guard would take it for a foreign program's hard delete.
        """
        ...


@runtime_checkable
class Marked(Protocol):
    """A store whose places are marked as existing by records that a failover may lose."""

    async def mark_again(self, deadline: Deadline) -> int:
        """Write the marks that are missing; how many. Only for who knows that the place is in use (``routing.marks``)."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A store that knows how much room its data takes."""

    async def size(self) -> int:
        """Bytes on the disk, indexes included."""
        ...

    async def calls(self) -> int:
        """How many scans and changes of rows there have been so far; differences tell the load, the number nothing."""
        ...


@runtime_checkable
class Transactional(Protocol):
    """A store that orders writes itself."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        """Run one mutation atomically, as the domain's decide() says.

        Raises NotFound, AlreadyExists, Conflict, Fenced (everything rolled back), StaleRoute (the place is gone),
        Unavailable (not applied), OutcomeUnknown.
        """
        ...

    def guard(self, attempt: int) -> Guard:
        """Journal and fence of this store for an attempt."""
        ...


@runtime_checkable
class Followed(Protocol):
    """A store that indexes can follow: messages and users."""

    def outbox(self, index: int) -> Outbox:
        """What the index of that attempt has not taken in yet of this place."""
        ...

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here, dead ones too."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A backend that may lose what it has acknowledged: in a failover, what no replica had got; at a start, what was in
    memory alone.
    """

    async def incarnation(self, deadline: Deadline) -> str:
        """Which lives its servers are in, as opaque text, never used again once it has changed.

        The same text twice: none of the servers that take writes has died or given way to another in between, so what
        was acknowledged before is there. Empty text: this one forgets nothing. Raises Unavailable where one of them does
        not answer, or they do not agree on who takes writes.
        """
        ...


class Backend(Protocol):
    """One configured product: a database, a cluster, a folder."""

    name: str
    product: str
    authority_class: AuthorityClass

    async def open(self) -> None:
        """Connect; Unavailable or PreconditionFailed in one clear sentence otherwise."""
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        ...

    async def ping(self, deadline: Deadline) -> None:
        """Raise Unavailable unless it answers."""
        ...

    def refuses(self, domain: str) -> str | None:
        """Why this product cannot hold the domain, or None."""
        ...

    def store(self, domain: str, attempt: int) -> Any:
        """The domain's store at a place here: Port + typed reads, + Transactional where the product is that."""
        ...

    async def ensure_schema(self, *, create: bool) -> None:
        """Check schema versions (SchemaBehind naming ``datalayer schema upgrade``, SchemaAhead); create when told."""
        ...

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        """All datalayer_meta rows, by (domain, attempt)."""
        ...

    async def write_meta(self, row: MetaRow) -> None:
        """Upsert one datalayer_meta row unless the stored one has a higher epoch."""
        ...

    async def raise_token(self, token: Token) -> None:
        """Record a new coordinator's token; LostLease when a higher one is there already."""
        ...
