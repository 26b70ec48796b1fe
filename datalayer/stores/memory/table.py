"""One place's records: a dictionary and the order in which they are scanned."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Final

from datalayer.domains.record import ROUTING_BYTES, Key, Kind, Record, encode_cell

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN_BYTES: Final = 8


class Table:
    """Last-writer-wins map of one place.

    A *position* is what the scan order compares: the key itself, or, ``hashed``, a hash of the routing key before it
    (the token order of a ring). Records of one routing key lie together either way. ``ties``: equal versions are
    decided by the greater cell; otherwise the stored one stays.
    """

    __slots__ = ("_hashed", "_ties", "kinds", "positions", "records")

    def __init__(self, kinds: tuple[Kind, ...], *, hashed: bool, ties: bool) -> None:
        self.kinds: Final = {kind.name: kind for kind in kinds}
        self.records: Final[dict[Key, Record]] = {}
        self.positions: Final[dict[str, list[bytes]]] = {kind.name: [] for kind in kinds}
        self._hashed = hashed
        self._ties = ties

    def position(self, key: bytes) -> bytes:
        """Where a key, or the keys that begin with it (16 bytes at least), lie in the scan order."""
        if not self._hashed:
            return key
        return hashlib.sha256(key[:ROUTING_BYTES]).digest()[:_TOKEN_BYTES] + key

    def key_at(self, position: bytes) -> bytes:
        """The key of a position."""
        return position[_TOKEN_BYTES:] if self._hashed else position

    def wins(self, record: Record, stored: Record) -> bool:
        """Whether a record replaces what is stored."""
        if record.version != stored.version or not self._ties:
            return record.version > stored.version
        kind = self.kinds[record.kind]
        return encode_cell(kind, record).encode() > encode_cell(kind, stored).encode()

    def put(self, record: Record) -> bool:
        """Store a record if it wins; whether it did."""
        stored = self.records.get(record.ident)
        if stored is not None and not self.wins(record, stored):
            return False
        if stored is None:
            insort(self.positions[record.kind], self.position(record.key))
        self.records[record.ident] = record
        return True

    def remove(self, key: Key) -> Record | None:
        """Take a record out without a trace: what a program does that knows no tombstones."""
        record = self.records.pop(key, None)
        if record is not None:
            positions = self.positions[key[0]]
            del positions[bisect_left(positions, self.position(key[1]))]
        return record

    def between(self, kind: str, low: bytes, high: bytes, *, after: bytes | None, limit: int) -> list[bytes]:
        """At most ``limit`` positions from low to high, both included, beyond ``after``."""
        positions = self.positions[kind]
        start = bisect_left(positions, low) if after is None else bisect_right(positions, max(after, b""))
        return positions[start : min(bisect_right(positions, high), start + limit)]

    def of_routing(self, kind: str, routing: bytes) -> Iterator[Record]:
        """All records of one routing key, by key."""
        prefix = self.position(routing)
        positions = self.positions[kind]
        at = bisect_left(positions, prefix)
        while at < len(positions) and positions[at].startswith(prefix):
            yield self.records[kind, self.key_at(positions[at])]
            at += 1
