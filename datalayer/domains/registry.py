"""The movable domains by name: what the engine needs to know of each, and nothing else does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains import catalogue, conversations, listings, messages, search, sessions, users

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.domains.record import Key, Kind, Record


@dataclass(frozen=True, slots=True)
class Domain:
    """One movable domain."""

    name: str
    kinds: tuple[Kind, ...]
    needs_compare_and_set: bool
    keys_of: Callable[[Any], tuple[Key, ...]]
    decide: Callable[[Any, Mapping[Key, Record], int], tuple[Any, tuple[Record, ...]]]
    to_entity: Callable[[Record], Any]
    tombstone: Callable[[str, bytes, int], Record]
    blocked: Callable[[Any, Record | None], Any] | None = None
    """Of a domain that a last-writer store may hold: the answer to a mutation that met a write under way (a delete when
    None, else of a create another create); raises NotFound or AlreadyExists."""

    def kind(self, name: str) -> Kind:
        """The kind of that name."""
        return next(kind for kind in self.kinds if kind.name == name)


def _message_tombstone(kind: str, key: bytes, version: int) -> Record:
    assert kind == "message", "the messages domain has one kind"
    return messages.tombstone(key, version)


def _no_mutation(*_: object) -> Any:
    raise AssertionError("a projection has no mutations: its records follow from those of other domains")


def _record_itself(record: Record) -> Record:
    return record


DOMAINS: Final[dict[str, Domain]] = {
    "messages": Domain(
        "messages",
        messages.KINDS,
        needs_compare_and_set=False,
        keys_of=messages.keys_of,
        decide=messages.decide,
        to_entity=messages.to_message,
        tombstone=_message_tombstone,
        blocked=messages.blocked,
    ),
    "users": Domain(
        "users",
        users.KINDS,
        needs_compare_and_set=True,
        keys_of=users.keys_of,
        decide=users.decide,
        to_entity=users.to_user,
        tombstone=users.tombstone,
    ),
    "conversations": Domain(
        "conversations",
        conversations.KINDS,
        needs_compare_and_set=True,
        keys_of=conversations.keys_of,
        decide=conversations.decide,
        to_entity=conversations.to_entity,
        tombstone=conversations.tombstone,
    ),
    "listings": Domain(
        "listings",
        listings.KINDS,
        needs_compare_and_set=True,
        keys_of=listings.keys_of,
        decide=listings.decide,
        to_entity=listings.to_listed,
        tombstone=listings.tombstone,
    ),
    "search": Domain(
        "search",
        search.KINDS,
        needs_compare_and_set=False,
        keys_of=_no_mutation,
        decide=_no_mutation,
        to_entity=_record_itself,
        tombstone=search.tombstone,
    ),
    "catalogue": Domain(
        "catalogue",
        catalogue.KINDS,
        needs_compare_and_set=True,
        keys_of=catalogue.keys_of,
        decide=catalogue.decide,
        to_entity=catalogue.to_entity,
        tombstone=catalogue.tombstone,
    ),
    "sessions": Domain(
        "sessions",
        sessions.KINDS,
        needs_compare_and_set=False,
        keys_of=sessions.keys_of,
        decide=sessions.decide,
        to_entity=sessions.to_entity,
        tombstone=sessions.tombstone,
        blocked=sessions.blocked,
    ),
}
KINDS: Final[dict[str, Kind]] = {kind.name: kind for domain in DOMAINS.values() for kind in domain.kinds}
"""Every kind by its name, which no two domains share."""
