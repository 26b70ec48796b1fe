"""Lua scripts: called by their hash, sent whole to a server that does not know them yet.

Lua's numbers are doubles, exact to 2^53: whatever may be larger (versions) is compared as decimal text. Lua compares
text by the server's locale, so text that may be more than digits is compared byte by byte.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Argument = bytes | str | int


class Script:
    """One Lua text and its hash."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.sha: Final = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[bytes], arguments: Sequence[Argument] = ()) -> Call:
        """A call of it; all keys lie in one slot of a cluster, by their hash tag."""
        return Call(("EVALSHA", self.sha, len(keys), *keys, *arguments), keys[0], self)


class Call(NamedTuple):
    """One command. ``key`` decides the node in a cluster (None: any); ``script`` is what an EVALSHA stands for."""

    arguments: tuple[Argument, ...]
    key: bytes | None
    script: Script | None = None
    packed: bytes | None = None
    """The command as it is sent, where its maker has it already."""

    def whole(self) -> Call:
        """The same call with the script's text, for a server that does not know its hash."""
        assert self.script is not None, "only a script is known by its hash"
        return Call(("EVAL", self.script.text, *self.arguments[2:]), self.key)


def pack(arguments: Sequence[Argument]) -> bytes:
    """A command as it is sent. The driver looks for more in each argument, in more time than a server needs to run it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for one in arguments:
        value = one if isinstance(one, bytes) else (one.encode() if isinstance(one, str) else b"%d" % one)
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


def command(name: str, *arguments: Argument, key: bytes | None = None) -> Call:
    """A plain command; its first argument is its key unless another one is named."""
    if key is None and arguments and isinstance(arguments[0], bytes):
        key = arguments[0]
    return Call((name, *arguments), key)
