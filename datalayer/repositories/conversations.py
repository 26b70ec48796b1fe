"""Conversations: who belongs to them, how far each has read, and each user's own list of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from datalayer.domains.conversations import (
    OWNER,
    ROLES,
    AddMember,
    CreateConversation,
    DeleteConversation,
    MarkRead,
    RemoveMember,
    SetRole,
    UpdateConversation,
)
from datalayer.domains.record import check_text
from datalayer.errors import InvalidArgument
from datalayer.ids import check_id
from datalayer.repositories.arguments import (
    MANY_MAX,
    UNSET,
    _Unset,
    as_attributes,
    as_ids,
    as_limit,
    as_uuid,
    deadline_of,
)
from datalayer.repositories.cursor import decode_cursor, decode_position, encode_cursor, encode_position
from datalayer.types import Conversation, Listed, Member, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.domains.conversations import ConversationMutation
    from datalayer.domains.record import Record
    from datalayer.ids import IdSource
    from datalayer.repositories.limits import Limits
    from datalayer.routing.router import Router
    from datalayer.stores.base import ConversationReads, ListingReads


_KIND_BYTES: Final = 64
_TITLE_BYTES: Final = 1024
_PLACE: Final = struct.Struct("!q16s")
"""A position in a user's list: time of the last activity, conversation id."""


class Conversations:
    """Create, change and delete conversations; members; users' lists.

    A conversation always has an owner. What belongs to one conversation - itself and its members - changes in one
    transaction. ``of_user`` reads a copy that follows: see there how far behind it may be.

    Raises besides what is named: Unavailable, DeadlineExceeded (nothing was written), OutcomeUnknown (a write may or
    may not have been applied), InvalidArgument.
    """

    def __init__(
        self,
        routers: tuple[Router, Router],
        ids: IdSource,
        clock: Clock,
        limits: Limits,
        *,
        changed: Callable[[Sequence[Record]], None] = lambda _records: None,
    ) -> None:
        """``routers``: of conversations and of listings. ``changed`` hears of every record that was written here."""
        self._router, self._listings = routers
        self._ids = ids
        self._clock = clock
        self._limits = limits
        self._changed = changed

    async def create(
        self,
        *,
        title: str = "",
        kind: str = "group",
        members: Mapping[UUID | str, str],
        id: UUID | str | None = None,
        attributes: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Conversation:
        """Create a conversation with its first members (user id -> "owner", "admin" or "member"), at most 1,000.

        One of them at least is an owner. With ``id`` (a UUIDv7) a retry is the same write; AlreadyExists when the id
        is known with another title or kind.
        """
        conversation_id = self._ids.uuid7() if id is None else check_id(as_uuid(id, "id"), self._clock.now_us())
        if not hasattr(members, "items"):
            raise InvalidArgument(f"members must map user ids to roles, not be {type(members).__name__}")
        pairs = {as_uuid(user, "members"): _role(role) for user, role in members.items()}
        most = min(MANY_MAX, self._limits.members_max)
        if len(pairs) > most:
            raise InvalidArgument(f"{len(pairs)} members were passed; the limit is {most}", hint="add the others later")
        if OWNER not in pairs.values():
            raise InvalidArgument("members must name an owner", hint='members={user_id: "owner"}')
        mutation = CreateConversation(
            conversation_id,
            check_text(title, "title", _TITLE_BYTES),
            check_text(kind, "kind", _KIND_BYTES),
            tuple(sorted(pairs.items())),
            as_attributes(attributes),
        )
        return cast("Conversation", await self._write(mutation, timeout))

    async def update(
        self,
        id: UUID | str,
        *,
        title: str | _Unset = UNSET,
        attributes: Mapping[str, Any] | _Unset = UNSET,
        expected_version: int | None = None,
        timeout: float | None = None,
    ) -> Conversation:
        """Change the given fields. NotFound, Conflict (``expected_version`` differs). Members leave the version alone."""
        changes: list[tuple[str, str]] = []
        if not isinstance(title, _Unset):
            changes.append(("title", check_text(title, "title", _TITLE_BYTES)))
        if not isinstance(attributes, _Unset):
            changes.append(("attributes", as_attributes(attributes)))
        mutation = UpdateConversation(as_uuid(id, "id"), tuple(changes), expected_version)
        return cast("Conversation", await self._write(mutation, timeout))

    async def delete(
        self, id: UUID | str, *, expected_version: int | None = None, timeout: float | None = None
    ) -> None:
        """Delete for good; nobody is a member any more. Twice is no error. NotFound when it never was.

        Its messages stay where they are: delete them with ``messages``.
        """
        await self._write(DeleteConversation(as_uuid(id, "id"), expected_version), timeout)

    async def get(
        self, id: UUID | str, *, include_deleted: bool = False, timeout: float | None = None
    ) -> Conversation | None:
        """One conversation, or None when absent or deleted."""
        wanted = as_uuid(id, "id")

        def call(store: ConversationReads, deadline: Deadline) -> Any:
            return store.get(wanted, deadline)

        found: Conversation | None = await self._router.read((wanted.bytes,), call, self._deadline(timeout))
        return None if found is None or (found.deleted and not include_deleted) else found

    async def get_many(self, ids: Iterable[UUID | str], *, timeout: float | None = None) -> dict[UUID, Conversation]:
        """Those of at most 1,000 conversations that exist and are not deleted, by id."""
        wanted = list(dict.fromkeys(as_ids(ids, "ids")))
        if not wanted:
            return {}

        def call(store: ConversationReads, deadline: Deadline) -> Any:
            return store.get_many(wanted, deadline)

        routings = tuple(item.bytes for item in wanted)
        found: list[Conversation] = await self._router.read(routings, call, self._deadline(timeout))
        return {one.id: one for one in found if not one.deleted}

    # --- members ---------------------------------------------------------------------------------------------------

    async def add_member(
        self,
        conversation_id: UUID | str,
        user_id: UUID | str,
        *,
        role: str = "member",
        timeout: float | None = None,
    ) -> Member:
        """Make a user a member; one who left may come again. A member with this role already: no change, no error.

        NotFound (no such conversation), AlreadyExists (a member with another role), Conflict (it is full:
        ``limits.members_max``).
        """
        mutation = AddMember(*_pair(conversation_id, user_id), _role(role), self._limits.members_max)
        return cast("Member", await self._write(mutation, timeout))

    async def remove_member(
        self, conversation_id: UUID | str, user_id: UUID | str, *, timeout: float | None = None
    ) -> None:
        """End a membership; twice is no error. NotFound when it never was, Conflict for the last owner."""
        await self._write(RemoveMember(*_pair(conversation_id, user_id)), timeout)

    async def set_role(
        self, conversation_id: UUID | str, user_id: UUID | str, role: str, *, timeout: float | None = None
    ) -> Member:
        """Give a member another role. NotFound, Conflict for the last owner."""
        mutation = SetRole(*_pair(conversation_id, user_id), _role(role))
        return cast("Member", await self._write(mutation, timeout))

    async def mark_read(
        self,
        conversation_id: UUID | str,
        user_id: UUID | str,
        message_id: UUID | str,
        *,
        timeout: float | None = None,
    ) -> Member:
        """The member has read up to this message. It only moves forward: an older message changes nothing. NotFound."""
        message = check_id(as_uuid(message_id, "message_id"), self._clock.now_us(), "message_id")
        mutation = MarkRead(*_pair(conversation_id, user_id), message)
        return cast("Member", await self._write(mutation, timeout))

    async def member(
        self, conversation_id: UUID | str, user_id: UUID | str, *, timeout: float | None = None
    ) -> Member | None:
        """One member, or None."""
        pair = _pair(conversation_id, user_id)

        def call(store: ConversationReads, deadline: Deadline) -> Any:
            return store.member(*pair, deadline)

        found: Member | None = await self._router.read((pair[0].bytes,), call, self._deadline(timeout))
        return None if found is None or found.deleted else found

    async def role_of(
        self, conversation_id: UUID | str, user_id: UUID | str, *, timeout: float | None = None
    ) -> str | None:
        """The user's role, or None for no member."""
        found = await self.member(conversation_id, user_id, timeout=timeout)
        return None if found is None else found.role

    async def is_member(
        self, conversation_id: UUID | str, user_id: UUID | str, *, timeout: float | None = None
    ) -> bool:
        """Whether the user is a member."""
        return await self.member(conversation_id, user_id, timeout=timeout) is not None

    async def members(
        self,
        conversation_id: UUID | str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        timeout: float | None = None,
    ) -> Page[Member]:
        """A page of the members by user id, filled to ``limit`` (at most 1,000)."""
        conversation = as_uuid(conversation_id, "conversation_id")
        size = as_limit(limit)
        after = None if cursor is None else decode_cursor(cursor, "conversations.members", (conversation,))

        def call(store: ConversationReads, deadline: Deadline) -> Any:
            return store.members(conversation, size, deadline, after=after)

        items: list[Member] = await self._router.read((conversation.bytes,), call, self._deadline(timeout))
        full = len(items) == size
        last = encode_cursor(items[-1].user_id, "conversations.members", (conversation,)) if full else None
        return Page(tuple(items), last)

    # --- a user's list ---------------------------------------------------------------------------------------------

    async def of_user(
        self, user_id: UUID | str, *, limit: int = 50, cursor: str | None = None, timeout: float | None = None
    ) -> Page[Listed]:
        """A page of the user's conversations, the one with the latest activity first.

        The list follows what it shows: usually within a fraction of a second (``layer.health()`` says how far it is
        behind). Who joins, leaves, gets a role or marks as read is shown in the end whatever dies meanwhile. That a
        message has come is told by the process that appended it; if that one dies at once, or a program without this
        library wrote it, the list shows it with the next message, or when a member of that conversation changes. A
        conversation that becomes active during a walk moves to the front.
        """
        user = as_uuid(user_id, "user_id")
        size = as_limit(limit)
        after: tuple[int, UUID] | None = None
        if cursor is not None:
            raw = decode_position(cursor, "conversations.of_user", (user,), _PLACE.size)
            activity, conversation = _PLACE.unpack(raw)
            after = (activity, UUID(bytes=conversation))

        def call(store: ListingReads, deadline: Deadline) -> Any:
            return store.of_user(user, size, deadline, after=after)

        items: list[Listed] = await self._listings.read((user.bytes,), call, self._deadline(timeout))
        if len(items) < size:
            return Page(tuple(items))
        last = _PLACE.pack(items[-1].last_activity_us, items[-1].conversation_id.bytes)
        return Page(tuple(items), encode_position(last, "conversations.of_user", (user,)))

    async def _write(self, mutation: ConversationMutation, timeout: float | None) -> Any:
        executed = await self._router.execute(mutation, self._deadline(timeout))
        self._changed(executed.records)
        return executed.entity

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)


def _pair(conversation_id: UUID | str, user_id: UUID | str) -> tuple[UUID, UUID]:
    return as_uuid(conversation_id, "conversation_id"), as_uuid(user_id, "user_id")


def _role(role: str) -> str:
    if role not in ROLES:
        raise InvalidArgument(f"role is {str(role)[:60]!r}; it must be one of: {', '.join(ROLES)}")
    return role
