"""Running decide() over any reader of records: what a transaction does under its locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datalayer.domains import catalogue, conversations, users
from datalayer.domains.registry import DOMAINS
from datalayer.stores.base import Executed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from datalayer.domains.record import Key, Record


def execute(
    domain: str,
    mutation: Any,
    read: Callable[[Key], Record | None],
    now_us: int,
    *,
    of_routing: Callable[[str, bytes], Iterable[Record]] = lambda _kind, _routing: (),
) -> Executed:
    """What a mutation does to the records that ``read`` and ``of_routing`` see; raises what decide() raises."""
    definition = DOMAINS[domain]
    current = _present(read, definition.keys_of(mutation))
    if domain == "users" and not isinstance(mutation, users.Swap):
        record = current.get(("user", mutation.id.bytes))
        stored = None if record is None else users.to_user(record)
        if stored is not None or isinstance(mutation, users.CreateUser):
            take, release = users.wanted_claims(mutation, stored)
            current |= _present(read, [("claim", key) for key in (*take, *release)])
    if domain == "conversations" and conversations.needs_all_members(mutation):
        current |= {record.ident: record for record in of_routing("member", mutation.id.bytes)}
    if domain == "catalogue":
        let_go = catalogue.referred(mutation, current.get(definition.keys_of(mutation)[0]))
        current |= {} if let_go is None else _present(read, [let_go])
    entity, records = definition.decide(mutation, current, now_us)
    return Executed(entity, records)


def _present(read: Callable[[Key], Record | None], keys: Iterable[Key]) -> dict[Key, Record]:
    found = ((key, read(key)) for key in keys)
    return {key: record for key, record in found if record is not None}
