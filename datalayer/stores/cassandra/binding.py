"""Values of prepared statements, serialised by us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cassandra.query import BoundStatement

if TYPE_CHECKING:
    from collections.abc import Sequence


def bound(prepared: Any, values: Sequence[bytes], routing: bytes | None = None) -> Any:
    """A statement with its values serialised already; ``routing`` is the serialised partition key."""
    statement = BoundStatement(prepared, routing_key=routing)
    statement.values = values
    return statement


def packed_list(items: Sequence[bytes]) -> bytes:
    """The serialised form of a list, as ``IN ?`` takes it."""
    parts = [len(items).to_bytes(4, "big")]
    for item in items:
        parts += (len(item).to_bytes(4, "big"), item)
    return b"".join(parts)
