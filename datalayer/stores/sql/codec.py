"""What a SQL product converts: between the driver's rows and the library's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.domains.record import Record
    from datalayer.stores.sql.database import Row
    from datalayer.types import Message, User


class RowCodec(Protocol):
    """Conversions of one product. Rows are in the order of ``schemas.metadata.*_COLUMNS``.

    ``uuid`` values go in and out in the driver's own form: 16 bytes in SQLite, ``uuid.UUID`` in Postgres.
    """

    def uuid(self, value: bytes) -> Any:
        """16 bytes as the driver takes a uuid."""
        ...

    def uuid_bytes(self, value: Any) -> bytes:
        """What the driver gives for a uuid, as 16 bytes."""
        ...

    def bind_uuid(self, value: UUID) -> Any:
        """A UUID as the driver takes it."""
        ...

    def message(self, row: Row) -> Message:
        """The message of a row; hot."""
        ...

    def message_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def message_row(self, record: Record) -> Row:
        """The row of a record. Raises ValueError, saying why, for a record this product can never hold."""
        ...

    def user(self, row: Row) -> User:
        """The user of a row."""
        ...

    def user_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def user_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def claim_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def claim_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def conversation_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def conversation_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def member_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def member_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def listed_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def listed_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def message_doc_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def message_doc_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def user_doc_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def user_doc_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def media_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def media_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def object_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def object_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def session_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def session_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...

    def cut_record(self, row: Row) -> Record:
        """The canonical record of a row."""
        ...

    def cut_row(self, record: Record) -> Row:
        """As ``message_row``."""
        ...
