"""The control store of a URL; a database's driver is imported only when its kind is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import ConfigurationError, MissingDependencyError
from datalayer.stores.registry import DISTRIBUTION

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.settings import BackendUrl

NAME: Final = "control"
POOL_MAX: Final = 10
_DATABASES: Final = {
    "postgresql": ("datalayer.stores.postgres.database", "PostgresDatabase", "postgres"),
    "sqlite": ("datalayer.stores.sqlite.database", "SqliteDatabase", ""),
}


def open_control(url: BackendUrl, clock: Clock) -> Control:
    """The control store at a URL, not yet connected (``Control.open`` does that).

    ``memory://`` is the one server of this process by that database's name. Raises ConfigurationError for a product
    that cannot be one, MissingDependencyError where its driver is not installed.
    """
    if url.scheme == "memory":
        memory = importlib.import_module("datalayer.control.memory")
        in_memory: Control = memory.MemoryControl(memory.control_server_named(url.database or NAME, clock))
        return in_memory
    if url.scheme not in _DATABASES:
        message = f"the control store cannot be {url.scheme}://"
        raise ConfigurationError(message, hint="give [control] a postgresql:// or sqlite:// URL")
    database = _database_class(url.scheme)
    if url.scheme == "sqlite":
        opened = database(url.path, clock, readers=1)
    else:
        opened = database(url, name=NAME, process=NAME, pool_max=POOL_MAX)
    control: Control = importlib.import_module("datalayer.control.store").SqlControl(opened, clock)
    return control


def _database_class(scheme: str) -> Any:
    module, name, extra = _DATABASES[scheme]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        if (error.name or "").startswith("datalayer"):
            raise
        raise MissingDependencyError(
            f"the control store needs the driver {error.name!r}, which is not installed",
            hint=f"pip install '{DISTRIBUTION}[{extra}]'",
        ) from error
