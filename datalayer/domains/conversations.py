"""The conversations domain: conversations, and who belongs to them.

Conversation and members are records of one routing key, so a mutation over them is one transaction. A live conversation
always has an owner, and its members live no longer than it does: whoever is a live member is one of a live conversation.

A member's record also says which of its versions the user's own list shows (``listed``): the mark that the list has to
follow is written by the change itself and travels with it to every other store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from uuid import UUID

from datalayer.domains.record import FINAL_LEAD, FieldSpec, Key, Kind, Record, canonical_json, parse_json
from datalayer.errors import AlreadyExists, Conflict, NotFound
from datalayer.ids import id_time_us
from datalayer.types import Conversation, Member

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONVERSATION: Final = Kind(
    "conversation",
    (
        FieldSpec("title", "text"),
        FieldSpec("kind", "text"),
        FieldSpec("updated_at", "int"),
        FieldSpec("attributes", "json"),
    ),
)
MEMBER: Final = Kind(
    "member",
    (
        FieldSpec("role", "text"),
        FieldSpec("joined_at", "int"),
        FieldSpec("read_up_to", "uuid", nullable=True),
        FieldSpec("listed", "int"),
    ),
    # a user may join again
    final=False,
)
KINDS: Final = (CONVERSATION, MEMBER)
OWNER: Final = "owner"
ROLES: Final = (OWNER, "admin", "member")
MEMBERS_MAX: Final = 10_000
_GONE: Final = ("member", 0, None)
"""Role, joined_at and read_up_to of a tombstone."""


@dataclass(frozen=True, slots=True)
class CreateConversation:
    """Create a conversation with its first members; a retry with the same id, title and kind is the same write."""

    id: UUID
    title: str
    kind: str
    members: tuple[tuple[UUID, str], ...]
    """(user, role) pairs; one of them at least is an owner."""
    attributes: str = "{}"


@dataclass(frozen=True, slots=True)
class UpdateConversation:
    """Change the given fields; ``expected_version`` makes it a compare-and-set."""

    id: UUID
    changes: tuple[tuple[str, str], ...]
    """(field name, new value) pairs; attributes as canonical JSON text."""
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteConversation:
    """Delete for good; nobody is a member any more."""

    id: UUID
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class AddMember:
    """Make a user a member, unless the conversation has ``most`` members."""

    id: UUID
    user_id: UUID
    role: str = "member"
    most: int = MEMBERS_MAX


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """End a membership; the last owner stays."""

    id: UUID
    user_id: UUID


@dataclass(frozen=True, slots=True)
class SetRole:
    """Give a member another role; the last owner stays one."""

    id: UUID
    user_id: UUID
    role: str


@dataclass(frozen=True, slots=True)
class MarkRead:
    """A member has read up to this message; it never goes back."""

    id: UUID
    user_id: UUID
    message_id: UUID


@dataclass(frozen=True, slots=True)
class Settle:
    """The users' lists show these members' versions. What has changed since stays to be shown."""

    id: UUID
    seen: tuple[tuple[UUID, int], ...]
    """(user, version shown) pairs."""


Membership: TypeAlias = AddMember | RemoveMember | SetRole
ConversationMutation: TypeAlias = (
    CreateConversation | UpdateConversation | DeleteConversation | Membership | MarkRead | Settle
)


@dataclass(frozen=True, slots=True)
class Census:
    """What a change of membership must know of all the others."""

    members: int
    """How many there are; whoever is asked about included."""
    other_owner: bool
    """Somebody else is an owner."""


def member_key(conversation_id: UUID, user_id: UUID) -> bytes:
    """The 32 bytes of a member's key: conversation (the routing key), then user."""
    return conversation_id.bytes + user_id.bytes


def keys_of(mutation: ConversationMutation) -> tuple[Key, ...]:
    """The keys a mutation reads by name; ``needs_all_members`` says whether it reads every member too."""
    conversation: Key = ("conversation", mutation.id.bytes)
    match mutation:
        case CreateConversation(members=pairs) | Settle(seen=pairs):
            users: Iterable[UUID] = (user for user, _ in pairs)
        case AddMember() | RemoveMember() | SetRole() | MarkRead():
            users = (mutation.user_id,)
        case _:
            users = ()
    return (conversation, *(("member", member_key(mutation.id, user)) for user in users))


def needs_all_members(mutation: ConversationMutation) -> bool:
    """Whether ``decide`` must be given every member of the conversation."""
    return isinstance(mutation, DeleteConversation | AddMember | RemoveMember | SetRole)


def to_record(conversation: Conversation) -> Record:
    """The canonical record of a conversation."""
    return Record(
        "conversation",
        conversation.id.bytes,
        conversation.version,
        conversation.deleted,
        (
            conversation.title,
            conversation.kind,
            conversation.updated_at_us,
            canonical_json(conversation.attributes),
        ),
    )


def to_conversation(record: Record) -> Conversation:
    """The conversation of a canonical record."""
    title, kind, updated_at, attributes = cast("tuple[str, str, int, str]", record.fields)
    return Conversation(
        UUID(bytes=record.key), title, kind, updated_at, record.deleted, record.version, parse_json(attributes)
    )


def to_member(record: Record) -> Member:
    """The member of a canonical record."""
    role, joined_at, read_up_to, _ = cast("tuple[str, int, bytes | None, int]", record.fields)
    return Member(
        UUID(bytes=record.key[:16]),
        UUID(bytes=record.key[16:]),
        role,
        joined_at,
        None if read_up_to is None else UUID(bytes=read_up_to),
        record.deleted,
        record.version,
    )


def to_entity(record: Record) -> Conversation | Member:
    """The entity of a record of either kind."""
    return to_conversation(record) if record.kind == "conversation" else to_member(record)


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The tombstone of a record of which nothing else is known (a foreign hard delete)."""
    if kind == "member":
        return Record("member", key, version, True, (*_GONE, 0))
    return Record("conversation", key, version, True, ("", "", 0, "{}"))


def decide(
    mutation: ConversationMutation, current: Mapping[Key, Record], now_us: int
) -> tuple[Conversation | Member | None, tuple[Record, ...]]:
    """What a mutation does: (the conversation or member afterwards, the records to apply).

    The reference for every store. ``current`` holds what ``keys_of`` and ``needs_all_members`` name. Raises NotFound,
    Conflict (version differs, last owner, full), AlreadyExists.
    """
    record = current.get(("conversation", mutation.id.bytes))
    stored = None if record is None else to_conversation(record)
    members = [one for (kind, _), one in current.items() if kind == "member" and not one.deleted]
    match mutation:
        case Settle():
            return None, settled(mutation, current)
        case MarkRead(user_id=user):
            return read_up_to(mutation, current.get(("member", member_key(mutation.id, user))), now_us)
        case CreateConversation():
            if stored is not None:
                return created_again(mutation, stored), ()
            made = created(mutation)
            return made, (to_record(made), *first_members(mutation, current))
        case UpdateConversation() | DeleteConversation():
            return _changed(change(mutation, stored, now_us), stored, members, now_us)
    key = member_key(mutation.id, mutation.user_id)
    census = Census(len(members), any(one.fields[0] == OWNER and one.key != key for one in members))
    return change_member(mutation, stored, current.get(("member", key)), census, now_us)


def _changed(
    changed: Conversation, stored: Conversation | None, members: Sequence[Record], now_us: int
) -> tuple[Conversation, tuple[Record, ...]]:
    if changed is stored:
        return changed, ()
    gone = [left(one, now_us) for one in members] if changed.deleted else []
    return changed, (to_record(changed), *gone)


# --- the parts of decide(), which a store may run beside reads of its own -------------------------------------------


def created(mutation: CreateConversation) -> Conversation:
    """The conversation a first create makes; version = the id's own time."""
    at = id_time_us(mutation.id)
    return Conversation(mutation.id, mutation.title, mutation.kind, at, False, at, parse_json(mutation.attributes))


def created_again(mutation: CreateConversation, stored: Conversation) -> Conversation:
    """What is stored, where a create of a known id is a retry of the write that made it; else AlreadyExists."""
    untouched = stored.version == id_time_us(mutation.id)
    removed = stored.deleted and stored.updated_at_us == 0
    if removed or (untouched and (stored.title, stored.kind) != (mutation.title, mutation.kind)):
        raise AlreadyExists(f"conversation {mutation.id} exists already with other values", field="id")
    return stored


def first_members(mutation: CreateConversation, current: Mapping[Key, Record]) -> list[Record]:
    """The records of the first members; they join with the conversation."""
    at = id_time_us(mutation.id)
    records = []
    for user, role in mutation.members:
        key = member_key(mutation.id, user)
        before = current.get(("member", key))
        version = at if before is None else max(before.version + 2, at)
        records.append(Record("member", key, version, False, (role, at, None, 0)))
    return records


def change(mutation: UpdateConversation | DeleteConversation, stored: Conversation | None, now_us: int) -> Conversation:
    """The conversation after an update or delete; what is stored where nothing changes."""
    if stored is None or (stored.deleted and not isinstance(mutation, DeleteConversation)):
        raise NotFound(f"conversation {mutation.id} does not exist")
    if stored.deleted:
        return stored
    expected = mutation.expected_version
    if expected is not None and expected != stored.version:
        msg = f"conversation {stored.id} is at version {stored.version}, not {expected}"
        raise Conflict(msg, current_version=stored.version)
    version = max(stored.version + 2, now_us)
    if isinstance(mutation, DeleteConversation):
        return Conversation(stored.id, "", "", now_us, True, version + FINAL_LEAD, {})
    changes = dict(mutation.changes)
    attributes = changes.get("attributes")
    return replace(
        stored,
        title=changes.get("title", stored.title),
        updated_at_us=now_us,
        version=version,
        attributes=stored.attributes if attributes is None else parse_json(attributes),
    )


def change_member(
    mutation: Membership, conversation: Conversation | None, record: Record | None, census: Census, now_us: int
) -> tuple[Member, tuple[Record, ...]]:
    """What a change of membership does; no records where the member is so already."""
    if conversation is None or conversation.deleted:
        raise NotFound(f"conversation {mutation.id} does not exist")
    live = None if record is None or record.deleted else record
    if isinstance(mutation, AddMember):
        return _added(mutation, record, live, census, now_us)
    if record is None or (live is None and isinstance(mutation, SetRole)):
        raise no_member(mutation.id, mutation.user_id)
    if live is None:
        return to_member(record), ()
    stays_owner = isinstance(mutation, SetRole) and mutation.role == OWNER
    if live.fields[0] == OWNER and not stays_owner and not census.other_owner:
        raise Conflict(
            f"user {mutation.user_id} is the last owner of conversation {mutation.id}",
            hint="make somebody else an owner first, or delete the conversation",
        )
    if isinstance(mutation, RemoveMember):
        gone = left(live, now_us)
        return to_member(gone), (gone,)
    if live.fields[0] == mutation.role:
        return to_member(live), ()
    changed = live._replace(version=max(live.version + 2, now_us), fields=(mutation.role, *live.fields[1:]))
    return to_member(changed), (changed,)


def _added(
    mutation: AddMember, record: Record | None, live: Record | None, census: Census, now_us: int
) -> tuple[Member, tuple[Record, ...]]:
    if live is not None:
        if live.fields[0] != mutation.role:
            raise AlreadyExists(
                f"user {mutation.user_id} is a member of conversation {mutation.id} already, as {cast('str', live.fields[0])}",
                field="user_id",
                hint="set_role gives a member another role",
            )
        return to_member(live), ()
    if census.members >= mutation.most:
        raise Conflict(
            f"conversation {mutation.id} has {census.members} members; the limit is {mutation.most}",
            hint="limits.members_max is the limit",
        )
    version, listed = (now_us, 0) if record is None else (max(record.version + 2, now_us), record.fields[3])
    key = member_key(mutation.id, mutation.user_id)
    added = Record("member", key, version, False, (mutation.role, now_us, None, listed))
    return to_member(added), (added,)


def left(record: Record, now_us: int) -> Record:
    """The tombstone of a member who leaves."""
    return record._replace(version=max(record.version + 2, now_us), deleted=True, fields=(*_GONE, record.fields[3]))


def read_up_to(mutation: MarkRead, record: Record | None, now_us: int) -> tuple[Member, tuple[Record, ...]]:
    """What marking as read does; no records where the member has read further already."""
    if record is None or record.deleted:
        raise no_member(mutation.id, mutation.user_id)
    before = cast("bytes | None", record.fields[2])
    if before is not None and before >= mutation.message_id.bytes:
        return to_member(record), ()
    fields = (*record.fields[:2], mutation.message_id.bytes, record.fields[3])
    changed = record._replace(version=max(record.version + 2, now_us), fields=fields)
    return to_member(changed), (changed,)


def settled(mutation: Settle, current: Mapping[Key, Record]) -> tuple[Record, ...]:
    """The records of members that the lists show as they are."""
    records = []
    for user, version in dict(mutation.seen).items():
        record = current.get(("member", member_key(mutation.id, user)))
        if record is not None and record.version == version and not is_listed(record):
            shown = version + 2
            records.append(record._replace(version=shown, fields=(*record.fields[:3], shown)))
    return tuple(records)


def is_listed(record: Record) -> bool:
    """Whether the user's list shows this version of a member."""
    return cast("int", record.fields[3]) >= record.version


def no_member(conversation_id: UUID, user_id: UUID) -> NotFound:
    """The error for a user who does not belong to a conversation."""
    return NotFound(f"user {user_id} is no member of conversation {conversation_id}")
