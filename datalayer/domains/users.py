"""The users domain: users, and the claims that make usernames and e-mail addresses unique.

A claim is a record of its own, routed by its own value, so that uniqueness moves with the same port as everything
else and no UNIQUE index on a copy can trip over a coalesced swap of two names.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast
from uuid import UUID

from datalayer.domains.record import FINAL_LEAD, FieldSpec, Key, Kind, Record, canonical_json, parse_json
from datalayer.errors import AlreadyExists, Conflict, NotFound
from datalayer.ids import id_time_us
from datalayer.types import User

if TYPE_CHECKING:
    from collections.abc import Mapping

USER: Final = Kind(
    "user",
    (
        FieldSpec("username", "text"),
        FieldSpec("email", "text", nullable=True),
        FieldSpec("display_name", "text"),
        FieldSpec("status", "text"),
        FieldSpec("updated_at", "int"),
        FieldSpec("attributes", "json"),
        FieldSpec("region", "text", nullable=True),
    ),
)
CLAIM: Final = Kind("claim", (FieldSpec("owner", "uuid"),), final=False)
KINDS: Final = (USER, CLAIM)
ClaimField = Literal["username", "email"]
_CLAIM_TAGS: Final[dict[str, bytes]] = {"username": b"u", "email": b"e"}
CLAIM_FIELDS: Final[dict[bytes, ClaimField]] = {b"u": "username", b"e": "email"}


@dataclass(frozen=True, slots=True)
class CreateUser:
    """Create a user and claim its unique values; a retry with the same id and values is the same write."""

    id: UUID
    username: str
    email: str | None = None
    display_name: str = ""
    status: str = "active"
    attributes: str = "{}"
    region: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateUser:
    """Change the given fields; UNSET leaves one as it is. ``expected_version`` makes it a compare-and-set."""

    id: UUID
    changes: tuple[tuple[str, str | None], ...]
    """(field name, new value) pairs; attributes as canonical JSON text."""
    expected_version: int | None = None
    lies_in: str | None = None
    """The region of the place that is asked, where it has one: Elsewhere if the user is of another."""


@dataclass(frozen=True, slots=True)
class DeleteUser:
    """Delete for good and release the unique values."""

    id: UUID
    expected_version: int | None = None


UserMutation: TypeAlias = CreateUser | UpdateUser | DeleteUser


@dataclass(frozen=True, slots=True)
class Swap:
    """Store one record where the stored one still has the version that was seen (None: where there is none).

    One step of a change that lies in several slot groups. Conflict when it has another version.
    """

    record: Record
    seen: int | None

    @property
    def id(self) -> UUID:
        """The user it is about, as errors name it: of a claim its owner."""
        raw = self.record.key if self.record.kind == "user" else cast("bytes", self.record.fields[0])
        return UUID(bytes=raw)


def normalise(field: str, value: str) -> str:
    """The form under which a username or e-mail address is unique: NFKC and case-folded, white space stripped."""
    del field
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value.strip()).casefold())


def claim_key(field: str, value: str) -> bytes:
    """The key of a claim: of sha256 over tag and normalised value 16 bytes (its routing key), the tag, the rest in hex.

    The value itself is not kept: claims lie wherever their hash puts them, also outside their user's region.
    """
    tag = _CLAIM_TAGS[field]
    hashed = hashlib.sha256(tag + normalise(field, value).encode()).digest()
    return hashed[:16] + tag + hashed[16:].hex().encode()


def claim_of(key: bytes) -> tuple[ClaimField, str]:
    """(field, hash in hex) of a claim's key: the primary key of its row."""
    return CLAIM_FIELDS[key[16:17]], key[17:].decode()


def claim_key_of(field: str, routing: bytes, hashed: str) -> bytes:
    """The key of a claim's row."""
    return routing + _CLAIM_TAGS[field] + hashed.encode()


def claim_record(key: bytes, owner: UUID, version: int, *, deleted: bool = False) -> Record:
    """A claim held by its owner, or released."""
    return Record("claim", key, version, deleted, (owner.bytes,))


def claim_keys(username: str | None, email: str | None) -> tuple[bytes, ...]:
    """The claims of a user with these values."""
    keys = [] if username is None else [claim_key("username", username)]
    if email is not None:
        keys.append(claim_key("email", email))
    return tuple(keys)


def to_record(user: User) -> Record:
    """The canonical record of a user."""
    return Record(
        "user",
        user.id.bytes,
        user.version,
        user.deleted,
        (
            user.username,
            user.email,
            user.display_name,
            user.status,
            user.updated_at_us,
            canonical_json(user.attributes),
            user.region,
        ),
    )


def to_user(record: Record) -> User:
    """The user of a canonical record."""
    username, email, display_name, status, updated_at, attributes, region = cast(
        "tuple[str, str | None, str, str, int, str, str | None]", record.fields
    )
    return User(
        UUID(bytes=record.key),
        username,
        email,
        display_name,
        status,
        updated_at,
        record.deleted,
        record.version,
        parse_json(attributes),
        region,
    )


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The tombstone of a record of which nothing else is known (a foreign hard delete)."""
    if kind == "claim":
        return Record("claim", key, version, True, (bytes(16),))
    return Record("user", key, version, True, ("", None, "", "deleted", 0, "{}", None))


def wanted_claims(mutation: UserMutation, stored: User | None) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """(claims to take, claims to release) of a mutation, given the user as stored."""
    before = () if stored is None or stored.deleted else claim_keys(stored.username, stored.email)
    if isinstance(mutation, CreateUser):
        after = claim_keys(mutation.username, mutation.email)
    elif isinstance(mutation, DeleteUser):
        after = ()
    else:
        changes = dict(mutation.changes)
        assert stored is not None, "an update needs the stored user"
        username = cast("str", changes.get("username", stored.username))
        after = claim_keys(username, changes.get("email", stored.email))
    return tuple(k for k in after if k not in before), tuple(k for k in before if k not in after)


def keys_of(mutation: UserMutation | Swap) -> tuple[Key, ...]:
    """The keys a mutation reads first; the claims follow from the stored user (``wanted_claims``)."""
    return (mutation.record.ident if isinstance(mutation, Swap) else ("user", mutation.id.bytes),)


def decide(
    mutation: UserMutation | Swap, current: Mapping[Key, Record], now_us: int
) -> tuple[User | Record, tuple[Record, ...]]:
    """What a mutation does: (the user afterwards, the records to apply). The reference for every store.

    ``current`` holds the user and every claim of ``wanted_claims``. Raises NotFound, Conflict (version differs),
    AlreadyExists with the field.
    """
    if isinstance(mutation, Swap):
        check_seen(mutation, current.get(mutation.record.ident))
        return mutation.record, (mutation.record,)
    record = current.get(("user", mutation.id.bytes))
    stored = None if record is None else to_user(record)
    if isinstance(mutation, CreateUser):
        if stored is not None:
            return _created_again(mutation, stored), ()
        user = created(mutation)
    else:
        if stored is None or (stored.deleted and not isinstance(mutation, DeleteUser)):
            raise NotFound(f"user {mutation.id} does not exist")
        if stored.deleted:
            return stored, ()
        check_expected(mutation, stored)
        user = changed(mutation, stored, now_us)
    take, release = wanted_claims(mutation, stored)
    records = [to_record(user)]
    for key in take:
        claim = current.get(("claim", key))
        if claim is not None and not claim.deleted and claim.fields[0] != user.id.bytes:
            raise taken(key, mutation)
        records.append(claim_record(key, user.id, next_version(claim, now_us)))
    for key in release:
        claim = current.get(("claim", key))
        if claim is not None and not claim.deleted and claim.fields[0] == user.id.bytes:
            records.append(claim_record(key, user.id, next_version(claim, now_us), deleted=True))
    return user, tuple(records)


def check_seen(mutation: Swap, stored: Record | None) -> None:
    """Raise Conflict when the stored record is not the one that was seen."""
    version = None if stored is None else stored.version
    if version != mutation.seen:
        raise Conflict(f"{mutation.record.kind} {mutation.id} changed meanwhile", current_version=version or 0)


def taken(key: bytes, mutation: UserMutation) -> AlreadyExists:
    """The error for a unique value that belongs to somebody else; ``key`` is the claim that the mutation wants."""
    field = CLAIM_FIELDS[key[16:17]]
    value = dict(mutation.changes)[field] if isinstance(mutation, UpdateUser) else getattr(mutation, field)
    return AlreadyExists(f"the {field} {value!r} is taken", field=field)


class Elsewhere(Conflict):
    """The row that was met is not where its user lies."""


def pointer(key: bytes, region: str, version: int) -> Record:
    """What is left of a user where the row lies no more: a tombstone that names the region where it lies."""
    return Record("user", key, version, True, ("", None, "", "moved", 0, "{}", region))


def stands_for_nothing(record: Record) -> bool:
    """Whether a record of any kind is as good as none: a tombstone, but not a pointer."""
    return record.deleted and (record.kind != "user" or home_region(record) is None)


def home_region(record: Record) -> str | None:
    """The region that a user's record names."""
    return cast("str | None", record.fields[-1])


def check_expected(mutation: UpdateUser | DeleteUser, stored: User) -> None:
    """Raise Conflict when the caller expected another version, Elsewhere when another place has the user."""
    asked = mutation.lies_in if isinstance(mutation, UpdateUser) else None
    if asked is not None and stored.region not in {None, asked}:
        raise Elsewhere(f"user {stored.id} lies in region {stored.region!r}, not {asked!r}")
    expected = mutation.expected_version
    if expected is not None and expected != stored.version:
        msg = f"user {stored.id} is at version {stored.version}, not {expected}"
        raise Conflict(msg, current_version=stored.version)


def created(mutation: CreateUser) -> User:
    """The user a first create makes; version = the id's own time."""
    at = id_time_us(mutation.id)
    return User(
        mutation.id,
        mutation.username,
        mutation.email,
        mutation.display_name,
        mutation.status,
        at,
        False,
        at,
        parse_json(mutation.attributes),
        mutation.region,
    )


def changed(mutation: UpdateUser | DeleteUser, stored: User, now_us: int) -> User:
    """The user after an update or delete."""
    version = max(stored.version + 2, now_us)
    if isinstance(mutation, DeleteUser):
        # Without a region: a tombstone that names one says that the user lies there.
        return User(stored.id, "", None, "", "deleted", now_us, True, version + FINAL_LEAD, {})
    changes = dict(mutation.changes)
    attributes = changes.get("attributes")
    return User(
        stored.id,
        cast("str", changes.get("username", stored.username)),
        changes.get("email", stored.email),
        cast("str", changes.get("display_name", stored.display_name)),
        cast("str", changes.get("status", stored.status)),
        now_us,
        False,
        version,
        stored.attributes if attributes is None else parse_json(attributes),
        changes.get("region", stored.region),
    )


def same_create(mutation: CreateUser, stored: User) -> bool:
    """Whether a create of a known id is a retry of the write that made it."""
    if stored.deleted and stored.updated_at_us == 0:
        return False  # given up, or removed by another program: it never was this create's
    if stored.version != id_time_us(mutation.id):
        return True
    return (stored.username, stored.email) == (mutation.username, mutation.email)


def given_up(owner: UUID, now_us: int) -> Record:
    """The tombstone that keeps a create whose caller was given up from ever finishing.

    ``updated_at`` 0 tells it from the tombstone of a delete: a retry of that create must not look like a success.
    """
    return tombstone("user", owner.bytes, max(now_us, id_time_us(owner) + 2) + FINAL_LEAD)


def _created_again(mutation: CreateUser, stored: User) -> User:
    if not same_create(mutation, stored):
        raise AlreadyExists(f"user {mutation.id} exists already with other values", field="id")
    return stored


def next_version(claim: Record | None, now_us: int) -> int:
    """The version of the record that follows a stored one."""
    return now_us if claim is None else max(claim.version + 2, now_us)
