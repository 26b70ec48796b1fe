"""The doctor's test object tells what a store of media does not do."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import Unavailable
from datalayer.ids import IdSource
from datalayer.migrators.objectprobe import Failed, probe
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.memory.objects import MemoryObjects

uuid7 = IdSource(SystemClock()).uuid7


class Replacing(MemoryObjects):
    def _land(self, name: str, held: bytes) -> None:
        self._stored.pop(name, None)
        super()._land(name, held)


class WholeForPart(MemoryObjects):
    async def read(
        self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        async for chunk in super().read(name):
            yield chunk


class Undeleted(MemoryObjects):
    async def delete(self, names: Any) -> None:
        """Nothing."""


class Unlisted(MemoryObjects):
    async def page(self, after: str, limit: int) -> Any:
        raise Unavailable("no listing")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Replacing, "ignores If-None-Match"),
        (WholeForPart, "a part of the test object is not what was stored"),
        (Undeleted, "still there after it was deleted"),
        (Unlisted, "a test object could not be listed: no listing"),
    ],
)
async def test_what_a_store_does_not_do_is_told(kind: type[MemoryObjects], said: str) -> None:
    store = kind(MemoryBackend(MemoryServer("broken", SystemClock())), 0)
    with pytest.raises(Failed, match=said) as told:
        await probe(store, uuid7())
    assert told.value.way_out
    assert kind is Undeleted or store._stored == {}


async def test_a_store_in_order_keeps_nothing_of_it() -> None:
    store = MemoryObjects(MemoryBackend(MemoryServer("good", SystemClock())), 0)
    await probe(store, uuid7())
    assert store._stored == {}
