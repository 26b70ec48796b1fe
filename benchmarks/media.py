"""Media put and read on an S3 server beside boto3 alone, which hashes them, and beside boto3 that does not.

Both sides know the size and hold the bytes in memory. The data layer also enters each object into the catalogue (SQLite
on the same machine, a durable transaction), and asks it before it reads.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from benchmarks.figures import Aim
from benchmarks.peers.bare_media import BareMedia
from benchmarks.slices import Call, Slice, beside, interleaved
from benchmarks.stage import Ground, create_schemas, settings_of
from datalayer.layer import DataLayer
from datalayer.settings import BackendUrl
from datalayer.types import Media

SIZES = (4 << 10, 256 << 10, 8 << 20, 64 << 20)
SLICE_BYTES = 64 << 20
OBJECTS_MAX = 50
TASKS = (1, 4)
AIM = Aim(1.15, at_least=False)
HASHED, PLAIN = "boto3 with sha-256", "boto3 without a hash"
Say = Callable[[str], None]


async def measure(ground: Ground, sizes: Sequence[int], rounds: int, say: Say) -> dict[str, Any]:
    """put and read of objects of each size."""
    url = ground.bucket()
    settings = settings_of({"main": ground.sqlite(), "s3": url}, ground.sqlite(), media="s3")
    await create_schemas(settings)
    parsed = BackendUrl.parse(url)
    bares = {
        HASHED: BareMedia(parsed, "hashed/", hashed=True),
        PLAIN: BareMedia(parsed, "plain/", hashed=False),
    }
    told: list[dict[str, Any]] = []
    async with DataLayer.open(settings) as layer:
        for size in sizes:
            told += await _of_size(layer, bares, size, rounds)
            say(f"media: {size:,} bytes measured")
    for bare in bares.values():
        bare.close()
    return {"slices": rounds, "calls": told}


async def _of_size(layer: DataLayer, bares: dict[str, BareMedia], size: int, slices: int) -> list[dict[str, Any]]:
    objects = max(1, min(OBJECTS_MAX, SLICE_BYTES // size))
    sides: list[_Library | _Peer] = [_Library(layer, size), *(_Peer(bare, size) for bare in bares.values())]
    told: list[dict[str, Any]] = []
    for tasks in TASKS[: 1 + (objects >= TASKS[1])]:

        async def ready(at: int) -> None:
            sides[at].fresh(objects)

        puts: list[Call] = [side.put for side in sides]
        told += _told("put", await interleaved(puts, objects, tasks, slices, ready), size, tasks, bares)
        gets: list[Call] = [side.get for side in sides]
        told += _told("read", await interleaved(gets, objects, tasks, slices), size, tasks, bares)
    await layer.router("media").route.authority.drop()
    for bare in bares.values():
        await bare.clear()
    return told


def _told(
    call: str, found: list[list[Slice]], size: int, tasks: int, bares: dict[str, BareMedia]
) -> list[dict[str, Any]]:
    rows = []
    for name, theirs in zip(bares, found[1:], strict=True):
        row = beside(found[0], theirs) | {"call": f"{call} {_named(size)}", "tasks": tasks, "bare": name}
        if name == HASHED:
            row |= {"aim": str(AIM), "met": AIM.met(row["ratio"]["median"])}
        rows.append(row)
    return rows


def _named(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


class _Objects:
    """Bytes that are stored nowhere yet: each object begins with a number of its own."""

    _numbers = itertools.count()

    def __init__(self, size: int) -> None:
        self.size = size
        self._rest = os.urandom(max(0, size - 16))
        self.datas: list[bytes] = []

    def fresh(self, objects: int) -> None:
        self.datas = [next(self._numbers).to_bytes(16, "big")[: self.size] + self._rest for _ in range(objects)]


class _Library(_Objects):
    def __init__(self, layer: DataLayer, size: int) -> None:
        super().__init__(size)
        self._media = layer.media
        self._owner = uuid4()
        self._items: dict[int, Media] = {}

    async def put(self, number: int) -> object:
        self._items[number] = await self._media.put(
            owner_id=self._owner, data=self.datas[number], content_type="image/png"
        )
        return None

    async def get(self, number: int) -> object:
        data = await self._media.read(self._items[number])
        assert len(data) == self.size
        return data


class _Peer(_Objects):
    def __init__(self, bare: BareMedia, size: int) -> None:
        super().__init__(size)
        self._bare = bare
        self._items: dict[int, tuple[str, str]] = {}

    async def put(self, number: int) -> object:
        name = uuid4().hex
        self._items[number] = (name, await self._bare.put(name, self.datas[number]))
        return None

    async def get(self, number: int) -> object:
        return await self._bare.get(*self._items[number], self.size)
