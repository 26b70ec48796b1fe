"""The schemas of everything configured: their state, and bringing them up to date."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from datalayer.control.connect import open_control
from datalayer.errors import DatalayerError, SchemaAhead, SchemaBehind
from datalayer.layer import make_backends

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.clock import Clock
    from datalayer.settings import Settings
    from datalayer.stores.base import Backend

State = Literal["ready", "behind", "ahead", "unreachable"]
CONTROL: str = "(control)"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema of one backend, or of the control store (``name`` is CONTROL then)."""

    name: str
    product: str
    state: State
    detail: str = ""


async def inspect_schemas(
    settings: Settings, clock: Clock, *, only: str | None = None, create: bool = False
) -> list[SchemaState]:
    """Each schema's state; with ``create`` what is missing or behind is brought up to date first.

    Raises ConfigurationError and MissingDependencyError; what a server answers is a state.
    """
    backends = make_backends(settings, clock)
    states = []
    if settings.embedded_directory is not None and create:
        settings.embedded_directory.mkdir(parents=True, exist_ok=True)
    for name, backend in sorted(backends.items()):
        if only in {None, name}:
            states.append(await _state(name, backend.product, partial(_look, backend, create=create), backend.close))
    if only is None:
        control = open_control(settings.control, clock)
        scheme = settings.control.scheme
        states.append(await _state(CONTROL, scheme, partial(control.open, create=create), control.close))
    return states


async def _look(backend: Backend, *, create: bool) -> None:
    await backend.open()
    await backend.ensure_schema(create=create)


async def _state(
    name: str, product: str, look: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]
) -> SchemaState:
    try:
        await look()
    except SchemaBehind as error:
        return SchemaState(name, product, "behind", error.message)
    except SchemaAhead as error:
        return SchemaState(name, product, "ahead", str(error))
    except DatalayerError as error:
        return SchemaState(name, product, "unreachable", str(error))
    finally:
        await close()
    return SchemaState(name, product, "ready")
