"""The listings domain: each user's own list of conversations, by last activity.

A projection: every record follows from a member of a conversation and from messages, and is routed by its user. Both
sources come late, twice and in any order: a membership is shown where it is newer than the one shown (``shown`` is its
version), and activity only ever moves forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from datalayer.domains.record import FieldSpec, FieldValue, Key, Kind, Record
from datalayer.ids import id_time_us
from datalayer.types import Listed

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTED: Final = Kind(
    "listed",
    (
        FieldSpec("role", "text"),
        FieldSpec("joined_at", "int"),
        FieldSpec("read_up_to", "uuid", nullable=True),
        FieldSpec("newest", "uuid", nullable=True),
        FieldSpec("last_activity", "int"),
        FieldSpec("shown", "int"),
    ),
    # whoever joins again is listed again
    final=False,
)
KINDS: Final = (LISTED,)


@dataclass(frozen=True, slots=True)
class Show:
    """Show one version of a membership, or that it has ended, unless a newer one is shown; activity counts either way."""

    user_id: UUID
    conversation_id: UUID
    shown: int
    """The version of the member's record."""
    ended: bool = False
    role: str = "member"
    joined_at: int = 0
    read_up_to: UUID | None = None
    newest: UUID | None = None
    """The newest message that is known of."""


def listed_key(user_id: UUID, conversation_id: UUID) -> bytes:
    """The 32 bytes of an entry's key: user (the routing key), then conversation."""
    return user_id.bytes + conversation_id.bytes


def keys_of(mutation: Show) -> tuple[Key, ...]:
    """The key a mutation reads and may write."""
    return (("listed", listed_key(mutation.user_id, mutation.conversation_id)),)


def to_listed(record: Record) -> Listed:
    """The entry of a canonical record."""
    role, joined_at, read_up_to, newest, last_activity, _ = cast(
        "tuple[str, int, bytes | None, bytes | None, int, int]", record.fields
    )
    return Listed(
        UUID(bytes=record.key[:16]),
        UUID(bytes=record.key[16:]),
        role,
        joined_at,
        None if read_up_to is None else UUID(bytes=read_up_to),
        None if newest is None else UUID(bytes=newest),
        last_activity,
        record.deleted,
        record.version,
    )


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The tombstone of a record of which nothing else is known (a foreign hard delete)."""
    assert kind == "listed", "the listings domain has one kind"
    return Record("listed", key, version, True, _ended(0))


def decide(mutation: Show, current: Mapping[Key, Record], now_us: int) -> tuple[Listed, tuple[Record, ...]]:
    """What a mutation does: (the entry afterwards, the records to apply). The reference for every store."""
    key = keys_of(mutation)[0]
    record = current.get(key)
    live = None if record is None or record.deleted else record
    if record is not None and cast("int", record.fields[5]) >= mutation.shown:
        changed = record if live is None else live._replace(fields=_touched(live, mutation.newest))
    else:
        changed = Record("listed", key[1], 0, mutation.ended, _shown(mutation, live))
    if record is not None and changed.fields == record.fields:
        return to_listed(record), ()
    changed = changed._replace(version=now_us if record is None else max(record.version + 2, now_us))
    return to_listed(changed), (changed,)


def _shown(mutation: Show, live: Record | None) -> tuple[FieldValue, ...]:
    if mutation.ended:
        return _ended(mutation.shown)
    read = None if mutation.read_up_to is None else mutation.read_up_to.bytes
    known = [None if live is None else cast("bytes | None", live.fields[3]), read]
    known.append(None if mutation.newest is None else mutation.newest.bytes)
    newest = max((one for one in known if one is not None), default=None)
    activity = max(mutation.joined_at, 0 if newest is None else id_time_us(UUID(bytes=newest)))
    return (mutation.role, mutation.joined_at, read, newest, activity, mutation.shown)


def _touched(live: Record, newest: UUID | None) -> tuple[FieldValue, ...]:
    role, joined_at, read, known, activity, shown = live.fields
    if newest is None or (known is not None and cast("bytes", known) >= newest.bytes):
        return live.fields
    return (role, joined_at, read, newest.bytes, max(cast("int", activity), id_time_us(newest)), shown)


def _ended(shown: int) -> tuple[FieldValue, ...]:
    return ("member", 0, None, None, 0, shown)
