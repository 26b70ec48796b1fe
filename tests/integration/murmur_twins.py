"""Keys of one token: Murmur3 is invertible, so that two partitions with the same token can be computed.

Cassandra's token is the first half of MurmurHash3_x64_128 (seed 0) of the serialised partition key. A key here has one
block of 16 bytes and a tail; with the tail kept, another block with the same token is found by running the hash back.
"""

import random
from typing import Final
from uuid import UUID

_MASK: Final = (1 << 64) - 1
_C1: Final = 0x87C37B91114253D5
_C2: Final = 0x4CF5AD432745937F
_F1: Final = 0xFF51AFD7ED558CCD
_F2: Final = 0xC4CEB9FE1A85EC53


def _rotl(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _MASK


def _rotr(value: int, by: int) -> int:
    return _rotl(value, 64 - by)


def _inverse(number: int) -> int:
    return pow(number, -1, 1 << 64)


def _mix(value: int) -> int:
    value = (value ^ value >> 33) * _F1 & _MASK
    value = (value ^ value >> 33) * _F2 & _MASK
    return value ^ value >> 33


def _unmix(value: int) -> int:
    value = (value ^ value >> 33) * _inverse(_F2) & _MASK
    value = (value ^ value >> 33) * _inverse(_F1) & _MASK
    return value ^ value >> 33


def _tail(tail: bytes) -> tuple[int, int]:
    """What a tail of less than 16 bytes adds to (h1, h2). Cassandra extends the sign of each byte of a tail."""
    halves = [0, 0]
    for at, byte in enumerate(tail):
        signed = byte - 256 if byte > 127 else byte
        halves[at // 8] ^= (signed << at % 8 * 8) & _MASK
    k1 = _rotl(halves[0] * _C1 & _MASK, 31) * _C2 & _MASK
    k2 = _rotl(halves[1] * _C2 & _MASK, 33) * _C1 & _MASK
    return k1, k2


def token_of(key: bytes) -> int:
    """The unsigned token of a key of 16 to 31 bytes."""
    k1, k2 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:16], "little")
    h1 = _rotl(k1 * _C1 & _MASK, 31) * _C2 & _MASK
    h1 = _rotl(h1, 27) * 5 + 0x52DCE729 & _MASK
    h2 = _rotl(k2 * _C2 & _MASK, 33) * _C1 & _MASK
    h2 = (_rotl(h2, 31) + h1) * 5 + 0x38495AB5 & _MASK
    t1, t2 = _tail(key[16:])
    h1, h2 = h1 ^ t1 ^ len(key), h2 ^ t2 ^ len(key)
    low = h1 + h2 & _MASK
    return _mix(low) + _mix(low + h2 & _MASK) & _MASK


def _block_for(h1: int, h2: int, tail: bytes) -> bytes:
    """The block of 16 bytes after which, with this tail, the hash stands at (h1, h2) before its last mixing."""
    length = 16 + len(tail)
    t1, t2 = _tail(tail)
    h1, h2 = h1 ^ t1 ^ length, h2 ^ t2 ^ length
    h2 = _rotr(((h2 - 0x38495AB5) * _inverse(5) & _MASK) - h1 & _MASK, 31)
    h1 = _rotr((h1 - 0x52DCE729) * _inverse(5) & _MASK, 27)
    k1 = _rotr(h1 * _inverse(_C2) & _MASK, 31) * _inverse(_C1) & _MASK
    k2 = _rotr(h2 * _inverse(_C1) & _MASK, 33) * _inverse(_C2) & _MASK
    return k1.to_bytes(8, "little") + k2.to_bytes(8, "little")


def twin_conversation(routing_key: bytes, rng: random.Random) -> UUID:
    """Another conversation whose partition of the same bucket has the same token.

    ``routing_key``: 2 bytes of length, the conversation, a zero, then the rest. The first 14 bytes of the
    conversation are in the block; its first two bytes must come out as that length, so about 2**16 tries are needed.
    """
    token, tail = token_of(routing_key), routing_key[16:]
    while True:
        low = rng.getrandbits(64)
        h2 = (_unmix(token - _mix(low) & _MASK) - low) & _MASK
        block = _block_for(low - h2 & _MASK, h2, tail)
        if block[:2] == routing_key[:2] and block != routing_key[:16]:
            assert token_of(block + tail) == token
            return UUID(bytes=(block + tail)[2:18])
