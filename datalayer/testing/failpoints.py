"""Failpoints: make this process die, stop or fail when it reaches a named point.

A point's name is the name of an action of the plan, or of something an action announces (``hold.drained``,
``backfill.page``). Text form, for the environment: ``NAME=ACTION[@N]``, several separated by ``;``. NAME may be a
glob; ``@N`` means the N-th time it is reached (default: the first); each failpoint acts once in a process's life.

    DATALAYER_FAILPOINTS="hold.drained=kill; backfill.page=pause@7"

The engine knows nothing of this module: it is handed ``reach`` by whoever wires it for a test or the demo.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from datalayer.errors import DatalayerError, InvalidArgument, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE: Final = "DATALAYER_FAILPOINTS"
EXIT_CODE: Final = 77
FailAction = Literal["kill", "exit", "pause", "raise"]


class FailpointReached(DatalayerError):
    """A failpoint was told to raise here."""

    outcome = Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class Failpoint:
    """``kill`` and ``pause`` send SIGKILL and SIGSTOP to this process, ``exit`` leaves at once, ``raise`` raises."""

    name: str
    action: FailAction
    nth: int = 1


class Failpoints:
    """The failpoints of one process. ``reached`` counts every point passed, planned or not."""

    def __init__(self, points: Iterable[Failpoint] = ()) -> None:
        self._points = list(points)
        self._matched: Counter[Failpoint] = Counter()
        self.reached: Counter[str] = Counter()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse the text form. Raises InvalidArgument for anything else."""
        return cls(_parse(part.strip()) for part in text.split(";") if part.strip())

    @classmethod
    def from_environment(cls) -> Self:
        """Those of $DATALAYER_FAILPOINTS; none when it is not set."""
        return cls.from_text(os.environ.get(VARIABLE, ""))

    async def reach(self, name: str) -> None:
        """Pass the point ``name``, or not. Raises FailpointReached where told to."""
        self.reached[name] += 1
        for point in self._points:
            if fnmatchcase(name, point.name):
                self._matched[point] += 1
                if self._matched[point] == point.nth:
                    _act(point, name)


def _parse(part: str) -> Failpoint:
    name, separator, rest = part.partition("=")
    action, at, nth = rest.partition("@")
    nth = nth if at else "1"
    if not separator or not name or action not in get_args(FailAction) or not nth.isdecimal():
        known = ", ".join(get_args(FailAction))
        raise InvalidArgument(f"{part!r} is no failpoint", hint=f"write NAME=ACTION[@N], ACTION one of {known}")
    return Failpoint(name.strip(), action, max(int(nth), 1))  # type: ignore[arg-type]  # looked up just above


def _act(point: Failpoint, name: str) -> None:
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif point.action == "exit":
        os._exit(EXIT_CODE)
    else:
        raise FailpointReached(f"failpoint {name!r} was reached")
