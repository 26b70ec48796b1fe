"""What every test shares: the tier it runs in, and the real chat data where it is present."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.servers import Servers

Tier = Literal["check", "test", "deep"]
_EXAMPLES: dict[Tier, int] = {"check": 30, "test": 100, "deep": 20_000}

TIER = cast("Tier", os.environ.get("DATALAYER_TIER", "check"))
if TIER not in _EXAMPLES:
    message = f"DATALAYER_TIER={TIER!r} is unknown; use one of {', '.join(_EXAMPLES)}"
    raise pytest.UsageError(message)
for _tier, _examples in _EXAMPLES.items():
    # No deadline per example: the machine is shared, and a slow example proves nothing.
    hypothesis.settings.register_profile(_tier, max_examples=_examples, deadline=None)
hypothesis.settings.load_profile(TIER)


@pytest.fixture(scope="session")
def tier() -> Tier:
    """How much a test may do: check (seconds), test (minutes) or deep (an hour in all)."""
    return TIER


@pytest.fixture(scope="session")
def chat_data() -> Path | None:
    """A file of real chat messages (JSON lines, gzip), or None where there is none."""
    default = Path(__file__).parents[1] / "../shared/data/chat.jsonl.gz"
    path = Path(os.environ.get("DATALAYER_CHAT_DATA", default)).resolve()
    return path if path.exists() else None


@pytest.fixture(scope="session")
def servers() -> "Iterator[Servers]":
    """Real servers, shared by the whole run; nothing starts before a test asks for one. Mark such a test `servers`."""
    # Imported here: a run without servers pays nothing for them.
    from tests.servers import Servers  # noqa: PLC0415

    with Servers() as shared:
        yield shared
