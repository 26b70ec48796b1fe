"""One kind's table at a place, with the statements that serve the port: scan, fetch, apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from datalayer.domains.catalogue import MEDIA, OBJECT
from datalayer.domains.conversations import CONVERSATION, MEMBER
from datalayer.domains.listings import LISTED
from datalayer.domains.messages import MESSAGE
from datalayer.domains.search import MESSAGE_DOC, USER_DOC
from datalayer.domains.sessions import CUT, SESSION
from datalayer.domains.users import CLAIM, USER, claim_of
from datalayer.schemas import metadata
from datalayer.stores.sql.statement import (
    LookUp,
    create_table,
    drop_table,
    first,
    greatest,
    insert,
    limited,
    statement,
    upsert_newer,
    values_of,
)
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.domains.record import Kind, Record
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, Row


class Relation:
    """A kind's table: its statements, and the conversions between keys, records and rows.

    ``position`` turns a record's key into the driver's values of the primary key; ``order`` sorts keys as the table's
    primary key does.
    """

    def __init__(  # noqa: PLR0917 - the parts of one table
        self,
        dialect: Dialect,
        kind: Kind,
        make_table: Callable[[int], sa.Table],
        attempt: int,
        columns: tuple[str, ...],
        to_row: Callable[[Record], Row],
        to_record: Callable[[Row], Record],
        position: Callable[[bytes], Row],
        order: Callable[[bytes], Any],
    ) -> None:
        self._dialect = dialect
        self.kind = kind
        self._make_table = make_table
        self.attempt = attempt
        table = make_table(attempt)
        self.name: str = table.name
        self.columns = columns
        self.to_row = to_row
        self.to_record = to_record
        self.position = position
        self.order = order
        select = self.select
        keys = list(table.primary_key)
        self.key_names = tuple(column.name for column in keys)
        pk: Any = sa.tuple_(*keys) if len(keys) > 1 else keys[0]
        low, high = _bounds(keys, "low"), _bounds(keys, "high")
        limited_select = limited(dialect, select.where(pk <= high).order_by(*keys))
        highs, lows = [f"high_{name}" for name in self.key_names], [f"low_{name}" for name in self.key_names]
        self.scan_first = statement(dialect, limited_select, *highs, "limit").sql
        self.scan_after = statement(dialect, limited_select.where(pk > low), *highs, *lows, "limit").sql
        self.last = statement(dialect, first(dialect, select.order_by(*(key.desc() for key in keys)))).sql
        self.upsert = statement(dialect, upsert_newer(dialect, table, columns), *columns).sql
        one = [column == sa.bindparam(f"of_{column.name}", type_=column.type) for column in keys]
        ones = [f"of_{name}" for name in self.key_names]
        self.one = statement(dialect, sa.select(sa.literal_column("1")).select_from(table).where(*one), *ones).sql
        self.stored = statement(dialect, select.where(*one), *ones).sql
        made = insert(dialect, table).values(values_of(columns)).on_conflict_do_nothing().returning(table.c.version)
        self.create = statement(dialect, made, *columns).sql
        seen = table.c.version == sa.bindparam("seen", type_=sa.BigInteger)
        swapped = sa.update(table).where(*one, seen).values(values_of(columns)).returning(table.c.version)
        self.swap = statement(dialect, swapped, *columns, *ones, "seen").sql
        """Replaces one row where it has the version that was seen."""
        lead = sa.case((table.c.deleted, sa.bindparam("lead", type_=sa.BigInteger)), else_=sa.literal_column("0"))
        raised = greatest(table.c.version + sa.literal_column("2"), sa.bindparam("now", type_=sa.BigInteger))
        lift = sa.update(table).where(*one).values(version=raised + lead)
        self.lift = statement(dialect, lift, "now", "lead", *ones).sql
        """Raises the version of one row as a repair does: parameters now, lead of a tombstone, key."""
        item = tuple([None] * len(keys)) if len(keys) > 1 else None
        self.look_up = LookUp(dialect, select.where(pk.in_(sa.bindparam("keys", expanding=True))), "keys", item)
        self.any = statement(dialect, first(dialect, sa.select(sa.literal_column("1")).select_from(table))).sql

    def creation(self) -> list[str]:
        """DDL that makes the table and its indexes where absent."""
        return texts(_creation, self._dialect, self._make_table, attempt=self.attempt)

    def removal(self) -> str:
        """DDL that drops the table where it exists."""
        return texts(_removal, self._dialect, self._make_table, attempt=self.attempt)

    @property
    def table(self) -> sa.Table:
        """The table itself, for what is put together of it."""
        return self._make_table(self.attempt)

    @property
    def select(self) -> sa.Select[Any]:
        """Whole rows."""
        table = self.table
        return sa.select(*(table.c[name] for name in self.columns))

    def item(self, key: bytes) -> Any:
        """The value of ``look_up`` for a key."""
        position = self.position(key)
        return position if len(position) > 1 else position[0]


def _creation(dialect: Dialect, make_table: Callable[[int], sa.Table], attempt: int) -> list[str]:
    return create_table(dialect, make_table(attempt))


def _removal(dialect: Dialect, make_table: Callable[[int], sa.Table], attempt: int) -> str:
    return drop_table(dialect, make_table(attempt))


def _bounds(keys: list[sa.Column[Any]], prefix: str) -> Any:
    binds = [sa.bindparam(f"{prefix}_{column.name}", type_=column.type) for column in keys]
    return sa.tuple_(*binds) if len(binds) > 1 else binds[0]


def message_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The messages of a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        MESSAGE,
        metadata.messages_table,
        attempt,
        metadata.MESSAGE_COLUMNS,
        codec.message_row,
        codec.message_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def user_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The users of a place."""
    return Relation(
        dialect,
        USER,
        metadata.users_table,
        attempt,
        metadata.USER_COLUMNS,
        codec.user_row,
        codec.user_record,
        lambda key: (codec.uuid(key),),
        lambda key: key,
    )


def claim_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The claims of a place; their primary key is (kind, value), their routing key a hash of it."""
    return Relation(
        dialect,
        CLAIM,
        metadata.claims_table,
        attempt,
        metadata.CLAIM_COLUMNS,
        codec.claim_row,
        codec.claim_record,
        claim_of,
        lambda key: tuple(part.encode() for part in claim_of(key)),
    )


def conversation_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The conversations of a place."""
    return Relation(
        dialect,
        CONVERSATION,
        metadata.conversations_table,
        attempt,
        metadata.CONVERSATION_COLUMNS,
        codec.conversation_row,
        codec.conversation_record,
        lambda key: (codec.uuid(key),),
        lambda key: key,
    )


def member_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The members of a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        MEMBER,
        metadata.members_table,
        attempt,
        metadata.MEMBER_COLUMNS,
        codec.member_row,
        codec.member_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def listed_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The users' lists at a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        LISTED,
        metadata.listings_table,
        attempt,
        metadata.LISTED_COLUMNS,
        codec.listed_row,
        codec.listed_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def message_doc_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The documents of messages at a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        MESSAGE_DOC,
        metadata.message_docs_table,
        attempt,
        metadata.MESSAGE_DOC_COLUMNS,
        codec.message_doc_row,
        codec.message_doc_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def user_doc_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The documents of users at a place."""
    return Relation(
        dialect,
        USER_DOC,
        metadata.user_docs_table,
        attempt,
        metadata.USER_DOC_COLUMNS,
        codec.user_doc_row,
        codec.user_doc_record,
        lambda key: (codec.uuid(key),),
        lambda key: key,
    )


def media_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The items of media at a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        MEDIA,
        metadata.media_table,
        attempt,
        metadata.MEDIA_COLUMNS,
        codec.media_row,
        codec.media_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def object_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The objects of media at a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        OBJECT,
        metadata.media_objects_table,
        attempt,
        metadata.OBJECT_COLUMNS,
        codec.object_row,
        codec.object_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def session_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The sessions of a place."""
    uuid = codec.uuid
    return Relation(
        dialect,
        SESSION,
        metadata.sessions_table,
        attempt,
        metadata.SESSION_COLUMNS,
        codec.session_row,
        codec.session_record,
        lambda key: (uuid(key[:16]), uuid(key[16:])),
        lambda key: key,
    )


def cut_relation(dialect: Dialect, codec: RowCodec, attempt: int) -> Relation:
    """The cuts of a place."""
    return Relation(
        dialect,
        CUT,
        metadata.session_cuts_table,
        attempt,
        metadata.CUT_COLUMNS,
        codec.cut_row,
        codec.cut_record,
        lambda key: (codec.uuid(key),),
        lambda key: key,
    )
