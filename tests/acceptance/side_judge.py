"""What the processes of the side traffic knew at their end, held against what a fresh process reads."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from datalayer.errors import DatalayerError, NotFound
from datalayer.layer import DataLayer
from tests.acceptance.side_kinds import Found
from tests.acceptance.side_rooms import hold_members

FOLLOW_S = 30.0
"""So long lists and the index may follow after the last write."""
AGAIN_S = 0.2
PAGE = 1000


async def judge(layer: DataLayer, folder: Path, *, follow_s: float = FOLLOW_S) -> dict[str, Found]:
    """What the processes found, and what they knew held against what is stored now, by domain."""
    total: dict[str, Found] = {}
    for path in sorted(folder.glob("*.json")):
        for domain, told in json.loads(path.read_text()).items():
            found = total.setdefault(domain, Found())
            found.add(told["found"])
            if domain in JUDGES:
                await JUDGES[domain](Judge(layer, found, follow_s), told["facts"])
    return total


class Judge:
    """Asks a fresh process; whatever refuses counts."""

    def __init__(self, layer: DataLayer, found: Found, follow_s: float) -> None:
        self.layer: Any = layer
        self.found = found
        self.follow_s = follow_s

    async def ask(self, what: str, call: Callable[..., Awaitable[Any]], *args: Any, **more: Any) -> tuple[bool, Any]:
        """(whether there was an answer, the answer)."""
        self.found.operations += 1
        try:
            return True, await call(*args, **more)
        except DatalayerError as error:
            kind = "lost" if isinstance(error, NotFound) else "other"
            self.found.wrong(kind, f"{what} at the end: {type(error).__name__}: {error}")
        return False, None


async def _follows(judge: Judge, right: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it becomes right in a while."""
    until = time.monotonic() + judge.follow_s
    while not await right():
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(AGAIN_S)
    return True


async def _sessions(judge: Judge, facts: dict[str, Any]) -> None:
    for token, user in facts["live"].items():
        ok, session = await judge.ask("a session", judge.layer.sessions.get, token)
        if ok and session is None:
            judge.found.wrong("lost", f"a session of {user} at the end")
        elif ok and str(session.user_id) != user:
            judge.found.wrong("stale", f"the session of {user} is {session.user_id}'s at the end")
    for token in facts["revoked"]:
        ok, session = await judge.ask("a revoked session", judge.layer.sessions.get, token)
        if ok and session is not None:
            judge.found.wrong("ghost", f"a revoked session of {session.user_id} at the end")


async def _media(judge: Judge, facts: dict[str, Any]) -> None:
    media = judge.layer.media
    for id_, owner, digest in facts["live"]:
        ok, data = await judge.ask(f"media {id_}", media.read, UUID(id_), owner_id=owner)
        if ok and hashlib.sha256(data).hexdigest() != digest:
            judge.found.wrong("stale", f"other bytes of {id_} at the end")
    for id_, owner in facts["deleted"]:
        ok, item = await judge.ask(f"media {id_}", media.get, UUID(id_), owner_id=owner)
        if ok and item is not None:
            judge.found.wrong("ghost", f"deleted media {id_} at the end")


async def _conversations(judge: Judge, facts: dict[str, Any]) -> None:
    conversations = judge.layer.conversations
    for id_, wanted in facts["rooms"].items():
        ok, made = await judge.ask(f"conversation {id_}", conversations.get, id_)
        if ok and made is None:
            judge.found.wrong("lost", f"conversation {id_} at the end")
        elif ok and made.title != wanted["title"]:
            judge.found.wrong("stale", f"the title of {id_} at the end")
        ok, page = await judge.ask(f"members of {id_}", conversations.members, id_, limit=PAGE)
        if ok:
            hold_members(judge, id_, {str(one.user_id): one.role for one in page.items}, wanted["members"])
    for id_ in facts["deleted"]:
        ok, made = await judge.ask(f"conversation {id_}", conversations.get, id_)
        if ok and made is not None:
            judge.found.wrong("ghost", f"deleted conversation {id_} at the end")
    for user in facts["people"]:
        await _list_of(judge, user, facts)


async def _list_of(judge: Judge, user: str, facts: dict[str, Any]) -> None:
    """A user's list follows: it must be right in a while."""
    wanted = {id_: room["members"][user] for id_, room in facts["rooms"].items() if user in room["members"]}
    shown: dict[str, str] = {}

    async def equal() -> bool:
        ok, page = await judge.ask(f"the list of {user}", judge.layer.conversations.of_user, user, limit=PAGE)
        shown.clear()
        if ok:
            shown.update({str(one.conversation_id): one.role for one in page.items})
        for unsure in facts["unsure"]:
            shown.pop(unsure, None)
        return not ok or shown == wanted

    if await _follows(judge, equal):
        return
    for id_ in wanted.keys() | shown.keys():
        kind = "lost" if id_ not in shown else "ghost" if id_ not in wanted else "stale"
        if wanted.get(id_) != shown.get(id_):
            judge.found.wrong(kind, f"{id_} on the list of {user} at the end")


async def _search(judge: Judge, facts: dict[str, Any]) -> None:
    room = UUID(facts["room"])

    async def finds(id_: str, word: str) -> bool | None:
        ok, page = await judge.ask(f"search for {word}", judge.layer.search.messages, word, conversations=[room])
        return id_ in {str(hit.message.id) for hit in page.items} if ok else None

    for id_, word in facts["live"].items():

        async def found(id_: str = id_, word: str = word) -> bool:
            return await finds(id_, word) is not False

        if not await _follows(judge, found):
            judge.found.wrong("lost", f"{word} does not find {id_} at the end")
    for id_, word in facts["gone"]:
        if await finds(id_, word):
            judge.found.wrong("stale" if id_ in facts["live"] else "ghost", f"{word} still finds {id_} at the end")


JUDGES = {"sessions": _sessions, "media": _media, "conversations": _conversations, "search": _search}
