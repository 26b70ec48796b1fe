"""Rows of a backend without rows: two who write at once leave the higher one, whoever lists first."""

import pytest

from datalayer.stores.base import MetaRow
from datalayer.stores.objects import ObjectMeta


class Shared:
    """Names in a set; whoever lists may let another writer go first."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.between: list[MetaRow] = []

    async def notes(self) -> list[str]:
        while self.between:
            await ObjectMeta(self, "here").write_meta(self.between.pop())
        return sorted(self.names)

    async def note(self, name: str) -> None:
        self.names.add(name)

    async def unnote(self, name: str) -> None:
        self.names.discard(name)


def row(role: str, deployment: str = "one", epoch: int = 5) -> MetaRow:
    return MetaRow("media", 0, deployment, role, epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "between", "kept"),
    [
        (row("authority"), row("retired"), row("retired")),
        (row("retired"), row("authority"), row("retired")),
        (row("copy"), row("authority", epoch=6), row("authority", epoch=6)),
        (row("authority", "one"), row("authority", "two"), row("authority", "two")),
        (row("authority", "two"), row("authority", "one"), row("authority", "two")),
    ],
)
async def test_of_two_writers_of_one_epoch_neither_takes_the_higher_away(
    written: MetaRow, between: MetaRow, kept: MetaRow
) -> None:
    shared = Shared()
    meta = ObjectMeta(shared, "here")
    shared.between = [between]
    await meta.write_meta(written)
    assert await meta.read_meta() == {("media", 0): kept}
    assert len(shared.names) <= 2
    await meta.write_meta(kept)
    assert len(shared.names) == 1
