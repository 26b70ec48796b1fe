"""CQL of the Cassandra backend, applied in the order of its numbers.

``NNNN_backend_*.cql`` belongs to the keyspace. ``NNNN_place_*.cql`` belongs to each attempt as well: it is applied once for
attempt 0 ({suffix} empty) and again whenever a place is made (``_<attempt>``).
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

_NUMBERED: Final = re.compile(r"(\d{4})_(backend|place)_\w+\.cql")


def numbered_steps() -> dict[int, list[str]]:
    """All statements by schema version, ascending, with {keyspace} and {suffix} still to be filled in."""
    return {number: _statements(text) for number, _, text in _numbered()}


def place_statements() -> list[str]:
    """Statements that make one place of the messages domain, with {keyspace} and {suffix} still to be filled in."""
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
