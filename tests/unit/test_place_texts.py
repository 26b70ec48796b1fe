"""Texts of a place are those that would be put together for it, whatever its number."""

from functools import partial
from typing import Any

import pytest

from datalayer.domains.movement import INDEXED
from datalayer.domains.registry import DOMAINS
from datalayer.schemas.search import create_search
from datalayer.stores.postgres.rows import PostgresCodec
from datalayer.stores.postgres.stores import _Scans
from datalayer.stores.sql import catalogue, conversations, listings, messages, relation, sessions, users
from datalayer.stores.sql.database import Dialect
from datalayer.stores.sql.journal import JournalStatements, KeyLookUp
from datalayer.stores.sql.outbox import OutboxStatements
from datalayer.stores.sql.statement import LookUp
from datalayer.stores.sql.texts import ANY, numbered, texts
from datalayer.stores.sqlite.rows import SqliteRows

CODECS: dict[Dialect, Any] = {"sqlite": SqliteRows(), "postgresql": PostgresCodec()}
RELATIONS = [make for name, make in vars(relation).items() if name.endswith("_relation")]
PLAIN = [
    users.UserStatements,
    messages.MessageStatements,
    conversations.ConversationStatements,
    listings._pages,
    create_search,
]
DIALECTS: tuple[Dialect, ...] = ("sqlite", "postgresql")


def seen(value: Any) -> Any:
    """All that a value holds, down to texts: comparable."""
    if isinstance(value, LookUp):
        return [text for size in (1, 3) for text, _ in value.calls([(b"k",) * 3] * size)]
    if isinstance(value, dict):
        return {key: seen(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [seen(one) for one in value]
    if isinstance(value, relation.Relation):
        return seen({**vars(value), "DDL": value.creation(), "gone": value.removal(), "table": value.table.name})
    if hasattr(value, "__dict__") and not callable(value):
        return seen(vars(value))
    return repr(value) if callable(value) else value


def same(value: Any, other: Any) -> bool:
    """Equal but for functions, which are made anew."""
    blank = partial(str.split, sep=" at 0x")
    return [blank(part)[0] for part in str(seen(value)).split(">")] == [
        blank(part)[0] for part in str(seen(other)).split(">")
    ]


@pytest.mark.parametrize("attempt", [0, 12_345])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_texts_of_a_place_are_those_put_together_for_it(dialect: Dialect, attempt: int) -> None:
    codec = CODECS[dialect]
    assert len(RELATIONS) == sum(
        len(domain.kinds) for name, domain in DOMAINS.items() if name not in {"presence", "typing", "media"}
    )
    for make in PLAIN:
        assert same(texts(make, dialect, attempt=attempt), make(dialect, attempt)), make
    for make in (*RELATIONS, sessions._Statements, catalogue.CatalogueStatements):
        assert same(texts(make, dialect, codec, attempt=attempt), make(dialect, codec, attempt)), make
    assert same(texts(_Scans, attempt=attempt), _Scans(attempt))
    for domain in DOMAINS:
        made = numbered(JournalStatements, dialect, domain, number=attempt)
        assert same(made, JournalStatements(dialect, domain, attempt))
        assert isinstance(made.dirty_key, KeyLookUp)
    for domain in INDEXED:
        entered = numbered(OutboxStatements, dialect, domain, 3, number=attempt)
        assert same(entered, OutboxStatements(dialect, domain, 3, attempt))


def test_the_pattern_itself_is_never_handed_out() -> None:
    made = texts(users.UserStatements, "sqlite", attempt=5)
    assert str(ANY) not in str(seen(made))
    assert not same(made, users.UserStatements("sqlite", 6))  # the comparison can fail
