"""Statements of a place: put together once in a process, and written for each place with its own tables' names.

The texts of two places of a kind differ in the number that their tables carry alone. To put one together costs 0.3 ms,
a place has about twenty, a guard as many more, and a fleet that follows a move of slot groups meets hundreds of places.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.stores.sql.statement import LookUp, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_STORES: Final = "datalayer.stores."
ANY: Final = 777_777_777_777
"""The number of a place that there never is: patterns are made for it."""
_MARK: Final = f"_{ANY}"


@cache
def once(make: Callable[..., T], *parts: Any) -> T:
    """What ``make(*parts)`` gives, made once in a process."""
    return make(*parts)


def texts(make: Callable[..., T], *parts: Any, attempt: int) -> T:
    """What ``make(*parts, attempt)`` gives, made once for all attempts.

    It may hold texts, statements, look-ups, and tuples, dicts and objects of these; nothing else that names a table.
    """
    made: T = _written(once(make, *parts, ANY), "" if attempt == 0 else f"_{attempt}", attempt)
    return made


def numbered(make: Callable[..., T], *parts: Any, number: int) -> T:
    """As ``texts``, for tables that carry their number even where it is 0."""
    made: T = _written(once(make, *parts, ANY), f"_{number}", number)
    return made


def _written(value: Any, suffix: str, attempt: int) -> Any:
    def written(part: Any) -> Any:
        return _written(part, suffix, attempt)

    found = value
    if isinstance(value, str):
        found = value.replace(_MARK, suffix)
    elif isinstance(value, int) and value == ANY:
        found = attempt
    elif isinstance(value, tuple | list):
        found = type(value)(written(part) for part in value)
    elif isinstance(value, dict):
        found = {key: written(part) for key, part in value.items()}
    elif isinstance(value, Statement):
        found = replace(value, sql=written(value.sql))
    elif isinstance(value, LookUp):
        found = value.renamed(_MARK, suffix)
    elif _is_ours(value):
        found = copy.copy(value)
        vars(found).update({name: written(part) for name, part in vars(value).items()})
    return found


def _is_ours(value: object) -> bool:
    """An object of texts: what it is made of beside them (kinds, codecs, functions) stays as it is."""
    return hasattr(value, "__dict__") and not callable(value) and type(value).__module__.startswith(_STORES)
