"""Backends by URL scheme; a driver is imported only when a backend of its kind is configured."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from datalayer.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.stores.base import Backend

DISTRIBUTION: Final = "datalayer-online"
ENTRY_POINTS: Final = "datalayer.stores"
_BUILT_IN: Final = {
    "memory": ("datalayer.stores.memory.backend", ""),
    "sqlite": ("datalayer.stores.sqlite.backend", ""),
    "postgresql": ("datalayer.stores.postgres.backend", "postgres"),
    "file": ("datalayer.stores.filesystem.backend", ""),
    "s3": ("datalayer.stores.s3.backend", "s3"),
    "dynamodb": ("datalayer.stores.dynamodb.backend", "dynamodb"),
    "cassandra": ("datalayer.stores.cassandra.backend", "cassandra"),
    "redis": ("datalayer.stores.redis.backend", "redis"),
    "opensearch+https": ("datalayer.stores.opensearch.backend", "opensearch"),
    "opensearch+http": ("datalayer.stores.opensearch.backend", "opensearch"),
    "redis+cluster": ("datalayer.stores.redis.backend", "redis"),
}
SCHEMES: Final = tuple(_BUILT_IN)
"""What this version serves by itself."""


class BackendFactory(Protocol):
    """What a store module offers as ``create_backend``."""

    def __call__(self, name: str, url: Any, *, pool_max: int, clock: Clock) -> Backend:
        """A backend, not yet opened. ``url`` is the parsed BackendUrl."""
        ...


def open_factory(scheme: str, name: str) -> BackendFactory:
    """The factory of a scheme; MissingDependencyError names the extra whose driver is not installed."""
    if scheme in _BUILT_IN:
        module, extra = _BUILT_IN[scheme]
        try:
            return cast("BackendFactory", importlib.import_module(module).create_backend)
        except ImportError as error:
            if (error.name or "").startswith("datalayer"):
                raise
            raise MissingDependencyError(
                f"backend {name!r} needs the driver {error.name!r}, which is not installed",
                hint=f"pip install '{DISTRIBUTION}[{extra}]'",
            ) from error
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        return cast("BackendFactory", entry.load())
    raise ConfigurationError(f"backend {name!r}: no store serves {scheme}:// in this version")
