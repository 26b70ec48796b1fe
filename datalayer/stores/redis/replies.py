"""The answers of a pipeline, made from the bytes as they arrive.

The driver makes one answer at a time, and waits for each as if it had not come yet: a dozen calls of coroutines for an
answer of four bytes, and as many for each element of a list. Here whatever has come is made into answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Callable

_END: Final = b"\r\n"
_STATUS, _ERROR, _NUMBER, _TEXT, _LIST = b"+-:$*"


class Replies:
    """So many answers in the second version of the protocol, which come in pieces of any size.

    Texts are bytes, numbers are int, nothing is None, lists are lists. An error is in the place of its answer, but for
    those that end a connection, which are raised: as the driver has it.
    """

    __slots__ = ("_error_of", "_lists", "_pieces", "_short_of", "found")

    def __init__(self, many: int, error_of: Callable[[str], Exception]) -> None:
        """``error_of``: the driver's error of an answer."""
        self._error_of = error_of
        self.found: list[Any] = []
        # Those that are being filled, each with how many it is to have, the outermost first.
        self._lists: list[tuple[list[Any], int]] = [(self.found, many)]
        self._pieces: list[bytes] = []
        self._short_of = 0

    def feed(self, piece: bytes) -> bool:
        """Take what has come; whether all answers are there.

        Raises InvalidResponse for what is no answer, or more of them than were asked for.
        """
        self._pieces.append(piece)
        self._short_of -= len(piece)
        if self._short_of > 0:  # a long text is put together once
            return False
        data = piece if len(self._pieces) == 1 else b"".join(self._pieces)
        try:
            at = self._read(data)
        except ValueError:
            raise InvalidResponse("the server's answer is none of Redis") from None
        if not self._lists:
            if at != len(data):
                raise InvalidResponse("the server has sent more than it was asked for")
            return True
        self._pieces = [data[at:]]
        return False

    def _read(self, data: bytes) -> int:
        """Make answers of all that is whole; where the rest begins."""
        at = self._short_of = 0
        lists, find = self._lists, data.find
        filling, wanted = lists[-1]
        while True:
            while len(filling) == wanted:
                lists.pop()
                if not lists:
                    return at
                filling, wanted = lists[-1]
            end = find(_END, at)
            if end < 0:
                return at
            kind = data[at]
            if kind == _NUMBER:
                filling.append(int(data[at + 1 : end]))
            elif kind == _TEXT:
                size = int(data[at + 1 : end])
                if size >= 0:
                    start, end = end + 2, end + 2 + size
                    if len(data) < end + 2:
                        self._short_of = end + 2 - len(data)
                        return at
                    filling.append(data[start:end])
                else:
                    filling.append(None)
            elif kind == _LIST:
                size = int(data[at + 1 : end])
                filling.append([] if size >= 0 else None)
                if size > 0:
                    filling, wanted = filling[-1], size
                    lists.append((filling, wanted))
            else:
                filling.append(self._other(kind, data[at + 1 : end]))
            at = end + 2

    def _other(self, kind: int, line: bytes) -> Any:
        if kind == _STATUS:
            return line
        if kind != _ERROR:
            raise InvalidResponse("the server's answer is none of Redis")
        error = self._error_of(line.decode("utf-8", errors="replace"))
        if isinstance(error, RedisConnectionError):
            raise error
        return error
