"""What an operator may choose for a migration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, Protocol

from datalayer.domains.soft import TTL_MAX_S
from datalayer.errors import InvalidArgument
from datalayer.migrators.plan import Until


@dataclass(frozen=True, slots=True)
class MigrateOptions:
    """Options of ``datalayer migrate``; those that last are kept with the migration."""

    until: Until = Until.TARGET
    workers: int = 2
    rate_rows_per_s: float | None = None
    max_hold_ms: float = 1000.0
    canary_pct: int = 100
    verify: Literal["full", "sample"] = "full"
    assume_dead: tuple[str, ...] = ()
    foreign_writers: Literal["ask", "refuse"] = "ask"
    yes: bool = False
    """The cut-over and all that follows is confirmed."""
    lifetime_s: float = TTL_MAX_S
    """Of soft domains: the longest lifetime in use, for which both sides are written before one of them is left."""
    ack_timeout_s: float = 30.0
    """How long to wait for processes that have not acknowledged."""
    given: frozenset[str] = frozenset()
    """Lasting options that were named, also with their default: they win over what was kept."""

    def checked(self) -> MigrateOptions:
        """These options, or InvalidArgument."""
        if not 1 <= self.workers <= 64:
            raise InvalidArgument(f"workers is {self.workers}; it must be from 1 to 64")
        if not 1 <= self.canary_pct <= 100:
            raise InvalidArgument(f"canary is {self.canary_pct}; it must be a percentage from 1 to 100")
        if self.rate_rows_per_s is not None and not 0 < self.rate_rows_per_s < inf:
            raise InvalidArgument(f"rate is {self.rate_rows_per_s}; it must be above 0 rows a second")
        if not 1 <= self.max_hold_ms <= 60_000:
            raise InvalidArgument(f"max-hold is {self.max_hold_ms} ms; it must be from 1 to 60000")
        if not 0 < self.lifetime_s <= TTL_MAX_S:
            raise InvalidArgument(f"longest-ttl is {self.lifetime_s} s; it must be above 0 and at most {TTL_MAX_S:g}")
        return self

    def lasting(self) -> dict[str, Any]:
        """What is kept with the migration."""
        kept = ("workers", "rate_rows_per_s", "max_hold_ms", "canary_pct", "verify", "foreign_writers", "lifetime_s")
        return {name: value for name, value in asdict(self).items() if name in kept}


class Reporter(Protocol):
    """Hears what a migration does, for people and programs that watch."""

    def stage(self, stage: str, phase: str) -> None:
        """A stage begins."""
        ...

    def step(self, action: str, state: str, detail: str) -> None:
        """An action began or ended."""
        ...

    def progress(self, run: str, done: int, total: int, rows_per_s: float) -> None:
        """Rows of a backfill or a verification; ``total`` is an estimate."""
        ...

    def note(self, text: str) -> None:
        """One sentence worth reading."""
        ...


class Failpoints(Protocol):
    """Named places where a test may stop, kill or fail the engine."""

    async def reach(self, name: str) -> None:
        """Called at each place: ``<action>.before``, ``<action>.after`` and named ones within."""
        ...


class Silent:
    """A reporter that says nothing, and failpoints where nothing happens."""

    def stage(self, stage: str, phase: str) -> None: ...

    def step(self, action: str, state: str, detail: str) -> None: ...

    def progress(self, run: str, done: int, total: int, rows_per_s: float) -> None: ...

    def note(self, text: str) -> None: ...

    async def reach(self, name: str) -> None: ...


def from_kept(options: MigrateOptions, kept: Mapping[str, Any]) -> MigrateOptions:
    """Options with what was kept with the migration where this call left the default."""
    default = MigrateOptions()
    chosen = {
        name: kept[name]
        for name in options.lasting()
        if name in kept and name not in options.given and getattr(options, name) == getattr(default, name)
    }
    return MigrateOptions(**{**{f: getattr(options, f) for f in MigrateOptions.__slots__}, **chosen})
