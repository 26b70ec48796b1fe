"""Redis' errors as the library's: by the code that an answer begins with, and by the moment for all others.

A write is "not applied" where the server said no, or where nothing was sent. Whatever ends a write after it was sent
leaves its outcome unknown.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from typing import Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)

CAUGHT: Final = (RedisError, OSError, EOFError)
"""What a connection of the driver may raise."""


class Refused(DatalayerError):
    """The server refuses this command as it is: repeating it is useless."""


_Make = Callable[[str], DatalayerError]


def _login(where: str) -> DatalayerError:
    # The driver's text may name what was sent: it does not travel.
    return PreconditionFailed(f"{where} refuses the login", hint="check user and password of its URL")


_BY_CODE: Final[dict[str, _Make]] = {
    "MOVED": lambda where: Unavailable(f"{where}: the slot is moving from node to node faster than it can be followed"),
    "ASK": lambda where: Unavailable(f"{where}: the slot is being moved and could not be followed"),
    "TRYAGAIN": lambda where: Unavailable(f"{where}: the slot is being moved; nothing was written"),
    "CLUSTERDOWN": lambda where: Unavailable(
        f"{where}: the cluster serves no writes (CLUSTERDOWN): a slot has no primary, or too few primaries are up"
    ),
    "LOADING": lambda where: Unavailable(f"{where} is loading its data and answers nothing yet"),
    "BUSY": lambda where: Unavailable(f"{where} is busy with a script that does not end"),
    "MASTERDOWN": lambda where: Unavailable(f"{where} is a replica that has lost its primary"),
    "READONLY": lambda where: Unavailable(
        f"{where} is a replica and takes no writes", hint="name the primary in its URL, or use redis+cluster://"
    ),
    "NOREPLICAS": lambda where: Unavailable(
        f"{where} takes no writes: fewer replicas than min-replicas-to-write are up"
    ),
    "MISCONF": lambda where: Unavailable(
        f"{where} takes no writes: it cannot save its data to the disk", hint="see its log; the disk may be full"
    ),
    "OOM": lambda where: Overloaded(f"{where} has reached maxmemory and takes no writes", hint="raise maxmemory"),
    "MAXCLIENTS": lambda where: Overloaded(f"{where} has reached maxclients", hint="raise it, or lower pool_max"),
    "NOAUTH": lambda where: PreconditionFailed(f"{where} asks for a login", hint="put user and password into its URL"),
    "WRONGPASS": _login,
    "NOPERM": lambda where: PreconditionFailed(
        f"{where} does not permit this command to the user of its URL", hint="grant it by ACL SETUSER"
    ),
}
_CERTIFICATE: Final = "presents a certificate that is not trusted"


def code_of(error: BaseException) -> str:
    """The first word of an answer that is an error; the driver takes it off where it knows the class."""
    name = _CODES.get(type(error).__name__)
    if name is not None:
        return name
    # Up to 6.2 a script's error is ERR, with the server's own answer inside.
    inner = _INNER.search(str(error))
    return inner[1] if inner else str(error).partition(" ")[0]


_CODE: Final = re.compile(r"[A-Z]{1,20}")
_INNER: Final = re.compile(r" -([A-Z]+) ")
_CODES: Final = {
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "NoScriptError": "NOSCRIPT",
    "MaxClientsError": "MAXCLIENTS",
    "AuthenticationError": "WRONGPASS",
    "NoPermissionError": "NOPERM",
}


def refused(error: RedisError, where: str) -> DatalayerError:
    """The library's error of an answer: the server did nothing."""
    code = code_of(error)
    if str(error).startswith("Authentication required"):
        code = "NOAUTH"
    known = _BY_CODE.get(code)
    if known is not None:
        return known(where)
    # The server's text may repeat what was sent, the hash of a token for example: it stays in the cause.
    said = code if _CODE.fullmatch(code) else "ERR"
    return Refused(f"{where} refuses the command ({said})")


def unreached(error: BaseException, where: str) -> DatalayerError:
    """The library's error of a connection that could not be had: nothing was sent."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return _login(where)
    if isinstance(error, ResponseError) or (isinstance(error, RedisError) and code_of(error) in _BY_CODE):
        translated = refused(error, where)
    elif _certificate(error):
        translated = PreconditionFailed(f"{where} {_CERTIFICATE}", hint="name its authority in the URL: ?ca=FILE")
    else:
        translated = Unavailable(f"{where} cannot be reached: {_reason(error)}")
    translated.__cause__ = error
    return translated


def broken(error: BaseException, where: str, *, write: bool) -> DatalayerError:
    """The library's error of a connection that broke after something was sent."""
    translated: DatalayerError
    if write:
        translated = OutcomeUnknown(f"the connection to {where} broke before it confirmed the write")
    else:
        translated = Unavailable(f"the connection to {where} broke during a read")
    translated.__cause__ = error
    return translated


def late(where: str, *, sent: bool, write: bool) -> DatalayerError:
    """The library's error of a deadline that passed."""
    if write and sent:
        return OutcomeUnknown(f"{where} did not confirm the write in time")
    return DeadlineExceeded(f"{where} did not answer in time" if sent else f"no connection to {where} in time")


def _reason(error: BaseException) -> str:
    for one in _chain(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
    return "no answer in time" if "imeout" in type(error).__name__ else "the connection failed"


def _certificate(error: BaseException) -> bool:
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found
