"""Exit codes, mapped from the error tree in this one place."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from datalayer import errors


class ExitCode(IntEnum):
    """What a command's exit code says; part of the public face."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PRECONDITION = 3
    DIFFERENCES = 4
    NOT_FINISHED = 5
    INTERRUPTED = 130


class Stopped(errors.NotFinished):
    """Stopped as asked, at a safe point; the same command goes on."""


# The first class that fits decides, so the special stands before the general.
_CODES: Final[tuple[tuple[type[errors.DatalayerError], ExitCode], ...]] = (
    (errors.MissingDependencyError, ExitCode.PRECONDITION),
    (errors.ConfigurationError, ExitCode.USAGE),
    (errors.InvalidArgument, ExitCode.USAGE),
    (errors.PreconditionFailed, ExitCode.PRECONDITION),
    (errors.VerificationFailed, ExitCode.DIFFERENCES),
    (Stopped, ExitCode.INTERRUPTED),
    (errors.NotFinished, ExitCode.NOT_FINISHED),
    (errors.LostLease, ExitCode.NOT_FINISHED),
    (errors.DatalayerError, ExitCode.FAILED),
)


def exit_code(error: errors.DatalayerError) -> ExitCode:
    """The exit code of a command that ended with ``error``."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
