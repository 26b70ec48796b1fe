"""Journal and fence of a whole domain that lies in slot groups: one guard for each group's tables, used together.

It is fenced when all of them are, and open when any of them is. A seal that fails half way - one group's fence had
lapsed - must not leave others sealed for ever: whoever looks at the state afterwards opens them again. He looks at one
group after the other while a coordinator may be at work, so "this one is open, that one sealed" proves nothing: the
first may have been seen before the fence. Only a fence that was over when it was seen, of the seal's flip or a later
one, does: each try to fence has a flip number of its own, so that flip can never be finished.
"""

from __future__ import annotations

from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from datalayer.errors import MigrationError
from datalayer.routing.shards import Group
from datalayer.routing.together import each
from datalayer.stores.base import GuardState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.routing.sharded import ShardedStore
    from datalayer.stores.base import Guard, Journal, Token

T = TypeVar("T")


def in_turn(pages: Iterable[Sequence[T]], limit: int) -> list[T]:
    """The pages' items, one of each at a time: cut off after the first groups, the others' keys would wait for as long
    as those are busy.
    """
    rows = zip_longest(*pages)
    return list(islice((item for row in rows for item in row if item is not None), limit))


class ShardedGuard:
    """The Guard of a sharded side."""

    def __init__(self, store: ShardedStore, attempt: int) -> None:
        self.journal: Journal = ShardedJournal(self)
        self.store = store
        self._attempt = attempt

    async def of(self, group: Group) -> Guard:
        """The guard of one group's tables, where they are now."""
        guard: Guard = (await self.store.store(group)).guard(group.numbered(self._attempt))
        return guard

    def groups(self) -> Sequence[Group]:
        """All groups of the place."""
        return self.store.map.groups

    async def install(self, token: Token, *, sealed: bool) -> None:
        async def act(group: Group) -> None:
            await (await self.of(group)).install(token, sealed=sealed)

        await each(self.groups(), act)

    async def apply(self, records: Sequence[Record]) -> None:
        await self.store.apply_at(records, self.of)

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        async def act(group: Group) -> None:
            await (await self.of(group)).fence(token, flip, lapse_s, lock_timeout_s)

        await each(self.groups(), act)

    async def seal(self, token: Token, flip: int) -> None:
        async def act(group: Group) -> None:
            await (await self.of(group)).seal(token, flip)

        try:
            await each(self.groups(), act)
        except MigrationError:
            await self.state()  # the fence of one group had lapsed: those that were sealed are opened again
            raise

    async def open(self, flip: int) -> None:
        async def act(group: Group) -> None:
            await (await self.of(group)).open(flip)

        await each(self.groups(), act)

    async def state(self) -> GuardState:
        groups = list(self.groups())

        async def look(group: Group) -> GuardState:
            return await (await self.of(group)).state()

        states = await each(groups, look)
        fences = {state.fence for state in states}
        over = max((state.flip for state in states if state.fence == "open"), default=0)
        stuck = {g: s.flip for g, s in zip(groups, states, strict=True) if s.fence == "sealed" and s.flip <= over}

        async def act(group: Group) -> None:
            await (await self.of(group)).open(stuck[group])

        if over > 0:
            await each(stuck, act)
        fence = "open" if "open" in fences else "lapsing" if "lapsing" in fences else "sealed"
        return GuardState(
            installed=all(state.installed for state in states),
            fence=fence,  # type: ignore[arg-type]
            flip=max((state.flip for state in states), default=0),
            tampered=any(state.tampered for state in states),
        )

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        mine = self.store.by_group(keys, lambda key: key[1])
        theirs = self.store.by_group(ghosts, lambda record: record.key)

        async def act(group: Group) -> None:
            await (await self.of(group)).repair(mine.get(group, []), theirs.get(group, []), now_us)

        await each({**mine, **theirs}, act)

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        if self.store.places.shard_map(self.store.domain, self.store.place.attempt) is None:
            return  # it was never made

        async def act(group: Group) -> None:
            await (await self.of(group)).remove(token, keep_fence=keep_fence)

        await each(self.groups(), act)


class ShardedJournal:
    """The journals of the groups, as one."""

    def __init__(self, guard: ShardedGuard) -> None:
        self._guard = guard

    async def _each(self, groups: Iterable[Group], act: Callable[[Group, Any], Any]) -> list[Any]:
        async def one(group: Group) -> Any:
            return await act(group, (await self._guard.of(group)).journal)

        return await each(groups, one)

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        def act(_: Group, journal: Any) -> Any:
            return journal.pending(limit, part=part)

        return in_turn(await self._each(self._guard.groups(), act), limit)

    async def settle(self, seen: Sequence[Record]) -> None:
        parts = self._guard.store.by_groups(seen, lambda record: record.key)
        await self._each(parts, lambda group, journal: journal.settle(parts[group]))

    async def backlog(self) -> int:
        return int(sum(await self._each(self._guard.groups(), lambda _, journal: journal.backlog())))

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        by_groups = self._guard.store.by_groups
        if keys is not None:
            named = by_groups(keys, lambda key: key[1])
            return any(await self._each(named, lambda group, journal: journal.dirty((), named[group])))
        parts = by_groups(routings, lambda routing: routing)
        return any(await self._each(parts, lambda group, journal: journal.dirty(parts[group])))

    async def foreign_writers(self) -> list[str]:
        found = await self._each(self._guard.groups(), lambda _, journal: journal.foreign_writers())
        return sorted({name for names in found for name in names})
