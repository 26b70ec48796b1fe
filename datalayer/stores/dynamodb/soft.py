"""Presence and typing in DynamoDB: an item for each key, an attribute for each of its own items, conditional updates.

DynamoDB deletes what has ended late, within days: ``gone`` is only when that may happen, and readers compare ends. There
are no hints of changes: whoever watches reads again and again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.soft import ITEMS_MAX, KEEP_US, LATE_US, TTL_MAX_S, Beat, Entry, end_of
from datalayer.errors import DatalayerError, SchemaBehind, StaleRoute
from datalayer.stores.dynamodb.faults import ConditionFailed
from datalayer.stores.soft import SoftPage, until_confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.stores.dynamodb.backend import DynamoBackend
    from datalayer.stores.soft import Ear

T = TypeVar("T")
KEYS_MAX: Final = 100
"""Of one BatchGetItem."""
PAUSE_S: Final = 0.05
APPLY_S: Final = 10.0
APPLY_AT_ONCE: Final = 64
ITEM: Final = "i:"
"""What the attributes of items begin with."""
NEWER: Final = "attribute_not_exists(#i) OR #i.v < :v OR (#i.v = :v AND #i.e < :e)"


class DynamoSoft:
    """One soft domain in one table."""

    reach: Literal["process", "network"] = "network"
    pushes = False

    def __init__(self, backend: DynamoBackend, domain: str, table: str) -> None:
        self._backend = backend
        self._table = table
        # From a beat's version: it ends a longest lifetime later at most.
        self._keep_us = KEEP_US[domain] + LATE_US + int(TTL_MAX_S * 1_000_000)

    async def beat(self, beat: Beat, deadline: Deadline) -> None:
        """A beat is the same however often it is sent: it is sent again until it is confirmed or its time is up."""
        await until_confirmed(lambda: self._beat(beat, deadline), deadline)

    async def _beat(self, beat: Beat, deadline: Deadline) -> None:
        """What is older than another item of its key must not bring the end of the key nearer."""
        try:
            answer = await self._put(
                beat, "SET #i = :b, gone = :g", "attribute_not_exists(gone) OR gone <= :g", deadline
            )
        except ConditionFailed:
            try:
                answer = await self._put(beat, "SET #i = :b", "gone > :g", deadline)
            except ConditionFailed:
                return
        surplus = _surplus(_entry(beat.key, answer["Attributes"]))
        if surplus:
            await self._forget(beat.key, surplus, deadline)

    async def _put(self, beat: Beat, update: str, condition: str, deadline: Deadline) -> Any:
        return await self._backend.call(
            "update_item",
            self._table,
            write=True,
            deadline=deadline,
            Key={"k": {"B": beat.key.bytes}},
            UpdateExpression=update,
            ConditionExpression=f"({NEWER}) AND ({condition})",
            ExpressionAttributeNames={"#i": ITEM + beat.item},
            ExpressionAttributeValues={
                ":b": {"M": {"v": _number(beat.version), "e": _number(beat.expires_us), "s": {"S": beat.status}}},
                ":v": _number(beat.version),
                ":e": _number(beat.expires_us),
                ":g": _number((beat.version + self._keep_us) // 1_000_000),
            },
            ReturnValues="ALL_NEW",
        )

    async def _forget(self, key: UUID, beats: Sequence[Beat], deadline: Deadline) -> None:
        """Take items away that ended long ago, unless they were renewed meanwhile."""
        names = {f"#i{number}": ITEM + beat.item for number, beat in enumerate(beats)}
        values = {f":v{number}": _number(beat.version) for number, beat in enumerate(beats)}
        try:
            await self._backend.call(
                "update_item",
                self._table,
                write=True,
                deadline=deadline,
                Key={"k": {"B": key.bytes}},
                UpdateExpression=f"REMOVE {', '.join(names)}",
                ConditionExpression=" AND ".join(f"#i{number}.v = :v{number}" for number in range(len(beats))),
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=values,
            )
        except ConditionFailed:
            return

    # --- reads -------------------------------------------------------------------------------------------------------

    async def ends(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, int | None]:
        return await self._read(keys, end_of, deadline)

    async def entries(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry | None]:
        return await self._read(keys, _same, deadline)

    async def _read(self, keys: Sequence[UUID], make: Callable[[Entry], T], deadline: Deadline) -> dict[UUID, T | None]:
        found: dict[UUID, T | None] = dict.fromkeys(keys)
        wanted = list(found)
        parts = [wanted[at : at + KEYS_MAX] for at in range(0, len(wanted), KEYS_MAX)]
        for answered in await asyncio.gather(*(self._part(part, deadline) for part in parts)):
            found |= {key: make(entry) for key, entry in answered.items()}
        return found

    async def _part(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry]:
        """What was answered of at most KEYS_MAX keys."""
        waiting = [{"k": {"B": key.bytes}} for key in keys]
        found: dict[UUID, Entry] = {}
        while waiting:
            request = {self._table: {"Keys": waiting, "ConsistentRead": True}}
            try:
                answer = await self._backend.call(
                    "batch_get_item", self._table, deadline=deadline, RequestItems=request
                )
            except DatalayerError as error:
                if not error.retryable:
                    raise
                break
            for item in answer["Responses"].get(self._table, ()):
                key = UUID(bytes=bytes(item["k"]["B"]))
                found[key] = _entry(key, item)
            waiting = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            if waiting:
                await asyncio.sleep(PAUSE_S)
        silent = {bytes(one["k"]["B"]) for one in waiting}
        return {key: found.get(key, ()) for key in keys if key.bytes not in silent}

    async def apply(self, beats: Sequence[Beat]) -> None:
        for at in range(0, len(beats), APPLY_AT_ONCE):
            deadline = Deadline(self._backend.clock, APPLY_S)
            await asyncio.gather(*(self.beat(beat, deadline) for beat in beats[at : at + APPLY_AT_ONCE]))

    async def scan(self, after: str | None, limit: int) -> SoftPage:
        more: dict[str, Any] = {} if after is None else {"ExclusiveStartKey": {"k": {"B": bytes.fromhex(after)}}}
        page = await self._backend.call("scan", self._table, ConsistentRead=True, Limit=limit, **more)
        beats: list[Beat] = []
        for item in page["Items"]:
            beats += _entry(UUID(bytes=bytes(item["k"]["B"])), item)
        last = page.get("LastEvaluatedKey")
        return SoftPage(beats, None if last is None else bytes(last["k"]["B"]).hex())

    async def listen(self, ear: Ear) -> None:
        raise AssertionError("DynamoDB gives no hints: pushes says so")

    # --- the place ---------------------------------------------------------------------------------------------------

    async def create(self) -> None:
        await self._backend.make_table(self._table, "k", "B", ttl="gone")

    async def drop(self) -> None:
        try:
            await self._backend.call("delete_table", self._table, write=True)
        except StaleRoute:
            return

    async def empty(self) -> bool:
        try:
            page = await self._backend.call("scan", self._table, ConsistentRead=True, Limit=1)
        except StaleRoute as error:
            raise SchemaBehind(error.message) from error
        return not page["Items"]


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


def _same(entry: Entry) -> Entry:
    return entry


def _entry(key: UUID, item: dict[str, Any]) -> Entry:
    return tuple(
        Beat(key, name.removeprefix(ITEM), int(value["M"]["v"]["N"]), int(value["M"]["e"]["N"]), value["M"]["s"]["S"])
        for name, value in item.items()
        if name.startswith(ITEM)
    )


def _surplus(entry: Entry) -> list[Beat]:
    """What the rule (`domains.soft.admit`) leaves out."""
    ordered = sorted(entry, key=lambda one: one.version, reverse=True)
    since = ordered[0].version - LATE_US
    alive = [one for one in ordered if max(one.version, one.expires_us) > since][:ITEMS_MAX]
    return [one for one in entry if one not in alive]
