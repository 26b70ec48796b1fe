"""A sharded place as the suites' Backend: each client has places of its own, with a router for each slot group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datalayer.control.memory import MemoryControl
from datalayer.routing.lease import Lease
from datalayer.routing.places import Places
from datalayer.routing.route import Place
from datalayer.routing.router import Router
from datalayer.routing.shards import parse_group
from datalayer.stores.sharded import ShardedBackend, member_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.control.memory_server import MemoryControlServer
    from datalayer.domains.record import Key
    from datalayer.routing.sharded import ShardedStore
    from datalayer.stores.base import AuthorityClass, Backend, MetaRow, Token

NAME = "shards"


class ShardedClient:
    """One client of a sharded backend: what an open DataLayer wires together, without its watchdog."""

    name = NAME
    product = "sharded"
    authority_class: AuthorityClass = "transactional"

    def __init__(
        self,
        members: Mapping[str, Backend],
        control: MemoryControlServer,
        clock: Clock,
        *,
        groups: int,
        regions: Mapping[str, str] | None = None,
    ) -> None:
        self._members = {member_name(NAME, name): member for name, member in members.items()}
        self._sharded = ShardedBackend(NAME, self._members, groups=groups, regions=regions)
        self._control = control
        self._lease = Lease(clock)
        self.places = Places({NAME: self._sharded, **self._members}, MemoryControl(control), clock, eager=False)

    async def open(self) -> None:
        await self.places.ensure_open(Place(NAME))

    async def close(self) -> None:
        for member in self._members.values():
            await member.close()

    async def ping(self, deadline: Deadline) -> None:
        await self._sharded.ping(deadline)

    def refuses(self, domain: str) -> str | None:
        return self._sharded.refuses(domain)

    async def ensure_schema(self, *, create: bool) -> None:
        await self._sharded.ensure_schema(create=create)

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        return await self._sharded.read_meta()

    async def write_meta(self, row: MetaRow) -> None:
        await self._sharded.write_meta(row)

    async def raise_token(self, token: Token) -> None:
        await self._sharded.raise_token(token)

    def store(self, domain: str, attempt: int) -> Any:
        """The composite over the groups of this attempt; those not made yet are met when it makes them."""
        store: ShardedStore = self.places.store(domain, Place(NAME, attempt))
        self.meet()
        if "create" not in vars(store):
            make = store.create

            async def create() -> None:
                await make()
                self.meet()

            store.create = create  # type: ignore[method-assign]
        return store

    def meet(self) -> None:
        """What a watchdog does with news: a router for each slot group, with its newest routing."""
        routings = dict(self._control.routes)
        self.places.learn(routings)
        for name, routing in routings.items():
            if parse_group(name) is not None and name not in self.places.group_routers:
                router = Router(name, self._lease, lambda: None, lambda: 0.0, nested=True)
                router.adopt(self.places.compile(routing))
                self.places.group_routers[name] = router


def place_of(store: ShardedStore, key: Key) -> Place:
    """Where a key's slot group lies: for programs that know the tables and nothing of the library."""
    return store.places.routing_of(store.map.group_of(key[1]).name).authority
