"""CQL of the Cassandra backend, applied in the order of its numbers.

``NNNN_backend_*.cql`` belongs to the keyspace and is applied once, by the schema's version; ``NNNN_place_messages.cql``
belongs to each attempt and is applied when its place is made ({suffix}: empty, or ``_<attempt>``).
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

_NUMBERED: Final = re.compile(r"(\d{4})_(backend|place)_\w+\.cql")


def backend_steps() -> dict[int, list[str]]:
    """Statements of the keyspace by schema version, ascending; {keyspace} is still to be filled in."""
    return {number: _statements(text) for number, group, text in _numbered() if group == "backend"}


def place_statements() -> list[str]:
    """Statements that make one place of the messages domain; {keyspace} and {suffix} are still to be filled in."""
    return [one for _, group, text in _numbered() if group == "place" for one in _statements(text)]


def _numbered() -> list[tuple[int, str, str]]:
    found = []
    for entry in files(__package__).iterdir():
        match = _NUMBERED.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), match[2], entry.read_text("utf-8")))
    return sorted(found)


def _statements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
