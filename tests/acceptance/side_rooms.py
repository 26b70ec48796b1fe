"""What one process does with conversations, their members and users' lists, and with search, and what it holds against
each answer. Nobody else writes to what is its own, so it knows what must be there.
"""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from datalayer.layer import DataLayer
from tests.acceptance.side_kinds import GONE, Traffic

LATE_S = 20.0
"""What was acknowledged longer ago must be found by a query, whatever moves meanwhile."""
PEOPLE = 12
ROOMS_MAX = 40
SAID_MAX = 200


@dataclass(slots=True)
class Room:
    """A conversation as it must be."""

    owner: UUID
    title: str
    members: dict[UUID, str]
    version: int = 0


class ConversationTraffic(Traffic):
    """Conversations are made, renamed and deleted; members come, go and change their role."""

    domain = "conversations"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.people = [uuid4() for _ in range(PEOPLE)]
        self.rooms: dict[UUID, Room] = {}
        self.deleted: list[UUID] = []
        self.unsure: set[UUID] = set()
        """Conversations with a write that may or may not have come: nothing is held against anybody there."""

    async def step(self) -> None:
        draw = self.random.random()
        if draw < 0.25 or not self.rooms:
            if len(self.rooms) < ROOMS_MAX:
                await self._create()
            return
        id_ = self.random.choice(list(self.rooms))
        if draw < 0.35:
            await self._rename(id_)
        elif draw < 0.6:
            await self._member(id_)
        elif draw < 0.64:
            await self._delete(id_)
        else:
            await self._look(id_)

    async def _create(self) -> None:
        owner, *others = self.random.sample(self.people, 3)
        members = {owner: "owner", **dict.fromkeys(others, "member")}
        title = f"room {self.random.randrange(1_000_000)}"
        ok, made = await self.call(lambda: self.layer.conversations.create(title=title, members=members))
        if ok:
            self.rooms[made.id] = Room(owner, title, members, made.version)

    async def _rename(self, id_: UUID) -> None:
        room, title = self.rooms[id_], f"room {self.random.randrange(1_000_000)}"
        ok, made = await self.call(
            lambda: self.layer.conversations.update(id_, title=title, expected_version=room.version)
        )
        if ok:
            room.title, room.version = made.title, made.version
        self._keep(id_, ok=ok)

    async def _member(self, id_: UUID) -> None:
        room = self.rooms[id_]
        user = self.random.choice([one for one in self.people if one != room.owner])
        if user in room.members:
            ok, _ = await self.call(lambda: self.layer.conversations.remove_member(id_, user))
            room.members.pop(user)
        else:
            role = self.random.choice(("admin", "member"))
            ok, _ = await self.call(lambda: self.layer.conversations.add_member(id_, user, role=role))
            room.members[user] = role
        self._keep(id_, ok=ok)

    async def _delete(self, id_: UUID) -> None:
        ok, _ = await self.call(lambda: self.layer.conversations.delete(id_))
        self._keep(id_, ok=ok)
        if ok:
            del self.rooms[id_]
            self.deleted.append(id_)

    def _keep(self, id_: UUID, *, ok: bool) -> None:
        if not ok:
            del self.rooms[id_]
            self.unsure.add(id_)

    async def _look(self, id_: UUID) -> None:
        room = self.rooms[id_]
        ok, made = await self.call(lambda: self.layer.conversations.get(id_))
        if ok and made is None:
            self.found.wrong("lost", f"conversation {id_}")
        elif ok and made.title != room.title:
            self.found.wrong("stale", f"the title of {id_}")
        ok, page = await self.call(lambda: self.layer.conversations.members(id_))
        if ok:
            hold_members(self, id_, {one.user_id: one.role for one in page.items}, room.members)
        if self.deleted:
            gone = self.random.choice(self.deleted)
            ok, made = await self.call(lambda: self.layer.conversations.get(gone))
            if ok and made is not None:
                self.found.wrong("ghost", f"deleted conversation {gone}")

    def facts(self) -> dict[str, Any]:
        rooms = {
            str(id_): {"title": room.title, "members": {str(user): role for user, role in room.members.items()}}
            for id_, room in self.rooms.items()
        }
        people = [str(user) for user in self.people]
        unsure = [str(id_) for id_ in self.unsure]
        return {"rooms": rooms, "deleted": [str(id_) for id_ in self.deleted], "people": people, "unsure": unsure}


def hold_members(traffic: Any, id_: UUID | str, found: dict[Any, str], wanted: dict[Any, str]) -> None:
    """Members that a conversation shows against those that it must have."""
    for user in wanted.keys() - found.keys():
        traffic.found.wrong("lost", f"member {user} of {id_}")
    for user in found.keys() - wanted.keys():
        traffic.found.wrong("ghost", f"{user} is no member of {id_}")
    for user in found.keys() & wanted.keys():
        if found[user] != wanted[user]:
            traffic.found.wrong("stale", f"the role of {user} in {id_}")


@dataclass(slots=True)
class Said:
    """A message with a word that only it has."""

    word: str
    since: float = field(default_factory=time.monotonic)


class SearchTraffic(Traffic):
    """Messages with a word of their own are written, changed and deleted; queries look for the words."""

    domain = "search"

    def __init__(self, layer: DataLayer, seed: str) -> None:
        super().__init__(layer, seed)
        self.room, self.sender = uuid4(), uuid4()
        self.live: dict[UUID, Said] = {}
        self.gone: list[tuple[UUID, str]] = []
        """Words that must find a message no more: of edits, and of deletes."""

    async def step(self) -> None:
        draw = self.random.random()
        if len(self.live) < SAID_MAX and (draw < 0.3 or not self.live):
            word = self._word()
            ok, made = await self.call(
                lambda: self.layer.messages.append(self.room, sender_id=self.sender, body=f"they said {word} again")
            )
            if ok:
                self.live[made.id] = Said(word)
        elif draw < 0.4:
            await self._change(self.random.choice(list(self.live)))
        elif draw < 0.45:
            picked = self.random.choice(list(self.live))
            said = self.live.pop(picked)
            ok, _ = await self.call(lambda: self.layer.messages.delete(self.room, picked))
            if ok:
                self.gone.append((picked, said.word))
        else:
            await self._look()

    def _word(self) -> str:
        return f"w{self.random.getrandbits(64):x}"

    async def _change(self, picked: UUID) -> None:
        said, word = self.live.pop(picked), self._word()
        ok, _ = await self.call(lambda: self.layer.messages.edit(self.room, picked, body=f"now {word} is said"))
        if ok:
            self.live[picked] = Said(word)
            self.gone.append((picked, said.word))

    async def _look(self) -> None:
        due = [id_ for id_, said in self.live.items() if said.since < time.monotonic() - LATE_S]
        if due:
            picked = self.random.choice(due)
            if await self.finds(picked, self.live[picked].word) is False:
                self.found.wrong("lost", f"{self.live[picked].word} does not find {picked} after {LATE_S:.0f} s")
        if self.gone:
            picked, word = self.random.choice(self.gone[-GONE:])
            if await self.finds(picked, word):
                self.found.wrong("stale" if picked in self.live else "ghost", f"{word} still finds {picked}")

    async def finds(self, picked: UUID, word: str) -> bool | None:
        """Whether a word finds a message; None where it is not known."""
        ok, page = await self.call(lambda: self.layer.search.messages(word, conversations=[self.room]))
        return picked in {hit.message.id for hit in page.items} if ok else None

    def facts(self) -> dict[str, Any]:
        live = {str(id_): said.word for id_, said in self.live.items()}
        return {"room": str(self.room), "live": live, "gone": [(str(id_), word) for id_, word in self.gone]}
