"""Self-describing values: what a message holds proves by itself who wrote it, and that nothing of it is torn.

The hash covers the key, the sender, the writer, the number of the operation and the body, and lies in the
attributes; so a body of one version beside the attributes of another, a value that landed under another key, and a
cut or re-encoded body all fail the same comparison, also for a body of eight bytes.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_OID, UUID, uuid5

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.types import Message

TOKEN_BYTES: Final = 16
SHORTEST_BODY: Final = 8
LONGEST_BODY: Final = 8 * 1024
# The real chat's sizes: median 160 bytes, nine tenths below 1.3 kB, one in a hundred above 10 kB (cut to 8 kB here).
_SIZES: Final = ((0.10, 8, 24), (0.50, 24, 160), (0.90, 160, 1_300), (0.99, 1_300, 4_000), (1.0, 4_000, LONGEST_BODY))
_WORDS: Final = (
    "lemma",
    "proof",
    "naïve",
    "Größe",
    "λ-calculus",
    "∀x∃y",
    "猫が好き",
    "привет",
    "שלום",
    "e\u0301tude",
    "👩‍🚀",
    "𝔽₂",
    "'quoted'",
    '"double"',
    "back\\slash",
    "tab\there",
    "line\nbreak",
    "$1 %s ?",
)


@dataclass(frozen=True, slots=True)
class Value:
    """What one write stores, and the 16 bytes that identify it."""

    token: bytes
    body: str
    attributes: Mapping[str, Any]


class Torn(Exception):
    """A stored value does not describe itself: its parts come from different writes, or were changed."""


def sender_of(key: bytes) -> UUID:
    """The sender of a message that a workload appends: everybody who edits it can tell who it must be."""
    return uuid5(NAMESPACE_OID, key.hex())


def compose(key: bytes, process: str, number: int, rng: random.Random, *, sender: bool = True) -> Value:
    """The value of operation ``number`` of a process: a body of chat-like size that no other operation writes.

    ``sender=False`` for an edit of a message that was there before the workload: it has another sender.
    """
    body = _body(f"{process}.{number} ", rng)
    expected = sender_of(key).hex if sender else ""
    token = _token(key, expected, process, number, body)
    attributes = {"process": process, "number": number, "sender": expected, "hash": token.hex()}
    return Value(token, body, attributes)


def token_of(message: Message) -> bytes:
    """The token of a stored message, after recomputing it from everything else. Raises Torn.

    A message that does not describe itself (imported, or there before the workload) is identified by its content.
    """
    key = message.conversation_id.bytes + message.id.bytes
    attributes = message.attributes
    if "hash" not in attributes:
        return _token(key, message.sender_id.hex, "", 0, message.body)
    process, number, sender = (attributes.get(name) for name in ("process", "number", "sender"))
    if not (isinstance(process, str) and isinstance(number, int) and isinstance(sender, str)):
        raise Torn("attributes lack their parts")
    if sender not in {"", message.sender_id.hex}:
        raise Torn("sender is not the one it tells")
    token = _token(key, sender, process, number, message.body)
    if token.hex() != attributes["hash"]:
        raise Torn("value does not match its hash")
    return token


def _token(key: bytes, sender: str, process: str, number: int, body: str) -> bytes:
    digest = hashlib.blake2b(digest_size=TOKEN_BYTES)
    digest.update(key + f"{sender}:{process}.{number}:".encode())
    digest.update(body.encode())
    return digest.digest()


def _body(head: str, rng: random.Random) -> str:
    draw = rng.random()
    low, high = next((low, high) for share, low, high in _SIZES if draw <= share)
    wanted = rng.randint(low, high)
    parts, size = [head], len(head.encode())
    while size < max(wanted, SHORTEST_BODY):
        word = rng.choice(_WORDS) + " "
        parts.append(word)
        size += len(word.encode())
    return "".join(parts)
