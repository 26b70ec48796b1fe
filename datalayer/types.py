"""What repositories take and give: frozen values, no driver types."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar
from uuid import UUID

from datalayer.ids import id_time_us

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
REGION_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""What a region may be called."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


def from_us(value: int) -> datetime:
    """The UTC-aware time of microseconds since 1970, exactly."""
    return _EPOCH + value * _US


def to_us(value: datetime) -> int:
    """Microseconds since 1970 of an aware time, exactly."""
    return (value - _EPOCH) // _US


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. ``version`` rises with every change and is not a counter."""

    id: UUID
    conversation_id: UUID
    sender_id: UUID
    body: str
    kind: str = "text"
    thread_id: UUID | None = None
    attachments: tuple[UUID, ...] = ()
    edited_at_us: int | None = None
    deleted: bool = False
    version: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def created_at(self) -> datetime:
        """The time of the id, UTC-aware."""
        return from_us(id_time_us(self.id))

    @property
    def edited_at(self) -> datetime | None:
        """When it was last edited, UTC-aware."""
        return None if self.edited_at_us is None else from_us(self.edited_at_us)


@dataclass(frozen=True, slots=True)
class User:
    """One user. ``version`` is what ``update(expected_version=...)`` compares."""

    id: UUID
    username: str
    email: str | None = None
    display_name: str = ""
    status: str = "active"
    updated_at_us: int = 0
    deleted: bool = False
    version: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    region: str | None = None
    """The home region; None: nobody chose one."""

    @property
    def created_at(self) -> datetime:
        """The time of the id, UTC-aware."""
        return from_us(id_time_us(self.id))

    @property
    def updated_at(self) -> datetime:
        """When it was last changed, UTC-aware."""
        return from_us(self.updated_at_us)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation. ``version`` is what ``update(expected_version=...)`` compares; members do not change it."""

    id: UUID
    title: str
    kind: str = "group"
    updated_at_us: int = 0
    deleted: bool = False
    version: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def created_at(self) -> datetime:
        """The time of the id, UTC-aware."""
        return from_us(id_time_us(self.id))

    @property
    def updated_at(self) -> datetime:
        """When title or attributes were last changed, UTC-aware."""
        return from_us(self.updated_at_us)


@dataclass(frozen=True, slots=True)
class Member:
    """One user's place in a conversation: owner, admin or member, and how far that user has read."""

    conversation_id: UUID
    user_id: UUID
    role: str
    joined_at_us: int = 0
    read_up_to: UUID | None = None
    """The id of the newest message that was marked as read."""
    deleted: bool = False
    version: int = 0

    @property
    def joined_at(self) -> datetime:
        """When the user joined, the last time if several times, UTC-aware."""
        return from_us(self.joined_at_us)


@dataclass(frozen=True, slots=True)
class Listed:
    """One conversation on a user's own list. It follows conversations and messages, and may be behind them."""

    user_id: UUID
    conversation_id: UUID
    role: str
    joined_at_us: int = 0
    read_up_to: UUID | None = None
    newest: UUID | None = None
    """The newest message that the list knows of."""
    last_activity_us: int = 0
    deleted: bool = False
    version: int = 0

    @property
    def last_activity(self) -> datetime:
        """When its newest known message was sent or the user joined, whatever came later; UTC-aware."""
        return from_us(self.last_activity_us)

    @property
    def unread(self) -> bool:
        """Whether the newest known message was not marked as read."""
        return self.newest is not None and (self.read_up_to is None or self.read_up_to.bytes < self.newest.bytes)


class MediaId(UUID):
    """The id of an item of media: a UUID that knows its owner, because items are stored and found by owner.

    Equal to the plain UUID of the same number, as which it may be kept (a message's attachments): then ``owner_id`` is
    passed beside it.
    """

    __slots__ = ("owner_id",)
    owner_id: UUID

    def __init__(self, owner_id: UUID, id: UUID) -> None:
        super().__init__(int=id.int)
        object.__setattr__(self, "owner_id", owner_id)

    def __reduce__(self) -> tuple[type[MediaId], tuple[UUID, UUID]]:
        return (MediaId, (self.owner_id, UUID(int=self.int)))


@dataclass(frozen=True, slots=True)
class Media:
    """One item of media: what it is and whose. Its bytes are read by ``media.open``.

    ``size`` in bytes, ``sha256`` of the bytes in hex. ``ready``: the bytes are here; an item whose client is still to
    upload them has ``upload``, their name, instead.
    """

    id: MediaId
    content_type: str
    size: int
    sha256: str = ""
    filename: str | None = None
    ready: bool = True
    upload: UUID | None = None
    deleted: bool = False
    version: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owner_id(self) -> UUID:
        """Whose it is."""
        return self.id.owner_id

    @property
    def created_at(self) -> datetime:
        """The time of the id, UTC-aware."""
        return from_us(id_time_us(self.id))


Item: TypeAlias = Media | UUID | str
"""What names an item of media: itself or its id; a UUID that does not know its owner needs ``owner_id`` beside it."""
MediaData: TypeAlias = bytes | bytearray | memoryview | PathLike[str] | IO[bytes] | AsyncIterator[bytes]
"""What ``media.put`` takes: bytes, a path, an open binary file, or anything that gives bytes asynchronously."""


@dataclass(frozen=True, slots=True)
class PresignedUpload:
    """Where a client may upload the bytes of one item: PUT to ``url`` with exactly these headers, before it expires."""

    id: MediaId
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    expires_at_us: int = 0

    @property
    def expires_at(self) -> datetime:
        """When the URL ends, UTC-aware."""
        return from_us(self.expires_at_us)


@dataclass(frozen=True, slots=True)
class Session:
    """One login of a user. ``token`` is set on the one that ``create`` returns, and is in no text form of it."""

    user_id: UUID
    id: UUID
    """Names it among the user's sessions; it is no secret, and nobody logs in with it."""
    created_at_us: int
    expires_at_us: int
    ends_at_us: int
    """Beyond this no touch lets it live."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    deleted: bool = False
    mark: int = field(default=0, repr=False)
    """What a cut of all sessions compares."""
    proof: bytes = field(default=b"", repr=False)
    """Half of the hash of its secret."""
    token: str | None = field(default=None, repr=False, compare=False)

    @property
    def created_at(self) -> datetime:
        """When it was made, UTC-aware."""
        return from_us(self.created_at_us)

    @property
    def expires_at(self) -> datetime:
        """When it expires unless it is touched, UTC-aware."""
        return from_us(self.expires_at_us)

    @property
    def ends_at(self) -> datetime:
        """When it ends at the latest, UTC-aware."""
        return from_us(self.ends_at_us)


@dataclass(frozen=True, slots=True)
class SessionCut:
    """Every session of a user up to a mark is revoked."""

    user_id: UUID
    mark: int
    expires_at_us: int
    version: int = 0
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a message's text, without markup; ``marks``: from where to where in it the matches are."""

    text: str
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found, as it is now."""

    message: Message
    excerpt: Excerpt | None = None
    """Where it matches, when that was asked for."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; ``next_cursor`` is None on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None
    missing: tuple[str, ...] = ()
    """Shards that did not answer, where a partial answer was asked for: their part is left out."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are; ``missing`` as of a page."""

    total: int
    missing: tuple[str, ...] = ()


class Presence(StrEnum):
    """Whether a user is there."""

    ONLINE = "online"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """The store, or the node of it that knows this user, did not answer."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a user that beats: when it was heard of last, and when it counts as gone."""

    name: str
    seen_at: datetime
    expires_at: datetime
    status: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """A user who came or went; ``presence`` is ONLINE or OFFLINE. ``at``: when the change was seen, or the last device
    had left or ended.
    """

    user_id: UUID
    presence: Presence
    at: datetime
