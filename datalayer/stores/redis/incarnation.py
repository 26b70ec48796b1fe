"""Which lives the primaries are in: what changes whenever something that was acknowledged may have been lost.

A server draws a new run_id when it starts, and a new master_replid when it becomes a primary; so a primary that is killed
and comes back, a replica that is promoted, and a return to the first one each show. A lone server without a file starts
empty: that shows likewise. What shows without a loss (a planned failover, slots given to another server, the first
replica that joins) costs another look at the data, never more.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from datalayer.errors import Unavailable
from datalayer.stores.redis.demands import parse_info
from datalayer.stores.redis.scripts import Call
from datalayer.stores.redis.session import LEARN, slot_owners

if TYPE_CHECKING:
    from datalayer.clock import Deadline
    from datalayer.stores.redis.session import RedisSession
    from datalayer.stores.redis.target import Address

_INFO: Final = Call(("INFO",), None)
LOOKS: Final = 3


async def incarnation(session: RedisSession, deadline: Deadline) -> str:
    """The lives of all primaries as short text (see ``Forgetful``).

    Of a cluster all primaries must tell the same of who holds which slot: one that was deposed and has not heard of it
    yet would still say what it said before. Raises Unavailable otherwise, or where one does not answer.
    """
    if not session.target.cluster:
        ((info,),) = (await session.everywhere([_INFO], deadline)).values()
        return _text([_life(info)])
    for _ in range(LOOKS):
        answers = await session.everywhere([LEARN, _INFO], deadline)
        owners = session.owners()
        if all(_agrees(slots, address, owners) for address, (slots, _info) in answers.items()):
            return _text([_life(info) for _slots, info in answers.values()])
        await session.learn_again(deadline)
    raise Unavailable(f"{session.where}: its servers do not agree on who holds which slot")


def _agrees(slots: list[list[object]], asked: Address, owners: list[Address]) -> bool:
    return slot_owners(slots, asked) == owners


def _life(info: bytes) -> str:
    fields = parse_info(info)
    return f"{fields['run_id']}/{fields['master_replid']}"


def _text(lives: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lives)).encode()).hexdigest()[:32]
