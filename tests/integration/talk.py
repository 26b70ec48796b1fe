"""People who come, talk, read and go in some conversations, and what their lists must show in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from datalayer.layer import DataLayer

ROOMS = 6
TALKERS = 2


class Talk:
    """Each talker has rooms of its own, so what it was told last is what must be there."""

    def __init__(self, layer: DataLayer, rooms: list[UUID], owner: UUID) -> None:
        self.layer = layer
        self.rounds = [0] * TALKERS
        self._rooms = rooms
        self._owner = owner
        self._guests = [uuid4() for _ in range(4)]
        self._read: dict[UUID, UUID] = {}
        self._there: dict[UUID, set[UUID]] = {room: {owner} for room in rooms}
        self._over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._talk(number)) for number in range(TALKERS)]

    async def _talk(self, number: int) -> None:
        mine, talk = self._rooms[number::TALKERS], self.layer.conversations
        while not self._over.is_set():
            turn = self.rounds[number]
            room, guest = mine[turn % len(mine)], self._guests[turn % len(self._guests)]
            await talk.add_member(room, guest)
            self._there[room].add(guest)
            said = await self.layer.messages.append(room, sender_id=self._owner, body=f"{turn}")
            member = await talk.mark_read(room, self._owner, said.id)
            assert member.read_up_to == said.id
            self._read[room] = said.id
            await talk.update(room, title=f"{turn}")
            if turn % 3 == 0:
                await talk.remove_member(room, guest)
                self._there[room].discard(guest)
            self.rounds[number] += 1

    async def stop(self) -> None:
        """Let everybody finish; each has been heard."""
        self._over.set()
        await asyncio.gather(*self._tasks)
        assert min(self.rounds) > 3

    async def audit(self) -> None:
        """Everything acknowledged is there, and the lists show it."""
        await self.stop()
        async with asyncio.timeout(30):
            await self.layer.projector.show_activity()
            while (await self.layer.projector.lag()).behind:
                await asyncio.sleep(0.05)
        for room in self._rooms:
            page = await self.layer.conversations.members(room)
            assert {one.user_id for one in page.items} == self._there[room]
            owner = await self.layer.conversations.member(room, self._owner)
            assert owner is not None
            assert owner.read_up_to == self._read[room]
        for user in (self._owner, *self._guests):
            listed = (await self.layer.conversations.of_user(user)).items
            assert {one.conversation_id for one in listed} == {r for r in self._rooms if user in self._there[r]}
            assert all(one.newest == self._read[one.conversation_id] for one in listed)
            assert list(listed) == sorted(listed, key=lambda one: one.last_activity, reverse=True)


@asynccontextmanager
async def talk(layer: DataLayer) -> AsyncIterator[Talk]:
    """Talk while the block runs; audit it at its end."""
    owner = uuid4()
    rooms = [(await layer.conversations.create(members={owner: "owner"})).id for _ in range(ROOMS)]
    talking = Talk(layer, rooms, owner)
    try:
        yield talking
    finally:
        await talking.stop()
