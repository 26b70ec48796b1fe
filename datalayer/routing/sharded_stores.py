"""Which store a domain has on a sharded backend; sessions over their slot groups."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import Unavailable
from datalayer.routing.sharded import (
    ShardedCatalogue,
    ShardedConversations,
    ShardedListings,
    ShardedMessages,
    ShardedStore,
    ShardedUsers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.stores.base import Executed
    from datalayer.types import Session, SessionCut


class ShardedSessions(ShardedStore):
    """Sessions: those of a user lie in one group, the cut with them."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        return await self.router(mutation.user_id.bytes).execute(mutation, deadline)

    async def get(self, user_id: UUID, id: UUID, deadline: Deadline) -> tuple[Session | None, SessionCut | None]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.get(user_id, id, deadline)

        found: tuple[Session | None, SessionCut | None] = await self.read(user_id.bytes, call, deadline)
        return found

    async def of_user(self, user_id: UUID, limit: int, deadline: Deadline) -> tuple[list[Session], SessionCut | None]:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.of_user(user_id, limit, deadline)

        found: tuple[list[Session], SessionCut | None] = await self.read(user_id.bytes, call, deadline)
        return found

    async def purge(self, before_us: int, limit: int) -> tuple[int, int]:
        """Of the groups that are at rest; a shard that is down keeps what it has until later."""
        looked, taken = 0, 0
        for group in self.map.groups:
            router = self.places.group_routers[group.name]
            if looked >= limit or not router.serves or not router.routing.at_rest:
                continue
            with suppress(Unavailable):
                seen, gone = await router.route.authority.purge(before_us, limit - looked)
                looked, taken = looked + seen, taken + gone
        return looked, taken


STORES: Final[Mapping[str, type[ShardedStore]]] = {
    "messages": ShardedMessages,
    "users": ShardedUsers,
    "conversations": ShardedConversations,
    "listings": ShardedListings,
    "catalogue": ShardedCatalogue,
    "sessions": ShardedSessions,
}
