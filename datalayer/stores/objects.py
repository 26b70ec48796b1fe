"""The port of a store of media: write-once bytes under names that are never used again.

Nothing is visible under a name before all of its bytes are durable, whatever dies meanwhile. A name is
``owner/upload``, both 32 hex digits: no text of a user ever becomes part of a path or key. The time of the upload is in
its name (a UUIDv7), so that bytes which nobody refers to can be told from bytes that are just being referred to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from datalayer.errors import Corrupt, InvalidArgument, LostLease, PreconditionFailed
from datalayer.stores.base import MetaRow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from datalayer.stores.base import Token

NAME: Final = re.compile(r"[0-9a-f]{32}/[0-9a-f]{32}")
CHUNK: Final = 256 << 10
"""Bytes that are read or written at once."""
_ROLES: Final = ("authority", "copy", "retired")


class ObjectInfo(NamedTuple):
    """One object as its store knows it."""

    name: str
    size: int
    modified_us: int


class Presigned(NamedTuple):
    """A URL, and the headers that a client must send with it."""

    url: str
    headers: Mapping[str, str]


@runtime_checkable
class Objects(Protocol):
    """The objects of one place. Names that are none of ours are never touched nor shown."""

    async def create(self) -> None:
        """Make the place if absent. Idempotent."""
        ...

    async def drop(self) -> None:
        """Remove every object of the place. Idempotent."""
        ...

    async def put(self, name: str, chunks: AsyncIterator[bytes], *, content_type: str, size: int | None = None) -> None:
        """Store what ``chunks`` gives, at once or not at all; durable on return.

        AlreadyExists where the name is taken (what is there stays). What ``chunks`` raises leaves nothing behind that
        anybody sees. ``size`` in bytes is a hint.
        """
        ...

    def read(
        self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from ``start`` to before ``stop``, in pieces. NotFound.

        ``size``: what the whole object is known to have; Corrupt, before the first piece, where it has another.
        """
        ...

    async def head(self, name: str) -> ObjectInfo | None:
        """What is known of an object; None where there is none."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are gone already count as removed."""
        ...

    async def page(self, after: str, limit: int) -> Sequence[ObjectInfo]:
        """At most ``limit`` objects by name, beyond ``after``."""
        ...

    async def clear(self, before_us: int) -> int:
        """Remove what uploads that began before left unfinished; how many there were."""
        ...

    async def presign_get(
        self, name: str, expires_s: int, *, content_type: str, filename: str | None, inline: bool
    ) -> str:
        """A URL at which anybody may read one object for so long. PreconditionFailed where a store has none."""
        ...

    async def presign_put(self, name: str, expires_s: int, *, size: int, content_type: str, sha256: str) -> Presigned:
        """A URL at which anybody may store exactly this object for so long. PreconditionFailed as ``presign_get``."""
        ...

    def public_url(self, name: str) -> str | None:
        """The object's URL at the configured CDN; None where none is configured."""
        ...


def check_name(name: str) -> str:
    """A name as this module has them; InvalidArgument for any other."""
    if NAME.fullmatch(name) is None:
        raise InvalidArgument("this is no name of an object: names are made of two ids, never of what users send")
    return name


def wrong_size(name: str) -> Corrupt:
    """What is said of an object that has not as many bytes as were stored."""
    return Corrupt(f"object {name} has another size than what was stored there")


class Notes(Protocol):
    """Names without contents that a backend keeps beside its objects."""

    async def notes(self) -> list[str]:
        """All names."""
        ...

    async def note(self, name: str) -> None:
        """Enter a name, durably. Idempotent."""
        ...

    async def unnote(self, name: str) -> None:
        """Take a name out. Idempotent."""
        ...


class ObjectMeta:
    """``datalayer_meta`` and the coordinators' tokens of a backend that has neither rows nor compare-and-set.

    A row is one name, its epoch a part of it: whoever writes adds a name, and the highest epoch is the one that counts.
    """

    def __init__(self, notes: Notes, where: str) -> None:
        self._notes = notes
        self._where = where

    async def read_meta(self) -> dict[tuple[str, int], MetaRow]:
        """All rows, the newest of each place."""
        found: dict[tuple[str, int], MetaRow] = {}
        for name in await self._notes.notes():
            row = _row(name)
            if row is None:
                continue
            known = found.get((row.domain, row.attempt))
            if known is None or _rank(known) < _rank(row):
                found[row.domain, row.attempt] = row
        return found

    async def write_meta(self, row: MetaRow) -> None:
        """Enter a row; what ranks below it goes. Of two writers at once neither takes the higher one's away."""
        await self._notes.note(_name(row))
        for name in await self._notes.notes():
            other = _row(name)
            same = other is not None and (other.domain, other.attempt) == (row.domain, row.attempt)
            if same and other is not None and _rank(other) < _rank(row):
                await self._notes.unnote(name)

    async def raise_token(self, token: Token) -> None:
        """Enter a coordinator's token; LostLease where a higher one was entered."""
        prefix = f"token.{token.domain}."
        mine = f"{prefix}{token.value:020d}"
        await self._notes.note(mine)
        others = [name for name in await self._notes.notes() if name.startswith(prefix) and name != mine]
        if any(name > mine for name in others):
            raise LostLease(f"another coordinator has taken over {token.domain} in {self._where}")
        for name in others:
            await self._notes.unnote(name)


def _rank(row: MetaRow) -> tuple[int, int, str]:
    return row.epoch, _ROLES.index(row.role), row.deployment


def _name(row: MetaRow) -> str:
    return f"meta.{row.domain}.{row.attempt}.{row.epoch:016d}.{row.role}.{row.deployment}"


def _row(name: str) -> MetaRow | None:
    parts = name.split(".")
    if len(parts) != 6 or parts[0] != "meta" or parts[4] not in _ROLES:
        return None
    _, domain, attempt, epoch, role, deployment = parts
    return MetaRow(domain, int(attempt), deployment, role, int(epoch))  # type: ignore[arg-type]


def no_urls(product: str) -> PreconditionFailed:
    """What a store answers that nobody can reach by HTTP."""
    return PreconditionFailed(
        f"media lie in {product}, which has no URLs of its own",
        hint="read them with media.open and serve them from the application, or move media to an s3 backend",
    )
