"""Names of keys: prefix of the deployment, domain, attempt, and the hash tag that a cluster places them by.

The tag is the slot of the routing key in hex (`datalayer.ids.slot_of`, 4,096 of them), so that all keys of one routing
key, and an index of all routing keys of one slot, lie together on one node and one script may change them at once.
"""

from __future__ import annotations

from datalayer.ids import SLOTS, slot_of


def tag(routing: bytes) -> bytes:
    """The hash tag of a routing key, braces included."""
    return b"{%03x}" % slot_of(routing)


def tag_of_slot(slot: int) -> bytes:
    """The hash tag of a slot."""
    assert 0 <= slot < SLOTS, "a slot is 0 to 4095"
    return b"{%03x}" % slot


class Names:
    """The names of one place: a domain at an attempt, under the prefix of a backend."""

    __slots__ = ("_begin",)

    def __init__(self, prefix: str, domain: str, attempt: int) -> None:
        self._begin = f"{prefix}:{domain}:{attempt}:".encode()

    @property
    def begin(self) -> bytes:
        """What every key of the place begins with."""
        return self._begin

    def key(self, routing: bytes, rest: bytes) -> bytes:
        """A key beside all others of the routing key."""
        return b"%s{%03x}:%s" % (self._begin, slot_of(routing), rest)

    def of_slot(self, slot: int, rest: bytes) -> bytes:
        """A key beside all routing keys of a slot."""
        return b"%s{%03x}:%s" % (self._begin, slot, rest)

    def place(self) -> bytes:
        """The key that says that this place exists."""
        return self._begin + b"{place}"
