"""What a service would write without the data layer: the same statements, the driver, and Message by hand."""

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

from datalayer.clock import SystemClock
from datalayer.ids import IdSource
from datalayer.types import Message

LIMIT = 50


class Bare(Protocol):
    """Messages through a driver alone."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def append(self, conversation: UUID, sender: UUID, body: str) -> Message: ...

    async def get(self, conversation: UUID, ident: UUID) -> Message | None: ...

    async def history(self, conversation: UUID) -> list[Message]: ...


def id_source() -> IdSource:
    """Ids cost both sides the same."""
    return IdSource(SystemClock())


def message(row: Sequence[Any]) -> Message:
    """The message of a row whose columns are Python's own values already."""
    conversation, ident, sender, body, kind, thread, attachments, edited, deleted, version, attributes = row
    return Message(
        ident, conversation, sender, body, kind, thread, tuple(attachments), edited, deleted, version, attributes
    )
