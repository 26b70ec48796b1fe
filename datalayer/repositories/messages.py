"""Messages of conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from datalayer.domains.messages import Append, Delete, Edit
from datalayer.domains.record import check_text
from datalayer.ids import check_id
from datalayer.repositories.arguments import as_attributes, as_ids, as_limit, as_uuid, deadline_of
from datalayer.repositories.cursor import decode_cursor, encode_cursor
from datalayer.types import Message, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from uuid import UUID

    from datalayer.clock import Clock, Deadline
    from datalayer.ids import IdSource
    from datalayer.repositories.limits import Limits
    from datalayer.routing.router import Router
    from datalayer.stores.base import MessageReads

_KIND_BYTES = 64


class Messages:
    """Append, edit, delete and read messages. Each method ends by its deadline (default of the settings, 5 s).

    Raises besides what is named: Unavailable, DeadlineExceeded (nothing was written), OutcomeUnknown (a write may or
    may not have been applied: repeat it with the same id), InvalidArgument.
    """

    def __init__(
        self,
        router: Router,
        ids: IdSource,
        clock: Clock,
        limits: Limits,
        *,
        appended: Callable[[Message], None] = lambda _message: None,
    ) -> None:
        """``appended`` hears of every message that was appended here; it must not wait for anything."""
        self._router = router
        self._appended = appended
        self._ids = ids
        self._clock = clock
        self._limits = limits

    async def append(
        self,
        conversation_id: UUID | str,
        *,
        sender_id: UUID | str,
        body: str,
        id: UUID | str | None = None,
        kind: str = "text",
        thread_id: UUID | str | None = None,
        attachments: Iterable[UUID | str] = (),
        attributes: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Add a message. With ``id`` (a UUIDv7) a retry is the same write and returns what is stored.

        Raises AlreadyExists when the id is known with another sender or body (where the authority is SQL).
        """
        fresh = id is None
        message_id = self._ids.uuid7() if id is None else check_id(as_uuid(id, "id"), self._clock.now_us())
        mutation = Append(
            as_uuid(conversation_id, "conversation_id"),
            message_id,
            as_uuid(sender_id, "sender_id"),
            check_text(body, "body", self._limits.body_max_bytes),
            check_text(kind, "kind", _KIND_BYTES),
            None if thread_id is None else as_uuid(thread_id, "thread_id"),
            as_ids(attachments, "attachments", 100),
            as_attributes(attributes),
            fresh,
        )
        message = cast("Message", await self._router.write(mutation, self._deadline(timeout)))
        self._appended(message)
        return message

    async def edit(
        self,
        conversation_id: UUID | str,
        id: UUID | str,
        *,
        body: str,
        attributes: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Replace the body (and the attributes, when given); last writer wins. NotFound when absent or deleted."""
        mutation = Edit(
            as_uuid(conversation_id, "conversation_id"),
            as_uuid(id, "id"),
            check_text(body, "body", self._limits.body_max_bytes),
            None if attributes is None else as_attributes(attributes),
        )
        return cast("Message", await self._router.write(mutation, self._deadline(timeout)))

    async def delete(self, conversation_id: UUID | str, id: UUID | str, *, timeout: float | None = None) -> None:
        """Delete for good; deleting twice is no error. NotFound when it never existed."""
        mutation = Delete(as_uuid(conversation_id, "conversation_id"), as_uuid(id, "id"))
        await self._router.write(mutation, self._deadline(timeout))

    async def get(
        self,
        conversation_id: UUID | str,
        id: UUID | str,
        *,
        include_deleted: bool = False,
        timeout: float | None = None,
    ) -> Message | None:
        """One message, or None when it is absent or deleted."""
        conversation, message_id = as_uuid(conversation_id, "conversation_id"), as_uuid(id, "id")

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.get(conversation, message_id, deadline)

        found: Message | None = await self._router.read((conversation.bytes,), call, self._deadline(timeout))
        return None if found is None or (found.deleted and not include_deleted) else found

    async def get_many(
        self, conversation_id: UUID | str, ids: Iterable[UUID | str], *, timeout: float | None = None
    ) -> dict[UUID, Message]:
        """Those of at most 1,000 messages of one conversation that exist and are not deleted, by id."""
        conversation = as_uuid(conversation_id, "conversation_id")
        wanted = as_ids(ids, "ids")
        if not wanted:
            return {}
        pairs = [(conversation, item) for item in dict.fromkeys(wanted)]

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.get_many(pairs, deadline)

        found: list[Message] = await self._router.read((conversation.bytes,), call, self._deadline(timeout))
        return {message.id: message for message in found if not message.deleted}

    async def history(
        self,
        conversation_id: UUID | str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        oldest_first: bool = False,
        include_deleted: bool = False,
        timeout: float | None = None,
    ) -> Page[Message]:
        """A page of a conversation, newest first, filled to ``limit`` (at most 1,000); deleted ones left out.

        ``cursor`` is the ``next_cursor`` of the page before, with the same arguments (InvalidCursor otherwise).
        """
        conversation = as_uuid(conversation_id, "conversation_id")
        size = as_limit(limit)
        bound = (conversation, oldest_first, include_deleted)
        after = None if cursor is None else decode_cursor(cursor, "messages.history", bound)

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.history(
                conversation, size, deadline, after=after, oldest_first=oldest_first, include_deleted=include_deleted
            )

        items: list[Message] = await self._router.read((conversation.bytes,), call, self._deadline(timeout))
        full = len(items) == size
        return Page(tuple(items), encode_cursor(items[-1].id, "messages.history", bound) if full else None)

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)
