"""Hostile names and links swapped while media are written to a folder: what of it led outside."""

import asyncio
import contextlib
import random
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from datalayer.clock import SystemClock
from datalayer.errors import AlreadyExists, DatalayerError, InvalidArgument
from datalayer.ids import IdSource
from datalayer.stores.filesystem.backend import FilesystemBackend, FilesystemObjects

ATOMS = ("..", ".", "/", "\\", "\x00", "a", "0" * 32, "etc/passwd", "%2e%2e", "~", "\n", "é", "media", "-rf", "$(x)")
MARK = b"written by datalayer "


def hostile_name(rng: random.Random) -> str:
    """A name that is none of ours."""
    while True:
        name = "".join(rng.choice(ATOMS) for _ in range(rng.randrange(1, 6)))
        if len(name) != 65:
            return name


class Swapper(threading.Thread):
    """Puts links in the place of folders and files below the store's folder, and takes them away again."""

    def __init__(self, place: Path, outside: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.outside = outside
        self.rng = random.Random(seed)
        self.ended = threading.Event()
        self.swaps = 0

    def run(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(OSError):
                self._swap()

    def _swap(self) -> None:
        owners = list(self.place.iterdir())
        if not owners:
            return
        owner = self.rng.choice(owners)
        files = [] if owner.is_symlink() or not owner.is_dir() else list(owner.iterdir())
        victim = self.rng.choice([owner, *files])
        if victim.is_symlink():
            victim.unlink()
            return
        aside = self.place.parent / f"aside-{self.swaps}"
        Path(victim).rename(aside)
        Path(victim).symlink_to(self.outside if victim == owner else self.outside / "target")
        self.swaps += 1
        if self.rng.random() < 0.7:
            victim.unlink()
            Path(aside).rename(victim)


async def data(text: bytes) -> AsyncIterator[bytes]:
    yield text[:7]
    await asyncio.sleep(0)
    yield text[7:]


async def hostile_round(folder: Path, number: int) -> list[str]:
    """``number`` names and writes under swaps; every escape that was found."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "target").write_bytes(b"not ours")
    backend = FilesystemBackend("files", folder / "store", clock=SystemClock())
    await backend.open()
    store, ids, rng = FilesystemObjects(backend, 0), IdSource(SystemClock()), random.Random(number)
    escapes: list[str] = []
    for _ in range(number):
        name = hostile_name(rng)
        for call in (store.put(name, data(MARK), content_type="a/b"), store.head(name), store.delete([name])):
            try:
                await call
            except InvalidArgument:
                continue
            escapes.append(f"the name {name!r} was taken")
    await store.create()
    swapper = Swapper(folder / "store" / "media", outside, number)
    swapper.start()
    owners = [f"{at:032x}" for at in range(8)]
    written = 0
    for at in range(number):
        name = f"{rng.choice(owners)}/{ids.uuid7().hex}"
        with contextlib.suppress(DatalayerError):
            await store.put(name, data(MARK + name.encode()), content_type="a/b")
            written += 1
        with contextlib.suppress(DatalayerError):
            if b"not ours" in b"".join([chunk async for chunk in store.read(name)]):
                escapes.append(f"{name} was read from outside")
        with contextlib.suppress(DatalayerError, AlreadyExists):
            if at % 3 == 0:
                await store.delete([name])
    swapper.ended.set()
    swapper.join()
    found = [path for path in outside.rglob("*") if path.name != "target" or path.read_bytes() != b"not ours"]
    escapes += [f"{path.relative_to(folder)} lies outside" for path in found]
    if written == 0 or swapper.swaps == 0:
        escapes.append(f"nothing was tried: {written} written, {swapper.swaps} swapped")
    await backend.close()
    shutil.rmtree(outside)
    return escapes
