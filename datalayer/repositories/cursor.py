"""Page cursors: opaque, versioned, checksummed, bound to the method and its arguments.

They hold the key position only, never a driver's paging state, so one is valid on either side of a migration.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.errors import InvalidCursor

if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION: Final = b"\x01"
_CHECK_BYTES: Final = 6
_HEAD: Final = 1 + _CHECK_BYTES


def encode_cursor(position: UUID, method: str, arguments: Sequence[object]) -> str:
    """The cursor that continues a listing after this position."""
    return encode_position(position.bytes, method, arguments)


def encode_position(position: bytes, method: str, arguments: Sequence[object]) -> str:
    """As ``encode_cursor``, of a position that is no single id."""
    raw = _VERSION + _checksum(position, method, arguments) + position
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_cursor(cursor: str, method: str, arguments: Sequence[object]) -> UUID:
    """The position of a cursor; InvalidCursor when it is damaged or belongs to another listing."""
    return UUID(bytes=decode_position(cursor, method, arguments, 16))


def decode_position(
    cursor: str, method: str, arguments: Sequence[object], length: int, *, longer: bool = False
) -> bytes:
    """As ``decode_cursor``, of a position of so many bytes, or of more."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidCursor("the cursor is damaged", hint="use Page.next_cursor unchanged") from None
    if len(raw) < _HEAD or raw[:1] != _VERSION:
        raise InvalidCursor("the cursor is damaged or of another version", hint="begin the listing again")
    position = raw[_HEAD:]
    fits = len(position) >= length if longer else len(position) == length
    if not fits or raw[1:_HEAD] != _checksum(position, method, arguments):
        raise InvalidCursor(
            "the cursor belongs to another method or other arguments", hint="pass the arguments of the first page"
        )
    return position


def _checksum(position: bytes, method: str, arguments: Sequence[object]) -> bytes:
    bound = "\x00".join([method, *map(str, arguments)]).encode()
    return hashlib.blake2b(bound + position, digest_size=_CHECK_BYTES).digest()
