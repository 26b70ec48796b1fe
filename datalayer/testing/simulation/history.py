"""The judge: what callers began, had acknowledged and read, and whether the promises I1 to I4 held.

Values carry their own token, so that a read says which write it shows. Knowledge is taken at the instant a call begins
and compared when it ends, across processes: a reader needs no relation to the writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datalayer.errors import DatalayerError, NotFound, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

Ident = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Violation(Exception):
    """A broken promise."""

    promise: str
    detail: str
    at_s: float

    def __str__(self) -> str:
        return f"{self.promise} at {self.at_s:.6f} s: {self.detail}"


@dataclass(slots=True)
class Write:
    """One write as its caller saw it; ``version`` once it was acknowledged."""

    key: Ident
    what: str
    token: str
    began_s: float
    seen: int
    """The highest version acknowledged before it began."""
    after_create: bool
    after_delete: bool
    who: str
    version: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    ended_s: float | None = None


@dataclass(slots=True)
class Known:
    """What is known of one key."""

    writes: list[Write] = field(default_factory=list)
    version: int = 0
    created: bool = False
    deleted: bool = False
    delete_begun: bool = False
    tokens: dict[str, Write] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Before:
    """What was acknowledged of a key before a read began."""

    key: Ident
    version: int
    created: bool
    deleted: bool


class History:
    """One domain's keys. ``clock`` gives the virtual time."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.keys: dict[Ident, Known] = {}
        self.violations: list[Violation] = []
        self.acknowledged = 0
        self.failed: dict[str, int] = {}
        self.reads = 0
        self.repairs = False
        """A repair may have lifted versions: what was acknowledged at one version is the same at a higher one."""
        self.permanent: list[str] = []
        """Errors that no caller should ever see."""

    def broken(self, promise: str, detail: str) -> None:
        """Enter a violation."""
        self.violations.append(Violation(promise, detail, self._clock.monotonic()))

    # --- writes -----------------------------------------------------------------------------------------------------

    def begin(self, key: Ident, what: str, token: str, who: str) -> Write:
        """A write is about to be called."""
        known = self.keys.setdefault(key, Known())
        write = Write(key, what, token, self._clock.monotonic(), known.version, known.created, known.deleted, who)
        known.writes.append(write)
        known.tokens.setdefault(token, write)
        if what == "delete":
            known.delete_begun = True
        return write

    def acknowledge(self, write: Write, version: int | None, token: str | None = None) -> None:
        """It returned, with the version (None: a delete) and the token that its answer carried."""
        known = self.keys[write.key]
        write.outcome, write.ended_s, write.version = Outcome.APPLIED, self._clock.monotonic(), version
        self.acknowledged += 1
        if write.what == "delete":
            known.deleted = True
            return
        assert version is not None, "an append or edit answers with its version"
        if write.what == "edit":
            if write.after_delete:
                self.broken("I2", f"an edit was acknowledged after the delete of {_name(write.key)}")
            if version <= write.seen:
                self.broken("I1", f"{_say(write)} got version {version}, not above {write.seen} acknowledged before")
        if token is not None and token not in known.tokens:
            self.broken("I4", f"{_say(write)} answered with {token!r}, which nobody wrote")
        known.created = True
        known.version = max(known.version, version)

    def fail(self, write: Write, error: DatalayerError) -> None:
        """It raised."""
        write.outcome, write.ended_s = error.outcome, self._clock.monotonic()
        known = self.keys[write.key]
        name = type(error).__name__
        self.failed[name] = self.failed.get(name, 0) + 1
        if isinstance(error, NotFound):
            if write.after_create and not known.delete_begun:
                self.broken("I1", f"{_say(write)} found nothing, though its append was acknowledged")
        elif not error.retryable:
            self.permanent.append(f"{_say(write)}: {name}: {error.message}")

    # --- reads ------------------------------------------------------------------------------------------------------

    def before(self, keys: Iterable[Ident]) -> list[Before]:
        """What a read that begins now must show at least."""
        nothing = Known()
        found = ((key, self.keys.get(key, nothing)) for key in keys)
        return [Before(key, known.version, known.created, known.deleted) for key, known in found]

    def saw(self, before: Before, version: int | None, token: str | None, who: str) -> None:
        """A read of one key ended; no version: it showed nothing."""
        self.reads += 1
        known = self.keys.get(before.key)
        name = _name(before.key)
        if version is None:
            if before.created and (known is None or not known.delete_begun):
                self.broken("I3", f"{who} read nothing of {name}, acknowledged at {before.version}")
            return
        if before.deleted:
            self.broken("I2", f"{who} read {name} at {version} after its delete was acknowledged")
        if before.created and version < before.version:
            self.broken("I3", f"{who} read {name} at {version}, but {before.version} was acknowledged before")
        write = None if known is None else known.tokens.get(token or "")
        if write is None:
            self.broken("I4", f"{who} read {token!r} in {name}, which nobody wrote there")
        elif write.outcome is Outcome.NOT_APPLIED:
            self.broken("I2", f"{who} read {token!r} of {name}, whose write was refused")
        elif write.version is not None and (version < write.version or (version > write.version and not self.repairs)):
            self.broken("I4", f"{who} read {token!r} of {name} at {version}, acknowledged at {write.version}")

    def settle(self, key: Ident, record: Any, token: str | None) -> None:
        """Judge the final record of a key at the authority: (version, deleted) and its token."""
        known = self.keys[key]
        name = _name(key)
        if record is None or record.deleted:
            if known.created and not known.delete_begun:
                self.broken("I1", f"{name}, acknowledged at {known.version}, is gone at the end")
            return
        if known.deleted:
            self.broken("I2", f"{name} lives at the end, though its delete was acknowledged")
        if record.version < known.version:
            self.broken("I1", f"{name} ends at {record.version}, but {known.version} was acknowledged")
        write = known.tokens.get(token or "")
        if write is None or write.outcome is Outcome.NOT_APPLIED:
            self.broken("I2", f"{name} ends with {token!r}, which was never applied")


def version_of(found: Any) -> int | None:
    """The version of what a read returned, or None."""
    return None if found is None else int(found.version)


def _say(write: Write) -> str:
    return f"{write.who}'s {write.what} {write.token!r} of {_name(write.key)}"


def _name(key: Sequence[UUID | str]) -> str:
    return "/".join(str(part)[-6:] for part in key)
