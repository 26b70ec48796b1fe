"""Which revisions of the SQL schema there are, in two lines, and which of them this version of the library needs.

A *pre* revision only adds: code of the version before runs on it. A *post* revision takes away what only older code
used: it is for the time when no process of an older version is left. The two are lines of their own (as OpenStack
Neutron's expand and contract branches are), so that the adds of the next version never wait for a drop. Each line is
numbered upwards over both, and ``datalayer_schema`` holds one row for each: the newest of the line, which stands for
all before it. So a database says to every version of the library, also to one that does not know its revisions,
whether something was taken away that this version does not know of - which alone is what it cannot run on.

Read without Alembic, which only ``schemas.upgrade`` needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from datalayer.errors import SchemaAhead, SchemaBehind

if TYPE_CHECKING:
    from collections.abc import Collection

Phase = Literal["pre", "post"]
PHASES: Final[tuple[Phase, ...]] = ("pre", "post")
HINT: Final = "datalayer schema upgrade"
_REVISION: Final = re.compile(r"(0001$|\d{4}(?=_))(?:_(pre|post))?")


def number_of(revision: str) -> int:
    """The number that orders a revision. SchemaAhead for a name that no version of this library gives."""
    return _parts(revision)[0]


def phase_of(revision: str) -> Phase:
    """The line of a revision; the first one, which has no phase in its name, begins the pre line."""
    return _parts(revision)[1]


def _parts(revision: str) -> tuple[int, Phase]:
    found = _REVISION.fullmatch(revision)
    if found is None:
        raise SchemaAhead(
            f"the schema is at revision {revision!r}, which this version of datalayer does not know",
            hint="upgrade datalayer in this process, or look who else writes datalayer_schema",
        )
    return int(found[1]), "post" if found[2] == "post" else "pre"


@dataclass(frozen=True, slots=True)
class History:
    """The revisions that a version of the library knows, oldest first, and the oldest schema that it can serve."""

    pre: tuple[str, ...]
    post: tuple[str, ...]
    needed: str
    """The newest pre revision without which this version cannot run: what came later only makes it better."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The newest of each line: what a database made by this version is at."""
        return (*self.pre[-1:], *self.post[-1:])

    def applied(self, rows: Collection[str]) -> tuple[str, ...]:
        """The known revisions that the rows of a database stand for, in the order of their numbers."""
        newest = {phase: newest_of(rows, phase) for phase in PHASES}
        known = [revision for revision in (*self.pre, *self.post) if number_of(revision) <= newest[phase_of(revision)]]
        return tuple(sorted(known, key=number_of))

    def pending(self, rows: Collection[str], phase: Phase | None = None) -> tuple[str, ...]:
        """The known revisions that are not applied yet, in the order in which they run."""
        done = set(self.applied(rows))
        known = sorted((*self.pre, *self.post), key=number_of)
        return tuple(one for one in known if one not in done and phase in {None, phase_of(one)})

    def check(self, rows: Collection[str], where: str) -> None:
        """SchemaBehind or SchemaAhead unless this version can serve a database with these rows."""
        pre, post = newest_of(rows, "pre"), newest_of(rows, "post")
        if pre < number_of(self.needed):
            at = ", ".join(sorted(rows)) or "none"
            raise SchemaBehind(f"the schema of {where} is at revision {at}, not {self.needed}", hint=HINT)
        if post > max((number_of(one) for one in self.post), default=0):
            taken = ", ".join(sorted(row for row in rows if phase_of(row) == "post"))
            raise SchemaAhead(
                f"the schema of {where} is at revision {taken}, which this version of datalayer does not know and which "
                "took away what older versions use",
                hint="upgrade datalayer in this process",
            )


def newest_of(rows: Collection[str], phase: Phase) -> int:
    """The number of a line's newest applied revision; 0 when there is none."""
    return max((number_of(row) for row in rows if phase_of(row) == phase), default=0)


THIS: Final = History(
    pre=("0001", "0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre"), post=(), needed="0007_pre"
)
"""The revisions in ``schemas/revisions``."""
