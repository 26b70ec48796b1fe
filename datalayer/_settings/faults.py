"""What is wrong with a configuration: place, key, reason, way out - and never the value, which may be a secret."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datalayer.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake: where it stands (file:line or an environment variable), its key, why, and what to do."""

    place: str
    key: str
    reason: str
    way_out: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, f"{self.key} {self.reason}".strip()) if part)


class SettingsError(ConfigurationError):
    """The configuration is wrong; ``faults`` lists every mistake found, the message is the first one."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        first, *more = faults
        also = f", and {len(more)} more: datalayer config check lists them" if more else ""
        super().__init__(f"{first}{also}", hint=first.way_out)
        self.faults = tuple(faults)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was probably meant to be."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def sayable(key: str) -> str:
    """A key as it may be printed: a URL pasted in the place of a key is not repeated."""
    return key if _NAME.fullmatch(key) else "<not a name>"


def choice(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """The way out of an unknown word: the nearest known one, else all of them."""
    listed = sorted(known)
    meant = nearest(word, listed)
    return f"did you mean {prefix}{meant}?" if meant else f"known: {', '.join(listed) or 'none'}"
