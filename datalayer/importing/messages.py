"""The importer of messages: reads, looks what is there, appends what is not, counts.

It goes through the router like every application, so it may run during a migration. Each batch is looked up first: a
second import only reads. After a crash or a stop the same import goes on: what is stored is found and left alone.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from datalayer.clock import Deadline
from datalayer.domains.messages import Append, same_append
from datalayer.errors import AlreadyExists
from datalayer.importing.lines import message_of
from datalayer.importing.reading import CALL_S, FileImporter, Found, ImportReport, Line, Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from datalayer.importing.tally import Tally
    from datalayer.layer import DataLayer
    from datalayer.stores.base import MessageReads
    from datalayer.types import Message

_ESCAPED: Final = 6
"""A byte of text is at most six of JSON."""
_LINE_ROOM: Final = 1 << 16


async def import_messages(
    layer: DataLayer,
    path: Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = silent,
) -> ImportReport:
    """Store the messages of a file of JSON lines, plain or gzipped: conversation, sender, sent_at, body, id if any.

    ``stop`` checks the whole file first and stores nothing unless every line is good (BadLines); ``skip`` leaves bad
    lines out and names them. A line whose message is stored already changes nothing, also where its body differs: what
    was stored first stays, and the report names the line. ``progress`` is called between batches and may raise to stop the import there.

    Idempotent; memory is bounded whatever the size of the file. Raises NotFinished when the store does not answer for
    a minute: the same import goes on. InvalidArgument when the file cannot be opened.
    """
    importer = _Importer(layer, path, progress)
    if on_error == "stop":
        await importer.check()
    return await importer.store()


class _Importer(FileImporter[Append]):
    def __init__(self, layer: DataLayer, path: Path, progress: Callable[[Progress], None]) -> None:
        self._router = layer.router("messages")
        self._body_max = layer.settings.limits.body_max_bytes
        super().__init__(layer.clock, path, self._body_max * _ESCAPED + _LINE_ROOM, progress)

    def _parse_line(self, raw: bytes, now_us: int) -> tuple[Append, frozenset[str]]:
        return message_of(raw, body_max_bytes=self._body_max, now_us=now_us)

    async def _store_batch(self, lines: list[Line[Append]], found: Found, tally: Tally) -> None:
        """Look all of them up, append those that are not there. One message is one write, whatever the line count."""
        first: dict[tuple[UUID, UUID], Line[Append]] = {}
        for line in lines:
            first.setdefault((line.item.conversation_id, line.item.id), line)
        at = lines[0].number if lines else 0
        stored = await self._persist(partial(self._look_up, list(first)), at)
        missing = [line for key, line in first.items() if key not in stored]
        appends = (self._persist(partial(self._append, line.item), line.number) for line in missing)
        appended = await asyncio.gather(*appends, return_exceptions=True)
        for line, message in zip(missing, appended, strict=True):
            if isinstance(message, BaseException):
                raise message
            stored[line.item.conversation_id, line.item.id] = message
        found.new += len(missing)
        for line in lines:
            message = stored[line.item.conversation_id, line.item.id]
            tally.add(message)
            if not message.deleted and not same_append(line.item, message):
                found.note_differing(line.number)

    async def _look_up(self, keys: list[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Message]:
        if not keys:
            return {}

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.get_many(keys, deadline)

        routings = list(dict.fromkeys(conversation.bytes for conversation, _ in keys))
        found: list[Message] = await self._router.read(routings, call, Deadline(self._clock, CALL_S))
        return {(message.conversation_id, message.id): message for message in found}

    async def _append(self, append: Append) -> Message:
        try:
            message: Message = await self._router.write(append, Deadline(self._clock, CALL_S))
        except AlreadyExists:
            # Somebody else stored it since the look-up, with another body.
            key = (append.conversation_id, append.id)
            return (await self._look_up([key]))[key]
        return message
