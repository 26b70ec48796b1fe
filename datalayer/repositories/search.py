"""Search of messages and users."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.search import (
    MessageQuery,
    body_words,
    excerpt_of,
    matches,
    matches_names,
    parse_prefix,
    parse_query,
)
from datalayer.errors import InvalidArgument
from datalayer.ids import uuid7_at
from datalayer.repositories.arguments import MANY_MAX, PAGE_MAX, as_ids, as_limit, as_uuid, deadline_of
from datalayer.repositories.cursor import decode_position, encode_position
from datalayer.types import Hit, Page, to_us

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.domains.search import Found, FoundUser, Phrase
    from datalayer.repositories.limits import Limits
    from datalayer.routing.router import Router
    from datalayer.stores.base import MessageReads, SearchReads, UserReads
    from datalayer.types import Message, User

ID_BYTES: Final = 16
ROUNDS_MAX: Final = 20
"""How often one page asks the index again because what it found has changed since: then it is given as it is."""


class Search:
    """Find messages by words, users by the beginning of a name.

    The index follows messages and users: what was written may be found a moment later (``layer.health()`` says how far
    it is behind). What is found is read again where it lies, so that nothing deleted is shown, and nothing changed but in
    its present form and while it still matches.

    Raises besides what is named: Unavailable, DeadlineExceeded, InvalidArgument; ConfigurationError where no backend
    holds search.
    """

    def __init__(self, routers: tuple[Router, Router, Router], clock: Clock, limits: Limits) -> None:
        """``routers``: of search, messages and users."""
        self._index, self._messages, self._users = routers
        self._clock = clock
        self._limits = limits

    async def messages(
        self,
        query: str,
        *,
        conversations: Iterable[UUID | str],
        sender: UUID | str | None = None,
        between: tuple[datetime | None, datetime | None] = (None, None),
        limit: int = 20,
        cursor: str | None = None,
        highlight: bool = False,
        timeout: float | None = None,
    ) -> Page[Hit]:
        """A page of the messages that hold every word of ``query``, newest first, filled to ``limit`` (at most 1,000).

        ``query``: words, ``"words in a row"``, ``begin*``; nothing else has a meaning. ``conversations``: where to look,
        at most 1,000; it is the filter of what the reader may see, so pass the reader's own. ``between``: created from the
        first on and before the second time, either may be None. ``highlight``: give an excerpt with each hit.

        InvalidArgument for a query without a word, of more than 32 words or 1,024 bytes.
        """
        phrases = parse_query(query)
        size = as_limit(limit)
        rooms = _rooms(conversations)
        since, until = _bounds(between)
        wanted = MessageQuery(phrases, rooms, None if sender is None else as_uuid(sender, "sender"), since, until)
        bound = (phrases, rooms, wanted.sender_id, since, until)
        after = None if cursor is None else _pair(decode_position(cursor, "search.messages", bound, 2 * ID_BYTES))
        if not rooms:
            return Page(())
        deadline = deadline_of(self._clock, timeout, self._limits)
        items: list[Hit] = []
        for _ in range(ROUNDS_MAX):
            asked = min(size - len(items), PAGE_MAX)
            found = await self._found(wanted, asked, after, deadline)
            present = await self._present(found, deadline)
            for one in found:
                message = present.get((one.conversation_id, one.id))
                if message is not None and _answers(wanted, message):
                    items.append(Hit(message, excerpt_of(phrases, message.body) if highlight else None))
            if len(found) < asked:
                return Page(tuple(items))
            after = found[-1].position
            if len(items) == size:
                break
        assert after is not None, "a full round has a last one"
        last = after[0].bytes + after[1].bytes
        return Page(tuple(items), encode_position(last, "search.messages", bound))

    async def users(
        self, prefix: str, *, limit: int = 20, cursor: str | None = None, timeout: float | None = None
    ) -> Page[User]:
        """A page of the users whose username or display name begins with ``prefix``, or has a word that does.

        By username, filled to ``limit`` (at most 1,000). Several words must stand in a row in one of the two names; the
        last of them is the beginning of a word. InvalidArgument for a prefix without a word.
        """
        phrase = parse_prefix(prefix)
        size = as_limit(limit)
        bound = (phrase,)
        after: tuple[str, UUID] | None = None
        if cursor is not None:
            raw = decode_position(cursor, "search.users", bound, ID_BYTES, longer=True)
            after = (raw[ID_BYTES:].decode(), UUID(bytes=raw[:ID_BYTES]))
        deadline = deadline_of(self._clock, timeout, self._limits)
        items: list[User] = []
        for _ in range(ROUNDS_MAX):
            asked = size - len(items)
            found = await self._found_users(phrase, asked, after, deadline)
            present = await self._present_users([one.id for one in found], deadline)
            items += [present[one.id] for one in found if one.id in present and _is_named(phrase, present[one.id])]
            if len(found) < asked:
                return Page(tuple(items))
            after = found[-1].position
            if len(items) == size:
                break
        assert after is not None, "a full round has a last one"
        last = after[1].bytes + after[0].encode()
        return Page(tuple(items), encode_position(last, "search.users", bound))

    # --- the index, and what is there now --------------------------------------------------------------------------

    async def _found(
        self, query: MessageQuery, limit: int, after: tuple[UUID, UUID] | None, deadline: Deadline
    ) -> list[Found]:
        def call(store: SearchReads, deadline: Deadline) -> Any:
            return store.messages(query, limit, deadline, after=after)

        found: list[Found] = await self._index.read(None, call, deadline)
        return found

    async def _present(self, found: Sequence[Found], deadline: Deadline) -> dict[tuple[UUID, UUID], Message]:
        if not found:
            return {}
        keys = [(one.conversation_id, one.id) for one in found]
        routings = tuple({one.conversation_id.bytes for one in found})

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.get_many(keys, deadline)

        messages: list[Message] = await self._messages.read(routings, call, deadline)
        return {(one.conversation_id, one.id): one for one in messages if not one.deleted}

    async def _found_users(
        self, phrase: Phrase, limit: int, after: tuple[str, UUID] | None, deadline: Deadline
    ) -> list[FoundUser]:
        def call(store: SearchReads, deadline: Deadline) -> Any:
            return store.users(phrase, limit, deadline, after=after)

        found: list[FoundUser] = await self._index.read(None, call, deadline)
        return found

    async def _present_users(self, ids: Sequence[UUID], deadline: Deadline) -> dict[UUID, User]:
        if not ids:
            return {}

        def call(store: UserReads, deadline: Deadline) -> Any:
            return store.get_many(ids, deadline)

        users: list[User] = await self._users.read(tuple(one.bytes for one in ids), call, deadline)
        return {one.id: one for one in users if not one.deleted}


def _answers(query: MessageQuery, message: Message) -> bool:
    if query.sender_id is not None and message.sender_id != query.sender_id:
        return False
    return matches(query.phrases, body_words(message.body))


def _is_named(phrase: Phrase, user: User) -> bool:
    return matches_names(phrase, user.username, user.display_name)


def _rooms(conversations: Iterable[UUID | str]) -> tuple[UUID, ...]:
    return tuple(sorted(set(as_ids(conversations, "conversations", MANY_MAX))))


def _bounds(between: object) -> tuple[UUID | None, UUID | None]:
    """The least id from the first time on, and from the second."""
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise InvalidArgument("between must be two times, either of which may be None")
    return _least_id(between[0]), _least_id(between[1])


def _least_id(at: object) -> UUID | None:
    if at is None:
        return None
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise InvalidArgument("between must be times with a time zone", hint="datetime(..., tzinfo=UTC)")
    return uuid7_at(max(0, to_us(at)), 0)


def _pair(raw: bytes) -> tuple[UUID, UUID]:
    return UUID(bytes=raw[:ID_BYTES]), UUID(bytes=raw[ID_BYTES:])
