"""One line of an import of users as a mutation: its id follows from the line alone, so that a repeat is the same write.

A UUIDv7 as ``id`` is kept. Any other ``id`` - or, without one, the username in the form in which it is unique - is
hashed into an id whose time is ``created_at``; where that is not told, the user counts as created in the year 2000.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.record import check_text
from datalayer.domains.users import CreateUser, normalise
from datalayer.errors import InvalidArgument
from datalayer.ids import check_id, id_time_us, uuid7_at
from datalayer.importing.lines import checked_text, json_object, time_us
from datalayer.repositories.arguments import as_attributes
from datalayer.repositories.users import EMAIL_BYTES, NAME_BYTES, TEXT_BYTES, check_region, check_unique

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS: Final = frozenset({"username", "email", "display_name", "id", "created_at", "attributes", "region"})
UNKNOWN_SINCE_US: Final = 946_684_800_000_000
"""2000-01-01: the time of users whose line does not say when they were created."""


def user_id(name: object, created_at_us: int = UNKNOWN_SINCE_US) -> UUID:
    """The id of an imported user whose line has this ``id`` (any JSON value but a UUIDv7) and ``created_at``."""
    digest = hashlib.blake2b(f"user\x00{checked_text('id', name)}".encode(), digest_size=8).digest()
    return uuid7_at(created_at_us, int.from_bytes(digest, "big"))


def user_of(raw: bytes, *, now_us: int) -> tuple[CreateUser, frozenset[str]]:
    """The create of a line, and the keys of it that are not imported.

    Raises InvalidArgument, in one sentence without the line's text.
    """
    fields = json_object(raw)
    if fields.get("username") is None:
        raise InvalidArgument("username missing")
    username = check_unique("username", fields["username"], NAME_BYTES)
    email = fields.get("email")
    display_name, attributes = fields.get("display_name"), fields.get("attributes")
    if attributes is not None and not isinstance(attributes, dict):
        raise InvalidArgument("attributes must be a JSON object")
    create = CreateUser(
        _id_of(fields, username, now_us),
        username,
        None if email is None else check_unique("email", email, EMAIL_BYTES),
        "" if display_name is None else check_text(display_name, "display_name", TEXT_BYTES),
        attributes=as_attributes(attributes),
        region=None if fields.get("region") is None else check_region(fields["region"]),
    )
    return create, frozenset(fields.keys() - KEYS)


def _id_of(fields: Mapping[str, Any], username: str, now_us: int) -> UUID:
    told, foreign = fields.get("created_at"), fields.get("id")
    created_at_us = UNKNOWN_SINCE_US if told is None else time_us(told, now_us, "created_at")
    kept = _uuid7(foreign)
    if kept is None:
        return user_id(f"username\x00{normalise('username', username)}" if foreign is None else foreign, created_at_us)
    check_id(kept, now_us)
    if told is not None and abs(id_time_us(kept) - created_at_us) > 1000:
        raise InvalidArgument("created_at is not the time that the id carries; leave it out")
    return kept


def _uuid7(foreign: object) -> UUID | None:
    try:
        found = UUID(foreign) if isinstance(foreign, str) else None
    except ValueError:
        return None
    return found if found is not None and found.version == 7 else None
