"""The importer of exported records: each is stored exactly as it was, version and all, where nothing is stored yet.

It writes to the store itself, not through mutations: the domain must be at rest, and whoever calls holds the lease of
whoever moves it meanwhile. What is stored already is left alone, whatever the file says of it; applications go on beside
it. After a crash or a stop the same import goes on. Of a user the claims on its names come first: only who has all of
them gets its row (routing/claims.py).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

from datalayer.domains.record import DIGEST_MODULUS, Record, digest
from datalayer.domains.users import CreateUser, claim_keys, claim_record, taken, to_user
from datalayer.errors import InvalidArgument, PreconditionFailed, Quarantine
from datalayer.exporting.shapes import RECORD, check_shape, shapes_of
from datalayer.importing.exported import ExportedLines
from datalayer.importing.files import BadLine
from datalayer.importing.lines import json_object
from datalayer.importing.reading import FileImporter, Found, ImportReport, Line, Progress, silent
from datalayer.importing.users import ALIKE, NameList
from datalayer.routing.shards import base_domain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from datalayer.domains.record import FieldValue, Key
    from datalayer.importing.files import Lines
    from datalayer.importing.tally import Tally
    from datalayer.layer import DataLayer
    from datalayer.stores.base import Port

BATCH_LINES: Final = 2000
LINE_MAX: Final = 8 << 20
_ADOPT_S: Final = 10.0


async def import_records(
    layer: DataLayer,
    domain: str,
    path: Path,
    *,
    lease: Callable[[], AbstractAsyncContextManager[int]],
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = silent,
) -> ImportReport:
    """Store the records of an export of a domain.

    ``stop`` reads the whole file first and stores nothing unless every record is good, none is missing and the digest is
    that of the export (BadLines); ``skip`` leaves out what is bad. ``lease`` makes the lease of whoever moves the domain
    (``migrators.lease.held_lease``). Raises PreconditionFailed while the domain is moving, else as ``import_messages``.
    """
    kind = UserRecords if domain == "users" else RecordImporter
    importer = kind(layer, domain, path, progress)
    if on_error == "stop":
        await importer.check()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lease())
        await importer.take_store()
        return await importer.store()


class RecordImporter(FileImporter[Record]):
    """Records of any domain whose records do not depend on each other."""

    batch_lines = BATCH_LINES

    def __init__(self, layer: DataLayer, domain: str, path: Path, progress: Callable[[Progress], None]) -> None:
        super().__init__(layer.clock, path, LINE_MAX, progress)
        self._layer = layer
        self._domain = domain
        self._shapes = shapes_of(domain)
        self._body_max = layer.settings.limits.body_max_bytes
        self._port: Port | None = None
        self._put: Callable[[Sequence[Record]], Awaitable[None]] | None = None
        self._digest = 0
        self._file: ExportedLines | None = None

    def _open(self) -> Lines:
        self._file = ExportedLines(self._path, self._line_max)
        return self._file

    def _parse_line(self, raw: bytes, now_us: int) -> tuple[Record, frozenset[str]]:
        fields = json_object(raw)
        name = fields.get(RECORD) if len(self._shapes) > 1 else next(iter(self._shapes))
        shape = self._shapes.get(name) if isinstance(name, str) else None
        if shape is None:
            raise InvalidArgument(f"{RECORD} is none of {', '.join(self._shapes)}")
        record = shape.to_record(fields, now_us)
        check_shape(self._domain, record)
        if self._domain == "messages" and len(str(record.fields[1]).encode()) > self._body_max:
            raise InvalidArgument(f"body is longer than {self._body_max} bytes, this deployment's limit")
        return record, frozenset(fields.keys() - shape.known)

    async def _check_batch(self, lines: list[Line[Record]], found: Found) -> None:
        for line in lines:
            shape = self._shapes[line.item.kind]
            self._digest = (self._digest + digest(shape.kind, line.item)) % DIGEST_MODULUS

    async def _check_end(self, found: Found) -> None:
        if found.bad or self._file is None or self._file.end is None:
            return
        told, digest_hex = self._file.end.get("digest"), format(self._digest, "032x")
        if told != digest_hex:
            reason = f"the file was changed after its export: the digest of its records is {digest_hex}, not {told}"
            found.note_bad(BadLine(self._file.number, reason))

    # --- store ------------------------------------------------------------------------------------------------------

    async def take_store(self) -> None:
        """The store to write to, under the lease. PreconditionFailed while the domain moves."""
        places, router = self._layer.places, self._layer.router(self._domain)
        until = self._clock.monotonic() + _ADOPT_S
        while True:
            _, routings = await places.control.routings()
            mine = [routing for name, routing in routings.items() if base_domain(name) == self._domain]
            if not all(routing.at_rest for routing in mine):
                raise PreconditionFailed(
                    f"{self._domain} is being moved, and exported records are stored at rest only",
                    hint="datalayer migrations status; complete or cancel it first",
                )
            if router.routing == routings[self._domain]:
                self._port = router.route.authority
                self._put = places.putter(router.routing)
                return
            if self._clock.monotonic() >= until:
                raise PreconditionFailed(f"this process does not hear where {self._domain} is served from")
            await asyncio.sleep(0.05)

    @property
    def _store_port(self) -> Port:
        assert self._port is not None, "the store is taken under the lease"
        return self._port

    async def _store_batch(self, lines: list[Line[Record]], found: Found, tally: Tally) -> None:
        first: dict[Key, Line[Record]] = {}
        for line in lines:
            first.setdefault(line.item.ident, line)
        at = lines[0].number if lines else 0
        stored = await self._fetch(list(first), at)
        missing = [line for key, line in first.items() if key not in stored]
        refused = await self._add(missing, stored, at)
        found.new += len(missing) - len(refused)
        for line in lines:
            if (reason := refused.get(line.item.ident)) is not None:
                found.good -= 1
                found.note_bad(BadLine(line.number, reason))
                continue
            shape, record = self._shapes[line.item.kind], stored[line.item.ident]
            tally.add_record(shape.kind, shape.normal(record))
            if shape.normal(record) != line.item:
                found.note_differing(line.number)

    async def _add(self, lines: Sequence[Line[Record]], stored: dict[Key, Record], at: int) -> dict[Key, str]:
        """Store records that are not there; why those were refused that were."""
        refused = await self._apply([line.item for line in lines], at)
        now = await self._fetch([line.item.ident for line in lines if line.item.ident not in refused], at)
        stored.update(now)
        return refused

    async def _apply(self, records: Sequence[Record], at: int) -> dict[Key, str]:
        if not records:
            return {}
        assert self._put is not None, "the store is taken under the lease"
        try:
            await self._persist(partial(self._put, records), at)
        except Quarantine as error:
            return dict(error.rejected)
        return {}

    async def _fetch(self, keys: Sequence[Key], at: int) -> dict[Key, Record]:
        if not keys:
            return {}
        found: dict[Key, Record] = await self._persist(partial(self._store_port.fetch, keys), at)
        return found


class UserRecords(RecordImporter):
    """Users, with the claims on their names."""

    _names: NameList | None = None

    async def check(self) -> None:
        with NameList() as self._names:
            await super().check()

    async def _check_batch(self, lines: list[Line[Record]], found: Found) -> None:
        await super()._check_batch(lines, found)
        assert self._names is not None, "a check keeps a list of names"
        for line in lines:
            if not line.item.deleted:
                self._names.add(Line(line.number, _names_of(line.item)))

    async def _check_end(self, found: Found) -> None:
        await super()._check_end(found)
        assert self._names is not None, "a check keeps a list of names"
        for bad in await asyncio.to_thread(self._names.collisions):
            found.note_bad(bad)

    async def _add(self, lines: Sequence[Line[Record]], stored: dict[Key, Record], at: int) -> dict[Key, str]:
        refused = await self._claim(lines, at)
        rest = [line for line in lines if line.item.ident not in refused]
        return refused | await super()._add(rest, stored, at)

    async def _claim(self, lines: Sequence[Line[Record]], at: int) -> dict[Key, str]:
        """Claim the names of these users; those who do not get all of theirs, and why."""
        wanted = {line.item.ident: _claims_of(line.item) for line in lines if not line.item.deleted}
        before = await self._fetch([key for keys in wanted.values() for key in keys], at)
        refused: dict[Key, str] = {}
        claims: list[Record] = []
        met: dict[Key, Key] = {}
        for line in lines:
            keys = wanted.get(line.item.ident, [])
            bad = [key for key in keys if met.setdefault(key, line.item.ident) != line.item.ident]
            bad += [key for key in keys if _owner(before.get(key)) not in {None, line.item.key}]
            if bad:
                refused[line.item.ident] = _refusal(bad[0], line.item)
                continue
            claims += [_claim_of(key, line.item, before.get(key)) for key in keys if _owner(before.get(key)) is None]
        await self._apply(claims, at)
        # Who claimed in between has a younger claim: it won, and the other name is given back.
        after = await self._fetch([claim.ident for claim in claims], at)
        lost = {bytes(c.fields[0]): c.ident for c in claims if _owner(after.get(c.ident)) != c.fields[0]}  # type: ignore[arg-type]
        refused |= {
            line.item.ident: _refusal(lost[line.item.key], line.item) for line in lines if line.item.key in lost
        }
        back = [c._replace(version=c.version + 2, deleted=True) for c in after.values() if c.fields[0] in lost]
        await self._apply(back, at)
        return refused


def _names_of(record: Record) -> CreateUser:
    user = to_user(record)
    return CreateUser(user.id, user.username, user.email)


def _claims_of(record: Record) -> list[Key]:
    names = _names_of(record)
    return [("claim", key) for key in claim_keys(names.username, names.email)]


def _owner(claim: Record | None) -> FieldValue:
    """Who holds a claim; None when nobody does."""
    return None if claim is None or claim.deleted else claim.fields[0]


def _claim_of(key: Key, user: Record, released: Record | None) -> Record:
    """The claim of a user, above one that was given back."""
    version = user.version if released is None else max(user.version, released.version + 2)
    return claim_record(key[1], UUID(bytes=user.key), version)


def _refusal(key: Key, user: Record) -> str:
    return f"{taken(key[1], _names_of(user)).message} ({ALIKE})"
