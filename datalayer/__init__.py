"""Keep users, messages, presence, media and search in stores of any size, and move them online."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datalayer.errors import (
        AlreadyExists,
        ConfigurationError,
        Conflict,
        DatalayerError,
        DeadlineExceeded,
        InvalidArgument,
        InvalidCursor,
        MissingDependencyError,
        NotFound,
        OutcomeUnknown,
        RoutingMismatch,
        SchemaBehind,
        Unavailable,
    )
    from datalayer.layer import DataLayer, LayerOptions
    from datalayer.settings import Settings, load_settings
    from datalayer.types import Conversation, Count, Listed, Member, Message, Page, User

_HOME = {
    "DataLayer": "layer",
    "LayerOptions": "layer",
    "Settings": "settings",
    "load_settings": "settings",
    "Conversation": "types",
    "Count": "types",
    "Listed": "types",
    "Member": "types",
    "Message": "types",
    "Page": "types",
    "User": "types",
}

__all__ = [
    "AlreadyExists",
    "ConfigurationError",
    "Conflict",
    "Conversation",
    "Count",
    "DataLayer",
    "DatalayerError",
    "DeadlineExceeded",
    "InvalidArgument",
    "InvalidCursor",
    "LayerOptions",
    "Listed",
    "Member",
    "Message",
    "MissingDependencyError",
    "NotFound",
    "OutcomeUnknown",
    "Page",
    "RoutingMismatch",
    "SchemaBehind",
    "Settings",
    "Unavailable",
    "User",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - names are looked up when first used, so that importing the package is cheap

    return getattr(importlib.import_module(f"datalayer.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
