"""Bodies of searches. Whatever a person typed is a value of a query about whole words, never a query text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datalayer.domains.search import MessageQuery, Phrase

COLUMNS: Final = {"message_doc": "body", "user_doc": "names"}
_SORTS: Final = {"message_doc": ("conversation", "id"), "user_doc": ("id",)}
"""By which fields documents are scanned: the parts of their keys."""
_LIVE: Final = {"term": {"deleted": False}}


def messages(query: MessageQuery) -> dict[str, Any]:
    """The messages that a query finds, newest first."""
    conditions: list[dict[str, Any]] = [{"terms": {"conversation": [one.hex for one in query.conversations]}}, _LIVE]
    if query.sender_id is not None:
        conditions.append({"term": {"sender": query.sender_id.hex}})
    bounds = {}
    if query.since is not None:
        bounds["gte"] = query.since.hex
    if query.until is not None:
        bounds["lt"] = query.until.hex
    if bounds:
        conditions.append({"range": {"id": bounds}})
    for phrase in query.phrases:
        conditions += _phrase("body", phrase)
    return {"query": {"bool": {"filter": conditions}}, "sort": [{"id": "desc"}, {"conversation": "desc"}]}


def users(phrase: Phrase) -> dict[str, Any]:
    """The users that are named so, by name."""
    conditions = [_LIVE, *_phrase("names", phrase)]
    return {"query": {"bool": {"filter": conditions}}, "sort": [{"username": "asc"}, {"id": "asc"}]}


def _phrase(column: str, phrase: Phrase) -> list[dict[str, Any]]:
    *rest, last = phrase.words
    if not phrase.prefix:
        if not rest:
            return [{"term": {column: last}}]
        return [{"match_phrase": {column: " ".join(phrase.words)}}]
    # ``match_phrase_prefix`` looks at the first 50 words that begin so; a prefix alone, at all of them
    beginning = {"prefix": {column: last}}
    if not rest:
        return [beginning]
    row = {"term": {column: rest[0]}} if len(rest) == 1 else {"match_phrase": {column: " ".join(rest)}}
    return [row, beginning]


def scan(kind: str, beyond: str, high: str, limit: int) -> dict[str, Any]:
    """Documents by key, beyond one and up to the conversation of the last."""
    fields = _SORTS[kind]
    body: dict[str, Any] = {
        "size": limit,
        "query": {"range": {fields[0]: {"lte": high[:32]}}},
        "sort": [{field: "asc"} for field in fields],
    }
    return body | {"search_after": _parts(kind, beyond)} if beyond else body


def last_key(kind: str) -> dict[str, Any]:
    """The document with the greatest key."""
    return {"size": 1, "_source": False, "sort": [{field: "desc"} for field in _SORTS[kind]]}


def sample(size: int) -> dict[str, Any]:
    """Documents drawn evenly; the same ones again while nothing changes."""
    score = {"function_score": {"query": {"match_all": {}}, "random_score": {"seed": 1, "field": "_seq_no"}}}
    return {"size": size, "_source": False, "query": score}


def _parts(kind: str, key: str) -> list[str]:
    return [key[:32], key[32:]] if kind == "message_doc" else [key]
