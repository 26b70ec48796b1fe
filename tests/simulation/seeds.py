"""In which life each planted mistake was found last: tried first, so that a control costs one life and not a hundred.

A change of the code may move a mistake to another life; then it is looked for as before, and found. Written anew by
``DATALAYER_NOTE_SEEDS=1 python -m pytest tests/simulation -k mistake``.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_name("seeds.json")
_KNOWN: dict[str, int] = json.loads(FILE.read_text())


def tried(mistake: str, numbers: range) -> Iterator[int]:
    """These numbers, the one in which the mistake was found last in front; what is under way when the loop ends is noted."""
    known = -1 if _noting() else _KNOWN.get(mistake, -1)
    if known in numbers:
        yield known
    for number in numbers:
        if number != known:
            if _noting():
                _note(mistake, number)
            yield number


def _noting() -> bool:
    return bool(os.environ.get("DATALAYER_NOTE_SEEDS"))


def _note(mistake: str, number: int) -> None:
    _KNOWN[mistake] = number
    FILE.write_text(json.dumps(dict(sorted(_KNOWN.items())), indent=1) + "\n")
