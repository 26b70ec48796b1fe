"""CQL of the Cassandra backend, applied in the order of its numbers.

``NNNN_backend_*.cql`` belongs to the keyspace. ``NNNN_place_*.cql`` belongs to each attempt as well: it is applied for
attempt 0 ({suffix} empty) and for every attempt that the keyspace has, and again whenever a place is made
(``_<attempt>``). A name that ends in ``_post`` is for the time when no process of an older version is left; what it takes
away, the file that made it must not make again. A file never changes once it was released: its checksum is kept where it
was applied. It is repeated after a crash and for other places, so every statement says IF NOT EXISTS or IF EXISTS.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datalayer.schemas.history import Phase

_NUMBERED: Final = re.compile(r"(\d{4})_(backend|place)_\w+\.cql")
_REPEATABLE: Final = re.compile(
    r"(create .*? if not exists|drop .*? if exists|alter table .* (add|drop|rename) if (not )?exists|alter table \S+ with) ",
    re.IGNORECASE | re.DOTALL,
)
_CONTRACTING: Final = re.compile(r"(drop|truncate|alter table \S+ (drop|rename))\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CqlFile:
    """One numbered file. The statements have {keyspace} and {suffix} still to be filled in."""

    number: int
    name: str
    group: Literal["backend", "place"]
    statements: tuple[str, ...]
    sha256: str

    @property
    def phase(self) -> Phase:
        """When it may run."""
        return "post" if self.name.removesuffix(".cql").endswith("_post") else "pre"

    @property
    def unrepeatable(self) -> list[str]:
        """The statements that fail when they are run again."""
        return [one for one in self.statements if not _REPEATABLE.match(one + " ")]

    @property
    def contracting(self) -> list[str]:
        """The statements that take something away."""
        return [one for one in self.statements if _CONTRACTING.match(one)]


def numbered_files() -> list[CqlFile]:
    """All files, ascending."""
    found = []
    for entry in files(__package__).iterdir():
        match = _NUMBERED.fullmatch(entry.name)
        if match:
            group: Literal["backend", "place"] = "place" if match[2] == "place" else "backend"
            found.append(cql_file(int(match[1]), entry.name, group, entry.read_text("utf-8")))
    return sorted(found, key=lambda one: one.number)


def cql_file(number: int, name: str, group: Literal["backend", "place"], text: str) -> CqlFile:
    """A file of this text."""
    return CqlFile(number, name, group, tuple(_statements(text)), hashlib.sha256(text.encode()).hexdigest())


def place_statements() -> list[str]:
    """Statements that make one place of the messages domain, with {keyspace} and {suffix} still to be filled in."""
    return [one for step in numbered_files() if step.group == "place" for one in step.statements]


def _statements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
