"""The oracle: did every acknowledged operation keep its promise? Pure functions over a recorded history.

Versions of a key rise in the order in which its authority took the writes, so the history of a key is linearizable
exactly when no call shows less than another call that had ended before it began. The rules, per key:

- lost   the final read shows a state that an acknowledged write, or an earlier look, had already replaced
- ghost  a live message after its delete was acknowledged (or seen); a value whose write was refused, or never begun;
         an edit accepted after the delete
- stale  as lost, but seen while the workload ran
- order  an acknowledged edit got a version no higher than what an earlier call had shown
- torn   parts of one value come from different writes; a page repeats or disorders
- error  a failure that is not retryable, or is none of the caller's business

No rule needs an unknown write to have happened, or not to have: it begins to count when a look shows its token, and
from the moment the first such look ended. A pending delete of unknown outcome excuses absence from its beginning on.

What it cannot see: a write that nobody recorded as begun and nobody ever shows; disorder among calls that overlap;
anything about other machines' clocks (see ledger.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from datalayer.testing.ledger import Op
from datalayer.testing.recorded import NEVER, Look, Recorded, Story, Write, collect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datalayer.testing.ledger import Event

KINDS: Final = ("lost", "ghost", "stale", "order", "torn", "error")


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise; ``at_ns`` is when it showed."""

    kind: str
    key: bytes
    detail: str
    at_ns: int

    def __str__(self) -> str:
        return f"{self.kind} {self.key[:16].hex()}/{self.key[16:].hex()}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the oracle found. ``lost``, ``ghost`` and ``order`` count keys, ``stale`` and ``torn`` count calls."""

    violations: tuple[Violation, ...]
    keys: int
    acknowledged: int
    answered: int
    unknown: int
    errors: Mapping[str, int] = field(default_factory=dict)
    unread: int = 0
    """Acknowledged keys that the final read left out: then nothing is proven about them."""
    lifted: int = 0
    """Looks that showed a known value under a higher version than its write had: a repair did that."""

    @property
    def operations(self) -> int:
        """Acknowledged writes and answered reads."""
        return self.acknowledged + self.answered

    @property
    def clean(self) -> bool:
        """Whether every promise was kept and every acknowledged key was read in the end."""
        return not self.violations and self.unread == 0

    def count(self, kind: str) -> int:
        """How many violations of a kind there are."""
        return sum(violation.kind == kind for violation in self.violations)


def check(events: Iterable[Event]) -> Findings:
    """Judge a whole ledger (``read_ledgers``)."""
    return judge(collect(events))


def judge(recorded: Recorded) -> Findings:
    """Judge a recorded history."""
    violations = [Violation(odd.kind, odd.key, odd.detail, odd.at_ns) for odd in recorded.oddities]
    counts: Counter[str] = Counter()
    for story in recorded.stories.values():
        judged = _Judge(story)
        violations += judged.run()
        counts["lifted"] += judged.lifted
        counts["unread"] += recorded.finished and judged.unread
    violations.sort(key=lambda violation: (KINDS.index(violation.kind), violation.at_ns))
    return Findings(
        tuple(violations),
        len(recorded.stories),
        recorded.acknowledged,
        recorded.answered,
        recorded.unknown,
        dict(recorded.errors),
        counts["unread"],
        counts["lifted"],
    )


class _Floor:
    """The highest value among the calls that had ended before an instant."""

    __slots__ = ("_ends", "_highest")

    def __init__(self, points: Iterable[tuple[int, int]]) -> None:
        self._ends: list[int] = []
        self._highest: list[int] = []
        top = -1
        for end, value in sorted(points):
            top = max(top, value)
            self._ends.append(end)
            self._highest.append(top)

    def before(self, instant: int) -> int:
        """-1 when nothing had ended yet."""
        at = bisect_left(self._ends, instant)
        return self._highest[at - 1] if at else -1


class _Judge:
    """The rules for one key."""

    def __init__(self, story: Story) -> None:
        self.lifted = 0
        self._key = story.key
        self._writes = story.writes
        self._live = [look for look in story.looks if look.token is not None]
        self._absent = [look for look in story.looks if look.token is None]
        self._by_token = {write.token: write for write in story.writes if write.op is not Op.DELETE}
        self._acknowledged = [write for write in story.writes if write.applied]
        self._stored = [write for write in self._acknowledged if write.op is not Op.DELETE]
        self._done_by = self._first_seen()
        self._exists_since = min([*(w.ended_ns for w in self._stored), *(look.ended_ns for look in self._live), NEVER])
        deletes = [write for write in story.writes if write.op is Op.DELETE and write.possible]
        self._delete_possible_since = min([write.began_ns for write in deletes] or [NEVER])
        self._deleted_since = min([*(write.ended_ns for write in deletes), *self._seen_deleted(), NEVER])
        self._versions = _Floor(
            [*((w.ended_ns, w.version) for w in self._stored), *((look.ended_ns, look.version) for look in self._live)]
        )
        self._beginnings = _Floor((write.ended_ns, write.began_ns) for write in self._stored)
        self._found: list[Violation] = []

    @property
    def unread(self) -> bool:
        """Whether an acknowledged write's key has no final look."""
        return bool(self._acknowledged) and not any(look.final for look in (*self._live, *self._absent))

    def run(self) -> list[Violation]:
        for look in self._live:
            self._judge_live(look)
        for look in self._absent:
            existed = self._exists_since < look.began_ns or look.expected > 0
            if existed and look.ended_ns <= self._delete_possible_since:
                self._add(_missed(look), f"{_who(look)} found nothing, but it had been stored and never deleted", look)
        for write in self._acknowledged:
            if write.op is Op.EDIT:
                self._judge_edit(write)
        return self._one_per_key()

    def _first_seen(self) -> dict[bytes, int]:
        """When each value was surely stored: its acknowledgement, or the end of the first look that showed it.

        Such a look also tells the version of an edit of unknown outcome.
        """
        done = {write.token: write.ended_ns for write in self._by_token.values()}
        for look in self._live:
            assert look.token is not None
            done[look.token] = min(done.get(look.token, NEVER), look.ended_ns)
            write = self._by_token.get(look.token)
            if write is not None and not write.applied and write.op is Op.EDIT:
                write.version = min(write.version or look.version, look.version)
        return done

    def _seen_deleted(self) -> list[int]:
        """Ends of looks that prove a delete of unknown outcome: they found nothing where something had been."""
        return [
            look.ended_ns
            for look in self._absent
            if self._exists_since < look.began_ns and self._delete_possible_since < look.ended_ns
        ]

    def _judge_live(self, look: Look) -> None:
        assert look.token is not None
        write = self._by_token.get(look.token)
        if write is None:
            self._add("ghost", f"{_who(look)} showed a value that nobody wrote", look)
            return
        if not write.possible:
            self._add("ghost", f"{_who(look)} showed a value whose write was refused", look)
            return
        if look.ended_ns < write.began_ns:
            self._add("ghost", f"{_who(look)} showed a value before its write began", look)
            return
        self._judge_version(look, write)
        if self._deleted_since < look.began_ns:
            self._add("ghost", f"{_who(look)} showed a message deleted before", look)
            return
        newest = max(self._versions.before(look.began_ns), look.expected)
        if newest > look.version:
            detail = f"{_who(look)} showed version {look.version}; {newest} had been acknowledged or shown before"
            self._add(_missed(look), detail, look)
        elif self._beginnings.before(look.began_ns) > self._done_by[look.token]:
            self._add(_missed(look), f"{_who(look)} showed a value that a later acknowledged write had replaced", look)

    def _judge_version(self, look: Look, write: Write) -> None:
        if look.version == write.version:
            return
        others = {other.version for other in self._writes if other is not write}
        if look.version < write.version or look.version in others:
            self._add("torn", f"{_who(look)} showed version {look.version} with the value of {write.version}", look)
        else:
            self.lifted += 1

    def _judge_edit(self, write: Write) -> None:
        if self._deleted_since < write.began_ns:
            self._add("ghost", f"an edit of {write.process} was accepted after the delete", write)
            return
        newest = self._versions.before(write.began_ns)
        if newest >= write.version:
            self._add("order", f"an edit of {write.process} got version {write.version}, not above {newest}", write)

    def _add(self, kind: str, detail: str, where: Look | Write) -> None:
        self._found.append(Violation(kind, self._key, detail, where.ended_ns))

    def _one_per_key(self) -> list[Violation]:
        """A lost or risen record is one violation, however many looks show it; the first one stands for all."""
        kept: list[Violation] = []
        said: set[str] = set()
        for violation in sorted(self._found, key=lambda violation: violation.at_ns):
            if violation.kind in {"lost", "ghost", "order"} and violation.kind in said:
                continue
            said.add(violation.kind)
            kept.append(violation)
        return kept


def _missed(look: Look) -> str:
    return "lost" if look.final else "stale"


def _who(look: Look) -> str:
    return f"{look.op.name.lower()} of {look.process}"
