"""The sessions domain: logins that expire by themselves, and are revoked one by one or all of a user's at once.

A session's key is its user (the routing key) and half of a hash of its secret; the other half lies in the record. What
revokes all sessions of a user is one more record of the same routing key, the *cut*: a session counts while its mark is
above the cut's. Marks are times, of the session's making and of the cut plus CUT_LEAD, so that clocks that differ by
less do not leave a session alive; a session made after a cut reads it and marks itself just above.

Tombstones live as long as any version of their session could be accepted: to its fixed end. Cuts live for the longest
lifetime there is. So nothing that is late by whatever time brings a session back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias, cast
from uuid import UUID

from datalayer.domains.record import FINAL_LEAD, FieldSpec, Key, Kind, Record, parse_json
from datalayer.errors import AlreadyExists, NotFound
from datalayer.types import Session, SessionCut

if TYPE_CHECKING:
    from collections.abc import Mapping

SESSION: Final = Kind(
    "session",
    (
        FieldSpec("proof", "uuid"),
        FieldSpec("created_at", "int"),
        FieldSpec("mark", "int"),
        FieldSpec("ends_at", "int"),
        FieldSpec("expires_at", "int"),
        FieldSpec("attributes", "json"),
    ),
    expiry="expires_at",
)
CUT: Final = Kind(
    "session_cut",
    (FieldSpec("mark", "int"), FieldSpec("expires_at", "int")),
    # the next cut replaces it
    final=False,
    expiry="expires_at",
)
KINDS: Final = (SESSION, CUT)
LIFETIME_MAX_US: Final = 366 * 24 * 3600 * 1_000_000
"""The longest that any session may live, whatever a configuration says: cuts and tombstones are kept by it."""
CUT_LEAD_US: Final = 60_000_000
"""By how much clocks of processes may differ; ids from further ahead are refused by the library anyway."""
NIL: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class CreateSession:
    """Make a session; its id is half of a hash of 256 random bits, so nobody has it yet."""

    user_id: UUID
    id: UUID
    proof: bytes
    ttl_us: int
    lifetime_us: int
    attributes: str = "{}"
    fresh: ClassVar[bool] = False
    """The user's cut is read first."""
    creates: ClassVar[bool] = True
    deletes: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class TouchSession:
    """Let a live session expire ``ttl_us`` from now, at its fixed end at the latest; never earlier than it does already."""

    user_id: UUID
    id: UUID
    proof: bytes
    ttl_us: int
    fresh: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    deletes: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class RevokeSession:
    """End a session for good. Without a proof, whoever knows its id may."""

    user_id: UUID
    id: UUID
    proof: bytes | None = None
    fresh: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    deletes: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class RevokeSessions:
    """End every session of a user that was made before now."""

    user_id: UUID
    fresh: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    deletes: ClassVar[bool] = False


SessionMutation: TypeAlias = CreateSession | TouchSession | RevokeSession | RevokeSessions


def session_key(user_id: UUID, id: UUID) -> bytes:
    """The 32 bytes of a session's key: user (the routing key), then id."""
    return user_id.bytes + id.bytes


def keys_of(mutation: SessionMutation) -> tuple[Key, ...]:
    """The keys a mutation reads; it writes the first one at most."""
    cut = ("session_cut", mutation.user_id.bytes)
    if isinstance(mutation, RevokeSessions):
        return (cut,)
    session = ("session", session_key(mutation.user_id, mutation.id))
    return (session,) if isinstance(mutation, RevokeSession) else (session, cut)


def to_session(record: Record) -> Session:
    """The session of a canonical record."""
    proof, created_at, mark, ends_at, expires_at, attributes = cast(
        "tuple[bytes, int, int, int, int, str]", record.fields
    )
    return Session(
        UUID(bytes=record.key[:16]),
        UUID(bytes=record.key[16:]),
        created_at,
        expires_at,
        ends_at,
        parse_json(attributes),
        record.version,
        record.deleted,
        mark,
        proof,
    )


def to_entity(record: Record) -> Session | SessionCut:
    """The session or cut of a canonical record."""
    if record.kind == "session":
        return to_session(record)
    mark, expires_at = cast("tuple[int, int]", record.fields)
    return SessionCut(UUID(bytes=record.key), mark, expires_at, record.version, record.deleted)


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The tombstone of a record of which nothing else is known (a foreign hard delete), kept for the longest lifetime."""
    until = version + LIFETIME_MAX_US
    if kind == "session":
        return Record("session", key, version, True, (NIL, 0, 0, until, until, "{}"))
    assert kind == "session_cut", "the sessions domain has two kinds"
    return Record("session_cut", key, version, True, (0, until))


def is_live(session: Session, cut: SessionCut | None, now_us: int) -> bool:
    """Whether a session counts: neither revoked, alone or with all others, nor expired."""
    if session.deleted or session.expires_at_us <= now_us:
        return False
    return cut is None or cut.deleted or session.mark > cut.mark


def decide(
    mutation: SessionMutation, current: Mapping[Key, Record], now_us: int
) -> tuple[Session | SessionCut | None, tuple[Record, ...]]:
    """What a mutation does: (the session or cut afterwards, the records to apply). The reference for every store.

    NotFound: a touch of a session that does not count any more. A revoke of one that is not there changes nothing.
    """
    if isinstance(mutation, RevokeSessions):
        return _cut(mutation, current.get(keys_of(mutation)[0]), now_us)
    record = current.get(keys_of(mutation)[0])
    if isinstance(mutation, RevokeSession):
        return _revoke(mutation, record, now_us)
    stored = current.get(("session_cut", mutation.user_id.bytes))
    cut = None if stored is None else cast("SessionCut", to_entity(stored))
    if isinstance(mutation, CreateSession):
        return _create(mutation, record, cut, now_us)
    return _touch(mutation, record, cut, now_us)


def blocked(mutation: SessionMutation, pending: Record | None) -> Session:
    """The answer to a mutation that met a write under way: a delete (None), or of a create another create."""
    if pending is not None and isinstance(mutation, CreateSession):
        session = to_session(pending)
        if session.proof == mutation.proof:
            return session
        raise AlreadyExists("a session with this id exists already")
    raise NotFound("the session was revoked")


def _create(
    mutation: CreateSession, record: Record | None, cut: SessionCut | None, now_us: int
) -> tuple[Session, tuple[Record, ...]]:
    if record is not None:
        # a repeat, by a router that was refused after the write had been admitted
        return blocked(mutation, None if record.deleted else record), ()
    ends_at = now_us + mutation.lifetime_us
    mark = now_us if cut is None or cut.deleted else max(now_us, cut.mark + 1)
    fields = (mutation.proof, now_us, mark, ends_at, min(now_us + mutation.ttl_us, ends_at), mutation.attributes)
    made = Record("session", session_key(mutation.user_id, mutation.id), now_us, False, fields)
    return to_session(made), (made,)


def _touch(
    mutation: TouchSession, record: Record | None, cut: SessionCut | None, now_us: int
) -> tuple[Session, tuple[Record, ...]]:
    session = None if record is None else to_session(record)
    if record is None or session is None or session.proof != mutation.proof or not is_live(session, cut, now_us):
        raise NotFound("the session does not exist any more")
    until = min(now_us + mutation.ttl_us, session.ends_at_us)
    if until <= session.expires_at_us:
        return session, ()
    fields = (*record.fields[:4], until, record.fields[5])
    made = record._replace(version=max(record.version + 2, now_us), fields=fields)
    return to_session(made), (made,)


def _revoke(mutation: RevokeSession, record: Record | None, now_us: int) -> tuple[Session | None, tuple[Record, ...]]:
    if record is None:
        return None, ()
    session = to_session(record)
    if session.deleted or (mutation.proof is not None and session.proof != mutation.proof):
        return session, ()
    # Until its fixed end some older version of it, still on its way, might be accepted.
    fields = (NIL, session.created_at_us, session.mark, session.ends_at_us, session.ends_at_us, "{}")
    version = max(record.version + 2, now_us) + FINAL_LEAD
    made = record._replace(version=version, deleted=True, fields=fields)
    return to_session(made), (made,)


def _cut(mutation: RevokeSessions, record: Record | None, now_us: int) -> tuple[SessionCut, tuple[Record, ...]]:
    before = 0 if record is None or record.deleted else cast("int", record.fields[0])
    # above that of every session made so far: by a clock ahead of this one, or just above the cut before
    mark = max(now_us + CUT_LEAD_US, before + 2)
    version = now_us if record is None else max(record.version + 2, now_us)
    # The last session that it ends began at the mark at the latest.
    made = Record("session_cut", mutation.user_id.bytes, version, False, (mark, mark + LIFETIME_MAX_US))
    return cast("SessionCut", to_entity(made)), (made,)
