"""What a ledger of users holds: how users and look-ups of names are recorded, and the board that follows all ledgers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.testing.ledger import NO_TOKEN, Board, Event, Flag, Op, Seen
from datalayer.testing.user_values import FIELDS, UNCHANGED, USERS, Sets, names_of, sets_of, user_token
from datalayer.testing.values import Torn

if TYPE_CHECKING:
    import random
    from pathlib import Path
    from uuid import UUID

    from datalayer.types import User

_TAGS: Final = {field: field.encode().ljust(16, b"\0") for field in FIELDS}
_FIELD_OF: Final = {tag: field for field, tag in _TAGS.items()}
_RECENT: Final = 256


def key_of(user_id: UUID) -> bytes:
    """The ledger's key of a user."""
    return USERS + user_id.bytes


def name_key(field: str, number: int) -> bytes:
    """The ledger's key of a look-up by a name."""
    return _TAGS[field] + number.to_bytes(16, "big")


def name_of_key(key: bytes) -> tuple[str, int]:
    """(field, number) of a look-up."""
    return _FIELD_OF[key[:16]], int.from_bytes(key[16:], "big")


def seen(user: User) -> Seen:
    """A user as the ledger records it."""
    key = key_of(user.id)
    try:
        return Seen(key, user.version, user_token(user), note=names_of(user).note)
    except Torn as error:
        return Seen(key, user.version, NO_TOKEN, str(error))


@dataclass(slots=True)
class Known:
    """What is known of one user: the newest acknowledged version with its names, and whether a delete was acknowledged."""

    version: int
    names: Sets
    deleted: bool = False


class UserBoard(Board):
    """What all processes together have had acknowledged of users, followed as it grows."""

    def __init__(self, directory: Path, *, own: str = "") -> None:
        super().__init__(directory, own=own)
        self.users: dict[bytes, Known] = {}
        self.freed: dict[str, deque[int]] = {field: deque(maxlen=_RECENT) for field in FIELDS}
        """Names that an acknowledged delete or change has given back, the last ones."""
        self._live: list[bytes] = []
        self._places: dict[bytes, int] = {}

    def pick(self, rng: random.Random, *, recent: float = 0.5) -> bytes | None:
        """The id of a user, as far as known not deleted; ``recent``: how often one that others changed last."""
        if self.recent and rng.random() < recent:
            id_ = self.recent[-1 - min(int(rng.expovariate(0.15)), len(self.recent) - 1)]
            if not self.users[id_].deleted:
                return id_
        return rng.choice(self._live) if self._live else None

    def expected(self, key: bytes) -> int:
        """The version acknowledged so far; 0 when none is known or the user is deleted."""
        known = self.users.get(key[16:])
        return 0 if known is None or known.deleted else known.version

    def _take(self, event: Event) -> None:
        id_ = event.key[16:]
        known = self.users.get(id_)
        if known is None:
            known = self.users[id_] = Known(0, Sets())
            self._places[id_] = len(self._live)
            self._live.append(id_)
        if event.op is Op.DELETE or Flag.ABSENT in event.flags:
            self._delete(id_, known)
        elif event.version > known.version:
            names = sets_of(event.text) or known.names
            self._free(known.names, names)
            known.version, known.names = event.version, names
        if Flag.BASELINE not in event.flags and event.process != self._own:
            self.recent.append(id_)

    def _delete(self, id_: bytes, known: Known) -> None:
        if known.deleted:
            return
        known.deleted = True
        self._free(known.names, Sets())
        place, last = self._places.pop(id_), self._live.pop()
        if last != id_:
            self._live[place], self._places[last] = last, place

    def _free(self, before: Sets, after: Sets) -> None:
        for field in FIELDS:
            number: int = getattr(before, field)
            if number > 0 and number not in {UNCHANGED, getattr(after, field)}:
                self.freed[field].append(number)
