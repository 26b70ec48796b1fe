"""The oracle over users: rows are judged key by key as messages are, and names across all users.

What oracle.py promises of a message it promises of a user's row, a create standing for an append and an update for an
edit. Besides, of names (user_names.py tells what "surely" means):

- duplicate  two users surely had one username or e-mail address at one instant, or both have it in the end
- stale      a look-up found nobody, but somebody surely had that name all the while; ``lost`` in the end
- torn       a user showed a name other than the newest one written before; a look-up found somebody of another name
- ghost      a user showed a name whose write was refused
- lost       a compare-and-set was made over a change that came between
- refused    a name was said to be taken for which nobody else had ever begun to ask

A refusal of a name that somebody had asked for once, but nobody can have had just then, is counted (``refused_free``):
a claim that outlived its change counts as taken for a minute.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from datalayer.testing import oracle
from datalayer.testing.ledger import Event, Flag, Kind, Op
from datalayer.testing.oracle import Violation
from datalayer.testing.recorded import collect
from datalayer.testing.user_board import name_key
from datalayer.testing.user_names import Claim, NameLook, Names, NameStory, NameWrite, Refusal, Stretch
from datalayer.testing.user_values import FIELDS, USERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from datalayer.testing.oracle import Findings

KINDS: Final = (*oracle.KINDS, "duplicate", "refused")
_ALLOWED: Final = ("AlreadyExists", "Conflict")
"""Refusals that are answers; whether a name's was right is judged by who had it."""
Name = tuple[str, int]


@dataclass(frozen=True, slots=True)
class UserFindings:
    """What the oracle found. ``rows`` is the verdict on rows alone; ``violations`` holds those and the ones of names."""

    violations: tuple[Violation, ...]
    rows: Findings
    refused_free: int
    strangers: int = 0
    """Users that were shown and that no ledger speaks of."""
    refusals: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether every promise was kept and every acknowledged user was read in the end."""
        return not self.violations and self.rows.unread == 0

    @property
    def errors(self) -> dict[str, int]:
        """Calls that failed, by class, without refusals that are answers."""
        return {name: count for name, count in self.rows.errors.items() if name not in self.refusals}

    def count(self, kind: str) -> int:
        """How many violations of a kind there are."""
        return sum(violation.kind == kind for violation in self.violations)

    def told(self) -> dict[str, object]:
        """As plain values."""
        return {
            "users": self.rows.keys,
            "operations": self.rows.operations,
            "acknowledged": self.rows.acknowledged,
            "unknown": self.rows.unknown,
            **{kind: self.count(kind) for kind in KINDS},
            "unread": self.rows.unread,
            "lifted": self.rows.lifted,
            "refused_free": self.refused_free,
            "strangers": self.strangers,
            "refusals": dict(self.refusals),
            "errors": self.errors,
        }


def check(events: Iterable[Event], *, alone: bool = True) -> UserFindings:
    """Judge a whole ledger (``read_ledgers``).

    ``alone``: nobody but the ledgers' processes has made users, so that any other one is a ghost.
    """
    names, rows = Names(), []
    refusals: Counter[str] = Counter()
    for event in events:
        names.take(event)
        kept = _row_event(event)
        if kept is not None:
            rows.append(kept)
            if event.kind is Kind.FAIL and event.text.startswith(_ALLOWED):
                refusals[event.text] += 1
    strangers = frozenset() if alone else names.strangers()
    if strangers:
        # The head of a page names the user after whom it begins, and stands for what follows it.
        rows = [event for event in rows if event.kind is Kind.PAGE or event.key[16:] not in strangers]
    names.settle()
    judged = oracle.judge(collect(rows))
    judge = _NameJudge(names)
    violations = sorted([*judged.violations, *judge.run()], key=lambda one: (KINDS.index(one.kind), one.at_ns))
    return UserFindings(tuple(violations), judged, judge.refused_free, len(strangers), dict(refusals))


def _row_event(event: Event) -> Event | None:
    """The event as the rules for rows know it; None for what speaks of a name alone."""
    if event.op is Op.LOOK_UP:
        if event.kind is Kind.READ:
            return None
        return event._replace(op=Op.GET, kind=Kind.READ if event.kind is Kind.ITEM else event.kind)
    if event.kind is Kind.FAIL and event.text.startswith(_ALLOWED):
        # As a failure that allows the call again: nothing was written, and it is no error.
        return event._replace(flags=event.flags | Flag.RETRYABLE)
    return event


class _NameJudge:
    """The rules for names."""

    def __init__(self, names: Names) -> None:
        self.refused_free = 0
        self._names = names
        self._stretches: defaultdict[Name, list[Stretch]] = defaultdict(list)
        self._claims: defaultdict[Name, list[Claim]] = defaultdict(list)
        for story in names.stories.values():
            for field_ in FIELDS:
                for number, stretch in story.stretches(field_):
                    self._stretches[field_, number].append(stretch)
                for number, claim in story.claims(field_):
                    self._claims[field_, number].append(claim)
        for stretches in self._stretches.values():
            stretches.sort(key=lambda stretch: stretch.began_ns)
        self._begins = {name: [one.began_ns for one in found] for name, found in self._stretches.items()}
        self._found: list[Violation] = []

    def run(self) -> list[Violation]:
        for name, stretches in self._stretches.items():
            self._judge_overlaps(name, stretches)
        self._judge_end()
        for look in self._names.looks:
            self._judge_look(look)
        for story in self._names.stories.values():
            self._judge_shown(story)
            self._judge_compared(story)
        for refusal in self._names.refusals:
            self._judge_refusal(refusal)
        return self._found

    def _judge_overlaps(self, name: Name, stretches: Sequence[Stretch]) -> None:
        longest = stretches[0]
        for stretch in stretches[1:]:
            if stretch.began_ns < longest.ended_ns and stretch.user != longest.user:
                detail = f"{_said(name)} was of two users at once: {longest.user.hex()} and {stretch.user.hex()}"
                self._add("duplicate", name, detail, stretch.began_ns)
                return
            longest = max(longest, stretch, key=lambda one: one.ended_ns)

    def _judge_end(self) -> None:
        holders: defaultdict[Name, dict[bytes, int]] = defaultdict(dict)
        for story in self._names.stories.values():
            for look in story.shown:
                if look.final:
                    for field_ in FIELDS:
                        holders[field_, getattr(look.names, field_)][story.user] = look.ended_ns
        for name, users in holders.items():
            if name[1] > 0 and len(users) > 1 and name_key(*name) not in {one.key for one in self._found}:
                self._add("duplicate", name, f"{_said(name)} is of {len(users)} users in the end", max(users.values()))

    def _judge_look(self, look: NameLook) -> None:
        name = (look.name, look.number)
        at = bisect_left(self._begins.get(name, []), look.began_ns) - 1
        if at < 0:
            return
        sure = self._stretches[name][at]
        if sure.ended_ns <= look.ended_ns or sure.user == look.user:
            return
        if look.user is None:
            kind = "lost" if look.final else "stale"
            detail = f"{look.process} found nobody of {_said(name)}, which {sure.user.hex()} had all the while"
            self._add(kind, name, detail, look.ended_ns)
        else:
            detail = f"{look.process} found {look.user.hex()} by {_said(name)}, which {sure.user.hex()} had"
            self._add("duplicate", name, detail, look.ended_ns)

    def _judge_shown(self, story: NameStory) -> None:
        for field_ in FIELDS:
            setters = story.setters(field_)
            versions = [write.version for write in setters]
            doubtful = {write.number(field_) for write in story.doubtful(field_)}
            for look in story.shown:
                number = getattr(look.names, field_)
                at = bisect_right(versions, look.version) - 1
                if at >= 0 and setters[at].number(field_) != number and number not in doubtful:
                    refused = any(w.number(field_) == number and not w.possible for w in story.writes)
                    what = "whose write was refused" if refused else "that is not the newest one written"
                    detail = f"{story.user.hex()} showed {_said((field_, number))}, {what}"
                    self._found.append(
                        Violation("ghost" if refused else "torn", USERS + story.user, detail, look.ended_ns)
                    )
                    break

    def _judge_compared(self, story: NameStory) -> None:
        made = [write for write in story.writes if write.applied and write.op is not Op.DELETE]
        versions = sorted(write.version for write in made)
        for write in made:
            if write.op is Op.EDIT and write.expected:
                between = bisect_left(versions, write.version) - bisect_right(versions, write.expected)
                if between > 0:
                    self._found.append(_overwrote(story, write))

    def _judge_refusal(self, refusal: Refusal) -> None:
        name = (refusal.name, refusal.number)
        others = [c for c in self._claims[name] if c.user != refusal.user and c.began_ns < refusal.ended_ns]
        if any(claim.ended_ns > refusal.began_ns for claim in others):
            return
        if others:
            self.refused_free += 1
            return
        detail = f"{refusal.process} was told that {_said(name)} is taken, for which nobody else had asked"
        self._add("refused", name, detail, refusal.ended_ns)

    def _add(self, kind: str, name: Name, detail: str, at_ns: int) -> None:
        self._found.append(Violation(kind, name_key(*name), detail, at_ns))


def _overwrote(story: NameStory, write: NameWrite) -> Violation:
    detail = f"{write.process} compared with version {write.expected} and wrote {write.version} over a change between"
    return Violation("lost", USERS + story.user, detail, write.ended_ns)


def _said(name: Name) -> str:
    return f"{name[0]} {name[1]}"
