"""Who had which name when: what a ledger of users says about usernames and e-mail addresses.

Every write that sets a name is a *setter*. Versions of a user rise in the order of its writes, so the setters that
surely happened part a user's life into stretches of one name each. A user *surely* has the name from the moment at
which that was acknowledged or shown until the next setter began, or a later look still showed it. A setter of unknown
outcome ends what is sure where it began, unless a look shows that it happened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from datalayer.errors import Outcome
from datalayer.ids import id_time_us
from datalayer.testing.ledger import Event, Flag, Kind, Op
from datalayer.testing.recorded import NEVER
from datalayer.testing.user_board import name_of_key
from datalayer.testing.user_values import FIELDS, UNCHANGED, Sets, sets_of

if TYPE_CHECKING:
    from collections.abc import Iterator

GONE: Final = 1 << 63
"""The version of a delete: above every other."""
_REFUSED: Final = "AlreadyExists."


@dataclass(slots=True)
class NameWrite:
    """One intended change of a user, with what it does to the names."""

    op: Op
    sets: Sets
    token: bytes
    process: str
    began_ns: int
    expected: int = 0
    ended_ns: int = NEVER
    """When it was first acknowledged or shown."""
    version: int = 0
    attempts: int = 1
    refused: int = 0
    failed_ns: int = 0

    @property
    def applied(self) -> bool:
        """Whether it surely happened."""
        return self.ended_ns != NEVER

    @property
    def possible(self) -> bool:
        """Whether it may have happened."""
        return self.applied or self.refused < self.attempts

    def sets_field(self, name: str) -> bool:
        """Whether it changes this name, or takes it away."""
        return self.op is Op.DELETE or getattr(self.sets, name) != UNCHANGED

    def number(self, name: str) -> int:
        """What it sets; UNCHANGED for a delete too."""
        return UNCHANGED if self.op is Op.DELETE else int(getattr(self.sets, name))


class Shown(NamedTuple):
    """A live user as one call showed it."""

    began_ns: int
    ended_ns: int
    version: int
    names: Sets
    token: bytes
    final: bool


class NameLook(NamedTuple):
    """One look-up by a name; ``user`` is None when nobody was found."""

    name: str
    number: int
    process: str
    began_ns: int
    ended_ns: int
    user: bytes | None
    final: bool


class Refusal(NamedTuple):
    """A write that was told that a name is taken."""

    user: bytes
    name: str
    number: int
    process: str
    began_ns: int
    ended_ns: int


class Stretch(NamedTuple):
    """From when until when a user surely has a name."""

    user: bytes
    began_ns: int
    ended_ns: int


class Claim(NamedTuple):
    """From when until when a user may have held the claim of a name, or been about to."""

    user: bytes
    began_ns: int
    ended_ns: int


@dataclass(slots=True)
class NameStory:
    """The writes and appearances of one user."""

    user: bytes
    writes: list[NameWrite] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    def settle(self) -> None:
        """Writes of unknown outcome whose value was shown have happened; so has the create of whoever was shown."""
        first: dict[bytes, Shown] = {}
        for look in self.shown:
            earlier = first.get(look.token)
            if earlier is None or look.ended_ns < earlier.ended_ns:
                first[look.token] = look
        for write in self.writes:
            if write.applied or write.op is Op.DELETE:
                continue
            if write.op is Op.APPEND and self.shown:
                write.ended_ns = min(look.ended_ns for look in self.shown)
            elif write.token in first:
                write.ended_ns = first[write.token].ended_ns
                write.version = min(look.version for look in self.shown if look.token == write.token)

    def setters(self, name: str) -> list[NameWrite]:
        """Those that surely happened, in their order.

        Of several deletes (one that found a tombstone succeeds, too) nobody knows which one it was: by the first that
        began the user may be gone. Ledgers come file by file, so the order of ``writes`` says nothing.
        """
        found = [write for write in self.writes if write.applied and write.sets_field(name)]
        return sorted(found, key=lambda write: (write.version, write.began_ns))

    def doubtful(self, name: str) -> list[NameWrite]:
        """Setters that may have happened or may yet."""
        return [write for write in self.writes if write.possible and not write.applied and write.sets_field(name)]

    def stretches(self, name: str) -> Iterator[tuple[int, Stretch]]:
        """(number, from when to when it is sure) of each name this user has had."""
        setters, doubtful = self.setters(name), self.doubtful(name)
        versions = [write.version for write in setters]
        looks: defaultdict[int, list[Shown]] = defaultdict(list)
        for look in self.shown:
            looks[bisect_right(versions, look.version) - 1].append(look)
        for at, write in enumerate(setters):
            number = write.number(name)
            if number <= 0:
                continue
            mine = [look for look in looks[at] if getattr(look.names, name) == number]
            began = min([write.ended_ns, *(look.ended_ns for look in mine)])
            ended = setters[at + 1].began_ns if at + 1 < len(setters) else NEVER
            ended = max([ended, *(look.began_ns for look in mine)])
            for other in doubtful:
                if other.number(name) != number:
                    ended = min(ended, other.began_ns)
            if ended > began:
                yield number, Stretch(self.user, began, ended)

    def claims(self, name: str) -> Iterator[tuple[int, Claim]]:
        """(number, when it may have been claimed) of every write that set this name."""
        setters = self.setters(name)
        doubt = bool(self.doubtful(name))
        for write in self.writes:
            number = write.number(name)
            if number <= 0:
                continue
            if write.applied:
                later = setters[setters.index(write) + 1 :]
                ended = NEVER if doubt or not later else later[0].ended_ns
            else:
                ended = NEVER if write.possible else write.failed_ns
            yield number, Claim(self.user, write.began_ns, ended)


@dataclass(slots=True)
class Names:
    """Everything a ledger says about names."""

    stories: dict[bytes, NameStory] = field(default_factory=dict)
    looks: list[NameLook] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    _open: dict[tuple[str, int], NameWrite] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Take in one event; those of one process come in the order it wrote them."""
        if event.op is Op.LOOK_UP and event.kind is Kind.READ:
            self._look_up(event)
        elif event.kind is Kind.BEGIN:
            self._begin(event)
        elif event.kind is Kind.ACK:
            self._acknowledge(event)
        elif event.kind is Kind.FAIL:
            self._fail(event)
        elif event.kind in {Kind.READ, Kind.ITEM}:
            self._show(event)

    def strangers(self) -> frozenset[bytes]:
        """Users that were shown, but that nobody has begun to create; they are left out from here on."""
        found = frozenset(user for user, story in self.stories.items() if not story.writes)
        for user in found:
            del self.stories[user]
        return found

    def settle(self) -> None:
        """To be called once after the last event."""
        for story in self.stories.values():
            story.settle()

    def _story(self, event: Event) -> NameStory:
        return self.stories.setdefault(event.key[16:], NameStory(event.key[16:]))

    def _look_up(self, event: Event) -> None:
        name, number = name_of_key(event.key)
        user = None if Flag.ABSENT in event.flags else event.token
        final = Flag.FINAL in event.flags
        self.looks.append(NameLook(name, number, event.process, event.began_ns, event.at_ns, user, final))

    def _begin(self, event: Event) -> None:
        story = self._story(event)
        if event.op is Op.APPEND:
            for earlier in story.writes:
                if earlier.op is Op.APPEND and earlier.token == event.token:
                    earlier.began_ns = min(earlier.began_ns, event.began_ns)
                    earlier.attempts += 1
                    self._open[event.process, event.seq] = earlier
                    return
        sets = sets_of(event.text) or Sets()
        write = NameWrite(event.op, sets, event.token, event.process, event.began_ns, event.expected)
        if event.op is Op.APPEND:
            write.version = id_time_us(UUID(bytes=story.user))
        elif event.op is Op.DELETE:
            write.version = GONE
        story.writes.append(write)
        self._open[event.process, event.seq] = write

    def _acknowledge(self, event: Event) -> None:
        write = self._open[event.process, event.seq]
        write.ended_ns = min(write.ended_ns, event.at_ns)
        if event.op is Op.EDIT:
            write.version = event.version
        if event.op is not Op.DELETE and Flag.ABSENT not in event.flags:
            self._show(event)

    def _fail(self, event: Event) -> None:
        write = self._open.get((event.process, event.seq))
        if write is None:
            return
        write.failed_ns = max(write.failed_ns, event.at_ns)
        if event.outcome is Outcome.NOT_APPLIED:
            write.refused += 1
        name = event.text.removeprefix(_REFUSED)
        if event.text.startswith(_REFUSED) and name in FIELDS:
            found = Refusal(event.key[16:], name, write.number(name), event.process, event.began_ns, event.at_ns)
            self.refusals.append(found)

    def _show(self, event: Event) -> None:
        names = sets_of(event.text)
        if names is None or event.flags & (Flag.TORN | Flag.ABSENT):
            return
        final = Flag.FINAL in event.flags
        look = Shown(event.began_ns, event.at_ns, event.version, names, event.token, final)
        self._story(event).shown.append(look)
