"""A sharded backend: several databases of one kind under one name. Which of them holds what is the shard map's affair
(``routing.shards``); here is what is asked of all of them together.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Deadline
    from datalayer.stores.base import AuthorityClass, Backend, MetaRow, Token


_UNCUT: Final = frozenset({"search", "media"})
"""Domains that are not cut into slot groups."""


def member_name(backend: str, member: str) -> str:
    """What a member is called among the backends."""
    return f"{backend}/{member}"


class ShardedBackend:
    """The members by their full names (``shards/s0``). They are opened one by one, as their slot groups are used."""

    product: str = "sharded"
    authority_class: AuthorityClass = "transactional"

    def __init__(
        self,
        name: str,
        members: Mapping[str, Backend],
        *,
        groups: int,
        weights: Mapping[str, float] | None = None,
        capacity: Mapping[str, int] | None = None,
        regions: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.members = dict(members)
        self.groups = groups
        """Into how many slot groups a place here is cut when it is made."""
        shards = (full.partition("/")[2] for full in members)
        self.weights = {shard: (weights or {}).get(shard, 1.0) for shard in shards}
        """Share of each shard, by its short name."""
        self.capacity = dict(capacity or {})
        """Bytes that a shard may be planned to hold, where that is limited."""
        self.regions = dict(regions or {})
        """The region of each shard, by its short name; empty where users have none."""

    async def open(self) -> None:
        """Nothing: a member that is down must not keep the others' data from being served."""

    async def close(self) -> None:
        """Nothing: the members stand among the backends themselves."""

    async def ping(self, deadline: Deadline) -> None:
        """Unavailable when no member answers."""
        pings = (member.ping(deadline) for member in self.members.values())
        answers = await asyncio.gather(*pings, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise errors[0]

    def refuses(self, domain: str) -> str | None:
        if domain in _UNCUT:
            return f"{domain} is asked as a whole, and a backend of several databases would be asked part by part"
        return next((why for member in self.members.values() if (why := member.refuses(domain))), None)

    def store(self, domain: str, attempt: int) -> Any:
        raise AssertionError(f"the store of {domain} here is put together by routing.sharded")

    async def ensure_schema(self, *, create: bool) -> None:
        """Nothing: each member's is looked at when it is opened."""

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        """The newest row of each key over the members that answer; Unavailable when none does."""
        rows: dict[tuple[str, int], MetaRow] = {}
        errors: list[DatalayerError] = []
        for answer in await asyncio.gather(*(m.read_meta() for m in self.members.values()), return_exceptions=True):
            if isinstance(answer, Unavailable):
                errors.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for key, row in answer.items():
                    if key not in rows or row.epoch > rows[key].epoch:
                        rows[key] = row
        if len(errors) == len(self.members):
            raise errors[0]
        return rows

    async def write_meta(self, row: MetaRow) -> None:
        await asyncio.gather(*(member.write_meta(row) for member in self.members.values()))

    async def raise_token(self, token: Token) -> None:
        await asyncio.gather(*(member.raise_token(token) for member in self.members.values()))
