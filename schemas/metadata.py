"""The physical tables of the SQL stores, declared once for every SQL product.

Attempt 0 has the plain names; the tables of attempt n carry ``_n``, so that a wipe is a new name and late applies of
an earlier attempt land nowhere. Types are chosen so that a copy is bit-equal: ``json`` and not ``jsonb`` in Postgres
(jsonb rewrites numbers such as 1e22 and -0.0), text in SQLite. No UNIQUE index lies on users: uniqueness lives in
claims. The defaults are there for programs that write without this library.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.sql.compiler import SQLCompiler

MESSAGE_COLUMNS: Final = (
    "conversation_id",
    "id",
    "sender_id",
    "body",
    "kind",
    "thread_id",
    "attachments",
    "edited_at",
    "deleted",
    "version",
    "attributes",
)
USER_COLUMNS: Final = (
    "id",
    "username",
    "email",
    "display_name",
    "status",
    "updated_at",
    "deleted",
    "version",
    "attributes",
    "region",
)
CLAIM_COLUMNS: Final = ("kind", "value", "routing", "owner", "version", "deleted")
CONVERSATION_COLUMNS: Final = ("id", "title", "kind", "updated_at", "deleted", "version", "attributes")
MEMBER_COLUMNS: Final = (
    "conversation_id",
    "user_id",
    "role",
    "joined_at",
    "read_up_to",
    "listed",
    "deleted",
    "version",
)
LISTED_COLUMNS: Final = (
    "user_id",
    "conversation_id",
    "role",
    "joined_at",
    "read_up_to",
    "newest",
    "last_activity",
    "shown",
    "deleted",
    "version",
)
SESSION_COLUMNS: Final = (
    "user_id",
    "id",
    "proof",
    "created_at",
    "mark",
    "ends_at",
    "expires_at",
    "deleted",
    "version",
    "attributes",
)
CUT_COLUMNS: Final = ("user_id", "mark", "expires_at", "deleted", "version")
MESSAGE_DOC_COLUMNS: Final = ("conversation_id", "id", "sender_id", "body", "deleted", "version")
USER_DOC_COLUMNS: Final = ("id", "username", "names", "deleted", "version")
MEDIA_COLUMNS: Final = (
    "owner_id",
    "id",
    "state",
    "upload",
    "sha256",
    "size",
    "content_type",
    "filename",
    "deleted",
    "version",
    "attributes",
)
OBJECT_COLUMNS: Final = (
    "owner_id",
    "content",
    "sha256",
    "size",
    "content_type",
    "name",
    "held",
    "refs",
    "delete_after",
    "deleted",
    "version",
)
META_COLUMNS: Final = ("domain", "attempt", "deployment", "role", "epoch")
TOKEN_COLUMNS: Final = ("domain", "migration", "attempt", "value")

SCHEMA_TABLE: Final = "datalayer_schema"
LOG_TABLE: Final = "datalayer_schema_log"
PLACES: Final = (
    "messages",
    "users",
    "claims",
    "conversations",
    "members",
    "listings",
    "media",
    "media_objects",
    "sessions",
    "session_cuts",
)
"""The tables that every place of a domain has, under the number of its attempt or slot group."""

_UUID: Final = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
_UUIDS: Final = sa.LargeBinary().with_variant(postgresql.ARRAY(postgresql.UUID()), "postgresql")
_BYTES: Final = sa.LargeBinary()
_JSON: Final = sa.Text().with_variant(sa.JSON(), "postgresql")
# Byte order everywhere: a scan's order may not depend on the collation a database was made with.
_SORTED_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class _EmptyUuids(ColumnElement[Any]):
    """The default of a list of uuids, in each product's own form."""

    inherit_cache = True


@compiles(_EmptyUuids, "sqlite")
def _empty_blob(element: _EmptyUuids, compiler: SQLCompiler, **options: Any) -> str:
    return "x''"


@compiles(_EmptyUuids, "postgresql")
def _empty_array(element: _EmptyUuids, compiler: SQLCompiler, **options: Any) -> str:
    return "'{}'"


@dataclass(frozen=True, slots=True)
class JournalTables:
    """The journal of one side of one attempt, its tombstones of foreign hard deletes, and who wrote besides us."""

    journal: sa.Table
    tombs: sa.Table
    foreign: sa.Table

    @property
    def all(self) -> tuple[sa.Table, ...]:
        """In the order in which they are made."""
        return (self.journal, self.tombs, self.foreign)


def relation(base: str, attempt: int) -> str:
    """The physical name of a table at a place (the same rule as ``Place.relation``)."""
    return base if attempt == 0 else f"{base}_{attempt}"


@lru_cache(maxsize=512)
def messages_table(attempt: int = 0) -> sa.Table:
    """The messages of a place; conversation_id is the routing key."""
    return sa.Table(
        relation("messages", attempt),
        sa.MetaData(),
        sa.Column("conversation_id", _UUID, primary_key=True),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("sender_id", _UUID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False, server_default="text"),
        sa.Column("thread_id", _UUID),
        sa.Column("attachments", _UUIDS, nullable=False, server_default=_EmptyUuids()),
        sa.Column("edited_at", sa.BigInteger),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", _JSON, nullable=False, server_default="{}"),
    )


@lru_cache(maxsize=512)
def users_table(attempt: int = 0) -> sa.Table:
    """The users of a place."""
    return sa.Table(
        relation("users", attempt),
        sa.MetaData(),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("display_name", sa.Text, nullable=False, server_default=""),
        sa.Column("status", sa.Text, nullable=False, server_default="active"),
        sa.Column("updated_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", _JSON, nullable=False, server_default="{}"),
        sa.Column("region", sa.Text),
    )


@lru_cache(maxsize=512)
def claims_table(attempt: int = 0) -> sa.Table:
    """Who holds which unique value; ``routing`` is the first 16 bytes of the record's key."""
    return sa.Table(
        relation("claims", attempt),
        sa.MetaData(),
        sa.Column("kind", _SORTED_TEXT, primary_key=True),
        sa.Column("value", _SORTED_TEXT, primary_key=True),
        sa.Column("routing", _BYTES, nullable=False),
        sa.Column("owner", _UUID, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    )


@lru_cache(maxsize=512)
def conversations_table(attempt: int = 0) -> sa.Table:
    """The conversations of a place."""
    return sa.Table(
        relation("conversations", attempt),
        sa.MetaData(),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("kind", sa.Text, nullable=False, server_default="group"),
        sa.Column("updated_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", _JSON, nullable=False, server_default="{}"),
    )


@lru_cache(maxsize=512)
def members_table(attempt: int = 0) -> sa.Table:
    """The members of conversations; ``listed`` is the version that the user's own list shows."""
    table = sa.Table(
        relation("members", attempt),
        sa.MetaData(),
        sa.Column("conversation_id", _UUID, primary_key=True),
        sa.Column("user_id", _UUID, primary_key=True),
        sa.Column("role", sa.Text, nullable=False, server_default="member"),
        sa.Column("joined_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("read_up_to", _UUID),
        sa.Column("listed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    )
    # Small: a member is in it from its change until the list of its user shows that.
    behind = table.c.listed < table.c.version
    sa.Index(
        f"{table.name}_unlisted",
        table.c.conversation_id,
        table.c.user_id,
        sqlite_where=behind,
        postgresql_where=behind,
    )
    return table


@lru_cache(maxsize=512)
def listings_table(attempt: int = 0) -> sa.Table:
    """Each user's list of conversations; ``shown`` is the version of the membership that it shows."""
    table = sa.Table(
        relation("listings", attempt),
        sa.MetaData(),
        sa.Column("user_id", _UUID, primary_key=True),
        sa.Column("conversation_id", _UUID, primary_key=True),
        sa.Column("role", sa.Text, nullable=False, server_default="member"),
        sa.Column("joined_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("read_up_to", _UUID),
        sa.Column("newest", _UUID),
        sa.Column("last_activity", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("shown", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    )
    sa.Index(f"{table.name}_recent", table.c.user_id, table.c.last_activity, table.c.conversation_id)
    return table


@lru_cache(maxsize=512)
def sessions_table(attempt: int = 0) -> sa.Table:
    """Users' sessions; ``id`` and ``proof`` are the halves of the hash of a session's secret."""
    table = sa.Table(
        relation("sessions", attempt),
        sa.MetaData(),
        sa.Column("user_id", _UUID, primary_key=True),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("proof", _UUID, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("mark", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("ends_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", _JSON, nullable=False, server_default="{}"),
    )
    # for the purge
    sa.Index(f"{table.name}_expiry", table.c.expires_at)
    return table


@lru_cache(maxsize=512)
def session_cuts_table(attempt: int = 0) -> sa.Table:
    """The mark up to which all sessions of a user are revoked."""
    table = sa.Table(
        relation("session_cuts", attempt),
        sa.MetaData(),
        sa.Column("user_id", _UUID, primary_key=True),
        sa.Column("mark", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    )
    sa.Index(f"{table.name}_expiry", table.c.expires_at)
    return table


@lru_cache(maxsize=512)
def message_docs_table(attempt: int = 0) -> sa.Table:
    """The words of messages (``domains.search``). What makes them quick to search is the product's: ``schemas.search``."""
    return sa.Table(
        relation("search_messages", attempt),
        sa.MetaData(),
        sa.Column("conversation_id", _UUID, primary_key=True),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("sender_id", _UUID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )


@lru_cache(maxsize=512)
def user_docs_table(attempt: int = 0) -> sa.Table:
    """The words of users' names."""
    return sa.Table(
        relation("search_users", attempt),
        sa.MetaData(),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("username", _SORTED_TEXT, nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )


@lru_cache(maxsize=512)
def media_table(attempt: int = 0) -> sa.Table:
    """Each owner's items of media; ``upload`` is set while the client has still to send the bytes."""
    table = sa.Table(
        relation("media", attempt),
        sa.MetaData(),
        sa.Column("owner_id", _UUID, primary_key=True),
        sa.Column("id", _UUID, primary_key=True),
        sa.Column("state", sa.Text, nullable=False, server_default="ready"),
        sa.Column("upload", _UUID),
        sa.Column("sha256", sa.Text, nullable=False, server_default=""),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("content_type", sa.Text, nullable=False, server_default=""),
        sa.Column("filename", sa.Text),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", _JSON, nullable=False, server_default="{}"),
    )
    waiting = table.c.upload.is_not(None)
    sa.Index(f"{table.name}_upload", table.c.id, sqlite_where=waiting, postgresql_where=waiting)
    return table


@lru_cache(maxsize=512)
def media_objects_table(attempt: int = 0) -> sa.Table:
    """What holds the bytes: ``content`` is the first half of their hash, ``held`` the places that have them."""
    table = sa.Table(
        relation("media_objects", attempt),
        sa.MetaData(),
        sa.Column("owner_id", _UUID, primary_key=True),
        sa.Column("content", _UUID, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False, server_default=""),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("content_type", sa.Text, nullable=False, server_default=""),
        sa.Column("name", _UUID, nullable=False),
        sa.Column("held", sa.Text, nullable=False, server_default=""),
        sa.Column("refs", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("delete_after", sa.BigInteger),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    )
    sa.Index(f"{table.name}_name", table.c.owner_id, table.c.name)
    due = table.c.delete_after.is_not(None)
    sa.Index(f"{table.name}_due", table.c.delete_after, sqlite_where=due, postgresql_where=due)
    return table


def domain_tables(domain: str, attempt: int = 0) -> tuple[sa.Table, ...]:
    """Every table of a domain at a place."""
    makers: dict[str, tuple[Callable[[int], sa.Table], ...]] = {
        "users": (users_table, claims_table),
        "messages": (messages_table,),
        "conversations": (conversations_table, members_table),
        "listings": (listings_table,),
        "sessions": (sessions_table, session_cuts_table),
        "search": (message_docs_table, user_docs_table),
        "catalogue": (media_table, media_objects_table),
    }
    assert domain in makers, f"the SQL schema knows no {domain}"
    return tuple(make(attempt) for make in makers[domain])


@lru_cache(maxsize=512)
def journal_tables(domain: str, attempt: int) -> JournalTables:
    """What the guard of a side writes while the attempt lives; it carries the attempt's number."""
    meta = sa.MetaData()
    journal = sa.Table(
        f"datalayer_journal_{domain}_{attempt}",
        meta,
        sa.Column("kind", _SORTED_TEXT, primary_key=True),
        sa.Column("key", _BYTES, primary_key=True),
        sa.Column("routing", _BYTES, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    sa.Index(f"datalayer_journal_{domain}_{attempt}_routing", journal.c.routing)
    tombs = sa.Table(
        f"datalayer_tombs_{domain}_{attempt}",
        meta,
        sa.Column("kind", _SORTED_TEXT, primary_key=True),
        sa.Column("key", _BYTES, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    foreign = sa.Table(
        f"datalayer_foreign_{domain}_{attempt}",
        meta,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("writes", sa.BigInteger, nullable=False, server_default="0"),
    )
    return JournalTables(journal, tombs, foreign)


@dataclass(frozen=True, slots=True)
class OutboxTables:
    """What an index has not taken in yet of one place, and the tombstones of foreign hard deletes since it follows."""

    outbox: sa.Table
    tombs: sa.Table

    @property
    def all(self) -> tuple[sa.Table, ...]:
        """In the order in which they are made."""
        return (self.outbox, self.tombs)


@lru_cache(maxsize=512)
def outbox_tables(domain: str, place: int, index: int) -> OutboxTables:
    """The outbox of a place for an index; ``place`` is the number that the place's tables carry."""
    meta = sa.MetaData()
    name = f"datalayer_outbox_{domain}_{place}_{index}"
    outbox = sa.Table(
        name,
        meta,
        sa.Column("kind", _SORTED_TEXT, primary_key=True),
        sa.Column("key", _BYTES, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
    sa.Index(f"{name}_since", outbox.c.since)
    tombs = sa.Table(
        f"{name}_tombs",
        meta,
        sa.Column("kind", _SORTED_TEXT, primary_key=True),
        sa.Column("key", _BYTES, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    return OutboxTables(outbox, tombs)


def meta_table() -> sa.Table:
    """What a backend says of itself (``MetaRow``)."""
    return sa.Table(
        "datalayer_meta",
        sa.MetaData(),
        sa.Column("domain", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )


def token_table() -> sa.Table:
    """The newest coordinator's fencing token of each domain; the value orders them (it is the number of the one lease)."""
    return sa.Table(
        "datalayer_token",
        sa.MetaData(),
        sa.Column("domain", sa.Text, primary_key=True),
        sa.Column("migration", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )


def sqlite_tables() -> tuple[sa.Table, ...]:
    """What the guard's triggers read in SQLite, which has no session settings and no DDL that waits for writers.

    ``datalayer_guard``: the state of each guard. ``datalayer_pass``: a row of a replayer, gone before it commits.
    ``datalayer_replaced``: the key that an INSERT under way met, which tells INSERT OR REPLACE from an upsert.
    """
    guard = sa.Table(
        "datalayer_guard",
        sa.MetaData(),
        sa.Column("domain", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("installed", sa.Boolean, nullable=False),
        sa.Column("fence", sa.Text, nullable=False),
        sa.Column("flip", sa.Integer, nullable=False),
        sa.Column("lapse_at", sa.BigInteger, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
    )
    passing = sa.Table(
        "datalayer_pass",
        sa.MetaData(),
        sa.Column("domain", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
    )
    replaced = sa.Table("datalayer_replaced", sa.MetaData(), sa.Column("key", _BYTES))
    return (guard, passing, replaced)


def schema_table() -> sa.Table:
    """The revision of a database's schema: Alembic's version table, under our own name."""
    return sa.Table(SCHEMA_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


def schema_log_table() -> sa.Table:
    """What was done to the schema, when, by which version of the library, and with which text (``sha256``).

    Since 0002. ``target`` is the database's own part (empty) or one place's table; nothing is ever taken out.
    """
    return sa.Table(
        LOG_TABLE,
        sa.MetaData(),
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("at_us", sa.BigInteger, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("took_ms", sa.BigInteger, nullable=False),
        sa.Column("library", sa.Text, nullable=False),
    )


def place_table(base: str, attempt: int = 0) -> sa.Table:
    """One of PLACES, at a place."""
    make = {
        "messages": messages_table,
        "users": users_table,
        "claims": claims_table,
        "conversations": conversations_table,
        "members": members_table,
        "listings": listings_table,
        "media": media_table,
        "media_objects": media_objects_table,
        "sessions": sessions_table,
        "session_cuts": session_cuts_table,
    }[base]
    return make(attempt)


def first_tables() -> tuple[sa.Table, ...]:
    """What the first revision made."""
    return (*(place_table(base) for base in PLACES[:3]), meta_table(), token_table())


def serving_tables() -> tuple[sa.Table, ...]:
    """What an application reads and writes before any migration."""
    return (*(place_table(base) for base in PLACES), meta_table(), token_table())


def base_tables() -> tuple[sa.Table, ...]:
    """All that a new database gets, but the revision's own table."""
    return (*serving_tables(), schema_log_table())
