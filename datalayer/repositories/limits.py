"""The limits that repositories enforce, alike on every backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes of UTF-8, times in seconds, members of one conversation."""

    body_max_bytes: int = 1 << 20
    members_max: int = 10_000
    timeout_s: float = 5.0
    timeout_max_s: float = 30.0
    media_max_bytes: int = 1 << 30
    media_types: tuple[str, ...] = ()
    """Allowed content types, also as ``image/*``; empty: all."""
